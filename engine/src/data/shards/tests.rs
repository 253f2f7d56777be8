//! Round trip, and readers that never trust a byte.

use super::format::{HEADER, Header};
use super::*;
use crate::config::{Masking, PrepareConfig};
use crate::data::masking::Masker;
use crate::data::vocab::{SPECIAL_TOKENS, Vocab};
use kernels::philox::Stream;
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

fn vocab(size: usize) -> Vocab {
    let words = (SPECIAL_TOKENS.len()..size).map(|i| format!("w{i}"));
    Vocab::from_tokens(SPECIAL_TOKENS.iter().map(|t| t.to_string()).chain(words).collect()).unwrap()
}

/// A sequence as it goes in.
#[derive(Debug, PartialEq)]
struct Plain {
    tokens: Vec<u32>,
    segment_b: usize,
    nsp: Option<bool>,
    masks: Vec<(usize, u32)>,
}

fn random_sequences(count: usize, vocab_size: usize, nsp: bool, masks: bool) -> Vec<Plain> {
    let mut s = Stream::new(5, vocab_size as u64, 9);
    (0..count)
        .map(|_| {
            let length = s.range(5, 32) as usize;
            let tokens: Vec<u32> = (0..length).map(|_| s.below(vocab_size as u32)).collect();
            let segment_b = if nsp { s.range(2, length as u32 - 1) as usize } else { length };
            let chosen: Vec<usize> = (1..length).filter(|_| masks && s.below(6) == 0).collect();
            let masks = chosen.into_iter().map(|p| (p, s.below(vocab_size as u32))).collect();
            Plain { tokens, segment_b, nsp: nsp.then(|| s.below(2) == 1), masks }
        })
        .collect()
}

fn write(
    dir: &Path,
    sequences: &[Plain],
    vocab: &Vocab,
    nsp: bool,
    masks: bool,
    shard_bytes: usize,
) -> Manifest {
    let masking = if masks { Masking::Static } else { Masking::Dynamic };
    let options = PrepareConfig { max_seq_length: 32, nsp, masking, ..PrepareConfig::default() };
    let mut manifest = Manifest::new(&options, Vec::new());
    let mut writer = SplitWriter::new(dir, "train", vocab, 32, nsp, masks).with_shard_bytes(shard_bytes);
    for part in sequences.chunks(7) {
        let mut columns = Columns::new(vocab.len());
        for s in part {
            columns.push(&s.tokens, s.segment_b, s.nsp);
            if masks {
                s.masks.iter().for_each(|&(p, t)| columns.push_mask(p, t));
                columns.end_mask(s.masks.len());
            }
        }
        writer.append(&columns, 1).unwrap();
    }
    manifest.train = writer.finish().unwrap();
    vocab.save(&dir.join(VOCAB)).unwrap();
    (manifest.vocab_size, manifest.vocab_sha256) = (vocab.len(), vocab.sha256().to_owned());
    manifest.save(dir).unwrap();
    manifest
}

#[test]
fn what_goes_in_comes_out() {
    for (size, nsp, masks) in
        [(50, true, true), (50, false, false), (70_000, true, false), (70_000, false, true)]
    {
        let dir = tempfile::tempdir().unwrap();
        let vocab = vocab(size);
        let sequences = random_sequences(200, size, nsp, masks);
        let manifest = write(dir.path(), &sequences, &vocab, nsp, masks, 2000);
        assert!(manifest.train.shards.len() > 3);
        assert!(manifest.train.shards.iter().all(|s| s.bytes < 2000 + 200));
        let data = Dataset::open_verified(dir.path(), SplitName::Train).unwrap();
        assert_eq!(data.manifest(), &manifest);
        assert_eq!(data.len(), sequences.len());
        for (i, want) in sequences.iter().enumerate() {
            let got = data.get(i).unwrap();
            let masks = got.mask.map_or(Vec::new(), |m| {
                (0..m.positions.len()).map(|k| (usize::from(m.positions[k]), m.tokens.get(k))).collect()
            });
            let (segment_b, nsp) = (got.segment_b_start, got.nsp.map(|label| label == 1));
            assert_eq!(&Plain { tokens: got.tokens.to_vec(), segment_b, nsp, masks }, want);
        }
        let split = data.split();
        assert_eq!(split.documents, 29);
        assert_eq!(split.tokens as usize, sequences.iter().map(|s| s.tokens.len()).sum::<usize>());
        assert_eq!(split.lengths.counts.iter().sum::<u64>(), 200);
        assert_eq!(data.longest(), sequences.iter().map(|s| s.tokens.len()).max().unwrap());
        assert_eq!(split.longest, data.longest());
        assert!(Dataset::open(dir.path(), SplitName::Eval).unwrap().is_empty());
    }
}

