//! Our own products on compute capability 9.0, alone and with GELU fused.

use crate::check::{close, close_f32, cuda, device, noise, older_device, rounded, rounded_f32, same_bits};
use crate::linear::{Choosing, given, sealed};
use crate::side::*;
use half::bf16;
use kernels::Backend;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Options, Tiles};

/// A linear layer, and what is done with it.
#[derive(Debug, Clone, Copy)]
struct Case {
    size: LinearSize,
    bias: bool,
    accumulate: bool,
    kind: Gelu,
}

/// All that the ops of a case make; `inner` and `dinner` are of GELU.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    inner: Vec<f64>,
    gelu: Vec<f64>,
    dinner: Vec<f64>,
    dbias: Vec<f64>,
}

/// Floats before a gradient in the table: an aligned place.
const BEFORE: usize = 8;

impl Case {
    fn new(i: usize, [rows, inputs, outputs]: [usize; 3]) -> Self {
        let size = LinearSize { rows, inputs, outputs };
        Self { size, bias: i.is_multiple_of(2), accumulate: i % 4 < 2, kind: [Gelu::Tanh, Gelu::Erf][i % 2] }
    }

    fn run<B: Side>(&self, b: &B) -> Run {
        let (size, kind) = (self.size, self.kind);
        let LinearSize { rows, inputs, outputs } = size;
        let values = |len, seed, times: f64| {
            rounded::<bf16>(&noise(len, seed).iter().map(|x| times * x).collect::<Vec<_>>())
        };
        let [x, w, dy] = [(rows * inputs, 60), (outputs * inputs, 61), (rows * outputs, 62)]
            .map(|(len, seed)| elems(b, &values(len, seed, 1.0), 0));
        let bias = elems(b, &values(outputs, 63, 1.0), 0);
        let mut y = poison(b, rows * outputs, 0);
        let with = self.bias.then(|| bias.at());
        b.linear_forward(LinearForward { y: y.at_mut(), x: x.at(), w: w.at(), bias: with, size }).unwrap();

        let before = values(rows * inputs, 64, 4.0);
        let mut dx = if self.accumulate { elems(b, &before, 0) } else { poison(b, rows * inputs, 0) };
        let (accumulate, out) = (self.accumulate, dx.at_mut());
        b.linear_dgrad(LinearDgrad { dx: out, dy: dy.at(), w: w.at(), accumulate, size }).unwrap();

        let table = rounded_f32(&noise(BEFORE + outputs * inputs + 3, 65));
        let mut grads = accs(b, &table);
        let dw = span(BEFORE, outputs * inputs);
        b.linear_wgrad(LinearWgrad { grads: grads.at_mut(), dw, dy: dy.at(), x: x.at(), size }).unwrap();

        let [mut inner, mut gelu] = [0; 2].map(|_| poison(b, rows * outputs, 0));
        let (kept, out) = (inner.at_mut(), gelu.at_mut());
        let (x, bias) = (x.at(), bias.at());
        b.linear_gelu_forward(LinearGeluForward { y: out, inner: kept, x, w: w.at(), bias, kind, size })
            .unwrap();

        // The input of another GELU, which both sides are given alike.
        let given = elems(b, &before, 0);
        let mut dinner = poison(b, rows * inputs, 0);
        let mut sums = accs(b, &rounded_f32(&noise(BEFORE + inputs + 3, 66)));
        b.linear_gelu_dgrad(LinearGeluDgrad {
            dinner: dinner.at_mut(),
            dy: dy.at(),
            w: w.at(),
            inner: given.at(),
            kind,
            grads: sums.at_mut(),
            dbias: span(BEFORE, inputs),
            size,
        })
        .unwrap();
        Run {
            y: read(b, &y),
            dx: read(b, &dx),
            dw: read_accs(b, &grads),
            inner: read(b, &inner),
            gelu: read(b, &gelu),
            dinner: read(b, &dinner),
            dbias: read_accs(b, &sums),
        }
    }

