//! N processes compute what one does, up to the order of sums.

use super::{metric, model, place, train};
use crate::cli::Workplace;
use std::fs;

/// Losses, norms and evaluations of two runs agree to f32's rounding.
#[track_caller]
pub fn alike(place: &Workplace, a: &str, b: &str) {
    for name in
        ["loss", "mlm_accuracy", "grad_norm", "lr", "eval_loss", "eval_mlm_accuracy", "eval_sequences"]
    {
        let [a, b] = [a, b].map(|run| metric(&place.path(run), name));
        assert!(!a.is_empty() && a.len() == b.len(), "{name}: {} and {} values", a.len(), b.len());
        for (x, y) in a.iter().zip(&b) {
            assert!((x - y).abs() <= 1e-6 * x.abs().max(1.0), "{name}: {x} and {y}");
        }
    }
}

#[test]
fn any_number_of_processes_reproduces_one() {
    let place = place();
    for optimizer in ["lamb", "adamw"] {
        let name = |kind: &str| format!("{optimizer}-{kind}");
        let run = |kind: &str, options: &str| {
            let options = format!("--set optimizer.kind={optimizer} {options}");
            train(&place, &name(kind), &options).done();
        };
        run("one", "");
        run("two", "--processes 2");
        run("four", "--processes 4");
        run("whole", "--processes 2 --set ranks.shard_optimizer=false");
        run("small", "--processes 2 --set ranks.bucket_elements=100");
        for kind in ["two", "four"] {
            alike(&place, &name("one"), &name(kind));
        }
        // From the same reduced gradient the shards end bit-equal to the whole.
        assert!(model(&place, &name("two")) == model(&place, &name("whole")));
        assert!(model(&place, &name("two")) == model(&place, &name("small")));
    }
    train(&place, "eight", "--set train.batch_sequences=8").done();
    train(&place, "parts", "--set train.batch_sequences=8 --set train.accumulation=2 --processes 3").done();
    alike(&place, "eight", "parts");
}

#[test]
fn bf16_gradients_are_off_by_their_rounding_only() {
    let place = place();
    train(&place, "full", "--processes 2").done();
    train(&place, "bf16", "--processes 2 --set ranks.gradients=bf16").done();
    let [full, bf16] = ["full", "bf16"].map(|run| metric(&place.path(run), "loss"));
    assert!(model(&place, "full") != model(&place, "bf16"));
    for (x, y) in full.iter().zip(&bf16) {
        assert!((x - y).abs() <= 5e-3 * x, "{x} and {y}");
    }
}

#[test]
fn clipping_before_the_sum_bounds_its_norm() {
    let place = place();
    let run = |name: &str, norm: &str, order: &str| {
        let options = format!("--processes 2 --set optimizer.clip_norm={norm} --set ranks.clip={order}");
        train(&place, name, &options).done();
        metric(&place.path(name), "grad_norm")
    };
    // Where nothing is clipped the order makes no difference.
    let (before, after) = (run("wide-before", "1000", "before"), run("wide-after", "1000", "after"));
    assert_eq!(before, after);
    assert!(model(&place, "wide-before") == model(&place, "wide-after"));
    let (before, after) = (run("before", "0.5", "before"), run("after", "0.5", "after"));
    assert!(before.iter().all(|&norm| norm <= 0.5 * 1.0001), "{before:?}");
    assert!(after.iter().any(|&norm| norm > 0.6), "{after:?}");
}

#[test]
fn a_step_with_fewer_sequences_than_processes_counts_as_any_other() {
    let place = place();
    train(&place, "one", "--set train.batch_sequences=2").done();
    train(&place, "four", "--set train.batch_sequences=2 --processes 4").done();
    alike(&place, "one", "four");
}

#[test]
fn checkpoints_do_not_depend_on_the_number_of_processes() {
    let place = place();
    train(&place, "one", "").done();
    train(&place, "four", "--processes 4").done();
    for (run, from, options) in [
        ("again", "four", "--processes 4"),
        ("fewer", "four", "--processes 2"),
        ("solo", "four", ""),
        ("more", "one", "--processes 4"),
    ] {
        copy(&place, from, run);
        fs::remove_dir_all(place.path(run).join("checkpoints/step-00000010")).unwrap();
        fs::remove_dir_all(place.path(run).join("model")).unwrap();
        let said = train(&place, run, &format!("{options} --resume"));
        assert!(said.stderr.contains("resumed from"), "{}", said.stderr);
        said.done();
        alike(&place, "one", run);
    }
    assert!(model(&place, "again") == model(&place, "four"));
}

pub fn copy(place: &Workplace, from: &str, to: &str) {
    for file in crate::cli::files(&place.path(from)) {
        let target = place.path(to).join(file.strip_prefix(place.path(from)).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}
