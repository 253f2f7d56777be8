//! To be written.
use super::device::Device;
use super::{Cuda, Element, View, ViewMut};
use crate::Result;
use crate::backend::*;
pub(super) fn gather<E: Element>(device: &Device, args: GatherRows<'_, Cuda<E>>) -> Result<()> {
    todo!()
}
pub(super) fn scatter_add<E: Element>(device: &Device, args: ScatterAddRows<'_, Cuda<E>>) -> Result<()> {
    todo!()
}
pub(super) fn bias_grad<E: Element>(device: &Device, args: BiasGrad<'_, Cuda<E>>) -> Result<()> {
    todo!()
}
