//! Every format, whole and cut short.

use super::*;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use std::io::Write;
use std::sync::Arc;

const PIECE: usize = 4 << 20;

type Documents = Vec<Vec<u8>>;

/// The documents of files, pieces joined.
fn read(paths: &[PathBuf], split: Split) -> Result<Documents> {
    let scratch = tempfile::tempdir().unwrap();
    let files = list(paths)?;
    let counter = AtomicU64::new(0);
    let reader = Reader { files: &files, split, piece: PIECE, bytes_read: &counter, scratch: scratch.path() };
    let mut documents: Documents = Vec::new();
    let outcome = reader.read(&mut |piece| {
        assert!(piece.bytes.len() <= PIECE && !piece.bytes.is_empty());
        if piece.first {
            assert_eq!(piece.document, documents.len() as u64);
            documents.push(Vec::new());
        }
        documents.last_mut().unwrap().extend_from_slice(piece.bytes);
        Ok(())
    });
    match outcome {
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Enough) => unreachable!(),
        Ok(()) => {
            assert_eq!(counter.into_inner(), files.iter().map(|f| f.bytes).sum::<u64>());
            assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
            Ok(documents)
        }
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parquet_file(texts: &[Option<&str>], column: &str) -> Vec<u8> {
    let schema = format!("message m {{ required int32 n; optional binary {column} (UTF8); }}");
    let schema = Arc::new(::parquet::schema::parser::parse_message_type(&schema).unwrap());
    let mut out = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut out, schema, Arc::new(WriterProperties::default())).unwrap();
    for rows in texts.chunks(3) {
        let mut group = writer.next_row_group().unwrap();
        let mut ints = group.next_column().unwrap().unwrap();
        let numbers = vec![1; rows.len()];
        ints.typed::<::parquet::data_type::Int32Type>().write_batch(&numbers, None, None).unwrap();
        ints.close().unwrap();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|&t| t.into()).collect();
        let levels: Vec<i16> = rows.iter().map(|t| i16::from(t.is_some())).collect();
        let mut strings = group.next_column().unwrap().unwrap();
        strings.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        strings.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    out
}

const TEXT: &[u8] = b"one\ntwo\r\n\r\n \nthree\n\n\nfour";
const JSON: &[u8] = b"{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n";

fn strings(documents: &[Vec<u8>]) -> Vec<&str> {
    documents.iter().map(|d| std::str::from_utf8(d).unwrap()).collect()
}

#[test]
fn documents_of_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let parquet = parquet_file(&[Some("p"), None, Some("q\n\nr"), Some("s"), Some("")], "text");
    let zst = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let lines = ["one\ntwo\r\n", "three\n", "four"];
    let rows = ["p", "q\n\nr", "s"];
    let json = ["{\"text\": \"a\"}\n", "{\"text\": \"b\"}\n"];
    for (name, bytes, want) in [
        ("a.txt", TEXT.to_vec(), &lines[..]),
        ("a.txt.gz", [gz(&TEXT[..7]), gz(&TEXT[7..])].concat(), &lines),
        ("a.zst", [zst(&TEXT[..7]), zst(&TEXT[7..])].concat(), &lines),
        ("a.jsonl", JSON.to_vec(), &json),
        ("a.json.gz", gz(JSON), &json),
        ("a.ndjson.zst", zst(JSON), &json),
        ("a.parquet", parquet.clone(), &rows),
        ("a.parquet.gz", gz(&parquet), &rows),
        ("a.PARQUET.ZST", zst(&parquet), &rows),
    ] {
        assert_eq!(strings(&read(&[write(name, &bytes)], Split::Lines).unwrap()), want, "{name}");
        if bytes.len() > 100 || name.contains("gz") || name.contains("zst") {
            for cut in [1, 5, bytes.len() / 3, bytes.len() / 2, bytes.len() - 20] {
                let path = write(name, &bytes[..bytes.len() - cut]);
                let message = read(&[path], Split::Lines).unwrap_err().to_string();
                assert!(message.contains(name), "{message}");
            }
        }
    }
    let prose = read(&[write("b.txt", TEXT)], Split::Sentences).unwrap();
    assert_eq!(strings(&prose), ["one\ntwo\r\n\r\n \nthree\n\n\nfour"]);
}

#[test]
fn folders_are_read_in_order_and_bad_input_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for folder in ["in/sub", "empty"] {
        std::fs::create_dir_all(path(folder)).unwrap();
    }
    for (name, text) in
        [("in/b.txt", "two"), ("in/a.txt", "one"), ("in/sub/c", "three"), ("in/.hidden", "no")]
    {
        std::fs::write(path(name), text).unwrap();
    }
    assert_eq!(strings(&read(&[path("in")], Split::Lines).unwrap()), ["one", "two", "three"]);

    std::fs::write(path("nothing"), "").unwrap();
    std::fs::write(path("blank.txt"), " \n\n").unwrap();
    std::fs::write(path("blank.gz"), gz(b"")).unwrap();
    std::fs::write(path("not.gz"), "plain text").unwrap();
    std::fs::write(path("not.zst"), "plain text").unwrap();
    std::fs::write(path("not.parquet"), "plain text").unwrap();
    std::fs::write(path("other.parquet"), parquet_file(&[Some("a")], "body")).unwrap();
    for (name, want) in [
        ("missing", "cannot read the input"),
        ("nothing", "is empty"),
        ("empty", "holds no file"),
        ("blank.txt", "holds no text"),
        ("blank.gz", "holds no text"),
        ("not.gz", "cannot decompress"),
        ("not.zst", "cannot decompress"),
        ("not.parquet", "cannot read this Parquet file"),
        ("other.parquet", "has no column `text`, only n, body"),
    ] {
        let message = read(&[path("in"), path(name)], Split::Lines).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(want) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn long_lines_and_documents_come_in_bounded_pieces_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.txt");
    let words = "word ünd ".repeat(1_300_000);
    let solid = "ü".repeat(3_000_000);
    for (text, split) in [
        (format!("{words}\n{solid}\nend\n\nsecond"), Split::Lines),
        ("A line.\n\nAnother.\n".repeat(500_000), Split::Sentences),
    ] {
        std::fs::write(&path, &text).unwrap();
        let documents = read(std::slice::from_ref(&path), split).unwrap();
        let joined = documents.concat();
        let want = if split == Split::Lines { text.replace("\n\n", "\n") } else { text };
        assert!(joined == want.as_bytes());
        assert_eq!(documents.len(), if split == Split::Lines { 2 } else { 1 });
    }
}

/// A damaged Parquet file is an error or other text, never a panic; gzip and Zstandard have checksums of their own or
/// give other text.
#[test]
fn flipped_bytes_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let texts: Vec<Option<&str>> =
        ["some", "text", "again and again", "some"].into_iter().map(Some).collect();
    let parquet = parquet_file(&texts, "text");
    let (gzip, zst) = (gz(&TEXT.repeat(9)), zstd::encode_all(&TEXT.repeat(9)[..], 1).unwrap());
    let mut errors = 0;
    for (name, bytes) in [("a.parquet", parquet), ("a.gz", gzip), ("a.zst", zst)] {
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            let path = dir.path().join(format!("{at}{name}"));
            std::fs::write(&path, changed).unwrap();
            if let Err(error) = read(std::slice::from_ref(&path), Split::Lines) {
                assert!(error.to_string().contains(name), "{error}");
                errors += 1;
            }
        }
    }
    assert!(errors > 100);
}
