//! Where a run and its data lie: neither in what another command replaces, nor in place of what no run wrote.

use super::setup::CONFIG_FILE;
use crate::checkpoint;
use crate::config::Config;
use crate::data::shards::MANIFEST;
use crate::error::{During, Error, Result};
use crate::files::{check_writable, real};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What a run replaces or removes in its folder.
const OWN: [&str; 3] = ["model", "checkpoints", "tensorboard"];
/// Files that a run writes anew, and with what they begin.
const FILES: [(&str, &[u8]); 3] = [
    ("metrics.jsonl", b"{\"step\":"),
    ("mllog.txt", b":::MLLOG "),
    ("report.html", crate::report::BEGINNING),
];

/// Refuses a run in a folder of data or of a model, data in what a run replaces, and a run that would write over what none
/// has written.
pub fn check(config: &Config) -> Result<()> {
    let (run_name, data_name) = (&config.train.run, &config.data.dir);
    let (run, data) = (real(run_name), real(data_name));
    let other_run = "choose another folder with --run";
    if run.starts_with(&data) {
        let what = match run == data {
            true => "is the folder of the data, too".to_owned(),
            false => format!("lies in the folder of the data, {}", data_name.display()),
        };
        return Err(Error::file(run_name, format!("{what}; {other_run}")));
    }
    if let Some((dir, kind)) = run.ancestors().find_map(|dir| Some((dir, kind(dir)?))) {
        let what = match dir == run {
            true => format!("is the folder of {kind}"),
            false => format!("lies in the folder of {kind}, {}", dir.display()),
        };
        return Err(Error::file(run_name, format!("{what}; {other_run}")));
    }
    if let Some(own) = OWN.iter().find(|own| data.starts_with(run.join(own))) {
        let what = format!("the run {} keeps its own files in `{own}`", run_name.display());
        return Err(Error::file(
            data_name,
            format!("{what}; choose another folder for the data with --data"),
        ));
    }
    check_writable(run_name, "cannot create the run folder")?;
    check_files(run_name)
}

/// What a folder is, if a run in it would be in the way.
fn kind(dir: &Path) -> Option<&'static str> {
    let has = |name: &str| dir.join(name).is_file();
    let shards = ["train-00000.shard", "eval-00000.shard"];
    if (has(MANIFEST) || has("part.json")) && shards.iter().any(|shard| has(shard)) {
        Some("prepared data")
    } else if has("state.json") && has("optimizer.safetensors") {
        Some("a checkpoint")
    } else if has("config.json") && (has("model.safetensors") || has("pytorch_model.bin")) {
        Some("a model")
    } else {
        None
    }
}

fn check_files(run: &Path) -> Result<()> {
    for (name, beginning) in FILES {
        let path = run.join(name);
        // A pipe or a device holds nothing that could be lost.
        if !path.is_file() {
            continue;
        }
        let mut found = Vec::new();
        let file = File::open(&path).during("cannot open", &path)?;
        file.take(beginning.len() as u64).read_to_end(&mut found).during("cannot read", &path)?;
        // A kill may have left a part of it.
        if !beginning.starts_with(&found) {
            let what =
                "was written by no run and would be lost; move it away, or choose another folder with --run";
            return Err(Error::file(path, what));
        }
    }
    let model = run.join("model");
    if model.exists() && !run.join(CONFIG_FILE).exists() && !checkpoint::holds_any(run)? {
        let what = format!(
            "would be replaced, and no run made it: beside it lie neither {CONFIG_FILE} nor checkpoints; move it away, or \
             choose another folder with --run"
        );
        return Err(Error::file(model, what));
    }
    Ok(())
}

/// A name for a file that is kept: of this extension, or with a number before it where that is taken.
pub fn free(file: &Path, extension: &str) -> PathBuf {
    let names = (0u64..).map(|i| match i {
        0 => file.with_extension(extension),
        i => file.with_extension(format!("{i}.{extension}")),
    });
    names.into_iter().find(|name| fs::symlink_metadata(name).is_err()).unwrap_or_else(|| file.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(run: &Path, data: &Path) -> String {
        let mut config = Config::default();
        (config.train.run, config.data.dir) = (run.to_owned(), data.to_owned());
        check(&config).err().map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn a_run_and_its_data_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for file in ["data/manifest.json", "data/train-00000.shard", "hf/config.json", "hf/model.safetensors"]
        {
            fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            fs::write(at(file), "").unwrap();
        }
        fs::create_dir(at("empty")).unwrap();
        for (run, data, what) in [
            ("data", "data", "data: is the folder of the data, too; choose another folder with --run"),
            ("new/../data", "data", "is the folder of the data, too"),
            ("data/run", "data", "lies in the folder of the data"),
            ("new/a/run", "new", "lies in the folder of the data"),
            ("data/run", "other", "lies in the folder of prepared data"),
            ("hf", "data", "is the folder of a model"),
            ("hf/deep/run", "data", "lies in the folder of a model"),
            ("new", "new/model/data", "keeps its own files in `model`; choose another folder for the data"),
            ("new", "new/checkpoints/step-1", "keeps its own files in `checkpoints`"),
        ] {
            let said = said(&at(run), &at(data));
            assert!(said.contains(what), "{run}, {data}: {said}");
        }
        for (run, data) in [("new", "data"), ("new", "new/data"), (".", "data"), ("empty", "hf")] {
            assert_eq!(said(&at(run), &at(data)), "", "{run}, {data}");
        }
    }

    #[test]
    fn what_no_run_wrote_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let (run, data) = (dir.path().join("run"), dir.path().join("data"));
        fs::create_dir(&run).unwrap();
        for (name, own) in FILES {
            let path = run.join(name);
            for text in [&b"my notes of last year"[..], b"{\"loss\": 1}\n", b"<html>"] {
                fs::write(&path, text).unwrap();
                let said = said(&run, &data);
                assert!(said.contains(name) && said.contains("would be lost"), "{said}");
            }
            for text in [b"", own, &own[..3]] {
                fs::write(&path, text).unwrap();
                assert_eq!(said(&run, &data), "", "{name}");
            }
        }
        fs::create_dir(run.join("model")).unwrap();
        assert!(said(&run, &data).contains("run/model: would be replaced, and no run made it"));
        fs::write(run.join("config.toml"), "").unwrap();
        assert_eq!(said(&run, &data), "");

        let kept = free(&run.join("config.toml"), "before.toml");
        assert_eq!(kept, run.join("config.before.toml"));
        fs::write(&kept, "").unwrap();
        assert_eq!(free(&run.join("config.toml"), "before.toml"), run.join("config.1.before.toml"));
    }
}
