use crate::check::*;
use kernels::backend::CrossEntropy;
use kernels::cpu::Cpu;
use kernels::{Backend, Scalar};

/// Cross-entropy of `rows` rows, times 0.25.
#[derive(Debug)]
struct Loss {
    rows: usize,
    classes: usize,
    stride: usize,
}

impl Loss {
    fn labels(&self) -> Vec<u32> {
        (0..self.rows).map(|row| (row * 5 % self.classes) as u32).collect()
    }
}

impl Op for Loss {
    fn inputs(&self) -> Vec<Vec<f64>> {
        vec![noise(self.rows * self.stride, 70).into_iter().map(|x| 5.0 * x).collect()]
    }

    fn dy(&self, _: usize) -> Vec<f64> {
        vec![0.25]
    }

    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run {
        let Self { classes, stride, .. } = *self;
        let (mut logits, labels) = (cast::<T>(&inputs[0]), self.labels());
        let mut sums = cast::<T>(&[0.5, 3.0]);
        let mut call = |logits: &mut [T], scale| {
            let sums = &mut sums;
            let args = CrossEntropy::<Cpu<T>> { logits, labels: &labels, classes, stride, scale, sums };
            Cpu::<T>::new().cross_entropy(args).unwrap();
            wide(sums)
        };
        let before = logits.clone();
        let evaluated = call(&mut logits, None);
        assert!(logits == before, "evaluation alone changed the logits");
        let y = call(&mut logits, Some(0.25));
        let added = [evaluated[0] - 0.5, y[0] - evaluated[0]];
        assert!((added[0] - added[1]).abs() <= 1e-5 * y[0].abs());
        Run { y: vec![added[1]], gradients: vec![wide(&logits)] }
    }
}

#[test]
fn gradients() {
    for (rows, classes, stride) in [(1, 2, 2), (3, 17, 17), (70, 30, 64), (2, 300, 320)] {
        finite_differences(&Loss { rows, classes, stride });
    }
}

#[test]
fn f32_is_close() {
    single_precision(&Loss { rows: 90, classes: 333, stride: 384 }, 10.0);
}

#[test]
fn threads_do_not_matter() {
    any_threads(&Loss { rows: 200, classes: 1001, stride: 1024 });
}

#[test]
fn the_first_of_equal_logits_is_the_largest() {
    let mut sums = [0.0f64; 2];
    for (label, right) in [(0, 0.0), (1, 1.0), (2, 1.0)] {
        let mut logits = [1.0f64, 3.0, 3.0, 9.0];
        let args = CrossEntropy::<Cpu<f64>> {
            logits: &mut logits,
            labels: &[label],
            classes: 3,
            stride: 4,
            scale: None,
            sums: &mut sums,
        };
        Cpu::<f64>::new().cross_entropy(args).unwrap();
        assert_eq!(sums[1], right, "label {label}");
    }
}

#[test]
fn a_nan_among_the_logits_shows_in_the_loss() {
    let mut sums = [0.0f32; 2];
    let mut logits = [1.0, f32::NAN, 0.0];
    let args = CrossEntropy::<Cpu<f32>> {
        logits: &mut logits,
        labels: &[0],
        classes: 3,
        stride: 3,
        scale: Some(1.0),
        sums: &mut sums,
    };
    Cpu::<f32>::new().cross_entropy(args).unwrap();
    assert!(sums[0].is_nan() && logits.iter().all(|x| x.is_nan()));
}

#[test]
fn a_label_beyond_the_classes_is_an_error() {
    let args = CrossEntropy::<Cpu<f32>> {
        logits: &mut [0.0f32; 8],
        labels: &[2, 3],
        classes: 3,
        stride: 4,
        scale: None,
        sums: &mut [0.0; 2],
    };
    let error = Cpu::<f32>::new().cross_entropy(args).unwrap_err().to_string();
    assert_eq!(error, "cross_entropy: `labels[1]` is 3, expected below 3");
}
