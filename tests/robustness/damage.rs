//! Files that are cut short, changed, missing or of something else.

use super::{Result, TRAIN, Workplace, copy, message, names, undisturbed};
use crate::cli::{corpus, files, vocabulary};
use std::fs;
use std::path::Path;

/// How a file is damaged.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Cut,
    Flip,
    Empty,
    Missing,
    Folder,
}
use Damage::{Cut, Empty, Flip, Folder, Missing};

#[track_caller]
fn damage(path: &Path, how: Damage) {
    let mut bytes = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    match how {
        Cut => fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap(),
        Flip => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            fs::write(path, bytes).unwrap();
        }
        Empty => fs::write(path, "").unwrap(),
        Missing => {}
        Folder => fs::create_dir(path).unwrap(),
    }
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// A run that was killed after the checkpoint of step 20 in `killed`, with those of steps 12 and 16 besides.
fn killed() -> (Workplace, Result) {
    let place = Workplace::with_corpus();
    place.line(&format!("{TRAIN} --set train.keep_checkpoints=9")).done();
    let expected = Result::of(&place.path("run"));
    fs::rename(place.path("run"), place.path("killed")).unwrap();
    for gone in
        ["checkpoints/step-00000004", "checkpoints/step-00000008", "checkpoints/step-00000024", "model"]
    {
        fs::remove_dir_all(place.path("killed").join(gone)).unwrap();
    }
    let kept = names(&place.path("killed/checkpoints"));
    for step in [12, 16, 20] {
        assert!(kept.contains(&format!("step-{step:08}")), "{kept:?}");
    }
    // evaluations that were the best so far add checkpoints of their own
    for name in kept.iter().filter(|n| !["12", "16", "20"].iter().any(|step| n.ends_with(step))) {
        fs::remove_dir_all(place.path("killed/checkpoints").join(name)).unwrap();
    }
    (place, expected)
}

/// `run` anew, as the kill left it.
fn restore(place: &Workplace) {
    let _ = fs::remove_dir_all(place.path("run"));
    copy(&place.path("killed"), &place.path("run"));
}

const CHECKPOINT: [&str; 4] = ["state.json", "config.json", "model.safetensors", "optimizer.safetensors"];

#[test]
fn a_damaged_checkpoint_is_named_and_skipped() {
    let (place, expected) = killed();
    let resume = format!("{TRAIN} --resume");
    for file in CHECKPOINT {
        for how in [Cut, Flip, Empty, Missing, Folder] {
            restore(&place);
            let newest = place.path("run/checkpoints/step-00000020");
            damage(&newest.join(file), how);
            let ran = place.line(&resume);
            let named = format!("run/checkpoints/step-00000020/{file}");
            says(&ran.stderr, &[&named, "skipped", "damaged-step-00000020", "resumed from", "step-00000016"]);
            ran.done();
            Result::of(&place.path("run")).assert_equal(&expected, &format!("{file}: {how:?}"));
            assert!(place.path("run/checkpoints/damaged-step-00000020").is_dir(), "{file}: {how:?}");
        }
    }
    // the two newest
    restore(&place);
    damage(&place.path("run/checkpoints/step-00000020/model.safetensors"), Flip);
    damage(&place.path("run/checkpoints/step-00000016/state.json"), Cut);
    place.line(&resume).done();
    Result::of(&place.path("run")).assert_equal(&expected, "two damaged");
}

#[test]
fn when_all_checkpoints_are_damaged_each_is_named_and_none_is_touched() {
    let (place, _) = killed();
    restore(&place);
    let checkpoints = place.path("run/checkpoints");
    for (step, file) in [(12, "state.json"), (16, "model.safetensors"), (20, "optimizer.safetensors")] {
        damage(&checkpoints.join(format!("step-{step:08}")).join(file), Flip);
    }
    let before = files(&checkpoints);
    let said = message(place.line(&format!("{TRAIN} --resume")));
    says(&said, &["12/state.json", "16/model.safetensors", "20/optimizer.safetensors", "restore one"]);
    assert_eq!(files(&checkpoints), before);
}

