//! Progress on standard error: a bar where that is a terminal, otherwise plain lines.

use crate::format::{count, duration, short};
use crate::{exit, memory_table, signals};
use engine::data::prepare::{Phase, PrepareProgress};
use engine::metrics::{EvalRecord, TrainRecord};
use engine::trainer::{Observer, RunInfo, StepProgress};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between plain lines of a preparation.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A bar, if standard error is a terminal.
pub struct Bar(Option<ProgressBar>);

impl Bar {
    /// A bar up to `total` of what is named.
    pub fn new(total: u64, what: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        // the template is valid, and a bar without it would do
        let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} {prefix}  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(Some(
            ProgressBar::new(total).with_style(style.progress_chars("█▌ ")).with_prefix(what.to_owned()),
        ))
    }

    /// Adds to what is done.
    pub fn advance(&self, done: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(done);
        }
    }

    fn set(&self, done: u64, total: u64, message: String) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(message);
        }
    }

    /// A line above the bar, or just a line.
    fn line(&self, line: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| exit::say(line)),
            None => exit::say(line),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Bytes read, with their rate and the time left.
pub struct BytesBar {
    bar: Bar,
    what: &'static str,
    total: u64,
    started: Instant,
    /// Bytes done, and when the last plain line was written.
    state: Mutex<(u64, Instant)>,
}

impl BytesBar {
    /// Up to `total` bytes, of which `what` is done.
    pub fn new(total: u64, what: &'static str) -> Self {
        let now = Instant::now();
        Self { bar: Bar::new(total, "bytes"), what, total, started: now, state: Mutex::new((0, now)) }
    }

    /// Adds to what is done; on any thread.
    pub fn advance(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += bytes;
        let rate = state.0 as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let left = duration(self.total.saturating_sub(state.0) as f64 / rate);
        let line = format!("{}, {}B/s, left {left}", self.what, short(rate));
        self.bar.set(state.0, self.total, line.clone());
        if self.bar.0.is_none() && state.1.elapsed() >= LINE_EVERY {
            state.1 = Instant::now();
            exit::say(&format!("{line}, {}B of {}B", short(state.0 as f64), short(self.total as f64)));
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish();
    }
}

/// A preparation's progress.
pub struct PrepareBar {
    bar: Bar,
    state: Mutex<PrepareState>,
}

struct PrepareState {
    phase: Option<Phase>,
    started: Instant,
    /// Bytes that were done when the phase began to be shown: an import that goes on begins with some.
    first_bytes: u64,
    last_line: Instant,
}

impl PrepareBar {
    /// Shows nothing until something is done.
    pub fn new() -> Self {
        let now = Instant::now();
        let state = PrepareState { phase: None, started: now, first_bytes: 0, last_line: now };
        Self { bar: Bar::new(0, "bytes"), state: Mutex::new(state) }
    }

    /// How far the preparation is.
    pub fn show(&self, p: &PrepareProgress) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if state.phase != Some(p.phase) {
            (state.phase, state.started, state.last_line) = (Some(p.phase), now, now);
            state.first_bytes = if p.phase == Phase::Importing { p.bytes_read } else { 0 };
        }
        let seconds = now.duration_since(state.started).as_secs_f64().max(1e-3);
        let bytes_per_second = p.bytes_read.saturating_sub(state.first_bytes) as f64 / seconds;
        let rate = short(bytes_per_second);
        let done = match p.phase {
            Phase::Receiving => format!("reading the pipe, {rate}B/s"),
            Phase::Vocabulary => format!("counting words, {rate}B/s"),
            Phase::Hashing => format!("reading the input's content, {rate}B/s"),
            Phase::Waiting => "waiting for another process that prepares this data".to_owned(),
            Phase::Sequences => format!("preparing: {} sequences, {rate}B/s", count(p.sequences)),
            Phase::Merging => format!("merging: {} sequences, {rate}B/s", count(p.sequences)),
            Phase::Importing => {
                let left = p.bytes_total.saturating_sub(p.bytes_read) as f64 / bytes_per_second;
                format!("importing: {} sequences, {rate}B/s, left {}", count(p.sequences), duration(left))
            }
        };
        self.bar.set(p.bytes_read, p.bytes_total, done.clone());
        if self.bar.0.is_none() && now.duration_since(state.last_line) >= LINE_EVERY {
            state.last_line = now;
            let (read, total) = (short(p.bytes_read as f64), short(p.bytes_total as f64));
            match p.phase {
                Phase::Waiting => exit::say(&done),
                _ => exit::say(&format!("{done}, {read}B of {total}B")),
            }
        }
    }

    /// Whether anything was made: data that lies there already is kept.
    pub fn has_begun(&self) -> bool {
        let phase = self.state.lock().unwrap_or_else(PoisonError::into_inner).phase;
        let nothing = |phase| matches!(phase, Phase::Waiting | Phase::Receiving | Phase::Hashing);
        phase.is_some_and(|phase| !nothing(phase))
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish();
    }
}

