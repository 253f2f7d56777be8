use super::*;
use crate::Error;
use std::fs;
use tempfile::TempDir;

/// Loads a file of this text with these overrides; the error as one line, without the folder's name.
fn load(text: &str, overrides: &[&str]) -> Result<Config, String> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("run.toml");
    fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    Config::load(Some(&path), &overrides).map_err(|e| shown(&e, dir.path()))
}

fn set(overrides: &[&str]) -> Result<Config, String> {
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    Config::load(None, &overrides).map_err(|e| e.to_string())
}

fn shown(error: &Error, dir: &std::path::Path) -> String {
    let text = error.to_string();
    assert!(!text.contains('\n'), "more than one line: {text}");
    text.replace(&format!("{}/", dir.display()), "")
}

#[test]
fn defaults_are_valid_and_equal_the_structs() {
    assert_eq!(set(&[]).unwrap(), Config::default());
}

#[test]
fn a_preset_gives_the_sizes_that_keys_beside_it_override() {
    let config = load("[model]\nhidden = 192\nheads = 6\npreset = \"tiny\"\n", &[]).unwrap();
    assert_eq!(config.model, ModelConfig { hidden: 192, heads: 6, ..Preset::Tiny.model() });
    // an override of the preset keeps what the file overrides
    let config = load("[model]\npreset = \"tiny\"\ngelu = \"erf\"", &["model.preset=large"]).unwrap();
    assert_eq!(config.model, ModelConfig { gelu: Gelu::Erf, ..Preset::Large.model() });
}

#[test]
fn overrides_win_over_the_file_and_are_toml_or_bare_strings() {
    let config = load(
        "[train]\nsteps = 5\nrun = \"a\"\n[data.prepare]\ninput = [\"x\"]\nvocab = \"v\"\n",
        &[
            "train.steps=7",
            "train.run=runs/my run",
            "data.dir=\"quoted\"",
            "data.prepare.input=[\"a\", \"b\"]",
            "schedule.lr=3e-4",
            "schedule.power=2",
            "schedule.start_warmup_step = -100",
            "data.prepare.nsp=false",
            "optimizer.kind=lamb",
        ],
    )
    .unwrap();
    assert_eq!(config.train.steps, 7);
    assert_eq!(config.train.run, PathBuf::from("runs/my run"));
    assert_eq!(config.data.dir, PathBuf::from("quoted"));
    assert_eq!(config.data.prepare.input, [PathBuf::from("a"), PathBuf::from("b")]);
    assert_eq!(config.schedule.lr, 3e-4);
    assert_eq!(config.schedule.power, 2.0);
    assert_eq!(config.schedule.start_warmup_step, -100);
    assert!(!config.data.prepare.nsp);
    assert_eq!(config.optimizer.kind, OptimizerKind::Lamb);
    // a folder whose name is a number
    assert_eq!(set(&["train.run=2024"]).unwrap().train.run, PathBuf::from("2024"));
}

#[test]
fn a_setting_replaces_an_earlier_one_that_it_excludes() {
    let config = load("[train]\nbatch_tokens = 4096\n", &[]).unwrap();
    assert_eq!((config.train.batch_sequences, config.train.batch_tokens), (0, 4096));
    let config = load("[train]\nbatch_tokens = 4096\n", &["train.batch_sequences=8"]).unwrap();
    assert_eq!((config.train.batch_sequences, config.train.batch_tokens), (8, 0));
    let file = "[data.prepare]\ninput = [\"x\"]\nvocab = \"v.txt\"\n";
    let config = load(file, &["data.prepare.train_vocab=500"]).unwrap();
    assert_eq!((config.data.prepare.vocab, config.data.prepare.train_vocab), (None, Some(500)));
    let error = load("[train]\nbatch_tokens = 4096\nbatch_sequences = 8\n", &[]).unwrap_err();
    assert_eq!(
        error,
        "run.toml: line 2: train.batch_tokens: 4096 is given beside train.batch_sequences = 8; set one of the two \
         to 0"
    );
}

#[test]
fn an_empty_override_takes_an_optional_key_back() {
    let config = load("[train]\ntarget_accuracy = 0.5\n", &["train.target_accuracy="]).unwrap();
    assert_eq!(config.train.target_accuracy, None);
    assert_eq!(set(&["train.steps="]).unwrap_err(), "train.steps: \"\" is not a whole number, 0 or more");
}

