//! BERT: forward and backward, written out. Each part's backward stands below its forward.

mod embeddings;
mod heads;
pub mod init;
mod layer;
pub(crate) mod resize;
mod sums;

pub(crate) use sums::SUMS;
pub use sums::{EvalSums, LossScale};

use crate::activations::{Activations, BackwardScratch, Dims};
use crate::config::{ModelConfig, Recompute};
use crate::data::Batch;
use crate::device_batch::{BatchRing, DeviceBatch, Part};
use crate::table::TensorTable;
use crate::{Error, Result};
use kernels::Scalar;
use kernels::backend::{Accs, AttentionSize, Backend, Dropout, Indices};
use kernels::cpu::memory::zeros;
use kernels::philox::{self, DropoutRate, Site};

/// Called after a stage of backward with the device, the stage's number and all gradients.
pub type StageDone<'a, B> =
    dyn FnMut(&B, usize, &<B as Backend>::Mem<<B as Backend>::Acc>) -> Result<()> + 'a;

/// Asked between parts of a pass whether it goes on. A signal may have come meanwhile.
pub type GoesOn<'a> = &'a dyn Fn() -> bool;

fn go_on(goes_on: GoesOn<'_>) -> Result<()> {
    if goes_on() { Ok(()) } else { Err(Error::Stopped) }
}

/// A model on a device: weights and the activations of the batch it last saw.
pub struct Bert<B: Backend> {
    backend: B,
    config: ModelConfig,
    table: TensorTable,
    weights: B::Weights,
    recompute: Recompute,
    batches: BatchRing<B>,
    acts: Activations<B>,
    /// [4] MLM loss, MLM correct, NSP loss, NSP correct: sums since they were last cleared
    sums: B::Mem<B::Acc>,
}

/// An evaluation that the device is still at.
pub struct PendingSums<B: Backend> {
    numbers: B::Pending,
    masked: usize,
    labelled: usize,
}

/// Gradients of all parameters, and what computing them needs.
pub struct Gradients<B: Backend> {
    params: B::Mem<B::Acc>,
    scratch: BackwardScratch<B>,
}

/// The dropouts of one pass.
#[derive(Debug, Clone, Copy)]
struct Drops {
    hidden: DropoutRate,
    attention: DropoutRate,
    key: u64,
}

impl Drops {
    fn hidden<'a, B: Backend>(&self, layer: usize, site: Site, row_keys: Indices<'a, B>) -> Dropout<'a, B> {
        Dropout { rate: self.hidden, key: self.key, site: philox::site(layer, site), row_keys }
    }

    fn attention<'a, B: Backend>(&self, layer: usize, row_keys: Indices<'a, B>) -> Dropout<'a, B> {
        Dropout { rate: self.attention, key: self.key, site: philox::site(layer, Site::Attention), row_keys }
    }
}

/// What every part of a pass reads.
struct Pass<'a, B: Backend> {
    backend: &'a B,
    config: &'a ModelConfig,
    table: &'a TensorTable,
    weights: &'a B::Weights,
    batch: &'a DeviceBatch<B>,
    drops: Drops,
}

impl<'a, B: Backend> Pass<'a, B> {
    /// With a key, with dropout.
    fn new(
        backend: &'a B,
        config: &'a ModelConfig,
        table: &'a TensorTable,
        weights: &'a B::Weights,
        batch: &'a DeviceBatch<B>,
        key: Option<u64>,
    ) -> Self {
        let rate = |p: f64| if key.is_some() { DropoutRate::new(p) } else { DropoutRate::NONE };
        let drops = Drops {
            hidden: rate(config.hidden_dropout),
            attention: rate(config.attention_dropout),
            key: key.unwrap_or(0),
        };
        Self { backend, config, table, weights, batch, drops }
    }

    fn hidden(&self) -> usize {
        self.config.hidden
    }

    fn attention_size(&self, subset: bool) -> AttentionSize<'_, B> {
        let b = self.batch;
        AttentionSize {
            cu_q: if subset { b.at(Part::CuRows) } else { b.at(Part::CuSeqlens) },
            cu_k: b.at(Part::CuSeqlens),
            queries: if subset { b.dims.rows } else { b.dims.tokens },
            keys: b.dims.tokens,
            max_keys: b.max_length,
            heads: self.config.heads,
            head_size: self.config.hidden / self.config.heads,
        }
    }

    /// Keys of the dropout draws: of the last layer's rows, or of all tokens.
    fn row_keys(&self, subset: bool) -> Indices<'_, B> {
        if subset { self.batch.at(Part::RowsKeys) } else { self.batch.at(Part::RowKeys) }
    }
}

impl<B: Backend> Bert<B> {
    /// A model with all weights 0; see [`Self::init`] and [`Self::load_weights`].
    pub fn new(backend: B, config: &ModelConfig) -> Result<Self> {
        Self::recomputing(backend, config, Recompute::None)
    }

