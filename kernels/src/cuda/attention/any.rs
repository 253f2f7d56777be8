//! The launches of cu/attention_any.cu: its constants, and its shared memory in bytes.

use super::{Backward, Element, kernel};

pub const THREADS: usize = 128;
pub const ROWS: usize = 32;
const KEYS: usize = 64;
const QUERIES: usize = 32;
const DRAWS: usize = 64;

fn tile(rows: usize, d: usize) -> usize {
    4 * rows * (d.next_multiple_of(8) + 4)
}

fn scores(columns: usize) -> usize {
    4 * ROWS * (columns + 4)
}

pub fn forward_shared(d: usize) -> usize {
    tile(ROWS, d) + tile(KEYS, d) + scores(KEYS) + ROWS * DRAWS
}

pub fn backward<E: Element>(d: usize) -> Backward {
    Backward {
        dq: kernel!(E, "attention_any_dq"),
        dkv: kernel!(E, "attention_any_dkv"),
        queries: ROWS,
        keys: ROWS,
        threads: THREADS,
        dq_shared: 2 * tile(ROWS, d) + tile(KEYS, d) + scores(KEYS) + 4 * ROWS + ROWS * DRAWS,
        dkv_shared: 2 * tile(ROWS, d)
            + 2 * tile(QUERIES, d)
            + 2 * scores(QUERIES)
            + 2 * 4 * QUERIES
            + QUERIES * DRAWS,
    }
}
