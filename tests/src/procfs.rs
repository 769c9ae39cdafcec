//! What the kernel says about a process, read from `/proc`: the suites believe it, not the daemon.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The kinds of namespace that a confined worker must not share with the host.
pub const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

/// The fields of `/proc/PID/status`, or of one of its threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status(BTreeMap<String, String>);

impl Status {
    /// Of the process `pid`.
    pub fn of(pid: i32) -> Status {
        Status::read(Path::new(&format!("/proc/{pid}/status")))
    }

    /// Of each thread of `pid`.
    pub fn of_threads(pid: i32) -> Vec<Status> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
        tasks.map(|task| Status::read(&task.expect("a listing").path().join("status"))).collect()
    }

    fn read(path: &Path) -> Status {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Status(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    /// A field's text.
    pub fn field(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("no {name} in a status"))
    }

    /// A field of numbers.
    pub fn numbers(&self, name: &str) -> Vec<u64> {
        let numbers = self.field(name).split_ascii_whitespace();
        numbers.map(|n| n.parse().unwrap_or_else(|_| panic!("{name}: {n}"))).collect()
    }

    /// A capability set (`CapPrm` and the like) as a mask.
    pub fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.field(set), 16).unwrap_or_else(|e| panic!("{set}: {e}"))
    }
}

/// Which namespace of a kind `pid` is in.
pub fn namespace(pid: i32, kind: &str) -> String {
    let path = format!("/proc/{pid}/ns/{kind}");
    let link = fs::read_link(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    link.to_string_lossy().into_owned()
}

/// An open file descriptor, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFd {
    /// Its number.
    pub number: i32,
    /// What its link in `/proc/PID/fd` says.
    pub link: PathBuf,
    /// Device and inode.
    pub identity: (u64, u64),
    /// `f_type` of its file system.
    pub file_system: i64,
}

/// All open descriptors of `pid`, as far as they stay open while we look.
pub fn open_fds(pid: i32) -> Vec<OpenFd> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives and we are root");
    let looked = entries.map(|entry| look(&entry.expect("a listing").path()));
    looked.filter_map(Result::ok).collect()
}

fn look(path: &Path) -> io::Result<OpenFd> {
    let metadata = fs::metadata(path)?;
    let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    Ok(OpenFd {
        number: number.ok_or(io::ErrorKind::InvalidData)?,
        link: fs::read_link(path)?,
        identity: (metadata.dev(), metadata.ino()),
        file_system: nix::sys::statfs::statfs(path)?.filesystem_type().0,
    })
}

/// The CPU time that `pid` used so far, in clock ticks.
pub fn cpu_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    // utime and stime are fields 14 and 15 (proc(5)); the first one behind the name is field 3.
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    ticks.map(|n| n.parse::<u64>().expect("a number")).sum()
}
