//! Dropout, residual and layernorm.

use crate::check::*;
use half::bf16;
use kernels::Backend;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Element, Kind, Memory};

type Oracle = Cpu<f64>;

/// Sizes, whether there is a residual, the rate of dropout, and how many elements each buffer lies past an address that
/// vectors may start at.
#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    h: usize,
    residual: bool,
    p: f64,
    past: usize,
}

const EPS: f64 = 1e-12;

/// Outputs of both directions, widened.
#[derive(Debug, PartialEq)]
struct Outputs {
    y: Vec<f64>,
    z: Vec<f64>,
    mean: Vec<f64>,
    rstd: Vec<f64>,
    dz: Vec<f64>,
    dx: Vec<f64>,
    /// dgamma, dbeta, dbias, with what lay around and below them.
    grads: Vec<f64>,
}

/// What both sides get, rounded.
struct Inputs {
    x: Vec<f64>,
    residual: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    dy: Vec<f64>,
    grads: Vec<f64>,
    keys: Vec<u32>,
}

impl Case {
    fn inputs<E: Element>(&self) -> Inputs {
        let n = self.rows * self.h;
        let shifted = |len, seed| noise(len, seed).into_iter().map(|x| x + 1.0).collect::<Vec<_>>();
        Inputs {
            x: rounded::<E>(&noise(n, 1)),
            residual: rounded::<E>(&shifted(n, 2)),
            gamma: rounded_f32(&shifted(self.h, 3)),
            beta: rounded_f32(&noise(self.h, 4)),
            dy: rounded::<E>(&noise(n, 5)),
            grads: rounded_f32(&noise(3 * self.h + 2, 6)),
            keys: row_keys(self.rows),
        }
    }

    fn ranges(&self) -> [std::ops::Range<usize>; 3] {
        [0, 1, 2].map(|i| 1 + i * self.h..1 + (i + 1) * self.h)
    }

    fn exact(
        &self,
        inputs: &Inputs,
        z_of: impl Fn(&[f64]) -> Vec<f64>,
        statistics: impl Fn(&[f64]) -> Vec<f64>,
    ) -> Outputs {
        let (n, [dgamma, dbeta, dbias]) = (self.rows * self.h, self.ranges());
        let mut z = inputs.x.clone();
        let (mut y, mut mean, mut rstd) = (vec![0.0; n], vec![0.0; self.rows], vec![0.0; self.rows]);
        let cpu = Oracle::new();
        cpu.layernorm_forward(LayerNormForward::<Oracle> {
            y: &mut y,
            z: &mut z,
            residual: self.residual.then_some(&inputs.residual),
            mean: &mut mean,
            rstd: &mut rstd,
            gamma: &inputs.gamma,
            beta: &inputs.beta,
            eps: EPS,
            dropout: cpu_dropout(self.p, &inputs.keys),
        })
        .unwrap();
        let (mut dz, mut dx, mut grads) = (vec![0.0; n], vec![0.0; n], inputs.grads.clone());
        cpu.layernorm_backward(LayerNormBackward::<Oracle> {
            dz: &mut dz,
            dx: &mut dx,
            dy: &inputs.dy,
            z: &z_of(&z),
            mean: &statistics(&mean),
            rstd: &statistics(&rstd),
            gamma: &inputs.gamma,
            grads: &mut grads,
            dgamma,
            dbeta,
            dbias: Some(dbias),
            dropout: cpu_dropout(self.p, &inputs.keys),
        })
        .unwrap();
        Outputs { y, z, mean, rstd, dz, dx, grads }
    }

