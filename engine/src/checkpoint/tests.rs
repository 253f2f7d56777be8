//! Round trips, kills in the middle, damage.

use super::*;
use crate::config::Preset;
use crate::data::LoaderState;
use proptest::prelude::*;
use std::fs;
use tempfile::TempDir;

/// The smallest model that has every kind of tensor, with an odd vocabulary so that there is padding.
pub(crate) fn small_model() -> ModelConfig {
    ModelConfig {
        layers: 1,
        hidden: 8,
        heads: 2,
        intermediate: 12,
        max_positions: 16,
        vocab_size: 11,
        ..Preset::Tiny.model()
    }
}

/// Distinct numbers, not round in decimal, 0 in the padding.
pub(crate) fn numbers(table: &TensorTable, scale: f32) -> Vec<f32> {
    let mut flat = vec![0.0; table.len];
    for i in table.tensors.iter().flat_map(Tensor::range) {
        flat[i] = (i as f32 + 1.0 / 3.0) * scale;
    }
    flat
}

fn state(step: u64) -> TrainState {
    TrainState {
        step,
        updates: step - 1,
        skipped: 1,
        samples: 32 * step,
        tokens: 1000 * step,
        loader: LoaderState { epoch: 2, cursor: 7 * step },
        seed: u64::MAX,
        optimizer: None,
        skipped_in_a_row: 1,
        config_hash: "c0ffee".into(),
        data_hash: "da7a".into(),
        best_accuracy: Some(0.1 + 0.2),
        best_step: Some(7),
        eval_due: true,
        train_seconds: 1.0 / 3.0,
    }
}

struct Run {
    dir: TempDir,
    model: ModelConfig,
    table: TensorTable,
}

impl Run {
    fn new(steps: &[u64]) -> Self {
        let model = small_model();
        let run = Self { dir: TempDir::new().unwrap(), table: TensorTable::new(&model), model };
        for &step in steps {
            run.save(step).unwrap();
        }
        run
    }

    fn save(&self, step: u64) -> Result<PathBuf> {
        let flat = |scale| numbers(&self.table, scale * step as f32);
        let (weights, m, v) = (flat(1.0), flat(1e-3), flat(1e-30));
        save(self.dir.path(), &state(step), &self.model, &self.table, &weights, &m, &v)
    }

    fn step(&self, step: u64) -> PathBuf {
        self.dir.path().join(format!("checkpoints/step-{step:08}"))
    }

