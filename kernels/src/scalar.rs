//! The element types that the CPU computes in.

use gemm_common::Parallelism;
use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// `c = alpha c + beta a b` of the crates `gemm-f32` and `gemm-f64`: rows and columns of c, columns of a; c with the
/// distances of its columns and rows, and whether it is read; a and b likewise; alpha, beta; which are conjugated.
pub type Gemm<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// A floating-point element: `f32` or `f64`.
pub trait Scalar:
    bytemuck::Pod
    + Send
    + Sync
    + Debug
    + Display
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Rounds an `f64`.
    fn from_f64(v: f64) -> Self;
    /// Widens to `f64`.
    fn to_f64(self) -> f64;
    /// Square root.
    fn sqrt(self) -> Self;
    /// `self * a + b`. Rounded once where the target has FMA.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The larger of two; NaN if either is NaN is not guaranteed.
    fn max(self, other: Self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// `e^self`. For `f32` a branch-free polynomial that vectorizes (relative error under 3e-7); for `f64` the
    /// standard library's.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent, vectorizable for `f32` (absolute error under 3e-7).
    fn tanh(self) -> Self;
    /// Gauss error function, vectorizable for `f32` (absolute error under 3e-7); exact to rounding for `f64`.
    fn erf(self) -> Self;
    /// The product of matrices for this machine.
    fn gemm() -> Gemm<Self>;
}

/// Limits to `-bound..=bound`; NaN stays NaN (`f32::clamp` would do, but it panics on bad bounds and so branches).
#[inline(always)]
fn limit(x: f32, bound: f32) -> f32 {
    let x = if x > bound { bound } else { x };
    if x < -bound { -bound } else { x }
}

/// `c[0] + c[1] x + …` by Horner's rule.
#[inline(always)]
fn polynomial<const N: usize>(c: [f32; N], x: f32) -> f32 {
    let mut y = c[N - 1];
    for &c in c[..N - 1].iter().rev() {
        y = y.mul_add(x, c);
    }
    y
}

/// The functions that the standard library has under the same name.
macro_rules! standard {
    ($float:ident, $gemm:ident) => {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        #[inline(always)]
        fn from_f64(v: f64) -> Self {
            v as $float
        }
        #[inline(always)]
        fn to_f64(self) -> f64 {
            f64::from(self)
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            self.sqrt()
        }
        // One instruction inside [`crate::cpu::math::dispatch`] on every machine since 2013; elsewhere a slow call
        // with the same result, so that results do not depend on where the compiler puts a loop.
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            self.mul_add(a, b)
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            if other > self { other } else { self }
        }
        #[inline(always)]
        fn abs(self) -> Self {
            self.abs()
        }
        #[inline(always)]
        fn is_finite(self) -> bool {
            self.is_finite()
        }
        #[inline(always)]
        fn ln(self) -> Self {
            self.ln()
        }
        #[inline(always)]
        fn gemm() -> Gemm<Self> {
            $gemm::gemm::$float::get_gemm_fn()
        }
    };
}

impl Scalar for f32 {
    standard!(f32, gemm_f32);

    /// `2^n e^r` with `|r| <= ln 2 / 2` and a minimax polynomial of degree 6 (relative error 3e-9 before rounding).
    /// Results below 1e-37 become 0, those beyond the range infinite.
    #[inline(always)]
    fn exp(self) -> Self {
        // adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits
        const ROUND: f32 = 12_582_912.0;
        // ln 2 in two parts (Cody and Waite): the upper one has few bits, so n times it is exact
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        const C: [f32; 7] =
            [1.0, 1.0, 0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_446_3];
        let x = if self < -85.0 { -85.0 } else { self };
        let x = if x > 89.0 { 89.0 } else { x };
        let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
        // 2^(n - 1), as 2^128 is no float
        let half = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
        let y = polynomial(C, r) * 2.0 * half;
        if self < -85.0 { 0.0 } else { y }
    }

