//! What a daemon's processes, all of them together, use: CPU time, memory, descriptors, wake-ups.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

use crate::daemon::Daemon;

/// Resident memory without guest memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// All resident pages; one that two processes of the tree share counts twice.
    pub rss: u64,
    /// Each page divided by the number of processes, of the whole system, that map it.
    pub pss: u64,
    /// Pages that one process alone maps.
    pub private: u64,
}

/// The processes of one daemon.
#[derive(Clone, Debug)]
pub struct ProcessTree {
    processes: Vec<(i32, ClockId)>,
}

impl ProcessTree {
    /// The daemon's processes as they are now.
    pub fn of(daemon: &Daemon) -> io::Result<ProcessTree> {
        let pids = std::iter::once(daemon.pid()).chain(daemon.descendants());
        let clock = |pid| clock_getcpuclockid(Pid::from_raw(pid)).map(|clock| (pid, clock));
        Ok(ProcessTree { processes: pids.map(clock).collect::<nix::Result<_>>()? })
    }

    /// Its pids, the one that was started first.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.processes.iter().map(|(pid, _)| *pid)
    }

    /// CPU time, user and system, of all threads, also of those that have ended. In nanoseconds of the
    /// scheduler; the current slice of a thread that runs just now may be missing, so [`ProcessTree::settle`]
    /// first.
    pub fn cpu(&self) -> io::Result<Duration> {
        let clocks = self.processes.iter().map(|(_, clock)| clock.now().map(Duration::from));
        Ok(clocks.sum::<nix::Result<Duration>>()?)
    }

    /// Puts it before all other work of the machine: it gets the CPU almost as if it were alone.
    pub fn prioritise(&self) -> io::Result<()> {
        self.pids().try_for_each(prioritise)
    }

    /// Gives the thread of each request queue a CPU, in turn; that of the high-priority queue was made before them.
    pub fn spread_queues(&self, cpus: usize) -> io::Result<()> {
        let worker = self.pids().last().unwrap_or_default();
        let mut threads = Vec::new();
        for task in fs::read_dir(format!("/proc/{worker}/task"))? {
            let task = task?;
            if fs::read_to_string(task.path().join("comm"))?.starts_with("vring_worker") {
                threads.extend(task.file_name().to_str().and_then(|id| id.parse::<i32>().ok()));
            }
        }
        threads.sort_unstable();
        for (queue, thread) in threads.into_iter().skip(1).enumerate() {
            pin(Pid::from_raw(thread), queue % cpus)?;
        }
        Ok(())
    }

    /// Waits until no thread of it runs or wants to, 100 ms at most: a daemon may go on for a while after its
    /// last reply.
    pub fn settle(&self) -> io::Result<()> {
        let end = Instant::now() + Duration::from_millis(100);
        while self.is_running()? && Instant::now() < end {
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    fn is_running(&self) -> io::Result<bool> {
        for stat in self.each_thread("stat")? {
            // The state is the first field behind the name, which stands in parentheses.
            if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R')) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How often its threads were put to sleep, and so woken, so far.
    pub fn wakeups(&self) -> io::Result<u64> {
        let count = |status: &String| field(status, "voluntary_ctxt_switches:");
        Ok(self.each_thread("status")?.iter().map(count).sum())
    }

    /// How many threads it has.
    pub fn threads(&self) -> io::Result<usize> {
        self.each_thread("comm").map(|threads| threads.len())
    }

    /// One file of `/proc/PID/task/TID` of each thread.
    fn each_thread(&self, file: &str) -> io::Result<Vec<String>> {
        let mut all = Vec::new();
        for pid in self.pids() {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                // A thread may end between the listing and this.
                all.extend(fs::read_to_string(task?.path().join(file)));
            }
        }
        Ok(all)
    }

    /// Its memory.
    pub fn memory(&self) -> io::Result<Memory> {
        let mut sum = Memory::default();
        for pid in self.pids() {
            add_smaps(&mut sum, &fs::read_to_string(format!("/proc/{pid}/smaps"))?);
        }
        Ok(sum)
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> io::Result<usize> {
        self.pids().map(|pid| Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())).sum()
    }
}

/// Keeps a thread on one CPU; 0 is the caller.
pub fn pin(thread: Pid, cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(thread, &set)?)
}

/// The highest priority that isn't a real-time one.
const HIGHEST: i32 = -20;

/// [`HIGHEST`] for all threads of a process, and for the scheduler's automatic group that it belongs to: that of its
/// session.
fn prioritise(pid: i32) -> io::Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let id = task?.file_name().to_str().and_then(|id| id.parse().ok());
        let id: libc::id_t = id.ok_or_else(|| io::Error::other("a thread whose name is no number"))?;
        // SAFETY: setpriority takes integers.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, id, HIGHEST) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    set_group(&pid.to_string(), HIGHEST)
}

fn set_group(pid: &str, nice: i32) -> io::Result<()> {
    match fs::write(format!("/proc/{pid}/autogroup"), nice.to_string()) {
        // This kernel has no such groups.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Gives this process the highest priority. Its session, which others may share, gets its own back when this is
/// dropped.
#[derive(Debug)]
pub struct OwnPriority {
    before: i32,
}

impl OwnPriority {
    /// From now on.
    pub fn raise() -> io::Result<OwnPriority> {
        // "/autogroup-12 nice 0", or nothing.
        let group = fs::read_to_string("/proc/self/autogroup").unwrap_or_default();
        let before = group.split_whitespace().last().and_then(|nice| nice.parse().ok()).unwrap_or(0);
        prioritise(std::process::id().cast_signed())?;
        Ok(OwnPriority { before })
    }
}

impl Drop for OwnPriority {
    fn drop(&mut self) {
        if let Err(e) = set_group("self", self.before) {
            eprintln!("cannot restore the session's priority: {e}");
        }
    }
}

/// Adds up a `/proc/PID/smaps`, without the guest's memory.
fn add_smaps(sum: &mut Memory, smaps: &str) {
    let mut guest = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(key) = words.next() else { continue };
        if !key.ends_with(':') {
            guest = line.contains("/memfd:guest-memory");
            continue;
        }
        let mut value = || words.next().and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |kib| kib * 1024);
        match key {
            _ if guest => {}
            "Rss:" => sum.rss += value(),
            "Pss:" => sum.pss += value(),
            "Private_Clean:" | "Private_Dirty:" => sum.private += value(),
            _ => {}
        }
    }
}

/// The number behind a key at a line's begin.
fn field(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count() {
        let smaps = "1000-2000 r--p 00000000 fe:00 1 /bin/x\nRss:  8 kB\nPss: 4 kB\nPrivate_Clean: 3 kB\n\
                     Private_Dirty: 1 kB\n3000-4000 rw-s 0 0:1 2 /memfd:guest-memory (deleted)\nRss: 100 kB\n\
                     Private_Dirty: 100 kB\n5000-6000 rw-p 0 0:0 0\nRss: 2 kB\nVmFlags: rd wr\n";
        let mut sum = Memory::default();
        add_smaps(&mut sum, smaps);
        assert_eq!(sum, Memory { rss: 10 << 10, pss: 4 << 10, private: 4 << 10 });
    }

    #[test]
    fn keys_are_whole_lines_begins() {
        let status = "voluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t99\n";
        assert_eq!(field(status, "voluntary_ctxt_switches:"), 12);
        assert_eq!(field(status, "nonvoluntary_ctxt_switches:"), 99);
    }
}
