//! The worker's logger: one line, one `write(2)` into the log pipe.
//!
//! The pipe's write end does not block: when the broker is behind, lines are lost, counted, and the loss is
//! logged with the next line that fits. So logging never holds up a queue thread, takes no lock and allocates
//! nothing. Control characters are escaped here so that one message stays one line; the broker, which does not
//! trust this process, escapes again.

use std::fmt::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{Log, Metadata, Record, SetLoggerError};

use crate::protocol::log_line::{LogLevel, MAX_LINE, severity};

/// The logger of the process.
struct PipeLogger {
    pipe: BorrowedFd<'static>,
    lost: AtomicU64,
}

/// Makes `pipe` the destination of all log lines of this process.
///
/// # Errors
/// When the process already has a logger.
pub fn init(pipe: BorrowedFd<'static>) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(PipeLogger { pipe, lost: AtomicU64::new(0) }))?;
    log::set_max_level(log::LevelFilter::Info);
    Ok(())
}

/// Sets the least severe level that is written.
pub fn set_level(level: LogLevel) {
    log::set_max_level(level.into());
}

/// Makes of a panic's message one line of the log, which says whose doing it may be: in `control`, the thread of the
/// front end's messages, a front end's.
pub fn log_panics(control: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a thread without a name");
        let blame = if name == control {
            "the front end has probably sent what this program, or its vhost-user library, does not foresee"
        } else {
            "this is a bug; please report it"
        };
        log::error!("{name} broke down at {place}: {message}; {blame}");
    }));
}

impl PipeLogger {
    /// Writes a whole line, or none of it.
    fn write(&self, line: &[u8]) -> bool {
        nix::unistd::write(self.pipe, line).is_ok_and(|written| written == line.len())
    }

    /// Reports lines lost earlier, if the pipe has room again.
    fn report_lost(&self) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost == 0 {
            return;
        }
        let mut line = Line::new(log::Level::Warn);
        line.push(format_args!("{lost} log lines lost: the log pipe was full"));
        if !self.write(line.finish()) {
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
    }
}

impl Log for PipeLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        self.report_lost();
        let mut line = Line::new(record.level());
        line.push(*record.args());
        if !self.write(line.finish()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// A line being written, on the stack; what does not fit is cut.
struct Line {
    bytes: [u8; MAX_LINE],
    len: usize,
}

impl Line {
    fn new(level: log::Level) -> Self {
        let mut line = Self { bytes: [0; MAX_LINE], len: 3 };
        line.bytes[..3].copy_from_slice(&[b'<', b'0' + severity(level), b'>']);
        line
    }

    /// A message's own failure to format itself cuts the line.
    fn push(&mut self, args: fmt::Arguments<'_>) {
        let _ = self.write_fmt(args);
    }

    fn finish(&mut self) -> &[u8] {
        self.bytes[self.len] = b'\n';
        &self.bytes[..=self.len]
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.chars().flat_map(escaped) {
            // The last byte stays free for the newline.
            if self.len == MAX_LINE - 1 {
                return Err(fmt::Error);
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

/// The UTF-8 bytes of a character, or of its escape if it is a control character.
fn escaped(c: char) -> impl Iterator<Item = u8> {
    let (escape, plain) = if c.is_control() { (Some(c.escape_default()), None) } else { (None, Some(c)) };
    let mut utf8 = [0; 4];
    let len = plain.map_or(0, |c| c.encode_utf8(&mut utf8).len());
    escape.into_iter().flatten().map(|c| c as u8).chain(utf8.into_iter().take(len))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsFd, OwnedFd};

    use log::Level;
    use nix::fcntl::OFlag;

    use super::*;

    fn logger() -> (std::fs::File, PipeLogger) {
        let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        let write: &'static OwnedFd = Box::leak(Box::new(write));
        (read.into(), PipeLogger { pipe: write.as_fd(), lost: AtomicU64::new(0) })
    }

    fn log(logger: &PipeLogger, level: Level, text: &str) {
        log::set_max_level(log::LevelFilter::Debug);
        logger.log(&Record::builder().level(level).args(format_args!("{text}")).build());
    }

    fn available(pipe: &mut std::fs::File) -> String {
        let mut bytes = vec![0; 1 << 20];
        let len = pipe.read(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_message_is_one_line() {
        let (mut pipe, logger) = logger();
        log(&logger, Level::Warn, "name \"a\nb\x1b[31m\u{85}ü\"");
        assert_eq!(available(&mut pipe), "<4>name \"a\\nb\\u{1b}[31m\\u{85}ü\"\n");
        log(&logger, Level::Trace, "below the level");
        log(&logger, Level::Debug, &"x".repeat(3 * MAX_LINE));
        let line = available(&mut pipe);
        assert_eq!(line.len(), MAX_LINE);
        assert!(line.starts_with("<7>xxx") && line.ends_with("x\n"));
    }

    #[test]
    fn a_full_pipe_loses_lines_and_says_so() {
        let (mut pipe, logger) = logger();
        let mut sent = 0;
        while logger.lost.load(Ordering::Relaxed) < 3 {
            log(&logger, Level::Info, &"y".repeat(1000));
            sent += 1;
            assert!(sent < 10_000, "a pipe of this size never fills");
        }
        let arrived = available(&mut pipe).lines().count();
        assert_eq!(arrived, sent - 3);
        log(&logger, Level::Info, "after");
        assert_eq!(available(&mut pipe), "<4>3 log lines lost: the log pipe was full\n<6>after\n");
    }
}
