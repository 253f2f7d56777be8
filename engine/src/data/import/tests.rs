//! Against the samples that `tools/make_import_samples.py` wrote with other software, whole, damaged and interrupted.

mod damage;
mod labels;

use super::*;
use crate::data::shards::{Dataset, SplitName};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use tempfile::TempDir;

const HDF5: [&str; 8] = [
    "fixed.hdf5",
    "fixed-gzip.hdf5",
    "fixed-latest.hdf5",
    "fixed-wide.hdf5",
    "variable.hdf5",
    "variable-gzip.hdf5",
    "packed.hdf5",
    "packed-gzip.hdf5",
];

/// A sequence as the script that made the samples says it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Expected {
    tokens: Vec<u32>,
    segment_b: usize,
    label: u32,
    masks: Vec<(u16, u32)>,
}

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/import").join(name)
}

fn expected() -> Vec<Expected> {
    serde_json::from_str(&fs::read_to_string(sample("expected.json")).unwrap()).unwrap()
}

fn config(input: &Path) -> ImportConfig {
    let hdf5 = input.extension().is_some_and(|e| e == "hdf5");
    ImportConfig {
        format: if hdf5 { ImportFormat::Hdf5 } else { ImportFormat::Tfrecord },
        inputs: vec![input.to_owned()],
        eval: Vec::new(),
        vocab: sample("vocab.txt"),
        skip_bad: false,
    }
}

fn sequences(dir: &Path, split: SplitName) -> Vec<Expected> {
    let data = Dataset::open(dir, split).unwrap();
    (0..data.len())
        .map(|i| {
            let sequence = data.get(i).unwrap();
            let mask = sequence.mask.unwrap();
            Expected {
                tokens: sequence.tokens.to_vec(),
                segment_b: sequence.segment_b_start,
                label: sequence.nsp.unwrap(),
                masks: mask.positions.iter().copied().zip(mask.tokens.to_vec()).collect(),
            }
        })
        .collect()
}

/// Imports into a folder of its own; what it says where it fails.
fn run(config: &ImportConfig) -> (TempDir, std::result::Result<Imported, String>) {
    let dir = TempDir::new().unwrap();
    let result = import(config, &dir.path().join("out"), 2, &|_| ()).map_err(|e| e.to_string());
    (dir, result)
}

#[test]
fn every_sample_holds_the_sequences_that_the_script_put_there() {
    let expected = expected();
    for name in HDF5.into_iter().chain(["tfrecord", "unpacked.tfrecord"]) {
        let mut config = config(&sample(name));
        config.eval = vec![config.inputs[0].clone()];
        let (dir, imported) = run(&config);
        let manifest = imported.unwrap().manifest;
        assert_eq!(manifest, Manifest::load(&dir.path().join("out")).unwrap());
        assert_eq!((manifest.options.max_seq_length, manifest.options.max_predictions), (64, 10), "{name}");
        for split in [SplitName::Train, SplitName::Eval] {
            assert_eq!(sequences(&dir.path().join("out"), split), expected, "{name}");
        }
        let mut text = vec![0u64; 1000];
        for token in expected.iter().flat_map(|s| &s.tokens).filter(|&&t| t > 4) {
            text[*token as usize] += 1;
        }
        assert_eq!(manifest.unigram_entropy, entropy(&text), "{name}");
        let source = manifest.source.unwrap();
        let layout = match name.split(['-', '.']).next().unwrap() {
            "fixed" => (Layout::FixedLength, 2),
            "variable" => (Layout::VariableLength, 2),
            "packed" => (Layout::Packed, 2),
            "unpacked" => (Layout::Example, 2),
            _ => (Layout::Example, 4),
        };
        assert_eq!(source.layouts, BTreeMap::from([layout]), "{name}");
    }
}

/// The files of an import with small blocks and shards, by name.
fn files_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    entries.map(|path| (name(&path), fs::read(&path).unwrap())).collect()
}

const SMALL: Sizes = Sizes { block: 2500, shard: Some(2000) };

#[test]
fn bytes_do_not_depend_on_threads() {
    for name in ["tfrecord", "fixed-gzip.hdf5", "packed-gzip.hdf5"] {
        let mut config = config(&sample(name));
        config.eval = vec![config.inputs[0].clone()];
        let dir = TempDir::new().unwrap();
        let made = [1, 2, 5].map(|threads| {
            let out = dir.path().join(threads.to_string());
            import_in(&config, &out, threads, SMALL, &|_| ()).unwrap();
            files_of(&out)
        });
        assert!(made[0].len() > 6, "{name}: {:?}", made[0].keys());
        assert!(made[0] == made[1] && made[0] == made[2], "{name}");
    }
}

