//! A directory of one test, removed with everything in it at the end.

use std::path::{Path, PathBuf};

use super::GuestError;

/// A new, private directory below the system's temporary one. Its path is short, as those of UNIX sockets
/// have to be.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes a directory whose name starts with `virtiofsd-` and `what`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(what: &str) -> Result<Self, GuestError> {
        let template = std::env::temp_dir().join(format!("virtiofsd-{what}-XXXXXX"));
        nix::unistd::mkdtemp(&template)
            .map(Self)
            .map_err(|errno| GuestError::host(format!("make {}", template.display()))(errno.into()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nobody can be told here, and what stays is a directory in /tmp.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
