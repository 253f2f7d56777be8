//! The blocks of both splits through the pipeline, into shards.

use super::example::{Example, Shape};
use super::files::InputFile;
use super::hdf5::{self, Planned, Table};
use super::journal::{Identity, Journal, Position};
use super::record::Store;
use super::skipped::{Bad, Skipped, Wrong};
use super::tfrecord::{self, Block};
use super::{
    ImportConfig, ImportFormat, ImportSource, LONGEST, Layout, SHORTEST, bad, check_length, options,
};
use crate::config::PrepareConfig;
use crate::data::pipeline::{Produced, ordered};
use crate::data::prepare::staging::Staging;
use crate::data::prepare::{Phase, PrepareProgress};
use crate::data::shards::{Columns, SplitManifest, SplitWriter, TextCounts};
use crate::data::vocab::Vocab;
use crate::error::{Error, Result};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Bytes of a block.
const BLOCK_BYTES: usize = 4 << 20;
/// Memory for blocks under way, in bytes. What is made of them, and what unpacking takes, is about twice that.
const BUDGET: usize = 128 << 20;

/// How much is handled at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes of a block.
    pub block: usize,
    /// Bytes of a shard; the usual ones where none.
    pub shard: Option<usize>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { block: BLOCK_BYTES, shard: None }
    }
}

/// An import whose files have been looked at.
pub(super) struct Run<'a> {
    config: &'a ImportConfig,
    vocab: &'a Vocab,
    threads: usize,
    sizes: Sizes,
    files: [&'a [InputFile]; 2],
    plans: Plans,
    pub max_seq_length: usize,
    progress: &'a (dyn Fn(&PrepareProgress) + Sync),
}

/// What is known of the files before they are read.
enum Plans {
    Tfrecord(Shape),
    /// Of the files to train on and to evaluate on.
    Hdf5([Vec<Planned>; 2]),
}

/// What became of the files.
pub(super) struct Done {
    pub options: PrepareConfig,
    pub source: ImportSource,
    pub train: SplitManifest,
    pub eval: SplitManifest,
    pub unigrams: Vec<u64>,
    pub skipped: Skipped,
}

