//! The broker's log: its own lines and the worker's, to stderr, to the journal (if that is where stderr goes: with
//! fields of its own for share, device and error) or to syslog.
//!
//! All outputs are open before the broker confines itself. Writing never waits long for a reader: lines that an
//! output can't take are counted and the loss is told when it takes lines again. Everything is escaped, whoever
//! wrote it: an operator's terminal and log files see no control characters.
//!
//! Before the process ends, [`log::Log::flush`] is called: see [`output::Output::flush`].
//!
//! - `mod.rs`: the logger of the process; `output.rs`: the outputs; `journal.rs`: the journal's protocol; `clock.rs`: time stamps;
//! - `escape.rs`: text for one line; `forward.rs`: the worker's pipe → lines, limited in number.

mod clock;
mod escape;
mod forward;
mod journal;
mod output;

use std::sync::OnceLock;

use log::{Level, Log, Metadata, Record};

use crate::config::LogConfig;
pub use forward::{Forwarder, LineLimit};
use journal::Journal;
pub use journal::Subject;
use output::{Origin, Output};

struct BrokerLogger {
    output: OnceLock<Output>,
}

static LOGGER: BrokerLogger = BrokerLogger { output: OnceLock::new() };

/// Opens the output and makes it the process's logger. If syslog or the journal can't be reached the log goes to
/// stderr, and says so. A second call changes the level only.
pub fn init(config: LogConfig, subject: &Subject) {
    log::set_max_level(config.level);
    let mut complaint = None;
    let output = LOGGER.output.get_or_init(|| {
        open(config, subject).unwrap_or_else(|error| {
            complaint = Some(error);
            Output::stderr()
        })
    });
    // An error means that a logger is set already: this one.
    let _ = log::set_logger(&LOGGER);
    if let Some(error) = complaint {
        let what = if config.syslog { output::SYSLOG_SOCKET } else { "the journal" };
        let text = format!("cannot log to {what}: {error}; logging to stderr");
        output.write(Level::Warn, Origin::Broker, &text);
    }
}

fn open(config: LogConfig, subject: &Subject) -> std::io::Result<Output> {
    if config.syslog {
        return Output::syslog();
    }
    let journal = Journal::of_stderr(std::env::var_os("JOURNAL_STREAM"), subject)?;
    Ok(journal.map_or_else(Output::stderr, Output::journal))
}

/// Writes a line of the worker, already escaped.
pub fn write_worker_line(level: Level, text: &str) {
    write_line(level, Origin::Worker, text);
}

/// Writes a line of the process that follows mounts, already escaped.
pub fn write_follower_line(level: Level, text: &str) {
    write_line(level, Origin::Follower, text);
}

fn write_line(level: Level, origin: Origin, text: &str) {
    if level <= log::max_level()
        && let Some(output) = LOGGER.output.get()
    {
        output.write(level, origin, text);
    }
}

impl Log for BrokerLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata())
            && let Some(output) = self.output.get()
        {
            let text = record.args().to_string();
            output.write(record.level(), Origin::Broker, &escape::escape(text.as_bytes()));
        }
    }

    fn flush(&self) {
        if let Some(output) = self.output.get() {
            output.flush();
        }
    }
}
