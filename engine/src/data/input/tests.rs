//! Every format, whole and cut short.

use super::*;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use std::io::{Read, Write};
use std::sync::Arc;

const PIECE: usize = 4 << 20;

type Documents = Vec<Vec<u8>>;

/// The documents of files, pieces joined.
fn read(paths: &[PathBuf], split: Split) -> Result<Documents> {
    read_with(paths, &PrepareConfig { split, ..PrepareConfig::default() }).map(|(documents, _)| documents)
}

/// The documents of files, pieces joined, and what was passed over. Rows of JSON are taken as they are.
fn read_with(paths: &[PathBuf], config: &PrepareConfig) -> Result<(Documents, Omitted)> {
    let scratch = tempfile::tempdir().unwrap();
    let files = list(paths, config, &Spool::new(None, &|_| ()))?;
    let (input, seen) = (Input { files: &files, config }, Seen::default());
    let reader = Reader { input, piece: PIECE, seen: &seen, scratch: scratch.path() };
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
            assert_eq!(seen.bytes.load(Relaxed), files.iter().map(|f| f.bytes).sum::<u64>());
            assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
            Ok((documents, seen.omitted()))
        }
    }
}

fn with_field(name: &str) -> PrepareConfig {
    PrepareConfig { text_field: Some(name.into()), ..PrepareConfig::default() }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn utf16(text: &str, big: bool) -> Vec<u8> {
    let units = "\u{feff}".encode_utf16().chain(text.encode_utf16());
    units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
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
    let lines = ["one\ntwo\r\n", "three\n", "four"];
    let rows = ["p", "q\n\nr", "s"];
    let json = ["{\"text\": \"a\"}\n", "{\"text\": \"b\"}\n"];
    for (name, bytes, want) in [
        ("a.txt", TEXT.to_vec(), &lines[..]),
        ("a.txt.gz", [gz(&TEXT[..7]), gz(&TEXT[7..])].concat(), &lines),
        ("a.zst", [zst(&TEXT[..7]), zst(&TEXT[7..])].concat(), &lines),
        ("a.bz2", [bz(&TEXT[..7]), bz(b""), bz(&TEXT[7..])].concat(), &lines),
        ("a.txt.xz", [xz(&TEXT[..7]), xz(&TEXT[7..])].concat(), &lines),
        ("a.jsonl.bz2", bz(JSON), &json),
        ("gz.named.bz2", gz(TEXT), &lines),
        ("bz2.named.gz", bz(TEXT), &lines),
        ("xz", xz(TEXT), &lines),
        ("little.txt", utf16(std::str::from_utf8(TEXT).unwrap(), false), &lines),
        ("big.txt.xz", xz(&utf16(std::str::from_utf8(TEXT).unwrap(), true)), &lines),
        ("utf16.jsonl", utf16(std::str::from_utf8(JSON).unwrap(), false), &json),
        ("parquet-0001", parquet.clone(), &rows),
        ("b.parquet.xz", xz(&parquet), &rows),
        ("rows-0001", JSON.to_vec(), &json),
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

    std::fs::write(path("not.parquet"), "plain text").unwrap();
    std::fs::write(path("other.parquet"), parquet_file(&[Some("a")], "body")).unwrap();
    for (name, want) in [
        ("missing", "cannot read the input"),
        ("empty", "holds no file"),
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
    let text = TEXT.repeat(9);
    let mut errors = 0;
    for (name, bytes) in [
        ("a.parquet", parquet),
        ("a.gz", gz(&text)),
        ("a.zst", zst(&text)),
        ("a.bz2", bz(&text)),
        ("a.xz", xz(&text)),
    ] {
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

/// Cut at every byte, and with anything behind its end, a compressed file is an error that names it, never a part of its
/// text.
#[test]
fn half_a_compressed_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut seed = 1u32;
    let noise = |_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + (seed >> 24) as u8 % 26)
    };
    let text: String = (0..200_000).map(noise).collect();
    let path = dir.path().join("a");
    let fails = |bytes: &[u8], what: String| {
        std::fs::write(&path, bytes).unwrap();
        let message = read(std::slice::from_ref(&path), Split::Lines).unwrap_err().to_string();
        assert!(message.contains("a: cannot decompress: "), "{what}: {message}");
    };
    for (name, pack) in [("gz", gz as fn(&[u8]) -> Vec<u8>), ("zst", zst), ("bz2", bz), ("xz", xz)] {
        let short = pack(b"a few words in one line\n");
        for end in 10..short.len() {
            fails(&short[..end], format!("{name} cut at {end}"));
            // The second of two streams is cut.
            fails(&[&short[..], &short[..end]].concat(), format!("{name} {end} bytes of the second"));
        }
        for behind in
            [&b"x"[..], b"garbage", b"garbage that is longer than any header is", b"BZ", b"\x1f\x8b"]
        {
            fails(&[&short[..], behind].concat(), format!("{name} with {behind:?} behind"));
        }
        let long = pack(text.as_bytes());
        for end in [long.len() / 2, long.len() - 1] {
            fails(&long[..end], format!("long {name} cut at {end}"));
        }
    }
}

#[test]
fn what_is_not_text_is_refused_by_name_and_kind() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = vec![0; 1024];
    tar[..5].copy_from_slice(b"a.txt");
    tar[257..262].copy_from_slice(b"ustar");
    let record = {
        let length = 9u64.to_le_bytes();
        let checksum = crc32c::crc32c(&length).rotate_right(15).wrapping_add(0xa282_ead8);
        [&length[..], &checksum.to_le_bytes(), b"123456789"].concat()
    };
    let tensors = [&3u64.to_le_bytes()[..], b"{ }"].concat();
    let html = b"<!DOCTYPE HTML>\n<p>text</p>".as_slice();
    let units = |text: &str| utf16(text, false)[2..].to_vec();
    let cyrillic: Vec<u8> = (0..80).map(|i| if i % 6 == 5 { b' ' } else { 0xc0 + i % 32 }).collect();
    for (name, bytes, want) in [
        ("a.arrow", b"ARROW1\0\0\xff\xff\xff\xff".to_vec(), "is an Arrow (Feather) file"),
        ("a.zip", b"PK\x03\x04\x14\0\0\0".to_vec(), "is a zip archive"),
        ("a.tar", tar.clone(), "is a tar archive, not text; unpack it first"),
        ("a.tar.gz", gz(&tar), "is a tar archive"),
        ("a.txt", b"%PDF-1.7\n%text".to_vec(), "is a PDF file"),
        ("program", b"\x7fELF\x02\x01\x01\0".to_vec(), "is a program (ELF)"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0".to_vec(), "is an image (PNG)"),
        ("a.jpg", b"\xff\xd8\xff\xe0\0".to_vec(), "is an image (JPEG)"),
        ("a.db", b"SQLite format 3\0\x10\0".to_vec(), "is an SQLite database"),
        ("a.pkl", b"\x80\x04K\x01.".to_vec(), "is a pickle of Python"),
        ("a.safetensors", tensors, "is a safetensors file"),
        ("a.h5", b"\x89HDF\r\n\x1a\n\0".to_vec(), "launcher import hdf5"),
        ("a.tfrecord", record, "launcher import tfrecord"),
        ("text.txt", b"words\0 words".to_vec(), "1 of its first 12 bytes are NUL"),
        ("text.txt", units("words of a text in UTF-16"), "UTF-16LE without a byte order mark"),
        ("text.txt", b"\xff\xfe\0\0w\0\0\0".to_vec(), "UTF-32"),
        ("text.txt", cyrillic, "another encoding than UTF-8"),
        ("text.txt", (0..90).map(|i| 1 + i % 6).collect(), "90 of its first 90 bytes are control characters"),
        ("a.parquet", b"plain text".to_vec(), "cannot read this Parquet file"),
        (
            "a.gz",
            b"plain text".to_vec(),
            "cannot decompress: the name ends in .gz, and the file is not compressed",
        ),
        ("a.jsonl.zst", b"plain text".to_vec(), "take .zst off its name"),
        ("a.gz.xz", xz(&gz(TEXT)), "is compressed twice"),
        ("wiki.xml.bz2", bz(b"<mediawiki xml:lang=\"en\">"), "is a MediaWiki dump in XML"),
        ("a.html", html.to_vec(), "is a page of HTML"),
        ("a.txt", utf16("<?xml version=\"1.0\"?>", true), "is XML"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), "git lfs pull"),
        ("a.json", b"[\n{\"text\": \"a\"},\n".to_vec(), "is one JSON array"),
        ("a.json", b"[{\"text\": \"a\"}]\n".to_vec(), "jq -c '.[]'"),
        (
            "a.csv",
            b"\xef\xbb\xbfid,body\n1,text\n".to_vec(),
            "name the column that holds the text with data.prepare.text_field: id, body",
        ),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let message =
            list(&[path], &PrepareConfig::default(), &Spool::new(None, &|_| ())).unwrap_err().to_string();
        assert!(message.contains(&format!("{name}: ")) && message.contains(want), "{name}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    // Text that begins as some of these do, in old encodings, or with a stray byte, is text.
    for text in ["ORC and man", "BZh9 is a mark", "PAR1 text", "GIF89a", "Obj", "{} is empty", "RIFFraff"] {
        let path = dir.path().join("fine");
        std::fs::write(&path, text).unwrap();
        assert_eq!(strings(&read(&[path], Split::Lines).unwrap()), [text]);
    }
    let latin = b"Gr\xf6\xdfe der H\xe4user".to_vec();
    std::fs::write(dir.path().join("latin"), &latin).unwrap();
    assert_eq!(read(&[dir.path().join("latin")], Split::Lines).unwrap(), [latin]);
}

#[test]
fn what_holds_no_text_is_passed_over_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("_SUCCESS", Vec::new()),
        ("a.parquet", parquet_file(&[], "text")),
        ("b.parquet", parquet_file(&[None], "text")),
        ("blank.gz", gz(b"")),
        ("blank.jsonl", b"\n\n \n".to_vec()),
        ("blank.txt", b" \n\n".to_vec()),
        ("empty.csv", Vec::new()),
        ("empty.parquet", Vec::new()),
        ("head.csv", b"text\n".to_vec()),
        ("text.txt", TEXT.to_vec()),
    ] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let (documents, omitted) = read_with(&[dir.path().into()], &with_field("text")).unwrap();
    assert_eq!(strings(&documents), ["one\ntwo\r\n", "three\n", "four"]);
    let want = Omitted { files_without_text: 9, rows_without_text: 1, ..Omitted::default() };
    assert_eq!(omitted, want);
    let lines = omitted.remarks(|_| None);
    assert_eq!(lines, ["9 files held no text", "1 row held no text (null or empty)"]);
}

#[test]
fn tables_are_read_by_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let want = ["a, \"quoted\"\nline", "plain"];
    for (name, text) in [
        ("a.csv", "id,body\n1,\"a, \"\"quoted\"\"\nline\"\n2,plain\n3,\n"),
        ("b.csv", "\u{feff}id,body\r\n1,\"a, \"\"quoted\"\"\nline\"\r\n\r\n2,plain\r\n3,\r\n"),
        ("c.tsv", "body\tid\n\"a, \"\"quoted\"\"\nline\"\t1\nplain\t2\n\t3"),
        ("d.csv", "id;body\n1;\"a, \"\"quoted\"\"\nline\"\n2;plain\n3;\"\""),
    ] {
        for (name, bytes) in [(name, text.as_bytes().to_vec()), ("packed", xz(&utf16(text, false)))] {
            let name = if name == "packed" { "packed.tsv.xz" } else { name };
            if name == "packed.tsv.xz" && !text.contains('\t') {
                continue;
            }
            std::fs::write(path(name), bytes).unwrap();
            let (documents, omitted) = read_with(&[path(name)], &with_field("body")).unwrap();
            assert_eq!(strings(&documents), want, "{name}");
            assert_eq!(omitted.rows_without_text, 1);
        }
    }
    for (text, want) in [
        ("id,body\n1,fine\n2,one,two\n", "a.csv: line 3: 3 fields, and 2 names in the first row"),
        ("id,body\r\n1,fine\r\n2,one,two\r\n", "a.csv: line 3: 3 fields"),
        (
            "id,body\n1,\"never closed\n2,fine\n",
            "a.csv: line 2: a quote in the row that begins here is never closed",
        ),
        ("id,text\n1,a\n", "a.csv: has no column `body`, only id, text"),
        ("body,body\n1,a\n", "a.csv: has two columns `body`"),
    ] {
        std::fs::write(path("a.csv"), text).unwrap();
        let message = read_with(&[path("a.csv")], &with_field("body")).unwrap_err().to_string();
        assert!(message.contains(want) && !message.contains('\n'), "{message}");
    }
    std::fs::write(path("a.csv"), "id,body\n1\n2,fine\n3,a,b\n").unwrap();
    let config = PrepareConfig { skip_bad: true, ..with_field("body") };
    let (documents, omitted) = read_with(&[path("a.csv")], &config).unwrap();
    assert_eq!((strings(&documents), omitted.left_out), (vec!["fine"], 2));
    assert_eq!(omitted.first_left_out.unwrap().what, "line 2: 1 fields, and 2 names in the first row");
    // A row that never ends is an error, in bounded memory.
    let endless = io::repeat(b'x').take(1 << 30);
    let mut rows = 0;
    let read = table::read(b"text\nfine\n".as_slice().chain(endless), b',', "text", 1 << 20, &mut |_| {
        rows += 1;
        Ok(())
    });
    let Err(table::Broken::What(what)) = read else { panic!() };
    assert!(what.starts_with("line 3: the row that begins here is longer than 1048576 bytes"), "{what}");
    assert_eq!(rows, 1);
}

