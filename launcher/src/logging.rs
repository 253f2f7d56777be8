//! Messages of the engine (crate `tracing`) on standard error; `RUST_LOG` chooses which.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Warnings and errors are shown unless `RUST_LOG` says otherwise.
pub fn start() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
}
