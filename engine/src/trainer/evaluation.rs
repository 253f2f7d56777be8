//! Evaluation on held-out text.

use super::Options;
use super::run::Run;
use super::setup::Setup;
use crate::Result;
use crate::data::loader::eval_batches;
use crate::data::shards::Dataset;
use crate::dist::Group;
use crate::metrics::EvalRecord;
use crate::model::{Bert, EvalSums};
use crate::trainer::Observer;
use kernels::Backend;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Sequences of one evaluation batch.
pub(super) const EVAL_BATCH: usize = 32;

impl<B: Backend<Acc = f32>> Run<'_, B> {
    /// Evaluates on the held-out text; tells whether the accuracy is the best so far, or nothing if a signal came.
    pub(super) fn evaluate(
        &mut self,
        options: &Options<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Option<bool>> {
        if self.setup.eval.is_none() {
            return Ok(Some(false));
        }
        let Some(record) = self.measure(options)? else { return Ok(None) };
        if self.artifacts.writes() {
            observer.evaluated(&record);
        }
        let (state, accuracy) = (&mut self.setup.state, record.eval_mlm_accuracy);
        let improved = state.best_accuracy.is_none_or(|best| accuracy > best);
        if improved {
            (state.best_accuracy, state.best_step) = (Some(accuracy), Some(state.step));
        }
        self.artifacts.evaluated(record)?;
        Ok(Some(improved))
    }

    /// One evaluation; none without held-out text, or if a signal came.
    pub(super) fn measure(&mut self, options: &Options<'_>) -> Result<Option<EvalRecord>> {
        let Self { group, artifacts, stopped, setup: Setup { config, bert, eval, state, .. }, .. } = self;
        let Some(dataset) = eval else { return Ok(None) };
        let started = Instant::now();
        artifacts.eval_start(state)?;
        // Several processes stop only where they agree to, after a step.
        let stop = || group.world() == 1 && options.stop.load(Ordering::Relaxed) != 0;
        let part = (group.ranks.rank(), group.world());
        let Some((mut sums, mut sequences)) =
            evaluate(bert, dataset, config.train.eval_sequences, part, &stop)?
        else {
            *stopped = options.stop.load(Ordering::Relaxed);
            return Ok(None);
        };
        sums_of_all(group, &mut sums, &mut sequences)?;
        let labelled = sums.nsp_count > 0;
        let record = EvalRecord {
            step: state.step,
            samples: state.samples,
            eval_loss: sums.loss(),
            eval_mlm_loss: sums.mlm_mean(),
            eval_mlm_accuracy: sums.mlm_accuracy(),
            eval_nsp_loss: labelled.then(|| sums.nsp_mean()),
            eval_nsp_accuracy: labelled.then(|| sums.nsp_accuracy()),
            eval_perplexity: sums.mlm_mean().exp(),
            eval_sequences: sequences,
            eval_seconds: started.elapsed().as_secs_f64(),
        };
        self.artifacts.eval_stop(&record)?;
        self.artifacts.track(state, None)?;
        Ok(Some(record))
    }
}

/// Adds what the other processes have evaluated.
fn sums_of_all<B: Backend>(group: &mut Group<B>, sums: &mut EvalSums, sequences: &mut u64) -> Result<()> {
    if group.world() == 1 {
        return Ok(());
    }
    let EvalSums { mlm_loss, mlm_correct, nsp_loss, nsp_correct, mlm_count, nsp_count } = sums;
    let counts = [*mlm_count, *nsp_count, *sequences as usize].map(|n| n as f64);
    let mut all = [*mlm_loss, *mlm_correct, *nsp_loss, *nsp_correct, counts[0], counts[1], counts[2]];
    group.ranks.sum_host(&mut all)?;
    [*mlm_loss, *mlm_correct, *nsp_loss, *nsp_correct] = [all[0], all[1], all[2], all[3]];
    (*mlm_count, *nsp_count, *sequences) = (all[4] as usize, all[5] as usize, all[6] as u64);
    Ok(())
}

/// Sums over `sequences` held-out sequences (0: all), with the same masks each time; and how many they were. Of the
/// batches, those of one process of several: `part` is its rank and their number. None if `stop` says so before the end.
pub(crate) fn evaluate<B: Backend>(
    bert: &mut Bert<B>,
    dataset: &Dataset,
    sequences: usize,
    part: (usize, usize),
    stop: &dyn Fn() -> bool,
) -> Result<Option<(EvalSums, u64)>> {
    let (mut sums, mut count) = (EvalSums::default(), 0);
    let mut pending = None;
    for batch in eval_batches(dataset, sequences, EVAL_BATCH, bert.config().max_positions, part) {
        let batch = batch?;
        if stop() {
            return Ok(None);
        }
        // A batch's sums are waited for once the next one is queued.
        if let Some(before) = pending.replace(bert.evaluate_later(&batch)?) {
            sums.add(&bert.read(before)?);
        }
        count += batch.sequences() as u64;
    }
    if let Some(last) = pending {
        sums.add(&bert.read(last)?);
    }
    Ok(Some((sums, count)))
}
