//! Launches of cu/optim.cu.

use super::device::{Device, aligned};
use super::launch::{Launch, kernel};
use super::memory::Memory;
use super::{Cuda, Element, View, ViewMut};
use crate::Result;
use crate::backend::*;
use crate::error::{check_len, check_range};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Threads of a block: `THREADS` of cu/optim.cu.
const THREADS: [usize; 3] = [256, 1, 1];
/// Bytes of `StepConstants` of cu/optim.cu.
const CONSTANTS: usize = 56;
/// Divisions of the table that are kept on the device.
const KEPT: usize = 4;

/// `Piece` of cu/optim.cu.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Piece {
    start: u64,
    len: u32,
    tensor: u32,
    sums: u32,
    decays: u32,
}

/// `TensorSums` of cu/optim.cu.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct TensorSums {
    first: u32,
    count: u32,
    decays: u32,
}

/// What a kernel's blocks and the trust ratios need to know of the tensors in a shard.
fn divide(tensors: &[TensorSpan], shard: &Range<usize>) -> (Vec<Piece>, Vec<TensorSums>) {
    let (mut pieces, mut all) = (Vec::new(), Vec::with_capacity(tensors.len()));
    let mut first = 0;
    for (tensor, TensorSpan { range, decay }) in tensors.iter().enumerate() {
        let (own, decays) = (stretches(range), u32::from(*decay));
        all.push(TensorSums { first, count: own.len() as u32, decays });
        for (i, stretch) in own.clone().enumerate() {
            let start = range.start.max(shard.start).max(stretch * STRETCH);
            let end = range.end.min(shard.end).min((stretch + 1) * STRETCH);
            if start < end {
                let (len, sums) = ((end - start) as u32, first + i as u32);
                pieces.push(Piece { start: start as u64, len, tensor: tensor as u32, sums, decays });
            }
        }
        first += own.len() as u32;
    }
    (pieces, all)
}

/// The tensors in a shard, on the device.
struct Division {
    tensors: Vec<TensorSpan>,
    shard: Range<usize>,
    pieces: Memory<Piece>,
    sums: Memory<TensorSums>,
}

impl Division {
    fn new(device: &Arc<Device>, tensors: &[TensorSpan], shard: &Range<usize>) -> Result<Self> {
        let (pieces, sums) = divide(tensors, shard);
        let on_device = Self {
            tensors: tensors.to_vec(),
            shard: shard.clone(),
            pieces: Memory::zeroed(device, "tables of the optimizer", pieces.len())?,
            sums: Memory::zeroed(device, "tables of the optimizer", sums.len())?,
        };
        device.upload(on_device.pieces.view(0..pieces.len()).ptr(), bytemuck::cast_slice(&pieces))?;
        device.upload(on_device.sums.view(0..sums.len()).ptr(), bytemuck::cast_slice(&sums))?;
        Ok(on_device)
    }
}

/// The divisions in use: uploaded at their first step.
#[derive(Default)]
pub(super) struct Spans(Mutex<Vec<Arc<Division>>>);

impl Spans {
    fn get(
        &self,
        device: &Arc<Device>,
        tensors: &[TensorSpan],
        shard: &Range<usize>,
    ) -> Result<Arc<Division>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.iter().find(|d| d.shard == *shard && d.tensors == tensors) {
            return Ok(found.clone());
        }
        let new = Arc::new(Division::new(device, tensors, shard)?);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(new.clone());
        Ok(new)
    }
}

pub(super) fn square_sums(device: &Device, mut sums: ViewMut<'_, f64>, x: View<'_, f32>) -> Result<()> {
    check_len("square_sums", "sums", sums.len(), x.len().div_ceil(STRETCH))?;
    let launch = Launch::new(device, "square_sums_f32").view_mut(&mut sums).view(&x);
    let launch = launch.arg(x.len() as u64).size(STRETCH).arg(u32::from(x.is_aligned()));
    // SAFETY: a sum for each stretch of `x`; the kernel is told the alignment
    unsafe { launch.run([sums.len(), 1, 1], THREADS, 0) }
}

pub(super) fn root_of_sum(device: &Device, mut norm: ViewMut<'_, f32>, sums: View<'_, f64>) -> Result<()> {
    check_len("root_of_sum", "norm", norm.len(), 1)?;
    let launch = Launch::new(device, "root_of_sum_f32").view_mut(&mut norm).view(&sums).size(sums.len());
    // SAFETY: one float and `sums.len()` doubles
    unsafe { launch.run([1, 1, 1], [1024, 1, 1], 0) }
}

