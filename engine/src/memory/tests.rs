use super::*;
use crate::config::Preset;
use crate::mlperf;
use kernels::cpu::Cpu;

const GIB: f64 = (1u64 << 30) as f64;

/// Of BERT-large in bf16 on a GPU.
const BF16: Kind = Kind { elem: 2, acc: 4, host: false, recompute: Recompute::None, owners: 1 };

fn large() -> (Config, TensorTable) {
    let model = ModelConfig { vocab_size: 30_522, ..Preset::Large.model() };
    let table = TensorTable::new(&model);
    (Config { model, ..Config::default() }, table)
}

/// A manifest of sequences in bins of 16 tokens.
fn data(config: &Config, counts: Vec<u64>) -> Manifest {
    let mut data = Manifest::new(&config.data.prepare, Vec::new());
    let tokens = counts.iter().enumerate().map(|(bin, n)| n * (bin as u64 * 16 + 8)).sum();
    data.train.sequences = counts.iter().sum();
    (data.train.tokens, data.train.longest) = (tokens, 16 * counts.len());
    (data.train.lengths.width, data.train.lengths.counts) = (16, counts);
    data.eval = data.train.clone();
    data
}

/// The length mix of MLPerf's data, in bins of 16 tokens.
fn mlperf_mix(config: &Config) -> Manifest {
    let json: serde_json::Value =
        serde_json::from_str(include_str!("../plan/length_histogram.json")).unwrap();
    let counts: Vec<u64> = serde_json::from_value(json["counts"].clone()).unwrap();
    data(config, counts.chunks(16).map(|bin| bin.iter().sum()).collect())
}

#[test]
fn a_batch_is_divided_until_it_fits_and_no_further() {
    let backend = Cpu::<f32>::new();
    let mut config = Config::load(None, &mlperf::Preset::of(4608).unwrap().settings()).unwrap();
    config.model.vocab_size = 30_522;
    let table = TensorTable::new(&config.model);
    let mut data = Manifest::new(&config.data.prepare, Vec::new());
    (data.train.sequences, data.train.tokens) = (1000, 254_400);
    let parts = accumulation(&backend, &config, &table, &data);
    assert_eq!(4608 % parts, 0);
    let Some(memory) = backend.memory() else { return };
    let total = |parts| plan::<Cpu<f32>>(&config, &table, &data, 4608.0, parts).total() / memory as f64;
    assert!(parts == 4608 || total(parts) <= 0.9, "{parts} parts take {}", total(parts));
    let fewer = (1..parts).rev().find(|n| 4608 % n == 0);
    assert!(fewer.is_none_or(|fewer| total(fewer) > 0.9), "{fewer:?} would fit too");
}

/// 16,384 tokens a step, as 32 full sequences and as a budget of tokens of MLPerf's mix, with the largest batches reserved.
#[test]
fn bert_large_of_16384_tokens_takes_less_than_20_gib() {
    let (mut config, table) = large();
    let full = data(&config, [vec![0; 31], vec![1_000_000]].concat());
    let mix = mlperf_mix(&config);
    for (name, data, by_tokens) in [("32 x 512", full, false), ("mix", mix, true)] {
        (config.train.batch_sequences, config.train.batch_tokens) =
            if by_tokens { (0, 16_384) } else { (32, 0) };
        let [train, eval] = largest(&config, &data, 1, 32);
        assert_eq!(train.tokens, 16_384, "{name}");
        assert!(train.masked >= 2432 && train.masked < 6000, "{name}: {train:?}");
        let plan = |recompute| {
            MemoryPlan::new(&config.model, &table, train.max(&eval).into(), 1, Kind { recompute, ..BF16 })
        };
        let [kept, recomputed] = [Recompute::None, Recompute::Layer].map(plan);
        println!("{name}: {:.2} GiB, {:.2} recomputed", kept.total() / GIB, recomputed.total() / GIB);
        for (role, bytes) in kept.rows() {
            println!("    {role:<17} {:.3} GiB", bytes / GIB);
        }
        // 4 + 2 bytes of a weight, 4 of its gradient, 8 of its moments
        assert_eq!(kept.state(), 18.0 * table.len as f64);
        assert!(kept.total() < 20.0 * GIB && kept.total() > 16.0 * GIB, "{name}: {}", kept.total() / GIB);
        assert!(recomputed.total() < 9.0 * GIB, "{name}: {}", recomputed.total() / GIB);
    }
}

#[test]
fn the_largest_batch_that_fits_fits_and_one_more_does_not() {
    let (mut config, table) = large();
    let data = mlperf_mix(&config);
    for by_tokens in [false, true] {
        let total = |config: &mut Config, n: usize| {
            (config.train.batch_sequences, config.train.batch_tokens) =
                if by_tokens { (0, n) } else { (n, 0) };
            let [train, _] = largest(config, &data, 1, 0);
            MemoryPlan::new(&config.model, &table, train.into(), 1, BF16).total()
        };
        total(&mut config, 512);
        let most = most_that_fits(&config, &table, &data, BF16, 80e9).unwrap();
        assert!(total(&mut config, most) <= 80e9);
        assert!(total(&mut config, most + 1) > 80e9, "{most}");
        assert!(most * if by_tokens { 1 } else { 512 } > 40_000, "{most}");
        assert_eq!(most_that_fits(&config, &table, &data, BF16, 6e9), None);
    }
}

/// Ranks and micro-batches take shares, and no sequence of the data is longer than the longest.
#[test]
fn the_largest_batch_is_a_share_of_the_longest_sequences() {
    let (mut config, _) = large();
    // 10 sequences of up to 16 tokens, 4 of up to 32, 2 of up to 48
    let mut data = data(&config, vec![10, 4, 2]);
    data.train.longest = 41;
    config.train.batch_sequences = 6;
    // a batch may touch two epochs, so that each of the longest can be in it twice
    let [train, eval] = largest(&config, &data, 1, 32);
    assert_eq!((train.tokens, train.sequences), (4 * 41 + 2 * 32, 6));
    assert_eq!((train.masked, train.rows), (4 * 6 + 2 * 5, 4 * 6 + 2 * 5 + 6));
    assert_eq!((eval.tokens, eval.sequences), (2 * 48 + 4 * 32 + 10 * 16, 16));
    config.train.accumulation = 2;
    assert_eq!(largest(&config, &data, 1, 32)[0].sequences, 3);
    assert_eq!(largest(&config, &data, 4, 32)[0].sequences, 1);

    (config.train.batch_sequences, config.train.batch_tokens, config.train.accumulation) = (0, 100, 1);
    let [train, _] = largest(&config, &data, 1, 32);
    assert_eq!((train.tokens, train.masked), (100, 65));
    config.train.accumulation = 4;
    assert_eq!(largest(&config, &data, 1, 32)[0].tokens, 25 + 41);
}
