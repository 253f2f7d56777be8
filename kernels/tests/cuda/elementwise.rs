//! GELU and tanh.

use crate::check::{close, close_f32, cuda, noise, rounded, rounded_f32};
use crate::side::*;
use half::bf16;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::{Element, Kind};

/// Sizes, the form, and how many elements each buffer lies past an address that vectors may start at.
#[derive(Debug, Clone, Copy)]
struct Case {
    size: Size2,
    kind: Gelu,
    past: usize,
}

/// Outputs of both directions; `grads` are the bias's with an element before and one after.
#[derive(Debug, PartialEq)]
struct Run {
    y: Vec<f64>,
    dx: Vec<f64>,
    grads: Vec<f64>,
}

impl Case {
    fn run<B: Side>(&self, b: &B, x: &[f64], dy: &[f64], grads: &[f64]) -> Run {
        let mut y = poison(b, x.len(), self.past);
        let (x, mut dy, mut grads) = (elems(b, x, self.past), elems(b, dy, self.past), accs(b, grads));
        b.gelu_forward(GeluForward { y: y.at_mut(), x: x.at(), kind: self.kind }).unwrap();
        b.gelu_backward(GeluBackward {
            dy: dy.at_mut(),
            x: x.at(),
            kind: self.kind,
            grads: grads.at_mut(),
            dbias: span(1, self.size.cols),
            size: self.size,
        })
        .unwrap();
        Run { y: read(b, &y), dx: read(b, &dy), grads: read_accs(b, &grads) }
    }

    fn check<E: Element>(&self) {
        let Size2 { rows, cols } = self.size;
        let x = rounded::<E>(&noise(rows * cols, 50).iter().map(|x| 4.0 * x).collect::<Vec<_>>());
        let (dy, grads) = (rounded::<E>(&noise(rows * cols, 51)), rounded_f32(&noise(cols + 2, 52)));
        let (cuda, oracle) = (cuda::<E>(), Cpu::<f64>::new());
        let (exact, got) = (self.run(&oracle, &x, &dy, &grads), self.run(&cuda, &x, &dy, &grads));
        // In f32 the roundings of the exponent, of the exponential and of the quotient add up; the device's functions are off by
        // up to 2 units in the last place.
        let times = if E::KIND == Kind::F32 { 8.0 } else { 2.0 };
        let name = |what| format!("{what} of {self:?} in {:?}", E::KIND);
        close::<E>(&name("y"), &got.y, &exact.y, times);
        close::<E>(&name("dx"), &got.dx, &exact.dx, times);
        // The sums take dx as it is before it is rounded.
        close_f32(&name("dbias"), &got.grads[span(1, cols)], &exact.grads[span(1, cols)], SUM);
        let around = [0, cols + 1];
        assert_eq!(around.map(|i| got.grads[i]), around.map(|i| grads[i]), "{}", name("gradients beside"));
        assert_eq!(self.run(&cuda, &x, &dy, &grads), got, "{}", name("a second run"));
    }
}

fn cases() -> Vec<Case> {
    let sizes =
        [(1, 2), (7, 30), (33, 96), (513, 64), (130, 1000), (70, 1024), (33, 4096), (2, 4100), (1000, 8)];
    let kinds = [Gelu::Tanh, Gelu::Erf];
    let all = sizes.into_iter().flat_map(|(rows, cols)| kinds.map(|kind| (rows, cols, kind, 0)));
    let unaligned = kinds.map(|kind| (33, 96, kind, 1));
    let cases = all.chain(unaligned);
    cases.map(|(rows, cols, kind, past)| Case { size: Size2 { rows, cols }, kind, past }).collect()
}

#[test]
fn gelu_in_f32() {
    cases().iter().for_each(Case::check::<f32>);
}

#[test]
fn gelu_in_bf16() {
    cases().iter().for_each(Case::check::<bf16>);
}

/// Far out GELU is the identity or 0 and its slope 1 or 0; what is not finite stays so.
fn far_out<E: Element>(kind: Gelu) {
    let far = [20.0, 100.0, 1e4];
    let x: Vec<f64> = far.iter().flat_map(|&x| [x, -x]).chain([0.0, f64::NAN, f64::INFINITY]).collect();
    let x = rounded::<E>(&x);
    let case = Case { size: Size2 { rows: x.len(), cols: 1 }, kind, past: 0 };
    let Run { y, dx, grads } = case.run(&cuda::<E>(), &x, &vec![1.0; x.len()], &[0.0; 3]);
    for i in 0..2 * far.len() {
        let (want, slope) = if i % 2 == 0 { (x[i], 1.0) } else { (0.0, 0.0) };
        let off = (y[i] - want).abs() + (dx[i] - slope).abs();
        assert!(off < 1e-20, "{kind:?} of {} in {:?}: {} and {}", x[i], E::KIND, y[i], dx[i]);
    }
    assert_eq!((y[6], dx[6]), (0.0, 0.5));
    assert!(y[7].is_nan() && dx[7].is_nan() && y[8] == f64::INFINITY, "{:?}", &y[7..]);
    assert!(grads[1].is_nan());
}

#[test]
fn gelu_far_out() {
    for kind in [Gelu::Tanh, Gelu::Erf] {
        far_out::<f32>(kind);
        far_out::<bf16>(kind);
    }
}

fn tanh_run<B: Side>(b: &B, x: &[f64], dy: &[f64], kept: Option<&[f64]>, past: usize) -> [Vec<f64>; 2] {
    let mut y = elems(b, x, past);
    b.tanh_forward(TanhForward { y: y.at_mut() }).unwrap();
    let out = read(b, &y);
    let (y, mut dy) = (elems(b, kept.unwrap_or(&out), past), elems(b, dy, past));
    b.tanh_backward(TanhBackward { dy: dy.at_mut(), y: y.at() }).unwrap();
    [out, read(b, &dy)]
}

fn tanh<E: Element>() {
    for (n, past) in [(1, 0), (30, 0), (1000, 0), (8192, 0), (9001, 0), (1000, 3)] {
        let x = rounded::<E>(&noise(n, 53).iter().map(|x| 3.0 * x).collect::<Vec<_>>());
        let dy = rounded::<E>(&noise(n, 54));
        let y = rounded::<E>(&x.iter().map(|x| x.tanh()).collect::<Vec<_>>());
        let run = || tanh_run(&cuda::<E>(), &x, &dy, Some(&y), past);
        let (exact, got) = (tanh_run(&Cpu::<f64>::new(), &x, &dy, Some(&y), past), run());
        let times = if E::KIND == Kind::F32 { 4.0 } else { 2.0 };
        close::<E>(&format!("tanh of {n} in {:?}", E::KIND), &got[0], &exact[0], times);
        close::<E>(&format!("tanh's gradient of {n} in {:?}", E::KIND), &got[1], &exact[1], times);
        assert_eq!(run(), got, "a second run");
    }
}

#[test]
fn tanh_in_both() {
    tanh::<f32>();
    tanh::<bf16>();
}

#[test]
fn nothing_is_done_with_nothing() {
    let cuda = cuda::<bf16>();
    for (rows, cols) in [(0, 8), (8, 0)] {
        let case = Case { size: Size2 { rows, cols }, kind: Gelu::Tanh, past: 0 };
        let grads: Vec<f64> = vec![0.5; cols + 2];
        assert_eq!(case.run(&cuda, &[], &[], &grads), Run { y: vec![], dx: vec![], grads });
    }
    cuda.device().synchronize().unwrap();
}
