//! What mpirun starts: the same through its variables, and through its library where this build has it.

use super::job::{mpirun_is_there, one_error};
use super::{job, metric, model, place, train};
use crate::cli::{Ran, Workplace};

pub(super) fn mpirun(place: &Workplace, args: &str) -> Ran {
    let line = args.replace("LAUNCHER", env!("CARGO_BIN_EXE_launcher"));
    let output = job::mpirun(place, &line.split_whitespace().collect::<Vec<_>>()).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

#[test]
fn mpirun_computes_what_our_own_workers_do() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    train(&place, "one", "").done();
    for n in [2, 4] {
        train(&place, &format!("own{n}"), &format!("--processes {n}")).done();
        let said = mpirun(&place, &format!("-n {n} LAUNCHER --config ranks.toml --run mpi{n} --device cpu"));
        assert_eq!(said.stdout.lines().count(), 1, "{}", said.stdout);
        let over = if cfg!(feature = "mpi") { "over MPI" } else { "over TCP" };
        assert!(said.stderr.contains(&format!("{n} processes {over}")), "{}", said.stderr);
        said.done();
        assert!(model(&place, &format!("own{n}")) == model(&place, &format!("mpi{n}")));
        let [one, many] = ["one", &format!("mpi{n}")].map(|run| metric(&place.path(run), "loss"));
        assert!(one.iter().zip(&many).all(|(a, b)| (a - b).abs() <= 1e-6 * a), "{one:?} {many:?}");
    }
}

#[test]
fn one_process_a_machine_starts_the_others() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    train(&place, "own", "--processes 2").done();
    mpirun(&place, "-n 1 LAUNCHER --config ranks.toml --run mpi --processes 2").done();
    assert!(model(&place, "own") == model(&place, "mpi"));
    let said = mpirun(&place, "-n 2 LAUNCHER --config ranks.toml --run more --processes 3");
    assert!(said.code != Some(0));
    assert!(
        said.stderr.contains("--processes 3 asks for 3") && said.stderr.contains("2 were started here"),
        "{}",
        said.stderr
    );
    // One leaves. Over MPI all would have to take part.
    let said = mpirun(&place, "-n 3 LAUNCHER --config ranks.toml --run fewer --processes 2");
    assert!(said.stderr.contains("2 processes over TCP"), "{}", said.stderr);
    said.done();
    assert!(model(&place, "own") == model(&place, "fewer"));
}

#[test]
fn ranks_that_differ_are_refused() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    let said = mpirun(
        &place,
        "-n 1 LAUNCHER --config ranks.toml : -n 1 LAUNCHER --config ranks.toml --set schedule.lr=0.5",
    );
    let error = one_error(&said.stderr);
    assert!(said.code != Some(0), "{}", said.stderr);
    assert!(error.contains("rank 1 on ") && error.contains("another configuration"), "{error}");
    assert!(!place.path("run").exists());
}
