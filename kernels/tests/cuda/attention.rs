use crate::check::*;
use half::bf16;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Element, Memory, Options, View};
use kernels::{Backend, Error, Scalar};

#[path = "attention_backward.rs"]
mod backward;

/// Attention over packed sequences of (queries, keys).
#[derive(Debug, Clone)]
pub struct Attention {
    sequences: Vec<(usize, usize)>,
    heads: usize,
    d: usize,
    p: f64,
    /// Queries in a buffer of their own.
    split: bool,
    /// Elements by which every buffer misses an address that is a multiple of 16 bytes.
    offset: usize,
    /// Queries, keys and values are up to this.
    factor: f64,
    /// A sequence whose queries, keys and values are all this number on the GPU, in one buffer.
    broken: Option<(usize, f64)>,
}

/// Scores of some units, so that weights differ by orders of magnitude.
const FACTOR: f64 = 2.5;

impl Attention {
    pub fn packed(lengths: &[usize], heads: usize, d: usize, p: f64) -> Self {
        let sequences = lengths.iter().map(|&n| (n, n)).collect();
        Self { sequences, heads, d, p, split: false, offset: 0, factor: FACTOR, broken: None }
    }

    pub fn split(sequences: &[(usize, usize)], heads: usize, d: usize, p: f64) -> Self {
        Self {
            sequences: sequences.to_vec(),
            heads,
            d,
            p,
            split: true,
            offset: 0,
            factor: FACTOR,
            broken: None,
        }
    }

    pub fn with_factor(self, factor: f64) -> Self {
        Self { factor, ..self }
    }

    fn queries(&self) -> usize {
        self.sequences.iter().map(|s| s.0).sum()
    }

    fn keys(&self) -> usize {
        self.sequences.iter().map(|s| s.1).sum()
    }

    fn hidden(&self) -> usize {
        self.heads * self.d
    }

    /// Offsets of queries and of keys.
    fn offsets(&self) -> [Vec<u32>; 2] {
        let mut offsets = [vec![0], vec![0]];
        for &(queries, keys) in &self.sequences {
            for (offsets, n) in offsets.iter_mut().zip([queries, keys]) {
                offsets.push(offsets[offsets.len() - 1] + n as u32);
            }
        }
        offsets
    }

    /// Query rows of a sequence.
    fn rows(&self, sequence: usize) -> std::ops::Range<usize> {
        let [cu_q, _] = self.offsets();
        cu_q[sequence] as usize..cu_q[sequence + 1] as usize
    }

    fn size<'a, B: Backend>(&self, cu_q: Indices<'a, B>, cu_k: Indices<'a, B>) -> AttentionSize<'a, B> {
        AttentionSize {
            cu_q,
            cu_k,
            queries: self.queries(),
            keys: self.keys(),
            max_keys: self.sequences.iter().map(|s| s.1).max().unwrap_or(0),
            heads: self.heads,
            head_size: self.d,
        }
    }

    /// Lengths of the buffers of queries, keys and values.
    fn lengths(&self) -> Vec<usize> {
        let h = self.hidden();
        if self.split { vec![self.queries() * h, self.keys() * 2 * h] } else { vec![self.keys() * 3 * h] }
    }

    /// Queries, keys and values, and the gradient of the output, as E holds them.
    fn inputs<E: Element>(&self) -> (Vec<Vec<f64>>, Vec<f64>) {
        let noise = |len, seed| rounded::<E>(&noise(len, seed));
        let scaled =
            |len, seed| rounded::<E>(&noise(len, seed).iter().map(|x| self.factor * x).collect::<Vec<_>>());
        let qkv = self.lengths().into_iter().zip(70..).map(|(len, seed)| scaled(len, seed)).collect();
        (qkv, noise(self.queries() * self.hidden(), 80))
    }

    /// The CPU's forward in T: outputs and log-sum-exps.
    fn host_forward<E: Element, T: Scalar>(&self) -> (Vec<f64>, Vec<f64>) {
        let ([cu_q, cu_k], row_keys) = (self.offsets(), row_keys(self.queries()));
        let qkv: Vec<Vec<T>> = self.inputs::<E>().0.iter().map(|x| cast(x)).collect();
        let mut out = cast::<T>(&vec![f64::NAN; self.queries() * self.hidden()]);
        let mut lse = cast::<T>(&vec![f64::NAN; self.queries() * self.heads]);
        let args = AttentionForward {
            out: &mut out[..],
            lse: &mut lse[..],
            qkv: host_qkv(&qkv),
            size: self.size(&cu_q[..], &cu_k[..]),
            dropout: cpu_dropout(self.p, &row_keys),
        };
        Cpu::<T>::new().attention_forward(args).unwrap();
        (uncast(&out), uncast(&lse))
    }

