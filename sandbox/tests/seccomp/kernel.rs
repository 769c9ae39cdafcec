//! The policies in force: each rule's call and mutant, and whole behaviours, in child processes.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction, signal};
use sandbox::seccomp::{Mode, Policy, SeccompError, apply};

use crate::bpf::Outcome;
use crate::cases::{CASES, Mutant, pad};
use crate::child::{End, run};
use crate::compile::Compiler;
use crate::policy::{self, Rule};
use crate::programs::{outcome, root};

const ARCH: &str = std::env::consts::ARCH;

/// A raw system call: 0 or the error number.
fn syscall(number: u32, args: [u64; 6]) -> i32 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the callers' arguments name no memory, or only memory of this short-lived process that nothing
    // uses afterwards.
    let result = unsafe { libc::syscall(i64::from(number), a, b, c, d, e, f) };
    if result == -1 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
}

fn confine(policy: Policy, mode: Mode, extra: &[&str]) {
    set_no_new_privs().unwrap();
    apply(policy, mode, extra).unwrap();
}

/// Rules whose call can't be made with plain arguments, and how to make it.
fn special(rule: &str) -> Option<fn() -> i32> {
    match rule {
        "threads/clone:a thread" => Some(|| {
            plain_thread(|| {}).join();
            0
        }),
        _ => None,
    }
}

/// A thread as the daemon's. The standard library gives those of this test's program a stack for signals, too, by calls
/// that the daemon doesn't make (src/main.rs) and its policies don't have.
struct PlainThread(libc::pthread_t);

fn plain_thread<F: FnOnce() + Send + 'static>(body: F) -> PlainThread {
    extern "C" fn start<F: FnOnce()>(body: *mut c_void) -> *mut c_void {
        // SAFETY: the box that was given up below, once.
        let body = unsafe { Box::from_raw(body.cast::<F>()) };
        body();
        ptr::null_mut()
    }
    let mut thread = 0;
    let body = Box::into_raw(Box::new(body)).cast();
    // SAFETY: `thread` is live; `start` takes what `body` is.
    let result = unsafe { libc::pthread_create(&raw mut thread, ptr::null(), start::<F>, body) };
    assert_eq!(result, 0);
    PlainThread(thread)
}

impl PlainThread {
    fn join(self) {
        // SAFETY: the thread was made and not joined before.
        assert_eq!(unsafe { libc::pthread_join(self.0, ptr::null_mut()) }, 0);
    }
}

extern "C" fn do_nothing(_: libc::c_int) {}

/// The policies have no return from a handler.
extern "C" fn end_with_42(_: libc::c_int) {
    // SAFETY: the call takes an integer and does not return.
    unsafe { libc::_exit(42) }
}

fn check(policy: Policy, extra: &[&str], rule: &Rule) {
    let case = CASES.iter().find(|case| case.rule == rule.key).unwrap();
    let compiler = Compiler::new(ARCH).unwrap();
    let number = compiler.call_number(&rule.syscall).unwrap();
    let end = run(|| {
        let handler = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGABRT, &handler) }.unwrap();
        confine(policy, Mode::Kill, extra);
        special(&rule.key).map_or_else(|| syscall(number, pad(case.call)), |call| call())
    });
    match outcome(rule) {
        Outcome::Errno(expected) => {
            assert_eq!(end, End::Returned(i32::from(expected)), "{policy} {}", rule.key)
        }
        _ => assert!(matches!(end, End::Returned(0..=254)), "{policy} {}: {end:?}", rule.key),
    }

    let (number, args) = match case.mutant {
        Mutant::Same(args) => (number, args),
        Mutant::Other(syscall, args) => (compiler.call_number(syscall).unwrap(), args),
    };
    let end = run(|| {
        confine(policy, Mode::Kill, extra);
        syscall(number, pad(args))
    });
    // These mutants get an error by a rule of their own.
    let expected = match rule.syscall.as_str() {
        "openat" if policy == Policy::Broker && outcome(rule) == Outcome::Allow => {
            End::Returned(libc::EACCES)
        }
        _ => End::Killed(Signal::SIGSYS),
    };
    assert_eq!(end, expected, "{policy} {}: mutant", rule.key);
}

fn check_policy(policy: Policy) {
    let loaded = policy::load(&root(), ARCH, &policy.to_string()).unwrap();
    for rule in &loaded.rules {
        check(policy, &[], rule);
    }
    for widening in &loaded.widenings {
        for rule in &widening.rules {
            check(policy, &[&widening.name], rule);
        }
    }
}

#[test]
fn worker_rules_hold_in_the_kernel() {
    check_policy(Policy::Worker);
}

#[test]
fn broker_rules_hold_in_the_kernel() {
    check_policy(Policy::Broker);
}

#[test]
fn exporter_rules_hold_in_the_kernel() {
    check_policy(Policy::Exporter);
}

#[test]
fn follower_rules_hold_in_the_kernel() {
    check_policy(Policy::Follower);
}

