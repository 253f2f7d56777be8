//! What a command did not make it neither replaces nor removes: it says what is there and what to do.

use super::{Ran, Workplace, files};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

fn sample(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name).display().to_string()
}

/// All files below a place and their content.
fn contents(place: &Workplace) -> Vec<(PathBuf, Vec<u8>)> {
    files(&place.path("")).into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

/// Runs a line that must be refused and leave everything as it is; its message.
#[track_caller]
fn refused(place: &Workplace, line: &str, parts: &[&str]) {
    let before = contents(place);
    let message = place.line(line).failed();
    for part in parts {
        assert!(message.contains(part), "`{line}`: `{part}` is not in: {message}");
    }
    assert!(contents(place) == before, "`{line}` changed something");
}

fn import(place: &Workplace, out: &str) -> Ran {
    let [file, config] = ["checkpoints/zip.bin", "checkpoints/twin/config.json"].map(sample);
    place.run(&["import", "pytorch", &file, "--config", &config, "--out", out])
}

#[test]
fn an_import_takes_no_folder_that_holds_anything() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    let (pytorch, tensorflow) = (sample("checkpoints/zip.bin"), sample("checkpoints/tiny"));
    let config = sample("checkpoints/twin/config.json");
    for out in ["run/model", "run", "shards"] {
        for kind in [format!("pytorch {pytorch}"), format!("tf-checkpoint {tensorflow}")] {
            let line = format!("import {kind} --config {config} --out {out}");
            refused(
                &place,
                &line,
                &[&format!("{out}: holds `"), "would be lost", "another folder with --out"],
            );
        }
    }
    refused(
        &place,
        &format!("import pytorch {pytorch} --out text.txt"),
        &["text.txt: is there and is no folder"],
    );
    // an empty folder and a link to one are taken
    fs::create_dir(place.path("empty")).unwrap();
    symlink("empty", place.path("link")).unwrap();
    import(&place, "link").done();
    assert!(place.path("empty/model.safetensors").is_file() && place.path("link").is_symlink());
    refused(
        &place,
        &format!("import pytorch {pytorch} --config {config} --out link"),
        &["link: holds `config.json`"],
    );
}

#[test]
fn an_import_removes_only_its_own_leftovers() {
    let place = Workplace::new();
    place.write(".tmp-model/model.safetensors", "half");
    place.write(".old-model/mine", "mine");
    import(&place, "model").done();
    assert!(!place.path(".tmp-model").exists() && place.path(".old-model/mine").is_file());
    place.write(".tmp-other/mine", "mine");
    let message = import(&place, "other").failed();
    assert!(message.contains(".tmp-other: holds `mine`"), "{message}");
    assert!(place.path(".tmp-other/mine").is_file() && !place.path("other").exists());
}

#[test]
fn files_that_are_there_are_not_written_over() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    place.write("mine.safetensors", "mine");
    let private = place.write("private.safetensors", "mine");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
    symlink("mine.safetensors", place.path("link.safetensors")).unwrap();
    for line in ["inspect run --batches 2 --out", "eval --model run --data shards --dump-batch"] {
        for file in
            ["mine.safetensors", "private.safetensors", "link.safetensors", "run/model/model.safetensors"]
        {
            refused(
                &place,
                &format!("{line} {file}"),
                &[&format!("{file}: is there already and would be lost")],
            );
        }
        refused(&place, &format!("{line} run"), &["run: is a folder; name a file in it"]);
        refused(&place, &format!("{line} none/file"), &["none: cannot write to the folder: No such file"]);
        place.line(&format!("{line} /dev/null")).done();
    }
}

