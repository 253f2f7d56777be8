//! What mpirun starts: the same through its variables, and through its library where this build has it.

use super::{metric, model, place, train};
use crate::cli::{Ran, Workplace};
use std::process::{Command, Stdio};

/// Whether there is an mpirun to test with.
pub(super) fn is_there() -> bool {
    let found = Command::new("mpirun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    assert!(std::env::var_os("REQUIRE_MPI").is_none(), "REQUIRE_MPI is set and there is no mpirun");
    eprintln!("skipped: no mpirun");
    false
}

pub(super) fn mpirun(place: &Workplace, args: &str) -> Ran {
    let mut command = Command::new("mpirun");
    let line = args.replace("LAUNCHER", env!("CARGO_BIN_EXE_launcher"));
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
    command.args(line.split_whitespace()).current_dir(place.path("")).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

#[test]
fn mpirun_computes_what_our_own_workers_do() {
    if !is_there() {
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
    if !is_there() {
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
    if !cfg!(feature = "mpi") {
        mpirun(&place, "-n 3 LAUNCHER --config ranks.toml --run fewer --processes 2").done();
        assert!(model(&place, "own") == model(&place, "fewer"));
    }
}

#[test]
fn ranks_that_differ_are_refused() {
    if !is_there() {
        return;
    }
    let place = place();
    let said = mpirun(
        &place,
        "-n 1 LAUNCHER --config ranks.toml : -n 1 LAUNCHER --config ranks.toml --set schedule.lr=0.5",
    );
    let errors: Vec<&str> = said.stderr.lines().filter(|line| line.contains("error:")).collect();
    assert!(said.code != Some(0) && errors.len() == 1, "{}", said.stderr);
    assert!(errors[0].contains("rank 1 on ") && errors[0].contains("another configuration"), "{}", errors[0]);
    assert!(!place.path("run").exists());
}