/// A data set in one shard, and the bytes of its two files.
struct Sample {
    dir: tempfile::TempDir,
    manifest: Manifest,
    shard: Vec<u8>,
    manifest_text: Vec<u8>,
}

const SHARD: &str = "train-00000.shard";

impl Sample {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manifest =
            write(dir.path(), &random_sequences(12, 50, true, true), &vocab(50), true, true, 1 << 20);
        let shard = std::fs::read(dir.path().join(SHARD)).unwrap();
        let manifest_text = std::fs::read(dir.path().join(MANIFEST)).unwrap();
        Self { dir, manifest, shard, manifest_text }
    }

    /// Writes a new file: to overwrite one waits for the disk on some file systems.
    fn put(&self, file: &str, bytes: &[u8]) {
        let path = self.dir.path().join(file);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn open_with(&self, file: &str, bytes: &[u8]) -> crate::Result<Dataset> {
        self.put(SHARD, &self.shard);
        self.put(MANIFEST, &self.manifest_text);
        self.put(file, bytes);
        Dataset::open_verified(self.dir.path(), SplitName::Train)
    }

    /// Opens a changed shard whose checksums are made right again, so that only the structure can betray it.
    fn open_sealed(&self, mut shard: Vec<u8>) -> crate::Result<Dataset> {
        let mut manifest = self.manifest.clone();
        if shard.len() >= HEADER {
            let mut header: Header = bytemuck::pod_read_unaligned(&shard[..HEADER]);
            header.body_xxh3 = xxhash_rust::xxh3::xxh3_64(&shard[HEADER..]);
            header.file_length = shard.len() as u64;
            header.header_xxh3 = header.checksum();
            shard[..HEADER].copy_from_slice(bytemuck::bytes_of(&header));
            let entry = &mut manifest.train.shards[0];
            entry.xxh3 = format!("{:016x}", header.header_xxh3);
            (entry.sequences, entry.tokens) = (header.sequences, header.tokens);
            (manifest.train.sequences, manifest.train.tokens) = (header.sequences, header.tokens);
        }
        manifest.train.shards[0].bytes = shard.len() as u64;
        self.put(SHARD, &shard);
        self.put(MANIFEST, manifest.seal().unwrap().as_bytes());
        Dataset::open_verified(self.dir.path(), SplitName::Train)
    }
}

fn assert_names(result: crate::Result<Dataset>, file: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains(file) && !message.contains('\n'), "{message}");
}

#[test]
fn a_manifest_is_sealed_whatever_its_checksum_was() {
    let sample = Sample::new();
    let text = std::fs::read_to_string(sample.dir.path().join(MANIFEST)).unwrap();
    for checksum in ["", "1", "a checksum that is much longer"] {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["checksum"] = checksum.into();
        let mut manifest: Manifest = serde_json::from_value(json).unwrap();
        assert_eq!(manifest.seal().unwrap(), text, "{checksum}");
    }
}

#[test]
fn every_flipped_bit_and_every_shorter_file_is_an_error() {
    let sample = Sample::new();
    for (file, bytes) in [(SHARD, &sample.shard), (MANIFEST, &sample.manifest_text)] {
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            assert_names(sample.open_with(file, &changed), file);
        }
        for length in (0..bytes.len()).step_by(7) {
            assert_names(sample.open_with(file, &bytes[..length]), file);
        }
    }
    let other = vocab(51).tokens().join("\n");
    assert_names(sample.open_with(VOCAB, other.as_bytes()), VOCAB);
}

