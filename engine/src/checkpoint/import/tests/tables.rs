//! Sorted tables and messages, made by hand.

use super::super::sstable::{self, masked};
use super::super::wire::{Entry, Header, varint};
use super::*;

pub(super) fn number(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n > 0x7f {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

/// Shared bytes, other bytes, value.
pub(super) fn block(entries: &[(usize, &[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (shared, key, value) in entries {
        for n in [*shared, key.len(), value.len()] {
            bytes.extend(number(n as u64));
        }
        bytes.extend([*key, *value].concat());
    }
    bytes.extend([0, 0, 0, 0, 1, 0, 0, 0]);
    bytes
}

pub(super) fn add(file: &mut Vec<u8>, block: &[u8], kind: u8) -> Vec<u8> {
    let handle = [number(file.len() as u64), number(block.len() as u64)].concat();
    let start = file.len();
    file.extend_from_slice(block);
    file.push(kind);
    let crc = masked(crc32c::crc32c(&file[start..]));
    file.extend(crc.to_le_bytes());
    handle
}

pub(super) fn finish(mut file: Vec<u8>, index: &[u8]) -> Vec<u8> {
    let meta = add(&mut file, &block(&[]), 0);
    let index = add(&mut file, index, 0);
    let mut footer = [meta, index].concat();
    footer.resize(40, 0);
    footer.extend(0xdb47_7524_8b80_fb57u64.to_le_bytes());
    [file, footer].concat()
}

/// A table with one data block.
fn table(data: &[u8], kind: u8) -> Vec<u8> {
    let mut file = Vec::new();
    let handle = add(&mut file, data, kind);
    finish(file, &block(&[(0, b"z", &handle)]))
}

#[track_caller]
fn refused(file: &[u8], expected: &str) {
    let error = sstable::read(file).unwrap_err();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn checksums_are_masked_as_leveldb_does() {
    // CRC-32C of 123456789 is e3069283
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(masked(0xe306_9283), 0xc78a_b0e5);
    // what TensorFlow wrote for a variable of one 0.0
    assert_eq!(masked(crc32c::crc32c(&[0; 4])), 0x3a11_7ba6);
}

#[test]
fn keys_share_their_beginnings() {
    let file = table(&block(&[(0, b"", b"h"), (0, b"ab", b"1"), (2, b"c", b""), (1, b"x", b"22")]), 0);
    let entries = sstable::read(&file).unwrap();
    let expected: [(&[u8], &[u8]); 4] = [(b"", b"h"), (b"ab", b"1"), (b"abc", b""), (b"ax", b"22")];
    assert!(entries.iter().map(|(k, v)| (k.as_slice(), v.as_slice())).eq(expected));
}

#[test]
fn damaged_tables_say_where() {
    refused(b"", "0 bytes are too few");
    refused(&[7; 60], "its last 8 bytes are 0x0707070707070707");
    let good = table(&block(&[(0, b"a", b"1")]), 0);
    let mut bad = good.clone();
    bad[4] ^= 1;
    refused(&bad, "the block at byte 0 has checksum");
    refused(&table(&block(&[(1, b"a", b"1")]), 0), "shares 1 of 0 bytes");
    refused(&table(&block(&[(0, b"b", b""), (0, b"a", b"")]), 0), "key \"a\" follows \"b\"");
    refused(&table(&block(&[(0, &[b'k'; 5000], b"")]), 0), "keys have at most 4096");
    refused(&table(&[0, 5, 0, b'a', 0, 0, 0, 0, 1, 0, 0, 0], 0), "is cut short");
    refused(&table(&[0xff, 0xff, 0xff, 0xff], 0), "too short for its restarts");
    refused(&table(&[1, 2], 0), "too short for its restarts");
    refused(&table(&block(&[]), 4), "has compression 4");
    refused(&table(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0], 1), "are stored");
    refused(&table(&[5, 0xff, 0xff], 1), "is not Snappy");
    let handle = [number(1 << 40), number(10)].concat();
    refused(&finish(Vec::new(), &block(&[(0, b"z", &handle)])), "lies outside of the file");
    let handle = [number(u64::MAX), number(u64::MAX)].concat();
    refused(&finish(Vec::new(), &block(&[(0, b"z", &handle)])), "is impossible");
    // one block twice: a small file that would grow without limit
    let mut file = Vec::new();
    let handle = add(&mut file, &block(&[]), 0);
    refused(&finish(file, &block(&[(0, b"y", &handle), (0, b"z", &handle)])), "inside of the one before");
}

#[test]
fn keys_that_grow_by_sharing_are_limited() {
    let first = [b'k'; 4000];
    let names: Vec<[u8; 3]> =
        (0..20_000u32).map(|n| [(n >> 14) as u8, (n >> 7 & 0x7f) as u8, (n & 0x7f) as u8]).collect();
    let mut entries: Vec<(usize, &[u8], &[u8])> = vec![(0, &first, b"")];
    entries.extend(names.iter().map(|name| (4000, name.as_slice(), b"".as_slice())));
    refused(&table(&block(&entries), 0), "its entries take more than");
}

#[test]
fn tables_of_many_small_entries_are_refused() {
    let names: Vec<[u8; 3]> =
        (0..300_000u32).map(|n| [(n >> 14) as u8, (n >> 7 & 0x7f) as u8, (n & 0x7f) as u8]).collect();
    let entries: Vec<(usize, &[u8], &[u8])> = names.iter().map(|name| (0, &name[..], &b""[..])).collect();
    refused(&table(&block(&entries), 0), "more than 262144 entries");
}

#[test]
fn varints_are_at_most_64_bits() {
    let read = |mut bytes: &[u8]| varint(&mut bytes);
    assert_eq!(read(&[0x96, 0x01]), Some(150));
    assert_eq!(read(&number(u64::MAX)), Some(u64::MAX));
    assert_eq!(read(&[0xff; 9]), None);
    assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None);
    assert_eq!(read(&[]), None);
}

#[test]
fn messages_skip_what_they_do_not_know() {
    // num_shards 2, endianness BIG, version { producer 1, min_consumer 3 }, an unknown field of 8 bytes
    let bytes = [8, 2, 16, 1, 26, 4, 8, 1, 16, 3, 0x79, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(Header::parse(&bytes), Ok(Header { shards: 2, big_endian: true, min_consumer: 3 }));
    // FLOAT [3, 0], offset 300, size 12
    let bytes = [8, 1, 18, 6, 18, 2, 8, 3, 18, 0, 32, 0xac, 2, 40, 12, 53, 4, 3, 2, 1];
    let expected =
        Entry { dtype: 1, shape: vec![3, 0], offset: 300, size: 12, crc: 0x0102_0304, ..Entry::default() };
    assert_eq!(Entry::parse(&bytes), Ok(expected));
    assert!(Entry::parse(&[8]).unwrap_err().contains("cut short"));
    assert!(Entry::parse(&[18, 9, 1]).unwrap_err().contains("cut short"));
    assert!(Entry::parse(&[11, 0]).unwrap_err().contains("unknown type 3"));
    assert!(Entry::parse(&[18, 2, 24, 1]).unwrap_err().contains("no known number of dimensions"));
}

/// A bundle whose index is this, beside the sample's data.
#[track_caller]
fn with_index(entries: &[(usize, &[u8], &[u8])], expected: &str) {
    let (_dir, prefix) = bundle();
    fs::write(prefix.with_extension("index"), table(&block(entries), 0)).unwrap();
    let message = error(Framework::TensorFlow, &prefix, &Options::default());
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_header_that_cannot_be_read_names_its_field() {
    with_index(&[(0, b"a", b"")], "its first entry is no header");
    with_index(&[(0, b"", &[8, 2, 16, 1])], "endianness: BIG");
    with_index(&[(0, b"", &[8, 2, 26, 2, 16, 9])], "version.min_consumer: 9");
    with_index(&[(0, b"", &[])], "num_shards: 0");
    with_index(&[(0, b"", &[8, 3])], "tiny.data-00000-of-00003: cannot read");
    with_index(&[(0, b"", &[8, 2])], "bert.embeddings.word_embeddings.weight is missing, 0 of 0 tensors");
    let object = b"w/.ATTRIBUTES/VARIABLE_VALUE";
    with_index(&[(0, b"", &[8, 2]), (0, object, &[8, 1])], "a checkpoint of TensorFlow 2's objects");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The checksums are made right again, so that what lies behind them is reached.
    #[test]
    fn blocks_and_messages_of_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..3) {
        let _ = sstable::read(&table(&bytes, kind));
        let _ = sstable::read(&bytes);
        let _ = Header::parse(&bytes);
        let _ = Entry::parse(&bytes);
    }

    /// An entry of the index that says anything.
    #[test]
    fn entries_that_were_changed_never_panic(at in 0usize..2000, value in any::<u8>(), name in 0usize..60) {
        let file = fs::read(sample("tiny.index")).unwrap();
        let mut entries = sstable::read(&file).unwrap();
        let count = entries.len();
        let entry = &mut entries[name % count].1;
        let length = entry.len();
        entry[at % length] = value;
        let entries: Vec<(usize, &[u8], &[u8])> = entries.iter().map(|(k, v)| (0, k.as_slice(), v.as_slice())).collect();
        let (_dir, prefix) = bundle();
        fs::write(prefix.with_extension("index"), table(&block(&entries), 0)).unwrap();
        if let Err(e) = read(Framework::TensorFlow, &prefix, &options()) {
            prop_assert!(!e.to_string().contains('\n'), "{}", e);
        }
    }
}