    /// Backward takes what forward kept according to the oracle, so that each is tested alone.
    fn run<E: Element>(&self, cuda: &Cuda<E>, inputs: &Inputs, exact: &Outputs) -> Outputs {
        let n = self.rows * self.h;
        let keys = put(cuda, &inputs.keys);
        let [x, residual, dy, kept] =
            [&inputs.x, &inputs.residual, &inputs.dy, &exact.z].map(|v| self.put_past(cuda, v));
        let [gamma, beta, means, rstds] =
            [&inputs.gamma, &inputs.beta, &exact.mean, &exact.rstd].map(|v| put_f32(cuda, v));
        let [mut y, mut dz, mut dx] = [0; 3].map(|_| poisoned::<E, E>(cuda, self.past + n));
        let [mut mean, mut rstd] = [0; 2].map(|_| poisoned::<E, f32>(cuda, self.rows));
        let (mut z, mut grads) = (x, put_f32(cuda, &inputs.grads));
        let part = self.past..self.past + n;
        cuda.layernorm_forward(LayerNormForward {
            y: Cuda::<E>::at_mut(&mut y, part.clone()),
            z: Cuda::<E>::at_mut(&mut z, part.clone()),
            residual: self.residual.then(|| Cuda::<E>::at(&residual, part.clone())),
            mean: Cuda::<E>::at_mut(&mut mean, 0..self.rows),
            rstd: Cuda::<E>::at_mut(&mut rstd, 0..self.rows),
            gamma: Cuda::<E>::at(&gamma, 0..self.h),
            beta: Cuda::<E>::at(&beta, 0..self.h),
            eps: EPS,
            dropout: gpu_dropout::<E>(self.p, &keys),
        })
        .unwrap();
        let [dgamma, dbeta, dbias] = self.ranges();
        let len = grads.len();
        cuda.layernorm_backward(LayerNormBackward {
            dz: Cuda::<E>::at_mut(&mut dz, part.clone()),
            dx: Cuda::<E>::at_mut(&mut dx, part.clone()),
            dy: Cuda::<E>::at(&dy, part.clone()),
            z: Cuda::<E>::at(&kept, part),
            mean: Cuda::<E>::at(&means, 0..self.rows),
            rstd: Cuda::<E>::at(&rstds, 0..self.rows),
            gamma: Cuda::<E>::at(&gamma, 0..self.h),
            grads: Cuda::<E>::at_mut(&mut grads, 0..len),
            dgamma,
            dbeta,
            dbias: Some(dbias),
            dropout: gpu_dropout::<E>(self.p, &keys),
        })
        .unwrap();
        let whole = |memory: &Memory<E>| get_elems(cuda, memory)[self.past..].to_vec();
        let (y, z, dz, dx) = (whole(&y), whole(&z), whole(&dz), whole(&dx));
        let (mean, rstd, grads) = (get_f32(cuda, &mean), get_f32(cuda, &rstd), get_f32(cuda, &grads));
        Outputs { y, z, mean, rstd, dz, dx, grads }
    }

    fn put_past<E: Element>(&self, cuda: &Cuda<E>, values: &[f64]) -> Memory<E> {
        put_elems(cuda, &[vec![0.0; self.past], values.to_vec()].concat())
    }

    fn check<E: Element>(&self) {
        let (cuda, inputs) = (cuda::<E>(), self.inputs::<E>());
        let exact = self.exact(&inputs, rounded::<E>, rounded_f32);
        let got = self.run(&cuda, &inputs, &exact);
        // In f32 the roundings of the steps add up: of the mean, of the deviation from it, of xhat, of the two products.
        let times = if E::KIND == Kind::F32 { 4.0 } else { 2.0 };
        let name = |what| format!("{what} of {self:?} in {:?}", E::KIND);
        close::<E>(&name("y"), &got.y, &exact.y, times);
        close::<E>(&name("z"), &got.z, &exact.z, 2.0);
        close_f32(&name("mean"), &got.mean, &exact.mean, 4.0);
        close_f32(&name("rstd"), &got.rstd, &exact.rstd, 4.0);
        close::<E>(&name("dz"), &got.dz, &exact.dz, times);
        close::<E>(&name("dx"), &got.dx, &exact.dx, times);
        let zero = |x: &[f64]| x.iter().map(|&x| x == 0.0).collect::<Vec<_>>();
        assert_eq!(zero(&got.dx), zero(&exact.dx), "{}", name("the mask"));
        for (what, range) in ["dgamma", "dbeta", "dbias"].into_iter().zip(self.ranges()) {
            close_f32(&name(what), &got.grads[range.clone()], &exact.grads[range], 4.0);
        }
        let ends = [0, 3 * self.h + 1];
        assert_eq!(
            ends.map(|i| got.grads[i]),
            ends.map(|i| inputs.grads[i]),
            "{}",
            name("beside the gradients")
        );
        assert_eq!(self.run(&cuda, &inputs, &exact), got, "{}", name("a second run"));
    }
}

fn cases() -> Vec<Case> {
    let sizes = [
        (1, 2),
        (513, 30),
        (130, 64),
        (513, 96),
        (7, 128),
        (130, 256),
        (33, 264),
        (7, 512),
        (130, 768),
        (33, 1000),
        (70, 1024),
        (7, 1032),
        (3, 2048),
        (2, 4096),
        (700, 1536),
    ];
    let both = |(rows, h)| {
        let [with, without] =
            [(true, 0.1, 0), (false, 0.0, 0)].map(|(residual, p, past)| Case { rows, h, residual, p, past });
        [with, without]
    };
    let more = [(7, 1024, 0.5, 0), (7, 1024, 0.1, 1), (7, 768, 0.5, 3)];
    let more = more.map(|(rows, h, p, past)| Case { rows, h, residual: true, p, past });
    sizes.into_iter().flat_map(both).chain(more).collect()
}

#[test]
fn f32() {
    cases().iter().for_each(Case::check::<f32>);
}

#[test]
fn in_bf16() {
    cases().iter().for_each(Case::check::<bf16>);
}