impl<'a> Run<'a> {
    pub fn new(
        config: &'a ImportConfig,
        vocab: &'a Vocab,
        threads: usize,
        sizes: Sizes,
        files: [&'a [InputFile]; 2],
        progress: &'a (dyn Fn(&PrepareProgress) + Sync),
    ) -> Result<Self> {
        let all: Vec<InputFile> = files.concat();
        let (plans, max_seq_length) = match config.format {
            ImportFormat::Tfrecord => {
                let shape = tfrecord::probe(&all, config.skip_bad)?;
                check_length("input_ids", shape.sequence).map_err(|what| Error::file(&all[0].path, what))?;
                (Plans::Tfrecord(shape), shape.sequence)
            }
            ImportFormat::Hdf5 => {
                let mut train = hdf5::plan(&all, config.skip_bad, sizes.block, threads)?;
                let longest = train.iter().flatten().map(|plan| plan.longest).max().unwrap_or(0);
                let eval = train.split_off(files[0].len());
                (Plans::Hdf5([train, eval]), longest.clamp(SHORTEST, LONGEST))
            }
        };
        Ok(Self { config, vocab, threads, sizes, files, plans, max_seq_length, progress })
    }

    /// Whether sequences have next-sentence labels: all or none.
    pub fn labels(&self) -> bool {
        match &self.plans {
            Plans::Tfrecord(shape) => shape.labels,
            Plans::Hdf5(plans) => plans.iter().flatten().flatten().all(|plan| plan.labels),
        }
    }

    /// Imports both splits, behind what `journal` says is done.
    pub fn all(&self, staging: &mut Staging, identity: Identity, journal: Option<Journal>) -> Result<Done> {
        let mut state = match journal {
            Some(journal) => Journal { identity, ..journal },
            None => Journal {
                identity,
                max_seq_length: self.max_seq_length,
                evaluating: false,
                position: Position::default(),
                stored: 0,
                before: 0,
                train: SplitManifest::default(),
                eval: SplitManifest::default(),
                unigrams: vec![0; self.vocab.len()],
                texts: Default::default(),
                skipped: Skipped::default(),
                predictions: 0,
            },
        };
        if !state.evaluating {
            self.split(staging, &mut state)?;
            if state.train.sequences == 0 {
                let path = &self.files[0][0].path;
                let first = state
                    .skipped
                    .kinds()
                    .into_iter()
                    .next()
                    .map_or(String::new(), |k| format!(" ({})", k.first));
                return Err(Error::file(
                    path,
                    format!("the input holds no sequence to train on{first}; give other files"),
                ));
            }
            (state.evaluating, state.position, state.stored, state.before) =
                (true, Position::default(), 0, 0);
            state.save(staging.path())?;
            staging.keep();
        }
        self.split(staging, &mut state)?;
        let padded = match &self.plans {
            Plans::Tfrecord(shape) => shape.predictions,
            Plans::Hdf5(plans) => {
                let shapes = plans.iter().flatten().flatten().filter_map(|plan| plan.shape);
                shapes.map(|shape| shape.predictions).max().unwrap_or(0)
            }
        };
        let predictions = state.predictions.max(padded).max(1);
        Ok(Done {
            options: options(self.config, self.max_seq_length, predictions, self.labels()),
            source: self.source(&state.skipped),
            train: state.train,
            eval: state.eval,
            unigrams: state.unigrams,
            skipped: state.skipped,
        })
    }

    fn source(&self, skipped: &Skipped) -> ImportSource {
        let mut layouts = BTreeMap::new();
        match &self.plans {
            Plans::Tfrecord(_) => {
                layouts.insert(Layout::Example, (self.files[0].len() + self.files[1].len()) as u64);
            }
            Plans::Hdf5(plans) => {
                for plan in plans.iter().flatten().flatten() {
                    *layouts.entry(plan.layout).or_insert(0) += 1;
                }
            }
        }
        let (format, eval_inputs) = (self.config.format, super::records(self.files[1]));
        ImportSource { format, layouts, eval_inputs, skipped: skipped.counts() }
    }

    /// Imports the split under way, from `state` on, which becomes its end.
    fn split(&self, staging: &mut Staging, state: &mut Journal) -> Result<()> {
        let evaluating = state.evaluating;
        let dir = staging.path().to_owned();
        let (name, closed) = if evaluating { ("eval", &state.eval) } else { ("train", &state.train) };
        let mut writer = SplitWriter::new(&dir, name, self.vocab, self.max_seq_length, self.labels(), true);
        if !closed.shards.is_empty() {
            writer = writer.behind(closed.clone());
        }
        if let Some(bytes) = self.sizes.shard {
            writer = writer.with_shard_bytes(bytes);
        }
        let mut done = super::progress_of(Phase::Importing, self.files[0], self.files[1]);
        let first_bytes: u64 = if evaluating { self.files[0].iter().map(|f| f.bytes).sum() } else { 0 };
        done.sequences = state.before + if evaluating { state.train.sequences } else { 0 };
        let (start, files) = (state.position, self.files[usize::from(evaluating)]);
        let mut stored = std::mem::take(&mut state.stored) as usize;
        let journal_written = Cell::new(false);
        let outcome = ordered(
            self.threads,
            BUDGET.min((self.threads + 2) * self.sizes.block),
            |emit| self.produce(usize::from(evaluating), start, emit),
            || {
                let mut store = Store::new(self.vocab, self.max_seq_length);
                move |job: Job| self.make(files, &job, &mut store, !evaluating)
            },
            |made: Made| {
                writer.append_from(&made.columns, stored, &mut |closed| {
                    let mut journal = Journal { position: made.position, ..state.clone() };
                    journal.stored = closed.sequences - journal.before;
                    *(if evaluating { &mut journal.eval } else { &mut journal.train }) = closed.clone();
                    journal.save(&dir)?;
                    journal_written.set(true);
                    Ok(())
                })?;
                stored = 0;
                self.count(&made, files, state);
                done.bytes_read = first_bytes + made.bytes_read;
                done.sequences += made.columns.len() as u64;
                done.tokens += made.columns.tokens() as u64;
                (self.progress)(&done);
                Ok(())
            },
        );
        if journal_written.get() {
            staging.keep();
        }
        outcome?;
        let made =
            SplitManifest { text: Some(state.texts[usize::from(evaluating)].clone()), ..writer.finish()? };
        *(if evaluating { &mut state.eval } else { &mut state.train }) = made;
        Ok(())
    }

    fn count(&self, made: &Made, files: &[InputFile], state: &mut Journal) {
        state.before += made.columns.len() as u64;
        state.predictions = state.predictions.max(made.predictions);
        state.texts[usize::from(state.evaluating)].add(&made.text);
        for (sum, &count) in state.unigrams.iter_mut().zip(&made.unigrams) {
            *sum += u64::from(count);
        }
        for bad in &made.bad {
            state.skipped.add(&files[made.position.file].path, bad);
        }
    }

    /// Cuts the files of a split into jobs.
    fn produce(
        &self,
        split: usize,
        start: Position,
        emit: &mut dyn FnMut(Job, usize) -> Produced,
    ) -> Produced {
        let files = self.files[split];
        let plans = match &self.plans {
            Plans::Tfrecord(_) => {
                return tfrecord::blocks(files, start, self.sizes.block, &mut |block| {
                    let cost = block.bytes.len();
                    emit(Job::Examples(block), cost)
                });
            }
            Plans::Hdf5(plans) => &plans[split],
        };
        let mut before: u64 = files.iter().take(start.file).map(|f| f.bytes).sum();
        for (index, (file, plan)) in files.iter().zip(plans).enumerate().skip(start.file) {
            let mut record = if index == start.file { start.record } else { 0 };
            let position = |record| Position { file: index, record, offset: 0 };
            match plan {
                Err(wrong) => {
                    emit(Job::BadFile(position(0), wrong.clone(), before + file.bytes), 1)?;
                }
                Ok(plan) => {
                    while record < plan.rows {
                        let rows = record..plan.rows.min(record + plan.window);
                        let part = file.bytes as f64 * rows.end as f64 / plan.rows as f64;
                        let bytes_read = before + part as u64;
                        record = rows.end;
                        emit(
                            Job::Rows(position(rows.start), rows, bytes_read),
                            plan.window_bytes.min(BUDGET),
                        )?;
                    }
                }
            }
            before += file.bytes;
        }
        Ok(())
    }

    /// Reads a job's records and checks them.
    fn make(&self, files: &[InputFile], job: &Job, store: &mut Store<'_>, count: bool) -> Result<Made> {
        let (position, bytes_read) = match job {
            Job::Examples(block) => (block.position, block.bytes_read),
            Job::Rows(position, _, bytes_read) | Job::BadFile(position, _, bytes_read) => {
                (*position, *bytes_read)
            }
        };
        let path = &files[position.file].path;
        let unigrams = vec![0; if count { self.vocab.len() } else { 0 }];
        let columns = Columns::new(self.vocab.len());
        let (bad, text) = (Vec::new(), TextCounts::default());
        let made = Made { position, bytes_read, columns, unigrams, text, bad, predictions: 0 };
        let mut maker = Maker { path, skip_bad: self.config.skip_bad, store, made };
        match (job, &self.plans) {
            (Job::Examples(block), Plans::Tfrecord(shape)) => maker.examples(block, *shape)?,
            (Job::Rows(_, rows, _), _) => match Table::open(path)? {
                Ok(table) => maker.rows(&table, rows.clone())?,
                Err(wrong) => maker.bad(Bad::file(wrong))?,
            },
            (Job::BadFile(_, wrong, _), _) => maker.bad(Bad::file(wrong.clone()))?,
            (Job::Examples(_), Plans::Hdf5(_)) => {}
        }
        maker.made.text = std::mem::take(&mut maker.store.text);
        Ok(maker.made)
    }
}

/// Work for one thread.
enum Job {
    Examples(Block),
    /// Where they begin, rows of a file, bytes of input up to their end.
    Rows(Position, Range<u64>, u64),
    /// A file that was looked at and is left out.
    BadFile(Position, Wrong, u64),
}

/// What a job became.
struct Made {
    /// Where the job begins.
    position: Position,
    bytes_read: u64,
    columns: Columns,
    /// Of the tokens; empty for evaluation.
    unigrams: Vec<u32>,
    text: TextCounts,
    bad: Vec<Bad>,
    /// Most masks of a sequence.
    predictions: usize,
}

struct Maker<'m, 's, 'v> {
    path: &'m Path,
    skip_bad: bool,
    store: &'s mut Store<'v>,
    made: Made,
}