    fn check(&self, cuda: &Cuda<bf16>) {
        let (got, exact) = (self.run(cuda), self.run(&Cpu::<f64>::new()));
        let LinearSize { rows, inputs, outputs } = self.size;
        let name = |what| format!("{what} of {self:?}");
        // Each addition of a sum in f32 rounds, as a random walk.
        let walk = |terms: usize| 4.0 + 2.0 * (terms as f64).sqrt();
        close::<bf16>(&name("y"), &got.y, &exact.y, 2.0);
        close::<bf16>(&name("dx"), &got.dx, &exact.dx, 2.0);
        close_f32(&name("dw"), &got.dw, &exact.dw, walk(rows));
        close::<bf16>(&name("inner"), &got.inner, &exact.inner, 2.0);
        // GELU is taken of what is kept.
        let mut gelu = vec![0.0; got.inner.len()];
        Cpu::<f64>::new().gelu_forward(GeluForward { y: &mut gelu, x: &got.inner, kind: self.kind }).unwrap();
        close::<bf16>(&name("gelu"), &got.gelu, &gelu, 2.0);
        close::<bf16>(&name("dinner"), &got.dinner, &exact.dinner, 2.0);
        close_f32(&name("dbias"), &got.dbias, &exact.dbias, SUM + 2.0 * walk(outputs));
        let around = |all: &[f64], len: usize| [&all[..BEFORE], &all[BEFORE + len..]].concat();
        assert_eq!(
            around(&got.dw, inputs * outputs),
            around(&exact.dw, inputs * outputs),
            "{}",
            name("beside dw")
        );
        assert_eq!(around(&got.dbias, inputs), around(&exact.dbias, inputs), "{}", name("beside dbias"));
        assert_eq!(self.run(cuda), got, "{}", name("a second run"));
    }
}

/// A backend whose products are ours, or none where the device has no such kernels.
fn own(columns: usize, parts: usize) -> Option<Cuda<bf16>> {
    let device = device();
    if device.arch().0 != 9 {
        println!("skipped: {} has no kernels of our own for products", device.name());
        return None;
    }
    let tiles = Some(Tiles { columns, parts });
    Some(Cuda::new(device, Options { measure: false, own: tiles, ..Options::default() }).unwrap())
}

/// Names of the kernels that a case runs.
fn names(case: &Case, cuda: &Cuda<bf16>) -> Vec<&'static str> {
    cuda.device().set_profile(true).unwrap();
    case.run(cuda);
    let times = cuda.device().profile().unwrap();
    cuda.device().set_profile(false).unwrap();
    times.iter().flat_map(|op| op.kernels.iter().map(|kernel| kernel.name)).collect()
}

const SIZES: [[usize; 3]; 10] = [
    [1, 8, 8],
    [7, 64, 72],
    [64, 72, 256],
    [127, 256, 64],
    [128, 264, 264],
    [129, 8, 264],
    [300, 264, 72],
    [300, 72, 8],
    [65, 264, 256],
    [300, 256, 264],
];

#[test]
fn wide_tiles() {
    let Some(cuda) = own(256, 1) else { return };
    (0..).zip(SIZES).for_each(|(i, size)| Case::new(i, size).check(&cuda));
    (1..).zip(SIZES).for_each(|(i, size)| Case::new(i, size).check(&cuda));
}

#[test]
fn narrow_tiles() {
    let Some(cuda) = own(128, 1) else { return };
    (2..).zip(SIZES).for_each(|(i, size)| Case::new(i, size).check(&cuda));
    (3..).zip(SIZES).for_each(|(i, size)| Case::new(i, size).check(&cuda));
}

/// More tiles than multiprocessors: blocks take several, and the last group of rows is lower than the others.
#[test]
fn many_tiles() {
    let Some(cuda) = own(128, 1) else { return };
    Case::new(0, [18 * 128 + 70, 72, 8 * 128 + 8]).check(&cuda);
    Case::new(3, [18 * 128 + 1, 8 * 128 + 72, 72]).check(&cuda);
    let Some(cuda) = own(256, 1) else { return };
    Case::new(1, [18 * 128 + 70, 72, 8 * 256 + 8]).check(&cuda);
    Case::new(2, [18 * 128 + 1, 8 * 256 + 72, 72]).check(&cuda);
}

#[test]
fn sums_in_parts() {
    for (columns, parts) in [(256, 2), (128, 3), (256, 4)] {
        let Some(cuda) = own(columns, parts) else { return };
        Case::new(0, [300, 72, 264]).check(&cuda);
        Case::new(1, [1000, 264, 72]).check(&cuda);
        // Fewer steps than parts.
        Case::new(2, [100, 64, 64]).check(&cuda);
    }
}

#[test]
fn they_are_what_runs() {
    let case = Case { accumulate: false, ..Case::new(0, [130, 72, 136]) };
    for (columns, parts) in [(256, 1), (128, 2)] {
        let Some(cuda) = own(columns, parts) else { return };
        let mut want: Vec<String> = ["forward", "dgrad", "wgrad", "gelu_tanh_forward", "gelu_tanh_backward"]
            .iter()
            .map(|op| format!("gemm_{op}_{columns}"))
            .collect();
        want.extend((parts > 1).then(|| "gemm_add_parts".to_owned()));
        let names = names(&case, &cuda);
        assert!(want.iter().all(|name| names.contains(&name.as_str())), "{want:?} in {names:?}");
        assert!(!names.iter().any(|name| name.starts_with("linear_")), "{names:?}");
        let names = self::names(&Case { accumulate: true, ..case }, &cuda);
        assert!(names.contains(&format!("gemm_dgrad_add_{columns}").as_str()), "{names:?}");
        // Columns that are not of whole 16 bytes stay with cuBLASLt.
        let other = self::names(&Case::new(0, [33, 12, 20]), &cuda);
        assert!(!other.iter().any(|name| name.starts_with("gemm_")), "{other:?}");
    }
}

