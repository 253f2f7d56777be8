//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
//! (SC 2011), and what is drawn from it.
//!
//! Nothing random is ever stored: a draw is a function of (key, counter), so the backward pass replays the dropout
//! of the forward pass, CPU and GPU draw the same masks, and a resumed run draws what the first one would have.
//!
//! | word | dropout after a hidden layer | dropout of attention weights | masking of tokens |
//! | --- | --- | --- | --- |
//! | key | [`step_key`] of (seed, step) | the same | [`step_key`] of (seed, epoch) |
//! | c0 | group of 16 columns | `head << 16 \| key block * 4 + quad` | draw |
//! | c1 | row key of the token | row key of the query | sample index, low word |
//! | c2 | [`site`] | [`site`] | sample index, high word |
//! | c3 | [`DROPOUT`] | [`DROPOUT`] | [`MASKING`] |

/// Counter word c3 of dropout draws.
pub const DROPOUT: u32 = 0;
/// Counter word c3 of masking draws.
pub const MASKING: u32 = 1;
/// Counter word c3 of weight initialization.
pub const INIT: u32 = 2;
/// Counter word c3 of the sequence-building draws of data preparation.
pub const PREPARE: u32 = 3;
/// Counter word c3 of the order of sequences.
pub const SHUFFLE: u32 = 4;

/// Multipliers and key increments of Philox4x32.
pub(crate) const M0: u32 = 0xD251_1F53;
pub(crate) const M1: u32 = 0xCD9E_8D57;
pub(crate) const W0: u32 = 0x9E37_79B9;
pub(crate) const W1: u32 = 0xBB67_AE85;

/// Ten rounds of Philox4x32: four random words for a counter under a key.
#[inline(always)]
pub fn philox4x32(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(c0);
        let p1 = u64::from(M1) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [c0, c1, c2, c3]
}

