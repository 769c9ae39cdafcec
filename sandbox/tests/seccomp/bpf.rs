//! Runs seccomp programs as the kernel would, so that a machine can test those of all architectures.

use seccompiler::sock_filter;

/// What a program says to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Let it happen.
    Allow,
    /// Refuse it with this error number.
    Errno(u16),
    /// The default action, or death for a foreign architecture.
    Kill,
}

/// The kernel's `struct seccomp_data`, but for the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// AUDIT_ARCH_*
    pub arch: u32,
    /// The call's number.
    pub number: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        assert!(offset.is_multiple_of(4), "unaligned load");
        match offset {
            0 => self.number,
            4 => self.arch,
            16..=60 => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
            _ => panic!("load from offset {offset}"),
        }
    }
}

/// The AUDIT_ARCH_* of an architecture.
pub fn audit_arch(arch: &str) -> u32 {
    let machine = match arch {
        "x86_64" => 62,
        "aarch64" => 183,
        "riscv64" => 243,
        other => panic!("{other}"),
    };
    0xc000_0000 | machine
}

/// The action for a call, and how many instructions ran.
pub fn run(program: &[sock_filter], call: &Call) -> (Outcome, usize) {
    let (mut pc, mut accumulator, mut steps) = (0, 0u32, 0);
    loop {
        let i = &program[pc];
        steps += 1;
        pc += 1;
        let test = match i.code {
            0x20 => {
                accumulator = call.word(i.k);
                continue;
            }
            0x54 => {
                accumulator &= i.k;
                continue;
            }
            0x05 => {
                pc += i.k as usize;
                continue;
            }
            0x06 => return (outcome(i.k), steps),
            0x15 => accumulator == i.k,
            0x25 => accumulator > i.k,
            0x35 => accumulator >= i.k,
            code => panic!("instruction {code:#x} at {}", pc - 1),
        };
        pc += usize::from(if test { i.jt } else { i.jf });
    }
}

fn outcome(action: u32) -> Outcome {
    match action {
        libc::SECCOMP_RET_ALLOW => Outcome::Allow,
        libc::SECCOMP_RET_KILL_PROCESS => Outcome::Kill,
        _ if action & 0xffff_0000 == libc::SECCOMP_RET_ERRNO => Outcome::Errno(action as u16),
        other => panic!("action {other:#x}"),
    }
}

/// Whether the kernel's cache (seccomp_is_const_allow in kernel/seccomp.c) will hold this call: the program
/// reaches "allow" by looking at nothing but architecture and number, with instructions that the cache follows.
pub fn is_cached(program: &[sock_filter], arch: u32, number: u32) -> bool {
    let call = Call { arch, number, args: [0; 6] };
    let (mut pc, mut accumulator) = (0, 0u32);
    loop {
        let i = &program[pc];
        pc += 1;
        let test = match (i.code, i.k) {
            (0x20, 0 | 4) => {
                accumulator = call.word(i.k);
                continue;
            }
            (0x05, skip) => {
                pc += skip as usize;
                continue;
            }
            (0x06, action) => return action == libc::SECCOMP_RET_ALLOW,
            (0x15, k) => accumulator == k,
            (0x25, k) => accumulator > k,
            (0x35, k) => accumulator >= k,
            _ => return false,
        };
        pc += usize::from(if test { i.jt } else { i.jf });
    }
}
