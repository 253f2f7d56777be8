//! From a configuration to everything the loop needs: data, model, optimizer, the state to go on from.

use super::artifacts::{log_settings, start_clock};
use super::data::Data;
use super::evaluation::EVAL_BATCH;
use super::places;
use super::resume::{Changes, history};
use super::start::resolve_model;
use super::warm_up::warm_up;
use super::{Observer, Options};
use crate::checkpoint::{self, TrainState, hf};
use crate::config::{Config, ModelConfig};
use crate::data::prepare;
use crate::data::shards::{Dataset, MANIFEST, Manifest, Verification};
use crate::dist::Group;
use crate::error::During;
use crate::lock::FolderLock;
use crate::memory::{self, MemoryTable};
use crate::mllog::{MlLog, keys};
use crate::mlperf::Begun;
use crate::model::{Bert, Gradients, init};
use crate::optim::Optimizer;
use crate::step;
use crate::table::TensorTable;
use crate::{Error, Result};
use kernels::Backend;
use kernels::cpu::memory::zeros;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What to do where a run folder belongs to another configuration.
const SAME_RUN: &str = "resume with the same configuration, or choose another folder with --run";
/// The resolved configuration in a run folder.
pub const CONFIG_FILE: &str = "config.toml";

/// Ready to train.
pub struct Setup<B: Backend> {
    /// Resolved: nothing is left to the data or to defaults.
    pub config: Config,
    pub train: Arc<Dataset>,
    /// None where no text is held out.
    pub eval: Option<Arc<Dataset>>,
    pub verification: Verification,
    pub bert: Bert<B>,
    pub optimizer: Optimizer<B>,
    pub state: TrainState,
    /// Whether `state` comes from a checkpoint.
    pub resumed: bool,
    /// Whether run_start is in the log.
    pub clock_runs: bool,
    /// Keeps other jobs out of the run folder; the first process has it.
    _lock: Option<FolderLock>,
}

impl<B: Backend<Acc = f32>> Setup<B> {
    /// All master weights, laid out as the table says, each from the process that updates it: on the first process, the others
    /// get nothing. All call it.
    pub fn weights(&self, group: &mut Group<B>) -> Result<Vec<f32>> {
        let Self { bert, optimizer, .. } = self;
        let ranks = group.ranks.as_mut();
        optimizer.weights(bert.backend(), ranks, bert.weights_on_device(), bert.table().len)
    }
}

/// All that a run begins with.
pub struct Prepared<B: Backend> {
    pub setup: Setup<B>,
    pub grads: Gradients<B>,
    /// What the run takes of the device's memory.
    pub memory: MemoryTable,
    /// Of the first process.
    pub mllog: Option<MlLog>,
}

/// What only the first process knows before all go on.
#[derive(Default)]
struct Resolved {
    /// Weights of `model.init_from`.
    start: Option<Vec<f32>>,
    /// Of an MLPerf run.
    begun: Option<Begun>,
}

