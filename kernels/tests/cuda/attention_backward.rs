//! The backward of one pass, where the device has it: sequences around its blocks of 128 keys and tiles of 64 queries,
//! several heads and sequences for each block of threads, and the kernels that longer sequences take instead.

use super::*;

const LENGTHS: [usize; 11] = [1, 63, 64, 65, 127, 128, 129, 257, 511, 512, 40];

/// What backward takes besides the sizes: queries, keys and values, the gradient of the output, and what forward saved.
struct Saved {
    qkv: Vec<Vec<f64>>,
    dout: Vec<f64>,
    out: Vec<f64>,
    lse: Vec<f64>,
}

impl Attention {
    fn saved(&self, exact: &Host) -> Saved {
        let (qkv, dout) = self.inputs::<bf16>();
        Saved { qkv, dout, out: exact.out.clone(), lse: exact.lse.clone() }
    }

    /// Backward alone, on poisoned outputs.
    fn gradients(&self, cuda: &Cuda<bf16>, saved: &Saved) -> Vec<Vec<bf16>> {
        let [cu_q, cu_k] = self.offsets().map(|x| put(cuda, &x));
        let row_keys = put(cuda, &row_keys(self.queries()));
        let qkv: Vec<_> = saved.qkv.iter().map(|x| put_elems(cuda, x)).collect();
        let (dout, out, lse) =
            (put_elems(cuda, &saved.dout), put_elems(cuda, &saved.out), put_f32(cuda, &saved.lse));
        let mut grads: Vec<_> = qkv.iter().map(|x| poisoned::<bf16, bf16>(cuda, x.len())).collect();
        let dqkv = match &mut grads[..] {
            [dq, dkv] => {
                let lens = [dq.len(), dkv.len()];
                QkvGrad::Split {
                    dq: Cuda::<bf16>::at_mut(dq, 0..lens[0]),
                    dkv: Cuda::<bf16>::at_mut(dkv, 0..lens[1]),
                }
            }
            [dqkv] => {
                let len = dqkv.len();
                QkvGrad::Packed(Cuda::<bf16>::at_mut(dqkv, 0..len))
            }
            _ => unreachable!(),
        };
        let args = AttentionBackward {
            dqkv,
            dout: all(&dout),
            qkv: match &qkv[..] {
                [q, kv] => Qkv::Split { q: all(q), kv: all(kv) },
                _ => Qkv::Packed(all(&qkv[0])),
            },
            out: all(&out),
            lse: all(&lse),
            size: self.size::<Cuda<bf16>>(all(&cu_q), all(&cu_k)),
            dropout: gpu_dropout::<bf16>(self.p, &row_keys),
        };
        cuda.attention_backward(args).unwrap();
        grads.iter().map(|x| get(cuda, x)).collect()
    }

    fn check_backward(&self) {
        let exact = self.host::<bf16, f64>(None);
        let single = self.host::<bf16, f32>(Some(&exact));
        let grads = self.gradients(&cuda(), &self.saved(&exact));
        let grads = self.parts(&grads.iter().map(|x| wide(x)).collect::<Vec<_>>());
        for (i, what) in ["dq", "dk", "dv"].into_iter().enumerate() {
            compare::<bf16>(self, what, &grads[i], &exact.grads[i], &single.grads[i]);
        }
    }

    /// The kernels that backward takes.
    fn kernels(&self) -> Vec<&'static str> {
        let (cuda, exact) = (cuda::<bf16>(), self.host::<bf16, f64>(None));
        cuda.device().set_profile(true).unwrap();
        self.gradients(&cuda, &self.saved(&exact));
        let profile = cuda.device().profile().unwrap();
        cuda.device().set_profile(false).unwrap();
        let backward = profile.iter().filter(|op| op.name == "attention_backward");
        backward.flat_map(|op| &op.kernels).map(|k| k.name).collect()
    }
}

