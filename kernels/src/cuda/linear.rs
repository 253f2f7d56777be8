//! To be written.
use super::device::Device;
use super::{Cuda, Element};
use crate::Result;
use crate::backend::*;
use std::sync::Arc;
pub(super) struct Products {}
impl Products {
    pub(super) fn new(_device: &Arc<Device>) -> Result<Self> {
        Ok(Self {})
    }
    pub(super) fn forward<E: Element>(
        &self,
        device: &Device,
        args: LinearForward<'_, Cuda<E>>,
    ) -> Result<()> {
        todo!()
    }
    pub(super) fn dgrad<E: Element>(&self, device: &Device, args: LinearDgrad<'_, Cuda<E>>) -> Result<()> {
        todo!()
    }
    pub(super) fn wgrad<E: Element>(&self, device: &Device, args: LinearWgrad<'_, Cuda<E>>) -> Result<()> {
        todo!()
    }
}
