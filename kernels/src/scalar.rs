//! The element types that the CPU computes in.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

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
}