    /// The CPU's forward in T, and its backward from what E holds of `saved`, or else of its own forward.
    fn host<E: Element, T: Scalar>(&self, saved: Option<&Host>) -> Host {
        let ([cu_q, cu_k], row_keys, (qkv, dout)) =
            (self.offsets(), row_keys(self.queries()), self.inputs::<E>());
        let (qkv, dout) = (qkv.iter().map(|x| cast::<T>(x)).collect::<Vec<_>>(), cast(&dout));
        let (out, lse) = self.host_forward::<E, T>();
        let (saved_out, saved_lse) = saved.map_or((&out, &lse), |saved| (&saved.out, &saved.lse));
        let mut grads: Vec<Vec<T>> = qkv.iter().map(|x| cast(&vec![f64::NAN; x.len()])).collect();
        let dqkv = match &mut grads[..] {
            [dq, dkv] => QkvGrad::Split::<Cpu<T>> { dq, dkv },
            [dqkv] => QkvGrad::Packed(&mut dqkv[..]),
            _ => unreachable!(),
        };
        Cpu::<T>::new()
            .attention_backward(AttentionBackward {
                dqkv,
                dout: &dout,
                qkv: host_qkv(&qkv),
                out: &cast(&rounded::<E>(saved_out)),
                lse: &cast(&rounded_f32(saved_lse)),
                size: self.size(&cu_q[..], &cu_k[..]),
                dropout: cpu_dropout(self.p, &row_keys),
            })
            .unwrap();
        let grads = self.parts(&grads.iter().map(|x| uncast(x)).collect::<Vec<_>>());
        Host { out, lse, grads }
    }

    fn run<E: Element>(&self, exact: &Host) -> Run<E> {
        self.run_on(&cuda::<E>(), exact)
    }

