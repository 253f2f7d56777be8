//! Pickles made by hand, as text for PyTorch's old layout and alone.

use super::super::pickle::{self, Object, Value};
use super::super::torch::TorchFile;
use super::*;

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let error = pickle::load(bytes).unwrap_err();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn plain_values_are_read() {
    // (None, True, -2, 300, 70000, -1.5, "é", [1], {"a": 2}), as Python's protocol 2 writes them
    let bytes = b"\x80\x02(N\x88J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00G\xbf\xf8\0\0\0\0\0\0X\x02\0\0\0\xc3\xa9]K\x01a}X\x01\0\0\0aK\x02st.";
    let pickle = pickle::load(bytes).unwrap();
    let Some(Object::Tuple(values)) = pickle.get(pickle.root) else { panic!("{:?}", pickle.root) };
    let plain = [
        Value::None,
        Value::Bool(true),
        Value::Int(-2),
        Value::Int(300),
        Value::Int(70000),
        Value::Float(-1.5),
    ];
    assert_eq!(values[..6], plain);
    assert_eq!(pickle.text(values[6]), Some("é"));
    assert_eq!(pickle.get(values[7]), Some(&Object::List(vec![Value::Int(1)])));
    let dict = pickle.dict(values[8]).unwrap();
    assert_eq!((pickle.text(dict[0].0), dict[0].1), (Some("a"), Value::Int(2)));
    assert_eq!(pickle.bytes, bytes.len());
}

#[test]
fn functions_that_do_more_than_build_data_are_named_and_never_called() {
    refused(
        b"\x80\x02cposix\nsystem\nX\x02\0\0\0ls\x85R.",
        "asks for posix.system, which is not on the list",
    );
    refused(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "asks for builtins.eval");
    refused(b"\x80\x02ctorch\nload\n.", "asks for torch.load");
    refused(b"\x80\x02ctorch\nEvilStorage\n.", "asks for torch.EvilStorage");
    refused(b"\x80\x02c\x1b[2J\nx\n.", "asks for \\u{1b}[2J.x");
    refused(b"(S'ls'\nios\nsystem\n.", "the opcode 0x53 is not known, at byte 1");
}

#[test]
fn programs_that_make_no_sense_are_errors() {
    refused(b"", "cut short at byte 0");
    refused(b"\x80\x09.", "protocol 9");
    refused(b".", "the stack is empty");
    refused(b"(.", "the stack is empty");
    refused(b"K\x01(K\x02a.", "added to what is no list");
    refused(b"t.", "a mark is missing");
    refused(b"]K\x01s.", "the stack is empty");
    refused(b"]K\x01K\x02s.", "added to what is no dictionary");
    refused(b"}(K\x01u.", "added to what is no dictionary");
    refused(b"h\x07.", "value 7 is not in the memo");
    refused(b"K\x01)R.", "a call of what is no function");
    refused(b"ccollections\nOrderedDict\nK\x01R.", "a tuple is expected");
    refused(b"ccollections\nOrderedDict\n]K\x01a\x85R.", "what are no pairs");
    refused(b"K\x01}b.", "attributes are set on what has none");
    refused(b"K\x01Q.", "a tuple is expected");
    refused(b")Q.", "not named as PyTorch names them");
    refused(b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "RebuildTensor is called with arguments");
    refused(b"X\xff\xff\xff\xffa.", "cut short");
    refused(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "cut short");
    refused(b"X\x01\0\0\0\xff.", "not UTF-8");
}

#[test]
fn bombs_are_defused() {
    // a list of itself, and lists of lists of lists: nothing follows references
    let selfish = pickle::load(b"]q\0h\0a.").unwrap();
    assert_eq!(selfish.get(selfish.root), Some(&Object::List(vec![selfish.root])));
    let mut deep = vec![b']'; 500_000];
    deep.extend(vec![b'a'; 499_999]);
    deep.push(b'.');
    assert!(pickle::load(&deep).is_ok());
    let mut many = vec![b']'; 2 << 20];
    many.push(b'.');
    refused(&many, "more than 1048576 values");
    refused(&[b'N'; 2 << 20], "more than 1048576 values on the stack");
    refused(&[b'('; 2 << 20], "more than 1048576 marks");
    // a list of 1,000 values made into a set again and again: the copies have a limit
    let mut copies = b"cbuiltins\nset\nq\0](".to_vec();
    copies.extend([b'N'; 1000]);
    copies.extend(b"e\x85q\x01");
    for _ in 0..2000 {
        copies.extend(b"h\0h\x01R0");
    }
    copies.push(b'.');
    refused(&copies, "List is called with arguments");
    // one tensor made again and again: each has sizes, strides and a copy of its storage's key
    let storage = |key: &[u8]| {
        let key = [&(key.len() as u32).to_le_bytes(), key].concat();
        [b"(X\x07\0\0\0storagectorch\nFloatStorage\nX", &key[..], b"X\x03\0\0\0cpuK\x01tQ"].concat()
    };
    let arguments = [b"ctorch._utils\n_rebuild_tensor_v2\nq\0(", &storage(b"0")[..], b"K\0))tq\x01"].concat();
    let mut tensors = arguments.clone();
    tensors.extend(b"h\0h\x01R0".repeat(70_000));
    tensors.push(b'.');
    refused(&tensors, "more than 65536 tensors");
    refused(&storage(&[b'7'; 65]), "a storage's key of 65 bytes");
    assert!(pickle::load(&[&arguments[..], b"h\0h\x01R."].concat()).is_ok());
    // a number of 4 GB
    refused(b"\x8b\xff\xff\xff\xff.", "cut short");
}

