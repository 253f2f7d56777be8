//! AdamW and LAMB with their moments, and the learning-rate schedule.

mod schedule;

pub use schedule::learning_rate;

use crate::Result;
use crate::config::{OptimizerConfig, OptimizerKind};
use crate::table::TensorTable;
use kernels::Scalar;
use kernels::backend::{Backend, OptimizerHyper, OptimizerStep, TensorSpan};

/// Moments of all parameters and the rule that applies them.
pub struct Optimizer<B: Backend> {
    config: OptimizerConfig,
    spans: Vec<TensorSpan>,
    m: B::Mem<B::Acc>,
    v: B::Mem<B::Acc>,
    norm: B::Mem<B::Acc>,
}

impl<B: Backend> Optimizer<B> {
    /// Moments 0.
    pub fn new(backend: &B, table: &TensorTable, config: &OptimizerConfig) -> Result<Self> {
        Ok(Self {
            config: config.clone(),
            spans: table.spans(),
            m: backend.zeros("first moments", table.len)?,
            v: backend.zeros("second moments", table.len)?,
            norm: backend.zeros("gradient norm", 1)?,
        })
    }

    /// Clips and applies `grads` at learning rate `lr`; `update` counts applied updates from 1. A gradient whose norm
    /// is not finite changes nothing.
    pub fn update(
        &mut self,
        backend: &B,
        weights: &mut B::Weights,
        grads: &B::Mem<B::Acc>,
        lr: f64,
        update: u64,
    ) -> Result<()> {
        let c = &self.config;
        let len = B::len(grads);
        backend.global_norm(B::at_mut(&mut self.norm, 0..1), B::at(grads, 0..len))?;
        let hyper = OptimizerHyper {
            lr,
            beta1: c.beta1,
            beta2: c.beta2,
            eps: c.eps,
            weight_decay: c.weight_decay,
            update,
            max_norm: if c.clip_norm > 0.0 { c.clip_norm } else { f64::INFINITY },
            clip_eps: match c.kind {
                OptimizerKind::AdamW => 1e-6,
                OptimizerKind::Lamb => 0.0,
            },
        };
        let step = OptimizerStep {
            weights,
            grads: B::at(grads, 0..len),
            m: B::at_mut(&mut self.m, 0..len),
            v: B::at_mut(&mut self.v, 0..len),
            norm: B::at(&self.norm, 0..1),
            tensors: &self.spans,
            hyper,
        };
        match c.kind {
            OptimizerKind::AdamW => backend.adamw(step)?,
            OptimizerKind::Lamb => backend.lamb(step)?,
        }
        Ok(())
    }

    /// Global norm of the last gradient, before clipping. Waits for the device.
    pub fn norm(&self, backend: &B) -> Result<f64> {
        let mut host = [B::Acc::ZERO];
        backend.download(B::at(&self.norm, 0..1), &mut host)?;
        Ok(host[0].to_f64())
    }

    /// Both moments on the host.
    pub fn moments(&self, backend: &B) -> Result<[Vec<B::Acc>; 2]> {
        let copy = |mem: &B::Mem<B::Acc>| -> Result<Vec<B::Acc>> {
            let mut host = vec![B::Acc::ZERO; B::len(mem)];
            backend.download(B::at(mem, 0..host.len()), &mut host)?;
            Ok(host)
        };
        Ok([copy(&self.m)?, copy(&self.v)?])
    }

    /// Sets both moments, as a checkpoint kept them.
    pub fn load_moments(&mut self, backend: &B, m: &[B::Acc], v: &[B::Acc]) -> Result<()> {
        let len = B::len(&self.m);
        backend.upload(B::at_mut(&mut self.m, 0..len), m)?;
        Ok(backend.upload(B::at_mut(&mut self.v, 0..len), v)?)
    }
}
