//! Text as people have it: compressed, in tables, through pipes, with bad rows.

use super::{Workplace, corpus, files};
use std::fs;
use std::io::Write;
use std::process::Stdio;

const OPTIONS: &str = "--vocab vocab.txt --max-seq-length 32 --eval-fraction 0.2";

/// The names and bytes of the shards in a folder.
fn shards(place: &Workplace, dir: &str) -> Vec<(String, Vec<u8>)> {
    let shards =
        files(&place.path(dir)).into_iter().filter(|path| path.extension().is_some_and(|e| e == "shard"));
    let name = |path: &std::path::Path| path.file_name().unwrap().to_string_lossy().into_owned();
    shards.map(|path| (name(&path), fs::read(path).unwrap())).collect()
}

/// The documents of a text, one JSON object or row of CSV each.
fn rows(text: &str, row: impl Fn(&str) -> String) -> String {
    text.trim_end().split("\n\n").map(row).collect()
}

#[test]
fn the_same_text_in_any_clothes_becomes_the_same_shards() {
    let place = Workplace::with_corpus();
    let text = corpus(60);
    place.line(&format!("prepare --input text.txt {OPTIONS} --out plain")).done();
    let want = shards(&place, "plain");
    let quoted = |document: &str| format!("{:?}", document.to_owned() + "\n");
    place.write("rows", rows(&text, |document| format!("{{\"a\": {{\"b\": {}}}}}\n", quoted(document))));
    place.write(
        "table.csv",
        "id,body\n".to_owned() + &rows(&text, |document| format!("1,\"{document}\n\"\n")),
    );
    let units: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    place.write("utf16.txt", units);
    for (input, option) in
        [("rows", "--text-field a.b"), ("table.csv", "--text-field body"), ("utf16.txt", "")]
    {
        place.line(&format!("prepare --input {input} {OPTIONS} {option} --out {input}.data")).done();
        assert!(shards(&place, &format!("{input}.data")) == want, "{input}");
    }
    let error = place.line(&format!("prepare --input table.csv {OPTIONS} --out new")).failed();
    assert!(error.contains("table.csv: is a table") && error.ends_with("--text-field: id, body"), "{error}");
    let error = place.line(&format!("prepare --input rows {OPTIONS} --text-field a.c --out new")).failed();
    assert!(
        error.contains("rows: line 1, column ") && error.contains("missing field `a.c`, found a.b"),
        "{error}"
    );
    let error =
        place.line(&format!("prepare --input rows {OPTIONS} --text-field a --out rows.data")).failed();
    assert!(error.contains("text_field is \"a.b\" there and \"a\" here"), "{error}");
}