#[test]
fn the_resolved_configuration_loads_back_to_the_same() {
    let config = load(
        "[model]\npreset = \"mini\"\nlayer_norm_eps = 1e-7\ninit_from = \"m\\\"q\"\n[train]\nbatch_tokens = 512\n\
         target_accuracy = 0.1\nseed = 9223372036854775807\n[data.prepare]\ninput = [\"ü\", \"b\"]\n\
         train_vocab = 300\nmax_seq_length = 64\n[schedule]\nlr = 0.00017\nkind = \"polynomial\"\n",
        &[],
    )
    .unwrap();
    let again = load(&config.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(again, config);
    assert_eq!(load(&Config::default().to_toml().unwrap(), &[]).unwrap(), Config::default());
}

#[test]
fn the_hash_is_over_what_defines_the_result() {
    let base = Config::default();
    for (same, key) in [
        (true, "train.run=elsewhere"),
        (true, "train.device=cpu"),
        (true, "train.threads=3"),
        (true, "train.recompute=layer"),
        (true, "train.log_every=1"),
        (true, "train.checkpoint_every=7"),
        (true, "train.eval_every=7"),
        (true, "data.dir=elsewhere"),
        (false, "train.seed=2"),
        (false, "train.steps=999"),
        (false, "train.batch_tokens=512"),
        (false, "model.gelu=erf"),
        (false, "data.prepare.seed=5"),
        (false, "optimizer.beta2=0.99"),
        (false, "schedule.power=0.5"),
    ] {
        let other = set(&[key]).unwrap();
        assert_eq!(base.hash() == other.hash(), same, "{key}");
    }
}

#[test]
fn keys_that_came_later_leave_the_hash_of_earlier_checkpoints() {
    // as the version without model.resize_vocab and model.extend_positions had it
    let earlier = "898b916143453bdb67c26c57213f98560fd72c2ab4a04c68c000b745eda1a5c8";
    assert_eq!(Config::default().hash(), earlier);
    let from = set(&["model.init_from=m"]).unwrap();
    for key in ["model.resize_vocab=mean", "model.extend_positions=tile"] {
        assert_ne!(set(&["model.init_from=m", key]).unwrap().hash(), from.hash(), "{key}");
        let message = set(&[key]).unwrap_err();
        assert!(message.contains("changes a model that is there; name it with model.init_from"), "{message}");
    }
}

#[test]
fn keys_that_were_given_are_told_from_defaults() {
    let given = load("[model]\nlayers = 12\n", &["model.max_positions=512"]).unwrap().given;
    assert!(given.has("model.layers") && given.has("model.max_positions") && !given.has("model.hidden"));
    let preset = set(&["model.preset=base"]).unwrap().given;
    assert!(
        ["layers", "hidden", "heads", "intermediate"].iter().all(|key| preset.has(&format!("model.{key}")))
    );
    assert!(!preset.has("model.max_positions") && !Config::default().given.has("model.layers"));
}

#[test]
fn unknown_keys_are_named_with_the_nearest_known_one() {
    let error = |text: &str| load(text, &[]).unwrap_err();
    assert_eq!(
        error("[train]\nsteps = 3\n\n[model]\nhiden = 128\n"),
        "run.toml: line 5: `model.hiden` is not a known key; did you mean `model.hidden`?"
    );
    assert_eq!(
        error("warmup_steps = 128\n"),
        "run.toml: line 1: `warmup_steps` is not a known key; did you mean `schedule.warmup_steps`?"
    );
    assert_eq!(
        error("[trian]\nsteps = 3\n"),
        "run.toml: line 2: `trian.steps` is not a known key; did you mean `train.steps`?"
    );
    assert!(error("[modle]\n").starts_with("run.toml: line 1: `modle` is not a known key"));
    assert_eq!(
        error("train = 3\n"),
        "run.toml: line 1: `train` is a section of keys, such as `train.accumulation`"
    );
    assert_eq!(
        set(&["train.target_acuracy=0.1"]).unwrap_err(),
        "--set: `train.target_acuracy` is not a known key; did you mean `train.target_accuracy`?"
    );
    assert!(error("\"model.hidden\" = 128\n").contains("without quotes"));
}

#[test]
fn wrong_types_name_key_value_and_what_is_expected() {
    for (text, want) in [
        ("[model]\nhidden = \"big\"", "line 2: model.hidden: \"big\" is not a whole number, 0 or more"),
        ("[model]\nhidden = -3", "line 2: model.hidden: -3 is not a whole number, 0 or more"),
        ("[model]\nhidden = 1.5", "line 2: model.hidden: 1.5 is not a whole number, 0 or more"),
        ("[model]\nhidden = {a = 1}", "line 2: model.hidden: { a = 1 } is not a whole number, 0 or more"),
        ("[schedule]\nlr = \"1e-4\"", "line 2: schedule.lr: \"1e-4\" is not a number"),
        ("[data.prepare]\nnsp = 1", "line 2: data.prepare.nsp: 1 is not true or false"),
        (
            "[data.prepare]\ninput = \"x\"",
            "line 2: data.prepare.input: \"x\" is not a list, as in [\"a\", \"b\"]",
        ),
        ("[data]\ndir = 7", "line 2: data.dir: 7 is not a text in quotes"),
        ("[data.prepare]\nvocab = 7", "line 2: data.prepare.vocab: 7 is not a text in quotes"),
        (
            "[train]\ndevice = \"cudda\"",
            "line 2: train.device: \"cudda\" is not one of auto, cpu, cuda; the nearest is \"cuda\"",
        ),
        ("[train]\ndevice = 3", "line 2: train.device: 3 is not a text in quotes"),
        (
            "[model]\npreset = \"bass\"",
            "line 2: model.preset: \"bass\" is not one of tiny, mini, small, medium, base, large; the nearest is \
             \"base\"",
        ),
        (
            "[model]\ngelu = \"relu\"",
            "line 2: model.gelu: \"relu\" is not one of tanh, erf; the nearest is \"erf\"",
        ),
    ] {
        assert_eq!(load(text, &[]).unwrap_err(), format!("run.toml: {want}"), "{text}");
    }
    assert_eq!(
        set(&["model.hidden=big"]).unwrap_err(),
        "model.hidden: \"big\" is not a whole number, 0 or more"
    );
    assert_eq!(
        set(&["model.hidden"]).unwrap_err(),
        "model.hidden: an override has the form `section.key=value`, as in `train.steps=100`"
    );
}

#[test]
fn files_that_cannot_be_read_are_errors() {
    assert!(load("[train\nsteps = 1", &[]).unwrap_err().starts_with("run.toml: line 1: not valid TOML: "));
    assert!(load("a = 1\na = 2\n", &[]).unwrap_err().starts_with("run.toml: line 2: not valid TOML: "));
    for empty in ["", "# nothing\n", "[train]\n"] {
        assert!(load(empty, &[]).unwrap_err().contains("holds no settings"), "{empty}");
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("run.toml");
    fs::write(&path, b"[train]\nrun = \"\xff\"").unwrap();
    let error = shown(&Config::load(Some(&path), &[]).unwrap_err(), dir.path());
    assert_eq!(error, "run.toml: byte 15 is not valid UTF-8; save the configuration as UTF-8 text");
    let missing = shown(&Config::load(Some(&dir.path().join("no.toml")), &[]).unwrap_err(), dir.path());
    assert!(missing.starts_with("no.toml: cannot read the configuration: "), "{missing}");
    assert!(Config::load(Some(dir.path()), &[]).is_err());
}

#[test]
fn invalid_values_are_named_with_the_remedy() {
    for (overrides, want) in [
        (
            &["model.hidden=100"][..],
            "model.hidden: 100 is not divisible by model.heads = 12; the nearest valid value is 96",
        ),
        (&["ranks.hang_seconds=1"], "ranks.hang_seconds: 1 is too small; the smallest valid value is 2"),
        (
            &["model.hidden=36"],
            "model.hidden: 36 gives heads of odd size 3 with model.heads = 12; the nearest valid value is 24",
        ),
        (
            &["model.hidden=10"],
            "model.hidden: 10 is not divisible by model.heads = 12; the nearest valid value is 24",
        ),
        (&["model.layers=0"], "model.layers: 0 is too small; the smallest valid value is 1"),
        (&["model.heads=0"], "model.heads: 0 is too small; the smallest valid value is 1"),
        (&["model.heads=65536"], "model.heads: 65536 is too large; the largest valid value is 65535"),
        (&["model.vocab_size=5"], "model.vocab_size: 5 is too small; the smallest valid value is 6"),
        (
            &["model.max_positions=1048577"],
            "model.max_positions: 1048577 is too large; the largest valid value is 1048576",
        ),
        (
            &["model.hidden=12582912", "model.layers=65536"],
            "model.hidden: the model would have 4.2e19 parameters, 1e12 at most",
        ),
        (&["model.hidden_dropout=1"], "model.hidden_dropout: 1 must be at least 0 and below 1"),
        (&["model.attention_dropout=nan"], "model.attention_dropout: NaN must be at least 0 and below 1"),
        (&["model.layer_norm_eps=0"], "model.layer_norm_eps: 0 must be finite and above 0"),
        (&["optimizer.beta1=1.0"], "optimizer.beta1: 1 must be at least 0 and below 1"),
        (&["optimizer.eps=inf"], "optimizer.eps: inf must be finite and above 0"),
        (&["schedule.lr=-1"], "schedule.lr: -1 must be finite and not negative"),
        (
            &["schedule.warmup_steps=20", "schedule.total_steps=10"],
            "schedule.warmup_steps: the warmup ends at step 20, after the decay's end, schedule.total_steps = 10",
        ),
        (&["train.steps=0"], "train.steps: 0 is too small; the smallest valid value is 1"),
        (&["train.batch_sequences=0"], "train.batch_sequences: is 0; set it, or train.batch_tokens, above 0"),
        (
            &["train.accumulation=5"],
            "train.batch_sequences: 32 is not divisible by train.accumulation = 5; the next multiple is 35",
        ),
        (&["train.accumulation=0"], "train.accumulation: 0 is too small; the smallest valid value is 1"),
        (&["train.target_accuracy=72"], "train.target_accuracy: 72 must be above 0 and at most 1, as 0.72"),
        (&["train.run="], "train.run: is an empty path"),
        (
            &["data.prepare.input=[\"a\"]"],
            "data.prepare.vocab: is not given; name a vocab.txt, or set data.prepare.train_vocab to train one of \
             that many tokens",
        ),
        (&["data.prepare.eval_fraction=1"], "data.prepare.eval_fraction: 1 must lie between 0 and 0.999"),
        (
            &["data.prepare.masked_lm_prob=0"],
            "data.prepare.masked_lm_prob: 0 must be above 0 and at most 1, as 0.15",
        ),
        (
            &["data.prepare.input=[\"a\"]", "data.prepare.vocab=v", "model.max_positions=128"],
            "data.prepare.max_seq_length: 512 is more than model.max_positions = 128; lower it or raise \
             model.max_positions",
        ),
        (
            &["data.prepare.input=[\"a\"]", "data.prepare.vocab=v", "train.batch_tokens=511"],
            "train.batch_tokens: 511 is less than one sequence of data.prepare.max_seq_length = 512 tokens",
        ),
        (&["train.batch_sequences=4096", "model.max_positions=1048576"], ""),
        (
            &["train.batch_sequences=4097", "model.max_positions=1048576"],
            "train.batch_sequences: 4097 times model.max_positions = 1048576 must be at most 2^32",
        ),
        // a trial of few steps of a run with a long warmup
        (&["train.steps=3", "schedule.warmup_steps=100"], ""),
        (&["model.max_positions=128"], ""),
        (&["data.prepare.masked_lm_prob=1", "data.prepare.short_seq_prob=0", "optimizer.clip_norm=0"], ""),
    ] {
        assert_eq!(set(overrides).err().unwrap_or_default(), want, "{overrides:?}");
    }
    let error = load("[model]\nheads = 12\n\nhidden = 100\n", &[]).unwrap_err();
    assert!(error.starts_with("run.toml: line 4: model.hidden: 100 is not divisible"), "{error}");
}

#[test]
fn a_seed_beyond_tomls_integers_is_refused() {
    let mut config = Config::default();
    config.train.seed = u64::MAX;
    assert!(
        config.validate().unwrap_err().to_string().starts_with("train.seed: 18446744073709551615 is too")
    );
}

mod mutations {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Any bytes in a configuration, or any override, give a configuration or a one-line error.
        #[test]
        fn never_panic(at in 0usize..900, byte: u8, cut in 0usize..900, text in "\\PC{0,20}") {
            let mut bytes = Config::default().to_toml().unwrap().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut.max(1));
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("run.toml");
            fs::write(&path, &bytes).unwrap();
            if let Err(error) = Config::load(Some(&path), &[]) {
                shown(&error, dir.path());
            }
            for override_ in [text.clone(), format!("model.hidden={text}"), format!("model.{text}=1")] {
                if let Err(error) = Config::load(None, &[override_]) {
                    shown(&error, dir.path());
                }
            }
        }
    }
}

