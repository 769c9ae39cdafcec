//! The policies in force: each rule's call and mutant, and whole behaviours, in child processes.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
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
        "threads/clone:a thread" => Some(|| thread::spawn(|| 0).join().unwrap()),
        "process/rt_sigreturn" => Some(|| {
            let number = Compiler::new(ARCH).unwrap().call_number("tgkill").unwrap();
            let id = u64::from(std::process::id());
            syscall(number, [id, id, libc::SIGABRT as u64, 0, 0, 0])
        }),
        _ => None,
    }
}

extern "C" fn do_nothing(_: libc::c_int) {}

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
        "openat" if outcome(rule) == Outcome::Allow => End::Returned(libc::EACCES),
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
                thread::Builder::new().name(format!("queue {i}")).spawn(move || {
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
            thread.unwrap().join().unwrap();
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
        let handler = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGSYS, &handler) }.unwrap();
        confine(Policy::Worker, Mode::Trap, &[]);
        getppid();
        42
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