pub fn prepare<B: Backend<Acc = f32>>(
    group: &mut Group<B>,
    backend: B,
    config: &Config,
    options: &Options<'_>,
    observer: &mut dyn Observer,
) -> Result<Prepared<B>> {
    group.agree(&[
        ("configuration", config.hash()),
        ("precision", format!("{} bits", 8 * size_of::<B::Elem>())),
        ("--resume", options.resume.to_string()),
    ])?;
    let mut resolved = Resolved::default();
    let text = group.first(|| {
        let mut config = config.clone();
        resolved = resolve(&backend, &mut config, options, observer)?;
        config.to_toml()
    })?;
    let config = Config::from_toml(&text)?;
    let manifest = Manifest::load(&config.data.dir)?;
    group.agree(&[
        ("vocabulary", manifest.vocab_sha256.clone()),
        ("tokenizer", manifest.tokenizer().to_string()),
        ("prepared data", manifest.data_hash()),
    ])?;
    // MLPerf's clock starts before the data is touched: there, only the manifest and the vocabulary are read here.
    let opened = if options.mlperf.is_none() { Some(Data::open(group, &config)?) } else { None };

    if group.is_first() {
        let head_size = config.model.hidden / config.model.heads.max(1);
        backend.remarks(head_size).iter().for_each(|line| observer.message(line));
        if config.train.graph && !B::HOST && group.world() > 1 {
            observer.message("train.graph: only a single process queues its steps as graphs; several do not");
        }
    }

    let mut bert = Bert::recomputing(backend, &config.model, config.train.recompute)?;
    let table = bert.table();
    let division = step::division(&config, table, group.world());
    let (rank, optimizer) = (group.ranks.rank(), &config.optimizer);
    let mut optimizer = Optimizer::divided(bert.backend(), table, optimizer, &division, rank)?;
    let (mut claim, mut begin) = (None, None);
    let (state, resumed) = group.first(|| {
        let (lock, changes) = claim_run_folder(&config, options.resume)?;
        let start = resolved.start.take();
        let found = beginning(&config, &manifest, &bert, start, changes.as_ref(), options, observer)?;
        // From here on the folder is this configuration's: nothing refuses it any more.
        write_config(&config, changes.as_ref(), &found.state)?;
        let mllog = open_log(&config, &manifest, options, &resolved, &bert.backend().describe())?;
        claim = Some((lock, mllog));
        let (state, resumed) = (found.state.clone(), found.moments.is_some());
        begin = Some(found);
        Ok((state, resumed))
    })?;
    let begin = begin.unwrap_or(Beginning { state: state.clone(), weights: Vec::new(), moments: None });
    let weights = from_first(group, bert.backend(), begin.weights, bert.table().len)?;
    bert.load_weights(&weights)?;
    if resumed {
        let [m, v] = begin.moments.unwrap_or_default();
        let backend = bert.backend();
        let m = from_first(group, backend, m, weights.len())?;
        let v = from_first(group, backend, v, weights.len())?;
        optimizer.load_moments(backend, &m, &v, state.updates)?;
    }
    let mut grads = bert.gradients()?;
    let owners = if optimizer.is_sharded() { group.world() } else { 1 };
    let memory = plan_memory(&config, &manifest, &mut bert, &mut grads, [group.world(), owners])?;
    let (_lock, mut mllog) = claim.unzip();
    let clock_runs = opened.is_none();
    let Data { train, eval, verification } = match opened {
        Some(data) => data,
        None => {
            warm_up(&mut bert, &mut grads, &config, &manifest, group.world())?;
            // The others wait, so that none touches the data before the clock runs.
            group.first(|| mllog.as_mut().map_or(Ok(()), start_clock))?;
            Data::open(group, &config)?
        }
    };
    let setup =
        Setup { config, train, eval, verification, bert, optimizer, state, resumed, clock_runs, _lock };
    Ok(Prepared { setup, grads, memory, mllog })
}

/// Takes what the largest batches need, if that fits, and says what the run takes. `[world, owners]`: processes, and those
/// that share the moments.
fn plan_memory<B: Backend>(
    config: &Config,
    manifest: &Manifest,
    bert: &mut Bert<B>,
    grads: &mut Gradients<B>,
    [world, owners]: [usize; 2],
) -> Result<MemoryTable> {
    let ranks = [world, owners, EVAL_BATCH];
    let (table, sizes) = memory::survey(bert.backend(), config, bert.table(), manifest, ranks);
    if let Some(sizes) = sizes {
        bert.reserve(grads, sizes)?;
    }
    Ok(table)
}

/// Numbers of the first process, on all.
fn from_first<B: Backend<Acc = f32>>(
    group: &mut Group<B>,
    backend: &B,
    mut values: Vec<f32>,
    len: usize,
) -> Result<Vec<f32>> {
    if values.is_empty() {
        values = zeros("weights and moments of the first process", len)?;
    }
    group.ranks.send_from_first(backend, &mut values)?;
    Ok(values)
}

