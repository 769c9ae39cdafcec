//! What the fetch script brought: QEMU, kernels, busybox.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::GuestError;
use crate::paths::{CACHE_VARIABLE, cache_dir};

/// A guest kernel, by the series that Debian ships.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// 6.1, of Debian 12: FUSE 7.37, one request queue used, everything virtio a module.
    V6_1,
    /// 6.12, of Debian 13: FUSE 7.41, several request queues, everything built in.
    V6_12,
}

impl Kernel {
    /// All of them, the oldest first.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// The series, as `uname -r` starts.
    #[must_use]
    pub fn series(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// The kernel of that series, if there is one.
    #[must_use]
    pub fn from_series(series: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kernel| kernel.series() == series)
    }
}

/// The directory that `tests/guest/fetch.sh` filled; its head comment lists the contents.
#[derive(Debug, Clone)]
pub struct Assets(PathBuf);

impl Assets {
    /// Runs the fetch script, which does nothing but tell the directory when everything is there.
    ///
    /// # Errors
    /// When the script fails.
    pub fn fetch() -> Result<Self, GuestError> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/fetch.sh");
        let output = Command::new(&script)
            .env(CACHE_VARIABLE, cache_dir())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(GuestError::host(format!("run {}", script.display())))?;
        if !output.status.success() {
            return Err(GuestError::Fetch { script, status: output.status });
        }
        let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end());
        dir.canonicalize().map(Self).map_err(GuestError::host(format!("open {}", dir.display())))
    }

    /// The program that starts QEMU.
    #[must_use]
    pub fn qemu(&self) -> PathBuf {
        self.0.join("qemu-system-x86_64")
    }

    /// The ELF kernel.
    #[must_use]
    pub fn vmlinux(&self, kernel: Kernel) -> PathBuf {
        self.0.join("kernel").join(kernel.series()).join("vmlinux")
    }

    /// The directory with the kernel's modules and their loading order.
    #[must_use]
    pub fn modules(&self, kernel: Kernel) -> PathBuf {
        self.0.join("kernel").join(kernel.series()).join("modules")
    }

    /// The root below which the packages are unpacked.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }
}