pub(super) fn clip(
    device: &Device,
    mut x: ViewMut<'_, f32>,
    norm: View<'_, f32>,
    max_norm: f64,
) -> Result<()> {
    check_len("clip", "norm", norm.len(), 1)?;
    let launch = Launch::new(device, "clip_f32").view_mut(&mut x).view(&norm).arg(max_norm);
    let launch = launch.arg(x.len() as u64).size(STRETCH).arg(u32::from(x.is_aligned()));
    // SAFETY: the blocks cover `x` and stop at its length; the kernel is told the alignment
    unsafe { launch.run([x.len().div_ceil(STRETCH), 1, 1], THREADS, 0) }
}

/// A step whose lengths are right, with its constants on the way to scratch.
struct Step<'a, E> {
    master: ViewMut<'a, f32>,
    /// Null where elements are f32.
    rounded: u64,
    grads: View<'a, f32>,
    m: ViewMut<'a, f32>,
    v: ViewMut<'a, f32>,
    constants: u64,
    /// A float for each tensor.
    rates: u64,
    division: Arc<Division>,
    /// Whether multiples of 4 elements are multiples of 16 bytes in all arrays.
    aligned: bool,
    elements: std::marker::PhantomData<E>,
}

impl<'a, E: Element> Step<'a, E> {
    /// Checks lengths and launches the kernel of the constants. With `counts` the update is counted as applied.
    fn begin(
        op: &'static str,
        device: &Arc<Device>,
        spans: &Spans,
        args: OptimizerStep<'a, Cuda<E>>,
        counts: bool,
    ) -> Result<Self> {
        let OptimizerStep { weights, grads, m, v, norm, mut updates, shard, tensors, hyper } = args;
        let len = weights.master.len();
        check_len(op, "grads", grads.len(), len)?;
        check_range(op, "shard", len, &shard, shard.len())?;
        check_len(op, "shard's start within a stretch", shard.start % STRETCH, 0)?;
        if shard.end < len {
            check_len(op, "shard's end within a stretch", shard.end % STRETCH, 0)?;
        }
        check_len(op, "m", m.len(), shard.len())?;
        check_len(op, "v", v.len(), shard.len())?;
        check_len(op, "norm", norm.len(), 1)?;
        check_len(op, "updates", updates.len(), 1)?;
        for TensorSpan { range, .. } in tensors {
            check_range(op, "tensors", len, range, range.len())?;
        }
        let division = spans.get(device, tensors, &shard)?;
        let master = weights.master.view_mut(0..len);
        let rounded = weights.rounded.as_mut().map(|rounded| rounded.view_mut(0..len));
        let aligned_all = master.is_aligned()
            && rounded.as_ref().is_none_or(|r| r.is_aligned())
            && grads.is_aligned()
            && m.is_aligned()
            && v.is_aligned();
        let constants = device.scratch(aligned::<u8>(CONSTANTS) + aligned::<f32>(tensors.len()))?;

        let OptimizerHyper { lr, beta1, beta2, eps, weight_decay, max_norm, clip_eps } = hyper;
        let launch = Launch::new(device, "optimizer_constants_f32");
        let launch = launch.arg(constants).view(&norm).view_mut(&mut updates);
        let launch = launch.arg(lr).arg(beta1).arg(beta2).arg(eps).arg(weight_decay);
        let launch = launch.arg(max_norm).arg(clip_eps).arg(u32::from(counts));
        // SAFETY: scratch has room for the constants; `norm` and `updates` have one element
        unsafe { launch.run([1, 1, 1], [1, 1, 1], 0) }?;
        Ok(Self {
            master,
            rounded: rounded.map_or(0, |rounded| rounded.ptr()),
            grads,
            m,
            v,
            constants,
            rates: constants + aligned::<u8>(CONSTANTS) as u64,
            division,
            aligned: aligned_all,
            elements: std::marker::PhantomData,
        })
    }

