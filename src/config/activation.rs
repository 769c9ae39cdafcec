//! Sockets that systemd passes (`sd_listen_fds(3)`): read here in a few lines rather than by a crate, since the
//! crates for it also take the descriptors over, which is the broker's to do.

use std::ffi::OsString;
use std::os::fd::RawFd;

/// `SD_LISTEN_FDS_START`
const FIRST: RawFd = 3;

/// More than one can have a use for; a number from the environment must not become a long loop.
const MAX: RawFd = 16;

/// The name (`FileDescriptorName=`) of a socket that is for metrics; every other name is the device's.
const METRICS: &str = "metrics";

/// Sockets that the service manager has passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activation {
    /// For front ends.
    pub device: Vec<RawFd>,
    /// Named `metrics`.
    pub metrics: Vec<RawFd>,
}

impl Activation {
    /// From the environment of process `pid`. What is for another process, or is no number, is not for us.
    pub fn from_environment(pid: u32, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let number = |name| variable(name)?.to_str()?.parse::<RawFd>().ok();
        let ours = number("LISTEN_PID").and_then(|listen| u32::try_from(listen).ok()) == Some(pid);
        let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0).clamp(0, MAX);
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let names = names.to_string_lossy();
        let mut names = names.split(':');
        let mut activation = Self::default();
        for fd in FIRST..FIRST + count {
            let is_metrics = names.next() == Some(METRICS);
            if is_metrics { activation.metrics.push(fd) } else { activation.device.push(fd) }
        }
        activation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(fds: &str, pid: &str, names: &str) -> Activation {
        Activation::from_environment(42, |name| {
            let value = match name {
                "LISTEN_FDS" => fds,
                "LISTEN_PID" => pid,
                "LISTEN_FDNAMES" => names,
                _ => return None,
            };
            Some(value.into())
        })
    }

    #[test]
    fn sockets_by_name() {
        assert_eq!(passed("1", "42", ""), Activation { device: vec![3], metrics: vec![] });
        assert_eq!(passed("1", "42", "share.socket"), Activation { device: vec![3], metrics: vec![] });
        assert_eq!(passed("2", "42", "metrics:x"), Activation { device: vec![4], metrics: vec![3] });
        assert_eq!(passed("2", "42", ""), Activation { device: vec![3, 4], metrics: vec![] });
    }

    #[test]
    fn what_is_not_for_this_process() {
        let none = Activation::default();
        for (fds, pid) in [("1", "41"), ("1", ""), ("", "42"), ("x", "42"), ("-1", "42"), ("1", "-1")] {
            assert_eq!(passed(fds, pid, ""), none, "{fds} {pid}");
        }
        assert_eq!(Activation::from_environment(42, |_| None), none);
        assert_eq!(passed("2000000000", "42", "").device.len(), 16);
    }
}
