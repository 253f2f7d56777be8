//! Every op refuses buffers of wrong lengths and indices out of range.

use crate::check::dropout;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::{Backend, Error, Result};

type B = Cpu<f32>;

/// Calls an op with right lengths, then with each of its arguments one element longer and one shorter.
fn each_wrong_length(args: usize, call: impl Fn(&dyn Fn(usize, usize) -> usize) -> Result<()>) {
    call(&|_, len| len).unwrap();
    for wrong in 0..args {
        for change in [1, usize::MAX] {
            let result = call(&|arg, len| if arg == wrong { len.wrapping_add(change) } else { len });
            assert!(
                matches!(result, Err(Error::Length { .. } | Error::Unsupported { .. })),
                "argument {wrong}"
            );
        }
    }
}

fn zeros(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

#[test]
fn embedding() {
    each_wrong_length(13, |n| {
        B::new().embedding_forward(EmbeddingForward::<B> {
            y: &mut zeros(n(0, 6)),
            z: &mut zeros(n(1, 6)),
            mean: &mut zeros(n(2, 2)),
            rstd: &mut zeros(n(3, 2)),
            tokens: &vec![0; n(4, 2)],
            positions: &vec![0; n(5, 2)],
            types: &vec![0; n(6, 2)],
            word: &zeros(n(7, 12)),
            position: &zeros(n(8, 9)),
            kind: &zeros(n(9, 6)),
            gamma: &zeros(n(10, 3)),
            beta: &zeros(n(11, 3)),
            eps: 1.0,
            dropout: dropout(0.5, &vec![0; n(12, 2)]),
        })
    });
    each_wrong_length(16, |n| {
        let rows = [8, 9].map(|at| (0..n(at, 2) as u32).collect::<Vec<u32>>());
        let starts = [10, 11].map(|at| [0, 2, 2][..n(at, 2)].to_vec());
        let groups = |i: usize| Groups::<B> { ids: &[1], starts: &starts[i], rows: &rows[i] };
        B::new().embedding_backward(EmbeddingBackward::<B> {
            dy: &mut zeros(n(0, 6)),
            z: &zeros(n(1, 6)),
            mean: &zeros(n(2, 2)),
            rstd: &zeros(n(3, 2)),
            gamma: &zeros(n(4, 3)),
            types: &vec![0; n(5, 2)],
            by_token: groups(0),
            by_position: groups(1),
            grads: &mut zeros(34),
            dword: 0..n(6, 12),
            dposition: 12..12 + n(7, 9),
            dkind: 21..21 + n(12, 6),
            dgamma: 27..27 + n(13, 3),
            dbeta: 30..30 + n(14, 3),
            dropout: dropout(0.5, &vec![0; n(15, 2)]),
        })
    });
}

#[test]
fn layernorm() {
    each_wrong_length(8, |n| {
        B::new().layernorm_forward(LayerNormForward::<B> {
            y: &mut zeros(n(0, 6)),
            z: &mut zeros(n(1, 6)),
            residual: Some(&zeros(n(2, 6))),
            mean: &mut zeros(n(3, 2)),
            rstd: &mut zeros(n(4, 2)),
            gamma: &zeros(n(5, 3)),
            beta: &zeros(n(6, 3)),
            eps: 1.0,
            dropout: dropout(0.5, &vec![0; n(7, 2)]),
        })
    });
    each_wrong_length(11, |n| {
        B::new().layernorm_backward(LayerNormBackward::<B> {
            dz: &mut zeros(n(0, 6)),
            dx: &mut zeros(n(1, 6)),
            dy: &zeros(n(2, 6)),
            z: &zeros(n(3, 6)),
            mean: &zeros(n(4, 2)),
            rstd: &zeros(n(5, 2)),
            gamma: &zeros(n(6, 3)),
            grads: &mut zeros(10),
            dgamma: 0..n(7, 3),
            dbeta: 3..3 + n(8, 3),
            dbias: Some(6..6 + n(9, 3)),
            dropout: dropout(0.5, &vec![0; n(10, 2)]),
        })
    });
}

#[test]
fn linear() {
    let size = LinearSize { rows: 2, inputs: 3, outputs: 4 };
    each_wrong_length(4, |n| {
        let (x, w, bias) = (zeros(n(1, 6)), zeros(n(2, 12)), zeros(n(3, 4)));
        B::new().linear_forward(LinearForward::<B> {
            y: &mut zeros(n(0, 8)),
            x: &x,
            w: &w,
            bias: Some(&bias),
            size,
        })
    });
    each_wrong_length(3, |n| {
        let (dy, w) = (zeros(n(1, 8)), zeros(n(2, 12)));
        B::new().linear_dgrad(LinearDgrad::<B> {
            dx: &mut zeros(n(0, 6)),
            dy: &dy,
            w: &w,
            accumulate: false,
            size,
        })
    });
    each_wrong_length(3, |n| {
        let (dy, x) = (zeros(n(1, 8)), zeros(n(2, 6)));
        B::new().linear_wgrad(LinearWgrad::<B> {
            grads: &mut zeros(13),
            dw: 0..n(0, 12),
            dy: &dy,
            x: &x,
            size,
        })
    });
    each_wrong_length(2, |n| {
        let size = Size2 { rows: 2, cols: 4 };
        B::new().bias_grad(BiasGrad::<B> {
            grads: &mut zeros(5),
            dbias: 0..n(0, 4),
            dy: &zeros(n(1, 8)),
            size,
        })
    });
}

#[test]
fn linear_with_gelu() {
    let (size, kind) = (LinearSize { rows: 2, inputs: 3, outputs: 4 }, Gelu::Erf);
    each_wrong_length(5, |n| {
        let (x, w, bias) = (zeros(n(2, 6)), zeros(n(3, 12)), zeros(n(4, 4)));
        B::new().linear_gelu_forward(LinearGeluForward::<B> {
            y: &mut zeros(n(0, 8)),
            inner: &mut zeros(n(1, 8)),
            x: &x,
            w: &w,
            bias: &bias,
            kind,
            size,
        })
    });
    each_wrong_length(5, |n| {
        let (dy, w, inner) = (zeros(n(1, 8)), zeros(n(2, 12)), zeros(n(3, 6)));
        B::new().linear_gelu_dgrad(LinearGeluDgrad::<B> {
            dinner: &mut zeros(n(0, 6)),
            dy: &dy,
            w: &w,
            inner: &inner,
            kind,
            grads: &mut zeros(4),
            dbias: 0..n(4, 3),
            size,
        })
    });
}

#[test]
fn elementwise() {
    let kind = Gelu::Erf;
    each_wrong_length(2, |n| {
        B::new().gelu_forward(GeluForward::<B> { y: &mut zeros(n(0, 6)), x: &zeros(n(1, 6)), kind })
    });
    each_wrong_length(3, |n| {
        let (size, x) = (Size2 { rows: 2, cols: 3 }, zeros(n(1, 6)));
        let (mut dy, mut grads) = (zeros(n(0, 6)), zeros(4));
        B::new().gelu_backward(GeluBackward::<B> {
            dy: &mut dy,
            x: &x,
            kind,
            grads: &mut grads,
            dbias: 0..n(2, 3),
            size,
        })
    });
    each_wrong_length(2, |n| {
        B::new().tanh_backward(TanhBackward::<B> { dy: &mut zeros(n(0, 6)), y: &zeros(n(1, 6)) })
    });
    each_wrong_length(3, |n| {
        let (x, rows) = (zeros(n(1, 9)), vec![1; n(2, 2)]);
        B::new().gather_rows(GatherRows::<B> { y: &mut zeros(n(0, 6)), x: &x, rows: &rows, cols: 3 })
    });
    each_wrong_length(3, |n| {
        let (y, rows) = (zeros(n(1, 6)), vec![1; n(2, 2)]);
        B::new().scatter_add_rows(ScatterAddRows::<B> { x: &mut zeros(n(0, 9)), y: &y, rows: &rows, cols: 3 })
    });
    each_wrong_length(3, |n| {
        let (mut logits, mut sums) = (zeros(n(0, 8)), zeros(n(2, 2)));
        let labels = vec![0; n(1, 2)];
        let (classes, stride, scale) = (3, 4, Some(1.0));
        let logits = &mut logits;
        B::new().cross_entropy(CrossEntropy::<B> {
            logits,
            labels: &labels,
            classes,
            stride,
            scale,
            sums: &mut sums,
        })
    });
}

/// Two sequences of 1 and 2 tokens, two heads of 2 elements.
fn size<'a>(cu_q: &'a [u32], cu_k: &'a [u32]) -> AttentionSize<'a, B> {
    AttentionSize::<B> { cu_q, cu_k, queries: 3, keys: 3, max_keys: 2, heads: 2, head_size: 2 }
}

#[test]
fn attention() {
    each_wrong_length(7, |n| {
        let (q, kv) = (zeros(n(2, 12)), zeros(n(3, 24)));
        B::new().attention_forward(AttentionForward::<B> {
            out: &mut zeros(n(0, 12)),
            lse: &mut zeros(n(1, 6)),
            qkv: Qkv::Split { q: &q, kv: &kv },
            size: size(&[0, 1, 3, 3][..n(4, 3)], &[0, 1, 3, 3][..n(5, 3)]),
            dropout: dropout(0.5, &vec![0; n(6, 3)]),
        })
    });
    each_wrong_length(6, |n| {
        B::new().attention_backward(AttentionBackward::<B> {
            dqkv: QkvGrad::<'_, B>::Packed(&mut zeros(n(0, 36))),
            dout: &zeros(n(1, 12)),
            qkv: Qkv::<'_, B>::Packed(&zeros(n(2, 36))),
            out: &zeros(n(3, 12)),
            lse: &zeros(n(4, 6)),
            size: size(&[0, 1, 3], &[0, 1, 3]),
            dropout: dropout(0.5, &vec![0; n(5, 3)]),
        })
    });
    each_wrong_length(2, |n| {
        let (mut dq, mut dkv, qkv) = (zeros(n(0, 12)), zeros(n(1, 24)), zeros(36));
        B::new().attention_backward(AttentionBackward::<B> {
            dqkv: QkvGrad::Split { dq: &mut dq, dkv: &mut dkv },
            dout: &zeros(12),
            qkv: Qkv::<'_, B>::Packed(&qkv),
            out: &zeros(12),
            lse: &zeros(6),
            size: size(&[0, 1, 3], &[0, 1, 3]),
            dropout: dropout(0.0, &[]),
        })
    });
}

#[test]
fn attention_offsets() {
    let message = |cu_q: &[u32], cu_k: &[u32]| {
        let (mut out, mut lse, qkv) = (zeros(12), zeros(6), zeros(36));
        let args = AttentionForward::<B> {
            out: &mut out,
            lse: &mut lse,
            qkv: Qkv::<'_, B>::Packed(&qkv),
            size: size(cu_q, cu_k),
            dropout: dropout(0.0, &[]),
        };
        B::new().attention_forward(args).unwrap_err().to_string()
    };
    assert_eq!(message(&[], &[]), "attention_forward: `cu_q` is empty, expected offsets from 0 to 3");
    assert_eq!(
        message(&[0, 1, 4], &[0, 1, 3]),
        "attention_forward: `cu_q` goes from 0 to 4, expected from 0 to 3"
    );
    assert_eq!(
        message(&[0, 1, 3, 2, 3], &[0, 1, 2, 3, 3]),
        "attention_forward: `cu_q[3]` is 2, below its predecessor"
    );
    assert_eq!(message(&[0, 3], &[0, 3]), "attention_forward: sequence 0 has 3 keys, more than `max_keys` 2");
    assert_eq!(
        message(&[0, 1, 2, 3], &[0, 1, 1, 3]),
        "attention_forward: sequence 1 has 1 queries and no keys"
    );
}

#[test]
fn optimizers() {
    let tensors = |len: usize| [TensorSpan { range: 0..len, decay: true }];
    let hyper = OptimizerHyper {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-6,
        weight_decay: 0.0,
        max_norm: 1.0,
        clip_eps: 0.0,
    };
    for op in ["adamw", "lamb_moments", "lamb_apply"] {
        each_wrong_length(if op == "adamw" { 6 } else { 7 }, |n| {
            let mut weights = B::new().weights(n(0, 4)).unwrap();
            let (grads, mut m, mut v, norm) =
                (zeros(n(1, 4)), zeros(n(2, 4)), zeros(n(3, 4)), zeros(n(4, 1)));
            let (weights, m, v, tensors) = (&mut weights, &mut m[..], &mut v[..], tensors(4));
            let (norm, tensors, updates) = (&norm[..], &tensors[..], &mut vec![0; n(5, 1)][..]);
            let (grads, shard) = (&grads[..], 0..4);
            let step = OptimizerStep::<B> { weights, grads, m, v, norm, updates, shard, tensors, hyper };
            match op {
                "adamw" => B::new().adamw(step),
                "lamb_moments" => B::new().lamb_moments(step, &mut vec![0.0; n(6, 2)]),
                _ => B::new().lamb_apply(step, &vec![0.0; n(6, 2)]),
            }
        });
    }
    each_wrong_length(1, |n| B::new().square_sums(&mut vec![0.0; n(0, 1)], &[1.0; 3]));
    each_wrong_length(1, |n| B::new().clip(&mut zeros(3), &zeros(n(0, 1)), 1.0));
    each_wrong_length(2, |n| B::new().find_nonfinite(&mut zeros(n(0, 2)), &zeros(3), &zeros(n(1, 1))));
    each_wrong_length(1, |n| B::new().root_of_sum(&mut zeros(n(0, 1)), &[1.0; 3]));
}

#[test]
fn indices() {
    let (mut y, x) = (zeros(6), zeros(9));
    let args = GatherRows::<B> { y: &mut y, x: &x, rows: &[2, 3], cols: 3 };
    assert_eq!(
        B::new().gather_rows(args).unwrap_err().to_string(),
        "gather_rows: `rows[1]` is 3, expected below 3"
    );
    let (mut x, y) = (zeros(9), zeros(6));
    let args = ScatterAddRows::<B> { x: &mut x, y: &y, rows: &[7, 0], cols: 3 };
    assert_eq!(
        B::new().scatter_add_rows(args).unwrap_err().to_string(),
        "scatter_add_rows: `rows[0]` is 7, expected below 3"
    );
    for (token, position, kind, name) in
        [(4, 0, 0, "`tokens[0]` is 4"), (0, 3, 0, "`positions[0]` is 3"), (0, 0, 2, "`types[0]` is 2")]
    {
        let args = EmbeddingForward::<B> {
            y: &mut zeros(3),
            z: &mut zeros(3),
            mean: &mut zeros(1),
            rstd: &mut zeros(1),
            tokens: &[token],
            positions: &[position],
            types: &[kind],
            word: &zeros(12),
            position: &zeros(9),
            kind: &zeros(6),
            gamma: &zeros(3),
            beta: &zeros(3),
            eps: 1.0,
            dropout: dropout(0.0, &[]),
        };
        let message = B::new().embedding_forward(args).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn memory() {
    let cpu = B::new();
    let mut mem = cpu.zeros::<u32>("numbers", 5).unwrap();
    cpu.upload(B::at_mut(&mut mem, 1..4), &[7, 8, 9]).unwrap();
    assert_eq!((B::len(&mem), B::at(&mem, 0..5)), (5, &[0, 7, 8, 9, 0][..]));
    cpu.clear(B::at_mut(&mut mem, 2..5)).unwrap();
    let mut host = [1; 5];
    cpu.download(B::at(&mem, 0..5), &mut host).unwrap();
    assert_eq!(host, [0, 7, 0, 0, 0]);
    assert!(cpu.upload(B::at_mut(&mut mem, 0..2), &[1]).is_err());
    assert!(cpu.download(B::at(&mem, 0..2), &mut host).is_err());
    let error = cpu.zeros::<u64>("a huge thing", usize::MAX / 16).err().unwrap().to_string();
    assert!(
        error.starts_with("cannot allocate") && error.contains("for a huge thing; free memory"),
        "{error}"
    );
    let mut weights = cpu.weights(3).unwrap();
    cpu.upload_weights(&mut weights, 1, &[1.5, 2.5]).unwrap();
    assert_eq!(B::weight(&weights, 0..3), B::master(&weights, 0..3));
    assert_eq!(B::weight(&weights, 0..3), [0.0, 1.5, 2.5]);
    assert!(cpu.upload_weights(&mut weights, 2, &[1.0, 2.0]).is_err());
    assert!(cpu.describe().starts_with("CPU, 32 bits, "));
}
