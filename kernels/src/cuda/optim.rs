//! To be written.
use super::device::Device;
use super::{Cuda, Element, View, ViewMut};
use crate::Result;
use crate::backend::*;

pub(super) fn square_sums(device: &Device, sums: ViewMut<'_, f64>, x: View<'_, f32>) -> Result<()> {
    todo!()
}
pub(super) fn root_of_sum(device: &Device, norm: ViewMut<'_, f32>, sums: View<'_, f64>) -> Result<()> {
    todo!()
}
pub(super) fn clip(device: &Device, x: ViewMut<'_, f32>, norm: View<'_, f32>, max_norm: f64) -> Result<()> {
    todo!()
}
pub(super) fn adamw<E: Element>(device: &Device, args: OptimizerStep<'_, Cuda<E>>) -> Result<()> {
    todo!()
}
pub(super) fn lamb_moments<E: Element>(
    device: &Device,
    args: OptimizerStep<'_, Cuda<E>>,
    sums: ViewMut<'_, f64>,
) -> Result<()> {
    todo!()
}
pub(super) fn lamb_apply<E: Element>(
    device: &Device,
    args: OptimizerStep<'_, Cuda<E>>,
    sums: View<'_, f64>,
) -> Result<()> {
    todo!()
}