/// What a worker does besides serving: threads that contend, channels, heaps that grow and shrink (where
/// malloc opens a file by path), reallocation of large blocks, thread names.
#[test]
fn a_threaded_rust_program_runs_under_the_worker_policy() {
    let end = run(|| {
        confine(Policy::Worker, Mode::Kill, &[]);
        let total = Arc::new(Mutex::new(0usize));
        let (sender, receiver) = mpsc::channel();
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let (total, sender) = (Arc::clone(&total), sender.clone());
                plain_thread(move || {
                    nix::sys::prctl::set_name(c"queue").unwrap();
                    let blocks: Vec<_> = (0..2000 + i).map(|_| vec![1u8; 4000]).collect();
                    assert_eq!(blocks.len(), 2000 + i);
                    let blocks: Vec<_> = (0..2000).map(|_| vec![1u8; 4000]).collect();
                    for block in blocks {
                        *total.lock().unwrap() += block.len();
                        sender.send(block.len()).unwrap();
                    }
                })
            })
            .collect();
        drop(sender);
        let received: usize = receiver.iter().sum();
        for thread in threads {
            thread.join();
        }
        let mut large = vec![0u8; 1 << 20];
        large.resize(1 << 24, 1);
        i32::from(received != 4 * 2000 * 4000 || *total.lock().unwrap() != received)
    });
    assert_eq!(end, End::Returned(0));
}

#[test]
fn threads_started_before_are_confined_too() {
    let end = run(|| {
        let (sender, receiver) = mpsc::channel::<()>();
        let before = thread::spawn(move || {
            receiver.recv().unwrap();
            // SAFETY: getppid has no arguments.
            i32::from(unsafe { libc::getppid() } == 0)
        });
        confine(Policy::Worker, Mode::Kill, &[]);
        sender.send(()).unwrap();
        before.join().unwrap()
    });
    assert_eq!(end, End::Killed(Signal::SIGSYS));
}

#[test]
fn abort_is_seen_as_abort() {
    for policy in [Policy::Worker, Policy::Broker] {
        let end = run(|| {
            confine(policy, Mode::Kill, &[]);
            std::process::abort()
        });
        assert_eq!(end, End::Killed(Signal::SIGABRT), "{policy}");
    }
}

#[test]
fn a_fault_in_guest_memory_is_seen_as_sigbus() {
    let end = run(|| {
        let file = nix::sys::memfd::memfd_create(c"guest", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let (flags, length) = (MapFlags::MAP_SHARED, std::num::NonZeroUsize::new(4096).unwrap());
        // As in the daemon, which has none; the test's own program has the standard library's.
        // SAFETY: no handler runs.
        unsafe { signal(Signal::SIGBUS, SigHandler::SigDfl) }.unwrap();
        // SAFETY: a new mapping, of a file that nothing else uses.
        let memory = unsafe { mmap(None, length, ProtFlags::PROT_READ, flags, &file, 0) }.unwrap();
        confine(Policy::Worker, Mode::Kill, &[]);
        // The file is empty, so the page behind it isn't there.
        // SAFETY: the address is mapped; the fault that reading it causes is what this child is for.
        i32::from(unsafe { memory.cast::<u8>().read_volatile() })
    });
    assert_eq!(end, End::Killed(Signal::SIGBUS));
}

#[test]
fn modes_differ_in_the_default_action_only() {
    let getppid = || syscall(Compiler::new(ARCH).unwrap().call_number("getppid").unwrap(), [0; 6]);
    let in_mode = |mode| {
        run(|| {
            confine(Policy::Worker, mode, &[]);
            getppid()
        })
    };
    assert_eq!(in_mode(Mode::None), End::Returned(0));
    assert_eq!(in_mode(Mode::Log), End::Returned(0));
    assert_eq!(in_mode(Mode::Kill), End::Killed(Signal::SIGSYS));
    assert_eq!(in_mode(Mode::Trap), End::Killed(Signal::SIGSYS));
    let handled = run(|| {
        let handler = SigAction::new(SigHandler::Handler(end_with_42), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler makes one call, which is async-signal-safe.
        unsafe { sigaction(Signal::SIGSYS, &handler) }.unwrap();
        confine(Policy::Worker, Mode::Trap, &[]);
        getppid()
    });
    assert_eq!(handled, End::Returned(42), "trap can be handled");
}

#[test]
fn refuses_without_no_new_privs_and_unknown_widenings() {
    // Kernel default in a test run; stated so that the test means what it says.
    assert!(!nix::sys::prctl::get_no_new_privs().unwrap(), "run the tests without no_new_privs");
    let error = apply(Policy::Worker, Mode::Kill, &[]).unwrap_err();
    assert!(matches!(error, SeccompError::NewPrivileges { policy: Policy::Worker }), "{error}");

    let error = apply(Policy::Broker, Mode::None, &["xattr"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the broker seccomp policy has no widening \"xattr\"; it has: make-device, trusted-xattr"
    );
}

#[test]
fn says_what_is_in_force() {
    let end = run(|| {
        set_no_new_privs().unwrap();
        let applied = apply(Policy::Worker, Mode::Kill, &["xattr", "locks"]).unwrap();
        i32::from(
            (applied.policy, applied.mode) != (Policy::Worker, Mode::Kill)
                || applied.widenings != ["xattr", "locks"]
                || applied.instructions == 0,
        )
    });
    assert_eq!(end, End::Returned(0));
    let none = apply(Policy::Worker, Mode::None, &[]).unwrap();
    assert_eq!((none.instructions, none.mode), (0, Mode::None));
}
