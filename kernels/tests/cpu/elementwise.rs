//! GELU, tanh, gathering and scattering rows.

use crate::check::*;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::{Backend, Scalar};

/// `gelu(x + bias)`.
#[derive(Debug)]
struct GeluOp {
    size: Size2,
    kind: Gelu,
}

impl Op for GeluOp {
    fn inputs(&self) -> Vec<Vec<f64>> {
        let x = noise(self.size.rows * self.size.cols, 50).into_iter().map(|x| 4.0 * x).collect();
        vec![x, noise(self.size.cols, 51)]
    }

    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run {
        let Size2 { rows, cols } = self.size;
        let [x, bias] = [0, 1].map(|i| cast::<T>(&inputs[i]));
        let x: Vec<T> = (0..rows * cols).map(|i| x[i] + bias[i % cols]).collect();
        let cpu = Cpu::<T>::new();
        let mut y = poison::<T>(x.len());
        cpu.gelu_forward(GeluForward::<Cpu<T>> { y: &mut y, x: &x, kind: self.kind }).unwrap();
        let mut dy = cast::<T>(&self.dy(x.len()));
        let before = noise(cols, 52);
        let mut grads = cast::<T>(&before);
        cpu.gelu_backward(GeluBackward::<Cpu<T>> {
            dy: &mut dy,
            x: &x,
            kind: self.kind,
            grads: &mut grads,
            dbias: 0..cols,
            size: self.size,
        })
        .unwrap();
        Run { y: wide(&y), gradients: vec![wide(&dy), minus(&wide(&grads), &before)] }
    }
}

#[derive(Debug)]
struct Tanh(usize);

impl Op for Tanh {
    fn inputs(&self) -> Vec<Vec<f64>> {
        vec![noise(self.0, 53).into_iter().map(|x| 3.0 * x).collect()]
    }

    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run {
        let cpu = Cpu::<T>::new();
        let mut y = cast::<T>(&inputs[0]);
        cpu.tanh_forward(TanhForward::<Cpu<T>> { y: &mut y }).unwrap();
        let mut dy = cast::<T>(&self.dy(y.len()));
        cpu.tanh_backward(TanhBackward::<Cpu<T>> { dy: &mut dy, y: &y }).unwrap();
        Run { y: wide(&y), gradients: vec![wide(&dy)] }
    }
}

/// Every third row of `3 rows`, and back.
#[derive(Debug)]
struct Gather(Size2);

impl Op for Gather {
    fn inputs(&self) -> Vec<Vec<f64>> {
        vec![noise(3 * self.0.rows * self.0.cols, 54)]
    }

    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run {
        let Size2 { rows, cols } = self.0;
        let chosen: Vec<u32> = (0..rows as u32).rev().map(|r| 3 * r + 1).collect();
        let cpu = Cpu::<T>::new();
        let mut y = poison::<T>(rows * cols);
        cpu.gather_rows(GatherRows::<Cpu<T>> { y: &mut y, x: &cast::<T>(&inputs[0]), rows: &chosen, cols })
            .unwrap();
        let before = noise(inputs[0].len(), 55);
        let mut x = cast::<T>(&before);
        let dy = cast::<T>(&self.dy(y.len()));
        cpu.scatter_add_rows(ScatterAddRows::<Cpu<T>> { x: &mut x, y: &dy, rows: &chosen, cols }).unwrap();
        Run { y: wide(&y), gradients: vec![minus(&wide(&x), &before)] }
    }
}

#[test]
fn gradients() {
    for (rows, cols) in [(1, 17), (3, 30), (70, 5)] {
        let size = Size2 { rows, cols };
        finite_differences(&GeluOp { size, kind: Gelu::Tanh });
        finite_differences(&GeluOp { size, kind: Gelu::Erf });
        finite_differences(&Tanh(rows * cols));
        finite_differences(&Gather(size));
    }
}

#[test]
fn f32_is_close() {
    let size = Size2 { rows: 90, cols: 333 };
    single_precision(&GeluOp { size, kind: Gelu::Tanh }, 10.0);
    single_precision(&GeluOp { size, kind: Gelu::Erf }, 10.0);
    single_precision(&Tanh(10_000), 10.0);
    single_precision(&Gather(size), 2.0);
}

#[test]
fn threads_do_not_matter() {
    let size = Size2 { rows: 500, cols: 303 };
    any_threads(&GeluOp { size, kind: Gelu::Tanh });
    any_threads(&GeluOp { size, kind: Gelu::Erf });
    any_threads(&Tanh(150_001));
    any_threads(&Gather(size));
}

/// Values of the definition, computed with 30 digits.
#[test]
fn gelu_values() {
    let x = [-3.0f64, -0.5, 1.0];
    let mut y = [0.0; 3];
    let cpu = Cpu::<f64>::new();
    cpu.gelu_forward(GeluForward::<Cpu<f64>> { y: &mut y, x: &x, kind: Gelu::Erf }).unwrap();
    let want = [-0.004_049_694_094_890_284, -0.154_268_769_362_993_45, 0.841_344_746_068_542_9];
    assert!(y.iter().zip(want).all(|(y, want)| (y - want).abs() < 1e-15), "{y:?}");
    cpu.gelu_forward(GeluForward::<Cpu<f64>> { y: &mut y, x: &x, kind: Gelu::Tanh }).unwrap();
    let want = [-0.003_637_392_081_773_018, -0.154_285_990_174_856_08, 0.841_191_990_608_276_7];
    assert!(y.iter().zip(want).all(|(y, want)| (y - want).abs() < 1e-15), "{y:?}");
}
