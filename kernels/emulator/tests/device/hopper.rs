//! What sm_90 adds: tiles by TMA, mbarriers, products of warpgroups. What is right runs right whatever the order, what is wrong
//! shows.

use crate::faults::child;
use crate::gpu::{Buffer, Stream, arg, function, open, try_launch};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys;
use half::bf16;

/// As a kernel takes it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Map([u64; 16]);

/// What `cuTensorMapEncodeTiled` is asked for: bf16 with 128-byte swizzle unless a test changes it.
#[derive(Clone, Copy)]
struct Matrix {
    address: u64,
    rows: u64,
    columns: u64,
    stride: u64,
    boxes: [u32; 2],
    swizzle: sys::CUtensorMapSwizzle,
}

impl Matrix {
    fn new(address: u64, rows: usize, columns: usize, stride: usize, box_rows: usize) -> Self {
        let swizzle = sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        let (rows, columns, stride) = (rows as u64, columns as u64, stride as u64);
        Self { address, rows, columns, stride, boxes: [64, box_rows as u32], swizzle }
    }

    fn encode(self) -> Result<Map, sys::CUresult> {
        open();
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays have two dimensions' numbers.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                self.address as *mut std::ffi::c_void,
                [self.columns, self.rows].as_ptr(),
                [self.stride].as_ptr(),
                self.boxes.as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                self.swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        if result == sys::CUresult::CUDA_SUCCESS { Ok(Map(map.opaque)) } else { Err(result) }
    }
}

/// Numbers that bf16 holds, and that differ.
fn noise(n: usize, seed: u64) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bf16::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

fn run(stream: &Stream, kernel: &str, threads: u32, shared: usize, args: &[Vec<u8>]) {
    allow(kernel, shared);
    try_launch(stream, kernel, (1, 1, 1), (threads, 1, 1), shared as u32, args).unwrap();
    stream.wait();
}

/// Lets a kernel's blocks have that much dynamic shared memory.
fn allow(kernel: &str, shared: usize) {
    use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as LIMIT;
    // SAFETY: a function of a module that is never unloaded.
    unsafe {
        cudarc::driver::result::function::set_function_attribute(
            function(kernel).unwrap(),
            LIMIT,
            shared as i32,
        )
    }
    .unwrap();
}

/// A box from (row, column) to another place, at and past every edge.
#[test]
fn boxes_are_copied_with_zeros_around_the_matrix() {
    let stream = Stream::new();
    let at = [
        (0, 0, 0, 0),
        (50, 8, -3, 16),
        (-5, -10, 20, 150),
        (90, 70, 97, 71),
        (200, 0, 0, 300),
        (7, 1, 9, -63),
    ];
    for (rows, columns, box_rows) in [(100i32, 72i32, 64i32), (33, 200, 16), (3, 5, 256), (64, 64, 1)] {
        let width = (columns as usize).next_multiple_of(8) + 8;
        let x = noise(rows as usize * width, 1);
        for (row, column, to_row, to_column) in at {
            let y = Buffer::from(&vec![bf16::from_f32(5.0); x.len()]);
            let (from, seen) = (Buffer::from(&x), Buffer::<f32>::fresh(box_rows as usize * 64));
            let map = |at| {
                let matrix = Matrix::new(at, rows as usize, columns as usize, width * 2, box_rows as usize);
                arg(matrix.encode().unwrap())
            };
            let mut args = vec![map(from.at), map(y.at), arg(seen.at)];
            args.extend([row, column, to_row, to_column, box_rows].map(arg));
            run(&stream, "test_tiles", 64, box_rows as usize * 128, &args);
            let inside = |r: i32, c: i32| (0..rows).contains(&r) && (0..columns).contains(&c);
            let source =
                |r: i32, c: i32| if inside(r, c) { x[r as usize * width + c as usize].to_f32() } else { 0.0 };
            for (i, &got) in seen.read().iter().enumerate() {
                assert_eq!(
                    got,
                    source(row + i as i32 / 64, column + i as i32 % 64),
                    "element {i} of the tile"
                );
            }
            for (i, got) in y.read().iter().enumerate() {
                let (r, c) = ((i / width) as i32, (i % width) as i32);
                let (in_box, of_box) = ((r - to_row, c - to_column), 0..box_rows);
                let written = of_box.contains(&in_box.0) && (0..64).contains(&in_box.1) && inside(r, c);
                let expected = if written { source(row + in_box.0, column + in_box.1) } else { 5.0 };
                assert_eq!(got.to_f32(), expected, "({r}, {c}) of {rows} x {columns}");
            }
        }
    }
}