#[test]
fn a_torn_or_lost_log_does_not_stop_a_resume() {
    let (place, expected) = killed();
    let resume = format!("{TRAIN} --resume");
    for log in ["metrics.jsonl", "mllog.txt"] {
        for how in [Cut, Empty, Missing] {
            restore(&place);
            damage(&place.path("run").join(log), how);
            place.line(&resume).done();
            let found = Result::of(&place.path("run"));
            assert!(found.model == expected.model, "{log}: {how:?}");
            let same = expected.metrics.ends_with(&found.metrics[found.metrics.len() - 4..]);
            assert!(same, "{log}: {how:?}: the lines of the last steps differ");
        }
    }
    // a line that the kill tore
    restore(&place);
    let path = place.path("run/metrics.jsonl");
    let mut lines = fs::read(&path).unwrap();
    lines.extend(b"{\"step\":25,\"lo");
    fs::write(&path, lines).unwrap();
    place.line(&resume).done();
    Result::of(&place.path("run")).assert_equal(&expected, "a torn line");

    restore(&place);
    damage(&place.path("run/metrics.jsonl"), Folder);
    says(&message(place.line(&resume)), &["run/metrics.jsonl"]);
}

#[test]
fn a_run_folder_whose_config_is_damaged_or_of_another_run() {
    let (place, expected) = killed();
    let resume = format!("{TRAIN} --resume");
    let restored = || {
        restore(&place);
        place.path("run/config.toml")
    };
    damage(&restored(), Cut);
    fs::write(place.path("run/config.toml"), "[model]\nlayers = 1\nhidd").unwrap();
    says(&message(place.line(&resume)), &["run/config.toml", "line 3", "restore this file"]);
    damage(&restored(), Empty);
    says(&message(place.line(&resume)), &["run/config.toml", "restore this file"]);
    damage(&restored(), Folder);
    says(&message(place.line(&resume)), &["run/config.toml"]);

    let path = restored();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("gelu = \"tanh\"", "gelu = \"erf\"")).unwrap();
    says(
        &message(place.line(&resume)),
        &["run", "model.gelu = erf", "now tanh", "defines the model", "--run"],
    );
    // a key that may change is told, and what this command says holds
    fs::write(&path, text.replace("lr = 0.01", "lr = 0.03")).unwrap();
    let ran = place.line(&resume);
    assert!(ran.stderr.contains("schedule.lr: 0.03 -> 0.01"), "{}", ran.stderr);
    ran.done();
    Result::of(&place.path("run")).assert_equal(&expected, "config.toml said something else");

    // without it the checkpoints tell
    damage(&restored(), Missing);
    let said = message(place.line(&format!("{resume} --set schedule.lr=0.03")));
    says(&said, &["run/config.toml", "is missing", "step 20", "another configuration", "--run"]);
    assert!(!place.path("run/config.toml").exists(), "the foreign configuration took the folder");
    place.line(&resume).done();
    Result::of(&place.path("run")).assert_equal(&expected, "config.toml missing");
}

#[test]
fn damaged_data_is_named_before_anything_is_trained() {
    let (place, expected) = killed();
    fs::rename(place.path("shards"), place.path("whole")).unwrap();
    for file in ["manifest.json", "vocab.txt", "train-00000.shard", "eval-00000.shard"] {
        for how in [Cut, Flip, Empty, Missing, Folder] {
            let _ = fs::remove_dir_all(place.path("shards"));
            copy(&place.path("whole"), &place.path("shards"));
            restore(&place);
            damage(&place.path("shards").join(file), how);
            for line in [format!("{TRAIN} --run new"), format!("{TRAIN} --resume"), "inspect shards".into()] {
                // a data folder without its manifest is a folder of something else
                let named = if file == "manifest.json" && matches!(how, Missing) { "shards" } else { file };
                says(&message(place.line(&line)), &[named]);
            }
            assert!(!place.path("new").exists(), "{file}: {how:?}");
        }
    }
    fs::remove_dir_all(place.path("shards")).unwrap();
    fs::rename(place.path("whole"), place.path("shards")).unwrap();
    place.line(&format!("{TRAIN} --resume")).done();
    Result::of(&place.path("run")).assert_equal(&expected, "after errors in the data");
}

#[test]
fn data_and_models_of_another_vocabulary() {
    let (place, _) = undisturbed();
    place.write("swapped.txt", vocabulary().replace("cat\ndog\n", "dog\ncat\n"));
    let prepare = "prepare --input text.txt --max-seq-length 32 --max-predictions 5 --eval-fraction 0.2";
    place.line(&format!("{prepare} --vocab swapped.txt --out other")).done();

    // a model beside whose weights another vocabulary lies
    let from_data = "--data other --run new --set data.prepare.input=[] --set data.prepare.vocab=";
    let said = message(place.line(&format!("{TRAIN} {from_data} --set model.init_from=run/model")));
    says(&said, &["run/model/vocab.txt", "is `cat`, there it is `dog`", "prepare the data"]);
    // the same folder, other data: it is not the run's
    place.line(&format!("{prepare} --vocab vocab.txt --out more --seed 9")).done();
    let ours = "--set data.prepare.input=[] --set data.prepare.vocab=";
    place.line(&format!("{TRAIN} {ours} --run mine")).done();
    says(
        &message(place.line(&format!("{TRAIN} {ours} --run mine --data more --resume"))),
        &["more", "other data"],
    );

    let whole = fs::read(place.path("shards/train-00000.shard")).unwrap();
    fs::copy(place.path("other/train-00000.shard"), place.path("shards/train-00000.shard")).unwrap();
    says(&message(place.line("inspect shards")), &["shards/train-00000.shard"]);
    fs::write(place.path("shards/train-00000.shard"), whole).unwrap();
    fs::copy(place.path("other/vocab.txt"), place.path("shards/vocab.txt")).unwrap();
    says(&message(place.line(&format!("{TRAIN} --run new"))), &["shards/vocab.txt", "sha256"]);
}