    /// On the GPU, what both directions read.
    fn put<'c, E: Element>(&self, cuda: &'c Cuda<E>) -> Inputs<'c, E> {
        let [cu_q, cu_k] = self.offsets().map(|x| put(cuda, &x));
        let row_keys = put(cuda, &row_keys(self.queries()));
        let mut qkv = self.inputs::<E>().0;
        if let Some((sequence, value)) = self.broken {
            let rows = self.rows(sequence);
            qkv[0][rows.start * 3 * self.hidden()..rows.end * 3 * self.hidden()].fill(value);
        }
        let qkv = qkv.iter().map(|x| self.shifted(cuda, x)).collect();
        Inputs { cuda, cu_q, cu_k, row_keys, qkv, offset: self.offset }
    }

    fn shifted<E: Element>(&self, cuda: &Cuda<E>, values: &[f64]) -> Memory<E> {
        put_elems(cuda, &[vec![0.0; self.offset], values.to_vec()].concat())
    }

    /// Outputs and log-sum-exps.
    fn forward_of<E: Element>(&self, inputs: &Inputs<'_, E>) -> (Vec<E>, Vec<f32>) {
        let (cuda, queries) = (inputs.cuda, self.queries());
        let mut out = poisoned::<E, E>(cuda, queries * self.hidden() + self.offset);
        let mut lse = poisoned::<E, f32>(cuda, queries * self.heads);
        let args = AttentionForward {
            out: Cuda::<E>::at_mut(&mut out, self.offset..self.offset + queries * self.hidden()),
            lse: Cuda::<E>::at_mut(&mut lse, 0..queries * self.heads),
            qkv: inputs.layout(),
            size: self.size::<Cuda<E>>(all(&inputs.cu_q), all(&inputs.cu_k)),
            dropout: gpu_dropout::<E>(self.p, &inputs.row_keys),
        };
        cuda.attention_forward(args).unwrap();
        (get(cuda, &out).split_off(self.offset), get(cuda, &lse))
    }

    /// Forward, and backward from what the oracle saved.
    fn run_on<E: Element>(&self, cuda: &Cuda<E>, exact: &Host) -> Run<E> {
        let inputs = self.put(cuda);
        let (out, lse) = self.forward_of(&inputs);
        let (saved_out, saved_lse) = (self.shifted(cuda, &exact.out), put_f32(cuda, &exact.lse));
        let dout = self.shifted(cuda, &self.inputs::<E>().1);
        let mut grads: Vec<_> =
            self.lengths().into_iter().map(|len| poisoned::<E, E>(cuda, len + self.offset)).collect();
        let from = |memory: &Memory<E>| self.offset..memory_len(memory);
        let dqkv = match &mut grads[..] {
            [dq, dkv] => {
                let (q_range, kv_range) = (from(dq), from(dkv));
                QkvGrad::Split { dq: Cuda::<E>::at_mut(dq, q_range), dkv: Cuda::<E>::at_mut(dkv, kv_range) }
            }
            [dqkv] => {
                let range = from(dqkv);
                QkvGrad::Packed(Cuda::<E>::at_mut(dqkv, range))
            }
            _ => unreachable!(),
        };
        let args = AttentionBackward {
            dqkv,
            dout: inputs.at(&dout),
            qkv: inputs.layout(),
            out: inputs.at(&saved_out),
            lse: all(&saved_lse),
            size: self.size::<Cuda<E>>(all(&inputs.cu_q), all(&inputs.cu_k)),
            dropout: gpu_dropout::<E>(self.p, &inputs.row_keys),
        };
        cuda.attention_backward(args).unwrap();
        let host = |memory: &Memory<E>| get(cuda, memory).split_off(self.offset);
        Run { out, lse, grads: grads.iter().map(host).collect() }
    }

    /// Splits gradients into those of queries, keys and values.
    fn parts(&self, grads: &[Vec<f64>]) -> [Vec<f64>; 3] {
        let h = self.hidden();
        let columns = |x: &[f64], stride: usize, at: usize| -> Vec<f64> {
            x.chunks(stride).flat_map(|row| row[at..at + h].iter().copied()).collect()
        };
        match grads {
            [dq, dkv] => [dq.clone(), columns(dkv, 2 * h, 0), columns(dkv, 2 * h, h)],
            [x] => [0, h, 2 * h].map(|at| columns(x, 3 * h, at)),
            _ => unreachable!(),
        }
    }

    /// Outputs and log-sum-exps on the GPU, compared with the oracle's.
    pub fn check_forward<E: Element>(&self) -> (Vec<E>, Vec<f32>) {
        let (out, lse) = self.forward_of(&self.put(&cuda::<E>()));
        let (exact, single) = (self.host_forward::<E, f64>(), self.host_forward::<E, f32>());
        compare::<f32>(self, "lse", &wide(&lse), &exact.1, &single.1);
        compare::<E>(self, "out", &wide(&out), &exact.0, &single.0);
        (out, lse)
    }

    /// Both directions on the GPU, compared with the oracle's.
    pub fn check<E: Element>(&self) {
        self.check_on(&cuda::<E>());
    }

    pub fn check_on<E: Element>(&self, cuda: &Cuda<E>) {
        let exact = self.host::<E, f64>(None);
        let single = self.host::<E, f32>(Some(&exact));
        let run = self.run_on(cuda, &exact);
        let grads: Vec<Vec<f64>> = run.grads.iter().map(|x| wide(x)).collect();
        let [dq, dk, dv] = self.parts(&grads);
        compare::<f32>(self, "lse", &wide(&run.lse), &exact.lse, &single.lse);
        compare::<E>(self, "out", &wide(&run.out), &exact.out, &single.out);
        for (i, (what, got)) in [("dq", dq), ("dk", dk), ("dv", dv)].into_iter().enumerate() {
            compare::<E>(self, what, &got, &exact.grads[i], &single.grads[i]);
        }
    }
}

/// The rule: the error's norm is at most twice what rounding the exact answer to the output's type costs. Scores are sums of d
/// products and their errors grow in the exponential; so what the CPU's f32, which is as wide, is off by counts as well. The
/// tensor cores' weights and gradients of scores are bf16, too, which comes to 1.4 times the rounding of the result.
#[track_caller]
fn compare<E: Element>(op: &Attention, what: &str, got: &[f64], exact: &[f64], single: &[f64]) {
    assert!(exact.iter().all(|x| x.is_finite()), "{what} of {op:?}: the oracle is not finite");
    let cost = distance(&rounded::<E>(exact), exact) + distance(single, exact);
    let error = distance(got, exact);
    assert!(
        error <= 2.0 * cost,
        "{what} of {op:?} in {:?}: off by {error:.3e}, {:.2} times what rounding costs",
        E::KIND,
        error / cost
    );
}