#[test]
fn maps_that_the_copy_engine_does_not_have_are_refused() {
    let x = Buffer::<u8>::fresh(1 << 16);
    let right = Matrix::new(x.at, 100, 72, 144, 64);
    let narrow = sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B;
    assert!(right.encode().is_ok());
    let wrong = [
        Matrix { address: x.at + 8, ..right },
        Matrix { address: 0, ..right },
        Matrix { stride: 152, ..right },
        Matrix { stride: 128, ..right },
        Matrix { rows: 0, ..right },
        Matrix { columns: 1 << 33, stride: 1 << 35, ..right },
        Matrix { boxes: [64, 257], ..right },
        Matrix { boxes: [64, 0], ..right },
        Matrix { boxes: [12, 64], ..right },
        Matrix { boxes: [72, 64], ..right },
        Matrix { swizzle: narrow, ..right },
    ];
    for (i, wrong) in wrong.into_iter().enumerate() {
        assert_eq!(wrong.encode().err(), Some(sys::CUresult::CUDA_ERROR_INVALID_VALUE), "{i}");
    }
}

#[test]
#[ignore = "run by `boxes_that_leave_their_buffer_are_told` in a process of its own"]
fn wrong_map() {
    let (stream, x, seen) = (Stream::new(), Buffer::<bf16>::fresh(100 * 64), Buffer::<f32>::fresh(64 * 64));
    let claimed = Matrix::new(x.at, 101, 64, 128, 64).encode().unwrap();
    let map = arg(if number("WHAT") == 1 { claimed } else { Map([0; 16]) });
    let mut args = vec![map.clone(), map, arg(seen.at)];
    args.extend([37, 0, 0, 0, 64].map(arg));
    run(&stream, "test_tiles", 64, 64 * 128, &args);
}

#[test]
fn boxes_that_leave_their_buffer_are_told() {
    let (text, passed) = child("hopper::wrong_map", &[("WHAT", "1")]);
    assert!(!passed && text.contains("leaves its buffer: bad access at"), "{text}");
    assert!(text.contains("past the end of the buffer of 12800 bytes"), "{text}");
    let (text, passed) = child("hopper::wrong_map", &[("WHAT", "2")]);
    assert!(!passed && text.contains("is not a tensor map"), "{text}");
}

/// Two tiles of 0 and 1 that were made in one place.
fn stores(what: i32) {
    let (stream, y) = (Stream::new(), Buffer::<bf16>::fresh(128 * 64));
    let map = Matrix::new(y.at, 128, 64, 128, 64).encode().unwrap();
    run(&stream, "test_stores", 96, 64 * 128, &[arg(map), arg(what)]);
    let right = |(i, x): (usize, &bf16)| x.to_f32() == (i / (64 * 64)) as f32;
    assert!(y.read().iter().enumerate().all(right), "the result is wrong");
}

#[test]
#[ignore = "run by `what_is_wrong_with_stores_is_told` in a process of its own"]
fn wrong_stores() {
    for _ in 0..12 {
        stores(number("WHAT"));
    }
}

#[test]
fn what_is_wrong_with_stores_is_told() {
    let cases: [(i32, &[&str]); 4] = [
        (1, &["a copy from shared memory reads shared address", "which a thread wrote without fence_async"]),
        (
            2,
            &[
                "the result is wrong",
                "which a thread wrote without fence_async after it, or after this was issued",
            ],
        ),
        (3, &["leaves the kernel without having waited for its copies from shared memory"]),
        (4, &["copies from shared memory that commit_stores did not follow"]),
    ];
    told("hopper::wrong_stores", &cases);
}

#[test]
#[ignore = "run by `registers_are_not_given_twice` in a process of its own"]
fn move_registers() {
    run(&Stream::new(), "test_registers", 384, 0, &[arg(number("FIRST")), arg(number("SECOND"))]);
}

