use crate::check::*;
use half::bf16;
use kernels::Backend;
use kernels::backend::CrossEntropy;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Element, Memory};

/// Rows of logits that begin at element `offset` of their buffer.
#[derive(Debug, Clone, Copy)]
struct Loss {
    rows: usize,
    classes: usize,
    stride: usize,
    offset: usize,
}

/// Rows that a warp takes and rows that a block takes; rows that no vector and no block fits; a row too long for a block to
/// hold; the vocabulary; rows that begin beside 16 bytes.
const SIZES: [(usize, usize, usize, usize); 12] = [
    (1, 2, 2, 0),
    (9, 2, 2, 0),
    (3, 17, 17, 0),
    (40, 30, 64, 0),
    (5, 300, 511, 0),
    (5, 511, 512, 0),
    (3, 512, 512, 0),
    (2, 513, 520, 0),
    (3, 700, 1024, 1),
    (2, 2049, 2056, 0),
    (2, 30_522, 30_528, 0),
    (1, 70_001, 70_008, 0),
];

fn sizes() -> impl Iterator<Item = Loss> {
    SIZES.into_iter().map(|(rows, classes, stride, offset)| Loss { rows, classes, stride, offset })
}

impl Loss {
    fn logits<E: Element>(&self) -> Vec<f64> {
        rounded::<E>(&noise(self.rows * self.stride, 70).into_iter().map(|x| 5.0 * x).collect::<Vec<_>>())
    }

    /// Some of them the largest.
    fn labels(&self, logits: &[f64]) -> Vec<u32> {
        let largest = |row: usize| {
            let row = &logits[row * self.stride..][..self.classes];
            (0..self.classes).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
        };
        (0..self.rows).map(|r| if r % 3 == 1 { largest(r) } else { r * 77 % self.classes } as u32).collect()
    }

    /// The logits after, the sums.
    fn on_gpu<E: Element>(&self, logits: &[f64], labels: &[u32], scale: Option<f64>) -> [Vec<f64>; 2] {
        let cuda = cuda::<E>();
        let mut buffer = vec![f64::NAN; self.offset];
        buffer.extend_from_slice(logits);
        let mut buffer: Memory<E> = put_elems(&cuda, &buffer);
        let (labels, mut sums) = (put(&cuda, labels), put_f32(&cuda, &[0.5, 3.0]));
        cuda.cross_entropy(CrossEntropy {
            logits: Cuda::<E>::at_mut(&mut buffer, self.offset..self.offset + self.rows * self.stride),
            labels: Cuda::<E>::at(&labels, 0..self.rows),
            classes: self.classes,
            stride: self.stride,
            scale,
            sums: Cuda::<E>::at_mut(&mut sums, 0..2),
        })
        .unwrap();
        let after = get_elems(&cuda, &buffer);
        assert!(after[..self.offset].iter().all(|x| x.is_nan()));
        [after[self.offset..].to_vec(), get_f32(&cuda, &sums)]
    }

    fn on_cpu(&self, logits: &[f64], labels: &[u32], scale: Option<f64>) -> [Vec<f64>; 2] {
        let (mut logits, mut sums) = (logits.to_vec(), [0.5, 3.0]);
        let Self { classes, stride, .. } = *self;
        let args =
            CrossEntropy::<Cpu<f64>> { logits: &mut logits, labels, classes, stride, scale, sums: &mut sums };
        Cpu::<f64>::new().cross_entropy(args).unwrap();
        [logits, sums.to_vec()]
    }
}

/// The gradient may be `times` as far off as rounding makes it.
fn as_the_oracle<E: Element>(times: f64) {
    for case in sizes() {
        let logits = case.logits::<E>();
        let labels = case.labels(&logits);
        let [want, want_sums] = case.on_cpu(&logits, &labels, Some(0.25));
        let [got, sums] = case.on_gpu::<E>(&logits, &labels, Some(0.25));
        close::<E>(&format!("{case:?}: gradient"), &got, &want, times);
        // each row's loss is rounded four times: the sum, its logarithm, the difference from the maximum, the loss
        close_f32(&format!("{case:?}: loss"), &sums[..1], &want_sums[..1], 8.0);
        assert_eq!(sums[1], want_sums[1], "{case:?}");
        let padding = |i: &usize| i % case.stride >= case.classes;
        assert!((0..got.len()).filter(padding).all(|i| got[i] == 0.0), "{case:?}");

        let [left, evaluated] = case.on_gpu::<E>(&logits, &labels, None);
        same_bits("evaluation alone", &left, &logits);
        same_bits("sums of an evaluation", &evaluated, &sums);
    }
}