#[test]
fn a_recipe_gives_the_defaults_of_the_keys_beside_it() {
    let file = "[data.prepare]\ninput = [\"x\"]\nvocab = \"v\"\ndupe_factor = 3\nrecipe = \"mlperf\"\n";
    let prepare = load(file, &["data.prepare.eval_input=e.txt"]).unwrap().data.prepare;
    let wanted = PrepareConfig {
        input: vec!["x".into()],
        vocab: Some("v".into()),
        eval_input: Some("e.txt".into()),
        dupe_factor: 3,
        ..PrepareConfig::of(Recipe::Mlperf)
    };
    assert_eq!(prepare, wanted);
    assert_eq!((wanted.max_seq_length, wanted.max_predictions, wanted.seed), (512, 76, 12345));
    assert_eq!((wanted.masking, wanted.eval_fraction), (Masking::Static, 0.0));
    let config = load(file, &[]).unwrap();
    assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);
    let error = set(&["data.prepare.recipe=mlpref"]).unwrap_err();
    assert_eq!(
        error,
        "data.prepare.recipe: \"mlpref\" is not one of standard, mlperf; the nearest is \"mlperf\""
    );
}

#[test]
fn the_tokenizers_keys_are_known_and_change_the_hash_only_where_they_are_given() {
    let plain = set(&[]).unwrap();
    let given = set(&["data.prepare.lowercase=false", "data.prepare.strip_accents=true"]).unwrap();
    assert_eq!((given.data.prepare.lowercase, given.data.prepare.strip_accents), (Some(false), Some(true)));
    assert_eq!(load(&given.to_toml().unwrap(), &[]).unwrap(), given);
    assert_ne!(given.hash(), plain.hash());
    let back = set(&["data.prepare.lowercase=false", "data.prepare.lowercase="]).unwrap();
    assert_eq!(back.hash(), plain.hash());
    assert!(set(&["data.prepare.lowercase=yes"]).unwrap_err().contains("is not true or false"));
}

