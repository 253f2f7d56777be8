use crate::check::*;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::{Backend, Scalar};

/// `layernorm(dropout(x + bias) + residual)`; the bias stands for that of the linear layer before.
#[derive(Debug)]
struct LayerNorm {
    rows: usize,
    h: usize,
    residual: bool,
    p: f64,
}

impl Op for LayerNorm {
    fn inputs(&self) -> Vec<Vec<f64>> {
        let n = self.rows * self.h;
        // a mean that is large against the deviation shows a careless variance
        let residual = noise(if self.residual { n } else { 0 }, 12).into_iter().map(|x| x + 8.0).collect();
        vec![noise(n, 10), noise(self.h, 11), residual, noise(self.h, 13), noise(self.h, 14)]
    }

    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run {
        let (rows, h, n) = (self.rows, self.h, self.rows * self.h);
        let [x, bias, residual, gamma, beta] = [0, 1, 2, 3, 4].map(|i| cast::<T>(&inputs[i]));
        let mut z: Vec<T> = (0..n).map(|i| x[i] + bias[i % h]).collect();
        let (mut y, mut mean, mut rstd) = (poison::<T>(n), poison(rows), poison(rows));
        let (cpu, keys) = (Cpu::<T>::new(), row_keys(rows));
        cpu.layernorm_forward(LayerNormForward::<Cpu<T>> {
            y: &mut y,
            z: &mut z,
            residual: self.residual.then_some(&residual),
            mean: &mut mean,
            rstd: &mut rstd,
            gamma: &gamma,
            beta: &beta,
            eps: 1e-12,
            dropout: dropout(self.p, &keys),
        })
        .unwrap();
        let before = noise(3 * h + 2, 20);
        let mut grads = cast::<T>(&before);
        let (mut dz, mut dx) = (poison::<T>(n), poison(n));
        cpu.layernorm_backward(LayerNormBackward::<Cpu<T>> {
            dz: &mut dz,
            dx: &mut dx,
            dy: &cast::<T>(&self.dy(n)),
            z: &z,
            mean: &mean,
            rstd: &rstd,
            gamma: &gamma,
            grads: &mut grads,
            dgamma: 1..1 + h,
            dbeta: 1 + h..1 + 2 * h,
            dbias: Some(1 + 2 * h..1 + 3 * h),
            dropout: dropout(self.p, &keys),
        })
        .unwrap();
        let grads = minus(&wide(&grads), &before);
        assert_eq!((grads[0], grads[3 * h + 1]), (0.0, 0.0));
        let [dgamma, dbeta, dbias] = [0, 1, 2].map(|i| grads[1 + i * h..1 + (i + 1) * h].to_vec());
        let dresidual = if self.residual { wide(&dz) } else { Vec::new() };
        Run { y: wide(&y), gradients: vec![wide(&dx), dbias, dresidual, dgamma, dbeta] }
    }
}

#[test]
fn gradients() {
    for (rows, h, residual, p) in [
        (1, 17, true, 0.0),
        (3, 30, true, 0.4),
        (67, 17, false, 0.1),
        (5, 64, true, 0.1),
        (2, 300, true, 0.5),
    ] {
        finite_differences(&LayerNorm { rows, h, residual, p });
    }
}

#[test]
fn f32_is_close() {
    single_precision(&LayerNorm { rows: 130, h: 99, residual: true, p: 0.1 }, 40.0);
}

#[test]
fn threads_do_not_matter() {
    any_threads(&LayerNorm { rows: 1030, h: 100, residual: true, p: 0.1 });
}

#[test]
fn without_dropout_row_keys_are_not_read() {
    let (mut y, mut z, mut mean, mut rstd) =
        ([0.0f64; 6], [1.0, 2.0, 3.0, 4.0, 5.0, 7.0], [0.0; 2], [0.0; 2]);
    let forward = LayerNormForward::<Cpu<f64>> {
        y: &mut y,
        z: &mut z,
        residual: None,
        mean: &mut mean,
        rstd: &mut rstd,
        gamma: &[1.0; 3],
        beta: &[0.0; 3],
        eps: 0.0,
        dropout: dropout(0.0, &[]),
    };
    Cpu::<f64>::new().layernorm_forward(forward).unwrap();
    assert_eq!(mean[0], 2.0);
    assert!((y[2] - 1.5f64.sqrt()).abs() < 1e-15);
}