#[test]
fn registers_are_not_given_twice() {
    let cases = [
        (40, 240, "520 a thread in sum, are more than the 504 that the block has", false),
        (24, 160, "setmaxnreg.inc to 160 registers, of a share of 168", false),
        (176, 240, "setmaxnreg.dec to 176 registers, of a share of 168", false),
        (20, 240, "multiples of 8 from 24 to 256 are possible", false),
        (24, 236, "multiples of 8 from 24 to 256 are possible", false),
        (24, 240, "", true),
    ];
    for (first, second, message, right) in cases {
        let environment = [("FIRST", &*first.to_string()), ("SECOND", &*second.to_string())];
        let (text, passed) = child("hopper::move_registers", &environment);
        assert!(passed == right && text.contains(message), "{first} {second}: {text}");
    }
}

const TILES: usize = 7;

/// Sums of rows through a ring of two tiles: what the kernel gives and what is right.
fn ring(stream: &Stream, what: i32) -> (Vec<f32>, Vec<f32>) {
    let x = noise(TILES * 64 * 64, 2);
    let (from, y) = (Buffer::from(&x), Buffer::<f32>::fresh(TILES * 64));
    let map = Matrix::new(from.at, TILES * 64, 64, 128, 64).encode().unwrap();
    let args = [arg(map), arg(from.at), arg(y.at), arg(TILES as i32), arg(what)];
    run(stream, "test_ring", 160, 2 * 64 * 128, &args);
    (y.read(), x.chunks(64).map(|row| row.iter().map(|x| x.to_f32()).sum()).collect())
}

fn agree(got: &[f32], right: &[f32]) -> bool {
    got.iter().zip(right).all(|(got, right)| (got - right).abs() < 1e-4)
}

#[test]
fn producers_and_consumers_meet_at_mbarriers() {
    let stream = Stream::new();
    for round in 0..12 {
        for what in [0, 9] {
            let (got, right) = ring(&stream, what);
            assert!(agree(&got, &right), "round {round}, kind {what}");
        }
    }
}

/// How operands lie, as the kernels' names have it: `k` K-major, `m` MN-major, `r` in registers.
fn product(n: usize, kind: &str, depth: usize, what: i32) -> (Vec<f32>, Vec<f64>) {
    let (stream, k) = (Stream::new(), depth * 64);
    let (a, b) = (noise(64 * k, 3), noise(n * k, 4));
    let c: Vec<f32> = noise(64 * n, 5).iter().map(|x| x.to_f32()).collect();
    let (da, db, dc, y) =
        (Buffer::from(&a), Buffer::from(&b), Buffer::from(&c), Buffer::<f32>::fresh(64 * n));
    let args = [arg(y.at), arg(da.at), arg(db.at), arg(dc.at), arg(depth as i32), arg(what)];
    run(&stream, &format!("test_product_{n}_{kind}"), 128, (64 + n) * k * 2, &args);
    let (left, right) = (&kind[..1] == "m", &kind[1..] == "m");
    let exact = |i: usize, j: usize| {
        let of_a = |l: usize| a[if left { l * 64 + i } else { i * k + l }].to_f64();
        let of_b = |l: usize| b[if right { l * n + j } else { j * k + l }].to_f64();
        f64::from(c[i * n + j]) + (0..k).map(|l| of_a(l) * of_b(l)).sum::<f64>()
    };
    (y.read(), (0..64 * n).map(|at| exact(at / n, at % n)).collect())
}

#[test]
fn products_of_all_layouts_are_right() {
    for n in [64, 128, 256] {
        for kind in ["kk", "km", "mk", "mm", "rk", "rm"] {
            for depth in [1, 2] {
                let (got, exact) = product(n, kind, depth, 0);
                let close = |(&got, &exact): (&f32, &f64)| (f64::from(got) - exact).abs() < 1e-5;
                assert!(got.iter().zip(&exact).all(close), "{n} {kind} {depth}");
            }
        }
    }
}

#[test]
fn results_that_were_not_waited_for_are_poison() {
    for what in [NO_WAIT, PARTIAL] {
        let (got, _) = product(128, "km", 1, what);
        assert!(got.iter().all(|x| x.is_nan()), "{what}");
    }
}