    /// As [`Self::new`]; backward computes once more what `recompute` says.
    pub fn recomputing(backend: B, config: &ModelConfig, recompute: Recompute) -> Result<Self> {
        let table = TensorTable::new(config);
        Ok(Self {
            weights: backend.weights(table.len)?,
            recompute,
            batches: BatchRing::new(&backend)?,
            acts: Activations::new(&backend, config, table.padded_vocab, recompute, Dims::default())?,
            sums: backend.zeros("losses", SUMS)?,
            config: config.clone(),
            table,
            backend,
        })
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parameters' places.
    pub fn table(&self) -> &TensorTable {
        &self.table
    }

    /// Both, for an optimizer: the weights to update and the device.
    pub fn weights_mut(&mut self) -> (&B, &mut B::Weights) {
        (&self.backend, &mut self.weights)
    }

    /// The weights where the device has them.
    pub fn weights_on_device(&self) -> &B::Weights {
        &self.weights
    }

    /// Initializes the weights: normal cut at two deviations, biases 0, layernorms 1 and 0; the same for one seed.
    pub fn init(&mut self, seed: u64) -> Result<()> {
        let weights = init::weights(&self.table, self.config.initializer_range, seed)?;
        self.load_weights(&weights)
    }

    /// Sets all weights; `weights` is laid out as [`Self::table`] says, padding 0.
    pub fn load_weights(&mut self, weights: &[f32]) -> Result<()> {
        if weights.len() != self.table.len {
            let what = format!("{} weights given, the model's table has {}", weights.len(), self.table.len);
            return Err(Error::Training(what));
        }
        let weights: Vec<B::Acc> = weights.iter().map(|&w| B::Acc::from_f64(f64::from(w))).collect();
        self.load_master(&weights)
    }

    /// Sets all weights in the precision of the master copy, as [`Self::weights`] returned them.
    pub fn load_master(&mut self, weights: &[B::Acc]) -> Result<()> {
        Ok(self.backend.upload_weights(&mut self.weights, 0, weights)?)
    }

    /// All master weights, laid out as [`Self::table`] says, as far as this process has them: where several each update a part,
    /// [`crate::optim::Optimizer::weights`] has all.
    pub fn weights(&self) -> Result<Vec<B::Acc>> {
        let mut host = zeros("a copy of the weights", self.table.len)?;
        self.backend.download(B::master(&self.weights, 0..self.table.len), &mut host)?;
        Ok(host)
    }

    /// All weights as products read them, in the type of the elements.
    pub fn rounded_weights(&self) -> Result<Vec<f64>> {
        let mut host = zeros("a copy of the weights", self.table.len)?;
        self.backend.download_elems(B::weight(&self.weights, 0..self.table.len), &mut host)?;
        Ok(host)
    }

    /// Losses and accuracies of a batch, without dropout. Waits for the device.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<EvalSums> {
        let pending = self.evaluate_later(batch)?;
        self.read(pending)
    }

    /// Begins [`Self::evaluate`]; [`Self::read`] gives its result.
    pub fn evaluate_later(&mut self, batch: &Batch) -> Result<PendingSums<B>> {
        self.evaluate_while(batch, &|| true)
    }

    /// As [`Self::evaluate_later`]; `goes_on` is asked before each layer.
    ///
    /// # Errors
    /// [`Error::Stopped`] where it says no.
    pub fn evaluate_while(&mut self, batch: &Batch, goes_on: GoesOn<'_>) -> Result<PendingSums<B>> {
        self.load(batch)?;
        self.clear_sums()?;
        self.forward(None, goes_on)?;
        let Self { backend, config, table, weights, batches, acts, sums, .. } = self;
        let pass = Pass::new(backend, config, table, weights, batches.current(), None);
        heads::losses(&pass, &mut acts.heads, sums, None)?;
        let numbers = self.backend.read_later(&[self.sums_on_device()])?;
        Ok(PendingSums { numbers, masked: batch.mlm_rows.len(), labelled: batch.nsp_labels.len() })
    }

    /// What [`Self::evaluate_later`] began. Waits for that and for nothing after it.
    pub fn read(&self, pending: PendingSums<B>) -> Result<EvalSums> {
        let sums = EvalSums::from_numbers(&self.backend.read(pending.numbers)?);
        Ok(EvalSums { mlm_count: pending.masked, nsp_count: pending.labelled, ..sums })
    }

    /// Logits [masked tokens, vocabulary] of a batch, without dropout.
    pub fn mlm_logits(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        self.load(batch)?;
        self.forward(None, &|| true)?;
        let (classes, stride) = (self.config.vocab_size, self.table.padded_vocab);
        let mut padded = vec![0.0; batch.mlm_rows.len() * stride];
        self.backend.download_elems(B::at(&self.acts.heads.logits, 0..padded.len()), &mut padded)?;
        Ok(padded.chunks_exact(stride).flat_map(|row| &row[..classes]).copied().collect())
    }

