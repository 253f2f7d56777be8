//! Parts of any number, merged, against one preparation of the whole.

use super::*;
use crate::config::{Masking, PrepareConfig, Recipe, Split};
use crate::data::prepare::tests::{files, text, with_files};
use crate::data::prepare::{PartOf, prepare, prepare_part};

fn part(number: &str) -> PartOf {
    number.parse().unwrap()
}

/// Prepares all parts and returns their folders.
fn parts(config: &PrepareConfig, dir: &Path, of: u64) -> Vec<PathBuf> {
    let make = |number| {
        let out = dir.join(format!("part-{number}-of-{of}"));
        prepare_part(config, PartOf { part: number, of }, &out, 2, &|_| {}).unwrap();
        out
    };
    (1..=of).map(make).collect()
}

#[track_caller]
fn check_all(config: &PrepareConfig, dir: &Path, counts: &[u64]) {
    let whole = dir.join("whole");
    prepare(config, &whole, 2, &|_| {}).unwrap();
    let want = files(&whole);
    for &of in counts {
        let mut dirs = parts(config, dir, of);
        dirs.reverse();
        let out = dir.join(format!("merged-{of}"));
        let last = std::sync::Mutex::new(None);
        merge(&dirs, &out, &|p| *last.lock().unwrap() = Some(p.clone())).unwrap();
        let last = last.into_inner().unwrap().unwrap();
        assert_eq!(last.bytes_read, last.bytes_total);
        let got = files(&out);
        let names = |files: &[(String, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
        assert_eq!(names(&got), names(&want));
        assert!(got == want, "{of} parts");
    }
}

#[test]
fn blocks_merge_to_the_bytes_of_one_host() {
    let dir = tempfile::tempdir().unwrap();
    // Short documents, then one of several blocks, which get excerpts of the others.
    let long = "one two three four five six seven .\n".repeat(100_000);
    std::fs::write(dir.path().join("input.txt"), text(12_000, 1) + &long + "\n" + &text(300, 2)).unwrap();
    let config = PrepareConfig {
        masking: Masking::Static,
        max_seq_length: 64,
        dupe_factor: 3,
        eval_fraction: 0.1,
        ..PrepareConfig::default()
    };
    check_all(&with_files(dir.path(), &config), dir.path(), &[1, 3, 16]);
    let units = Part::load(&dir.path().join("part-1-of-3")).unwrap().made.all_units;
    assert!((6..16).contains(&units), "{units}");
}

#[test]
fn prose_merges_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = PrepareConfig { split: Split::Sentences, max_seq_length: 48, ..PrepareConfig::default() };
    let mut config = with_files(dir.path(), &config);
    config.input = (0..7).map(|i| dir.path().join(format!("{i}.txt"))).collect();
    for (i, path) in config.input.iter().enumerate() {
        std::fs::write(path, text(1200, i as u64).replace('\n', " ") + "\n\n").unwrap();
    }
    for nsp in [true, false] {
        let dir = dir.path().join(format!("nsp-{nsp}"));
        std::fs::create_dir(&dir).unwrap();
        check_all(&PrepareConfig { nsp, ..config.clone() }, &dir, &[2]);
    }
}

#[test]
fn files_of_the_benchmark_merge_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = PrepareConfig { eval_records: 20, max_seq_length: 32, ..PrepareConfig::of(Recipe::Mlperf) };
    let mut config = with_files(dir.path(), &config);
    config.input = (0..3).map(|i| dir.path().join(format!("part-{i}"))).collect();
    config.eval_input = Some(dir.path().join("eval"));
    for (i, path) in config.input.iter().chain(&config.eval_input).enumerate() {
        std::fs::write(path, text(20 + 9 * i, i as u64)).unwrap();
    }
    check_all(&config, dir.path(), &[2, 3, 6]);
}

#[test]
fn what_is_not_all_parts_of_one_whole_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("input.txt"), text(200, 1)).unwrap();
    let config = with_files(dir.path(), &PrepareConfig::default());
    let three = parts(&config, dir.path(), 3);
    let refuse = |dirs: &[PathBuf], want: &str| {
        let error = merge(dirs, &path("out"), &|_| {}).map(drop).unwrap_err().to_string();
        assert!(error.contains(want) && !error.contains('\n'), "{error}");
        assert!(!path("out").exists() && !path("out.preparing").exists());
    };
    let [a, b, c] = [three[0].clone(), three[1].clone(), three[2].clone()];
    refuse(&[], "names no part");
    refuse(&[a.clone(), c.clone()], "part 2 of 3 is missing; give the folders of all 3 parts");
    refuse(&[a.clone(), b.clone(), b.clone()], "is part 2 of 3, as is ");
    let other = path("of-two");
    prepare_part(&config, part("2/2"), &other, 1, &|_| {}).unwrap();
    refuse(&[a.clone(), other], "of-two: is one of 2 parts, ");
    refuse(&[a.clone(), path("none")], "none/part.json: cannot read the part");

    let seed = PrepareConfig { seed: 7, ..config.clone() };
    prepare_part(&seed, part("3/3"), &path("seed"), 1, &|_| {}).unwrap();
    refuse(&[a.clone(), b.clone(), path("seed")], "seed: is part 3 of other data than ");
    // The same name and size, another text.
    let changed = std::fs::read_to_string(path("input.txt")).unwrap().replacen("the", "dog", 1);
    std::fs::write(path("input.txt"), changed).unwrap();
    prepare_part(&config, part("3/3"), &path("text"), 1, &|_| {}).unwrap();
    refuse(
        &[a.clone(), b.clone(), path("text")],
        "input.txt has the same name and size there and here, but another",
    );

    let error = prepare_part(&config, part("2/3"), &a, 1, &|_| {}).map(drop).unwrap_err().to_string();
    assert!(error.contains("part 1 of 3 is there, 2 of 3 wanted"), "{error}");
    let error = prepare(&config, &a, 1, &|_| {}).map(drop).unwrap_err().to_string();
    assert!(error.contains("it is one part of prepared data; join all parts"), "{error}");
    let train = PrepareConfig { vocab: None, train_vocab: Some(200), ..config.clone() };
    let error = prepare_part(&train, part("1/2"), &path("new"), 1, &|_| {}).map(drop).unwrap_err();
    assert!(error.to_string().contains("prepare.train_vocab: every part needs"), "{error}");

    for file in ["part.json", "train-00000.shard"] {
        let damaged = a.join(file);
        let good = std::fs::read(&damaged).unwrap();
        let mut bytes = good.clone();
        let at = bytes.len() * 2 / 3;
        bytes[at] ^= 1;
        std::fs::write(&damaged, bytes).unwrap();
        refuse(&[a.clone(), b.clone(), c.clone()], "damaged");
        std::fs::write(&damaged, good).unwrap();
    }
    merge(&[a.clone(), b.clone(), c.clone()], &path("out"), &|_| {}).unwrap();
    let calls = std::sync::atomic::AtomicUsize::new(0);
    merge(&[a, b, c], &path("out"), &|_| _ = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        .unwrap();
    assert_eq!(calls.into_inner(), 0, "kept");
}
