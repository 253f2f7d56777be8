//! Vocabularies that are padded, and those of other models.

use super::*;
use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;

/// The twin with rows behind its vocabulary that were trained.
fn padded(dir: &TempDir) -> PathBuf {
    let twin = twin();
    let mut stored = Vec::new();
    for t in &twin.table.tensors {
        let (mut values, mut shape) = (twin.weights[t.range()].to_vec(), t.shape.clone());
        if shape[0] == 29 {
            shape[0] = 32;
            values.resize(shape.iter().product(), 0.25);
        }
        stored.push((t.name.clone(), shape, bytemuck::cast_slice::<f32, u8>(&values).to_vec()));
    }
    let views = stored.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let path = dir.path().join("padded.safetensors");
    fs::write(&path, ::safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

#[test]
fn padding_that_was_trained_is_cut_or_kept_by_choice() {
    let dir = TempDir::new().unwrap();
    let path = padded(&dir);
    let text = fs::read_to_string(sample("twin/config.json")).unwrap();
    let config = dir.path().join("other.json");
    fs::write(&config, text.replace("\"vocab_size\": 29", "\"vocab_size\": 32")).unwrap();
    let cut = Padding { tokens: 29, rows: 3, zeros: false, kept: false };
    // whether the configuration counts padding or not
    for options in [options(), Options { config: Some(config.clone()), ..options() }] {
        let converted = read(Framework::PyTorch, &path, &options).unwrap();
        assert_is_twin(&converted);
        assert_eq!(converted.padding, Some(cut));
        let kept = read(Framework::PyTorch, &path, &Options { keep_padding: true, ..options }).unwrap();
        assert_eq!((kept.model.vocab_size, kept.padding), (32, Some(Padding { kept: true, ..cut })));
        let rows = &kept.weights[kept.table.word.start + 29 * 16..][..3 * 16];
        assert!(rows.iter().all(|&w| w == 0.25));
        let out = dir.path().join("kept");
        let _ = fs::remove_dir_all(&out);
        kept.export(&out).unwrap();
        assert_eq!(hf::import(&out).unwrap().weights, kept.weights);
    }
    fs::write(&config, text.replace("\"vocab_size\": 29", "\"vocab_size\": 31")).unwrap();
    let message = error(Framework::PyTorch, &path, &Options { config: Some(config), ..options() });
    assert!(
        message.contains("vocab_size: 31, ") && message.contains("29 tokens") && message.contains("32 rows")
    );
}

#[test]
fn the_vocabulary_of_another_model_is_refused_with_both_numbers() {
    let dir = TempDir::new().unwrap();
    let vocab = dir.path().join("few.txt");
    let words = fs::read_to_string(sample("twin/vocab.txt")).unwrap();
    fs::write(&vocab, words.lines().take(9).map(|word| format!("{word}\n")).collect::<String>()).unwrap();
    let options = Options { vocab: Some(vocab), ..options() };
    let padded = padded(&dir);
    for (framework, path) in [
        (Framework::TensorFlow, &sample("tiny")),
        (Framework::PyTorch, &sample("zip.bin")),
        (Framework::PyTorch, &sample("nvidia.pt")),
        (Framework::PyTorch, &padded),
    ] {
        for config in [None, options.config.clone()] {
            let message = error(framework, path, &Options { config, ..options.clone() });
            let says = message.contains("few.txt") && message.contains("9 tokens");
            let of_the_configuration = message.contains("vocab_size: 29") && message.contains("32 rows");
            let no_heads = message.contains("number of heads");
            assert!(says && (message.contains("29 rows") || of_the_configuration) || no_heads, "{message}");
        }
    }
}
