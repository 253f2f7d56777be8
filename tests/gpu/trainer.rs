//! The trainer on the emulated GPU, in this process: steps that are skipped, and steps that are given up.

use super::device;
use crate::training::{model, run};
use engine::config::{Config, OnNonFinite};
use engine::data::Batch;
use engine::dist::Group;
use engine::metrics::TrainRecord;
use engine::model::{Bert, LossScale};
use engine::optim::Optimizer;
use engine::step::{self, Parts, Reduction, Step, Stop};
use engine::trainer::Ending;
use kernels::Backend;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Options};
use std::sync::atomic::AtomicI32;

/// With and without graphs.
fn cuda(graph: bool) -> Cuda<f32> {
    Cuda::new(device(), Options { graph, measure: false, ..Options::default() }).unwrap()
}

#[test]
fn skipped_steps_count_as_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let config = run::overflowing(dir.path(), "cpu");
    let skipped = |records: &[TrainRecord]| records.iter().map(|r| r.skipped).collect::<Vec<_>>();
    let (_, expected) = run::train_on(Cpu::<f32>::new(), &config, false, None).unwrap();
    for graph in [false, true] {
        let config = run::overflowing(dir.path(), &format!("gpu-{graph}"));
        let (outcome, records) = run::train_on(cuda(graph), &config, false, None).unwrap();
        assert_eq!(outcome.ending, Ending::Finished);
        assert_eq!(skipped(&records), skipped(&expected));
    }
    let dir = tempfile::tempdir().unwrap();
    run::write_corpus(dir.path());
    for graph in [false, true] {
        let mut config = run::hopeless(dir.path(), &format!("hopeless-{graph}"));
        (config.train.on_nonfinite, config.train.nonfinite_limit) = (OnNonFinite::Skip, 3);
        let error = run::train_on(cuda(graph), &config, false, None).unwrap_err().to_string();
        assert!(
            error.starts_with("step 4: ") && error.contains("3 updates in a row were skipped"),
            "{error}"
        );
        assert!(!config.train.run.join("model").exists());
    }
}

#[test]
fn a_step_that_is_given_up_leaves_the_device_as_it_was() {
    let config = Config { model: model::config(), ..Config::default() };
    let micro =
        [[9, 5], [7, 8]].map(|lengths| Batch::pack(&model::sequences(&lengths, 37), 0, model::POSITIONS));
    for graph in [false, true] {
        let [undisturbed, disturbed] = [false, true].map(|disturbed| {
            let mut bert = Bert::new(cuda(graph), &config.model).unwrap();
            bert.init(3).unwrap();
            let mut grads = bert.gradients().unwrap();
            let mut optimizer = Optimizer::new(bert.backend(), bert.table(), &config.optimizer).unwrap();
            let reduction = Reduction::new(&config, bert.table(), 1);
            let mut group = Group::solo();
            let signal = AtomicI32::new(15);
            for key in 1..4 {
                let step = Step { micro: &micro, scale: LossScale::new(8, 4), key, lr: 0.01 };
                let mut queue = |stop: &Stop<'_>| {
                    let (bert, grads, optimizer) = (&mut bert, &mut grads, &mut optimizer);
                    step::queue(Parts { group: &mut group, bert, grads, optimizer }, &reduction, &step, stop)
                        .unwrap()
                };
                if disturbed {
                    assert!(queue(&Stop { signal: &signal, asks: true }).is_none());
                }
                let pending = queue(&Stop::never()).unwrap();
                assert!(bert.backend().read(pending).unwrap()[0].is_finite());
            }
            bert.weights().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        });
        assert!(undisturbed == disturbed, "graph {graph}");
    }
}
