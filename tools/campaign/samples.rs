//! The whole files that inputs are made of, in OUT/samples: those of the tests, and what the launcher makes of a small text.

use crate::launcher;
use anyhow::{Context, bail, ensure};
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

const CONFIG: &str = r#"
[model]
layers = 1
hidden = 16
heads = 2
intermediate = 32
max_positions = 32

[data]
dir = "data"

[data.prepare]
input = ["text.txt"]
vocab = "vocab.txt"
max_seq_length = 32
max_predictions = 5
eval_fraction = 0.2
masking = "static"

[train]
run = "run"
device = "cpu"
steps = 4
batch_sequences = 4
log_every = 1
checkpoint_every = 2
threads = 1

[schedule]
lr = 1e-2
warmup_steps = 2
"#;

/// Makes the samples, unless an earlier campaign did.
pub fn make(out: &Path) -> anyhow::Result<()> {
    let dir = out.join("samples");
    if dir.is_dir() {
        return Ok(());
    }
    let aside = out.join("samples.making");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::create_dir_all(&aside).with_context(|| format!("cannot create {}", aside.display()))?;
    texts(&aside)?;
    for (from, to) in [
        ("tests/data/import", "import"),
        ("tests/data/checkpoints", "checkpoints"),
        ("tests/golden/mlperf/scaled", "mlperf"),
        ("tests/golden/fresh-erf.safetensors", "golden.safetensors"),
        ("tools/campaign/samples/text.txt.bz2", "text.txt.bz2"),
        ("tools/campaign/samples/text.txt.xz", "text.txt.xz"),
    ] {
        copy(&root().join(from), &aside.join(to))?;
    }
    made_by_the_launcher(&aside)?;
    fs::rename(&aside, &dir)?;
    Ok(())
}

/// Copies a file or a folder with the times of its files: an import compares them.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::File::options().append(true).open(to)?.set_modified(fs::metadata(from)?.modified()?)?;
    Ok(())
}

fn texts(dir: &Path) -> anyhow::Result<()> {
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes);
    let (mut lines, mut objects, mut table) = (String::new(), String::new(), String::from("id,text,note\n"));
    let mut documents = Vec::new();
    for i in 0..30 {
        let text = format!(
            "The cat number {i} sees a \u{201c}house\u{201d}, na\u{ef}ve as it is.\nThe dog follows the {i} rivers."
        );
        write!(lines, "{text}\n\n")?;
        writeln!(objects, "{}", serde_json::json!({ "id": i, "text": text, "tags": ["a", null] }))?;
        write!(table, "{i},\"{}\",\"a \"\"note\"\"\"\r\n", text.replace('"', "\"\""))?;
        documents.push(text);
    }
    write("text.txt", lines.as_bytes())?;
    write("prose.txt", documents.join(" ").replace('\n', " ").as_bytes())?;
    write("text.jsonl", objects.as_bytes())?;
    write("text.csv", table.as_bytes())?;
    write(
        "text.tsv",
        documents.iter().fold("text\tid\n".to_owned(), |t, d| t + &d.replace('\n', " ") + "\t1\n").as_bytes(),
    )?;
    for (name, content) in [("text.txt", &lines), ("text.jsonl", &objects)] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(content.as_bytes())?;
        write(&format!("{name}.gz"), &gzip.finish()?)?;
        write(&format!("{name}.zst"), &zstd::encode_all(content.as_bytes(), 3)?)?;
    }
    for (name, compression) in [
        ("plain", Compression::UNCOMPRESSED),
        ("snappy", Compression::SNAPPY),
        ("gzip", Compression::GZIP(GzipLevel::default())),
        ("zstd", Compression::ZSTD(ZstdLevel::default())),
        ("lz4", Compression::LZ4_RAW),
    ] {
        write(&format!("{name}.parquet"), &table_of(&documents, compression)?)?;
    }
    let words =
        ["the", "cat", "dog", "sees", "a", "house", "follows", "rivers", "number", ".", ",", "river", "it"];
    let specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let mut vocabulary: Vec<String> = specials.into_iter().chain(words).map(str::to_owned).collect();
    for c in ('a'..='z').chain('0'..='9').filter(|&c| c != 'a') {
        vocabulary.extend([c.to_string(), format!("##{c}")]);
    }
    write("vocab.txt", (vocabulary.join("\n") + "\n").as_bytes())?;
    write("tiny.toml", CONFIG.as_bytes())?;
    write("step.json", br#"{"batch": 256, "ms": 350.5, "gpus": 8, "sequences_per_second": 730.4}"#)?;
    write("lengths.txt", b"32\n7\n16\n\n31\n")?;
    write("bad.tfrecord", b"none")?;
    Ok(())
}

fn table_of(documents: &[String], compression: Compression) -> anyhow::Result<Vec<u8>> {
    let schema = parquet::schema::parser::parse_message_type("message m { optional binary text (UTF8); }")?;
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, Arc::new(schema), Arc::new(properties))?;
    for rows in documents.chunks(12) {
        let mut group = writer.next_row_group()?;
        let mut column = group.next_column()?.context("the schema has one column")?;
        let values: Vec<ByteArray> = rows.iter().map(|text| text.as_str().into()).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&vec![1; rows.len()]), None)?;
        column.close()?;
        group.close()?;
    }
    writer.close()?;
    Ok(file)
}

fn made_by_the_launcher(dir: &Path) -> anyhow::Result<()> {
    let launch = |line: &str| {
        let mut command = Command::new(launcher());
        command.args(line.split_whitespace()).current_dir(dir).env_remove("RUST_LOG").output()
    };
    for line in [
        "--config tiny.toml",
        "prepare --part 1/2 --input text.txt prose.txt --vocab vocab.txt --out part-1 --max-seq-length 32",
        "prepare --part 2/2 --input text.txt prose.txt --vocab vocab.txt --out part-2 --max-seq-length 32",
    ] {
        let ran = launch(line)?;
        ensure!(ran.status.success(), "launcher {line}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    let bench = launch("bench --config tiny.toml --device cpu --batch 2 --steps 2 --ceiling 16 --json")?;
    ensure!(bench.status.success(), "launcher bench: {}", String::from_utf8_lossy(&bench.stderr));
    fs::write(dir.join("bench.json"), &bench.stdout)?;
    // Ends at the evaluation data, and leaves a journal that says how far it is.
    let line = "import tfrecord import/unpacked.tfrecord --eval bad.tfrecord --vocab import/vocab.txt --out imported";
    if launch(line)?.status.success() || !dir.join("imported.preparing/import.journal").is_file() {
        bail!("launcher {line}: expected to fail and to leave a journal");
    }
    let tokenizer = dir.join("run/model/tokenizer_config.json");
    if !tokenizer.exists() {
        fs::write(
            tokenizer,
            br#"{"do_lower_case": true, "tokenizer_class": "BertTokenizer", "model_max_length": 32}"#,
        )?;
    }
    Ok(())
}
