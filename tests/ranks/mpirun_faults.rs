//! As [`super::faults`], for processes that mpirun has started. It ends all when one is killed, with a message of its own, and
//! says nothing of why; ours comes before it.

use super::job::{ENDLESS, Job, errors, mpirun, mpirun_is_there, one_error, send};
use super::numbers::copy;
use super::{model, place, train};
use crate::cli::Workplace;
use std::fs;
use std::time::Duration;

#[test]
fn a_process_that_is_killed_at_any_moment_ends_all_with_one_message() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    let often = "--set train.checkpoint_every=1";
    for (moment, victim, options, delay) in [
        ("start", 3, "", 5),
        ("meeting", 1, "", 60),
        ("step", 2, "--set train.checkpoint_every=0", 110),
        ("first", 0, "--set train.checkpoint_every=0", 30),
        ("checkpoint", 0, often, 47),
        ("checkpoint of others", 3, often, 20),
    ] {
        let mut job = Job::mpirun(&place, &moment.replace(' ', "-"), &format!("{ENDLESS} {options}"));
        match delay {
            0..20 => job.wait_for_workers(4),
            20..100 if moment == "meeting" => job.wait_for_workers(4),
            _ => job.wait_for("step "),
        }
        std::thread::sleep(Duration::from_millis(delay));
        send("KILL", job.workers()[victim]);
        let (code, said) = job.end();
        assert!(code.is_some_and(|code| code != 0), "{moment}: {code:?}");
        // Before all have met, only mpirun knows.
        let by_mpirun = said.contains(&format!("process rank {victim} with PID"));
        assert!(errors(&said).len() == 1 || by_mpirun && errors(&said).is_empty(), "{moment}: {said}");
        // One that dies while all meet is named with its address.
        let named = [format!("rank {victim} on "), format!("cannot reach rank {victim} at ")];
        assert!(errors(&said).iter().all(|error| named.iter().any(|name| error.contains(name))), "{said}");
        assert!(!errors(&said).is_empty() || ["start", "meeting"].contains(&moment), "{moment}: {said}");
    }
}

#[test]
fn a_process_that_is_killed_at_the_end_leaves_what_can_be_gone_on_from() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    train(&place, "whole", "--processes 4").done();
    for victim in [0, 2] {
        let run = format!("run{victim}");
        let mut job = Job::mpirun(&place, &run, "");
        job.wait_for("step 10/10");
        if let Some(&pid) = job.workers().get(victim) {
            send("KILL", pid);
        }
        let (code, said) = job.end();
        assert!(errors(&said).len() <= usize::from(code != Some(0)), "{said}");
        train(&place, &run, "--processes 4 --resume").done();
        assert!(model(&place, &run) == model(&place, "whole"));
    }
}

#[test]
fn a_process_that_hangs_ends_all() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    for victim in [2, 0] {
        let options = format!("{ENDLESS} --set ranks.hang_seconds=6");
        let mut job = Job::mpirun(&place, &format!("run{victim}"), &options);
        job.wait_for("step ");
        send("STOP", job.workers()[victim]);
        let (code, said) = job.end();
        assert!(code.is_some_and(|code| code != 0), "{code:?}");
        let error = one_error(&said);
        assert!(error.contains(&format!("rank {victim} on ")) && error.contains("no sign of life"), "{said}");
    }
}

#[test]
fn a_signal_to_mpirun_leaves_one_checkpoint_to_go_on_from() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    train(&place, "whole", "--steps 400 --processes 4").done();
    let mut job = Job::mpirun(&place, "parts", "--steps 400 --set train.checkpoint_every=0");
    job.wait_for("step ");
    send("TERM", job.pid());
    let (code, said) = job.end();
    assert!(code.is_some_and(|code| code != 0) && errors(&said).is_empty(), "{code:?}\n{said}");
    assert_eq!(said.matches("ending with a checkpoint").count(), 1, "{said}");
    assert_eq!(fs::read_dir(place.path("parts/checkpoints")).unwrap().count(), 1, "{said}");
    train(&place, "parts", "--steps 400 --processes 4 --resume").done();
    assert!(model(&place, "whole") == model(&place, "parts"));
}

#[test]
fn an_mpirun_that_is_killed_leaves_no_process() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    let mut job = Job::mpirun(&place, "run", ENDLESS);
    job.wait_for("step ");
    assert_eq!(job.workers().len(), 4);
    send("KILL", job.pid());
    // What they say of it nobody passes on.
    job.end();
}

/// What mpirun starts through a shell, each in a folder of its own.
fn in_folders(place: &Workplace) -> (Option<i32>, String) {
    let launcher = env!("CARGO_BIN_EXE_launcher");
    let script =
        format!("cd rank$OMPI_COMM_WORLD_RANK && exec {launcher} --config ../ranks.toml --device cpu");
    let output = mpirun(place, &["-n", "3", "sh", "-c", &script]).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_error_of_one_process_is_the_message_of_all() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    for rank in 0..3 {
        copy(&place, "shards", &format!("rank{rank}/shards"));
    }
    fs::create_dir(place.path("rank0/run")).unwrap();
    std::os::unix::fs::symlink("/dev/full", place.path("rank0/run/metrics.jsonl")).unwrap();
    let (code, said) = in_folders(&place);
    assert!(code.is_some_and(|code| code != 0), "{said}");
    let error = one_error(&said);
    assert!(error.contains("run/metrics.jsonl: cannot write") && error.contains("rank 0 on "), "{said}");
    fs::remove_dir_all(place.path("rank0/run")).unwrap();

    let bin = fs::read_dir(place.path("rank2/shards")).unwrap().map(|entry| entry.unwrap().path());
    let shard = bin.filter(|path| path.extension().is_some_and(|e| e != "json" && e != "txt")).max().unwrap();
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 100]).unwrap();
    let (code, said) = in_folders(&place);
    assert!(code.is_some_and(|code| code != 0), "{said}");
    let error = one_error(&said);
    assert!(error.contains("rank 2 on ") && error.contains("shards/"), "{said}");
}
