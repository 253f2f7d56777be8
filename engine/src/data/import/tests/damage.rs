//! Input that is damaged, or is not what it should be.

use super::*;
use crate::data::import::example::{Example, Shape};
use crate::data::import::hdf5::Table;
use crate::data::import::record::{Masked, Store};
use crate::data::shards::Columns;
use crate::data::vocab::Vocab;
use crate::metrics::masked_crc;
use proptest::prelude::*;
use std::sync::LazyLock;

static VOCABULARY: LazyLock<Vocab> = LazyLock::new(|| Vocab::load(&sample("vocab.txt")).unwrap());
static PLAIN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| records("tfrecord/part-0.tfrecord"));
const SHAPE: Shape = Shape { sequence: 64, predictions: 10, labels: true };

#[track_caller]
fn fails(config: &ImportConfig, parts: &[&str]) {
    let (dir, result) = run(config);
    let message = result.unwrap_err();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
}

/// Bad records by kind of an import that leaves them out, and what it imported.
fn skips(config: &ImportConfig) -> (BTreeMap<String, u64>, Vec<Expected>) {
    let (dir, result) = run(&ImportConfig { skip_bad: true, ..config.clone() });
    let imported = result.unwrap();
    let counts = imported.manifest.source.unwrap().skipped;
    assert_eq!(
        imported.skipped.iter().map(|s| (s.kind.clone(), s.count)).collect::<BTreeMap<_, _>>(),
        counts
    );
    (counts, sequences(&dir.path().join("out"), SplitName::Train))
}

fn counts<const N: usize>(kinds: [(&str, u64); N]) -> BTreeMap<String, u64> {
    kinds.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect()
}

pub(super) fn frame(records: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for record in records {
        let length = (record.len() as u64).to_le_bytes();
        for part in [&length[..], &masked_crc(&length), record, &masked_crc(record)] {
            file.extend_from_slice(part);
        }
    }
    file
}

/// The records of a TFRecord file that is whole.
pub(super) fn records(name: &str) -> Vec<Vec<u8>> {
    let file = fs::read(sample(name)).unwrap();
    let (mut at, mut records) = (0, Vec::new());
    while at < file.len() {
        let length = u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
        records.push(file[at + 12..at + 12 + length].to_vec());
        at += 16 + length;
    }
    records
}

#[test]
fn damaged_tfrecords_are_named() {
    let dir = TempDir::new().unwrap();
    let whole = records("unpacked.tfrecord");
    let file = frame(&whole);
    assert_eq!(file, fs::read(sample("unpacked.tfrecord")).unwrap());
    let path = dir.path().join("data.tfrecord");
    let config = config(&path);
    // Of the record 1.
    let begin = 16 + whole[0].len();
    let changed = |at: usize| {
        let mut file = file.clone();
        file[at] ^= 0x40;
        file
    };
    let long = [&frame(&whole[..2])[..], &frame(&[vec![0; (4 << 20) + 1]]), &frame(&whole[2..])].concat();
    let huge = u64::MAX.to_le_bytes();
    let endless = [&file[..begin], &huge, &masked_crc(&huge), &file[begin..]].concat();
    let kind = |kind| counts([(kind, 1)]);
    for (bytes, says, kind, left) in [
        (changed(begin + 40), "record 1: the checksum of the record is", kind("wrong checksum"), 59),
        (changed(begin + 3), "record 1: the checksum of the record's length is", kind("wrong checksum"), 1),
        (changed(begin + 9), "record 1: the checksum of the record's length is", kind("wrong checksum"), 1),
        (file[..begin + 5].to_vec(), "record 1: the file ends 5 bytes into its length", kind("cut short"), 1),
        (file[..begin + 12].to_vec(), "record 1: the file ends 0 bytes into its bytes", kind("cut short"), 1),
        (file[..file.len() - 1].to_vec(), "record 59: the file ends", kind("cut short"), 59),
        (endless, "expected 18446744073709551615", kind("cut short"), 1),
        (long, "record 2: 4194305 bytes, expected at most 4194304", kind("wrong length"), 60),
    ] {
        fs::write(&path, bytes).unwrap();
        fails(&config, &["data.tfrecord", says, "--skip-bad"]);
        let (counts, sequences) = skips(&config);
        assert_eq!((counts, sequences.len()), (kind, left), "{says}");
    }
    let gz = fs::read(sample("tfrecord/part-1.tfrecord.gz")).unwrap();
    fs::write(&path, &gz[..gz.len() / 2]).unwrap();
    fails(&config, &["data.tfrecord", "cannot be decompressed"]);
    fs::write(&path, "").unwrap();
    fails(&config, &["data.tfrecord", "no record in the input"]);
    fs::write(&path, "plain text, and more of it").unwrap();
    fails(&config, &["data.tfrecord", "record 0: the checksum of the record's length"]);
    fails(&self::config(&dir.path().join("none")), &["none", "check the path"]);
}

/// A record with one feature's bytes replaced: `from` and `to` of equal length.
fn replaced(record: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = record.windows(from.len()).position(|w| w == from).unwrap();
    [&record[..at], to, &record[at + from.len()..]].concat()
}

