//! What the ops share: run-time dispatch to wide vectors, reductions of fixed order, dropout masks.

use crate::backend::Dropout;
use crate::cpu::Cpu;
use crate::error::{check_len, check_range};
use crate::philox::{DROPOUT, DropoutRate, M0, M1, W0, W1};
use crate::{Error, Result, Scalar};
use rayon::prelude::*;
use std::ops::Range;

/// Elements that loops over `[T; WIDE]` handle at once: a vector of 512 bits in `f32`.
pub const WIDE: usize = 16;
/// Elements of one task of an elementwise op.
pub const CHUNK: usize = 1 << 14;
/// Ops on fewer elements than this run on the calling thread: waking another one takes longer.
const SERIAL: usize = 1 << 14;
/// Most blocks of a reduction over rows.
const BLOCKS: usize = 64;

/// Runs `f` compiled for the widest vectors that the machine has. `f` and what it calls must be inlined to profit,
/// hence the macro `simd!`.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `simd!(|| …)`: [`dispatch`] of a closure that is always inlined. Left to itself the compiler may keep one copy of
/// a large closure, compiled without vectors.
macro_rules! simd {
    (|| $body:expr) => {
        $crate::cpu::math::dispatch(
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use simd;

/// Rows of one block. It depends on the number of rows alone, so that sums over blocks do not depend on the threads.
pub fn block_rows(rows: usize) -> usize {
    rows.div_ceil(BLOCKS).max(4)
}

/// Least number of tasks for one thread, where each has `elements`; for rayon's `with_min_len`.
pub fn grain(elements: usize) -> usize {
    SERIAL.div_ceil(elements.max(1))
}

/// A vector's worth of elements.
#[inline(always)]
pub fn vector<T>(x: &[T], at: usize) -> &[T; WIDE] {
    x[at..at + WIDE].try_into().expect("the slice has that length")
}

/// A vector's worth of elements.
#[inline(always)]
pub fn vector_mut<T>(x: &mut [T], at: usize) -> &mut [T; WIDE] {
    (&mut x[at..at + WIDE]).try_into().expect("the slice has that length")
}

/// Sum of `f` over a slice in a fixed order.
#[inline(always)]
pub fn sum<T: Scalar>(x: &[T], f: impl Fn(T) -> T) -> T {
    sum2(
        x,
        x,
        #[inline(always)]
        |x, _| f(x),
    )
}

/// Sum of `f` over pairs in a fixed order: two vectors of partial sums hide part of the addition's latency. (One array
/// of twice the length is not vectorized.)
#[inline(always)]
pub fn sum2<T: Scalar>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let (mut even, mut odd) = ([T::ZERO; WIDE], [T::ZERO; WIDE]);
    let (xs, ys) = (x.chunks_exact(2 * WIDE), y.chunks_exact(2 * WIDE));
    let (x_tail, y_tail) = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        let (x0, x1, y0, y1) = (vector(x, 0), vector(x, WIDE), vector(y, 0), vector(y, WIDE));
        for l in 0..WIDE {
            even[l] += f(x0[l], y0[l]);
        }
        for l in 0..WIDE {
            odd[l] += f(x1[l], y1[l]);
        }
    }
    for l in 0..WIDE {
        even[l] += odd[l];
    }
    for ((i, &x), &y) in x_tail.iter().enumerate().zip(y_tail) {
        even[i % WIDE] += f(x, y);
    }
    fold(
        even,
        #[inline(always)]
        |a, b| a + b,
    )
}

/// Combines the lanes of a vector pairwise.
#[inline(always)]
fn fold<T: Scalar>(x: [T; WIDE], f: impl Fn(T, T) -> T) -> T {
    let (mut eight, mut four) = ([T::ZERO; 8], [T::ZERO; 4]);
    for l in 0..8 {
        eight[l] = f(x[l], x[l + 8]);
    }
    for l in 0..4 {
        four[l] = f(eight[l], eight[l + 4]);
    }
    f(f(four[0], four[2]), f(four[1], four[3]))
}

/// The largest element, or `floor` if none is larger. NaNs are passed over.
#[inline(always)]
pub fn max<T: Scalar>(x: &[T], floor: T) -> T {
    let (mut even, mut odd) = ([floor; WIDE], [floor; WIDE]);
    let chunks = x.chunks_exact(2 * WIDE);
    let tail = chunks.remainder();
    for x in chunks {
        let (x0, x1) = (vector(x, 0), vector(x, WIDE));
        for l in 0..WIDE {
            even[l] = even[l].max(x0[l]);
        }
        for l in 0..WIDE {
            odd[l] = odd[l].max(x1[l]);
        }
    }
    for l in 0..WIDE {
        even[l] = even[l].max(odd[l]);
    }
    tail.iter().fold(fold(even, T::max), |m, &x| m.max(x))
}

/// `sums += x`.
#[inline(always)]
pub fn add<T: Scalar>(sums: &mut [T], x: &[T]) {
    for (sum, &x) in sums.iter_mut().zip(x) {
        *sum += x;
    }
}

/// Adds the rows of `partials` \[blocks, stride\], columns `at..at + sums.len()`, to `sums` in order.
pub fn add_partials<T: Scalar>(sums: &mut [T], partials: &[T], stride: usize, at: usize) {
    simd!(|| {
        for row in partials.chunks_exact(stride.max(1)) {
            add(sums, &row[at..at + sums.len()]);
        }
    });
}

/// Sets all elements, in parallel.
pub fn fill<U: Copy + Send + Sync>(x: &mut [U], value: U) {
    x.par_chunks_mut(CHUNK).with_min_len(grain(CHUNK)).for_each(|x| x.fill(value));
}

/// Checks a range of the flat table of gradients and borrows it.
pub fn range_mut<'a, T>(
    op: &'static str,
    arg: &'static str,
    table: &'a mut [T],
    range: &Range<usize>,
    want: usize,
) -> Result<&'a mut [T]> {
    check_range(op, arg, table.len(), range, want)?;
    Ok(&mut table[range.clone()])
}

