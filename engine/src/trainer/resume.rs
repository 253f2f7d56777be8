//! What may change where a run goes on, and how it is told and kept.

use super::setup::CONFIG_FILE;
use crate::checkpoint::TrainState;
use crate::config::{Config, ScheduleKind};
use crate::data::LoaderState;
use crate::optim::learning_rate;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Begins the lines of config.toml that say what was changed when the run went on.
const HISTORY: &str = "# step ";

/// Whether a run can go on with another value of a key.
enum Rule {
    /// It changes neither weights nor anything that a user reads of the run.
    Silent,
    /// It changes no weight.
    Told,
    /// It changes how the weights go on, from the state that is there.
    Carried,
    /// It cannot, and why.
    Fixed(&'static str),
}

fn rule(key: &str) -> Rule {
    let section = key.split('.').next().unwrap_or_default();
    match key {
        "train.run" => Rule::Silent,
        "train.seed" => Rule::Fixed("the order of the data, masks and dropout follow from it"),
        "train.steps" | "train.batch_sequences" | "train.batch_tokens" | "train.accumulation" => {
            Rule::Carried
        }
        "model.hidden_dropout" | "model.attention_dropout" => Rule::Carried,
        "optimizer.kind" => Rule::Fixed("the moments in the checkpoint are the other optimizer's"),
        // Where the text lies; what it is the data's hash tells.
        "data.prepare.input" | "data.prepare.vocab" | "data.prepare.eval_input" => Rule::Told,
        _ => match section {
            "model" => Rule::Fixed("it defines the model"),
            "optimizer" | "schedule" => Rule::Carried,
            _ if key.starts_with("data.prepare.") => Rule::Fixed("it defines the data"),
            _ => Rule::Told,
        },
    }
}

/// A key that has another value than before.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    key: String,
    was: String,
    is: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.was, self.is)
    }
}

/// What differs between the configuration that a run goes on with and the one that it had.
pub struct Changes {
    before: Config,
    all: Vec<Change>,
}

impl Changes {
    /// Compares both.
    ///
    /// # Errors
    /// The first key that defines model, data or the meaning of the checkpoint and differs; `remedy` says what to do.
    pub fn between(before: Config, now: &Config, remedy: &str) -> Result<Self> {
        let (mut all, old, new) = (Vec::new(), flat(&before), flat(now));
        for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
            let [was, is] = [&old, &new].map(|values| values.get(key).unwrap_or(&Value::Null));
            if was == is {
                continue;
            }
            let change = Change { key: key.clone(), was: shown(was), is: shown(is) };
            match rule(&change.key) {
                Rule::Silent => {}
                Rule::Told | Rule::Carried => all.push(change),
                Rule::Fixed(why) => {
                    let Change { key, was, is } = change;
                    return Err(Error::file(
                        &now.train.run,
                        format!(
                            "belongs to a run with {key} = {was}, now {is}, which cannot change: {why}; {remedy}"
                        ),
                    ));
                }
            }
        }
        Ok(Self { before, all })
    }

    /// Refuses what the state that is there leaves no room for.
    ///
    /// # Errors
    /// Fewer steps than are done; none left for a change to have an effect on.
    pub fn fit(&self, state: &TrainState, now: &Config) -> Result<()> {
        let (done, steps, run) = (state.step, now.train.steps, now.train.run.display());
        if steps < done {
            return Err(Error::config(
                "train.steps",
                format!(
                    "{steps} is less than the {done} steps that the run in {run} has done; give more, or start another \
                     run from its model (model.init_from)"
                ),
            ));
        }
        let carried =
            |change: &&Change| matches!(rule(&change.key), Rule::Carried) && change.key != "train.steps";
        match self.all.iter().find(carried) {
            Some(Change { key, was, is }) if steps == done => Err(Error::config(
                key,
                format!(
                    "{is} now, {was} before, but all {done} steps of the run in {run} are done; give more train.steps, \
                     or leave it as it was"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// One line for each, and one for what they do to the learning rate.
    pub fn lines(&self, state: &TrainState, now: &Config) -> Vec<String> {
        let mut lines: Vec<String> = self.all.iter().map(Change::to_string).collect();
        if self.all.iter().any(|change| change.key.starts_with("train.batch_")) {
            let LoaderState { epoch, cursor } = state.loader;
            lines.push(format!(
                "epoch {} goes on behind its {cursor} sequences that are done: none is repeated or left out",
                epoch + 1
            ));
        }
        if state.step < now.train.steps {
            lines.extend(rates(&self.before, now, state.step));
        }
        lines
    }

    /// Lines for [`CONFIG_FILE`].
    pub fn history(&self, state: &TrainState) -> String {
        self.all.iter().map(|change| format!("{HISTORY}{}, {change}\n", state.step)).collect()
    }
}

/// All keys of a configuration with their values.
fn flat(config: &Config) -> BTreeMap<String, Value> {
    fn add(keys: &mut BTreeMap<String, Value>, at: &str, value: Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    add(keys, &if at.is_empty() { name } else { format!("{at}.{name}") }, value);
                }
            }
            value => drop(keys.insert(at.to_owned(), value)),
        }
    }
    let mut keys = BTreeMap::new();
    // A configuration holds numbers, texts and paths; a path that is not UTF-8 does not validate.
    add(&mut keys, "", serde_json::to_value(config).unwrap_or_default());
    keys
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        // Whatever could end the line stays in quotes.
        Value::String(text) if !text.contains(char::is_control) => text.clone(),
        other => other.to_string(),
    }
}

/// What happens to the learning rate after `done` steps, if that is not what would have come.
fn rates(before: &Config, now: &Config, done: u64) -> Option<String> {
    let rate = |config: &Config, step: u64| learning_rate(&config.schedule, step, config.train.steps);
    let same = |step: u64| rate(before, step) == rate(now, step);
    if done == 0 || (same(done) && (0..done).all(same)) {
        return None;
    }
    let [was, is] = [rate(before, done - 1), rate(now, done)];
    let mut line =
        format!("the learning rate was {was:.3e} in step {done} and is {is:.3e} in step {}", done + 1);
    let follows = before.schedule == now.schedule && now.schedule.total_steps == 0;
    if follows && now.schedule.kind != ScheduleKind::Constant {
        let (old, new) = (before.train.steps, now.train.steps);
        line += &format!(
            ": the schedule now ends at step {new}, before at step {old}; schedule.total_steps={old} keeps the old end"
        );
    }
    Some(line)
}

/// The lines of a run's config.toml that say what was changed when it went on, each with its end.
pub fn history(run: &Path) -> String {
    let text = fs::read_to_string(run.join(CONFIG_FILE)).unwrap_or_default();
    text.lines().take_while(|line| line.starts_with(HISTORY)).map(|line| format!("{line}\n")).collect()
}