#[test]
fn the_longest_sequence_chooses_the_kernels() {
    if cuda::<bf16>().device().arch().0 != 9 {
        return println!("skipped: not of compute capability 9");
    }
    assert_eq!(Attention::packed(&[512, 3], 1, 64, 0.1).kernels(), ["attention_sm90_backward_dropout_bf16"]);
    assert_eq!(Attention::split(&[(2, 3)], 1, 64, 0.0).kernels(), ["attention_sm90_backward_bf16"]);
    // A batch without queries has gradients, too: zeros.
    for other in [Attention::packed(&[3, 513], 1, 64, 0.1), Attention::split(&[(0, 3)], 1, 64, 0.0)] {
        let kernels = other.kernels();
        assert!(kernels.iter().all(|name| name.starts_with("attention_sm80_d")), "{kernels:?}");
    }
}

#[test]
fn every_length() {
    for (n, p) in LENGTHS.into_iter().zip([0.1, 0.0, 0.5].into_iter().cycle()) {
        Attention::packed(&[n; 2], 2, 64, p).check_backward();
    }
    for p in [0.0, 0.1, 0.5] {
        Attention::packed(&LENGTHS, 1, 64, p).check_backward();
    }
    Attention::packed(&[513, 64, 1], 1, 64, 0.1).check_backward();
}

#[test]
fn every_length_with_a_subset_of_queries() {
    let sequences =
        [(1, 1), (2, 63), (0, 5), (66, 130), (0, 129), (17, 257), (129, 140), (64, 64), (70, 512), (65, 128)];
    for p in [0.0, 0.1, 0.5] {
        Attention::split(&sequences, 2, 64, p).check_backward();
    }
}

/// More heads of sequences than blocks run at once, and more than blocks take if each takes as many as it can.
#[test]
fn many_short_sequences() {
    let lengths: Vec<usize> = (0..24).map(|i| 1 + i * 31 % 97).chain([300, 129]).collect();
    Attention::packed(&lengths, 16, 64, 0.1).check_backward();
    let pairs: Vec<(usize, usize)> = (0..280).map(|i| (i % 3, 2 + i % 4)).collect();
    Attention::split(&pairs, 16, 64, 0.0).check_backward();
}

/// A sequence's gradients depend on no other sequence, whatever its block did before.
#[test]
fn alone_as_in_a_batch() {
    let lengths: Vec<usize> = (0..30).map(|i| [200, 7, 64, 385, 65][i % 5]).collect();
    let (heads, cuda) = (8, cuda::<bf16>());
    let op = Attention::packed(&lengths, heads, 64, 0.0);
    let saved = op.saved(&op.host::<bf16, f64>(None));
    let whole = op.gradients(&cuda, &saved);
    let hidden = op.hidden();
    for b in [0, 1, 7, 28] {
        let first: usize = lengths[..b].iter().sum();
        let rows = first..first + lengths[b];
        let part = |x: &[f64], columns: usize| x[rows.start * columns..rows.end * columns].to_vec();
        let alone = Saved {
            qkv: vec![part(&saved.qkv[0], 3 * hidden)],
            dout: part(&saved.dout, hidden),
            out: part(&saved.out, hidden),
            lse: saved.lse.chunks(op.queries()).flat_map(|head| part(head, 1)).collect(),
        };
        let grads = Attention::packed(&lengths[b..b + 1], heads, 64, 0.0).gradients(&cuda, &alone);
        same_bits("gradients", &grads[0], &whole[0][rows.start * 3 * hidden..rows.end * 3 * hidden]);
    }
}

/// The order of threads, copies and products is another one at every launch.
#[test]
fn a_second_run_gives_the_same_bits() {
    let packed = Attention::packed(&[130, 1, 257, 64, 512], 3, 64, 0.1);
    for op in [packed, Attention::split(&[(66, 130), (0, 64), (9, 63), (130, 400)], 3, 64, 0.5)] {
        let (cuda, saved) = (cuda(), op.saved(&op.host::<bf16, f64>(None)));
        let (a, b) = (op.gradients(&cuda, &saved), op.gradients(&cuda, &saved));
        for (a, b) in a.iter().zip(&b) {
            same_bits("gradients", a, b);
        }
    }
}
