use crate::check::*;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::{Backend, Scalar};

/// `x w^T + bias`.
#[derive(Debug)]
struct Linear {
    size: LinearSize,
    bias: bool,
    /// Whether dgrad adds to what is there.
    accumulate: bool,
}

impl Linear {
    fn new(rows: usize, inputs: usize, outputs: usize, bias: bool, accumulate: bool) -> Self {
        Self { size: LinearSize { rows, inputs, outputs }, bias, accumulate }
    }
}

impl Op for Linear {
    fn inputs(&self) -> Vec<Vec<f64>> {
        let LinearSize { rows, inputs, outputs } = self.size;
        let bias = if self.bias { outputs } else { 0 };
        vec![noise(rows * inputs, 40), noise(outputs * inputs, 41), noise(bias, 42)]
    }

    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run {
        let size = self.size;
        let [x, w, bias] = [0, 1, 2].map(|i| cast::<T>(&inputs[i]));
        let cpu = Cpu::<T>::new();
        let mut y = poison::<T>(size.rows * size.outputs);
        let forward =
            LinearForward::<Cpu<T>> { y: &mut y, x: &x, w: &w, bias: self.bias.then_some(&bias), size };
        cpu.linear_forward(forward).unwrap();
        let dy = cast::<T>(&self.dy(y.len()));
        let before = noise(x.len(), 43);
        let mut dx = if self.accumulate { cast::<T>(&before) } else { poison(x.len()) };
        let dgrad = LinearDgrad::<Cpu<T>> { dx: &mut dx, dy: &dy, w: &w, accumulate: self.accumulate, size };
        cpu.linear_dgrad(dgrad).unwrap();
        let dx = if self.accumulate { minus(&wide(&dx), &before) } else { wide(&dx) };
        let before = noise(w.len() + bias.len(), 44);
        let mut grads = cast::<T>(&before);
        let wgrad =
            LinearWgrad::<Cpu<T>> { grads: &mut grads, dw: bias.len()..before.len(), dy: &dy, x: &x, size };
        cpu.linear_wgrad(wgrad).unwrap();
        if self.bias {
            let size = Size2 { rows: size.rows, cols: size.outputs };
            cpu.bias_grad(BiasGrad::<Cpu<T>> { grads: &mut grads, dbias: 0..bias.len(), dy: &dy, size })
                .unwrap();
        }
        let grads = minus(&wide(&grads), &before);
        let (dbias, dw) = grads.split_at(bias.len());
        Run { y: wide(&y), gradients: vec![dx, dw.to_vec(), dbias.to_vec()] }
    }
}

#[test]
fn gradients() {
    for (rows, inputs, outputs) in [(1, 17, 30), (2, 5, 1), (70, 17, 30), (33, 1, 2), (65, 64, 3)] {
        finite_differences(&Linear::new(rows, inputs, outputs, true, false));
        finite_differences(&Linear::new(rows, inputs, outputs, false, true));
    }
}

#[test]
fn f32_is_close() {
    single_precision(&Linear::new(130, 99, 77, true, false), 40.0);
    single_precision(&Linear::new(1, 300, 2, true, true), 40.0);
}

#[test]
fn threads_do_not_matter() {
    any_threads(&Linear::new(500, 257, 301, true, false));
    any_threads(&Linear::new(301, 1030, 130, false, true));
}

#[test]
fn reruns_are_equal() {
    let op = Linear::new(300, 700, 200, true, true);
    let first = op.run::<f32>(&op.inputs());
    for _ in 0..5 {
        assert!(op.run::<f32>(&op.inputs()) == first);
    }
}
