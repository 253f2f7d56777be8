use crate::check::*;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::{Backend, Scalar};

/// Embeddings of `rows` tokens out of small tables.
#[derive(Debug)]
struct Embedding {
    rows: usize,
    h: usize,
    p: f64,
}

const WORDS: usize = 11;
const POSITIONS: usize = 40;
const TYPES: usize = 2;

struct Grouped {
    ids: Vec<u32>,
    starts: Vec<u32>,
    rows: Vec<u32>,
}

impl Grouped {
    /// In falling order of the values, as no order is required.
    fn new(values: &[u32]) -> Self {
        let mut grouped = Self { ids: vec![], starts: vec![0], rows: vec![] };
        for id in (0..=values.iter().copied().max().unwrap_or(0)).rev() {
            let at = grouped.rows.len();
            grouped.rows.extend((0..values.len() as u32).filter(|&row| values[row as usize] == id));
            if grouped.rows.len() > at {
                grouped.ids.push(id);
                grouped.starts.push(grouped.rows.len() as u32);
            }
        }
        grouped
    }

    fn groups<T: Scalar>(&self) -> Groups<'_, Cpu<T>> {
        Groups::<Cpu<T>> { ids: &self.ids, starts: &self.starts, rows: &self.rows }
    }
}

impl Embedding {
    fn indices(&self) -> [Vec<u32>; 3] {
        let rows = 0..self.rows as u32;
        [
            rows.clone().map(|r| r * r % (WORDS as u32 - 1)).collect(),
            rows.clone().map(|r| r % 37).collect(),
            rows.map(|r| u32::from(r % 5 == 3)).collect(),
        ]
    }
}

impl Op for Embedding {
    fn inputs(&self) -> Vec<Vec<f64>> {
        let h = self.h;
        let tables = [WORDS, POSITIONS, TYPES].map(|rows| noise(rows * h, 30 + rows as u64));
        tables.into_iter().chain([noise(h, 33), noise(h, 34)]).collect()
    }

    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run {
        let (rows, h, n) = (self.rows, self.h, self.rows * self.h);
        let [word, position, kind, gamma, beta] = [0, 1, 2, 3, 4].map(|i| cast::<T>(&inputs[i]));
        let [tokens, positions, types] = self.indices();
        let (mut y, mut z, mut mean, mut rstd) = (poison::<T>(n), poison(n), poison(rows), poison(rows));
        let (cpu, keys) = (Cpu::<T>::new(), row_keys(rows));
        cpu.embedding_forward(EmbeddingForward::<Cpu<T>> {
            y: &mut y,
            z: &mut z,
            mean: &mut mean,
            rstd: &mut rstd,
            tokens: &tokens,
            positions: &positions,
            types: &types,
            word: &word,
            position: &position,
            kind: &kind,
            gamma: &gamma,
            beta: &beta,
            eps: 1e-12,
            dropout: dropout(self.p, &keys),
        })
        .unwrap();
        let sizes = [WORDS, POSITIONS, TYPES, 1, 1].map(|rows| rows * h);
        let ends: Vec<usize> =
            sizes.iter().scan(0, |end, size| Some(std::mem::replace(end, *end + size))).collect();
        let range = |i: usize| ends[i]..ends[i] + sizes[i];
        let before = noise(sizes.iter().sum(), 35);
        let mut grads = cast::<T>(&before);
        let (by_token, by_position) = (Grouped::new(&tokens), Grouped::new(&positions));
        cpu.embedding_backward(EmbeddingBackward::<Cpu<T>> {
            dy: &mut cast::<T>(&self.dy(n)),
            z: &z,
            mean: &mean,
            rstd: &rstd,
            gamma: &gamma,
            types: &types,
            by_token: by_token.groups(),
            by_position: by_position.groups(),
            grads: &mut grads,
            dword: range(0),
            dposition: range(1),
            dkind: range(2),
            dgamma: range(3),
            dbeta: range(4),
            dropout: dropout(self.p, &keys),
        })
        .unwrap();
        let grads = minus(&wide(&grads), &before);
        Run { y: wide(&y), gradients: (0..5).map(|i| grads[range(i)].to_vec()).collect() }
    }
}

#[test]
fn gradients() {
    for (rows, h, p) in [(1, 17, 0.0), (9, 30, 0.0), (70, 17, 0.3), (5, 130, 0.1)] {
        finite_differences(&Embedding { rows, h, p });
    }
}

#[test]
fn f32_is_close() {
    single_precision(&Embedding { rows: 130, h: 99, p: 0.1 }, 20.0);
}

#[test]
fn threads_do_not_matter() {
    any_threads(&Embedding { rows: 1030, h: 300, p: 0.1 });
}