#[test]
fn records_that_are_no_sequences_are_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("data.tfrecord");
    let config = config(&path);
    let whole = records("tfrecord/part-0.tfrecord");
    let rename = |name: &str| replaced(&whole[5], name.as_bytes(), "x".repeat(name.len()).as_bytes());
    // The name is followed by the feature: its tag and length, the list's tag.
    let at = whole[5].windows(13).position(|w| w == b"masked_lm_ids").unwrap() + 13;
    let list = (at..).find(|&i| whole[5][i..].starts_with(&[0x1a])).unwrap();
    let mut other_type = whole[5].clone();
    other_type[list] = 0x0a;
    for (record, says, kind) in [
        (rename("segment_ids"), "record 5: segment_ids: missing", "field missing or of another type"),
        (
            rename("masked_lm_weights"),
            "record 5: masked_lm_weights: missing",
            "field missing or of another type",
        ),
        (
            other_type,
            "record 5: masked_lm_ids: a bytes_list, expected an int64_list",
            "field missing or of another type",
        ),
        (vec![0xff; 40], "record 5: is not a tf.Example", "cannot be decoded"),
        (Vec::new(), "record 5: input_ids: missing", "field missing or of another type"),
    ] {
        let mut records = whole.clone();
        records[5] = record;
        fs::write(&path, frame(&records)).unwrap();
        fails(&config, &["data.tfrecord", says, "--skip-bad"]);
        let (found, sequences) = skips(&config);
        assert_eq!(found, counts([(kind, 1)]), "{says}");
        let mut expected = expected();
        expected.truncate(40);
        expected.remove(5);
        assert_eq!(sequences, expected);
    }
    // Of another length than the first record.
    let short = Example::parse(&whole[0]).unwrap();
    let wrong = short.sequence(Shape { sequence: 128, ..SHAPE }).unwrap_err();
    assert!(wrong.what.contains("input_ids: 64 values, expected 128"), "{}", wrong.what);
}

#[test]
fn rows_that_are_no_sequences_are_named() {
    let bad = config(&sample("bad-rows.hdf5"));
    fails(&bad, &["bad-rows.hdf5", "record 0: input_ids[1]: 1000, expected 0 to 999", "--skip-bad"]);
    let (found, left) = skips(&bad);
    let kinds = counts([
        ("id beyond the vocabulary", 2),
        ("masked position out of place", 2),
        ("next-sentence label neither 0 nor 1", 1),
        ("[CLS], [SEP] and segments do not fit", 4),
        ("wrong length", 1),
    ]);
    assert_eq!((found, &left[..]), (kinds, &expected()[10..12]));
    let (found, left) = skips(&config(&sample("bad-packed.hdf5")));
    assert_eq!((found, left.len()), (counts([("wrong length", 2)]), 10));
    fails(&config(&sample("bad-packed.hdf5")), &["record 0: input_ids: 64 values, expected 65"]);
    for (name, says) in [
        ("bad-missing.hdf5", "masked_lm_ids: missing, expected among the file's datasets (input_ids,"),
        ("bad-count.hdf5", "segment_ids: 3 rows, expected 4 as input_ids has"),
    ] {
        let mut config = config(&sample(name));
        fails(&config, &[name, says]);
        // A bad file is left out, the others stay.
        config.inputs.push(sample("variable.hdf5"));
        assert_eq!(skips(&config).1, expected());
    }
}

#[test]
fn files_of_different_padded_lengths_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("data.tfrecord");
    let whole = records("tfrecord/part-0.tfrecord");
    // Without its last value the list of positions is shorter; lengths are one byte each.
    let name = b"masked_lm_positions";
    let at = whole[1].windows(name.len()).position(|w| w == name).unwrap() + name.len();
    let mut record = whole[1].clone();
    assert_eq!(record[at..at + 6], [0x12, 14, 0x1a, 12, 0x0a, 10]);
    for i in [1, 3, 5] {
        record[at + i] -= 1;
    }
    record.remove(at + 6 + 9);
    // The entry of the map and the features that hold it.
    let entry = at - name.len() - 4;
    assert_eq!(record[entry], 0x0a);
    record[entry + 1] -= 1;
    let features = u16::from_le_bytes([record[1], record[2]]) - 1;
    record[1..3].copy_from_slice(&features.to_le_bytes());
    fs::write(&path, frame(&[whole[0].clone(), record])).unwrap();
    fails(&config(&path), &["record 1: masked_lm_positions: 9 values, expected 10"]);
}

