//! The shared directory (or regular file) of the host.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::broker::BrokerError;
use crate::protocol::message::ShareKind;

/// The share as the host has it.
#[derive(Debug)]
pub struct Share {
    /// An `O_PATH` fd.
    pub fd: OwnedFd,
    /// What it is.
    pub kind: ShareKind,
}

impl Share {
    /// Opens `--shared-dir`. Symbolic links in it are followed: the path is the operator's.
    ///
    /// # Errors
    /// When it is missing, or neither directory nor regular file.
    pub fn open(path: &Path) -> Result<Self, BrokerError> {
        let failed = |errno| BrokerError::OpenShare { path: path.to_owned(), errno };
        let fd = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
        let mode = SFlag::from_bits_truncate(fstat(&fd).map_err(failed)?.st_mode);
        let kind = match mode & SFlag::S_IFMT {
            SFlag::S_IFDIR => ShareKind::Directory,
            SFlag::S_IFREG => ShareKind::RegularFile,
            _ => return Err(BrokerError::ShareType { path: path.to_owned() }),
        };
        Ok(Self { fd, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_and_regular_files_are_shares() {
        let kind = |path: &str| Share::open(Path::new(path)).map(|share| share.kind);
        assert!(matches!(kind("/proc/self"), Ok(ShareKind::Directory)));
        assert!(matches!(kind("/proc/self/status"), Ok(ShareKind::RegularFile)));
        assert!(matches!(kind("/dev/null"), Err(BrokerError::ShareType { .. })));
        let error = kind("/nowhere/at/all").unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all") && error.to_string().contains("--shared-dir"));
    }
}
