//! Makes a running process execute system calls of our choice, as an attacker would who has taken it over: its
//! filters, namespaces, credentials and fds are in force, ours are not. x86_64 only.
//!
//! The process is held by ptrace between the calls; its other threads run on. What it would have done next is
//! restored at the end, if it still lives.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::libc::user_regs_struct as Registers;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The process died of the call: by this signal, or by its own exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Died(pub Option<Signal>);

/// A process in our hands.
#[derive(Debug)]
pub struct Injector {
    pid: Pid,
    saved: Registers,
    /// Where a `syscall` instruction is.
    instruction: u64,
    memory: File,
    /// Memory of the process that we may write: from here up to `limit`.
    scratch: u64,
    limit: u64,
    next: u64,
    alive: bool,
}

/// `syscall`
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

impl Injector {
    /// Takes hold of a process's first thread. The caller's thread must do all the rest.
    pub fn attach(pid: i32) -> Injector {
        let options = Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, options).expect("PTRACE_SEIZE: the suites run as root");
        ptrace::interrupt(pid).expect("PTRACE_INTERRUPT");
        let status = waitpid(pid, Some(WaitPidFlag::__WALL)).expect("wait for a tracee");
        assert!(matches!(status, WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)), "{status:?}");
        let saved = ptrace::getregs(pid).expect("PTRACE_GETREGS");
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory = memory.expect("the tracee's memory");
        let (scratch, limit) = scratch_memory(pid, saved.rsp);
        let instruction = find_instruction(pid, &memory);
        Injector { pid, saved, instruction, memory, scratch, limit, next: scratch, alive: true }
    }

    /// Whether the process still lives.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Puts bytes into its memory; the address. They stay until [`Injector::forget`].
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let at = self.next;
        self.next = (at + bytes.len() as u64).next_multiple_of(16);
        assert!(self.next <= self.limit, "the scratch memory is full");
        self.memory.write_all_at(bytes, at).expect("write a tracee's memory");
        at
    }

    /// Puts a path, with its NUL.
    pub fn path(&mut self, path: &str) -> u64 {
        self.put(&[path.as_bytes(), b"\0"].concat())
    }

    /// Reads its memory.
    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, at).expect("read a tracee's memory");
        bytes
    }

    /// Lets the scratch memory be used again.
    pub fn forget(&mut self) {
        self.next = self.scratch;
    }

    /// Makes a system call; what it returned (a negative errno when it failed).
    ///
    /// A child process that it makes is killed before it runs. An exec that succeeds counts as 0.
    pub fn call(&mut self, number: libc::c_long, args: &[u64]) -> Result<i64, Died> {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let registers = Registers {
            rip: self.instruction,
            rax: number.cast_unsigned(),
            // Not in a call: nothing is to be restarted.
            orig_rax: u64::MAX,
            rdi: all[0],
            rsi: all[1],
            rdx: all[2],
            r10: all[3],
            r8: all[4],
            r9: all[5],
            ..self.saved
        };
        ptrace::setregs(self.pid, registers).expect("PTRACE_SETREGS");
        loop {
            ptrace::step(self.pid, None).expect("PTRACE_SINGLESTEP");
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => {
                    let registers = ptrace::getregs(self.pid).expect("PTRACE_GETREGS");
                    return Ok(registers.rax.cast_signed());
                }
                Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC)) => return Ok(0),
                Ok(WaitStatus::PtraceEvent(..)) => self.end_child(),
                // Some other signal for it: not delivered.
                Ok(WaitStatus::Stopped(..)) => {}
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    self.alive = false;
                    return Err(Died(Some(signal)));
                }
                Ok(WaitStatus::Exited(..)) | Err(_) => {
                    self.alive = false;
                    return Err(Died(None));
                }
                Ok(other) => panic!("a tracee is {other:?}"),
            }
        }
    }

    fn end_child(&self) {
        let Ok(child) = ptrace::getevent(self.pid) else { return };
        let Ok(child) = i32::try_from(child) else { return };
        if child <= 0 {
            return;
        }
        let child = Pid::from_raw(child);
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, Some(WaitPidFlag::__WALL));
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        if self.alive {
            let _ = ptrace::setregs(self.pid, self.saved);
            let _ = ptrace::detach(self.pid, None);
        }
    }
}

/// A process's mappings: begin, end, permissions, name.
fn mappings(pid: Pid) -> Vec<(u64, u64, String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a tracee's mappings");
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let [begin, end] = [begin, end].map(|number| u64::from_str_radix(number, 16).expect("hexadecimal"));
        let permissions = fields.next()?.to_owned();
        Some((begin, end, permissions, fields.nth(3).unwrap_or_default().to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

/// The lower part of the stack, which is not in use now.
fn scratch_memory(pid: Pid, stack_pointer: u64) -> (u64, u64) {
    let stack = mappings(pid).into_iter().find(|(begin, end, ..)| (*begin..*end).contains(&stack_pointer));
    let (begin, ..) = stack.expect("a stack");
    // Below the stack pointer lies the red zone.
    let limit = stack_pointer - 1024;
    assert!(limit > begin + 0x4000, "no room below the stack pointer");
    (begin.next_multiple_of(4096), limit)
}

fn find_instruction(pid: Pid, memory: &File) -> u64 {
    for (begin, end, permissions, name) in mappings(pid) {
        if !permissions.starts_with("r-x") || name == "[vsyscall]" {
            continue;
        }
        let mut code = vec![0; usize::try_from(end - begin).expect("a small program")];
        if memory.read_exact_at(&mut code, begin).is_err() {
            continue;
        }
        if let Some(at) = code.windows(2).position(|window| window == INSTRUCTION) {
            return begin + at as u64;
        }
    }
    panic!("no system call instruction in process {pid}");
}