#[test]
fn columns_of_parquet_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let write = |schema: &str| {
        let schema = Arc::new(::parquet::schema::parser::parse_message_type(schema).unwrap());
        let file = File::create(&path).unwrap();
        let properties = Arc::new(WriterProperties::default());
        SerializedFileWriter::new(file, schema, properties).unwrap().close().unwrap();
    };
    for (schema, field, want) in [
        ("message m { required int64 text; }", "text", "column `text` holds INT64, not strings"),
        ("message m { repeated binary text (UTF8); }", "text", "column `text` holds lists"),
        (
            "message m { optional group text (LIST) { repeated group list { optional binary element (UTF8); } } }",
            "text",
            "column `text` holds lists",
        ),
        ("message m { required int64 id; required group a { required binary b; } }", "a.c", "only id, a.b"),
    ] {
        write(schema);
        let message = read_with(std::slice::from_ref(&path), &with_field(field)).unwrap_err().to_string();
        assert!(message.contains(want) && message.contains("text_field"), "{message}");
    }
    // The codec of the column, in the file's last part, becomes 4, which is Brotli's number.
    let (mut bytes, codec) = (parquet_file(&[Some("a")], "text"), b"\x04text\x15\x00");
    let at = bytes.windows(codec.len()).rposition(|window| window == codec).unwrap();
    bytes[at + codec.len() - 1] = 8;
    std::fs::write(&path, bytes).unwrap();
    let message = read(std::slice::from_ref(&path), Split::Lines).unwrap_err().to_string();
    assert!(
        message.contains("a.parquet: column `text` is compressed with BROTLI, which is not read"),
        "{message}"
    );
    write("message m { required group a { required binary b; } }");
    assert_eq!(read_with(&[path], &with_field("a.b")).unwrap().0, [[0u8; 0]; 0]);
}

