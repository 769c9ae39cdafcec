//! Which kernel namespaces a process gets of its own. They are made together with the process, by
//! [`crate::process::Spawn`]; nothing here changes the calling process.

use std::fmt;

bitflags::bitflags! {
    /// A set of kinds of namespaces (namespaces(7)).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Namespaces: u64 {
        /// Ids and capabilities. The other namespaces of the set then belong to this one.
        const USER = libc::CLONE_NEWUSER as u64;
        /// Mounts.
        const MOUNT = libc::CLONE_NEWNS as u64;
        /// Process ids; the new process is number 1 and takes all others in there with it when it ends.
        const PID = libc::CLONE_NEWPID as u64;
        /// Network devices, addresses, abstract UNIX sockets.
        const NET = libc::CLONE_NEWNET as u64;
        /// System V IPC and POSIX message queues.
        const IPC = libc::CLONE_NEWIPC as u64;
        /// Host name.
        const UTS = libc::CLONE_NEWUTS as u64;
        /// The view of the cgroup tree.
        const CGROUP = libc::CLONE_NEWCGROUP as u64;
    }
}

impl Namespaces {
    /// The names of the set's members as they appear in `/proc/PID/ns`.
    pub fn proc_names(self) -> impl Iterator<Item = &'static str> {
        self.iter().map(|kind| match kind {
            Self::USER => "user",
            Self::MOUNT => "mnt",
            Self::PID => "pid",
            Self::NET => "net",
            Self::IPC => "ipc",
            Self::UTS => "uts",
            _ => "cgroup",
        })
    }
}

impl fmt::Display for Namespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (position, name) in self.proc_names().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_proc_name() {
        let mut names: Vec<_> = Namespaces::all().proc_names().collect();
        assert_eq!(names.len(), 7);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 7);
        for name in names {
            assert!(std::fs::exists(format!("/proc/self/ns/{name}")).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_set_reads_as_a_list() {
        assert_eq!(Namespaces::empty().to_string(), "none");
        assert_eq!((Namespaces::USER | Namespaces::NET).to_string(), "user,net");
    }
}
