//! Help, exit codes, and what is refused before anything is done.

use super::Workplace;

#[test]
fn help_of_each_command_has_its_options_and_an_example() {
    let place = Workplace::new();
    for (line, words) in [
        (
            "--help",
            "--config <FILE> --data <DIR> --run <DIR> --device auto cpu cuda --gpus <N> --steps --seed --resume --set \
             <KEY=VALUE> prepare inspect eval fill-mask verify",
        ),
        (
            "prepare --help",
            "--input <PATH>... --recipe standard] mlperf --vocab <FILE> --train-vocab <N> --out <DIR> --max-seq-length 512] --split lines \
             sentences --nsp --no-nsp --masking dynamic static --dupe-factor --eval-fraction 0.02] --seed 12345] \
             --threads",
        ),
        ("inspect --help", "<DIR|FILE> --batches <N> --out <FILE.safetensors>"),
        ("eval --help", "--model <DIR> --data --split eval] train --sequences <N>"),
        ("fill-mask --help", "--model <DIR> <TEXT> --top <K> 5]"),
        (
            "bench --help",
            "--config --device --batch <N> --tokens --lengths full] --steps --seconds --profile --json --ceiling",
        ),
        ("doctor --help", "--kernels"),
        ("verify --help", "<FILE.safetensors>... --device cpu] cuda --precision f64] f32 bf16"),
    ] {
        let help = place.line(line).done();
        for word in words.split_whitespace().chain(["Example:", "launcher "]) {
            assert!(help.contains(word), "`{word}` is not in the help of `{line}`:\n{help}");
        }
        // every option says what it is when left out, unless it must be given
        let starts = |line: &&str| line.trim_start().starts_with("--");
        let lines: Vec<&str> = help.lines().collect();
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| starts(line)) {
            let rest = lines[number + 1..].iter().take_while(|line| !starts(line));
            let text: String = std::iter::once(line).chain(rest).copied().collect();
            let name = line.split_whitespace().next().unwrap();
            // what must be given stands in the usage line
            let required = lines.iter().any(|l| l.starts_with("Usage:") && l.contains(name));
            let known = text.contains("default") || required;
            assert!(known, "no default in the help of `{line}`: {text}");
        }
    }
    assert!(place.line("--version").done().starts_with("launcher 0."));
}

#[test]
fn wrong_usage_ends_with_2() {
    let place = Workplace::new();
    for line in [
        "--nosuch",
        "nosuch",
        "--steps many",
        "--device gpu",
        "--gpus 0",
        "prepare --input a --out b",
        "prepare --input a --out b --vocab c --train-vocab 100",
        "prepare --vocab c --out b",
        "inspect",
        "eval --model m",
        "fill-mask --model m",
        "fill-mask --model m --top 0 text",
        "verify",
        "verify --precision f16 x.safetensors",
        "--steps 3 prepare --input a --vocab b --out c",
    ] {
        let ran = place.line(line);
        assert_eq!(ran.code, Some(2), "`{line}`: {}", ran.stderr);
        assert!(ran.stderr.contains("error:") && ran.stdout.is_empty(), "`{line}`: {}", ran.stderr);
    }
}

#[test]
fn gpus_are_refused_where_there_are_none() {
    if kernels::cuda::count().is_ok() {
        println!("skipped: this machine has a GPU");
        return;
    }
    let place = Workplace::with_corpus();
    for line in [
        "--gpus 1",
        "--config tiny.toml --gpus 8",
        "--device cuda",
        "--set train.device=cuda",
        "verify --device cuda x.safetensors",
        "bench --device cuda",
    ] {
        let message = place.line(line).failed();
        let why = ["libcuda.so.1", "built without GPU kernels", "NVIDIA driver"];
        assert!(why.iter().any(|why| message.contains(why)), "{line}: {message}");
    }
    assert!(!place.path("run").exists() && !place.path("runs").exists() && !place.path("shards").exists());
}

#[test]
fn configuration_errors_name_file_line_and_remedy() {
    let place = Workplace::new();
    place.write("a.toml", "[model]\nhiden = 128\n");
    assert_eq!(
        place.line("--config a.toml").failed(),
        "a.toml: line 2: `model.hiden` is not a known key; did you mean `model.hidden`?"
    );
    place.write("b.toml", "[model]\nheads = 12\nhidden = 100\n");
    assert_eq!(
        place.line("--config b.toml").failed(),
        "b.toml: line 3: model.hidden: 100 is not divisible by model.heads = 12; the nearest valid value is 96"
    );
    assert_eq!(place.line("--set schedule.lr=fast").failed(), "schedule.lr: \"fast\" is not a number");
    assert_eq!(
        place.line("--steps 0").failed(),
        "train.steps: 0 is too small; the smallest valid value is 1"
    );
    assert!(
        place.line("--config none.toml").failed().starts_with("none.toml: cannot read the configuration")
    );
    assert_eq!(
        place.line("prepare --input a --vocab v --out o --max-seq-length 4").failed(),
        "--max-seq-length: 4 is too small; the smallest valid value is 8"
    );
}