/// Prepares the data if need be, and resolves the model.
fn resolve<B: Backend>(
    backend: &B,
    config: &mut Config,
    options: &Options<'_>,
    observer: &mut dyn Observer,
) -> Result<Resolved> {
    refuse_used(&config.train.run, options.resume)?;
    places::check(config)?;
    prepare_data(config, observer)?;
    let manifest = Manifest::load(&config.data.dir)?;
    remark(config, &manifest, observer);
    check_splits(config, &manifest)?;
    let mut begun = options.mlperf.map(|m| m.begin(&config.data.dir, &manifest)).transpose()?;
    let start = resolve_model(config, &manifest, options.resume, observer)?;
    memory::check(backend, config, &TensorTable::new(&config.model), &manifest)?;
    if let (Some(mlperf), Some(begun)) = (options.mlperf, &mut begun) {
        announce(mlperf.decide(begun, config, &manifest)?, begun.cleared(), observer);
    }
    Ok(Resolved { start, begun })
}

/// Begins the log of a run with its settings.
fn open_log(
    config: &Config,
    manifest: &Manifest,
    options: &Options<'_>,
    resolved: &Resolved,
    device: &str,
) -> Result<MlLog> {
    let mut mllog = MlLog::open(&config.train.run, options.resume)?;
    match (options.mlperf, &resolved.begun) {
        (Some(mlperf), Some(begun)) => mlperf.log(begun, &mut mllog, device)?,
        _ => mllog.start(keys::INIT_START, (), &[])?,
    }
    log_settings(&mut mllog, config, manifest)?;
    Ok(mllog)
}

/// Where training begins.
struct Beginning {
    state: TrainState,
    weights: Vec<f32>,
    /// Of a checkpoint.
    moments: Option<[Vec<f32>; 2]>,
}

/// The newest checkpoint, or the first weights.
fn beginning<B: Backend<Acc = f32>>(
    config: &Config,
    manifest: &Manifest,
    bert: &Bert<B>,
    start: Option<Vec<f32>>,
    changes: Option<&Changes>,
    options: &Options<'_>,
    observer: &mut dyn Observer,
) -> Result<Beginning> {
    let found = if options.resume {
        let mut warn = |line: String| observer.message(&line);
        checkpoint::latest(&config.train.run, &config.model, bert.table(), &mut warn)?
    } else {
        None
    };
    let (config_hash, data_hash) = (config.hash(), manifest.data_hash());
    let Some(found) = found else {
        if options.resume {
            let run = config.train.run.display();
            observer.message(&format!("{run} holds no checkpoint yet: starting from the beginning"));
        }
        let seed = config.train.seed;
        let drawn = || init::weights(bert.table(), config.model.initializer_range, seed);
        let weights = start.map_or_else(drawn, Ok)?;
        let optimizer = Some(config.optimizer.kind);
        let state = TrainState { seed, optimizer, config_hash, data_hash, ..TrainState::default() };
        tell(changes, &state, config, observer);
        return Ok(Beginning { state, weights, moments: None });
    };
    if found.state.data_hash != data_hash {
        return Err(Error::file(
            &config.data.dir,
            format!(
                "is other data than the run in {} was trained on; give that data, or start another run with --run",
                config.train.run.display()
            ),
        ));
    }
    let optimizer = config.optimizer.kind;
    if found.state.seed != config.train.seed || found.state.optimizer.is_some_and(|kind| kind != optimizer) {
        return Err(Error::file(
            &found.path,
            format!("is a checkpoint of another seed or optimizer than {CONFIG_FILE}; {SAME_RUN}"),
        ));
    }
    if let Some(changes) = changes {
        changes.fit(&found.state, config)?;
    }
    observer.message(&format!("resumed from {}", found.path.display()));
    tell(changes, &found.state, config, observer);
    let state = TrainState { config_hash, optimizer: Some(optimizer), ..found.state };
    let (weights, moments) = (found.weights, Some([found.m, found.v]));
    Ok(Beginning { state, weights, moments })
}

