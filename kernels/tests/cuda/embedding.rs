//! Embeddings.

use crate::check::{close, close_f32, cuda, noise, rounded, rounded_f32, row_keys};
use crate::side::*;
use half::bf16;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::{Element, Kind};
use std::ops::Range;

const POSITIONS: usize = 40;
const TYPES: usize = 3;

#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    h: usize,
    /// Rows of the word table; every third row of the batch is word 0.
    words: usize,
    p: f64,
    /// Elements that each buffer lies past an address that vectors may start at.
    past: usize,
}

/// Rows by value, in falling order of the values: no order is required.
#[derive(Debug, Clone)]
struct Grouped {
    ids: Vec<u32>,
    starts: Vec<u32>,
    rows: Vec<u32>,
}

impl Grouped {
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
}

/// What both sides get, rounded.
struct Inputs {
    tables: [Vec<f64>; 3],
    indices: [Vec<u32>; 3],
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
    grads: Vec<f64>,
}

impl Case {
    fn inputs<E: Element>(&self) -> Inputs {
        let (rows, h) = (0..self.rows as u32, self.h);
        let tokens = rows.clone().map(|r| if r % 3 == 0 { 0 } else { r * r % self.words as u32 });
        let sizes = [self.words, POSITIONS, TYPES];
        Inputs {
            tables: [0, 1, 2].map(|i| rounded::<E>(&noise(sizes[i] * h, 30 + i as u64))),
            indices: [
                tokens.collect(),
                rows.clone().map(|r| r % 37).collect(),
                rows.map(|r| if r % 5 == 3 { 2 } else { 0 }).collect(),
            ],
            gamma: rounded_f32(&noise(h, 33).iter().map(|x| x + 1.0).collect::<Vec<_>>()),
            beta: rounded_f32(&noise(h, 34)),
            dy: rounded::<E>(&noise(self.rows * h, 35)),
            grads: rounded_f32(&noise(self.ranges()[4].end + 1, 36)),
            keys: row_keys(self.rows),
        }
    }

    /// Of dword, dposition, dkind, dgamma, dbeta; as many elements past an aligned address as the buffers.
    fn ranges(&self) -> [Range<usize>; 5] {
        let mut end = self.past;
        [self.words, POSITIONS, TYPES, 1, 1].map(|rows| {
            end += rows * self.h;
            end - rows * self.h..end
        })
    }

    fn forward<B: Side>(&self, b: &B, inputs: &Inputs) -> Forward {
        let (n, past) = (self.rows * self.h, self.past);
        let [mut y, mut z] = [0; 2].map(|_| poison(b, n, past));
        let [mut mean, mut rstd] = [0; 2].map(|_| poison_accs(b, self.rows));
        let [word, position, kind] = [0, 1, 2].map(|i| elems(b, &inputs.tables[i], past));
        let [tokens, positions, types] = [0, 1, 2].map(|i| indices(b, &inputs.indices[i]));
        let [gamma, beta] = [&inputs.gamma, &inputs.beta].map(|v| accs(b, v));
        let keys = indices(b, &inputs.keys);
        b.embedding_forward(EmbeddingForward {
            y: y.at_mut(),
            z: z.at_mut(),
            mean: mean.at_mut(),
            rstd: rstd.at_mut(),
            tokens: tokens.at(),
            positions: positions.at(),
            types: types.at(),
            word: word.at(),
            position: position.at(),
            kind: kind.at(),
            gamma: gamma.at(),
            beta: beta.at(),
            eps: 1e-12,
            dropout: dropout(self.p, &keys),
        })
        .unwrap();
        Forward { y: read(b, &y), z: read(b, &z), mean: read_accs(b, &mean), rstd: read_accs(b, &rstd) }
    }

    fn backward<B: Side>(&self, b: &B, inputs: &Inputs, kept: &Forward) -> Backward {
        let [mut dy, z] = [&inputs.dy, &kept.z].map(|v| elems(b, v, self.past));
        let [mean, rstd, gamma, mut grads] =
            [&kept.mean, &kept.rstd, &inputs.gamma, &inputs.grads].map(|v| accs(b, v));
        let (keys, types) = (indices(b, &inputs.keys), indices(b, &inputs.indices[2]));
        let lists = [0, 1].map(|i| {
            let Grouped { ids, starts, rows } = Grouped::new(&inputs.indices[i]);
            [ids, starts, rows].map(|v| indices(b, &v))
        });
        let [by_token, by_position] = [0, 1].map(|i| {
            let [ids, starts, rows] = &lists[i];
            Groups::<B> { ids: ids.at(), starts: starts.at(), rows: rows.at() }
        });
        let [dword, dposition, dkind, dgamma, dbeta] = self.ranges();
        b.embedding_backward(EmbeddingBackward {
            dy: dy.at_mut(),
            z: z.at(),
            mean: mean.at(),
            rstd: rstd.at(),
            gamma: gamma.at(),
            types: types.at(),
            by_token,
            by_position,
            grads: grads.at_mut(),
            dword,
            dposition,
            dkind,
            dgamma,
            dbeta,
            dropout: dropout(self.p, &keys),
        })
        .unwrap();
        Backward { dz: read(b, &dy), grads: read_accs(b, &grads) }
    }

