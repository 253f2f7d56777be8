//! Several GPUs, on the emulator: a process for each, NCCL between them.

use super::job::{ENDLESS, Job, errors, mpirun, mpirun_is_there, one_error, send};
use super::numbers::{alike, copy};
use super::{metric, model, place};
use crate::cli::{Ran, Workplace};
use crate::gpu::emulated;

/// Trains as `run` with these options on a machine with so many GPUs; none where there are no kernels.
fn train(place: &Workplace, run: &str, options: &str, gpus: &str) -> Option<Ran> {
    emulated(place, &format!("--config ranks.toml --run {run} {options}"), &[("EMULATOR_DEVICES", gpus)])
}

#[test]
fn gpus_reproduce_one() {
    let place = place();
    for precision in ["f32", "bf16"] {
        let name = |kind: &str| format!("{precision}-{kind}");
        let run = |kind: &str, options: &str| {
            let options = format!("--set train.precision={precision} {options}");
            train(&place, &name(kind), &options, "3").map(Ran::done).is_some()
        };
        if !run("one", "--gpus 1") {
            return;
        }
        run("two", "--gpus 2");
        run("whole", "--gpus 2 --set ranks.shard_optimizer=false");
        run("three", "--gpus 3 --set ranks.bucket_elements=100");
        // Two numbers have one sum: from the same gradient the shards end bit-equal to the whole.
        assert!(model(&place, &name("two")) == model(&place, &name("whole")), "{precision}");
        for kind in ["two", "three"] {
            match precision {
                "f32" => alike(&place, &name("one"), &name(kind)),
                _ => close(&place, &name("one"), &name(kind), 0.02),
            }
        }
    }
    train(&place, "narrow", "--gpus 2 --set train.precision=f32 --set ranks.gradients=bf16", "2")
        .unwrap()
        .done();
    assert!(model(&place, "narrow") != model(&place, "f32-two"));
    close(&place, "f32-two", "narrow", 5e-3);
}

/// Losses that differ by what rounding to bf16 costs.
#[track_caller]
fn close(place: &Workplace, a: &str, b: &str, band: f64) {
    let [x, y] = [a, b].map(|run| metric(&place.path(run), "loss"));
    assert!(!x.is_empty() && x.len() == y.len());
    for (x, y) in x.iter().zip(&y) {
        assert!((x - y).abs() <= band * x, "{a} and {b}: {x} and {y}");
    }
}

#[test]
fn a_checkpoint_of_two_gpus_goes_on_with_one() {
    let place = place();
    let line = "--set train.precision=bf16";
    let Some(ran) = train(&place, "both", &format!("{line} --gpus 2"), "2") else { return };
    ran.done();
    copy(&place, "both", "half");
    std::fs::remove_dir_all(place.path("half").join("checkpoints/step-00000010")).unwrap();
    std::fs::remove_dir_all(place.path("half").join("model")).unwrap();
    let resumed = train(&place, "half", &format!("{line} --gpus 1 --resume"), "1").unwrap();
    assert!(resumed.stderr.contains("resumed from"), "{}", resumed.stderr);
    resumed.done();
    close(&place, "both", "half", 0.02);
}

#[test]
fn a_checkpoint_of_one_gpu_goes_on_with_three() {
    let place = place();
    let line = "--set train.precision=f32";
    let Some(ran) = train(&place, "one", &format!("{line} --gpus 1"), "1") else { return };
    ran.done();
    copy(&place, "one", "more");
    std::fs::remove_dir_all(place.path("more").join("checkpoints/step-00000010")).unwrap();
    std::fs::remove_dir_all(place.path("more").join("model")).unwrap();
    train(&place, "more", &format!("{line} --gpus 3 --resume"), "3").unwrap().done();
    alike(&place, "one", "more");
}

