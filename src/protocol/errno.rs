//! An errno as it travels between the processes.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// The largest errno that Linux hands out (`MAX_ERRNO` of the kernel's `err.h`).
const MAX_ERRNO: u16 = 4095;

/// A Linux errno, `1..=4095`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Errno(u16);

impl Errno {
    /// Input/output error: for what has no errno of its own.
    pub const EIO: Self = Self(nix::errno::Errno::EIO as u16);

    /// The number, as in `errno.h`.
    pub fn code(self) -> i32 {
        i32::from(self.0)
    }
}

/// The number is not an errno.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} is not an errno (1..={MAX_ERRNO})")]
pub struct NotAnErrno(u16);

impl TryFrom<u16> for Errno {
    type Error = NotAnErrno;

    fn try_from(code: u16) -> Result<Self, NotAnErrno> {
        if (1..=MAX_ERRNO).contains(&code) { Ok(Self(code)) } else { Err(NotAnErrno(code)) }
    }
}

impl From<Errno> for u16 {
    fn from(errno: Errno) -> u16 {
        errno.0
    }
}

impl From<nix::errno::Errno> for Errno {
    /// Nix's zero variant (an errno it has no name for) becomes `EIO`.
    fn from(errno: nix::errno::Errno) -> Self {
        u16::try_from(errno as i32).ok().and_then(|code| Self::try_from(code).ok()).unwrap_or(Self::EIO)
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.code())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&nix::errno::Errno::from_raw(self.code()), f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&nix::errno::Errno::from_raw(self.code()), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errnos_are_errnos() {
        assert_eq!(Errno::try_from(0), Err(NotAnErrno(0)));
        assert_eq!(Errno::try_from(4096), Err(NotAnErrno(4096)));
        assert_eq!(Errno::try_from(4095).map(Errno::code), Ok(4095));
        assert_eq!(Errno::from(nix::errno::Errno::ESTALE).code(), 116);
        assert_eq!(Errno::from(nix::errno::Errno::UnknownErrno).code(), 5);
    }
}