/// Says what is otherwise than it was when the run went on.
fn tell(changes: Option<&Changes>, state: &TrainState, config: &Config, observer: &mut dyn Observer) {
    let lines = changes.map(|changes| changes.lines(state, config)).unwrap_or_default();
    lines.iter().for_each(|line| observer.message(line));
}

/// Says what the data's maker may not have meant, and whether the run can be evaluated.
fn remark(config: &Config, manifest: &Manifest, observer: &mut dyn Observer) {
    let dir = config.data.dir.display();
    manifest.warnings().iter().for_each(|line| observer.message(&format!("warning: {dir}: {line}")));
    if manifest.eval.sequences == 0 {
        observer.message(&format!("{dir} holds no held-out text: this run is not evaluated"));
    }
}

/// Refuses data that leaves nothing to train on, or nothing to reach the target on.
fn check_splits(config: &Config, manifest: &Manifest) -> Result<()> {
    let dir = &config.data.dir;
    if manifest.train.sequences == 0 {
        return Err(Error::file(dir, "holds no training sequence; prepare more text"));
    }
    if manifest.eval.sequences == 0 && config.train.target_accuracy.is_some() {
        return Err(Error::config(
            "train.target_accuracy",
            format!(
                "{} holds no evaluation sequences to reach it on; prepare with --eval-fraction above 0, of text in two \
                 documents or more",
                dir.display()
            ),
        ));
    }
    Ok(())
}

/// Says what a log of MLPerf will hold that its reader may not expect.
fn announce(why_open: Option<String>, cleared: bool, observer: &mut dyn Observer) {
    if let Some(what) = why_open {
        observer.message(&format!("logged as the open division: {what}"));
    }
    if !cleared {
        observer.message(
            "the data stays in the system's cache, and the log says so (cache_clear false): another process has it open, \
             or its file system lies in memory",
        );
    }
}

/// Prepares the shards if the folder holds none, and checks that they are those that the configuration describes.
fn prepare_data(config: &Config, observer: &mut dyn Observer) -> Result<()> {
    let (dir, wanted) = (&config.data.dir, &config.data.prepare);
    if dir.join(MANIFEST).exists() {
        if wanted.input.is_empty() {
            return Ok(());
        }
        let (threads, observer) = (rayon::current_num_threads(), Mutex::new(observer));
        let found = prepare::outdated(dir, wanted, threads, &|progress| {
            if let Ok(mut observer) = observer.lock() {
                observer.preparing(progress);
            }
        })?;
        let Some((key, what)) = found else {
            let mut paths = wanted.input.iter().chain(&wanted.eval_input).chain(&wanted.vocab);
            if let Some(path) = paths.find(|path| !path.exists()) {
                let (path, dir) = (path.display(), dir.display());
                let line = format!("{path} is not here to compare: the data in {dir} is taken as it is");
                observer.into_inner().unwrap_or_else(PoisonError::into_inner).message(&line);
            }
            return Ok(());
        };
        let remedy = "choose another data.dir (--data), or remove that folder to prepare it anew";
        return Err(Error::config(format!("data.prepare.{key}"), format!("{what}; {remedy}")));
    }
    if wanted.input.is_empty() {
        return Err(Error::config(
            "data.dir",
            format!(
                "{} holds no {}; make it with `launcher prepare --input TEXT --vocab vocab.txt --out {}`, or give \
                 data.prepare.input",
                dir.display(),
                MANIFEST,
                dir.display()
            ),
        ));
    }
    // What is wrong with it, the preparation says, after what is wrong with the input.
    if let Ok(tokenization) = prepare::tokenization(wanted) {
        observer.message(&tokenization.told);
    }
    let threads = rayon::current_num_threads();
    let manifest = {
        let observer = Mutex::new(&mut *observer);
        prepare::prepare(wanted, dir, threads, &|progress| {
            if let Ok(mut observer) = observer.lock() {
                observer.preparing(progress);
            }
        })?
    };
    manifest.remarks().iter().for_each(|line| observer.message(line));
    manifest.unknown_tokens().iter().for_each(|line| observer.message(&format!("{}: {line}", dir.display())));
    Ok(())
}

