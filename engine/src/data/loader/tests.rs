//! Resuming, ranks, epochs, budgets.

use super::*;
use crate::config::{Masking, PrepareConfig};
use crate::data::SplitName;
use crate::data::prepare::tests::prepare_sample;

fn dataset(masking: Masking) -> (tempfile::TempDir, Arc<Dataset>) {
    prepared(&PrepareConfig { masking, ..PrepareConfig::default() })
}

fn prepared(config: &PrepareConfig) -> (tempfile::TempDir, Arc<Dataset>) {
    let dir = tempfile::tempdir().unwrap();
    let config = PrepareConfig { max_seq_length: 32, short_seq_prob: 0.5, ..config.clone() };
    let out = prepare_sample(dir.path(), &config, 60);
    let data = Dataset::open(&out, SplitName::Train).unwrap();
    (dir, Arc::new(data))
}

fn config() -> LoaderConfig {
    LoaderConfig {
        batch_sequences: 13,
        batch_tokens: 0,
        accumulation: 3,
        seed: 5,
        rank: 0,
        world: 1,
        max_positions: 64,
    }
}

fn load(data: &Arc<Dataset>, config: &LoaderConfig, state: LoaderState, count: usize) -> Vec<GlobalBatch> {
    let mut loader = Loader::new(data.clone(), config.clone(), state).unwrap();
    (0..count).map(|_| loader.next().unwrap()).collect()
}

/// Each sequence of a batch with its slot: (slot, tokens, labels).
fn sequences(batch: &GlobalBatch) -> Vec<(u32, Vec<u32>, Vec<u32>)> {
    let mut out = Vec::new();
    for micro in &batch.micro {
        for i in 0..micro.sequences() {
            let tokens = micro.cu_seqlens[i] as usize..micro.cu_seqlens[i + 1] as usize;
            let rows = micro.cu_rows[i]..micro.cu_rows[i + 1];
            let labels = micro.mlm_rows.iter().zip(&micro.mlm_labels);
            let labels = labels.filter(|(row, _)| rows.contains(row)).map(|(_, &label)| label).collect();
            out.push((micro.row_keys[tokens.start] / 64, micro.tokens[tokens].to_vec(), labels));
        }
    }
    out.sort();
    out
}

#[test]
fn resuming_after_any_batch_goes_on_as_if_nothing_happened() {
    for masking in [Masking::Dynamic, Masking::Static] {
        let (_dir, data) = dataset(masking);
        let batches = load(&data, &config(), LoaderState::default(), 30);
        assert!(batches.last().unwrap().state_after.epoch >= 1, "{} sequences", data.len());
        for (i, batch) in batches.iter().enumerate().take(29) {
            assert_eq!(load(&data, &config(), batch.state_after, 1)[0], batches[i + 1]);
        }
    }
}

#[test]
fn every_epoch_holds_every_sequence_once_in_another_order() {
    let (_dir, data) = dataset(Masking::Static);
    let n = data.len();
    let one = LoaderConfig { batch_sequences: 1, ..config() };
    let mut epochs = load(&data, &one, LoaderState::default(), 3 * n)
        .chunks(n)
        .map(|epoch| epoch.iter().map(|b| b.micro[0].tokens.clone()).collect::<Vec<_>>())
        .collect::<Vec<_>>();
    assert_ne!(epochs[0], epochs[1]);
    epochs.iter_mut().for_each(|epoch| epoch.sort());
    assert_eq!(epochs[0], epochs[1]);
    assert_eq!(epochs[0], epochs[2]);
    let mut all: Vec<_> =
        (0..n).map(|i| Masker::new(&data).train(&data.get(i).unwrap(), 0, 0, i as u64).tokens).collect();
    all.sort();
    assert_eq!(epochs[0], all);
}

#[test]
fn masks_differ_between_epochs_and_seeds_but_not_between_runs() {
    let (_dir, data) = dataset(Masking::Dynamic);
    let masker = Masker::new(&data);
    let mask = |seed, epoch| -> Vec<_> {
        (0..data.len())
            .map(|i| masker.train(&data.get(i).unwrap(), seed, epoch, i as u64).mlm_positions)
            .collect()
    };
    assert_eq!(mask(1, 2), mask(1, 2));
    assert_ne!(mask(1, 2), mask(1, 3));
    assert_ne!(mask(1, 2), mask(2, 2));
}

#[test]
fn ranks_and_micro_batches_divide_the_batch_and_change_nothing() {
    for whole_word_masking in [false, true] {
        let (_dir, data) = prepared(&PrepareConfig { whole_word_masking, ..PrepareConfig::default() });
        check_division(&data);
    }
}