#[test]
fn cross_entropy_f32() {
    // f32 rounds five times in a row: the difference from the maximum, its exponential, the sum, the quotient, the product
    as_the_oracle::<f32>(5.0);
}

#[test]
fn cross_entropy_bf16() {
    as_the_oracle::<bf16>(2.0);
}

#[test]
fn cross_entropy_counts_the_first_of_equal_logits() {
    // both kinds of row; the equal ones in one vector, in two vectors of a thread, in two threads, among the padding
    for (classes, stride, equal) in [
        (3, 4, [1, 2]),
        (600, 640, [8, 9]),
        (600, 640, [7, 264]),
        (600, 640, [3, 599]),
        (600, 640, [100, 620]),
    ] {
        let mut logits: Vec<f64> = noise(stride, 3);
        equal.iter().for_each(|&i| logits[i] = 3.0);
        for (label, right) in [(equal[0], 4.0), (equal[1], 3.0), (0, 3.0)] {
            if label >= classes {
                continue;
            }
            let case = Loss { rows: 1, classes, stride, offset: 0 };
            let [_, sums] = case.on_gpu::<bf16>(&logits, &[label as u32], None);
            assert_eq!(sums[1], right, "{case:?}, {equal:?}, label {label}");
        }
    }
}

#[test]
fn cross_entropy_of_logits_that_are_not_finite_is_not_finite() {
    for (classes, stride) in [(3, 4), (600, 640)] {
        let case = Loss { rows: 2, classes, stride, offset: 0 };
        for bad in [f64::NAN, f64::INFINITY] {
            let mut logits = noise(2 * stride, 4);
            logits[stride + 1] = bad;
            let [gradient, sums] = case.on_gpu::<bf16>(&logits, &[0, 0], Some(1.0));
            assert!(!sums[0].is_finite() && gradient[..stride].iter().all(|g| g.is_finite()));
            let (row, padding) = gradient[stride..].split_at(classes);
            assert!(
                row.iter().all(|g| !g.is_finite()) && padding.iter().all(|&g| g == 0.0),
                "{case:?}, {bad}"
            );
        }
        // a probability of 0, and one of nothing
        let mut logits = noise(2 * stride, 4);
        logits[stride + 1] = f64::NEG_INFINITY;
        let [want, want_sums] = case.on_cpu(&rounded::<bf16>(&logits), &[0, 0], Some(1.0));
        let [gradient, sums] = case.on_gpu::<bf16>(&logits, &[0, 0], Some(1.0));
        close::<bf16>("gradient", &gradient, &want, 2.0);
        close_f32("loss", &sums[..1], &want_sums[..1], 2.0);
        logits[stride..stride + classes].fill(f64::NEG_INFINITY);
        let [_, sums] = case.on_gpu::<bf16>(&logits, &[0, 0], Some(1.0));
        assert!(!sums[0].is_finite());
    }
}

#[test]
fn cross_entropy_of_a_label_that_is_none_is_nan() {
    for (classes, stride) in [(3, 4), (600, 640)] {
        let case = Loss { rows: 2, classes, stride, offset: 0 };
        let [_, sums] = case.on_gpu::<f32>(&noise(2 * stride, 4), &[0, u32::MAX], Some(1.0));
        assert!(sums[0].is_nan() && sums[1] <= 4.0);
    }
}

#[test]
fn cross_entropy_of_no_rows_and_of_wrong_lengths() {
    let cuda = cuda::<f32>();
    let (mut logits, labels, mut sums) =
        (put_f32(&cuda, &[1.0; 8]), put(&cuda, &[0u32; 2]), put_f32(&cuda, &[7.0; 3]));
    let mut call = |len: usize, rows: usize, classes: usize, stride: usize, of_sums: usize| {
        let result = cuda.cross_entropy(CrossEntropy {
            logits: Cuda::<f32>::at_mut(&mut logits, 0..len),
            labels: Cuda::<f32>::at(&labels, 0..rows),
            classes,
            stride,
            scale: None,
            sums: Cuda::<f32>::at_mut(&mut sums, 0..of_sums),
        });
        result.map_err(|e| e.to_string())
    };
    assert_eq!(call(0, 0, 3, 4, 2), Ok(()));
    assert_eq!(call(8, 2, 3, 4, 2), Ok(()));
    assert_eq!(call(7, 2, 3, 4, 2).unwrap_err(), "cross_entropy: `logits` has 7 elements, expected 8");
    assert_eq!(call(8, 2, 3, 4, 3).unwrap_err(), "cross_entropy: `sums` has 3 elements, expected 2");
    for classes in [0, 5] {
        assert!(call(8, 2, classes, 4, 2).unwrap_err().contains("classes in rows of 4 elements"));
    }
}
