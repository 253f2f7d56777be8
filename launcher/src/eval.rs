//! `launcher eval`: a model on prepared text.

use crate::args::{DataSplit, DevicePrecision, EvalArgs};
use crate::device::{self, Work};
use crate::model::{Model, useless};
use crate::progress::Bar;
use crate::{exit, format};
use anyhow::bail;
use engine::checkpoint::hf;
use engine::config::Precision;
use engine::data::loader::eval_batches;
use engine::data::shards::{Dataset, SplitName};
use engine::files::check_new;
use engine::model::EvalSums;
use engine::verify::export::write_batch;
use kernels::Backend;
use kernels::cuda::Device;
use std::io::Write;
use std::sync::Arc;

/// Prints losses, accuracies and perplexity.
pub fn run(args: &EvalArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    crate::start_threads(args.threads)?;
    args.dump_batch.as_deref().map_or(Ok(()), check_new)?;
    let (split, name) = match args.split {
        DataSplit::Eval => (SplitName::Eval, "eval"),
        DataSplit::Train => (SplitName::Train, "train"),
    };
    let data = Dataset::open_verified(&args.data, split)?;
    if data.is_empty() {
        let dir = args.data.display();
        bail!(
            "{dir}: the {name} split holds no sequence; prepare it with an --eval-fraction above 0, or choose the other --split"
        );
    }
    let model = Model::load(&args.model)?;
    check(&model, &data)?;
    let precision = match args.precision {
        None => Precision::Auto,
        Some(DevicePrecision::F32) => Precision::F32,
        Some(DevicePrecision::Bf16) => Precision::Bf16,
    };
    let evaluation = Evaluation { args, model: &model, data: &data };
    let Evaluated { sums, sequences, tokens } = device::run_on(args.device.wanted(), precision, evaluation)?;

    if !sums.loss().is_finite() {
        bail!(useless(&model, "the loss"));
    }
    writeln!(out, "model         {}: {}", model.dir.display(), model.describe())?;
    let (shown, tokens, masked) =
        (format::count(sequences), format::count(tokens), format::count(sums.mlm_count as u64));
    let dir = args.data.display();
    writeln!(out, "data          {dir}, {name} split: {shown} sequences, {tokens} tokens, {masked} masked")?;
    writeln!(out, "tokenizer     {}", data.manifest().tokenizer())?;
    if let Some(path) = &args.dump_batch {
        writeln!(out, "first batch   {}", path.display())?;
    }
    writeln!(out, "MLM loss      {:.4}", sums.mlm_mean())?;
    writeln!(out, "MLM accuracy  {:.4}", sums.mlm_accuracy())?;
    writeln!(out, "perplexity    {:.2}", sums.mlm_mean().exp())?;
    if sums.nsp_count > 0 && model.has_nsp {
        writeln!(out, "NSP loss      {:.4}", sums.nsp_mean())?;
        writeln!(out, "NSP accuracy  {:.4}", sums.nsp_accuracy())?;
    }
    Ok(exit::DONE)
}

/// What is done on the device.
struct Evaluation<'a> {
    args: &'a EvalArgs,
    model: &'a Model,
    data: &'a Dataset,
}

/// What it gives.
struct Evaluated {
    sums: EvalSums,
    sequences: u64,
    tokens: u64,
}

impl Work for Evaluation<'_> {
    type Result = Evaluated;

    fn on<B: Backend<Acc = f32>>(self, backend: B, _: Option<Arc<Device>>) -> anyhow::Result<Evaluated> {
        let Self { args, model, data } = self;
        let mut bert = model.on(backend)?;
        let mut done = Evaluated { sums: EvalSums::default(), sequences: 0, tokens: 0 };
        let positions = model.config.max_positions;
        let batches = eval_batches(data, args.sequences, args.batch_sequences, positions, (0, 1));
        let sequences = if args.sequences == 0 { data.len() } else { args.sequences.min(data.len()) };
        let bar = Bar::new(sequences as u64, "sequences");
        // A batch's sums are waited for once the next one is queued.
        let mut last = None;
        for batch in batches {
            let batch = batch?;
            let pending = bert.evaluate_later(&batch)?;
            match args.dump_batch.as_deref().filter(|_| done.tokens == 0) {
                Some(path) => {
                    let own = bert.read(pending)?;
                    write_batch(path, &batch, &own)?;
                    done.sums.add(&own);
                }
                None => {
                    if let Some(before) = last.replace(pending) {
                        done.sums.add(&bert.read(before)?);
                    }
                }
            }
            done.sequences += batch.sequences() as u64;
            done.tokens += batch.token_count() as u64;
            bar.advance(batch.sequences() as u64);
        }
        if let Some(last) = last {
            done.sums.add(&bert.read(last)?);
        }
        bar.finish();
        data.check_files()?;
        Ok(done)
    }
}

/// Whether the model can read this data.
fn check(model: &Model, data: &Dataset) -> anyhow::Result<()> {
    let (dir, folder) = (data.dir().display(), model.dir.display());
    let (theirs, ours) = (data.vocab_size(), model.config.vocab_size);
    let own = model.own_tokenizer()?;
    // a model's table may be padded: its own vocabulary says so, or the number of its rows
    if theirs > ours || theirs < ours && own.is_none() && !hf::is_padded(theirs, ours) {
        bail!(
            "{dir}: prepared with a vocabulary of {theirs} tokens, {folder} has {ours}; prepare it with the model's"
        );
    }
    if let Some(own) = own {
        let (theirs, ours) = (data.vocab(), &own.vocab);
        if theirs.sha256() != ours.sha256() {
            let (theirs, ours) = (&theirs.sha256()[..16], &ours.sha256()[..16]);
            bail!(
                "{dir}: prepared with another vocabulary (sha256 {theirs}…) than that of {folder} ({ours}…); prepare it with the model's"
            );
        }
        if let Some((key, theirs, ours)) = data.manifest().tokenizer().difference(&own.settings) {
            let source = &own.source;
            bail!(
                "{dir}: prepared with {key} {theirs}, {folder} has {ours} ({source}); prepare it with --vocab {folder}"
            );
        }
    }
    let (longest, positions) = (data.longest(), model.config.max_positions);
    if longest > positions {
        bail!(
            "{dir}: the longest sequence has {longest} tokens, {folder} has {positions} positions; prepare it with --max-seq-length {positions}"
        );
    }
    if data.manifest().options.nsp && model.config.type_vocab < 2 {
        bail!("{dir}: holds sentence pairs, {folder} has one token type; prepare it with --no-nsp");
    }
    Ok(())
}