    /// `x P(x^2) / Q(x^2)`, minimax for the relative error on [-9, 9] (6e-8 before rounding).
    #[inline(always)]
    fn tanh(self) -> Self {
        const P: [f32; 6] =
            [0.999_999_94, 0.129_192_62, 0.002_920_790_8, 9.267_567e-6, -1.278_048_4e-8, 1.825_445_7e-11];
        const Q: [f32; 4] = [1.0, 0.462_525_46, 0.023_763_305, 2.281_033_8e-4];
        let x = limit(self, 9.0);
        limit(x * polynomial(P, x * x) / polynomial(Q, x * x), 1.0)
    }

    /// `x P(x^2) / Q(x^2)`, minimax for the relative error on [-3.9, 3.9] (2e-8 before rounding).
    #[inline(always)]
    fn erf(self) -> Self {
        const P: [f32; 6] = [
            std::f32::consts::FRAC_2_SQRT_PI,
            0.189_630_05,
            0.052_662_67,
            0.003_736_631_2,
            2.850_009_5e-4,
            2.066_452_2e-6,
        ];
        const Q: [f32; 6] = [1.0, 0.501_388, 0.113_803_26, 0.014_910_844, 0.001_156_919, 3.826_661_5e-5];
        let x = limit(self, 3.9);
        limit(x * polynomial(P, x * x) / polynomial(Q, x * x), 1.0)
    }
}

impl Scalar for f64 {
    standard!(f64, gemm_f64);

    #[inline(always)]
    fn exp(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        self.tanh()
    }
    #[inline(always)]
    fn erf(self) -> Self {
        libm::erf(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every float from `from` to `to` in steps of `step` bit patterns.
    fn dense(from: f32, to: f32, step: usize) -> impl Iterator<Item = f32> {
        (from.to_bits()..=to.to_bits()).step_by(step).map(f32::from_bits)
    }

    #[test]
    fn f32_exp_stays_within_its_bound() {
        for x in dense(1e-9, 88.7, 997).flat_map(|x| [x, -x]).filter(|&x| x > -84.9) {
            let want = f64::from(x).exp();
            let error = (f64::from(Scalar::exp(x)) - want).abs() / want;
            assert!(error < 3e-7, "exp({x}): {error}");
        }
    }

    #[test]
    fn f32_exp_at_the_ends() {
        assert_eq!(Scalar::exp(0.0f32), 1.0);
        assert_eq!(Scalar::exp(-86.0f32), 0.0);
        assert_eq!(Scalar::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Scalar::exp(89.0f32), f32::INFINITY);
        assert_eq!(Scalar::exp(f32::INFINITY), f32::INFINITY);
        assert!(Scalar::exp(f32::NAN).is_nan());
    }

    #[test]
    fn f32_tanh_and_erf_stay_within_their_bounds() {
        for x in dense(1e-9, 20.0, 997).flat_map(|x| [x, -x]) {
            let error = (f64::from(Scalar::tanh(x)) - f64::from(x).tanh()).abs();
            assert!(error < 3e-7, "tanh({x}): {error}");
            let error = (f64::from(Scalar::erf(x)) - libm::erf(f64::from(x))).abs();
            assert!(error < 3e-7, "erf({x}): {error}");
        }
        for x in [f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(Scalar::tanh(x), x.signum());
            assert_eq!(Scalar::erf(x), x.signum());
        }
        assert!(Scalar::tanh(f32::NAN).is_nan() && Scalar::erf(f32::NAN).is_nan());
    }

    /// Values of Abramowitz and Stegun, table 7.1, to fifteen digits.
    #[test]
    fn f64_erf_is_exact() {
        assert!((Scalar::erf(0.5f64) - 0.520_499_877_813_046_5).abs() < 2e-16);
        assert!((Scalar::erf(-1.0f64) + 0.842_700_792_949_714_9).abs() < 2e-16);
        assert!((Scalar::erf(2.0f64) - 0.995_322_265_018_952_7).abs() < 2e-16);
    }
}