fn check_division(data: &Arc<Dataset>) {
    for (batch_sequences, batch_tokens) in [(13, 0), (0, 200)] {
        let base = LoaderConfig { batch_sequences, batch_tokens, accumulation: 1, ..config() };
        let whole = load(data, &base, LoaderState::default(), 8);
        for (world, accumulation) in [(1, 4), (2, 1), (3, 2), (5, 7)] {
            let ranks: Vec<_> = (0..world)
                .map(|rank| {
                    let config = LoaderConfig { rank, world, accumulation, ..base.clone() };
                    load(data, &config, LoaderState::default(), 8)
                })
                .collect();
            for (i, want) in whole.iter().enumerate() {
                let mut got = Vec::new();
                for (rank, batches) in ranks.iter().enumerate() {
                    let part = &batches[i];
                    assert!(part.micro.len() <= accumulation);
                    assert!(part.micro.iter().all(|m| m.sequences() > 0));
                    assert_eq!(part.state_after, want.state_after);
                    let totals = |b: &GlobalBatch| (b.mlm_total, b.nsp_total, b.sequences, b.tokens);
                    assert_eq!(totals(part), totals(want));
                    let mine = sequences(part);
                    let keys: Vec<u32> = part.micro.iter().flat_map(|m| m.row_keys.clone()).collect();
                    assert!(keys.is_sorted(), "a rank keeps the batch's order");
                    assert!(mine.len().abs_diff(want.sequences / world) <= 1);
                    let tokens: usize = mine.iter().map(|(_, tokens, _)| tokens.len()).sum();
                    // In turn from the longest, neighbours differ by less than one sequence.
                    assert!(tokens.abs_diff(want.tokens / world) <= data.longest(), "rank {rank}: {tokens}");
                    got.extend(mine);
                }
                got.sort();
                assert_eq!(got, sequences(want));
                let labels: usize = got.iter().map(|(_, _, labels)| labels.len()).sum();
                assert_eq!((labels, got.len()), (want.mlm_total, want.sequences));
                assert_eq!(got.iter().map(|(_, tokens, _)| tokens.len()).sum::<usize>(), want.tokens);
                if batch_tokens > 0 {
                    assert!(want.tokens <= batch_tokens && want.tokens + data.longest() > batch_tokens);
                }
            }
        }
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let (_dir, data) = dataset(Masking::Dynamic);
    let refuse = |config: LoaderConfig, state, want: &str| {
        let message = Loader::new(data.clone(), config, state).err().unwrap().to_string();
        assert!(message.contains(want), "{message}");
    };
    let start = LoaderState::default();
    let longest = data.longest();
    refuse(
        LoaderConfig { max_positions: 16, ..config() },
        start,
        &format!("has {longest} tokens, the model 16 positions"),
    );
    refuse(
        LoaderConfig { batch_tokens: 99, ..config() },
        start,
        "train.batch_sequences: 13 with batch_tokens 99",
    );
    refuse(
        LoaderConfig { batch_sequences: 0, batch_tokens: 9, ..config() },
        start,
        "train.batch_tokens: 9 is less",
    );
    refuse(LoaderConfig { accumulation: 0, ..config() }, start, "train.accumulation");
    refuse(LoaderConfig { rank: 2, world: 2, ..config() }, start, "rank: 2");
    refuse(config(), LoaderState { epoch: 0, cursor: 1 << 40 }, "it is of other data");
}

#[test]
fn evaluation_sees_the_same_masks_and_spreads_over_the_data() {
    let (_dir, data) = dataset(Masking::Dynamic);
    let collect = |count, size| -> Vec<Batch> {
        eval_batches(&data, count, size, 64, (0, 1)).collect::<Result<_>>().unwrap()
    };
    let all = collect(0, 16);
    assert_eq!(all.iter().map(Batch::sequences).sum::<usize>(), data.len());
    assert_eq!(all, collect(0, 16));
    let some = collect(10, 3);
    assert_eq!(some.iter().map(Batch::sequences).collect::<Vec<_>>(), [3, 3, 3, 1]);
    let fifth =
        Masker::new(&data).eval(&data.get(5 * data.len() / 10).unwrap(), (5 * data.len() / 10) as u64);
    assert_eq!(some[1].tokens[some[1].cu_seqlens[2] as usize..], fifth.tokens);
    assert!(eval_batches(&data, 0, 4, 8, (0, 1)).next().unwrap().is_err());
}