/// A product by a pipeline of copies and products: what the kernel gives and what is right.
fn pipeline(depth: usize, what: i32) -> (Vec<f32>, Vec<f64>) {
    let (stream, k) = (Stream::new(), 64 * depth);
    let (a, b) = (noise(64 * k, 6), noise(64 * k, 7));
    let (da, db, y) = (Buffer::from(&a), Buffer::from(&b), Buffer::<f32>::fresh(64 * 64));
    let map = |at| arg(Matrix::new(at, 64, k, k * 2, 64).encode().unwrap());
    let args = [map(da.at), map(db.at), arg(y.at), arg(depth as i32), arg(what)];
    run(&stream, "test_pipeline", 256, 4 * 64 * 128, &args);
    let exact = |i: usize, j: usize| (0..k).map(|l| a[i * k + l].to_f64() * b[j * k + l].to_f64()).sum();
    (y.read(), (0..64 * 64).map(|at| exact(at / 64, at % 64)).collect())
}

#[test]
fn a_stage_that_is_given_back_too_early_shows() {
    let right = |depth, what| {
        let (got, exact) = pipeline(depth, what);
        got.iter().zip(&exact).all(|(&got, &exact)| (f64::from(got) - exact).abs() < 1e-4)
    };
    assert!((0..24).all(|round| right(1 + round % 9, 0)));
    let wrong = (0..24).filter(|_| !right(9, 1)).count();
    assert!(wrong >= 6, "the fault shows in {wrong} of 24 runs");
}

const NO_WAIT: i32 = 1;
const PARTIAL: i32 = 9;

fn number(name: &str) -> i32 {
    std::env::var(name).unwrap().parse().unwrap()
}

#[test]
#[ignore = "run by `what_is_wrong_with_copies_is_told` in a process of its own"]
fn wrong_ring() {
    let stream = Stream::new();
    for _ in 0..6 {
        let (got, right) = ring(&stream, number("WHAT"));
        assert!(agree(&got, &right), "the result is wrong");
    }
}

#[test]
#[ignore = "run by `what_is_wrong_with_products_is_told` in a process of its own"]
fn wrong_product() {
    for _ in 0..6 {
        let (got, exact) = product(128, "km", 2, number("WHAT"));
        let close = |(&got, &exact): (&f32, &f64)| (f64::from(got) - exact).abs() < 1e-5;
        assert!(got.iter().zip(&exact).all(close), "the result is wrong");
    }
}

/// Runs a test with each kind of fault under several seeds; one of the messages comes each time.
fn told(test: &str, cases: &[(i32, &[&str])]) {
    for (what, messages) in cases {
        for seed in ["1", "2", "3"] {
            let (text, passed) = child(test, &[("WHAT", &what.to_string()), ("EMULATOR_SEED", seed)]);
            let found = messages.iter().any(|message| text.contains(message));
            assert!(!passed && found, "case {what}, seed {seed}: none of {messages:?} is in:\n{text}");
        }
    }
    let (text, passed) = child(test, &[("WHAT", "0")]);
    assert!(passed, "with nothing wrong:\n{text}");
}

#[test]
fn what_is_wrong_with_copies_is_told() {
    told(
        "hopper::wrong_ring",
        &[
            (1, &["none has waited for the copies", "deadlock", "has its 1 arrivals and lacks 8192 bytes"]),
            (2, &["the result is wrong", "deadlock", "arrivals and lacks"]),
            (3, &["16 bytes more than announced arrived"]),
            (4, &["phase 0 lacks 0 of 1 arrivals and 16 bytes"]),
            (5, &["which was not initialized"]),
            (6, &["which was not made known by publish_mbarriers"]),
            (7, &["lacks 1 of 128 arrivals and 0 bytes"]),
            (8, &["which was overwritten"]),
            (10, &["the result is wrong", "deadlock", "arrivals and lacks"]),
            (11, &["is not aligned to 1024 bytes"]),
            (12, &["copies to shared memory still run", "none has waited for the copies to shared memory"]),
        ],
    );
}

#[test]
fn what_is_wrong_with_products_is_told() {
    told(
        "hopper::wrong_product",
        &[
            (2, &["which a thread wrote without fence_async after it, or after this was issued"]),
            (3, &["without fence_products since the warpgroup's last wait_products"]),
            (4, &["products that commit_products did not follow"]),
            (5, &["other threads of its warpgroup have called", "threads of the warpgroup have left"]),
            (6, &["a product of other operands"]),
            (7, &["d[3] of a product was written before wait_products covered it"]),
            (8, &["which a thread wrote without fence_async after it"]),
            (10, &["other threads of its warpgroup have called", "threads of the warpgroup have left"]),
            (11, &["in row 1 of a swizzle's pattern"]),
            (12, &["leaves the kernel without having waited for its products"]),
        ],
    );
}