/// The CPU's answers; gradients of queries, keys and values.
struct Host {
    out: Vec<f64>,
    lse: Vec<f64>,
    grads: [Vec<f64>; 3],
}

/// On the GPU.
struct Inputs<'c, E: Element> {
    cuda: &'c Cuda<E>,
    cu_q: Memory<u32>,
    cu_k: Memory<u32>,
    row_keys: Memory<u32>,
    qkv: Vec<Memory<E>>,
    offset: usize,
}

impl<E: Element> Inputs<'_, E> {
    fn at<'a>(&self, memory: &'a Memory<E>) -> View<'a, E> {
        Cuda::<E>::at(memory, self.offset..memory_len(memory))
    }

    fn layout(&self) -> Qkv<'_, Cuda<E>> {
        match &self.qkv[..] {
            [q, kv] => Qkv::Split { q: self.at(q), kv: self.at(kv) },
            _ => Qkv::Packed(self.at(&self.qkv[0])),
        }
    }
}

struct Run<E> {
    out: Vec<E>,
    lse: Vec<f32>,
    grads: Vec<Vec<E>>,
}

fn cast<T: Scalar>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

fn uncast<T: Scalar>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

fn host_qkv<T: Scalar>(buffers: &[Vec<T>]) -> Qkv<'_, Cpu<T>> {
    match buffers {
        [q, kv] => Qkv::Split::<Cpu<T>> { q, kv },
        _ => Qkv::Packed(&buffers[0][..]),
    }
}

fn wide<E: Element>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

fn all<T: bytemuck::Pod + Send + Sync>(memory: &Memory<T>) -> View<'_, T> {
    Cuda::<f32>::at(memory, 0..memory.len())
}

fn memory_len<E: Element>(memory: &Memory<E>) -> usize {
    memory.len()
}

/// Lengths around the edges of vectors, tiles and blocks.
pub const LENGTHS: [usize; 8] = [1, 63, 2, 64, 130, 65, 127, 257];

#[test]
fn any_head_size() {
    for (d, p) in [(1, 0.1), (8, 0.5), (30, 0.0), (64, 0.1), (80, 0.1), (128, 0.5)] {
        Attention::packed(&LENGTHS[..5], 2, d, p).check::<f32>();
        Attention::packed(&LENGTHS[3..6], 3, d, p).check::<bf16>();
    }
    Attention::packed(&LENGTHS[4..], 1, 30, 0.1).check::<bf16>();
    Attention::packed(&LENGTHS[4..], 1, 64, 0.0).check::<f32>();
}

#[test]
fn any_head_size_of_a_subset_of_queries() {
    for (d, p) in [(12, 0.0), (30, 0.5), (64, 0.1), (128, 0.1)] {
        let op = Attention::split(&[(1, 1), (2, 63), (0, 5), (33, 130), (65, 65)], 2, d, p);
        op.check::<f32>();
        op.check::<bf16>();
    }
}

#[test]
fn tensor_cores() {
    for p in [0.0, 0.1, 0.5] {
        Attention::packed(&LENGTHS, 1, 64, p).check::<bf16>();
    }
    Attention::packed(&[511, 512], 1, 64, 0.1).check::<bf16>();
    // The smallest and nearly the largest byte that divides kept from dropped.
    Attention::packed(&[66, 40], 2, 64, 0.004).check::<bf16>();
    Attention::packed(&[66, 40], 2, 64, 0.99).check::<bf16>();
    for (n, p) in LENGTHS.into_iter().zip([0.1, 0.0, 0.5, 0.0].into_iter().cycle()) {
        Attention::packed(&[n; 2], 3, 64, p).check::<bf16>();
    }
}