/// A run's progress.
pub struct TrainProgress {
    prepare: Option<PrepareBar>,
    steps: Option<Bar>,
    /// The newest step's line, which the bar shows and leaves behind.
    newest: Option<String>,
}

impl TrainProgress {
    /// Shows nothing until something is done.
    pub fn new() -> Self {
        Self { prepare: None, steps: None, newest: None }
    }

    /// Leaves the terminal to what follows.
    pub fn finish(&mut self) {
        if let Some(bar) = self.steps.take() {
            bar.finish();
        }
        if let Some(line) = self.newest.take() {
            exit::say(&line);
        }
        if let Some(prepare) = &self.prepare {
            prepare.finish();
        }
    }

    fn line(&self, line: &str) {
        match &self.steps {
            Some(bar) => bar.line(line),
            None => exit::say(line),
        }
    }
}

impl Observer for TrainProgress {
    fn message(&mut self, line: &str) {
        self.line(line);
    }

    fn preparing(&mut self, progress: &PrepareProgress) {
        self.prepare.get_or_insert_with(PrepareBar::new).show(progress);
    }

    fn started(&mut self, info: &RunInfo) {
        if let Some(prepare) = self.prepare.take() {
            prepare.finish();
        }
        let (sequences, tokens) = (count(info.train_sequences), short(info.train_tokens as f64));
        let (held_out, parameters) = (count(info.eval_sequences), short(info.parameters as f64));
        self.line(&format!("{}; {parameters} parameters", info.device));
        self.line(&format!(
            "{sequences} sequences ({tokens} tokens) to train on, {held_out} held out; unigram entropy {:.3} nats",
            info.unigram_entropy
        ));
        for line in memory_table::lines(&info.memory) {
            if info.on_host {
                tracing::info!("{line}");
            } else {
                self.line(&line);
            }
        }
        let bar = Bar::new(info.steps, "steps");
        bar.advance(info.first_step);
        self.steps = Some(bar);
        signals::training_started();
    }

    fn step(&mut self, record: &TrainRecord, progress: &StepProgress) {
        let StepProgress { step, total, seconds_left, logged, slowest } = *progress;
        let slowest = slowest
            .map_or(String::new(), |(rank, more)| format!("  slowest rank {rank} (+{:.0}%)", 100.0 * more));
        let numbers = step_numbers(record, seconds_left) + &slowest;
        match &self.steps {
            Some(bar) if bar.0.is_some() => {
                self.newest = Some(format!("step {}  {numbers}", of(step, total)));
                bar.set(step, total, numbers);
            }
            _ if logged => exit::say(&format!("step {}  {numbers}", of(step, total))),
            _ => {}
        }
    }

    fn evaluated(&mut self, record: &EvalRecord) {
        self.line(&eval_line(record));
    }
}

/// `step/total`, as wide for every step.
fn of(step: u64, total: u64) -> String {
    let width = total.to_string().len();
    format!("{step:>width$}/{total}")
}

fn step_numbers(r: &TrainRecord, seconds_left: f64) -> String {
    let skipped = if r.skipped > 0 { format!("  skipped {}", r.skipped) } else { String::new() };
    format!(
        "loss {:.3}  mlm {:.3}  acc {:.3}{skipped}  {} tok/s  left {}",
        r.loss,
        r.mlm_loss,
        r.mlm_accuracy,
        short(r.tokens_per_second),
        duration(seconds_left)
    )
}

fn eval_line(r: &EvalRecord) -> String {
    let nsp = r.eval_nsp_accuracy.map_or(String::new(), |a| format!("  nsp acc {a:.3}"));
    format!(
        "held-out text after step {}: loss {:.3}  mlm {:.3}  acc {:.3}  perplexity {:.1}{nsp}",
        r.step, r.eval_loss, r.eval_mlm_loss, r.eval_mlm_accuracy, r.eval_perplexity
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_hold_what_a_user_looks_for() {
        let record = TrainRecord {
            step: 120,
            loss: 6.91,
            mlm_loss: 6.31,
            mlm_accuracy: 0.1519,
            tokens_per_second: 21_340.0,
            ..TrainRecord::default()
        };
        assert_eq!(step_numbers(&record, 62.0), "loss 6.910  mlm 6.310  acc 0.152  21.3k tok/s  left 1m 02s");
        let record = TrainRecord { skipped: 2, ..record };
        assert!(step_numbers(&record, f64::NAN).ends_with("acc 0.152  skipped 2  21.3k tok/s  left ?"));
        let record = EvalRecord {
            step: 150,
            eval_loss: 6.2,
            eval_mlm_loss: 5.5,
            eval_mlm_accuracy: 0.2,
            eval_perplexity: 244.69,
            eval_nsp_accuracy: Some(0.55),
            ..EvalRecord::default()
        };
        assert_eq!(
            eval_line(&record),
            "held-out text after step 150: loss 6.200  mlm 5.500  acc 0.200  perplexity 244.7  nsp acc 0.550"
        );
    }
}