#[test]
fn devices_without_them_do_without() {
    let Some(device) = older_device() else { return };
    let own = Some(Tiles { columns: 256, parts: 1 });
    let cuda = Cuda::new(device, Options { own, ..Options::default() }).unwrap();
    let case = Case::new(0, [130, 72, 136]);
    case.check_products(&cuda);
    let names = names(&case, &cuda);
    assert!(!names.iter().any(|name| name.starts_with("gemm_")), "{names:?}");
}

/// Where nothing is fused the two ops are the single ones.
#[test]
fn apart_they_are_the_single_ops() {
    for kind in [Gelu::Tanh, Gelu::Erf] {
        let (cuda, case) = (cuda::<bf16>(), Case { kind, ..Case::new(0, [130, 72, 136]) });
        let Run { inner, y, gelu, .. } = case.run(&cuda);
        same_bits("inner", &inner, &y);
        let (x, mut out) = (elems(&cuda, &inner, 0), poison(&cuda, y.len(), 0));
        cuda.gelu_forward(GeluForward { y: out.at_mut(), x: x.at(), kind }).unwrap();
        same_bits("gelu", &gelu, &read(&cuda, &out));

        let Run { dx, dinner, dbias, .. } = Case { accumulate: false, ..case }.run(&cuda);
        let LinearSize { rows, inputs, .. } = case.size;
        let given = noise(rows * inputs, 64).iter().map(|x| 4.0 * x).collect::<Vec<_>>();
        let (mut dy, x) = (elems(&cuda, &dx, 0), elems(&cuda, &rounded::<bf16>(&given), 0));
        let mut grads = accs(&cuda, &rounded_f32(&noise(BEFORE + inputs + 3, 66)));
        cuda.gelu_backward(GeluBackward {
            dy: dy.at_mut(),
            x: x.at(),
            kind,
            grads: grads.at_mut(),
            dbias: span(BEFORE, inputs),
            size: Size2 { rows, cols: inputs },
        })
        .unwrap();
        same_bits("dinner", &dinner, &read(&cuda, &dy));
        same_bits("dbias", &dbias, &read_accs(&cuda, &grads));
    }
}

#[test]
fn they_are_measured_and_kept() {
    let case = Case::new(0, [130, 64, 72]);
    let measured = Choosing::<bf16>::new();
    let first = case.run(&measured.cuda);
    let text = measured.text();
    let fused = text.lines().filter(|line| line.contains(" gelu tanh ")).count();
    // The products, one with GELU each way, and what that is made of apart: forward with a bias and dgrad that does not add.
    let own = measured.cuda.device().arch().0 == 9;
    assert_eq!((text.lines().count(), fused), if own { (3 + 6, 2) } else { (3 + 4, 0) }, "{text}");
    let (again, said) = given::<bf16>(&text);
    assert_eq!(said, "");
    assert_eq!(case.run(&again), first, "with the same choices");
    // Another number of rows in the same bucket: nothing is measured.
    Case::new(0, [150, 64, 72]).check_products(&measured.cuda);
    assert_eq!(measured.text(), text);
}

#[test]
fn choices_decide_whether_they_run() {
    let Some(forced) = own(128, 1) else { return };
    let case = Case::new(0, [130, 64, 72]);
    let measured = Choosing::<bf16>::new();
    case.run(&measured.cuda);
    let with = |pick: &str| {
        let line = |line: &str| match line.split_once(": ") {
            Some((product, _)) => format!("{product}: {pick}"),
            None => line.to_owned(),
        };
        given::<bf16>(&sealed(&measured.text().lines().map(line).collect::<Vec<_>>().join("\n")))
    };
    let (cuda, said) = with("own 128 1");
    assert_eq!(said, "");
    assert_eq!(case.run(&cuda), case.run(&forced));
    // Tiles that there are no kernels of, and parts that a product has not: as if nothing had been chosen.
    for pick in ["own 64 1", "own 256 9", "own 256 0", "apart"] {
        let (cuda, said) = with(pick);
        assert_eq!(said, "");
        assert!(!names(&case, &cuda).iter().any(|name| name.starts_with("gemm_")), "{pick}");
        case.check_products(&cuda);
    }
}

impl Case {
    /// The products alone.
    fn check_products(&self, cuda: &Cuda<bf16>) {
        let (got, exact) = (self.run(cuda), self.run(&Cpu::<f64>::new()));
        close::<bf16>("y", &got.y, &exact.y, 2.0);
        close::<bf16>("dx", &got.dx, &exact.dx, 2.0);
    }
}