/// `{name: tensor}` in PyTorch's old layout: a storage of `elements` f32 at key "0", one tensor that is a view of it.
fn legacy(name: &str, elements: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let text = |text: &str| {
        [b"X".to_vec(), (text.len() as u32).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat()
    };
    let int = |n: i32| [b"J".to_vec(), n.to_le_bytes().to_vec()].concat();
    let tuple = |values: &[i32]| {
        [b"(".to_vec(), values.iter().flat_map(|&n| int(n)).collect(), b"t".to_vec()].concat()
    };
    let mut file =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}".to_vec();
    file.extend([text("little_endian"), b"\x88s.\x80\x02}".to_vec(), text(name)].concat());
    file.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    file.extend([text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu")].concat());
    file.extend([int(elements), b"NtQ".to_vec(), int(offset), tuple(shape), tuple(strides)].concat());
    file.extend(b"\x89NtRs.\x80\x02]");
    file.extend([text("0"), b"a.".to_vec(), i64::from(elements).to_le_bytes().to_vec()].concat());
    file.extend((0..elements).flat_map(|n| (n as f32).to_le_bytes()));
    file
}

#[track_caller]
fn legacy_error(file: &[u8]) -> String {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.bin");
    fs::write(&path, file).unwrap();
    error(Framework::PyTorch, &path, &options())
}

const WORD: &str = "module.bert.embeddings.word_embeddings.weight";

#[test]
fn views_are_read_by_their_strides() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.bin");
    let read = |offset, shape: &[i32], strides: &[i32]| {
        fs::write(&path, legacy(WORD, 24, offset, shape, strides)).unwrap();
        let mut file = TorchFile::open(&path).unwrap();
        file.check(0).unwrap();
        let mut values = Vec::new();
        file.read(0, 1, &mut |piece| values.extend_from_slice(piece)).unwrap();
        values
    };
    assert_eq!(read(2, &[2, 3], &[3, 1]), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(read(2, &[2, 3], &[1, 2]), [2.0, 4.0, 6.0, 3.0, 5.0, 7.0]);
    assert_eq!(read(0, &[2, 2, 2], &[12, 1, 6]), [0.0, 6.0, 1.0, 7.0, 12.0, 18.0, 13.0, 19.0]);
    assert_eq!(read(23, &[1, 1], &[100, 7]), [23.0]);
}

#[test]
fn views_that_leave_their_storage_are_errors() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.bin");
    for (offset, shape, strides, expected) in [
        (19, &[2, 3][..], &[3, 1][..], "does not fit into its storage of 96 bytes"),
        (0, &[2, 3], &[i32::MAX, 1], "does not fit into its storage"),
        (0, &[1 << 20, 1 << 20], &[0, 0], "elements overlap"),
        (-1, &[2, 3], &[3, 1], "-1 where a size is expected"),
        (0, &[2, 3], &[1], "2 sizes and 1 strides"),
    ] {
        fs::write(&path, legacy(WORD, 24, offset, shape, strides)).unwrap();
        let message = TorchFile::open(&path).and_then(|file| file.check(0)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn files_of_the_old_layout_that_are_damaged_are_errors() {
    let good = legacy(WORD, 24, 0, &[6, 4], &[4, 1]);
    assert!(
        legacy_error(&good).contains("position_embeddings.weight is missing, 1 of 1"),
        "{}",
        legacy_error(&good)
    );
    let cut = legacy_error(&good[..good.len() - 1]);
    assert!(cut.contains("storage \"0\": 24 elements from byte"), "{cut}");
    let mut long = good.clone();
    let length = good.len() - 24 * 4 - 8;
    long[length..length + 8].fill(0xff);
    assert!(legacy_error(&long).contains("elements from byte"), "{}", legacy_error(&long));
    let other = legacy("a", 2, 0, &[2], &[1]);
    let message = legacy_error(&other);
    assert!(message.contains("holds its dictionary of 1 (first keys: a), no weights of a BERT"), "{message}");
    let big = good.iter().map(|&b| if b == 0x88 { 0x89 } else { b }).collect::<Vec<_>>();
    assert!(legacy_error(&big).contains("little_endian: False"), "{}", legacy_error(&big));
    assert!(legacy_error(b"\x80\x02K\x01.").contains("neither a zip archive nor"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn programs_of_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = pickle::load(&bytes);
    }

    /// Programs made of opcodes that are known: they get further than any bytes do.
    #[test]
    fn programs_of_known_opcodes_never_panic(
        opcodes in prop::collection::vec(
            prop::sample::select(b"(N\x88K)]}\x85\x86\x87teasdlu012qh\x94RQbcX.\x93\x8c\x8f\x90\x91\x81".to_vec()),
            0..200,
        ),
    ) {
        let _ = pickle::load(&opcodes);
        let mut start = b"ccollections\nOrderedDict\nq\0ctorch._utils\n_rebuild_tensor_v2\nq\x01".to_vec();
        start.extend(opcodes);
        let _ = pickle::load(&start);
    }
}
