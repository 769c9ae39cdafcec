//! The follower's log: one line, one write into the pipe that the broker reads. What the broker does not take in time is
//! lost; nothing here waits.

use std::fmt::Write as _;
use std::os::fd::BorrowedFd;

use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};

use crate::protocol::log_line::{MAX_LINE, severity};

struct PipeLogger(BorrowedFd<'static>);

/// Makes `pipe`, which does not block, the destination of all log lines of this process.
///
/// # Errors
/// When the process already has a logger.
pub fn init(pipe: BorrowedFd<'static>, level: LevelFilter) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(PipeLogger(pipe)))?;
    log::set_max_level(level);
    Ok(())
}

/// One line: what would end it, or is not for a terminal, is written in another way.
fn line(level: Level, text: &str) -> String {
    let mut line = format!("<{}>", severity(level));
    for c in text.chars() {
        if line.len() + 12 > MAX_LINE {
            break;
        }
        if c.is_control() {
            // A String takes everything.
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

impl Log for PipeLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(record.level(), &record.args().to_string());
            let _ = nix::unistd::write(self.0, line.as_bytes());
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_that_fits() {
        assert_eq!(line(Level::Warn, "a\nb\u{1b}c"), "<4>a\\nb\\u{1b}c\n");
        for text in ["x".repeat(5000), "\u{9b}".repeat(5000), "\u{1f4a9}".repeat(5000)] {
            let line = line(Level::Info, &text);
            assert!(line.len() <= MAX_LINE && line.ends_with('\n') && line.matches('\n').count() == 1);
        }
    }
}