/// GPUs before compute capability 9.0 have kernels of their own.
#[test]
fn tensor_cores_of_older_gpus() {
    let Some(device) = older_device() else {
        println!("skipped: needs the emulator's second device");
        return;
    };
    let cuda = Cuda::<bf16>::new(device, Options { graph: false, ..Options::default() }).unwrap();
    let op = Attention::packed(&[257], 1, 64, 0.1);
    let [older, newer] = [&cuda, &self::cuda()].map(|cuda| op.forward_of(&op.put(cuda)).0);
    assert!(older != newer, "the same bits: these are not two kernels");
    for p in [0.0, 0.1, 0.5] {
        Attention::packed(&LENGTHS, 1, 64, p).check_on(&cuda);
        let sequences = [(1, 1), (0, 5), (66, 130), (17, 257), (129, 140)];
        Attention::split(&sequences, 2, 64, p).check_on(&cuda);
    }
}

#[test]
fn tensor_cores_with_a_subset_of_queries() {
    for p in [0.0, 0.1, 0.5] {
        let sequences = [(1, 1), (2, 63), (0, 5), (66, 130), (0, 70), (17, 257), (129, 140), (64, 64)];
        Attention::split(&sequences, 2, 64, p).check::<bf16>();
    }
}

/// A lone token's weight is 1 whatever its score: its gradients are what rounding leaves of a difference.
#[test]
fn lone_tokens() {
    for p in [0.0, 0.5] {
        Attention::packed(&[1; 50], 2, 64, p).check::<bf16>();
        Attention::packed(&[1; 50], 2, 30, p).check::<f32>();
    }
}

/// Keys that no query attends to have no gradient, and it is written.
#[test]
fn keys_without_queries() {
    for d in [64, 30] {
        let op = Attention::split(&[(0, 70), (3, 3), (0, 1)], 2, d, 0.1);
        let run = op.run::<bf16>(&op.host::<bf16, f64>(None));
        let row = 2 * op.hidden();
        let (before, after) = (&run.grads[1][..70 * row], &run.grads[1][73 * row..]);
        assert!(before.iter().chain(after).all(|x| x.to_f32() == 0.0), "head size {d}");
    }
}

/// Buffers that are not aligned take the kernels without tensor cores, element by element. The other kernels agree.
#[test]
fn both_paths_agree() {
    for op in [
        Attention::packed(&[65, 1, 130], 2, 64, 0.1),
        Attention::split(&[(3, 130), (0, 64), (70, 90)], 2, 64, 0.0),
    ] {
        let exact = op.host::<bf16, f64>(None);
        let shifted = Attention { offset: 1, ..op.clone() };
        shifted.check::<bf16>();
        shifted.check::<f32>();
        let (a, b) = (op.run::<bf16>(&exact), shifted.run::<bf16>(&exact));
        let grads = |run: &Run<bf16>| op.parts(&run.grads.iter().map(|x| wide(x)).collect::<Vec<_>>());
        let pairs = grads(&a).into_iter().zip(grads(&b)).zip(&exact.grads);
        for ((a, b), exact) in pairs.chain([((wide(&a.out), wide(&b.out)), &exact.out)]) {
            let cost = distance(&rounded::<bf16>(exact), exact);
            let apart = distance(&a, &b);
            assert!(apart <= 2.0 * cost, "{op:?}: {apart:.3e} apart, {:.2} times rounding", apart / cost);
            // They are two paths: one of them rounds the weights, too.
            assert!(apart > 0.0, "{op:?}: equal");
        }
    }
}

/// Tiles reach into the next sequence, whose keys have no weight and whose queries have results of their own: whatever they are.
#[test]
fn other_sequences_change_no_bit() {
    let cases =
        [([70, 5, 60], 64), ([130, 5, 7], 64), ([128, 129, 7], 64), ([200, 64, 65], 64), ([70, 5, 60], 30)];
    for ((lengths, d), value) in cases.into_iter().flat_map(|case| [(case, f64::NAN), (case, 300.0)]) {
        let whole = Attention::packed(&lengths, 2, d, 0.1);
        let broken = Attention { broken: Some((1, value)), ..whole.clone() };
        for device in [Some(device()), older_device()].into_iter().flatten() {
            let cuda = Cuda::<bf16>::new(device, Options { graph: false, ..Options::default() }).unwrap();
            let of = |op: &Attention| op.forward_of(&op.put(&cuda)).0;
            let (expected, got) = (of(&whole), of(&broken));
            for sequence in [0, 2] {
                let rows = whole.rows(sequence);
                let elements = rows.start * whole.hidden()..rows.end * whole.hidden();
                same_bits("out", &got[elements.clone()], &expected[elements]);
            }
        }
    }
}

