//! The broker's log: its own lines and the worker's, to stderr or syslog.
//!
//! Both outputs are open before the broker confines itself. Writing never waits long for a reader: lines that an
//! output can't take are counted and the loss is told when it takes lines again. Everything is escaped, whoever
//! wrote it: an operator's terminal and log files see no control characters.
//!
//! - `mod.rs`: the logger of the process; `output.rs`: the two outputs; `clock.rs`: time stamps;
//! - `escape.rs`: text for one line; `forward.rs`: the worker's pipe → lines, limited in number.

mod clock;
mod escape;
mod forward;
mod output;

use std::sync::OnceLock;

use log::{Level, Log, Metadata, Record};

use crate::config::LogConfig;
pub use forward::{Forwarder, LineLimit};
use output::{Origin, Output};

struct BrokerLogger {
    output: OnceLock<Output>,
}

static LOGGER: BrokerLogger = BrokerLogger { output: OnceLock::new() };

/// Opens the output and makes it the process's logger. If syslog can't be reached the log goes to stderr, and
/// says so. A second call changes the level only.
pub fn init(config: LogConfig) {
    log::set_max_level(config.level);
    let mut complaint = None;
    let output = LOGGER.output.get_or_init(|| {
        if !config.syslog {
            return Output::stderr();
        }
        Output::syslog().unwrap_or_else(|error| {
            complaint = Some(error);
            Output::stderr()
        })
    });
    // An error means that a logger is set already: this one.
    let _ = log::set_logger(&LOGGER);
    if let Some(error) = complaint {
        let text = format!("cannot log to syslog at {}: {error}; logging to stderr", output::SYSLOG_SOCKET);
        output.write(Level::Warn, Origin::Broker, &text);
    }
}

/// Writes a line of the worker, already escaped.
pub fn write_worker_line(level: Level, text: &str) {
    if level <= log::max_level()
        && let Some(output) = LOGGER.output.get()
    {
        output.write(level, Origin::Worker, text);
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

    fn flush(&self) {}
}
