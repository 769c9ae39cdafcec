//! The worker's end of the log: bytes from its pipe → at most so many escaped lines.
//!
//! A hostile worker may write anything: no newline for a gigabyte, control characters, ten million lines. A line is
//! cut at a fixed length, and a token bucket lets lines through; what it holds back is counted and told.

use std::time::{Duration, Instant};

use log::{Level, LevelFilter};

use super::escape::escape;
use crate::protocol::log_line::{self, MAX_LINE};

/// How many lines of the worker may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineLimit {
    /// At once, after a quiet time.
    pub burst: u32,
    /// For each second, in the long run; not 0.
    pub per_second: u32,
}

impl LineLimit {
    /// An operator who asks for debug or trace lines, several a request, gets them.
    pub fn for_level(level: LevelFilter) -> Self {
        if level >= LevelFilter::Debug {
            Self { burst: 100_000, per_second: 20_000 }
        } else {
            Self { burst: 1_000, per_second: 50 }
        }
    }
}

/// Splits what the worker writes into lines, and limits them.
pub struct Forwarder {
    limit: LineLimit,
    /// Lines that may pass now.
    tokens: u32,
    /// When `tokens` was last added to.
    refilled: Instant,
    suppressed: u64,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// The rest of an overlong line is being left out.
    skipping: bool,
}

impl Forwarder {
    /// A forwarder with a full bucket.
    pub fn new(limit: LineLimit, now: Instant) -> Self {
        let partial = Vec::with_capacity(MAX_LINE);
        Self { limit, tokens: limit.burst, refilled: now, suppressed: 0, partial, skipping: false }
    }

    /// Takes what came from the pipe and hands complete lines to `log`.
    pub fn feed(&mut self, bytes: &[u8], now: Instant, log: &mut dyn FnMut(Level, &str)) {
        self.refill(now);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.append(end, log);
                    self.end_line(log);
                }
                None => self.append(piece, log),
            }
        }
    }

    /// Hands out what is left when the pipe has ended: the last, unfinished line, and the number of lines that
    /// were held back.
    pub fn finish(&mut self, log: &mut dyn FnMut(Level, &str)) {
        self.end_line(log);
        self.tell_suppressed(log);
    }

    fn append(&mut self, bytes: &[u8], log: &mut dyn FnMut(Level, &str)) {
        if self.skipping {
            return;
        }
        let room = MAX_LINE - self.partial.len();
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room {
            self.emit(log);
            self.skipping = true;
        }
    }

    fn end_line(&mut self, log: &mut dyn FnMut(Level, &str)) {
        if !self.skipping && !self.partial.is_empty() {
            self.emit(log);
        }
        self.skipping = false;
    }

    fn emit(&mut self, log: &mut dyn FnMut(Level, &str)) {
        if self.tokens == 0 {
            self.suppressed += 1;
        } else {
            self.tell_suppressed(log);
            self.tokens -= 1;
            let (level, text) = log_line::parse(&self.partial);
            log(level, &escape(text));
        }
        self.partial.clear();
    }

    fn tell_suppressed(&mut self, log: &mut dyn FnMut(Level, &str)) {
        if self.suppressed > 0 {
            log(Level::Warn, &format!("suppressed {} lines of the worker's log", self.suppressed));
            self.suppressed = 0;
        }
    }

    /// Adds the tokens of the time since the last whole one.
    fn refill(&mut self, now: Instant) {
        let interval = Duration::from_secs(1) / self.limit.per_second.max(1);
        let elapsed = now.saturating_duration_since(self.refilled);
        let new = u32::try_from(elapsed.as_nanos() / interval.as_nanos().max(1)).unwrap_or(u32::MAX);
        if new >= self.limit.burst {
            self.refilled = now;
        } else {
            self.refilled += interval * new;
        }
        self.tokens = self.tokens.saturating_add(new).min(self.limit.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(forwarder: &mut Forwarder, bytes: &[u8], now: Instant) -> Vec<(Level, String)> {
        let mut lines = Vec::new();
        forwarder.feed(bytes, now, &mut |level, text| lines.push((level, text.to_owned())));
        lines
    }

    fn roomy(now: Instant) -> Forwarder {
        Forwarder::new(LineLimit { burst: 1000, per_second: 1000 }, now)
    }

    #[test]
    fn lines_may_come_in_any_pieces() {
        let now = Instant::now();
        let text = b"<4>first\n<6>second\n\nthird\n<7>unfinished";
        let want = vec![
            (Level::Warn, "first".to_owned()),
            (Level::Info, "second".to_owned()),
            (Level::Error, "third".to_owned()),
            (Level::Debug, "unfinished".to_owned()),
        ];
        for size in 1..=text.len() {
            let mut forwarder = roomy(now);
            let mut got: Vec<_> =
                text.chunks(size).flat_map(|piece| lines(&mut forwarder, piece, now)).collect();
            forwarder.finish(&mut |level, text| got.push((level, text.to_owned())));
            assert_eq!(got, want, "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_end_is_cut_and_takes_no_memory() {
        let now = Instant::now();
        let mut forwarder = roomy(now);
        let mut got = Vec::new();
        for _ in 0..1000 {
            got.extend(lines(&mut forwarder, &[b'x'; 4096], now));
        }
        got.extend(lines(&mut forwarder, b"rest\n<6>next\n", now));
        assert_eq!(got.len(), 2);
        assert_eq!(got[0].1.len(), MAX_LINE);
        assert_eq!(got[1], (Level::Info, "next".to_owned()));
        assert!(forwarder.partial.capacity() <= 2 * MAX_LINE);
    }

    #[test]
    fn a_flood_is_held_back_and_counted() {
        let start = Instant::now();
        let mut forwarder = Forwarder::new(LineLimit { burst: 10, per_second: 2 }, start);
        let flood = b"<6>x\n".repeat(100);
        assert_eq!(lines(&mut forwarder, &flood, start).len(), 10);
        assert!(lines(&mut forwarder, b"<6>y\n", start + Duration::from_millis(499)).is_empty());
        let got = lines(&mut forwarder, b"<6>z\n<6>late\n", start + Duration::from_millis(500));
        assert_eq!(got[0], (Level::Warn, "suppressed 91 lines of the worker's log".to_owned()));
        assert_eq!(got[1], (Level::Info, "z".to_owned()));
        assert_eq!(got.len(), 2);
        let mut end = Vec::new();
        forwarder.finish(&mut |_, text| end.push(text.to_owned()));
        assert_eq!(end, ["suppressed 1 lines of the worker's log"]);
        assert_eq!(lines(&mut forwarder, &flood, start + Duration::from_secs(3600)).len(), 10);
    }
}