    /// Next-sentence logits [B, 2] of the last pass.
    pub fn nsp_logits(&self) -> Result<Vec<f64>> {
        let mut logits = vec![0.0; self.batches.current().dims.sequences * 2];
        self.backend.download_elems(B::at(&self.acts.heads.nsp_logits, 0..logits.len()), &mut logits)?;
        Ok(logits)
    }

    /// Hidden states of the last pass: of the embeddings (0) or of a layer (1…). [T, H]; of the last layer [R, H].
    pub fn hidden_states(&self, index: usize) -> Result<Vec<f64>> {
        let dims = self.batches.current().dims;
        let rows = if index == self.config.layers { dims.rows } else { dims.tokens };
        let mut host = vec![0.0; rows * self.config.hidden];
        self.backend.download_elems(B::at(&self.acts.hidden[index], 0..host.len()), &mut host)?;
        Ok(host)
    }

    /// Gradient buffers for this model, all 0.
    pub fn gradients(&self) -> Result<Gradients<B>> {
        Ok(Gradients {
            params: self.backend.zeros("gradients", self.table.len)?,
            scratch: BackwardScratch::new(&self.backend, &self.config, Dims::default())?,
        })
    }

    /// Takes the memory for batches of at most these sizes, of training and of evaluation, so that no step takes any.
    pub fn reserve(&mut self, grads: &mut Gradients<B>, [train, eval]: [Dims; 2]) -> Result<()> {
        let any = train.max(&eval);
        self.batches.reserve(&self.backend, &any, self.config.max_positions)?;
        self.grow(any)?;
        grads.scratch = BackwardScratch::new(&self.backend, &self.config, train)?;
        Ok(())
    }

    /// Forward and backward of one micro-batch: adds its gradient of the scaled loss to `grads` and its losses to
    /// the sums. `key` is the step's [`philox::step_key`].
    pub fn forward_backward(
        &mut self,
        grads: &mut Gradients<B>,
        batch: &Batch,
        scale: LossScale,
        key: u64,
    ) -> Result<()> {
        self.bring(grads, batch)?;
        self.train(grads, scale, key, &|| true, &mut |_, _, _| Ok(()))
    }

    /// The first half of [`Self::forward_backward`]: brings the batch, and takes what memory it needs.
    pub fn bring(&mut self, grads: &mut Gradients<B>, batch: &Batch) -> Result<()> {
        self.load(batch)?;
        if !self.batches.current().dims.fits(&grads.scratch.capacity) {
            grads.scratch = BackwardScratch::new(&self.backend, &self.config, Dims::default())?;
            grads.scratch = BackwardScratch::new(&self.backend, &self.config, self.acts.capacity)?;
        }
        Ok(())
    }

    /// The second half, which only queues ops. `done` is called after each stage of backward with the device, its number and
    /// all gradients, of which those of [`crate::dist::Buckets`] are then complete. `goes_on` is asked before each layer.
    ///
    /// # Errors
    /// [`Error::Stopped`] where it says no: gradients and sums are then of no use, the weights are as they were.
    pub fn train(
        &mut self,
        grads: &mut Gradients<B>,
        scale: LossScale,
        key: u64,
        goes_on: GoesOn<'_>,
        done: &mut StageDone<'_, B>,
    ) -> Result<()> {
        self.forward(Some(key), goes_on)?;
        let Self { backend, config, table, weights, batches, acts, sums, recompute, .. } = self;
        let pass = Pass::new(backend, config, table, weights, batches.current(), Some(key));
        heads::losses(&pass, &mut acts.heads, sums, Some(scale))?;
        heads::backward(&pass, &mut acts.heads, grads)?;
        done(backend, 0, &grads.params)?;
        let layers = config.layers;
        for i in (0..layers).rev() {
            go_on(goes_on)?;
            let kept = &mut acts.layers[recompute.set_of(i, layers)];
            let (before, after) = acts.hidden.split_at_mut(i + 1);
            if recompute.is_gone(i, layers) {
                layer::forward(&pass, i, kept, &before[i], &mut after[0])?;
            }
            layer::backward(&pass, i, kept, &before[i], grads)?;
            done(backend, layers - i, &grads.params)?;
        }
        embeddings::backward(&pass, &acts.embedding, grads)?;
        done(backend, layers + 1, &grads.params)
    }

    /// Sums of the losses since [`Self::clear_sums`]; the counts are left 0. Waits for the device.
    pub fn sums(&self) -> Result<EvalSums> {
        let mut host = [B::Acc::ZERO; SUMS];
        self.backend.download(self.sums_on_device(), &mut host)?;
        Ok(EvalSums::from_numbers(&host))
    }

