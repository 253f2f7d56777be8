//! A loss or weights that are not finite: the run says where, keeps its last good checkpoint, or skips the update; and no
//! command takes such a model for one.

use super::{Workplace, message, names};
use std::fs;

const STOPS: &str = "--config tiny.toml --set train.checkpoint_every=1 --set train.keep_checkpoints=1 \
                     --set optimizer.clip_norm=0";

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_the_last_good_checkpoint() {
    let place = Workplace::with_corpus();
    // the first step of the warmup has a learning rate of 0
    let line = format!("{STOPS} --steps 12 --set schedule.lr=1e30");
    let said = message(place.line(&line));
    for part in [
        "step 2: with the weights after its update the loss of a held-out sequence is not finite",
        "learning rate 5e29",
        "kept in run/checkpoints/step-00000001",
        "resume with a lower schedule.lr",
        "model.init_from",
    ] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert_eq!(names(&place.path("run/checkpoints")), ["step-00000001"]);
    let rare = format!("{line} --run rare --set train.checkpoint_every=0");
    let said = message(place.line(&rare));
    for part in [
        "step 3: the gradient of bert.embeddings.word_embeddings.weight is not finite",
        "learning rate 1e30",
        "start again with a lower schedule.lr",
    ] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }

    // what the message says works
    let resumed = place.line(&format!("{line} --resume --set schedule.lr=1e-2"));
    let told = "the learning rate was 0.000e0 in step 1 and is 5.000e-3 in step 2";
    assert!(resumed.stderr.contains(told), "{}", resumed.stderr);
    resumed.done();
    place
        .line("--config tiny.toml --steps 12 --run again --set model.init_from=run/checkpoints/step-00000012")
        .done();
}

#[test]
fn skipping_steps_gives_up_and_keeps_what_is_good() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 4").done();
    let model = || fs::read(place.path("run/model/model.safetensors")).unwrap();
    let good = model();
    let skips = "--config tiny.toml --steps 100 --resume --set train.on_nonfinite=skip --set optimizer.clip_norm=0 \
                 --set train.checkpoint_every=0 --set schedule.lr=1e30 --set train.log_every=1";
    let ran = place.line(skips);
    assert_eq!(
        ran.stderr.lines().filter(|l| l.ends_with("the update is skipped")).count(),
        19,
        "{}",
        ran.stderr
    );
    let said = message(ran);
    for part in [
        "step 25: the gradient of ",
        "20 updates in a row were skipped (train.nonfinite_limit = 20)",
        "kept in run/checkpoints/step-00000004",
        "resume with a lower schedule.lr",
    ] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert!(names(&place.path("run/checkpoints")) == ["step-00000004"] && model() == good);
    let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert!(metrics.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{metrics}");
    place.line("--config tiny.toml --steps 12 --resume --set train.on_nonfinite=stop").done();
    assert!(model() != good);
    let said = message(place.line("--config tiny.toml --run none --set train.nonfinite_limit=0"));
    assert!(said.contains("train.nonfinite_limit: 0 is too small; the smallest valid value is 1"), "{said}");
}

#[test]
fn weights_that_are_not_finite_are_never_saved() {
    let place = Workplace::with_corpus();
    let said = message(place.line(&format!("{STOPS} --steps 12 --set schedule.lr=1e60")));
    for part in ["step 2: ", " is not finite after the update", "kept in run/checkpoints/step-00000001"] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert_eq!(names(&place.path("run/checkpoints")), ["step-00000001"]);

    let last = "--config tiny.toml --run last --steps 2 --set optimizer.clip_norm=0 --set schedule.lr=1e60";
    let said = message(place.line(&format!("{last} --set train.checkpoint_every=0")));
    assert!(said.contains("step 2: ") && said.contains("start again with a lower schedule.lr"), "{said}");
    assert!(!place.path("last/model").exists());
}

/// Weights that are finite, but overflow in the first product.
#[test]
fn a_model_that_computes_nothing_finite_is_an_error_for_every_command() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml").done();
    let path = place.path("run/model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for (value, part) in
        [(1e38_f32, "is not finite: the weights are too large"), (f32::NAN, "that is not finite")]
    {
        bytes[header..].as_chunks_mut::<4>().0.iter_mut().for_each(|weight| *weight = value.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        let said = message(place.run(&["fill-mask", "--model", "run/model", "the [MASK] sees"]));
        assert!(said.starts_with("run/model") && said.contains(part), "{said}");
        let said = message(place.line("eval --model run/model --data shards"));
        assert!(said.starts_with("run/model") && said.contains(part), "{said}");
        let said = message(place.line("--config tiny.toml --run next --set model.init_from=run/model"));
        assert!(said.contains("not finite"), "{said}");
        assert!(!place.path("next/model").exists());
    }
}
