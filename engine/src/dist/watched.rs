//! A collective whose waiting can be seen from outside.

use super::activity::{Activity, Waiting};
use kernels::Result;
use kernels::backend::Backend;
use kernels::collective::{Collective, Division, Travel, Wire};
use std::ops::Range;
use std::sync::Arc;

/// Tells the control thread when this process waits for the others.
pub struct Watched<B: Backend> {
    inner: Box<dyn Collective<B>>,
    activity: Arc<Activity>,
}

impl<B: Backend> Watched<B> {
    pub fn new(inner: Box<dyn Collective<B>>, activity: Arc<Activity>) -> Self {
        Self { inner, activity }
    }

    fn wait<R>(&mut self, f: impl FnOnce(&mut dyn Collective<B>) -> Result<R>) -> Result<R> {
        let _waiting = Waiting::new(self.activity.clone());
        f(self.inner.as_mut())
    }
}

impl<B: Backend> Collective<B> for Watched<B> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world(&self) -> usize {
        self.inner.world()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn begin_work(&mut self, backend: &B) -> Result<()> {
        self.inner.begin_work(backend)
    }
    fn work_seconds(&mut self) -> Result<f64> {
        // Waits for this process's own device: it works.
        self.inner.work_seconds()
    }
    fn time_travel(&mut self, on: bool) -> Result<()> {
        self.wait(|ranks| ranks.time_travel(on))
    }
    fn travel(&mut self) -> Result<Travel> {
        self.wait(|ranks| ranks.travel())
    }
    fn begin_reduce(
        &mut self,
        backend: &B,
        grads: &B::Mem<B::Acc>,
        range: Range<usize>,
        division: &Division,
        wire: Wire,
    ) -> Result<()> {
        self.inner.begin_reduce(backend, grads, range, division, wire)
    }
    fn finish_reduce(&mut self, backend: &B, grads: &mut B::Mem<B::Acc>) -> Result<()> {
        self.wait(|ranks| ranks.finish_reduce(backend, grads))
    }
    fn gather_weights(
        &mut self,
        backend: &B,
        weights: &mut B::Weights,
        division: &Division,
        masters: &[Range<usize>],
    ) -> Result<()> {
        self.wait(|ranks| ranks.gather_weights(backend, weights, division, masters))
    }
    fn gather_to_first(
        &mut self,
        backend: &B,
        own: B::Ref<'_, B::Acc>,
        parts: &[Range<usize>],
        whole: &mut [B::Acc],
    ) -> Result<()> {
        self.wait(|ranks| ranks.gather_to_first(backend, own, parts, whole))
    }
    fn send_from_first(&mut self, backend: &B, data: &mut [B::Acc]) -> Result<()> {
        self.wait(|ranks| ranks.send_from_first(backend, data))
    }
    fn sum(&mut self, backend: &B, data: B::Mut<'_, f64>) -> Result<()> {
        self.wait(|ranks| ranks.sum(backend, data))
    }
    fn sum_host(&mut self, data: &mut [f64]) -> Result<()> {
        self.wait(|ranks| ranks.sum_host(data))
    }
    fn gather_bytes(&mut self, data: &mut [u8], parts: &[Range<usize>]) -> Result<()> {
        self.wait(|ranks| ranks.gather_bytes(data, parts))
    }
}