#[test]
fn versions_ids_and_offsets_are_named() {
    let sample = Sample::new();
    let layout = bytemuck::pod_read_unaligned::<Header>(&sample.shard[..HEADER]).layout().unwrap();
    let open = |at: usize, bytes: &[u8]| {
        let mut shard = sample.shard.clone();
        shard[at..at + bytes.len()].copy_from_slice(bytes);
        sample.open_sealed(shard).unwrap_err().to_string()
    };
    for (message, want) in [
        (open(8, &[9]), "version: 9, this program reads 1"),
        (open(0, b"X"), "magic"),
        (open(12, &[4]), "width: 4, expected 2"),
        (open(56, &[0xff, 0xfe]), "was made with vocabulary fffe"),
        (open(layout.tokens.start + 6, &[50, 0]), "tokens: id 50 is beyond the vocabulary of 50 tokens"),
        (open(layout.mask_tokens.start, &[51, 0]), "mask_tokens: id 51"),
        (open(layout.offsets.start + 8, &[0, 0, 0, 1]), "offsets: sequence 1 goes from"),
        (open(layout.offsets.start, &[1]), "offsets: from 1"),
        (open(layout.segment_b.start, &[40, 0]), "sequence 0: segment B starts at 40"),
        (open(layout.nsp.start + 2, &[7]), "sequence 2: next-sentence label 7"),
        (open(layout.mask_positions.start, &[255, 0]), "masked positions not ascending"),
        (open(layout.mask_offsets.start + 4, &[255; 4]), "mask_offsets: sequence 0"),
        (open(32, &[255; 8]), "do not make"),
        (open(48, &[255; 8]), "do not make"),
    ] {
        assert!(message.contains(want) && message.contains(SHARD), "{message}\nwants {want}");
    }
}

/// A shard that is only opened tells of a damaged sequence when it is read, in the words of the verification.
#[test]
fn what_was_not_verified_is_checked_when_it_is_read() {
    let sample = Sample::new();
    let layout = bytemuck::pod_read_unaligned::<Header>(&sample.shard[..HEADER]).layout().unwrap();
    for (at, byte, sequence) in [
        (layout.offsets.start + 8, 255, 1),
        (layout.offsets.start + 11, 255, 2),
        (layout.segment_b.start, 40, 0),
        (layout.nsp.start + 2, 7, 2),
        (layout.tokens.start, 51, 0),
        (layout.mask_offsets.start + 7, 255, 0),
        (layout.mask_positions.start, 255, 0),
    ] {
        let mut shard = sample.shard.clone();
        shard[at] = byte;
        sample.put(SHARD, &shard);
        let data = Dataset::open(sample.dir.path(), SplitName::Train).unwrap();
        let message = data.get(sequence).unwrap_err().to_string();
        let verified = data.verify(&|_| ()).unwrap_err().to_string();
        assert!(message.contains(SHARD) && message.contains("damaged: checksum"), "{message}");
        assert_eq!(message, verified);
        assert!(data.get(11).is_ok(), "the last sequence is whole");
    }
    // a token that could be one: only the checksum tells
    let mut shard = sample.shard.clone();
    shard[layout.tokens.start + 2] ^= 1;
    sample.put(SHARD, &shard);
    let data = Dataset::open(sample.dir.path(), SplitName::Train).unwrap();
    assert!((0..data.len()).all(|i| data.get(i).is_ok()));
    assert!(data.verify(&|_| ()).is_err());
}

fn wait(verification: &mut Verification) -> crate::Result<()> {
    while !verification.is_done()? {
        std::thread::yield_now();
    }
    Ok(())
}

