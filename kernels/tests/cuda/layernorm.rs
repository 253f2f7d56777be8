//! Dropout, residual and layernorm.

use crate::check::{close, close_f32, cuda, noise, rounded, rounded_f32, row_keys};
use crate::side::*;
use half::bf16;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::{Element, Kind};

#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    h: usize,
    residual: bool,
    p: f64,
    /// Elements that each buffer lies past an address that vectors may start at.
    past: usize,
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

#[derive(Debug, PartialEq)]
struct Forward {
    y: Vec<f64>,
    z: Vec<f64>,
    mean: Vec<f64>,
    rstd: Vec<f64>,
}

#[derive(Debug, PartialEq)]
struct Backward {
    dz: Vec<f64>,
    dx: Vec<f64>,
    /// dgamma, dbeta, dbias, with an element before and one after.
    grads: Vec<f64>,
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

    fn forward<B: Side>(&self, b: &B, inputs: &Inputs) -> Forward {
        let (n, past) = (self.rows * self.h, self.past);
        let (mut y, mut z) = (poison(b, n, past), elems(b, &inputs.x, past));
        let [mut mean, mut rstd] = [0; 2].map(|_| poison_accs(b, self.rows));
        let (residual, keys) = (elems(b, &inputs.residual, past), indices(b, &inputs.keys));
        let [gamma, beta] = [&inputs.gamma, &inputs.beta].map(|v| accs(b, v));
        b.layernorm_forward(LayerNormForward {
            y: y.at_mut(),
            z: z.at_mut(),
            residual: self.residual.then(|| residual.at()),
            mean: mean.at_mut(),
            rstd: rstd.at_mut(),
            gamma: gamma.at(),
            beta: beta.at(),
            eps: 1e-12,
            dropout: dropout(self.p, &keys),
        })
        .unwrap();
        Forward { y: read(b, &y), z: read(b, &z), mean: read_accs(b, &mean), rstd: read_accs(b, &rstd) }
    }

    fn backward<B: Side>(&self, b: &B, inputs: &Inputs, kept: &Forward) -> Backward {
        let (n, h, past) = (self.rows * self.h, self.h, self.past);
        let [mut dz, mut dx] = [0; 2].map(|_| poison(b, n, past));
        let [dy, z] = [&inputs.dy, &kept.z].map(|v| elems(b, v, past));
        let [mean, rstd, gamma, mut grads] =
            [&kept.mean, &kept.rstd, &inputs.gamma, &inputs.grads].map(|v| accs(b, v));
        let keys = indices(b, &inputs.keys);
        b.layernorm_backward(LayerNormBackward {
            dz: dz.at_mut(),
            dx: dx.at_mut(),
            dy: dy.at(),
            z: z.at(),
            mean: mean.at(),
            rstd: rstd.at(),
            gamma: gamma.at(),
            grads: grads.at_mut(),
            dgamma: span(1, h),
            dbeta: span(1 + h, h),
            dbias: self.residual.then(|| span(1 + 2 * h, h)),
            dropout: dropout(self.p, &keys),
        })
        .unwrap();
        Backward { dz: read(b, &dz), dx: read(b, &dx), grads: read_accs(b, &grads) }
    }

    fn check<E: Element>(&self) {
        let (cuda, oracle, inputs) = (cuda::<E>(), Cpu::<f64>::new(), self.inputs::<E>());
        // In f32 the roundings of the steps add up: of x scaled, of the deviation from the mean, of xhat, of the products; those
        // of the mean and of rstd are the same for a whole row.
        let times = if E::KIND == Kind::F32 { 12.0 } else { 2.0 };
        let name = |what| format!("{what} of {self:?} in {:?}", E::KIND);

        let (exact, got) = (self.forward(&oracle, &inputs), self.forward(&cuda, &inputs));
        close::<E>(&name("y"), &got.y, &exact.y, times);
        close::<E>(&name("z"), &got.z, &exact.z, times);
        close_means(&name("mean"), &got.mean, &exact.mean);
        close_f32(&name("rstd"), &got.rstd, &exact.rstd, 16.0);
        assert_eq!(self.forward(&cuda, &inputs), got, "{}", name("a second forward"));

        // Backward takes what the oracle kept, rounded, so that it is tested alone.
        let Forward { z, mean, rstd, y } = exact;
        let kept = Forward { y, z: rounded::<E>(&z), mean: rounded_f32(&mean), rstd: rounded_f32(&rstd) };
        let (exact, got) = (self.backward(&oracle, &inputs, &kept), self.backward(&cuda, &inputs, &kept));
        close::<E>(&name("dz"), &got.dz, &exact.dz, times);
        close::<E>(&name("dx"), &got.dx, &exact.dx, times);
        assert_eq!(zeros(&got.dx), zeros(&exact.dx), "{}", name("the mask"));
        let h = self.h;
        for (i, what) in ["dgamma", "dbeta", "dbias"].into_iter().enumerate() {
            let at = span(1 + i * h, h);
            close_f32(&name(what), &got.grads[at.clone()], &exact.grads[at], SUM);
        }
        let around = [0, 3 * h + 1];
        assert_eq!(
            around.map(|i| got.grads[i]),
            around.map(|i| inputs.grads[i]),
            "{}",
            name("gradients beside")
        );
        assert_eq!(self.backward(&cuda, &inputs, &kept), got, "{}", name("a second backward"));
    }
}

/// Lengths that fill a warp's vectors and that do not, that fit no vector, that a block holds, that it does not; more rows than all
/// blocks take at once.
fn cases() -> Vec<Case> {
    let sizes = [
        (1, 30),
        (600, 30),
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
        (200, 1536),
        (70, 2040),
        (40, 2048),
        (9, 4096),
        (2, 4104),
        (1100, 768),
        (9000, 64),
    ];
    let both =
        |(rows, h)| [(true, 0.1), (false, 0.0)].map(|(residual, p)| Case { rows, h, residual, p, past: 0 });
    let more = [(7, 1024, 0.5, 0), (7, 1024, 0.1, 1), (7, 768, 0.5, 3), (7, 2048, 0.5, 1), (5, 1032, 0.5, 0)];
    let more = more.map(|(rows, h, p, past)| Case { rows, h, residual: true, p, past });
    sizes.into_iter().flat_map(both).chain(more).collect()
}

#[test]
fn in_f32() {
    cases().iter().for_each(Case::check::<f32>);
}

#[test]
fn in_bf16() {
    cases().iter().for_each(Case::check::<bf16>);
}
