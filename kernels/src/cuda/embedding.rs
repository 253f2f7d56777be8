//! To be written.
use super::device::Device;
use super::{Cuda, Element, View, ViewMut};
use crate::Result;
use crate::backend::*;
pub(super) fn forward<E: Element>(device: &Device, args: EmbeddingForward<'_, Cuda<E>>) -> Result<()> {
    todo!()
}
pub(super) fn backward<E: Element>(device: &Device, args: EmbeddingBackward<'_, Cuda<E>>) -> Result<()> {
    todo!()
}