/// Folders as they are when an import is killed, one for every time that it tells how far it is.
fn killed(config: &ImportConfig, dir: &Path, sizes: Sizes) -> Vec<PathBuf> {
    let snapshots = Mutex::new(Vec::new());
    import_in(config, &dir.join("whole"), 2, sizes, &|progress| {
        if progress.phase == Phase::Importing {
            let mut snapshots = snapshots.lock().unwrap();
            let to = dir.join(format!("{}.preparing", snapshots.len()));
            fs::create_dir(&to).unwrap();
            for (name, bytes) in files_of(&dir.join("whole.preparing")) {
                fs::write(to.join(name), bytes).unwrap();
            }
            snapshots.push(to);
        }
    })
    .unwrap();
    snapshots.into_inner().unwrap()
}

#[test]
fn a_killed_import_goes_on_and_ends_with_the_same_bytes() {
    for name in ["tfrecord", "fixed-gzip.hdf5", "packed-gzip.hdf5"] {
        let mut config = config(&sample(name));
        config.eval = vec![sample(if name == "tfrecord" { "unpacked.tfrecord" } else { "variable.hdf5" })];
        let dir = TempDir::new().unwrap();
        let snapshots = killed(&config, dir.path(), SMALL);
        let whole = files_of(&dir.path().join("whole"));
        let mut kept = Vec::new();
        let every = snapshots.iter().enumerate().filter(|(i, _)| i % 3 == 0 || i + 1 == snapshots.len());
        for (i, snapshot) in every {
            // The shard that was being written.
            let closed = files_of(snapshot).keys().filter(|name| name.starts_with("train")).count();
            fs::write(snapshot.join(format!("train-{closed:05}.shard")), "half a shard").unwrap();
            fs::write(snapshot.join("train-00999.shard"), "a shard that the journal does not name").unwrap();
            let out = snapshot.with_extension("");
            let imported = import_in(&config, &out, 1 + i % 3, SMALL, &|_| ()).unwrap();
            assert!(files_of(&out) == whole, "{name}, killed at {i}");
            kept.push(imported.kept);
        }
        assert!(
            kept.is_sorted() && kept[kept.len() / 4] > 0 && kept[kept.len() - 1] > 90,
            "{name}: {kept:?}"
        );
    }
}

#[test]
fn what_a_killed_import_left_counts_only_if_it_is_whole_and_of_the_same_files() {
    // The second time all sequences are of one block, of which a part is in shards.
    for sizes in [SMALL, Sizes { block: 1 << 20, ..SMALL }] {
        let dir = TempDir::new().unwrap();
        let input = dir.path().join("input.tfrecord");
        fs::copy(sample("unpacked.tfrecord"), &input).unwrap();
        let config = config(&input);
        let last = killed(&config, dir.path(), sizes).pop().unwrap();
        let left = files_of(&last);
        let again = |change: &dyn Fn(&Path), config: &ImportConfig| {
            fs::remove_dir_all(&last).ok();
            fs::create_dir(&last).unwrap();
            for (name, bytes) in &left {
                fs::write(last.join(name), bytes).unwrap();
            }
            change(&last);
            let out = last.with_extension("");
            let kept = import_in(config, &out, 2, sizes, &|_| ()).unwrap().kept;
            assert_eq!(sequences(&out, SplitName::Train), expected());
            fs::remove_dir_all(out).unwrap();
            kept
        };
        assert!(again(&|_| (), &config) > 0);
        let skip_bad = ImportConfig { skip_bad: true, ..config.clone() };
        assert!(again(&|_| (), &skip_bad) > 0);
        let flip = |name: &'static str, at: usize| {
            move |dir: &Path| {
                let mut bytes = fs::read(dir.join(name)).unwrap();
                bytes[at] ^= 1;
                fs::write(dir.join(name), bytes).unwrap();
            }
        };
        assert_eq!(again(&flip("import.journal", 100), &config), 0);
        assert_eq!(again(&flip("train-00001.shard", 700), &config), 0);
        assert_eq!(again(&|dir| fs::remove_file(dir.join("train-00000.shard")).unwrap(), &config), 0);
        assert_eq!(again(&|dir| fs::write(dir.join("import.journal"), "").unwrap(), &config), 0);
        // A journal of an earlier version, without checksums of the files.
        let forget = |dir: &Path| {
            let text = fs::read_to_string(dir.join("import.journal")).unwrap();
            let (_, mut text) = text.split_once('\n').map(|(sum, text)| (sum, text.to_owned())).unwrap();
            let at = text.find("\"xxh3\":\"").unwrap();
            text.replace_range(at..at + "\"xxh3\":\"".len() + 33, "\"xxh3\":null");
            let sum = format!("{:016x}\n", xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
            fs::write(dir.join("import.journal"), sum + &text).unwrap();
        };
        assert_eq!(again(&forget, &config), 0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&input, fs::read(sample("unpacked.tfrecord")).unwrap()).unwrap();
        assert_eq!(again(&|_| (), &config), 0);
    }
}

