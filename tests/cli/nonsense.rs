//! Options with nonsense in them: each is refused with its name and the remedy, before anything is done.

use super::Workplace;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

#[track_caller]
fn says(place: &Workplace, line: &str, parts: &[&str]) {
    let message = place.line(line).failed();
    for part in parts {
        assert!(message.contains(part), "`{line}`: `{part}` is not in: {message}");
    }
}

#[test]
fn numbers_beyond_what_an_option_takes() {
    let place = Workplace::with_corpus();
    let most = "18446744073709551615 is too large";
    let limit = "9223372036854775807";
    says(&place, "--config tiny.toml --seed 18446744073709551615", &["train.seed: ", most, limit]);
    says(&place, "--config tiny.toml --set train.seed=18446744073709551615", &["train.seed: ", most, limit]);
    says(
        &place,
        "--config tiny.toml --set train.steps=99999999999999999999999",
        &["train.steps: ", "too large"],
    );
    place.write("seed.toml", "[train]\nsteps = 3\nseed = 18446744073709551615\n");
    says(&place, "--config seed.toml", &["seed.toml: line 3: a number is too large", limit]);
    says(
        &place,
        "prepare --input text.txt --vocab vocab.txt --out o --seed 18446744073709551615",
        &["--seed: 18446744073709551615 is too large", limit],
    );
    for line in [
        "bench --seconds nan",
        "bench --seconds inf",
        "bench --seconds -1",
        "bench --ceiling 4294967295",
        "eval --model m --data d --threads 100000",
        "prepare --input a --vocab v --out o --threads 18446744073709551615",
        "prepare --input a --vocab v --out o --part 0/2",
        "prepare --input a --vocab v --out o --eval-fraction",
    ] {
        assert_eq!(place.line(line).code, Some(2), "{line}");
    }
    for line in ["--eval-fraction NaN", "--masked-lm-prob inf", "--short-seq-prob -0.5"] {
        let args = format!("prepare --input text.txt --vocab vocab.txt --out o {}", line.replace(' ', "="));
        says(&place, &args, &[line.split(' ').next().unwrap()]);
    }
    for key in ["schedule.lr", "optimizer.eps", "model.hidden_dropout", "train.target_accuracy"] {
        for value in ["nan", "inf", "-inf", "-1"] {
            says(&place, &format!("--config tiny.toml --set {key}={value}"), &[key]);
        }
    }
    for options in ["--rate nan", "--rate inf", "--rate 0", "--rate 1 --overlap nan", "--rate 1 --inter inf"]
    {
        place.line(&format!("plan --rate-batch 1 {options}")).failed();
    }
    assert!(!place.path("run").exists() && !place.path("o").exists());
}

#[test]
fn more_batches_than_a_file_holds() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 1").done();
    let parts = ["18446744073709551615 batches of about", "more than fit; ask for at most "];
    says(&place, "inspect run --batches 18446744073709551615 --out many", &parts);
    assert!(!place.path("many").exists());
}

#[test]
fn pipes_without_a_writer_and_devices_without_an_end() {
    let place = Workplace::with_corpus();
    std::process::Command::new("mkfifo").arg(place.path("pipe")).status().unwrap();
    for line in [
        "verify",
        "import pytorch --out o",
        "import tfrecord --vocab vocab.txt --out o",
        "import hdf5 --vocab vocab.txt --out o",
    ] {
        for path in ["pipe", "/dev/zero"] {
            says(&place, &format!("{line} {path}"), &[path, "is a pipe or a device"]);
        }
    }
    for line in ["--config", "plan --step", "bench --lengths"] {
        says(&place, &format!("{line} /dev/zero"), &["/dev/zero: is longer than "]);
    }
    let import = "import pytorch text.txt --out o --config /dev/zero";
    place.line(import).failed();
}

#[test]
fn a_benchs_batch_that_no_memory_holds() {
    let place = Workplace::with_corpus();
    let bench = "bench --config tiny.toml --device cpu --set model.vocab_size=100 --ceiling 64 --steps 1";
    says(&place, &format!("{bench} --batch 4294967295"), &["--batch 4294967295: ", "ask for fewer"]);
    says(&place, &format!("{bench} --tokens 4294967295"), &["--tokens 4294967295: ", "ask for fewer"]);
    place.write("lengths.txt", "12\n33\n");
    says(
        &place,
        &format!("{bench} --batch 2 --lengths lengths.txt"),
        &["--lengths: a sequence of 33 tokens is longer", "32", "model.max_positions"],
    );
}

#[test]
fn the_cpu_and_gpus_at_once() {
    let place = Workplace::with_corpus();
    for line in ["--config tiny.toml", "bench --config tiny.toml"] {
        let line = format!("{line} --device cpu --gpus 2");
        says(&place, &line, &["--gpus 2: asks for GPUs, and --device for the CPU", "--processes 2"]);
    }
}