#[test]
fn a_pipe_is_read_once_and_known_again() {
    let place = Workplace::with_corpus();
    place.line(&format!("prepare --input text.txt {OPTIONS} --out plain")).done();
    let run = |line: &str, text: &[u8]| {
        let mut command = place.command(&line.split_whitespace().collect::<Vec<_>>());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that refuses its arguments reads nothing.
        let _ = child.stdin.take().unwrap().write_all(text);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    };
    let text = corpus(60);
    for input in ["-", "/dev/stdin"] {
        let line = format!("prepare --input {input} {OPTIONS} --out piped");
        let (code, said) = run(&line, text.as_bytes());
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said.contains("it was there already"), input != "-", "{said}");
    }
    assert!(shards(&place, "piped") == shards(&place, "plain"));
    let left: Vec<_> =
        files(&place.path("piped")).into_iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("spooled")), "{left:?}");
    // Vocabulary and sequences need the text twice.
    let trained = "--train-vocab 100 --max-seq-length 32 --out trained";
    let (code, said) = run(&format!("prepare --input - {trained}"), text.as_bytes());
    assert_eq!(code, Some(0), "{said}");
    for (line, text, want) in [
        (format!("prepare --input - {OPTIONS} --out new"), "", "-: is empty: nothing came through the pipe"),
        (format!("prepare --input - - {OPTIONS} --out new"), "text", "or it was named twice"),
        (format!("prepare --input - {OPTIONS} --out new"), "\n \n", "-: the input holds no text"),
    ] {
        let (code, said) = run(&line, text.as_bytes());
        assert!(code == Some(1) && said.contains(want), "{said}");
    }
    assert!(!place.path("new").exists() && !place.path("new.preparing").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn pipes_of_the_shell_and_named_ones_are_read() {
    let place = Workplace::with_corpus();
    place.line(&format!("prepare --input text.txt {OPTIONS} --out plain")).done();
    let launcher = env!("CARGO_BIN_EXE_launcher");
    let script = format!(
        "mkfifo named; cat text.txt > named & {launcher} prepare --input named {OPTIONS} --out a && {launcher} prepare \
         --input <(cat text.txt) {OPTIONS} --out b"
    );
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(place.path(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for dir in ["a", "b"] {
        assert!(shards(&place, dir) == shards(&place, "plain"), "{dir}");
    }
}

#[test]
fn bad_rows_end_a_preparation_or_are_left_out_and_counted() {
    let place = Workplace::with_corpus();
    let rows = rows(&corpus(40), |document| format!("{{\"text\": {document:?}}}\n"));
    place.write("good.jsonl", &rows);
    place.line(&format!("prepare --input good.jsonl {OPTIONS} --out good")).done();
    let halves = "{\"text\": \"a \\ud800 cat and \\ud83d\"}\n";
    for (bad, want) in [
        ("[\"x\"]", "invalid type: sequence, expected an object"),
        ("\"x\"", "expected an object"),
        ("{}", "missing field `text`, found none"),
        ("{\"text\": 3}", "expected a string"),
        ("{\"text\": \"cut", "EOF while parsing a string"),
        ("{\"id\": 1, \"body\": \"x\"}", "missing field `text`, found body, id"),
    ] {
        place.write("bad.jsonl", format!("{rows}\n{bad}\n{halves}"));
        let prepare = format!("prepare --input bad.jsonl {OPTIONS}");
        let error = place.line(&format!("{prepare} --out new")).failed();
        let line = rows.lines().count() + 2;
        assert!(
            error.starts_with(&format!("bad.jsonl: line {line}, column ")) && error.contains(want),
            "{error}"
        );
        assert!(error.contains("--skip-bad") && error.contains("--text-field"), "{error}");
    }
    let prepare = format!("prepare --input bad.jsonl {OPTIONS} --out skipped");
    let said = place.line(&format!("{prepare} --skip-bad")).done();
    assert!(said.contains("41 documents"), "{said}");
    assert!(said.contains("1 bad row was left out; the first: bad.jsonl: line 42, column "), "{said}");
    assert!(said.contains("2 stretches of bytes were not UTF-8"), "{said}");
    let error = place.line(&prepare).failed();
    assert!(error.contains("bad rows were left out of it"), "{error}");
    let said = place.line(&format!("{prepare} --skip-bad")).done();
    assert!(said.contains("it was there already"), "{said}");
    // Where nothing is bad the option changes nothing.
    let said = place.line(&format!("prepare --input good.jsonl {OPTIONS} --skip-bad --out good")).done();
    assert!(said.contains("it was there already"), "{said}");
    // The same through a configuration, and in parts.
    for i in 1..=2 {
        place.line(&format!("{prepare}-{i} --skip-bad --part {i}/2")).done();
    }
    let said = place.line("prepare --merge skipped-2 skipped-1 --out merged").done();
    assert!(said.contains("1 bad row was left out"), "{said}");
    assert_eq!(
        fs::read(place.path("merged/manifest.json")).unwrap(),
        fs::read(place.path("skipped/manifest.json")).unwrap()
    );
    let config = "--config tiny.toml --steps 1 --set data.prepare.input=[\"bad.jsonl\"]";
    let error = place.line(config).failed();
    assert!(error.contains("bad.jsonl: line 42") && error.contains("data.prepare.skip_bad"), "{error}");
    let ran = place.line(&format!("{config} --set data.prepare.skip_bad=true"));
    assert!(ran.stderr.contains("1 bad row was left out"), "{}", ran.stderr);
    ran.done();
}

#[test]
fn files_without_text_are_counted_and_json_by_another_name_is_told() {
    let place = Workplace::with_corpus();
    fs::create_dir(place.path("in")).unwrap();
    place.write("in/_SUCCESS", "");
    place.write("in/blank.txt", "\n \n");
    place.write("in/text.txt", corpus(9));
    place.write("in/rows.txt", "{\"text\": \"the cat sees a dog .\"}\n".repeat(3));
    for (recipe, eval) in
        [("standard", "--eval-fraction 0.2"), ("mlperf", "--eval-input in/text.txt --dupe-factor 1")]
    {
        let input = if recipe == "mlperf" { "in/_SUCCESS in/blank.txt text.txt" } else { "in" };
        let line =
            format!("prepare --recipe {recipe} --input {input} --vocab vocab.txt --max-seq-length 32 {eval}");
        let ran = place.line(&format!("{line} --out {recipe}"));
        assert!(ran.stdout.contains("2 files held no text"), "{}", ran.stdout);
        assert_eq!(
            ran.stderr.contains("in/rows.txt: the lines look like JSON objects"),
            recipe == "standard",
            "{}",
            ran.stderr
        );
        ran.done();
        for i in 1..=2 {
            place.line(&format!("{line} --part {i}/2 --out {recipe}-{i}")).done();
        }
        let said = place.line(&format!("prepare --merge {recipe}-1 {recipe}-2 --out {recipe}-merged")).done();
        assert!(said.contains("2 files held no text"), "{said}");
    }
    let error = place.line(&format!("prepare --input in/_SUCCESS in/blank.txt {OPTIONS} --out new")).failed();
    assert!(error.contains("the input holds no text") && error.contains("(2 files held no text)"), "{error}");
}

#[cfg(unix)]
#[test]
fn what_may_not_be_read_gets_the_remedy_of_reading() {
    use std::os::unix::fs::PermissionsExt;
    let place = Workplace::with_corpus();
    let path = place.write("secret.txt", corpus(3));
    fs::set_permissions(&path, fs::Permissions::from_mode(0)).unwrap();
    if fs::read(&path).is_ok() {
        return; // root reads everything
    }
    let error = place.line(&format!("prepare --input secret.txt {OPTIONS} --out new")).failed();
    assert!(
        error.starts_with("secret.txt: cannot open the input") && error.contains("you may not read it"),
        "{error}"
    );
}
