//! Input without next-sentence labels.

use super::damage::{frame, records};
use super::*;

const LABELS: &[u8] = b"next_sentence_labels";

/// The bytes with the labels under a name that nobody knows.
fn renamed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    while let Some(at) = bytes.windows(LABELS.len()).position(|window| window == LABELS) {
        bytes[at + LABELS.len() - 1] = b'z';
    }
    bytes
}

#[test]
fn sequences_without_labels_become_data_without() {
    let dir = TempDir::new().unwrap();
    for name in ["unpacked.tfrecord", "fixed.hdf5", "variable.hdf5", "packed.hdf5"] {
        let path = dir.path().join(name);
        let bytes = match name.ends_with("tfrecord") {
            true => frame(&records(name).iter().map(|record| renamed(record)).collect::<Vec<_>>()),
            false => renamed(&fs::read(sample(name)).unwrap()),
        };
        fs::write(&path, bytes).unwrap();
        let (out, imported) = run(&config(&path));
        let manifest = imported.unwrap_or_else(|e| panic!("{name}: {e}")).manifest;
        assert!(!manifest.options.nsp, "{name}");
        let data = Dataset::open_verified(&out.path().join("out"), SplitName::Train).unwrap();
        for (i, expected) in expected().iter().enumerate() {
            let sequence = data.get(i).unwrap();
            assert_eq!(sequence.tokens.to_vec(), expected.tokens, "{name}");
            // segments stay, as they are part of the input
            assert_eq!((sequence.segment_b_start, sequence.nsp), (expected.segment_b, None), "{name}");
        }
        assert_eq!(data.len(), expected().len());
        // files with labels do not go with them
        let other = if name.ends_with("hdf5") { "fixed.hdf5" } else { "tfrecord/part-0.tfrecord" };
        let mut mixed = config(&path);
        mixed.inputs.push(sample(other));
        let message = run(&mixed).1.unwrap_err();
        assert!(message.contains("next_sentence_labels: there, expected none as in"), "{name}: {message}");
    }
}
