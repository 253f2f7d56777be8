//! How a command ends: its exit code, and its error as one line.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// All done.
pub const DONE: u8 = 0;
/// Anything that is neither wrong usage nor a signal.
pub const FAILED: u8 = 1;
/// The command line cannot be understood; clap's number.
pub const USAGE: u8 = 2;

/// The code of a run that a signal ended.
pub fn by_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(FAILED)
}

/// Prints the error, if there is one, as one line.
pub fn report(result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        // `launcher inspect … | head` has all it wanted
        Err(error) if is_broken_pipe(&error) => ExitCode::from(DONE),
        Err(error) => {
            say(&format!("error: {}", one_line(&error.to_string())));
            ExitCode::from(FAILED)
        }
    }
}

/// Whether writing to standard output failed because nobody reads it any more. An error of a file comes as
/// [`engine::Error`], not as a bare [`std::io::Error`].
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

/// Writes a line to standard error; that nobody may read it is no reason to end.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