#[test]
fn a_folder_that_holds_the_data_is_kept_and_any_other_is_refused() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let first = config(&sample("packed.hdf5"));
    assert!(!import(&first, &out, 1, &|_| ()).unwrap().existed);
    let before = files_of(&out);
    assert!(imported_counts(&out));
    assert!(import(&first, &out, 1, &|_| ()).unwrap().existed);
    assert!(before == files_of(&out));
    let eval = ImportConfig { eval: vec![sample("variable.hdf5")], ..first.clone() };
    for (other, says) in [
        (config(&sample("fixed.hdf5")), "input packed.hdf5"),
        (config(&sample("unpacked.tfrecord")), "imported from HDF5"),
        (eval, "input files there"),
    ] {
        let message = import(&other, &out, 1, &|_| ()).unwrap_err().to_string();
        assert!(message.contains(says) && message.contains("choose another folder"), "{message}");
    }
}

/// The manifest's counts of tokens are those of the sequences.
fn imported_counts(out: &Path) -> bool {
    let manifest = Manifest::load(out).unwrap();
    let vocab = crate::data::vocab::Vocab::load(&sample("vocab.txt")).unwrap();
    let special = [vocab.pad, vocab.cls, vocab.sep, vocab.mask];
    let expected = expected();
    let text = expected.iter().flat_map(|s| &s.tokens).filter(|token| !special.contains(token));
    let random = expected.iter().filter(|s| s.label == 1).count() as u64;
    let counts = manifest.train.text.unwrap();
    let unknown = text.clone().filter(|&&token| token == vocab.unk).count() as u64;
    (counts.tokens, counts.unknown, manifest.train.random_next)
        == (text.count() as u64, unknown, Some(random))
}

/// Changes a byte that no checksum covers, and puts the file's time back.
fn edit_in_place(path: &Path, from: &[u8], to: &[u8]) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    fs::write(path, bytes).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
}

#[test]
fn an_edit_that_keeps_size_and_time_is_noticed() {
    let dir = TempDir::new().unwrap();
    let (input, other) = (dir.path().join("input.tfrecord"), dir.path().join("other.tfrecord"));
    fs::copy(sample("unpacked.tfrecord"), &input).unwrap();
    fs::copy(sample("unpacked.tfrecord"), &other).unwrap();
    let config = ImportConfig { eval: vec![other.clone()], ..config(&input) };
    let out = dir.path().join("out");
    import(&config, &out, 1, &|_| ()).unwrap();
    let left = killed(&config, dir.path(), SMALL).pop().unwrap();
    let goes_on = left.with_extension("");
    // Of the last record, the checksum: the bytes before it are the same.
    let length = fs::metadata(&input).unwrap().len() as usize;
    for path in [&other, &input] {
        let bytes = fs::read(path).unwrap();
        let last = bytes[length - 4..].to_vec();
        edit_in_place(path, &last, &[last[0] ^ 1, last[1], last[2], last[3]]);
        let message = import(&config, &out, 1, &|_| ()).unwrap_err().to_string();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            message.contains(&format!("{name} has the same name and size there and here, but")),
            "{message}"
        );
        assert!(message.contains("choose another folder or remove this one"), "{message}");
        edit_in_place(path, &[last[0] ^ 1, last[1], last[2], last[3]], &last);
        assert!(import(&config, &out, 1, &|_| ()).unwrap().existed);
    }
    let last = fs::read(&input).unwrap()[length - 4..].to_vec();
    edit_in_place(&input, &last, &[last[0] ^ 1, last[1], last[2], last[3]]);
    let skip_bad = ImportConfig { skip_bad: true, ..config };
    assert_eq!(import_in(&skip_bad, &goes_on, 1, SMALL, &|_| ()).unwrap().kept, 0);
}