/// The order of threads and blocks is another one at every launch.
#[test]
fn a_second_run_gives_the_same_bits() {
    fn rerun<E: Element>(op: &Attention) {
        let exact = op.host::<E, f64>(None);
        let (a, b) = (op.run::<E>(&exact), op.run::<E>(&exact));
        same_bits("out", &a.out, &b.out);
        same_bits("lse", &a.lse, &b.lse);
        for (a, b) in a.grads.iter().zip(&b.grads) {
            same_bits("gradients", a, b);
        }
    }
    rerun::<bf16>(&Attention::packed(&[130, 1, 257], 2, 64, 0.1));
    rerun::<bf16>(&Attention::split(&[(66, 130), (0, 64), (9, 63)], 2, 64, 0.1));
    rerun::<f32>(&Attention::packed(&[65, 130, 3], 2, 30, 0.1));
    rerun::<bf16>(&Attention::split(&[(66, 130), (0, 64), (9, 63)], 2, 128, 0.1));
}

/// Scores of some thousands would overflow without the subtraction of their maximum.
#[test]
fn large_scores_stay_finite() {
    fn finite<E: Element>(d: usize) {
        let op = Attention::packed(&[70, 5], 1, d, 0.1).with_factor(100.0);
        let run = op.run::<E>(&op.host::<E, f64>(None));
        let all = run.grads.iter().flatten().chain(&run.out).map(|x| x.to_f64());
        assert!(all.chain(run.lse.iter().map(|&x| x.into())).all(f64::is_finite), "head size {d}");
    }
    finite::<bf16>(64);
    finite::<bf16>(30);
    finite::<f32>(64);
}

#[test]
fn an_empty_batch_is_no_launch() {
    Attention::packed(&[], 2, 64, 0.1).check::<bf16>();
    Attention::split(&[], 2, 30, 0.1).check::<f32>();
}

#[test]
fn what_is_not_supported_is_told() {
    let cuda = cuda::<bf16>();
    let forward = |heads: usize, d: usize, queries: usize, keys: usize, len: usize| {
        let cu = put(&cuda, &[0u32, queries as u32]);
        let cu_k = put(&cuda, &[0u32, keys as u32]);
        let qkv = put_elems(&cuda, &vec![0.0; len]);
        let (mut out, mut lse) = (poisoned(&cuda, queries * heads * d), poisoned(&cuda, queries * heads));
        let row_keys = put(&cuda, &row_keys(queries));
        let size = AttentionSize {
            cu_q: all(&cu),
            cu_k: all(&cu_k),
            queries,
            keys,
            max_keys: keys,
            heads,
            head_size: d,
        };
        cuda.attention_forward(AttentionForward {
            out: Cuda::<bf16>::at_mut(&mut out, 0..queries * heads * d),
            lse: Cuda::<bf16>::at_mut(&mut lse, 0..queries * heads),
            qkv: Qkv::Packed(all(&qkv)),
            size,
            dropout: gpu_dropout(0.0, &row_keys),
        })
    };
    let told = |result: kernels::Result<()>, words: &str| {
        let told = result.unwrap_err().to_string();
        assert!(told.contains(words), "{told}");
    };
    forward(2, 64, 5, 5, 5 * 3 * 128).unwrap();
    told(forward(1, 136, 5, 5, 5 * 3 * 136), "a head size of 136: the GPU's kernels take up to 128");
    told(forward(2, 0, 5, 5, 0), "2 heads of 0 elements");
    told(forward(2, 64, 4, 5, 5 * 3 * 128), "4 queries and 5 keys in one packed buffer");
    assert!(matches!(forward(2, 64, 5, 5, 5 * 3 * 128 - 1), Err(Error::Length { arg: "qkv", .. })));
}

#[test]
fn the_path_is_told() {
    let told = cuda::<bf16>().remarks(32).concat();
    assert!(told.starts_with("attention runs without tensor cores") && told.ends_with("not 32"), "{told}");
    assert_eq!(cuda::<bf16>().remarks(64), Vec::<String>::new());
    assert_eq!(cuda::<f32>().remarks(32), Vec::<String>::new());
}