/// Checks that every index is below `limit`.
pub fn check_indices(op: &'static str, arg: &'static str, indices: &[u32], limit: usize) -> Result<()> {
    if indices.iter().fold(0, |m: u32, &i| m.max(i)) as usize >= limit
        && let Some(at) = indices.iter().position(|&i| i as usize >= limit)
    {
        let what = format!("`{arg}[{at}]` is {}, expected below {limit}", indices[at]);
        return Err(Error::Unsupported { op, what });
    }
    Ok(())
}

/// Philox4x32-10 on 16 counters at once; word `w` of counter `l` is `result[w][l]`.
#[inline(always)]
pub fn philox_lanes(key: u64, mut c0: [u32; 16], mut c1: [u32; 16], site: u32) -> [[u32; 16]; 4] {
    let (mut c2, mut c3) = ([site; 16], [DROPOUT; 16]);
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        for l in 0..16 {
            let p0 = u64::from(M0) * u64::from(c0[l]);
            let p1 = u64::from(M1) * u64::from(c2[l]);
            c0[l] = (p1 >> 32) as u32 ^ c1[l] ^ k0;
            c1[l] = p1 as u32;
            c2[l] = (p0 >> 32) as u32 ^ c3[l] ^ k1;
            c3[l] = p0 as u32;
        }
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [c0, c1, c2, c3]
}

/// The four calls of [`crate::philox::attention_bytes`] for 16 queries at once: word `w` of call `quad` of query `l`
/// is `result[quad][w][l]`.
#[inline(always)]
pub fn attention_words(
    key: u64,
    site: u32,
    row_keys: [u32; 16],
    head: usize,
    block: usize,
) -> [[[u32; 16]; 4]; 4] {
    // no `from_fn`: its closure may stay a call, which would lose the vectors
    let mut words = [[[0; 16]; 4]; 4];
    for (quad, words) in words.iter_mut().enumerate() {
        let c0 = [((head as u32) << 16) | (block as u32 * 4 + quad as u32); 16];
        *words = philox_lanes(key, c0, row_keys, site);
    }
    words
}

/// Key `j`'s byte of each query: byte `j / 8 * 2 + j % 2` of call `j % 8 / 2`.
#[inline(always)]
pub fn attention_bytes_of_key(words: &[[[u32; 16]; 4]; 4], j: usize) -> [u32; 16] {
    let byte = j / 8 * 2 + j % 2;
    let words = &words[j % 8 / 2][byte / 4];
    let mut bytes = *words;
    for byte_of in &mut bytes {
        *byte_of = *byte_of >> (8 * (byte % 4)) & 0xff;
    }
    bytes
}

