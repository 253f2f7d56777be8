//! Buffers of wrong lengths are refused in the CPU's words, before anything is launched.

use crate::check::cuda;
use crate::side::*;
use kernels::Result;
use kernels::backend::*;
use kernels::cpu::Cpu;

/// The length of argument `i`, given the right one.
type Length<'a> = &'a dyn Fn(usize, usize) -> usize;

/// Calls an op with right lengths, then with each argument one element longer and one shorter; all that it answered.
fn answers<B: Side>(b: &B, args: usize, op: fn(&B, Length<'_>) -> Result<()>) -> Vec<String> {
    op(b, &|_, len| len).unwrap();
    let wrong = (0..args).flat_map(|arg| [(arg, 1), (arg, usize::MAX)]);
    wrong
        .map(|(arg, change)| {
            let result = op(b, &|i, len| if i == arg { len.wrapping_add(change) } else { len });
            result.expect_err(&format!("argument {arg}")).to_string()
        })
        .collect()
}

/// Compares what both backends answer.
macro_rules! same_answers {
    ($($op:ident: $args:expr),* $(,)?) => {
        $(
            #[test]
            fn $op() {
                let (gpu, cpu) = (cuda::<f32>(), Cpu::<f32>::new());
                let want = answers(&cpu, $args, ops::$op);
                assert!(want.iter().all(|answer| answer.starts_with(stringify!($op))), "{want:?}");
                assert_eq!(answers(&gpu, $args, ops::$op), want);
            }
        )*
    };
}

same_answers! {
    layernorm_forward: 8,
    layernorm_backward: 11,
    embedding_forward: 13,
    embedding_backward: 15,
    linear_gelu_forward: 5,
    linear_gelu_dgrad: 5,
    gelu_forward: 2,
    gelu_backward: 3,
    tanh_backward: 2,
    gather_rows: 3,
    scatter_add_rows: 3,
    bias_grad: 2,
}

/// Each op on two rows of three columns, or so.
mod ops {
    use super::*;

    fn e<B: Side>(b: &B, len: usize) -> Buffer<B, B::Elem> {
        elems(b, &vec![0.0; len], 0)
    }
    fn a<B: Side>(b: &B, len: usize) -> Buffer<B, B::Acc> {
        accs(b, &vec![0.0; len])
    }
    fn i<B: Side>(b: &B, values: &[u32], len: usize) -> Buffer<B, u32> {
        indices(b, &values[..len])
    }

    pub fn layernorm_forward<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        b.layernorm_forward(LayerNormForward {
            y: e(b, n(0, 6)).at_mut(),
            z: e(b, n(1, 6)).at_mut(),
            residual: Some(e(b, n(2, 6)).at()),
            mean: a(b, n(3, 2)).at_mut(),
            rstd: a(b, n(4, 2)).at_mut(),
            gamma: a(b, n(5, 3)).at(),
            beta: a(b, n(6, 3)).at(),
            eps: 1.0,
            dropout: dropout(0.5, &i(b, &[0; 3], n(7, 2))),
        })
    }

    pub fn layernorm_backward<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        b.layernorm_backward(LayerNormBackward {
            dz: e(b, n(0, 6)).at_mut(),
            dx: e(b, n(1, 6)).at_mut(),
            dy: e(b, n(2, 6)).at(),
            z: e(b, n(3, 6)).at(),
            mean: a(b, n(4, 2)).at(),
            rstd: a(b, n(5, 2)).at(),
            gamma: a(b, n(6, 3)).at(),
            grads: a(b, 10).at_mut(),
            dgamma: 0..n(7, 3),
            dbeta: 3..3 + n(8, 3),
            // one longer reaches beyond the table
            dbias: Some(7..7 + n(9, 3)),
            dropout: dropout(0.5, &i(b, &[0; 3], n(10, 2))),
        })
    }

    pub fn embedding_forward<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        b.embedding_forward(EmbeddingForward {
            y: e(b, n(0, 6)).at_mut(),
            z: e(b, n(1, 6)).at_mut(),
            mean: a(b, n(2, 2)).at_mut(),
            rstd: a(b, n(3, 2)).at_mut(),
            tokens: i(b, &[0; 3], n(4, 2)).at(),
            positions: i(b, &[0; 3], n(5, 2)).at(),
            types: i(b, &[0; 3], n(6, 2)).at(),
            word: e(b, n(7, 12)).at(),
            position: e(b, n(8, 9)).at(),
            kind: e(b, n(9, 6)).at(),
            gamma: a(b, n(10, 3)).at(),
            beta: a(b, n(11, 3)).at(),
            eps: 1.0,
            dropout: dropout(0.5, &i(b, &[0; 3], n(12, 2))),
        })
    }

    pub fn embedding_backward<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        let ids = i(b, &[1], 1);
        let starts = [7, 8].map(|at| i(b, &[0, 2, 2], n(at, 2)));
        let rows = [9, 10].map(|at| i(b, &[0, 1, 1], n(at, 2)));
        let [by_token, by_position] =
            [0, 1].map(|at| Groups::<B> { ids: ids.at(), starts: starts[at].at(), rows: rows[at].at() });
        b.embedding_backward(EmbeddingBackward {
            dy: e(b, n(0, 6)).at_mut(),
            z: e(b, n(1, 6)).at(),
            mean: a(b, n(2, 2)).at(),
            rstd: a(b, n(3, 2)).at(),
            gamma: a(b, n(4, 3)).at(),
            types: i(b, &[0; 3], n(5, 2)).at(),
            by_token,
            by_position,
            grads: a(b, 34).at_mut(),
            dword: 0..n(6, 12),
            dposition: 12..12 + n(11, 9),
            dkind: 21..21 + n(12, 6),
            dgamma: 27..27 + n(13, 3),
            dbeta: 30..33,
            dropout: dropout(0.5, &i(b, &[0; 3], n(14, 2))),
        })
    }

    pub fn linear_gelu_forward<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        b.linear_gelu_forward(LinearGeluForward {
            y: e(b, n(0, 8)).at_mut(),
            inner: e(b, n(1, 8)).at_mut(),
            x: e(b, n(2, 6)).at(),
            w: e(b, n(3, 12)).at(),
            bias: e(b, n(4, 4)).at(),
            kind: Gelu::Tanh,
            size: LinearSize { rows: 2, inputs: 3, outputs: 4 },
        })
    }

    pub fn linear_gelu_dgrad<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        b.linear_gelu_dgrad(LinearGeluDgrad {
            dinner: e(b, n(0, 6)).at_mut(),
            dy: e(b, n(1, 8)).at(),
            w: e(b, n(2, 12)).at(),
            inner: e(b, n(3, 6)).at(),
            kind: Gelu::Erf,
            grads: a(b, 4).at_mut(),
            dbias: 0..n(4, 3),
            size: LinearSize { rows: 2, inputs: 3, outputs: 4 },
        })
    }

    pub fn gelu_forward<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        let (mut y, x) = (e(b, n(0, 6)), e(b, n(1, 6)));
        b.gelu_forward(GeluForward { y: y.at_mut(), x: x.at(), kind: Gelu::Erf })
    }

    pub fn gelu_backward<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        b.gelu_backward(GeluBackward {
            dy: e(b, n(0, 6)).at_mut(),
            x: e(b, n(1, 6)).at(),
            kind: Gelu::Tanh,
            grads: a(b, 4).at_mut(),
            dbias: 0..n(2, 3),
            size: Size2 { rows: 2, cols: 3 },
        })
    }

    pub fn tanh_backward<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        b.tanh_backward(TanhBackward { dy: e(b, n(0, 6)).at_mut(), y: e(b, n(1, 6)).at() })
    }

    pub fn gather_rows<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        let rows = i(b, &[1; 3], n(2, 2));
        let (mut y, x) = (e(b, n(0, 6)), e(b, n(1, 9)));
        b.gather_rows(GatherRows { y: y.at_mut(), x: x.at(), rows: rows.at(), cols: 3 })
    }

    pub fn scatter_add_rows<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        let rows = i(b, &[1, 2, 0], n(2, 2));
        let (mut x, y) = (e(b, n(0, 9)), e(b, n(1, 6)));
        b.scatter_add_rows(ScatterAddRows { x: x.at_mut(), y: y.at(), rows: rows.at(), cols: 3 })
    }

    pub fn bias_grad<B: Side>(b: &B, n: Length<'_>) -> Result<()> {
        let (mut grads, dy) = (a(b, 5), e(b, n(1, 8)));
        let size = Size2 { rows: 2, cols: 4 };
        b.bias_grad(BiasGrad { grads: grads.at_mut(), dbias: 0..n(0, 4), dy: dy.at(), size })
    }
}
