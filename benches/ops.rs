//! One op at a time at BERT-base shapes: `cargo bench --bench ops`. Products are reported in floating-point
//! operations, the rest in elements of the largest operand; `gemm` alone is the ceiling of the products.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gemm_common::Parallelism;
use kernels::Backend;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::philox::{DropoutRate, Stream};
use std::time::Duration;

type B = Cpu<f32>;

const H: usize = 768;
const F: usize = 3072;
const HEADS: usize = 12;
const ROWS: [usize; 2] = [512, 2048];

fn noise(len: usize) -> Vec<f32> {
    let mut stream = Stream::new(1, len as u64, 99);
    (0..len).map(|_| stream.uniform() as f32 - 0.5).collect()
}

fn dropout(row_keys: &[u32]) -> Dropout<'_, B> {
    Dropout::<B> { rate: DropoutRate::new(0.1), key: 7, site: 9, row_keys }
}

/// Runs `f` under one name, at `work` units an iteration.
fn bench(c: &mut Criterion, name: &str, size: usize, work: usize, mut f: impl FnMut()) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(work as u64));
    group.bench_function(BenchmarkId::from_parameter(size), |b| b.iter(&mut f));
    group.finish();
}

fn linear(c: &mut Criterion) {
    let cpu = B::new();
    for rows in ROWS {
        for (name, inputs, outputs) in [("qkv", H, 3 * H), ("out", H, H), ("ffn1", H, F), ("ffn2", F, H)] {
            let size = LinearSize { rows, inputs, outputs };
            let (x, w, bias) = (noise(rows * inputs), noise(outputs * inputs), noise(outputs));
            let (mut y, mut dx, mut dw) = (noise(rows * outputs), noise(rows * inputs), noise(w.len()));
            let work = 2 * rows * inputs * outputs;
            bench(c, &format!("gemm/{name}"), rows, work, || {
                // SAFETY: the lengths are those of the sizes
                unsafe {
                    // Transposed, so that the columns of the result are contiguous.
                    gemm_f32::gemm::f32::get_gemm_fn()(
                        outputs,
                        rows,
                        inputs,
                        y.as_mut_ptr(),
                        outputs as isize,
                        1,
                        false,
                        w.as_ptr(),
                        1,
                        inputs as isize,
                        x.as_ptr(),
                        inputs as isize,
                        1,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        Parallelism::Rayon(0),
                    )
                }
            });
            bench(c, &format!("linear_forward/{name}"), rows, work, || {
                cpu.linear_forward(LinearForward::<B> { y: &mut y, x: &x, w: &w, bias: Some(&bias), size })
                    .unwrap();
            });
            bench(c, &format!("linear_dgrad/{name}"), rows, work, || {
                let args = LinearDgrad::<B> { dx: &mut dx, dy: &y, w: &w, accumulate: false, size };
                cpu.linear_dgrad(args).unwrap();
            });
            bench(c, &format!("linear_wgrad/{name}"), rows, work, || {
                let args = LinearWgrad::<B> { grads: &mut dw, dw: 0..outputs * inputs, dy: &y, x: &x, size };
                cpu.linear_wgrad(args).unwrap();
            });
        }
    }
}

fn layernorm(c: &mut Criterion) {
    let cpu = B::new();
    for rows in ROWS {
        let (x, gamma, keys) = (noise(rows * H), noise(H), (0..rows as u32).collect::<Vec<_>>());
        let (mut y, mut z, mut dx) = (x.clone(), x.clone(), x.clone());
        let (mut mean, mut rstd, mut grads) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; 3 * H]);
        bench(c, "layernorm_forward", rows, rows * H, || {
            cpu.layernorm_forward(LayerNormForward::<B> {
                y: &mut y,
                z: &mut z,
                residual: Some(&x),
                mean: &mut mean,
                rstd: &mut rstd,
                gamma: &gamma,
                beta: &gamma,
                eps: 1e-12,
                dropout: dropout(&keys),
            })
            .unwrap();
        });
        bench(c, "layernorm_backward", rows, rows * H, || {
            cpu.layernorm_backward(LayerNormBackward::<B> {
                dz: &mut y,
                dx: &mut dx,
                dy: &x,
                z: &z,
                mean: &mean,
                rstd: &rstd,
                gamma: &gamma,
                grads: &mut grads,
                dgamma: 0..H,
                dbeta: H..2 * H,
                dbias: Some(2 * H..3 * H),
                dropout: dropout(&keys),
            })
            .unwrap();
        });
    }
}

