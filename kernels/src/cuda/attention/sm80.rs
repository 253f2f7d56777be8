//! The launches of cu/attention_sm80.cu and cu/attention_sm80_backward.cu: their constants.

use super::{Backward, MMA_HEAD};

pub const THREADS: usize = 128;
pub const QUERIES: usize = 128;
const KEYS: usize = 64;
/// Bytes of a row of a head.
const ROW: usize = 2 * MMA_HEAD;
/// Two times two tiles of 64 rows, which are streamed.
const TILES: usize = 4 * 64 * ROW;
pub const FORWARD_SHARED: usize = QUERIES * ROW + TILES;
/// `struct QueryTile`.
const QUERY_TILE: usize = 4 * 64 * (2 + 4 * 4);

pub fn backward(drops: bool) -> Backward {
    let [dq, dkv] = match drops {
        true => ["attention_sm80_dq_dropout_bf16", "attention_sm80_dkv_dropout_bf16"],
        false => ["attention_sm80_dq_bf16", "attention_sm80_dkv_bf16"],
    };
    Backward {
        dq,
        dkv,
        queries: QUERIES,
        keys: KEYS,
        threads: THREADS,
        dq_shared: 2 * QUERIES * ROW + TILES,
        dkv_shared: TILES + 2 * QUERY_TILE,
    }
}
