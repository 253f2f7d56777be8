//! The conditions of the closed division that a configuration and its data can break.

use super::presets::eval_interval;
use super::{EVAL_SEQUENCES, TARGET};
use crate::config::{
    Config, Masking, ModelConfig, OptimizerKind, PrepareConfig, Preset, Recipe, ScheduleKind,
};
use crate::data::shards::Manifest;

/// Tokens of the benchmark's vocabulary.
const VOCAB: usize = 30_522;
/// Longest sequence.
const SEQUENCE: usize = 512;
/// Most predicted tokens of a sequence.
const PREDICTIONS: usize = 76;

/// The first condition of the closed division that a run breaks, in words; none if it fulfils all that can be told
/// (mlcommons/training_policies, `training_rules.adoc`; the reference's README for data and model). The configuration is
/// to be resolved.
pub fn deviation(config: &Config, manifest: &Manifest, system_seed: bool) -> Option<String> {
    model(&config.model).or_else(|| data(manifest)).or_else(|| procedure(config)).or_else(|| {
        (!system_seed).then(|| "the seed was given, not drawn by the system (no --seed)".to_owned())
    })
}

fn differs<T: PartialEq + std::fmt::Debug>(what: &str, is: T, wanted: T) -> Option<String> {
    (is != wanted).then(|| format!("{what} is {is:?}, expected {wanted:?}"))
}

fn model(m: &ModelConfig) -> Option<String> {
    let large = Preset::Large.model();
    differs("model.layers", m.layers, large.layers)
        .or_else(|| differs("model.hidden", m.hidden, large.hidden))
        .or_else(|| differs("model.heads", m.heads, large.heads))
        .or_else(|| differs("model.intermediate", m.intermediate, large.intermediate))
        .or_else(|| differs("model.max_positions", m.max_positions, SEQUENCE))
        .or_else(|| differs("model.vocab_size", m.vocab_size, VOCAB))
        .or_else(|| differs("model.gelu", m.gelu, large.gelu))
        .or_else(|| differs("model.hidden_dropout", m.hidden_dropout, 0.1))
        .or_else(|| differs("model.attention_dropout", m.attention_dropout, 0.1))
        .or_else(|| {
            let what = "no start is given; the benchmark begins from its published checkpoint (--start)";
            m.init_from.is_none().then(|| what.to_owned())
        })
}

fn data(manifest: &Manifest) -> Option<String> {
    let options = &manifest.options;
    differs("the data's max_seq_length", options.max_seq_length, SEQUENCE)
        .or_else(|| differs("the data's max_predictions", options.max_predictions, PREDICTIONS))
        .or_else(|| differs("the data's masking", options.masking, Masking::Static))
        .or_else(|| differs("next-sentence labels in the data", options.nsp, true))
        .or_else(|| differs("the number of evaluation sequences", manifest.eval.sequences, EVAL_SEQUENCES))
        .or_else(|| manifest.source.is_none().then(|| recipe(options)).flatten())
}

/// Text must have become sequences as the reference tool makes them; of imported ones that cannot be told.
fn recipe(options: &PrepareConfig) -> Option<String> {
    let reference = PrepareConfig::of(Recipe::Mlperf);
    differs("the data's recipe", options.recipe, reference.recipe)
        .or_else(|| differs("the data's dupe_factor", options.dupe_factor, reference.dupe_factor))
        .or_else(|| differs("the data's masked_lm_prob", options.masked_lm_prob, reference.masked_lm_prob))
        .or_else(|| differs("the data's short_seq_prob", options.short_seq_prob, reference.short_seq_prob))
        .or_else(|| differs("the data's seed", options.seed, reference.seed))
}

fn procedure(config: &Config) -> Option<String> {
    let Config { train, optimizer, schedule, .. } = config;
    let every = eval_interval(train.batch_sequences);
    differs("optimizer.kind", optimizer.kind, OptimizerKind::Lamb)
        .or_else(|| differs("optimizer.clip_norm", optimizer.clip_norm, 1.0))
        .or_else(|| differs("schedule.kind", schedule.kind, ScheduleKind::Polynomial))
        .or_else(|| differs("schedule.power", schedule.power, 1.0))
        .or_else(|| differs("schedule.end_lr", schedule.end_lr, 0.0))
        .or_else(|| differs("train.batch_tokens", train.batch_tokens, 0))
        .or_else(|| differs("train.eval_every", train.eval_every, every))
        .or_else(|| {
            let some = train.eval_sequences != 0 && (train.eval_sequences as u64) < EVAL_SEQUENCES;
            let n = train.eval_sequences;
            some.then(|| format!("train.eval_sequences is {n}, expected 0 for all {EVAL_SEQUENCES}"))
        })
        .or_else(|| differs("train.target_accuracy", train.target_accuracy, Some(TARGET)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::mlperf::Preset;

    pub fn closed() -> (Config, Manifest) {
        let mut config = Config::load(None, &Preset::of(448).unwrap().settings()).unwrap();
        config.model.vocab_size = VOCAB;
        config.model.init_from = Some("model".into());
        let options = PrepareConfig::of(Recipe::Mlperf);
        let mut manifest = Manifest::new(&options, Vec::new());
        manifest.eval.sequences = EVAL_SEQUENCES;
        (config, manifest)
    }

    #[test]
    fn the_preset_on_the_benchmarks_data_is_closed() {
        let (config, manifest) = closed();
        assert_eq!(deviation(&config, &manifest, true), None);
    }

    type Change = fn(&mut Config, &mut Manifest);

    #[test]
    fn each_condition_is_named_when_it_is_broken() {
        let broken = |change: Change| {
            let (mut config, mut manifest) = closed();
            change(&mut config, &mut manifest);
            deviation(&config, &manifest, true).unwrap()
        };
        let cases: [(&str, Change); 11] = [
            ("model.layers is 12, expected 24", |c, _| c.model.layers = 12),
            ("model.hidden_dropout", |c, _| c.model.hidden_dropout = 0.0),
            ("--start", |c, _| c.model.init_from = None),
            ("masking is Dynamic, expected Static", |_, m| m.options.masking = Masking::Dynamic),
            ("evaluation sequences is 9999, expected 10000", |_, m| m.eval.sequences = 9_999),
            ("recipe is Standard, expected Mlperf", |_, m| m.options.recipe = Recipe::Standard),
            ("the data's seed is 1, expected 12345", |_, m| m.options.seed = 1),
            ("optimizer.kind", |c, _| c.optimizer.kind = OptimizerKind::AdamW),
            ("train.eval_every is 1000, expected 150000", |c, _| c.train.eval_every = 1_000),
            ("train.eval_sequences is 5000", |c, _| c.train.eval_sequences = 5_000),
            ("train.target_accuracy", |c, _| c.train.target_accuracy = Some(0.7)),
        ];
        for (expected, change) in cases {
            let what = broken(change);
            assert!(what.contains(expected), "{what}");
        }
        let (config, manifest) = closed();
        assert!(deviation(&config, &manifest, false).unwrap().contains("seed"));
    }
}
