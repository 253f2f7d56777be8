//! A process that dies, hangs or meets an error ends all, soon, with one message, and leaves none behind.

use super::job::{ENDLESS, Job, SOON, one_error, send};
use super::numbers::copy;
use super::{metric, model, place, train};
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn a_process_that_is_killed_ends_all_with_one_message() {
    let place = place();
    let steps = "--steps 1500 --set train.checkpoint_every=20 --set train.log_every=1";
    train(&place, "whole", &format!("{steps} --processes 3")).done();
    for (victim, moment) in [(1, 0), (2, 15), (0, 135)] {
        let run = format!("run-{victim}");
        let mut job = Job::start(&place, &run, &format!("{steps} --processes 3"));
        job.wait_for("step ");
        std::thread::sleep(Duration::from_millis(moment));
        send("KILL", job.workers()[victim]);
        let (code, said) = job.end();
        assert!(code.is_some_and(|code| code != 0), "{code:?}");
        assert!(one_error(&said).contains(&format!("rank {victim} on ")), "{said}");
        // What was saved is whole.
        train(&place, &run, &format!("{steps} --processes 3 --resume")).done();
        assert!(model(&place, &run) == model(&place, "whole"));
    }
}

#[test]
fn a_process_that_is_killed_while_the_job_starts_ends_all() {
    let place = place();
    for moment in [0, 20, 60] {
        let job = Job::start(
            &place,
            &format!("run{moment}"),
            &format!("{ENDLESS} --processes 2 --set ranks.start_seconds=60"),
        );
        job.wait_for_workers(2);
        std::thread::sleep(Duration::from_millis(moment));
        send("KILL", job.workers()[1]);
        let (code, said) = job.end();
        assert!(code.is_some_and(|code| code != 0), "{code:?}\n{said}");
        assert!(one_error(&said).contains("rank 1 "), "{said}");
    }
}

#[test]
fn a_process_that_is_killed_at_the_end_leaves_all_or_ends_all() {
    let place = place();
    for (victim, run) in [(1, "other"), (0, "first")] {
        let mut job = Job::start(&place, run, "--processes 2 --set train.checkpoint_every=1");
        job.wait_for("step 10/10");
        send("KILL", job.workers()[victim]);
        let (code, said) = job.end();
        if said.contains("error:") {
            assert!(code != Some(0) && one_error(&said).contains(&format!("rank {victim} on ")), "{said}");
        }
        train(&place, run, "--processes 2 --resume").done();
    }
    assert!(model(&place, "first") == model(&place, "other"));
}

/// A machine is lost: those that are left go on alone.
#[test]
fn a_job_that_has_lost_a_process_goes_on_with_fewer() {
    let place = place();
    let slow = "--steps 16 --set train.batch_sequences=500 --set train.checkpoint_every=3";
    train(&place, "whole", slow).done();
    let mut job = Job::start(&place, "lost", &format!("{slow} --processes 3"));
    job.wait_for("step  5/16");
    send("KILL", job.workers()[2]);
    let (code, said) = job.end();
    assert!(code.is_some_and(|code| code != 0) && one_error(&said).contains("rank 2 on "), "{said}");
    for fewer in ["--processes 2", "--processes 1"] {
        copy(&place, "lost", "left");
        let said = train(&place, "left", &format!("{slow} {fewer} --resume"));
        assert!(said.stderr.contains("resumed from"), "{}", said.stderr);
        said.done();
        let [whole, left] = ["whole", "left"].map(|run| metric(&place.path(run), "loss"));
        assert_eq!(left.len(), 16);
        for (x, y) in whole.iter().zip(&left) {
            assert!((x - y).abs() <= 1e-5 * x, "{whole:?} {left:?}");
        }
        fs::remove_dir_all(place.path("left")).unwrap();
    }
}

