//! A random order of 0..n without storing it: a Feistel network on the next power of four, walked until it lands
//! below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

use kernels::philox::{SHUFFLE, philox4x32};

const ROUNDS: u32 = 8;
/// Networks on fewer bits reach few of the possible orders; a walk in 64 places is still short.
const LEAST_HALF_BITS: u32 = 3;

/// A permutation of `0..n`, a function of `(n, key)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permutation {
    n: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    /// `n > 0`.
    pub fn new(n: u64, key: u64) -> Self {
        let bits = u64::BITS - (n - 1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).max(LEAST_HALF_BITS), key }
    }

    /// Where `i < n` goes.
    pub fn get(&self, i: u64) -> u64 {
        debug_assert!(i < self.n);
        let mut x = self.network(i);
        while x >= self.n {
            x = self.network(x);
        }
        x
    }

    fn network(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 0..ROUNDS {
            let word = philox4x32(self.key, [right as u32, round, 0, SHUFFLE])[0];
            (left, right) = (right, left ^ (u64::from(word) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_once() {
        for n in (1..200).chain([255, 256, 257, 4095, 4097, 100_003]) {
            let permutation = Permutation::new(n, n * 31);
            let mut seen = vec![false; n as usize];
            for i in 0..n {
                let to = permutation.get(i) as usize;
                assert!(!seen[to], "{n}: {to} twice");
                seen[to] = true;
            }
        }
    }

    #[test]
    fn keys_give_unrelated_orders() {
        let n = 1000;
        let (one, two) = (Permutation::new(n, 1), Permutation::new(n, 2));
        let fixed = |f: &dyn Fn(u64) -> u64| (0..n).filter(|&i| f(i) == i).count();
        assert!(fixed(&|i| one.get(i)) < 8); // 1 expected
        assert!((0..n).filter(|&i| one.get(i) == two.get(i)).count() < 8);
        // Neighbours are not kept together: mean distance of a random order is n / 3.
        let distance: u64 = (1..n).map(|i| one.get(i).abs_diff(one.get(i - 1))).sum();
        assert!((300..367).contains(&(distance / (n - 1))), "{distance}");
    }

    /// For n = 3 all 6 orders come, about equally often.
    #[test]
    fn small_orders_are_uniform() {
        let mut counts = std::collections::HashMap::new();
        for key in 0..6000u64 {
            let permutation = Permutation::new(3, kernels::philox::splitmix64(key));
            *counts.entry([0, 1, 2].map(|i| permutation.get(i))).or_insert(0) += 1;
        }
        // 1000 each, standard deviation 29
        assert!(counts.len() == 6 && counts.values().all(|c| (880..1120).contains(c)), "{counts:?}");
    }
}
