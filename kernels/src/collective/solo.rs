//! One rank: nothing to do.

use super::{Collective, Division, Travel, Wire};
use crate::Result;
use crate::backend::Backend;
use std::ops::Range;

/// The only rank of a job.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl<B: Backend> Collective<B> for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn world(&self) -> usize {
        1
    }
    fn describe(&self) -> String {
        "one process".into()
    }
    fn begin_work(&mut self, _: &B) -> Result<()> {
        Ok(())
    }
    fn work_seconds(&mut self) -> Result<f64> {
        Ok(0.0)
    }
    fn time_travel(&mut self, _: bool) -> Result<()> {
        Ok(())
    }
    fn travel(&mut self) -> Result<Travel> {
        Ok(Travel::default())
    }
    fn begin_reduce(
        &mut self,
        _: &B,
        _: &B::Mem<B::Acc>,
        _: Range<usize>,
        _: &Division,
        _: Wire,
    ) -> Result<()> {
        Ok(())
    }
    fn finish_reduce(&mut self, _: &B, _: &mut B::Mem<B::Acc>) -> Result<()> {
        Ok(())
    }
    fn gather_weights(&mut self, _: &B, _: &mut B::Weights, _: &Division, _: &[Range<usize>]) -> Result<()> {
        Ok(())
    }
    fn gather_to_first(
        &mut self,
        backend: &B,
        own: B::Ref<'_, B::Acc>,
        parts: &[Range<usize>],
        whole: &mut [B::Acc],
    ) -> Result<()> {
        backend.download(own, &mut whole[parts[0].clone()])
    }
    fn send_from_first(&mut self, _: &B, _: &mut [B::Acc]) -> Result<()> {
        Ok(())
    }
    fn sum(&mut self, _: &B, _: B::Mut<'_, f64>) -> Result<()> {
        Ok(())
    }
    fn sum_host(&mut self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }
    fn gather_bytes(&mut self, _: &mut [u8], _: &[Range<usize>]) -> Result<()> {
        Ok(())
    }
}