#[test]
fn a_process_that_hangs_ends_all() {
    let place = place();
    for victim in [1, 0] {
        let run = format!("run{victim}");
        let mut job =
            Job::start(&place, &run, &format!("{ENDLESS} --processes 2 --set ranks.hang_seconds=6"));
        job.wait_for("step ");
        send("STOP", job.workers()[victim]);
        let begun = Instant::now();
        // Standard error is open as long as the stopped process is: the launcher kills it.
        let (code, said) = job.end();
        assert!(begun.elapsed() < SOON && code.is_some_and(|code| code != 0), "{code:?}");
        let error = one_error(&said);
        assert!(error.contains(&format!("rank {victim} on ")), "{said}");
        assert!(error.contains("no sign of life for 3 s"), "{said}");
    }
}

#[test]
fn a_signal_to_the_launcher_leaves_one_checkpoint_to_go_on_from() {
    let place = place();
    train(&place, "whole", "--steps 400 --processes 2").done();
    let mut job = Job::start(&place, "parts", "--steps 400 --processes 2 --set train.checkpoint_every=0");
    job.wait_for("step ");
    send("TERM", job.pid());
    let (code, said) = job.end();
    assert_eq!(code, Some(143), "{said}");
    assert_eq!(said.matches("ending with a checkpoint").count(), 1, "{said}");
    assert_eq!(fs::read_dir(place.path("parts/checkpoints")).unwrap().count(), 1);
    train(&place, "parts", "--steps 400 --processes 2 --resume").done();
    assert!(model(&place, "whole") == model(&place, "parts"));
}

/// All drop the step that is under way, also where only one of them gets the signal, and the others are in the middle of theirs.
#[test]
fn a_signal_to_any_process_ends_a_step_of_minutes_in_all() {
    let place = place();
    let long = "--steps 5 --set train.batch_sequences=40000 --set train.accumulation=4000 --set model.hidden=256 \
                --set model.intermediate=1024 --set ranks.start_seconds=600";
    for (run, worker, more) in [
        ("launcher", None, ""),
        ("first", Some(0), ""),
        ("other", Some(1), ""),
        ("clipped", Some(1), "--set ranks.clip=before"),
    ] {
        let mut job = Job::start(&place, run, &format!("{long} {more} --processes 2"));
        job.wait_for("held out");
        let log = place.path(run).join("mllog.txt");
        while !fs::read_to_string(&log).unwrap().contains("\"run_start\"") {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(500));
        send("TERM", worker.map_or(job.pid(), |rank| job.workers()[rank]));
        let (code, said) = job.end();
        assert_eq!(code, Some(143), "{run}: {said}");
        assert_eq!(said.matches("step 1 was under way and is dropped").count(), 1, "{run}: {said}");
        assert!(place.path(run).join("checkpoints/step-00000000").is_dir(), "{run}: {said}");
    }
}

#[test]
fn a_signal_ends_an_evaluation_of_all_processes() {
    let place = place();
    place.write("long.txt", crate::cli::corpus(60_000));
    place
        .line(
            "prepare --input long.txt --vocab vocab.txt --out long --max-seq-length 32 --eval-fraction 0.95",
        )
        .done();
    let line = "--data long --steps 2 --set train.eval_every=7 --set model.hidden=128 --set model.intermediate=512 \
                --processes 2";
    let mut job = Job::start(&place, "parts", line);
    job.wait_for("step 1/2");
    send("TERM", job.workers()[1]);
    let (code, said) = job.end();
    assert_eq!(code, Some(143), "{said}");
    assert!(!said.contains("held-out text after step"), "{said}");
}

#[test]
fn a_launcher_that_is_killed_leaves_no_worker() {
    let place = place();
    let mut job = Job::start(&place, "run", &format!("{ENDLESS} --processes 2"));
    job.wait_for("step ");
    assert_eq!(job.workers().len(), 2);
    send("KILL", job.pid());
    job.end();
}

#[test]
fn an_error_of_one_process_is_the_message_of_all() {
    let place = place();
    // A learning rate at which weights leave f32's range
    let job = Job::start(&place, "run", "--processes 2 --set schedule.lr=1e30 --set optimizer.clip_norm=0");
    let (code, said) = job.end();
    assert!(code == Some(1) && one_error(&said).contains("is not finite"), "{said}");
    let job = Job::start(&place, "run", "--processes 2 --data nowhere");
    let (code, said) = job.end();
    assert!(code == Some(1) && one_error(&said).contains("nowhere"), "{said}");
}