    /// A block a piece; appends what all kernels over pieces take last.
    ///
    /// # Safety
    /// As [`Launch::run`].
    unsafe fn run(&self, launch: Launch<'_>) -> Result<()> {
        let pieces = self.division.pieces.view(0..self.division.pieces.len());
        let launch = launch.arg(self.constants).view(&pieces);
        let launch = launch.arg(self.division.shard.start as u64).arg(u32::from(self.aligned));
        // SAFETY: the caller's
        unsafe { launch.run([pieces.len(), 1, 1], THREADS, 0) }
    }
}

pub(super) fn adamw<E: Element>(
    device: &Arc<Device>,
    spans: &Spans,
    args: OptimizerStep<'_, Cuda<E>>,
) -> Result<()> {
    let mut step = Step::begin("adamw", device, spans, args, true)?;
    let launch = Launch::new(device, kernel!(E, "adamw")).view_mut(&mut step.master).arg(step.rounded);
    let launch = launch.view(&step.grads).view_mut(&mut step.m).view_mut(&mut step.v);
    // SAFETY: weights and gradients have the table's length, moments the shard's, and pieces lie in both
    unsafe { step.run(launch) }
}

pub(super) fn lamb_moments<E: Element>(
    device: &Arc<Device>,
    spans: &Spans,
    args: OptimizerStep<'_, Cuda<E>>,
    mut sums: ViewMut<'_, f64>,
) -> Result<()> {
    check_len("lamb_moments", "sums", sums.len(), lamb_sums(args.tensors))?;
    let mut step = Step::begin("lamb_moments", device, spans, args, false)?;
    let launch = Launch::new(device, "lamb_moments_f32").view_mut(&mut sums).view_mut(&mut step.master);
    let launch = launch.view(&step.grads).view_mut(&mut step.m).view_mut(&mut step.v);
    // SAFETY: as in `adamw`; `sums` has a pair for each stretch of each tensor
    unsafe { step.run(launch) }
}

pub(super) fn lamb_apply<E: Element>(
    device: &Arc<Device>,
    spans: &Spans,
    args: OptimizerStep<'_, Cuda<E>>,
    sums: View<'_, f64>,
) -> Result<()> {
    check_len("lamb_apply", "sums", sums.len(), lamb_sums(args.tensors))?;
    let mut step = Step::begin("lamb_apply", device, spans, args, true)?;
    let tensors = step.division.sums.view(0..step.division.sums.len());
    let launch = Launch::new(device, "lamb_rates_f32").arg(step.rates).view(&sums);
    let launch = launch.arg(step.constants).view(&tensors);
    // SAFETY: scratch has room for a rate a tensor; `sums` has a pair for each stretch of each tensor
    unsafe { launch.run([tensors.len(), 1, 1], THREADS, 0) }?;
    let launch = Launch::new(device, kernel!(E, "lamb_apply")).view_mut(&mut step.master).arg(step.rounded);
    let launch = launch.view_mut(&mut step.m).view_mut(&mut step.v).arg(step.rates);
    // SAFETY: as in `adamw`; a rate for each tensor
    unsafe { step.run(launch) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(range: Range<usize>, decay: bool) -> TensorSpan {
        TensorSpan { range, decay }
    }

    #[test]
    fn pieces_lie_in_one_stretch_of_one_tensor_of_the_shard() {
        let tensors = [span(0..5, true), span(7..STRETCH + 3, false), span(STRETCH + 3..3 * STRETCH, true)];
        let piece = |start: usize, end: usize, tensor, sums, decays| Piece {
            start: start as u64,
            len: (end - start) as u32,
            tensor,
            sums,
            decays,
        };
        let all = [
            piece(0, 5, 0, 0, 1),
            piece(7, STRETCH, 1, 1, 0),
            piece(STRETCH, STRETCH + 3, 1, 2, 0),
            piece(STRETCH + 3, 2 * STRETCH, 2, 3, 1),
            piece(2 * STRETCH, 3 * STRETCH, 2, 4, 1),
        ];
        let (pieces, sums) = divide(&tensors, &(0..3 * STRETCH));
        assert_eq!(pieces, all);
        let firsts: Vec<_> = sums.iter().map(|t| (t.first, t.count, t.decays)).collect();
        assert_eq!(firsts, [(0, 1, 1), (1, 2, 0), (3, 2, 1)]);
        assert_eq!(lamb_sums(&tensors), 10);
        assert_eq!(divide(&tensors, &(STRETCH..2 * STRETCH)).0, all[2..4]);
        assert_eq!(divide(&tensors, &(STRETCH..STRETCH)).0, []);
    }
}
