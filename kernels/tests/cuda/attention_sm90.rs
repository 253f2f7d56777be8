//! What attention's kernels for compute capability 9.0 do beyond those of older GPUs: items of several sizes in the order of the
//! lengths, one item after the other on the same blocks, tiles whose last rows are another sequence's.

use crate::attention::Attention;
use half::bf16;

/// Lengths of each number of tiles, and one more or one less than whole halves and blocks of queries.
#[test]
fn lengths_around_tiles() {
    for (n, p) in
        [63, 64, 65, 127, 128, 129, 257, 511, 512, 513].into_iter().zip([0.0, 0.1, 0.5].into_iter().cycle())
    {
        Attention::packed(&[n], 1, 64, p).check_forward::<bf16>();
    }
}

/// More items than the GPU has teams, so that teams go from one to the next, of every kind: whole ones, joined heads, an odd head alone.
#[test]
fn many_items() {
    let lengths: Vec<usize> = (0..40).map(|i| [130, 5, 64, 200, 1, 70, 128, 33][i % 8]).collect();
    for (heads, p) in [(12, 0.1), (11, 0.0)] {
        Attention::packed(&lengths, heads, 64, p).check_forward::<bf16>();
    }
    let sequences: Vec<(usize, usize)> = lengths.iter().map(|&n| (n.div_ceil(3), n)).collect();
    Attention::split(&sequences, 15, 64, 0.1).check_forward::<bf16>();
}

/// The sequences are sorted 512 at a time, and without queries they are passed over.
#[test]
fn many_sequences() {
    let lengths: Vec<usize> = (0..1100).map(|i| 1 + i * 7 % 5).collect();
    Attention::packed(&lengths, 1, 64, 0.1).check_forward::<bf16>();
    let sequences: Vec<(usize, usize)> = (0..1025).map(|i| (usize::from(i % 3 == 1), 2 + i % 2)).collect();
    Attention::split(&sequences, 1, 64, 0.0).check_forward::<bf16>();
}

/// Longer than the order of items tells apart, and than the tiles that are on their way at once.
#[test]
fn long_sequences() {
    Attention::split(&[(3, 2100), (70, 2500), (130, 600)], 1, 64, 0.1).check_forward::<bf16>();
}

/// Scores of later tiles are far above the largest of the first one: weights are taken again relative to those.
#[test]
fn references_that_are_left_behind() {
    for (factor, p) in [(8.0, 0.1), (40.0, 0.0)] {
        Attention::packed(&[257, 130, 520], 2, 64, p).with_factor(factor).check_forward::<bf16>();
    }
}