#[test]
fn the_first_damaged_shard_is_found_while_the_data_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write(dir.path(), &random_sequences(200, 50, true, true), &vocab(50), true, true, 2000);
    let shards: Vec<_> = manifest.train.shards.iter().map(|s| dir.path().join(&s.file)).collect();
    let open = || Arc::new(Dataset::open(dir.path(), SplitName::Train).unwrap());
    let mut whole = Verification::start(vec![open()], (0, 1)).unwrap();
    wait(&mut whole).unwrap();
    assert_eq!(whole.progress(), (shards.len(), shards.len()));
    assert!(whole.is_done().unwrap());

    for damaged in [1, shards.len() - 1] {
        let mut bytes = std::fs::read(&shards[damaged]).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::remove_file(&shards[damaged]).unwrap();
        std::fs::write(&shards[damaged], bytes).unwrap();
    }
    // of three processes those whose share has them
    let found: Vec<_> = (0..3)
        .map(|part| {
            wait(&mut Verification::start(vec![open()], (part, 3)).unwrap()).map_err(|e| e.to_string())
        })
        .collect();
    for (part, found) in found.iter().enumerate() {
        match [1, shards.len() - 1].into_iter().find(|shard| shard % 3 == part) {
            Some(shard) => assert_names_path(found.as_ref().unwrap_err(), &shards[shard]),
            None => assert_eq!(found, &Ok(())),
        }
    }
    let first = wait(&mut Verification::start(vec![open()], (0, 1)).unwrap()).unwrap_err().to_string();
    assert_names_path(&first, &shards[1]);
    // nothing to do is done
    assert!(Verification::start(Vec::new(), (0, 1)).unwrap().is_done().unwrap());
}

fn assert_names_path(message: &str, path: &Path) {
    assert!(
        message.contains(&path.display().to_string()) && message.contains("damaged: checksum"),
        "{message}"
    );
}

#[derive(Debug, Clone)]
enum Change {
    Flip(usize, u8),
    Set(usize, u64),
    Truncate(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let n = bytes.len();
        match self {
            Self::Flip(at, mask) if n > 0 => bytes[at % n] ^= mask,
            Self::Set(at, value) if n >= 8 => {
                let at = at % (n - 7);
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            Self::Truncate(at) => bytes.truncate(at % (n + 1)),
            Self::Insert(at, what) => drop(bytes.splice(at % (n + 1)..at % (n + 1), what.iter().copied())),
            Self::Remove(at, count) if n > 0 => drop(bytes.drain(at % n..(at % n + count).min(n))),
            _ => {}
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        4 => (any::<usize>(), 1u8..).prop_map(|(at, mask)| Change::Flip(at, mask)),
        // Most of the numbers are in the header and at the beginning.
        4 => (0usize..400, 1u8..).prop_map(|(at, mask)| Change::Flip(at, mask)),
        2 => (any::<usize>(), prop_oneof![Just(0), Just(u64::MAX), Just(1 << 63), any::<u64>(), 0..100u64])
            .prop_map(|(at, value)| Change::Set(at, value)),
        1 => any::<usize>().prop_map(Change::Truncate),
        1 => (any::<usize>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, what)| Change::Insert(at, what)),
        1 => (any::<usize>(), 1usize..20).prop_map(|(at, count)| Change::Remove(at, count)),
    ];
    prop::collection::vec(change, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever is changed, opening ends, and what it lets through can be read.
    #[test]
    fn changed_files_never_panic(changes in changes(), target in 0..4) {
        thread_local!(static SAMPLE: Sample = Sample::new());
        SAMPLE.with(|sample| {
            let (file, original) = if target < 2 { (SHARD, &sample.shard) } else { (MANIFEST, &sample.manifest_text) };
            let mut bytes = original.clone();
            changes.iter().for_each(|change| change.apply(&mut bytes));
            let result = match target {
                0 => sample.open_sealed(bytes.clone()),
                3 => {
                    // The checksum is made right again.
                    const DIGITS: std::ops::Range<usize> = 17..33;
                    if bytes.len() > DIGITS.end {
                        let checksum = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes[DIGITS.end..]));
                        bytes[DIGITS].copy_from_slice(checksum.as_bytes());
                    }
                    sample.open_with(file, &bytes)
                }
                _ => {
                    let result = sample.open_with(file, &bytes);
                    prop_assert!(result.is_err() || bytes == *original);
                    result
                }
            };
            let right = result.is_ok();
            // Without verification too: what it lets through, or else an error.
            let opened = Dataset::open(sample.dir.path(), SplitName::Train);
            for data in result.ok().into_iter().chain(opened) {
                let masker = Masker::new(&data);
                for i in 0..data.len() {
                    let Ok(sequence) = data.get(i) else {
                        prop_assert!(!right);
                        continue;
                    };
                    let masked = masker.train(&sequence, 1, 2, i as u64);
                    prop_assert_eq!(masked.mlm_positions.len(), masker.count(&sequence, 1, 2, i as u64));
                }
            }
            Ok(())
        })?;
    }
}
