//! Where choices are kept between processes.

use super::choices::Choices;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files of choices: the first one that is there is read, all are written.
pub(super) struct Kept {
    files: Vec<PathBuf>,
    /// What did not work, for the user.
    pub notice: Option<String>,
}

impl Kept {
    /// The choices of the first file that is there. One that is damaged or of another machine is passed over, and the notice
    /// says so.
    pub fn open(files: &[PathBuf], machine: &str) -> (Self, Choices) {
        let mut kept = Self { files: files.to_vec(), notice: None };
        for file in files {
            let Ok(text) = fs::read_to_string(file) else { continue };
            match Choices::from_text(&text, machine) {
                Ok(choices) => return (kept, choices),
                Err(error) => {
                    kept.notice = Some(format!("{}: {error}; algorithms are chosen anew", file.display()));
                }
            }
        }
        (kept, Choices::default())
    }

    /// Writes all files anew. Training goes on without them, so a failure is a notice.
    pub fn save(&mut self, text: &str) {
        for file in &self.files {
            if let Err(error) = replace(file, text) {
                let file = file.display();
                self.notice = Some(format!(
                    "{file}: cannot be written ({error}); a later run may choose other algorithms and end with other bits"
                ));
            }
        }
    }
}

/// A reader finds the old file or the new one, whole.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let staged = file.with_file_name(name);
    let written =
        fs::File::create(&staged).and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()));
    let done = written.and_then(|()| fs::rename(&staged, file));
    if done.is_err() {
        // What is half written is of no use; that it cannot be removed either is told by the error already.
        let _ = fs::remove_file(&staged);
    }
    done
}