impl Maker<'_, '_, '_> {
    fn bad(&mut self, found: Bad) -> Result<()> {
        if !self.skip_bad {
            return Err(bad(self.path, &found.message()));
        }
        self.made.bad.push(found);
        Ok(())
    }

    fn examples(&mut self, block: &Block, shape: Shape) -> Result<()> {
        for i in 0..block.records.len() {
            let (number, bytes) = block.get(i);
            let stored = bytes.and_then(Example::parse).and_then(|example| {
                let sequence = example.sequence(shape)?;
                let made = &mut self.made;
                self.store.add(&sequence, &mut made.columns, &mut made.unigrams)
            });
            match stored {
                Ok(masks) => self.made.predictions = self.made.predictions.max(masks),
                Err(wrong) => self.bad(Bad::record(number, wrong))?,
            }
        }
        Ok(())
    }

    /// Rows that cannot be read are found by halving: a damaged chunk takes only its own rows along.
    fn rows(&mut self, table: &Table, rows: Range<u64>) -> Result<()> {
        let mut read = match table.read(rows.clone()) {
            Ok(read) => read,
            Err(wrong) if rows.end - rows.start <= 1 => return self.bad(Bad::record(rows.start, wrong)),
            Err(_) => {
                let middle = rows.start + (rows.end - rows.start) / 2;
                self.rows(table, rows.start..middle)?;
                return self.rows(table, middle..rows.end);
            }
        };
        for (i, row) in rows.enumerate() {
            let (store, made) = (&mut *self.store, &mut self.made);
            let wrongs = read.sequences(i, &mut |sequence| {
                let masks = store.add(sequence, &mut made.columns, &mut made.unigrams)?;
                made.predictions = made.predictions.max(masks);
                Ok(())
            });
            for wrong in wrongs {
                self.bad(Bad::record(row, wrong))?;
            }
        }
        Ok(())
    }
}