#[test]
fn lines_that_are_cut_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.txt");
    let words = "word ".repeat(PIECE / 5 * 3);
    std::fs::write(&path, format!("short\n{words}\nshort\n\n{words}\n\n{}", "a line\n".repeat(PIECE / 4)))
        .unwrap();
    for split in [Split::Lines, Split::Sentences] {
        let config = PrepareConfig { split, ..PrepareConfig::default() };
        let (_, omitted) = read_with(std::slice::from_ref(&path), &config).unwrap();
        assert_eq!((omitted.lines_cut, omitted.longest_line), (2, PIECE as u64));
        assert_eq!(
            omitted.remarks(|_| None),
            ["2 lines were longer than 4,194,304 bytes and cut between words"]
        );
    }
}

#[cfg(unix)]
#[test]
fn what_cannot_be_read_is_named_before_any_work() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let refuse = |path: PathBuf, want: &str| {
        let message = read(&[path], Split::Lines).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    };
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    refuse(dir.path().join("socket"), "socket: is a socket");
    refuse("/dev/zero".into(), "/dev/zero: is a device, which has no end");
    let name = std::ffi::OsStr::from_bytes(b"na\xefve.txt");
    std::fs::write(dir.path().join(name), "text").unwrap();
    std::fs::remove_file(dir.path().join("socket")).unwrap();
    refuse(dir.path().into(), "has a name that is not UTF-8");
}