#[test]
fn damaged_hdf5_takes_only_the_rows_along_that_it_holds() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("data.hdf5");
    let config = config(&path);
    let whole = fs::read(sample("fixed-gzip.hdf5")).unwrap();
    for bytes in [&whole[..whole.len() / 2], &whole[..100], &whole[..0], b"plain text, no HDF5 at all"] {
        fs::write(&path, bytes).unwrap();
        fails(&config, &["data.hdf5"]);
    }
    // Chunks are zlib streams; of the last one nothing is left.
    let last = whole.windows(2).rposition(|w| w == [0x78, 0x5e]).unwrap();
    let mut damaged = whole.clone();
    damaged[last..last + 12].fill(0xff);
    fs::write(&path, damaged).unwrap();
    fails(&config, &["data.hdf5", "record ", "cannot be read", "--skip-bad"]);
    let (found, left) = skips(&config);
    let bad: u64 = found.values().sum();
    assert!(bad > 0 && bad < 60 && left.len() as u64 == 60 - bad, "{found:?}");
    assert!(left.iter().all(|s| expected().contains(s)));
}

#[test]
fn masks_are_stored_by_position_whatever_their_order() {
    let example = Example::parse(&PLAIN[0]).unwrap();
    let sequence = example.sequence(SHAPE).unwrap();
    let reversed = |values: &[i64]| values.iter().rev().copied().collect::<Vec<_>>();
    let (positions, labels) = (reversed(sequence.positions), reversed(sequence.labels));
    let other = Masked { positions: &positions, labels: &labels, ..sequence };
    let stored = [sequence, other].map(|sequence| {
        let mut columns = Columns::new(VOCABULARY.len());
        assert_eq!(Store::new(&VOCABULARY, 64).add(&sequence, &mut columns, &mut []), Ok(10));
        format!("{columns:?}")
    });
    assert_eq!(stored[0], stored[1]);
}

/// Reads all of an HDF5 file's rows, as an import does.
/// The length of each row's list stands in the file, 4 bytes before the 8 of an address.
#[test]
fn lists_longer_than_sequences_can_be_are_not_taken_into_memory() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("data.hdf5");
    let whole = fs::read(sample("variable.hdf5")).unwrap();
    let number = |at: usize, bytes: usize| {
        whole[at..at + bytes].iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte))
    };
    let is_reference = |&at: &usize| {
        let (length, address, index) = (number(at, 4), number(at + 4, 8), number(at + 12, 4));
        (1..=64).contains(&length) && (1..whole.len() as u64).contains(&address) && (1..500).contains(&index)
    };
    let mut found = 0;
    for at in (0..whole.len() - 16).step_by(4).filter(is_reference).take(50) {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&0x00ff_ffffu32.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let (_dir, result) = run(&config(&path));
        let message = result.map_or_else(|message| message, |_| String::new());
        found += usize::from(message.contains("a list of 16777215 values, expected at most 65535"));
    }
    assert!(found > 0, "no reference was found");
}

fn read_hdf5(path: &Path, vocab: &Vocab) -> usize {
    let Ok(table) = Table::open(path).unwrap() else { return 0 };
    let Ok(plan) = table.plan(1 << 12) else { return 0 };
    let (mut store, mut columns, mut row) = (Store::new(vocab, 64), Columns::new(vocab.len()), 0);
    while row < plan.rows.min(200) {
        let end = plan.rows.min(row + plan.window.min(64));
        if let Ok(mut rows) = table.read(row..end) {
            for i in 0..(end - row) as usize {
                rows.sequences(i, &mut |sequence| store.add(sequence, &mut columns, &mut []).map(drop));
            }
        }
        row = end;
    }
    columns.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damaged_examples_are_errors_or_sequences(
        which in 0..40usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let vocab = &*VOCABULARY;
        let mut record = PLAIN[which].clone();
        for (at, byte) in changes {
            let at = at.index(record.len());
            record[at] = byte;
        }
        if let Some(cut) = cut {
            record.truncate(cut.index(record.len()));
        }
        let mut columns = Columns::new(vocab.len());
        let stored = Example::parse(&record).and_then(|example| {
            let sequence = example.sequence(SHAPE)?;
            Store::new(vocab, 64).add(&sequence, &mut columns, &mut [])
        });
        prop_assert_eq!(columns.len(), usize::from(stored.is_ok()));
    }

    #[test]
    fn damaged_files_are_errors_or_records(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        gzip in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("data");
        let name = if gzip { "tfrecord/part-1.tfrecord.gz" } else { "tfrecord/part-0.tfrecord" };
        let mut bytes = fs::read(sample(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        let files = files::list(&[path], ImportFormat::Tfrecord).unwrap();
        let mut read = 0;
        let produced = tfrecord::blocks(&files, Default::default(), 4096, &mut |block| {
            read += (0..block.records.len()).filter(|&i| block.get(i).1.is_ok()).count();
            Ok(())
        });
        prop_assert!(produced.is_ok() && read <= 40);
    }

    #[test]
    fn damaged_hdf5_files_are_errors_or_rows(
        which in 0..HDF5.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        near_the_start in any::<bool>(),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("data.hdf5");
        let mut bytes = fs::read(sample(HDF5[which])).unwrap();
        for (at, byte) in changes {
            // Most of the structure lies in the first pages.
            let within = if near_the_start { bytes.len().min(3000) } else { bytes.len() };
            bytes[at.index(within)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        prop_assert!(read_hdf5(&path, &VOCABULARY) <= 200);
    }
}
