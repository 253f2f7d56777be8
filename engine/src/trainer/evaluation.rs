//! Evaluation on held-out text.

use super::Options;
use super::artifacts::{LOWER, last_good};
use super::run::Run;
use super::setup::Setup;
use crate::checkpoint::TrainState;
use crate::data::loader::eval_batches;
use crate::data::shards::Dataset;
use crate::metrics::EvalRecord;
use crate::model::{Bert, EvalSums, GoesOn};
use crate::optim::learning_rate;
use crate::trainer::Observer;
use crate::{Error, Result};
use kernels::Backend;
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

    /// Ends a run whose weights give no finite loss on held-out text: no checkpoint and no model is made of them.
    fn refuse_broken(&mut self, record: &EvalRecord) -> Result<()> {
        if record.eval_loss.is_finite() {
            return Ok(());
        }
        let Setup { config, state, .. } = &self.setup;
        let what =
            format!("step {}: the loss on held-out text is not finite ({})", record.step, record.eval_loss);
        self.artifacts.evaluated(record.clone())?;
        Err(Error::Training(format!("{what}{}; {}", skipped(state), last_good(&config.train.run, LOWER))))
    }

    /// One evaluation; none without held-out text, or if a signal came.
    pub(super) fn measure(&mut self, options: &Options<'_>) -> Result<Option<EvalRecord>> {
        let Self { group, artifacts, setup: Setup { config, bert, eval, state, .. }, .. } = self;
        let Some(dataset) = eval.clone() else { return Ok(None) };
        let started = Instant::now();
        artifacts.eval_start(state)?;
        let goes_on = || group.signal(options.stop) == 0;
        let part = (group.ranks.rank(), group.world());
        let own = evaluate(bert, &dataset, config.train.eval_sequences, part, &goes_on)?;
        let Some((sums, sequences)) = self.sums_of_all(options, own)? else { return Ok(None) };
        let state = &self.setup.state;
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
        self.refuse_broken(&record)?;
        Ok(Some(record))
    }

    /// Adds what the other processes have evaluated; none where a signal came before all were done.
    fn sums_of_all(
        &mut self,
        options: &Options<'_>,
        own: Option<(EvalSums, u64)>,
    ) -> Result<Option<(EvalSums, u64)>> {
        let (done, (own, sequences)) = (own.is_some(), own.unwrap_or_default());
        let EvalSums { mlm_loss, mlm_correct, nsp_loss, nsp_correct, mlm_count, nsp_count } = own;
        let counts = [mlm_count, nsp_count, sequences as usize, usize::from(done)].map(|n| n as f64);
        let mut all =
            [mlm_loss, mlm_correct, nsp_loss, nsp_correct, counts[0], counts[1], counts[2], counts[3]];
        self.agree_to_stop(options, &mut all)?;
        let [mlm_loss, mlm_correct, nsp_loss, nsp_correct, ..] = all;
        let [mlm_count, nsp_count, sequences, done] = [4, 5, 6, 7].map(|i| all[i] as usize);
        let sums = EvalSums { mlm_loss, mlm_correct, nsp_loss, nsp_correct, mlm_count, nsp_count };
        Ok((done == self.group.world()).then_some((sums, sequences as u64)))
    }
}

/// How many updates before this one were skipped, if any.
fn skipped(state: &TrainState) -> String {
    match state.skipped_in_a_row {
        0 => String::new(),
        n => format!(", after {n} updates in a row that were skipped"),
    }
}

/// Refuses weights that give no finite loss on one sequence, held out if there is any: a checkpoint of them would be
/// worthless, and take the place of a good one.
pub(super) fn refuse_useless<B: Backend<Acc = f32>>(setup: &mut Setup<B>) -> Result<()> {
    let Setup { config, bert, eval, train, state, .. } = setup;
    let dataset = eval.as_ref().unwrap_or(train);
    let sums = evaluate(bert, dataset, 1, (0, 1), &|| true)?.map_or(EvalSums::default(), |(sums, _)| sums);
    if sums.loss().is_finite() {
        return Ok(());
    }
    let (split, step) = (if eval.is_some() { "held-out" } else { "training" }, state.step);
    let lr = learning_rate(&config.schedule, step.saturating_sub(1), config.train.steps);
    Err(Error::Training(format!(
        "step {step}: with the weights after its update the loss of a {split} sequence is not finite ({}, learning rate \
         {lr:e}){}; {}",
        sums.loss(),
        skipped(state),
        last_good(&config.train.run, LOWER)
    )))
}

/// Sums over `sequences` held-out sequences (0: all), with the same masks each time; and how many they were. Of the
/// batches, those of one process of several: `part` is its rank and their number. None where `goes_on` says no before the end.
pub(crate) fn evaluate<B: Backend>(
    bert: &mut Bert<B>,
    dataset: &Dataset,
    sequences: usize,
    part: (usize, usize),
    goes_on: GoesOn<'_>,
) -> Result<Option<(EvalSums, u64)>> {
    let (mut sums, mut count) = (EvalSums::default(), 0);
    let mut pending = None;
    // Where ops are done when they return a batch may take long.
    let in_pass: GoesOn<'_> = if B::HOST { goes_on } else { &|| true };
    for batch in eval_batches(dataset, sequences, EVAL_BATCH, bert.config().max_positions, part) {
        let batch = batch?;
        if !goes_on() {
            return Ok(None);
        }
        let next = match bert.evaluate_while(&batch, in_pass) {
            Err(Error::Stopped) => return Ok(None),
            other => other?,
        };
        // A batch's sums are waited for once the next one is queued.
        if let Some(before) = pending.replace(next) {
            sums.add(&bert.read(before)?);
        }
        count += batch.sequences() as u64;
    }
    if let Some(last) = pending {
        sums.add(&bert.read(last)?);
    }
    Ok(Some((sums, count)))
}