/// The 16 bytes of one call, byte `i` being bits `8 (i % 4)…` of word `i / 4`.
#[inline(always)]
pub fn philox_bytes(key: u64, counter: [u32; 4]) -> [u8; 16] {
    let words = philox4x32(key, counter);
    let mut bytes = [0; 16];
    for (out, word) in bytes.chunks_exact_mut(4).zip(words) {
        out.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The generator's key for one step (or epoch) of a run: SplitMix64 of seed and step.
pub fn step_key(seed: u64, step: u64) -> u64 {
    splitmix64(splitmix64(seed) ^ step.wrapping_mul(0xD134_2543_DE82_EF95))
}

/// Steele, Lea and Flood's SplitMix64 finalizer ("Fast splittable pseudorandom number generators", OOPSLA 2014).
pub fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The dropout layers of one transformer layer (or of the embeddings).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Site {
    /// After the embeddings' layernorm (layer 0).
    Embedding = 0,
    /// On the attention weights.
    Attention = 1,
    /// After the attention's output projection.
    AttentionOutput = 2,
    /// After the second product of the feed-forward part.
    FeedForwardOutput = 3,
    /// Before a fine-tuning head's classifier.
    Head = 4,
}

/// Counter word c2: one number per dropout layer of the model.
pub fn site(layer: usize, site: Site) -> u32 {
    ((layer as u32) << 3) | site as u32
}

/// A dropout rate as the generator draws it: an element is dropped when its random byte is below `threshold`, so
/// the rate is a multiple of 1/256 (0.1 becomes 26/256 = 0.1016) and kept elements are scaled by exactly
/// `256 / (256 - threshold)`: the expectation is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DropoutRate {
    /// Bytes below this are dropped.
    pub threshold: u8,
}

impl DropoutRate {
    /// No dropout.
    pub const NONE: Self = Self { threshold: 0 };

    /// The nearest rate to `p`; a `p` above 0 never becomes 0. `p` must lie in [0, 1).
    pub fn new(p: f64) -> Self {
        let nearest = (p * 256.0).round().clamp(0.0, 255.0) as u8;
        Self { threshold: if p > 0.0 { nearest.max(1) } else { 0 } }
    }

    /// The factor of kept elements.
    pub fn scale(self) -> f64 {
        256.0 / (256.0 - f64::from(self.threshold))
    }

    /// Whether nothing is dropped.
    pub fn is_none(self) -> bool {
        self.threshold == 0
    }
}

/// The random bytes of row `row_key` of a hidden-state dropout, columns `16 group …` on.
#[inline(always)]
pub fn hidden_bytes(key: u64, site: u32, row_key: u32, group: u32) -> [u8; 16] {
    philox_bytes(key, [group, row_key, site, DROPOUT])
}

/// The random bytes of one query's attention weights over keys `64 block .. 64 block + 64` of its sequence.
///
/// Key `j` of the block takes byte `j / 8 * 2 + j % 2` of call `quad = j % 8 / 2`: those 16 bytes are the elements
/// that one thread of a tensor-core accumulator (`mma` m16n8, `wgmma` m64n64) holds of that row, so a GPU thread
/// makes one call per row and 64 keys.
#[inline(always)]
pub fn attention_bytes(key: u64, site: u32, row_key: u32, head: u32, block: u32) -> [u8; 64] {
    let mut bytes = [0; 64];
    for quad in 0..4 {
        let call = philox_bytes(key, [(head << 16) | (block * 4 + quad as u32), row_key, site, DROPOUT]);
        for (i, byte) in call.into_iter().enumerate() {
            bytes[i / 2 * 8 + quad * 2 + i % 2] = byte;
        }
    }
    bytes
}

/// A stream of numbers for host-side draws (masking, initialization, data preparation): successive Philox calls
/// under one key, with the counter's upper words naming the stream.
#[derive(Debug, Clone)]
pub struct Stream {
    key: u64,
    counter: [u32; 4],
    words: [u32; 4],
    used: usize,
}

impl Stream {
    /// The stream `id` of purpose `purpose` (c3, for example [`MASKING`]) under `key`.
    pub fn new(key: u64, id: u64, purpose: u32) -> Self {
        Self { key, counter: [0, id as u32, (id >> 32) as u32, purpose], words: [0; 4], used: 4 }
    }

    /// Next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox4x32(self.key, self.counter);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1) with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `0..n` without bias (Lemire, "Fast random integer generation in an interval", 2019). `n > 0`.
    pub fn below(&mut self, n: u32) -> u32 {
        debug_assert!(n > 0);
        loop {
            let wide = u64::from(self.next_u32()) * u64::from(n);
            if wide as u32 >= n.wrapping_neg() % n {
                return (wide >> 32) as u32;
            }
        }
    }

    /// Uniform in `low..=high`.
    pub fn range(&mut self, low: u32, high: u32) -> u32 {
        low + self.below(high - low + 1)
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known-answer vectors of the Random123 distribution (philox4x32-10).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32(!0, [!0; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let key = 0x299f_31d0_a409_3822;
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox4x32(key, counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn attention_bytes_are_a_rearrangement_of_four_calls() {
        let bytes = attention_bytes(7, 9, 11, 3, 2);
        for j in 0..64 {
            let call = philox_bytes(7, [3 << 16 | (2 * 4 + (j % 8 / 2) as u32), 11, 9, DROPOUT]);
            assert_eq!(bytes[j], call[j / 8 * 2 + j % 2], "key {j}");
        }
    }

    #[test]
    fn rates_round_to_256ths_and_keep_the_expectation() {
        assert_eq!(DropoutRate::new(0.1).threshold, 26);
        assert_eq!(DropoutRate::new(0.0), DropoutRate::NONE);
        assert_eq!(DropoutRate::new(1e-9).threshold, 1);
        let rate = DropoutRate::new(0.3);
        assert_eq!(rate.scale() * (256.0 - f64::from(rate.threshold)), 256.0);
    }

    #[test]
    fn below_is_uniform_and_shuffle_permutes() {
        let mut stream = Stream::new(1, 2, 3);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7) as usize] += 1;
        }
        // 10,000 each, standard deviation 93
        assert!(counts.iter().all(|&c| (9_500..10_500).contains(&c)), "{counts:?}");
        let mut items: Vec<u32> = (0..100).collect();
        stream.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