/// The sizes of the model that a run began with, if it has checkpoints and began from this folder.
pub(super) fn begun_from(run: &Path, init_from: Option<&Path>) -> Result<Option<ModelConfig>> {
    let file = run.join(CONFIG_FILE);
    if init_from.is_none() || !file.exists() || !checkpoint::holds_any(run)? {
        return Ok(None);
    }
    let model = own_config(&file)?.model;
    Ok(Some(model).filter(|model| model.init_from.as_deref() == init_from))
}

fn is_used(run: &Path) -> Result<bool> {
    Ok(checkpoint::holds_any(run)? || run.join("model").exists())
}

/// Refuses to begin where a run lies already.
fn refuse_used(run: &Path, resume: bool) -> Result<()> {
    if resume || !is_used(run)? {
        return Ok(());
    }
    Err(Error::file(
        run,
        "already holds a run; add --resume to go on with it, or choose another folder with --run",
    ))
}

/// Makes the run folder, or refuses one that holds another run or in which another process trains. Of a run that goes on,
/// what has changed.
fn claim_run_folder(config: &Config, resume: bool) -> Result<(FolderLock, Option<Changes>)> {
    let run = &config.train.run;
    fs::create_dir_all(run).during("cannot create the run folder", run)?;
    let Some(lock) = FolderLock::take_soon(run).during("cannot open the run folder", run)? else {
        return Err(Error::file(
            run,
            "another process is training in this run folder; stop it, or choose another folder with --run",
        ));
    };
    refuse_used(run, resume)?;
    // Again, now that nobody else works here.
    places::check(config)?;
    hf::replaceable(&run.join("model"))?;
    let changes = if is_used(run)? { same_run(run, config)? } else { None };
    Ok((lock, changes))
}

/// What has changed since the run was begun or last went on. Without its config.toml only the newest checkpoint can tell, and
/// only that something has.
fn same_run(run: &Path, config: &Config) -> Result<Option<Changes>> {
    let file = run.join(CONFIG_FILE);
    if file.exists() {
        return Changes::between(own_config(&file)?, config, SAME_RUN).map(Some);
    }
    let states = checkpoint::list(run)?.into_iter().rev().map(|(_, path)| checkpoint::read_state(&path));
    match states.flatten().next().filter(|state| state.config_hash != config.hash()) {
        None => Ok(None),
        Some(state) => Err(Error::file(
            file,
            format!(
                "is missing, and the checkpoint of step {} is of another configuration; {SAME_RUN}",
                state.step
            ),
        )),
    }
}

/// The resolved configuration that a run left.
fn own_config(file: &Path) -> Result<Config> {
    Config::load(Some(file), &[]).map_err(|error| match error {
        Error::File { path, what } => {
            Error::File { path, what: format!("{what}; restore this file, or remove it and resume") }
        }
        other => other,
    })
}

/// Writes the resolved configuration, behind what was changed when the run went on. A file there that no run wrote and that
/// says something else may be a user's: it is kept under another name.
fn write_config(config: &Config, changes: Option<&Changes>, state: &TrainState) -> Result<()> {
    let run = &config.train.run;
    let (file, own) = (run.join(CONFIG_FILE), is_used(run)?);
    let before = if own { history(run) } else { String::new() };
    let text =
        before + &changes.map(|changes| changes.history(state)).unwrap_or_default() + &config.to_toml()?;
    match fs::read(&file) {
        Ok(there) if there == text.as_bytes() => return Ok(()),
        Ok(_) if own => {}
        Ok(_) => {
            let kept = places::free(&file, "before.toml");
            fs::rename(&file, &kept).during("cannot rename", &file)?;
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).during("cannot read", &file),
    }
    checkpoint::staging::replace_file(&file, text.as_bytes())
}
