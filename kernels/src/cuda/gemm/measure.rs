//! Choosing by measurement.

use super::choices::Pick;
use super::library::explain;
use super::own;
use super::plan::{Operands, Plan, Shape};
use super::{Algorithm, Products};
use crate::Result;

/// Algorithms of cuBLASLt that are measured.
const CANDIDATES: usize = 16;
/// Measured runs of each; the median counts.
const RUNS: usize = 5;
/// A candidate is preferred to an earlier one if it takes at most this share of its time: cuBLASLt's come in the order of its
/// heuristic, ours after them. It keeps noise from changing the choice.
const BETTER: f64 = 0.98;
/// What memory for trials is called.
const WHAT: &str = "trials of products";

impl Products {
    /// What takes the least time on these operands; what is written goes elsewhere.
    ///
    /// # Safety
    /// As [`Self::run`].
    pub(super) unsafe fn best(&self, plan: &mut Plan, at: &Operands) -> Result<Pick> {
        let shape = plan.shape;
        let answers = plan.answers(&self.library, CANDIDATES).map_err(|error| explain(shape, error))?;
        let mut picks: Vec<_> = answers.iter().map(|answer| Pick::Library(answer.data)).collect();
        picks.extend(own::candidates(&self.device, &shape).into_iter().map(Pick::Own));
        let bytes = shape.output_bytes();
        // Without memory to try them on, the first answer it is.
        let Ok(output) = self.device.alloc(WHAT, bytes) else { return Ok(picks[0]) };
        let trial = Operands { d: output, ..*at };
        let best = self.device.fill(output, 0, bytes).and_then(|()| {
            self.fastest(&picks, &mut |pick| match pick {
                Pick::Library(data) => {
                    plan.algorithm = Algorithm { data };
                    let stream = self.device.compute();
                    // SAFETY: the caller's, and `output` is as large as D; the stream is idle
                    Ok(unsafe { plan.run(&self.library, &trial, self.workspace, stream) }.is_ok())
                }
                // SAFETY: as above
                Pick::Own(tiles) => Ok(unsafe { own::run(&self.device, &shape, tiles, &trial) }.is_ok()),
                Pick::Apart => Ok(false),
            })
        });
        self.device.free(WHAT, output, bytes);
        best
    }

    /// Whether a product with GELU takes less time apart or by which of our kernels. D and what is kept are written over and
    /// over; the column sums are as before in the end.
    ///
    /// # Safety
    /// As [`Self::run_gelu`].
    pub(super) unsafe fn best_with_gelu(
        &self,
        shape: &Shape,
        at: &Operands,
        apart: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Pick> {
        let mut picks = vec![Pick::Apart];
        picks.extend(own::candidates(&self.device, shape).into_iter().map(Pick::Own));
        let bytes = if at.sums == 0 { 0 } else { shape.inputs * size_of::<f32>() };
        let Ok(sums) = self.device.alloc(WHAT, bytes) else { return Ok(Pick::Apart) };
        let mut trials = || {
            self.device.copy(sums, at.sums, bytes)?;
            let best = self.fastest(&picks, &mut |pick| match pick {
                // SAFETY: the caller's
                Pick::Own(tiles) => Ok(unsafe { own::run(&self.device, shape, tiles, at) }.is_ok()),
                _ => apart().map(|()| true),
            })?;
            self.device.copy(at.sums, sums, bytes)?;
            Ok(best)
        };
        let best = trials();
        self.device.free(WHAT, sums, bytes);
        best
    }

    /// The pick of the least median time; `run` says whether one runs.
    fn fastest(&self, picks: &[Pick], run: &mut dyn FnMut(Pick) -> Result<bool>) -> Result<Pick> {
        self.device.synchronize()?;
        let mut times = vec![Vec::with_capacity(RUNS + 1); picks.len()];
        // In turns, so that a clock that falls while this goes on is nobody's disadvantage.
        for _ in 0..=RUNS {
            for (&pick, times) in picks.iter().zip(&mut times) {
                let mut runs = true;
                let time = self.device.time(|| {
                    runs = run(pick)?;
                    Ok(())
                })?;
                times.push(if runs { time } else { f64::INFINITY });
            }
        }
        let mut best = (picks[0], f64::INFINITY);
        for (&pick, times) in picks.iter().zip(&mut times) {
            let warm = &mut times[1..];
            warm.sort_by(f64::total_cmp);
            if warm[RUNS / 2] < best.1 * BETTER {
                best = (pick, warm[RUNS / 2]);
            }
        }
        Ok(best.0)
    }
}