/// A dropout layer as the CPU applies it.
#[derive(Clone, Copy)]
pub struct Mask<'a, T> {
    /// The rate.
    pub rate: DropoutRate,
    /// Factor of kept elements.
    pub scale: T,
    /// Philox key.
    pub key: u64,
    /// Counter word c2.
    pub site: u32,
    /// One key a row; not read at rate none.
    pub row_keys: &'a [u32],
}

impl<'a, T: Scalar> Mask<'a, T> {
    /// Checks the number of row keys.
    pub fn new(op: &'static str, dropout: Dropout<'a, Cpu<T>>, rows: usize) -> Result<Self> {
        let Dropout { rate, key, site, row_keys } = dropout;
        if !rate.is_none() {
            check_len(op, "dropout.row_keys", row_keys.len(), rows)?;
        }
        Ok(Self { rate, scale: T::from_f64(rate.scale()), key, site, row_keys })
    }

    /// Zeroes or scales the elements of row `row` of a hidden layer, in place: see
    /// [`crate::philox::hidden_bytes`].
    #[inline(always)]
    pub fn apply(&self, row: usize, x: &mut [T]) {
        if self.rate.is_none() {
            return;
        }
        let row_key = self.row_keys[row];
        for (batch, x) in x.chunks_mut(256).enumerate() {
            let mut c0 = [0; 16];
            for (l, c0) in c0.iter_mut().enumerate() {
                *c0 = (batch * 16 + l) as u32;
            }
            let words = philox_lanes(self.key, c0, [row_key; 16], self.site);
            let mut bytes = [0u8; 256];
            for (l, group) in bytes.chunks_exact_mut(16).enumerate() {
                for (w, out) in group.chunks_exact_mut(4).enumerate() {
                    out.copy_from_slice(&words[w][l].to_le_bytes());
                }
            }
            self.select(&bytes, x);
        }
    }

    /// Keys of 16 rows from `row` on; those after the last row are 0.
    pub fn sixteen_row_keys(&self, row: usize) -> [u32; 16] {
        std::array::from_fn(|l| self.row_keys.get(row + l).copied().unwrap_or(0))
    }

    /// Zeroes or scales elements by their bytes.
    #[inline(always)]
    pub fn select(&self, bytes: &[u8], x: &mut [T]) {
        for (x, &byte) in x.iter_mut().zip(bytes) {
            *x = if byte < self.rate.threshold { T::ZERO } else { *x * self.scale };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{attention_bytes, hidden_bytes, philox4x32};

    #[test]
    fn lanes_are_the_scalar_generator() {
        let (c0, c1) = (std::array::from_fn(|l| 7 * l as u32), std::array::from_fn(|l| 99 + l as u32));
        let words = philox_lanes(0x1234_5678_9abc_def0, c0, c1, 5);
        for l in 0..16 {
            let one = philox4x32(0x1234_5678_9abc_def0, [c0[l], c1[l], 5, DROPOUT]);
            assert_eq!([words[0][l], words[1][l], words[2][l], words[3][l]], one);
        }
    }

    #[test]
    fn attention_words_hold_the_bytes_of_each_query() {
        let row_keys = std::array::from_fn(|l| 1000 + 3 * l as u32);
        let words = attention_words(77, 9, row_keys, 5, 2);
        for (l, j) in (0..16).flat_map(|l| (0..64).map(move |j| (l, j))) {
            let want = attention_bytes(77, 9, row_keys[l], 5, 2)[j];
            assert_eq!(attention_bytes_of_key(&words, j)[l], u32::from(want), "query {l}, key {j}");
        }
    }

    #[test]
    fn masks_follow_the_bytes_of_their_columns() {
        let rate = DropoutRate::new(0.3);
        let mask = Mask { rate, scale: rate.scale(), key: 3, site: 8, row_keys: &[10, 20] };
        let mut x = vec![1.0f64; 300];
        simd!(|| mask.apply(1, &mut x));
        for (c, &x) in x.iter().enumerate() {
            let byte = hidden_bytes(3, 8, 20, c as u32 / 16)[c % 16];
            assert_eq!(x, if byte < rate.threshold { 0.0 } else { rate.scale() }, "column {c}");
        }
    }

    #[test]
    fn sums_and_maxima_include_the_tail() {
        for n in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f64> = (0..n).map(f64::from).collect();
            assert_eq!(sum(&x, |x| x), f64::from(n * (n - 1) / 2));
            assert_eq!(sum2(&x, &x, |x, y| x - 2.0 * y), -f64::from(n * (n - 1) / 2));
            assert_eq!(max(&x, -1.0), f64::from(n - 1));
        }
    }
}