    fn latest(&self) -> (Result<Option<Checkpoint>>, Vec<String>) {
        let mut warnings = Vec::new();
        let found = latest(self.dir.path(), &self.model, &self.table, &mut |w| warnings.push(w));
        (found, warnings)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("checkpoints")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn steps(&self) -> Vec<u64> {
        list(self.dir.path()).unwrap().into_iter().map(|(step, _)| step).collect()
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_saved_comes_back_bit_for_bit() {
    let run = Run::new(&[3]);
    let mut weights = numbers(&run.table, 1.0);
    weights[run.table.layers[0].qkv.weight.start] = -0.0;
    weights[run.table.layers[0].qkv.weight.start + 1] = f32::from_bits(1);
    let (m, v) = (numbers(&run.table, 1e-9), numbers(&run.table, 1e-30));
    let path = save(run.dir.path(), &state(9), &run.model, &run.table, &weights, &m, &v).unwrap();
    assert_eq!(path, run.step(9));

    let loaded = run.latest().0.unwrap().unwrap();
    let bits = |flat: &[f32]| flat.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(loaded.state, state(9));
    assert_eq!(loaded.path, path);
    assert_eq!(bits(&loaded.weights), bits(&weights));
    assert_eq!(bits(&loaded.m), bits(&m));
    assert_eq!(bits(&loaded.v), bits(&v));
    assert_eq!(read_state(&path).unwrap(), state(9));
    assert_eq!(run.names(), ["step-00000003", "step-00000009"]);
}

#[test]
fn padding_is_not_stored_and_comes_back_as_zero() {
    let run = Run::new(&[]);
    let weights = vec![1.0; run.table.len];
    let path = save(run.dir.path(), &state(1), &run.model, &run.table, &weights, &weights, &weights).unwrap();
    let data = 4 * run.table.parameters() as u64;
    assert_eq!(TensorFile::open(&path.join(MODEL)).unwrap().data_bytes(), data);
    assert_eq!(TensorFile::open(&path.join(OPTIMIZER)).unwrap().data_bytes(), 2 * data);
    let loaded = load(&path, &run.model, &run.table).unwrap();
    for flat in [loaded.weights, loaded.m, loaded.v] {
        assert_eq!(flat.iter().filter(|&&x| x == 1.0).count(), run.table.parameters());
        assert_eq!(flat.iter().filter(|&&x| x == 0.0).count(), run.table.len - run.table.parameters());
    }
}

#[test]
fn the_same_state_gives_the_same_bytes() {
    let (a, b) = (Run::new(&[5]), Run::new(&[5]));
    for name in [MODEL, OPTIMIZER, CONFIG, STATE] {
        assert_eq!(
            fs::read(a.step(5).join(name)).unwrap(),
            fs::read(b.step(5).join(name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn a_run_without_checkpoints_has_none() {
    let run = Run::new(&[]);
    assert_eq!(run.latest().0.unwrap(), None);
    fs::create_dir(run.dir.path().join("checkpoints")).unwrap();
    assert_eq!(run.latest().0.unwrap(), None);
    assert!(run.steps().is_empty());
    fs::create_dir(run.dir.path().join("checkpoints/.tmp-step-00000001")).unwrap();
    assert!(!holds_any(run.dir.path()).unwrap());
    // one that a killed process was about to replace comes back
    fs::create_dir(run.dir.path().join("checkpoints/.old-step-00000001")).unwrap();
    assert!(holds_any(run.dir.path()).unwrap());
}

#[test]
fn leftovers_of_a_kill_are_removed_and_never_taken_for_a_checkpoint() {
    let run = Run::new(&[1, 2]);
    let checkpoints = run.dir.path().join("checkpoints");
    // Killed while writing step 3, while removing step 0, and between the two renames of a second save of step 2.
    fs::create_dir(checkpoints.join(".tmp-step-00000003")).unwrap();
    fs::copy(run.step(2).join(STATE), checkpoints.join(".tmp-step-00000003").join(STATE)).unwrap();
    fs::create_dir(checkpoints.join(".trash-step-00000000")).unwrap();
    fs::rename(run.step(2), checkpoints.join(".old-step-00000002")).unwrap();
    assert_eq!(run.steps(), [1]);
    let (found, warnings) = run.latest();
    assert_eq!(found.unwrap().unwrap().state.step, 2);
    assert_eq!(warnings, [""; 0]);
    assert_eq!(run.names(), ["step-00000001", "step-00000002"]);
}

#[test]
fn a_kill_after_any_number_of_bytes_leaves_the_older_checkpoint() {
    let run = Run::new(&[1, 2]);
    for name in [STATE, CONFIG, OPTIMIZER, MODEL] {
        let whole = fs::read(run.step(2).join(name)).unwrap();
        for cut in [0, 1, 7, 8, 9, whole.len() / 2, whole.len() - 1] {
            fs::write(run.step(2).join(name), &whole[..cut]).unwrap();
            assert!(load(&run.step(2), &run.model, &run.table).is_err(), "{name} cut at {cut}");
        }
        fs::remove_file(run.step(2).join(name)).unwrap();
        let error = load(&run.step(2), &run.model, &run.table).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("check the path"), "{error}");
        fs::write(run.step(2).join(name), whole).unwrap();
    }
    assert_eq!(load(&run.step(2), &run.model, &run.table).unwrap().state.step, 2);
}

#[test]
fn a_damaged_checkpoint_is_named_skipped_and_kept_aside() {
    let run = Run::new(&[1, 2, 3]);
    flip(&run.step(3).join(MODEL), 3000);
    flip(&run.step(2).join(OPTIMIZER), 5000);
    let (found, warnings) = run.latest();
    assert_eq!(found.unwrap().unwrap().state.step, 1);
    assert_eq!(warnings.len(), 2);
    for (warning, (step, file)) in warnings.iter().zip([(3, MODEL), (2, OPTIMIZER)]) {
        assert!(warning.contains(&format!("step-0000000{step}/{file}: damaged: checksum")), "{warning}");
        assert!(
            warning.contains(&format!("damaged-step-0000000{step}")) && !warning.contains('\n'),
            "{warning}"
        );
    }
    // The steps are written again, and pruning by number must not prefer the damaged ones.
    run.save(2).unwrap();
    prune(run.dir.path(), 1, None).unwrap();
    assert_eq!(run.latest().0.unwrap().unwrap().state.step, 2);
    assert_eq!(run.names(), ["damaged-step-00000002", "damaged-step-00000003", "step-00000002"]);
}

#[test]
fn if_all_are_damaged_the_error_names_them_and_nothing_is_touched() {
    let run = Run::new(&[1, 2]);
    flip(&run.step(1).join(STATE), 30);
    flip(&run.step(2).join(CONFIG), 30);
    for _ in 0..2 {
        let (found, warnings) = run.latest();
        let error = found.unwrap_err().to_string();
        assert!(error.contains("none of 2 checkpoints"), "{error}");
        assert!(
            error.contains("step-00000001/state.json") && error.contains("step-00000002/config.json"),
            "{error}"
        );
        assert!(!error.contains('\n') && warnings.is_empty());
        assert_eq!(run.steps(), [1, 2]);
    }
}

#[test]
fn another_models_checkpoint_is_refused_with_field_and_numbers() {
    let run = Run::new(&[4]);
    let other = ModelConfig { heads: 4, ..small_model() };
    let error = load(&run.step(4), &other, &TensorTable::new(&other)).unwrap_err().to_string();
    assert!(error.contains("config.json: num_attention_heads: 2, the configuration has 4"), "{error}");
}

#[test]
fn a_checkpoint_under_another_step_is_refused() {
    let run = Run::new(&[4]);
    fs::rename(run.step(4), run.step(5)).unwrap();
    let error = run.latest().0.unwrap_err().to_string();
    assert!(error.contains("step: 4, its folder says 5"), "{error}");
}

#[test]
fn pruning_keeps_the_newest_and_the_best() {
    let run = Run::new(&[1, 2, 3, 4, 5]);
    prune(run.dir.path(), 2, Some(2)).unwrap();
    assert_eq!(run.names(), ["step-00000002", "step-00000004", "step-00000005"]);
    prune(run.dir.path(), 0, Some(5)).unwrap();
    assert_eq!(run.names(), ["step-00000005"]);
}

#[test]
fn a_run_folder_that_cannot_hold_checkpoints_is_an_error_that_names_it() {
    let run = Run::new(&[]);
    fs::write(run.dir.path().join("checkpoints"), "a file").unwrap();
    let error = run.save(1).unwrap_err().to_string();
    assert!(error.contains("checkpoints: cannot create"), "{error}");
    assert!(run.latest().0.is_err());
}

#[test]
fn a_save_that_fails_leaves_no_trace_and_the_earlier_checkpoints() {
    let run = Run::new(&[1]);
    let bad = TrainState { train_seconds: f64::INFINITY, ..state(2) };
    let flat = numbers(&run.table, 1.0);
    assert!(save(run.dir.path(), &bad, &run.model, &run.table, &flat, &flat, &flat).is_err());
    assert_eq!(run.names(), ["step-00000001"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_with_a_remedy() {
    let full = Path::new("/dev/full");
    let file = std::fs::OpenOptions::new().write(true).open(full).unwrap();
    let error = staging::HashedFile::of(file, full).write(b"weights").unwrap_err().to_string();
    assert!(error.contains("/dev/full: cannot write") && error.contains("free some space"), "{error}");
}

/// A change of a file's content.
#[derive(Debug, Clone)]
enum Mutation {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Overwrite(prop::sample::Index, Vec<u8>),
    /// A number in the text, or in a header, becomes another.
    Number(prop::sample::Index, u64),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    let bytes = || prop::collection::vec(any::<u8>(), 1..12);
    prop_oneof![
        (at(), 0..8u8).prop_map(|(i, bit)| Mutation::Flip(i, bit)),
        at().prop_map(Mutation::Cut),
        (at(), bytes()).prop_map(|(i, b)| Mutation::Insert(i, b)),
        (at(), bytes()).prop_map(|(i, b)| Mutation::Overwrite(i, b)),
        (at(), prop_oneof![0..20u64, any::<u64>(), Just(1 << 40)]).prop_map(|(i, n)| Mutation::Number(i, n)),
    ]
}

impl Mutation {
    fn apply(&self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        match self {
            Self::Flip(i, bit) => bytes[i.index(original.len())] ^= 1 << bit,
            Self::Cut(i) => bytes.truncate(i.index(original.len())),
            Self::Insert(i, new) => {
                let i = i.index(original.len());
                bytes.splice(i..i, new.iter().copied());
            }
            Self::Overwrite(i, new) => {
                for (to, from) in bytes[i.index(original.len())..].iter_mut().zip(new) {
                    *to = *from;
                }
            }
            Self::Number(i, number) => {
                let header = original.iter().rposition(|&b| b == b'}').map_or(original.len(), |p| p + 1);
                let starts: Vec<usize> = (1..header)
                    .filter(|&i| original[i].is_ascii_digit() && !original[i - 1].is_ascii_digit())
                    .collect();
                let start = starts[i.index(starts.len())];
                let digits = original[start..].iter().take_while(|b| b.is_ascii_digit()).count();
                bytes.splice(start..start + digits, number.to_string().into_bytes());
            }
        }
        bytes
    }
}

/// Applies thousands of mutations to each file of a folder in turn and hands each to `check`.
fn fuzz(folder: &Path, names: &[&str], cases: u32, check: impl Fn(&str)) {
    for name in names {
        let path = folder.join(name);
        let original = fs::read(&path).unwrap();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let outcome = runner.run(&mutation(), |mutation| {
            let mutated = mutation.apply(&original);
            prop_assume!(mutated != original);
            // Truncating and writing in place makes some file systems wait for the disk.
            fs::remove_file(&path).unwrap();
            fs::write(&path, mutated).unwrap();
            check(name);
            Ok(())
        });
        outcome.unwrap();
        fs::write(&path, original).unwrap();
    }
}

#[test]
fn any_change_of_any_file_is_an_error_of_one_line_and_never_a_panic() {
    let run = Run::new(&[1]);
    fuzz(&run.step(1), &[STATE, MODEL, OPTIMIZER, CONFIG], 1000, |name| {
        let error = load(&run.step(1), &run.model, &run.table).expect_err(name).to_string();
        assert!(error.contains(&format!("{name}: damaged")) && !error.contains('\n'), "{error}");
    });
    assert!(load(&run.step(1), &run.model, &run.table).is_ok());
}

#[test]
fn import_of_a_changed_checkpoint_is_an_error_and_without_checksums_never_a_panic() {
    let run = Run::new(&[1]);
    fuzz(&run.step(1), &[STATE, MODEL, CONFIG], 1000, |name| {
        hf::import(&run.step(1)).expect_err(name);
    });
    fs::remove_file(run.step(1).join(STATE)).unwrap();
    fuzz(&run.step(1), &[MODEL, CONFIG], 2000, |_| {
        if let Err(error) = hf::import(&run.step(1)) {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    });
    assert!(hf::import(&run.step(1)).is_ok());
}