    /// The numbers of [`EvalSums::from_numbers`].
    pub fn sums_on_device(&self) -> Accs<'_, B> {
        B::at(&self.sums, 0..SUMS)
    }

    /// Starts new sums.
    pub fn clear_sums(&mut self) -> Result<()> {
        Ok(self.backend.clear(B::at_mut(&mut self.sums, 0..SUMS))?)
    }

    /// Brings a batch, and takes what memory its forward needs.
    fn load(&mut self, batch: &Batch) -> Result<()> {
        self.check(batch)?;
        self.batches.bring(&self.backend, batch)?;
        let dims = self.batches.current().dims;
        if !dims.fits(&self.acts.capacity) {
            self.grow(dims.max(&self.acts.capacity))?;
        }
        Ok(())
    }

    fn grow(&mut self, capacity: Dims) -> Result<()> {
        let acts = |dims| {
            Activations::new(&self.backend, &self.config, self.table.padded_vocab, self.recompute, dims)
        };
        // The old buffers go first, so that both never exist together.
        self.acts = acts(Dims::default())?;
        self.acts = acts(capacity)?;
        Ok(())
    }

    /// Up to the logits of the batch at hand; with a key, with dropout.
    fn forward(&mut self, key: Option<u64>, goes_on: GoesOn<'_>) -> Result<()> {
        let Self { backend, config, table, weights, batches, acts, recompute, .. } = self;
        let pass = Pass::new(backend, config, table, weights, batches.current(), key);
        embeddings::forward(&pass, &mut acts.embedding, &mut acts.hidden[0])?;
        for i in 0..config.layers {
            go_on(goes_on)?;
            let (before, after) = acts.hidden.split_at_mut(i + 1);
            let kept = &mut acts.layers[recompute.set_of(i, config.layers)];
            layer::forward(&pass, i, kept, &before[i], &mut after[0])?;
        }
        heads::forward(&pass, &mut acts.heads, &acts.hidden[config.layers])
    }

    /// What the ops cannot know: that the batch belongs to this model.
    fn check(&self, batch: &Batch) -> Result<()> {
        let c = &self.config;
        if batch.max_length > c.max_positions {
            return Err(Error::config(
                "model.max_positions",
                format!(
                    "{} positions, but a sequence has {} tokens; prepare shorter sequences or raise it",
                    c.max_positions, batch.max_length
                ),
            ));
        }
        let largest = |v: &[u32]| v.iter().copied().max().unwrap_or(0) as usize;
        let (token, kind) = (largest(&batch.tokens).max(largest(&batch.mlm_labels)), largest(&batch.types));
        if token >= c.vocab_size {
            let what = format!("{}, but the data holds token id {token}", c.vocab_size);
            return Err(Error::config("model.vocab_size", what));
        }
        if kind >= c.type_vocab {
            let what = format!("{}, but the data holds token type {kind}", c.type_vocab);
            return Err(Error::config("model.type_vocab", what));
        }
        Ok(())
    }
}

impl<B: Backend> Gradients<B> {
    /// All gradients, as [`Bert::table`] says.
    pub fn params(&self) -> &B::Mem<B::Acc> {
        &self.params
    }

    /// All gradients, to write to.
    pub fn params_mut(&mut self) -> &mut B::Mem<B::Acc> {
        &mut self.params
    }

    /// Starts anew.
    pub fn clear(&mut self, backend: &B) -> Result<()> {
        let len = B::len(&self.params);
        Ok(backend.clear(B::at_mut(&mut self.params, 0..len))?)
    }

    /// All gradients on the host. Waits for the device.
    pub fn download(&self, backend: &B) -> Result<Vec<B::Acc>> {
        let mut host = vec![B::Acc::ZERO; B::len(&self.params)];
        backend.download(B::at(&self.params, 0..host.len()), &mut host)?;
        Ok(host)
    }
}

/// Floating-point operations of forward and backward, products only, nothing counted twice for recomputation:
/// `6 T L (4 H^2 + 2 H F) + 12 L H sum(len^2) + 6 M (H^2 + H V)`.
pub fn training_flops(config: &ModelConfig, batch: &Batch) -> f64 {
    let (h, f, l) = (config.hidden as f64, config.intermediate as f64, config.layers as f64);
    let squares: f64 = batch.cu_seqlens.windows(2).map(|w| f64::from(w[1] - w[0]).powi(2)).sum();
    let masked = batch.mlm_rows.len() as f64;
    6.0 * batch.token_count() as f64 * l * (4.0 * h * h + 2.0 * h * f)
        + 12.0 * l * h * squares
        + 6.0 * masked * (h * h + h * config.vocab_size as f64)
}