fn elementwise(c: &mut Criterion) {
    let cpu = B::new();
    for rows in ROWS {
        let (x, mut y, mut grads) = (noise(rows * F), noise(rows * F), vec![0.0; F]);
        let size = Size2 { rows, cols: F };
        for (name, kind) in [("tanh", Gelu::Tanh), ("erf", Gelu::Erf)] {
            bench(c, &format!("gelu_forward/{name}"), rows, x.len(), || {
                cpu.gelu_forward(GeluForward::<B> { y: &mut y, x: &x, kind }).unwrap();
            });
            let mut dy = noise(rows * F);
            bench(c, &format!("gelu_backward/{name}"), rows, x.len(), || {
                let grads = &mut grads[..];
                let args = GeluBackward::<B> { dy: &mut dy, x: &x, kind, grads, dbias: 0..F, size };
                cpu.gelu_backward(args).unwrap();
            });
        }
        bench(c, "bias_grad", rows, x.len(), || {
            cpu.bias_grad(BiasGrad::<B> { grads: &mut grads, dbias: 0..F, dy: &x, size }).unwrap();
        });
    }
}

/// `rows` tokens in sequences of `length`.
fn size(cu: &[u32], rows: usize, length: usize) -> AttentionSize<'_, B> {
    AttentionSize::<B> {
        cu_q: cu,
        cu_k: cu,
        queries: rows,
        keys: rows,
        max_keys: length,
        heads: HEADS,
        head_size: H / HEADS,
    }
}

fn attention(c: &mut Criterion) {
    let cpu = B::new();
    let rows = 2048;
    for length in [128, 512] {
        let qkv = noise(rows * 3 * H);
        let (mut out, mut lse, mut dqkv) = (vec![0.0; rows * H], vec![0.0; rows * HEADS], qkv.clone());
        let keys: Vec<u32> = (0..rows as u32).collect();
        let cu: Vec<u32> = (0..=rows).step_by(length).map(|n| n as u32).collect();
        let work = 4 * rows * length * H;
        bench(c, "attention_forward", length, work, || {
            cpu.attention_forward(AttentionForward::<B> {
                out: &mut out,
                lse: &mut lse,
                qkv: Qkv::Packed(&qkv[..]),
                size: size(&cu, rows, length),
                dropout: dropout(&keys),
            })
            .unwrap();
        });
        let dout = noise(rows * H);
        bench(c, "attention_backward", length, work * 5 / 2, || {
            cpu.attention_backward(AttentionBackward::<B> {
                dqkv: QkvGrad::Packed(&mut dqkv[..]),
                dout: &dout,
                qkv: Qkv::Packed(&qkv[..]),
                out: &out,
                lse: &lse,
                size: size(&cu, rows, length),
                dropout: dropout(&keys),
            })
            .unwrap();
        });
    }
}

fn loss(c: &mut Criterion) {
    let cpu = B::new();
    let (rows, classes) = (320, 30_528);
    let (mut logits, labels) = (noise(rows * classes), vec![5; rows]);
    let mut sums = [0.0; 2];
    bench(c, "cross_entropy", rows, logits.len(), || {
        let (logits, sums) = (&mut logits[..], &mut sums[..]);
        let args = CrossEntropy::<B> {
            logits,
            labels: &labels,
            classes: 30_522,
            stride: classes,
            scale: Some(0.1),
            sums,
        };
        cpu.cross_entropy(args).unwrap();
    });
}

fn optimizers(c: &mut Criterion) {
    let cpu = B::new();
    let len = 20 << 20;
    let mut weights = cpu.weights(len).unwrap();
    cpu.upload_weights(&mut weights, 0, &noise(len)).unwrap();
    let (grads, mut m, mut v, mut norm) = (noise(len), vec![0.0; len], vec![0.0; len], [0.0]);
    let mut squares = vec![0.0; len.div_ceil(STRETCH)];
    bench(c, "global_norm", len, len, || {
        cpu.square_sums(&mut squares, &grads).unwrap();
        cpu.root_of_sum(&mut norm, &squares).unwrap();
    });
    let hyper = OptimizerHyper {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-6,
        weight_decay: 0.01,
        max_norm: 1.0,
        clip_eps: 1e-6,
    };
    let tensors: Vec<_> = (0..len)
        .step_by(H * H)
        .map(|at| TensorSpan { range: at..len.min(at + H * H), decay: true })
        .collect();
    let mut sums = vec![0.0; lamb_sums(&tensors)];
    for lamb in [false, true] {
        bench(c, if lamb { "lamb" } else { "adamw" }, len, len, || {
            let mut updates = [9];
            let mut step = |op: &mut dyn FnMut(OptimizerStep<'_, B>) -> kernels::Result<()>| {
                let (weights, m, v, tensors) = (&mut weights, &mut m[..], &mut v[..], &tensors[..]);
                let (grads, norm, shard) = (&grads[..], &norm[..], 0..len);
                let updates = &mut updates[..];
                op(OptimizerStep { weights, grads, m, v, norm, updates, shard, tensors, hyper }).unwrap();
            };
            if lamb {
                step(&mut |args| cpu.lamb_moments(args, &mut sums));
                step(&mut |args| cpu.lamb_apply(args, &sums));
            } else {
                step(&mut |args| cpu.adamw(args));
            }
        });
    }
}

criterion_group!(ops, linear, layernorm, elementwise, attention, loss, optimizers);
criterion_main!(ops);
