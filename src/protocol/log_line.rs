//! How a line of the worker's log looks in the log pipe: `<N>text\n`, N being the syslog severity (as in
//! `sd-daemon(3)`).
//!
//! A line without such a start is a panic's message or a library's, and counts as an error. The worker escapes
//! and shortens what it writes; the broker does both again.

use log::{Level, LevelFilter};
use serde::{Deserialize, Serialize};

/// Longest line in bytes, with its start and its newline; below `PIPE_BUF`, so that lines of several threads
/// never mix.
pub const MAX_LINE: usize = 1024;

/// The worker's level of detail, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Errors.
    Error,
    /// And warnings.
    Warn,
    /// And what an operator wants to know.
    Info,
    /// And each request.
    Debug,
    /// And everything.
    Trace,
}

impl From<LevelFilter> for LogLevel {
    fn from(filter: LevelFilter) -> Self {
        match filter {
            LevelFilter::Off => Self::Off,
            LevelFilter::Error => Self::Error,
            LevelFilter::Warn => Self::Warn,
            LevelFilter::Info => Self::Info,
            LevelFilter::Debug => Self::Debug,
            LevelFilter::Trace => Self::Trace,
        }
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// The syslog severity of `level`; trace shares debug's, below which syslog has none.
pub fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Splits a line (without its newline) into level and text.
pub fn parse(line: &[u8]) -> (Level, &[u8]) {
    let [b'<', digit, b'>', text @ ..] = line else { return (Level::Error, line) };
    match digit {
        b'0'..=b'3' => (Level::Error, text),
        b'4' => (Level::Warn, text),
        b'5' | b'6' => (Level::Info, text),
        b'7' => (Level::Debug, text),
        _ => (Level::Error, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts() {
        assert_eq!(parse(b"<4>x"), (Level::Warn, &b"x"[..]));
        assert_eq!(parse(b"<6>"), (Level::Info, &b""[..]));
        assert_eq!(parse(b"<8>x"), (Level::Error, &b"<8>x"[..]));
        assert_eq!(parse(b"<4x"), (Level::Error, &b"<4x"[..]));
        assert_eq!(parse(b""), (Level::Error, &b""[..]));
        assert_eq!(parse(b"thread panicked"), (Level::Error, &b"thread panicked"[..]));
    }

    #[test]
    fn severities_come_back() {
        for level in [Level::Error, Level::Warn, Level::Info, Level::Debug] {
            let line = format!("<{}>text", severity(level));
            assert_eq!(parse(line.as_bytes()), (level, &b"text"[..]));
        }
    }
}
