//! Gathering and scattering rows, and the gradient of a bias.

use crate::check::{close, close_f32, cuda, noise, rounded, rounded_f32};
use crate::side::*;
use half::bf16;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::Element;

/// Every third of `3 rows` rows, and back; `past` an address that vectors may start at.
fn gather_and_scatter<B: Side>(
    b: &B,
    [rows, cols, past]: [usize; 3],
    x: &[f64],
    dy: &[f64],
) -> [Vec<f64>; 2] {
    let chosen: Vec<u32> = (0..rows as u32).rev().map(|r| 3 * r + 1).collect();
    let (mut table, chosen) = (elems(b, x, past), indices(b, &chosen));
    let mut y = poison(b, rows * cols, past);
    b.gather_rows(GatherRows { y: y.at_mut(), x: table.at(), rows: chosen.at(), cols }).unwrap();
    let dy = elems(b, dy, past);
    b.scatter_add_rows(ScatterAddRows { x: table.at_mut(), y: dy.at(), rows: chosen.at(), cols }).unwrap();
    [read(b, &y), read(b, &table)]
}

fn rows_of<E: Element>() {
    let sizes = [(0, 8), (1, 2), (7, 30), (130, 64), (513, 96), (33, 768), (7, 1000), (33, 1024), (3, 4096)];
    let sizes = sizes.map(|(rows, cols)| [rows, cols, 0]).into_iter().chain([[33, 96, 1]]);
    for size @ [rows, cols, _] in sizes {
        let name = format!("{size:?} in {:?}", E::KIND);
        let (x, dy) = (rounded::<E>(&noise(3 * rows * cols, 54)), rounded::<E>(&noise(rows * cols, 55)));
        let run = || gather_and_scatter(&cuda::<E>(), size, &x, &dy);
        let ([y, table], got) = (gather_and_scatter(&Cpu::<f64>::new(), size, &x, &dy), run());
        assert_eq!(got[0], y, "gather of {name}");
        close::<E>(&format!("scatter of {name}"), &got[1], &table, 2.0);
        for row in (0..3 * rows).filter(|row| row % 3 != 1) {
            assert_eq!(got[1][row * cols..][..cols], x[row * cols..][..cols], "row {row} of {name}");
        }
        assert_eq!(run(), got, "a second run of {name}");
    }
}

#[test]
fn gathered_and_scattered() {
    rows_of::<f32>();
    rows_of::<bf16>();
}

fn bias<B: Side>(b: &B, size: Size2, past: usize, dy: &[f64], grads: &[f64]) -> Vec<f64> {
    let (dy, mut grads) = (elems(b, dy, past), accs(b, grads));
    b.bias_grad(BiasGrad { grads: grads.at_mut(), dbias: span(1, size.cols), dy: dy.at(), size }).unwrap();
    read_accs(b, &grads)
}

fn bias_of<E: Element>() {
    let sizes =
        [(0, 3), (1, 2), (130, 2), (513, 30), (130, 96), (33, 768), (7, 3000), (3, 30528), (5000, 64)];
    for (rows, cols, past) in sizes.map(|(rows, cols)| (rows, cols, 0)).into_iter().chain([(130, 96, 1)]) {
        let name = format!("bias of {rows} rows of {cols}, {past} past, in {:?}", E::KIND);
        let (dy, grads) = (rounded::<E>(&noise(rows * cols, 56)), rounded_f32(&noise(cols + 2, 57)));
        let size = Size2 { rows, cols };
        let run = || bias(&cuda::<E>(), size, past, &dy, &grads);
        let (exact, got) = (bias(&Cpu::<f64>::new(), size, past, &dy, &grads), run());
        close_f32(&name, &got, &exact, SUM);
        assert_eq!((got[0], got[cols + 1]), (grads[0], grads[cols + 1]), "{name}: beside");
        assert_eq!(run(), got, "a second {name}");
    }
}

#[test]
fn gradient_of_a_bias() {
    bias_of::<f32>();
    bias_of::<bf16>();
}