#[test]
fn data_takes_no_folder_that_holds_anything_else() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    let prepare = "prepare --input text.txt --vocab vocab.txt --max-seq-length 32";
    place.line(&format!("{prepare} --part 1/2 --out part-1")).done();
    place.line(&format!("{prepare} --part 2/2 --out part-2")).done();
    let (tfrecord, vocab) = (sample("import/tfrecord/part-0.tfrecord"), sample("import/vocab.txt"));
    for out in ["run", "run/model", "part-1"] {
        refused(&place, &format!("{prepare} --out {out}"), &[out]);
        refused(&place, &format!("prepare --merge part-1 part-2 --out {out}"), &[out]);
        if Path::new(&vocab).exists() {
            refused(&place, &format!("import tfrecord {tfrecord} --vocab {vocab} --out {out}"), &[out]);
        }
    }
    for out in ["run", "run/model", "shards", "part-2"] {
        refused(&place, &format!("{prepare} --part 1/2 --out {out}"), &[out]);
    }
    // a link to an empty folder stays a link
    fs::create_dir(place.path("empty")).unwrap();
    symlink("empty", place.path("link")).unwrap();
    place.line(&format!("{prepare} --out link")).done();
    assert!(place.path("empty/manifest.json").is_file() && place.path("link").is_symlink());
    assert!(place.line(&format!("{prepare} --out link")).done().contains("it was there already"));
}

#[test]
fn a_run_lies_in_no_folder_of_data_or_of_a_model() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    fs::rename(place.path("run/model"), place.path("hf")).unwrap();
    let line = "--config tiny.toml --steps 2";
    for (options, parts) in [
        ("--run shards", ["shards: is the folder of the data, too", "--run"]),
        ("--run shards/run", ["shards/run: lies in the folder of the data", "--run"]),
        ("--run hf", ["hf: is the folder of a model", "--run"]),
        ("--run hf/run", ["hf/run: lies in the folder of a model", "--run"]),
        ("--run run/checkpoints/step-00000002", ["is the folder of a checkpoint", "--run"]),
        ("--run shards/run --data other", ["lies in the folder of prepared data", "--run"]),
        (
            "--run new --data new/model/data",
            ["new/model/data: the run new keeps its own files in `model`", "--data"],
        ),
        ("--run new/run --data new", ["new/run: lies in the folder of the data", "--run"]),
    ] {
        refused(&place, &format!("{line} {options}"), &parts);
    }
    refused(
        &place,
        "mlperf --config tiny.toml --set train.target_accuracy=0.5 --run hf/run",
        &["lies in the folder of a model"],
    );
}

#[test]
fn a_run_replaces_only_what_a_run_wrote() {
    let place = Workplace::with_corpus();
    let line = "--config tiny.toml --steps 2 --run mine";
    for name in ["metrics.jsonl", "mllog.txt", "report.html"] {
        let path = place.write(&format!("mine/{name}"), "my notes\n");
        refused(&place, line, &[&format!("mine/{name}: was written by no run and would be lost"), "--run"]);
        fs::remove_file(path).unwrap();
    }
    // a model from elsewhere, and --resume
    place.write("mine/model/config.json", "{}");
    place.write("mine/model/model.safetensors", "");
    refused(&place, line, &["already holds a run"]);
    refused(&place, &format!("{line} --resume"), &["mine/model: would be replaced, and no run made it"]);
    fs::remove_dir_all(place.path("mine")).unwrap();
    // what was kept of an earlier configuration is kept, too
    place.write("mine/config.toml", "# two\n");
    place.write("mine/config.before.toml", "# one\n");
    place.line(line).done();
    let kept = |name: &str| fs::read_to_string(place.path("mine").join(name)).unwrap();
    assert_eq!(
        (kept("config.before.toml"), kept("config.1.before.toml")),
        ("# one\n".into(), "# two\n".into())
    );
}

#[test]
fn a_run_that_was_killed_before_its_first_checkpoint_starts_again() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    fs::remove_dir_all(place.path("run/checkpoints")).unwrap();
    fs::remove_dir_all(place.path("run/model")).unwrap();
    place.line("--config tiny.toml --steps 2").done();
    assert!(place.path("run/model/model.safetensors").is_file());
}