    /// The gradients of the tables when their rows are those of a dz that was rounded.
    fn tables(&self, inputs: &Inputs, dz: &[f64]) -> [Vec<f64>; 3] {
        let ranges = self.ranges();
        [0, 1, 2].map(|i| {
            let mut table = inputs.grads[ranges[i].clone()].to_vec();
            for (row, &to) in inputs.indices[i].iter().enumerate() {
                for c in 0..self.h {
                    table[to as usize * self.h + c] += dz[row * self.h + c];
                }
            }
            table
        })
    }

    fn check<E: Element>(&self) {
        let (cuda, oracle, inputs) = (cuda::<E>(), Cpu::<f64>::new(), self.inputs::<E>());
        // In f32 the roundings of the steps add up: of the sum, of the deviation from the mean, of xhat, of the products; those
        // of the mean and of rstd are the same for a whole row.
        let times = if E::KIND == Kind::F32 { 12.0 } else { 2.0 };
        let name = |what| format!("{what} of {self:?} in {:?}", E::KIND);

        let (exact, got) = (self.forward(&oracle, &inputs), self.forward(&cuda, &inputs));
        close::<E>(&name("y"), &got.y, &exact.y, times);
        assert_eq!(zeros(&got.y), zeros(&exact.y), "{}", name("the mask"));
        close::<E>(&name("z"), &got.z, &exact.z, 2.0);
        close_means(&name("mean"), &got.mean, &exact.mean);
        close_f32(&name("rstd"), &got.rstd, &exact.rstd, 16.0);
        assert_eq!(self.forward(&cuda, &inputs), got, "{}", name("a second forward"));

        // Backward takes what the oracle kept, rounded, so that it is tested alone.
        let Forward { z, mean, rstd, y } = exact;
        let kept = Forward { y, z: rounded::<E>(&z), mean: rounded_f32(&mean), rstd: rounded_f32(&rstd) };
        let (exact, got) = (self.backward(&oracle, &inputs, &kept), self.backward(&cuda, &inputs, &kept));
        close::<E>(&name("dz"), &got.dz, &exact.dz, times);
        let ranges = self.ranges();
        for (what, range) in ["dgamma", "dbeta"].into_iter().zip(&ranges[3..]) {
            close_f32(&name(what), &got.grads[range.clone()], &exact.grads[range.clone()], SUM);
        }
        // The tables take the rows of dz as they were rounded.
        let tables = self.tables(&inputs, &got.dz);
        for ((what, range), exact) in ["dword", "dposition", "dkind"].into_iter().zip(&ranges).zip(&tables) {
            close_f32(&name(what), &got.grads[range.clone()], exact, SUM);
        }
        let outside = |grads: &[f64]| [&grads[..self.past], &grads[ranges[4].end..]].concat();
        assert_eq!(outside(&got.grads), outside(&inputs.grads), "{}", name("gradients beside"));
        assert_eq!(self.backward(&cuda, &inputs, &kept), got, "{}", name("a second backward"));
    }
}

/// Groups of one row and of many chunks of the list, that end with a chunk and within; one group only.
fn cases() -> Vec<Case> {
    let case = |rows, h, words, p, past| Case { rows, h, words, p, past };
    vec![
        case(1, 30, 11, 0.0, 0),
        case(7, 64, 11, 0.1, 0),
        case(33, 96, 11, 0.5, 0),
        case(64, 128, 1, 0.1, 0),
        case(65, 30, 1, 0.1, 0),
        case(513, 264, 300, 0.1, 0),
        case(130, 768, 50, 0.1, 0),
        case(70, 1000, 50, 0.0, 0),
        case(160, 1024, 50, 0.1, 0),
        case(7, 1032, 5, 0.1, 0),
        case(70, 1536, 9, 0.1, 0),
        case(30, 2048, 9, 0.5, 0),
        case(33, 256, 11, 0.1, 1),
        case(3, 4096, 2, 0.1, 0),
        case(3, 4104, 2, 0.1, 0),
    ]
}

#[test]
fn in_f32() {
    cases().iter().for_each(Case::check::<f32>);
}

#[test]
fn in_bf16() {
    cases().iter().for_each(Case::check::<bf16>);
}