#[test]
fn what_contradicts_the_recipe_is_refused() {
    let mlperf = "data.prepare.recipe=mlperf";
    for (overrides, want) in [
        (vec![mlperf, "data.prepare.masking=dynamic"], "data.prepare.masking: dynamic contradicts"),
        (vec![mlperf, "data.prepare.nsp=false"], "data.prepare.nsp: false contradicts"),
        (
            vec![mlperf, "data.prepare.whole_word_masking=true"],
            "data.prepare.whole_word_masking: true contradicts",
        ),
        (vec!["data.prepare.alphabet_limit=50"], "data.prepare.alphabet_limit: 50 is for a vocabulary that"),
        (
            vec!["data.prepare.train_vocab=500", "data.prepare.alphabet_limit=0"],
            "data.prepare.alphabet_limit: 0 is too small",
        ),
        (vec![mlperf, "data.prepare.split=sentences"], "data.prepare.split: sentences contradicts"),
        (vec![mlperf, "data.prepare.eval_fraction=0.1"], "data.prepare.eval_fraction: 0.1 contradicts"),
        (vec![mlperf, "data.prepare.eval_records=0"], "data.prepare.eval_records: 0 is too small"),
        (vec!["data.prepare.eval_input=e.txt"], "data.prepare.eval_input: is for data.prepare.recipe mlperf"),
    ] {
        let error = set(&overrides).unwrap_err();
        assert!(error.starts_with(want) && !error.contains('\n'), "{error}");
    }
    let text = ["data.prepare.input=[\"x\"]", "data.prepare.vocab=v", mlperf, "train.target_accuracy=0.7"];
    let error = set(&text).unwrap_err();
    assert!(error.ends_with("give it as data.prepare.eval_input"), "{error}");
    assert!(set(&[&text[..], &["data.prepare.eval_input=e.txt"]].concat()).is_ok());
}

/// The hashes that version 0.1 wrote into its checkpoints. A key that is added since belongs into `ADDED_LATER`.
#[test]
fn the_hash_is_the_one_that_the_first_checkpoints_hold() {
    assert_eq!(Config::default().hash(), "898b916143453bdb67c26c57213f98560fd72c2ab4a04c68c000b745eda1a5c8");
    let other = set(&["model.preset=tiny", "data.prepare.nsp=false", "schedule.lr=0.002"]).unwrap();
    assert_eq!(other.hash(), "bfbf8d2c1bb909d3b34d312c44bbce80c936be64008cb85a0cd539643f54158e");
}
