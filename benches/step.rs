//! A BERT-base training step on the CPU: forward, backward, clip, AdamW, dropout 0.1, everything in. Throughput is in
//! tokens, full sequences; beside it stands benches/peers/pytorch_cpu.py.
//!
//!     cargo bench --bench step

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use engine::config::{ModelConfig, OptimizerConfig, Preset};
use engine::data::{Batch, Sequence};
use engine::model::{Bert, LossScale};
use engine::optim::Optimizer;
use kernels::collective::Solo;
use kernels::cpu::Cpu;
use kernels::philox::{Stream, step_key};
use std::time::Duration;

/// Full sequences, 15 % masked, with next-sentence labels.
fn batch(sequences: usize, length: u32, vocab: u32) -> Batch {
    let mut stream = Stream::new(1, 0, 100);
    let all: Vec<Sequence> = (0..sequences)
        .map(|_| {
            let mlm_positions: Vec<u32> = (1..length).filter(|_| stream.uniform() < 0.15).collect();
            Sequence {
                tokens: (0..length).map(|_| stream.below(vocab)).collect(),
                types: (0..length).map(|p| u32::from(p >= length / 2)).collect(),
                mlm_labels: mlm_positions.iter().map(|_| stream.below(vocab)).collect(),
                mlm_positions,
                nsp_label: Some(stream.below(2)),
            }
        })
        .collect();
    Batch::pack(&all, 0, 512)
}

fn training_step(c: &mut Criterion) {
    let config = ModelConfig { vocab_size: 30522, ..Preset::Base.model() };
    let mut bert = Bert::new(Cpu::<f32>::new(), &config).expect("sizes are right");
    bert.init(1).expect("memory");
    let mut grads = bert.gradients().expect("memory");
    let mut optimizer =
        Optimizer::new(bert.backend(), bert.table(), &OptimizerConfig::default()).expect("memory");
    let mut update = 0;
    let mut group = c.benchmark_group("bert_base_step");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(30));
    for (sequences, length) in [(16, 128), (4, 512)] {
        let batch = batch(sequences, length, config.vocab_size as u32);
        group.throughput(Throughput::Elements(batch.token_count() as u64));
        let id = BenchmarkId::from_parameter(format!("{sequences}x{length}"));
        group.bench_function(id, |b| {
            b.iter(|| {
                update += 1;
                let scale = LossScale::new(batch.mlm_labels.len(), sequences);
                bert.clear_sums().expect("sizes are right");
                grads.clear(bert.backend()).expect("sizes are right");
                bert.forward_backward(&mut grads, &batch, scale, step_key(1, update))
                    .expect("sizes are right");
                let (backend, weights) = bert.weights_mut();
                optimizer.update(backend, &mut Solo, weights, grads.params(), 1e-5).expect("sizes are right");
                optimizer.norm(backend).expect("sizes are right")
            })
        });
    }
    group.finish();
}

criterion_group!(benches, training_step);
criterion_main!(benches);
