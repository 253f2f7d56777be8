//! A loss or weights that are not finite: the run says where, keeps its last good checkpoint, or skips the update.

use super::{Workplace, message, names};

const STOPS: &str = "--config tiny.toml --steps 12 --set train.checkpoint_every=1 --set train.keep_checkpoints=1 \
                     --set optimizer.clip_norm=0";

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_can_be_skipped() {
    let place = Workplace::with_corpus();
    // the first step of the warmup has a learning rate of 0
    let line = format!("{STOPS} --set schedule.lr=1e30 --set train.log_every=1");
    let said = message(place.line(&line));
    let step: u64 = said.strip_prefix("step ").unwrap().split(':').next().unwrap().parse().unwrap();
    assert!((2..=4).contains(&step), "{said}");
    for part in [
        "the gradient of bert.embeddings.word_embeddings.weight is not finite",
        "learning rate",
        &format!("kept in run/checkpoints/step-{:08}", step - 1),
        "train.on_nonfinite = \"skip\"",
        "model.init_from",
    ] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert_eq!(names(&place.path("run/checkpoints")), [format!("step-{:08}", step - 1)]);

    // what the message says works
    let skipping = place.line(&format!("{line} --resume --set train.on_nonfinite=skip"));
    let skips = skipping.stderr.lines().filter(|l| l.ends_with("the update is skipped")).count() as u64;
    assert_eq!(skips, 12 - (step - 1), "{}", skipping.stderr);
    skipping.done();
    place.line("--config tiny.toml --steps 12 --run whole").done();
    place.line("--config tiny.toml --run again --set model.init_from=whole/checkpoints/step-00000012").done();
}

#[test]
fn weights_that_are_not_finite_are_never_saved() {
    let place = Workplace::with_corpus();
    let said = message(place.line(&format!("{STOPS} --set schedule.lr=1e60")));
    for part in ["step 2: ", " is not finite after the update", "kept in run/checkpoints/step-00000001"] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert_eq!(names(&place.path("run/checkpoints")), ["step-00000001"]);

    let last = "--config tiny.toml --run last --steps 2 --set optimizer.clip_norm=0 --set schedule.lr=1e60";
    let said = message(place.line(&format!("{last} --set train.checkpoint_every=0")));
    assert!(said.contains("step 2: ") && said.contains("start again with a lower schedule.lr"), "{said}");
    assert!(!place.path("last/model").exists());
}
