//! The journal's native protocol: a datagram with one `FIELD=value` a line.
//!
//! All text is escaped, so it has no newline and needs no binary form. The fields that all lines of a daemon share
//! are made once.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::os::unix::net::UnixDatagram;

use log::Level;
use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::escape::escape;
use super::output::Origin;
use crate::protocol::log_line::severity;

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Which device the lines are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The shared directory.
    pub share: Vec<u8>,
    /// Its tag, or else its socket.
    pub device: Vec<u8>,
}

impl Subject {
    fn fields(&self) -> String {
        format!(
            "SYSLOG_IDENTIFIER=virtiofsd\nSHARE={}\nDEVICE={}\n",
            escape(&self.share),
            escape(&self.device)
        )
    }
}

/// A connection to the journal.
#[derive(Debug)]
pub struct Journal {
    /// Does not block.
    pub socket: UnixDatagram,
    shared: String,
}

impl Journal {
    /// The journal, if `stream` (the variable `JOURNAL_STREAM`) says that standard error goes there. Connects now,
    /// since a confined broker can't.
    ///
    /// # Errors
    /// When standard error goes to a journal that can't be reached.
    pub fn of_stderr(stream: Option<OsString>, subject: &Subject) -> io::Result<Option<Self>> {
        let Some(stream) = stream.and_then(|stream| stream.into_string().ok()) else { return Ok(None) };
        let status = fstat(io::stderr())?;
        if stream != format!("{}:{}", status.st_dev, status.st_ino) {
            return Ok(None);
        }
        let socket = UnixDatagram::unbound()?;
        socket.connect(SOCKET)?;
        Ok(Some(Self::over(socket, subject)))
    }

    /// Over a connected socket.
    pub(super) fn over(socket: UnixDatagram, subject: &Subject) -> Self {
        Self { socket, shared: subject.fields() }
    }

    /// The datagram of one line of escaped text.
    pub fn entry(&self, level: Level, origin: Origin, text: &str) -> String {
        let role = match origin {
            Origin::Broker => "broker",
            Origin::Worker => "worker",
            Origin::Follower => "follower",
        };
        let mut entry = format!("MESSAGE={text}\nPRIORITY={}\nROLE={role}\n{}", severity(level), self.shared);
        if let Some(errno) = errno_in(text) {
            // Writing into a String can't fail.
            let _ = writeln!(entry, "ERRNO={}", errno as i32);
        }
        entry
    }
}

/// Highest number of an error on Linux (`EHWPOISON`).
const MAX_ERRNO: i32 = 133;

/// The first error that a message names, in the form that ours have: `ENOENT: …` or `(os error 2)`.
fn errno_in(text: &str) -> Option<Errno> {
    if let Some((_, rest)) = text.split_once("(os error ") {
        let number = rest.split(')').next()?.parse::<i32>().ok()?;
        return Some(Errno::from_raw(number)).filter(|errno| *errno != Errno::UnknownErrno);
    }
    let mut words = text.split(' ').filter_map(|word| word.strip_suffix(':'));
    words.find_map(|word| {
        if !word.starts_with('E') {
            return None;
        }
        (1..=MAX_ERRNO).map(Errno::from_raw).find(|errno| format!("{errno:?}") == word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        let subject = Subject { share: b"/srv/a\nb".into(), device: b"tag".into() };
        Journal::over(UnixDatagram::unbound().unwrap(), &subject)
    }

    #[test]
    fn an_entry_has_a_line_for_each_field() {
        let entry = journal().entry(Level::Warn, Origin::Worker, "cannot open x: ENOENT: No such file");
        let fields: Vec<_> = entry.lines().collect();
        assert_eq!(
            fields,
            [
                "MESSAGE=cannot open x: ENOENT: No such file",
                "PRIORITY=4",
                "ROLE=worker",
                "SYSLOG_IDENTIFIER=virtiofsd",
                "SHARE=/srv/a\\nb",
                "DEVICE=tag",
                "ERRNO=2",
            ]
        );
        assert!(entry.ends_with('\n'));
        assert!(!journal().entry(Level::Info, Origin::Broker, "ready").contains("ERRNO"));
    }

    #[test]
    fn errors_are_found_in_both_forms() {
        assert_eq!(errno_in("cannot x: EACCES: Permission denied"), Some(Errno::EACCES));
        assert_eq!(errno_in("cannot x: No such file or directory (os error 2)"), Some(Errno::ENOENT));
        for none in ["", "EVERYTHING: fine", "ENOENT", "(os error x)", "(os error 99999)", "E:"] {
            assert_eq!(errno_in(none), None, "{none}");
        }
        assert_eq!(format!("{}", Errno::from_raw(MAX_ERRNO)).split(':').next(), Some("EHWPOISON"));
    }

    #[test]
    fn only_a_stream_that_is_standard_error_counts() {
        let subject = Subject::default();
        assert!(Journal::of_stderr(None, &subject).unwrap().is_none());
        assert!(Journal::of_stderr(Some("1:1".into()), &subject).unwrap().is_none());
        assert!(Journal::of_stderr(Some("".into()), &subject).unwrap().is_none());
    }
}