#[test]
fn configurations_that_are_none() {
    let place = Workplace::with_corpus();
    fs::create_dir(place.path("folder")).unwrap();
    says(
        &place,
        "--config folder",
        &["folder: cannot read the configuration", "it is a folder, name a file"],
    );
    says(&place, "--config none.toml", &["none.toml: cannot read the configuration", "check the path"]);
    place.write("latin.toml", b"[train]\nrun = \"caf\xe9\"\n");
    says(&place, "--config latin.toml", &["latin.toml: byte 18 is not valid UTF-8"]);
    says(&place, "--config /dev/null", &["/dev/null: holds no settings"]);
    place.write("wide.toml", b"\xff\xfe[\0t\0");
    says(&place, "--config wide.toml", &["wide.toml: byte 0 is not valid UTF-8"]);
    // Windows' editors begin a file with a mark
    let text = fs::read_to_string(place.path("tiny.toml")).unwrap();
    place.write("mark.toml", format!("\u{feff}{}", text.trim_start()));
    place.line("--config mark.toml --steps 1").done();
}

#[test]
fn files_for_folders_and_folders_for_files() {
    let place = Workplace::with_corpus();
    fs::create_dir(place.path("folder")).unwrap();
    says(&place, "--config tiny.toml --data text.txt", &["text.txt"]);
    says(&place, "--config tiny.toml --run text.txt", &["text.txt"]);
    says(&place, "eval --model text.txt --data text.txt", &["text.txt"]);
    says(&place, "fill-mask --model vocab.txt [MASK]", &["vocab.txt"]);
    says(&place, "verify folder", &["folder", "name a file"]);
    says(&place, "bench --lengths folder", &["folder", "name a file"]);
    says(&place, "plan --step folder", &["folder", "name a file"]);
    says(&place, "mlperf report text.txt", &["text.txt"]);
    says(&place, "prepare --merge text.txt --out o", &["text.txt"]);
    for path in ["/dev/null", "folder"] {
        for line in [
            "verify",
            "plan --step",
            "bench --lengths",
            "inspect",
            "import pytorch --out o",
            "import tf-checkpoint --out o",
            "import tfrecord --vocab vocab.txt --out o",
            "import hdf5 --vocab vocab.txt --out o",
            "prepare --merge p --out o --merge",
            "prepare --vocab vocab.txt --out o --input",
            "prepare --input text.txt --out o --vocab",
            "mlperf report",
            "fill-mask [MASK] --model",
            "eval --model m --data",
            "eval --data d --model",
            "--config",
            "--config tiny.toml --run run --set data.prepare.input=[] --data",
        ] {
            let message = place.line(&format!("{line} {path}")).failed();
            assert!(!message.is_empty(), "{line} {path}");
        }
    }
    assert!(!place.path("o").exists() && !place.path("run").exists());
}

#[test]
fn names_that_are_not_utf_8_work_or_are_refused_before_any_work() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml --steps 2").done();
    let odd = OsStr::from_bytes(b"caf\xe9");
    let run = |line: &str| {
        let mut command = place.command(&line.split_whitespace().collect::<Vec<_>>());
        let output = command.arg(odd).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let prepare = "prepare --max-seq-length 32 --vocab vocab.txt";
    // what is only written to or read may have any name
    for line in [
        format!("{prepare} --input text.txt --out"),
        "inspect".to_owned(),
        "eval --model run --data".to_owned(),
    ] {
        let (code, said) = run(&line);
        assert_eq!(code, Some(0), "{line}: {said}");
    }
    fs::remove_dir_all(place.path("").join(odd)).unwrap();
    for line in ["inspect run --batches 1 --out", "eval --model run --data shards --dump-batch"] {
        let (code, said) = run(line);
        assert_eq!(code, Some(0), "{line}: {said}");
        fs::remove_file(place.path("").join(odd)).unwrap();
    }
    // what lies in a manifest or a configuration may not
    fs::write(place.path("").join(odd), fs::read(place.path("text.txt")).unwrap()).unwrap();
    fs::create_dir(place.path("texts")).unwrap();
    fs::copy(place.path("").join(odd), place.path("texts").join(odd)).unwrap();
    for line in [
        format!("{prepare} --out o --input"),
        "prepare --input text.txt --out o --vocab".to_owned(),
        "--config tiny.toml --run".to_owned(),
        "--config tiny.toml --run new --data".to_owned(),
        "mlperf --config tiny.toml --set train.target_accuracy=0.5 --start".to_owned(),
        "import tfrecord --vocab vocab.txt --out o".to_owned(),
        "import hdf5 text.txt --out o --vocab".to_owned(),
    ] {
        let (code, said) = run(&line);
        assert!(code == Some(1) && said.contains("UTF-8") && said.contains("rename it"), "{line}: {said}");
    }
    says(&place, &format!("{prepare} --out o --input texts"), &["texts/caf", "UTF-8", "rename it"]);
    assert!(!place.path("o").exists() && !place.path("o.preparing").exists() && !place.path("new").exists());
}