/// Built with MPI or without: NCCL is what GPUs talk over, and who is not needed leaves.
#[test]
fn what_mpirun_starts_takes_its_gpus() {
    let place = place();
    let line = "--set train.precision=f32 --gpus 2";
    let Some(ran) = train(&place, "own", line, "2") else { return };
    ran.done();
    if !mpirun_is_there() {
        return;
    }
    for (run, processes) in [("each", 2), ("surplus", 3), ("spawned", 1)] {
        let launcher = env!("CARGO_BIN_EXE_launcher");
        let options = format!("-n {processes} {launcher} --config ranks.toml --run {run} {line}");
        let mut command = mpirun(&place, &options.split_whitespace().collect::<Vec<_>>());
        command.env("LD_LIBRARY_PATH", emulator::LIBRARIES).env("XDG_CACHE_HOME", place.path("caches"));
        let output = command.env("EMULATOR_DEVICES", "2").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("2 GPUs over NCCL 2."), "{said}");
        assert!(model(&place, "own") == model(&place, run), "{run}");
    }
}

#[test]
fn a_network_that_stops_ends_all_with_one_message() {
    let place = place();
    let stuck = [("EMULATOR_DEVICES", "2"), ("EMULATOR_NCCL_HANG", "1:40")];
    let line = "--config ranks.toml --gpus 2 --set ranks.hang_seconds=3";
    let Some(ran) = emulated(&place, line, &stuck) else { return };
    let error = one_error(&ran.stderr);
    assert!(error.contains("all ranks have waited for each other for 3 s"), "{error}");
}

#[test]
fn graphs_of_several_gpus_are_told_to_be_off() {
    let place = place();
    let line = "--set train.graph=true --steps 2";
    let remark = "train.graph: only a single process";
    for (run, gpus, told) in [("one", "1", false), ("two", "2", true)] {
        let Some(ran) = train(&place, run, &format!("{line} --gpus {gpus}"), gpus) else { return };
        assert_eq!(ran.stderr.contains(remark), told, "{}", ran.stderr);
        ran.done();
    }
}

#[test]
fn too_few_gpus_are_told_with_both_numbers() {
    let place = place();
    let Some(ran) = train(&place, "run", "--gpus 4", "2") else { return };
    let said = ran.failed();
    assert!(said.contains("4 GPUs are asked for and this machine has 2"), "{said}");
    let old = [("EMULATOR_DEVICES", "2"), ("EMULATOR_NCCL_VERSION", "21210")];
    let said = emulated(&place, "--config ranks.toml --gpus 2", &old).unwrap().failed();
    assert!(said.contains("version 2.12.10, which is too old"), "{said}");
    // Two on one, where NCCL takes that.
    let shared = [("EMULATOR_NCCL_VERSION", "23007"), ("NCCL_MULTI_RANK_GPU_ENABLE", "1")];
    emulated(&place, "--config ranks.toml --gpus 2 --steps 2", &shared).unwrap().done();
}

#[test]
fn a_gpu_that_fails_or_a_process_that_is_killed_ends_all_with_one_message() {
    let place = place();
    let two = ("EMULATOR_DEVICES", "2");
    let broken = [two, ("EMULATOR_NCCL_ERROR", "1:20")];
    let Some(ran) = emulated(&place, "--config ranks.toml --run broken --gpus 2", &broken) else { return };
    assert_eq!(errors(&ran.stderr).len(), 1, "{}", ran.stderr);
    let said = ran.failed();
    assert!(said.contains("rank ") && said.contains("NCCL"), "{said}");
    for victim in [0, 1] {
        let run = format!("killed-{victim}");
        let environment = [two, ("LD_LIBRARY_PATH", emulator::LIBRARIES)];
        let mut job = Job::start_with(&place, &run, &format!("{ENDLESS} --gpus 2"), &environment);
        job.wait_for("step ");
        send("KILL", job.workers()[victim]);
        let (code, said) = job.end();
        assert!(code.is_some_and(|code| code != 0), "{code:?}");
        assert!(one_error(&said).contains(&format!("rank {victim} on ")), "{said}");
    }
}