#[test]
fn damaged_models_are_named() {
    let (place, _) = undisturbed();
    fs::rename(place.path("run/model"), place.path("whole")).unwrap();
    let commands = ["eval --model model --data shards", "fill-mask --model model [MASK]", "inspect model"];
    let initial = format!("{TRAIN} --run new --set model.init_from=model");
    for (file, how) in [
        ("model.safetensors", Cut),
        ("model.safetensors", Empty),
        ("model.safetensors", Missing),
        ("model.safetensors", Folder),
        ("config.json", Cut),
        ("config.json", Empty),
        ("config.json", Missing),
    ] {
        let _ = fs::remove_dir_all(place.path("model"));
        copy(&place.path("whole"), &place.path("model"));
        damage(&place.path("model").join(file), how);
        for line in commands.iter().copied().chain([initial.as_str()]) {
            says(&message(place.line(line)), &["model", file]);
        }
    }
    // a vocabulary cut in the middle, and weights that are not finite
    let _ = fs::remove_dir_all(place.path("model"));
    copy(&place.path("whole"), &place.path("model"));
    fs::write(place.path("model/vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n").unwrap();
    for line in [commands[0], commands[1], &initial] {
        says(&message(place.line(line)), &["model/vocab.txt", "3 tokens"]);
    }
    fs::copy(place.path("whole/vocab.txt"), place.path("model/vocab.txt")).unwrap();
    let mut weights = fs::read(place.path("model/model.safetensors")).unwrap();
    let end = weights.len();
    weights[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(place.path("model/model.safetensors"), weights).unwrap();
    for line in [commands[0], commands[1], &initial] {
        says(&message(place.line(line)), &["model/model.safetensors", "not finite"]);
    }
    says(&place.line("inspect model").done(), &["1 NOT FINITE"]);
}

#[test]
fn input_that_is_damaged_leaves_no_data_folder() {
    let place = Workplace::new();
    place.write("vocab.txt", vocabulary());
    place.write("text.gz", "not gzip");
    place.write("text.zst", "not zstd");
    place.write("text.parquet", "PAR1 not parquet PAR1");
    place.write("negative.parquet", NEGATIVE);
    place.write("text.jsonl", "{\"text\": \"the cat\"}\n{\"text\": 3}\n");
    place.write("latin.txt", [corpus(3).as_bytes(), b"caf\xe9 \xff\xfe the cat .\n"].concat());
    for input in ["text.gz", "text.zst", "text.parquet", "negative.parquet", "text.jsonl"] {
        says(&message(place.line(&format!("prepare --input {input} --vocab vocab.txt --out o"))), &[input]);
        assert_eq!(names(&place.path("")).iter().filter(|n| n.starts_with('o')).count(), 0, "{input}");
    }
    let said = place.line("prepare --input latin.txt --vocab vocab.txt --out o").done();
    says(&said, &["not UTF-8 and were replaced"]);
}

/// Two texts, and a column that should have a negative length: the crate that reads Parquet panics at that.
const NEGATIVE: &[u8] =
    b"PAR1\x15\x00\x15(\x15(,\x15\x04\x15\x00\x15\x06\x15\x06\x00\x00\x07\x00\x00\x00the\x20cat\x05\x00\
    \x00\x00a\x20dog\x15\x02\x19,H\x01m\x15\x02\x00\x15\x0c%\x00\x18\x04text%\x00\x00\x16\x04\x19\x1c\
    \x19\x1c&\x00\x1c\x15\x0c\x19%\x00\x06\x19\x18\x04text\x15\x00\x16\x04\x16J\x16\x01&\x08I\x1c\x15\
    \x00\x15\x00\x15\x02\x00\x00\x00\x16J\x16\x04&\x08\x16J\x14\x00\x00(\x01x\x19\x1c\x1c\x00\x00\x00V\
    \x00\x00\x00PAR1";
