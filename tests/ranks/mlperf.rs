//! A run of MLPerf as mpirun starts it.

use super::job::mpirun_is_there;
use super::mpirun::mpirun;
use crate::cli::mlperf::place;
use serde_json::Value;

#[test]
fn the_log_is_the_first_ones() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    let said = mpirun(&place, "-n 2 LAUNCHER mlperf --config mlperf.toml --device cpu --run runs/mpi");
    assert_eq!(said.stdout.matches("target accuracy 0.2 reached").count(), 1, "{}", said.stdout);
    said.done();
    let text = std::fs::read_to_string(place.path("runs/mpi/mllog.txt")).unwrap();
    let json = |line: &str| serde_json::from_str(line.strip_prefix(":::MLLOG ").unwrap()).unwrap();
    let log: Vec<Value> = text.lines().map(json).collect();
    for key in
        ["init_start", "init_stop", "run_start", "run_stop", "seed", "global_batch_size", "eval_samples"]
    {
        assert_eq!(log.iter().filter(|event| event["key"] == key).count(), 1, "{key}");
    }
    assert_eq!(log.last().unwrap()["metadata"]["status"], "success");
}
