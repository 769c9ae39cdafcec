//! The attempts, one after another.

use std::ffi::CString;

use tests::inject::Died;
use tests::procfs::OpenFd;

use super::{Target, Verdict};

/// Which layers deny an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// More than the filter: it is denied without seccomp too.
    WithoutSeccomp,
    /// Only the filter. Without it the call works, within the namespaces.
    BySeccompAlone,
}

use Holds::{BySeccompAlone, WithoutSeccomp};

type Run = fn(&mut Target) -> Result<Verdict, Died>;

/// One thing to try.
pub struct Attempt {
    pub name: &'static str,
    pub holds: Holds,
    pub run: Run,
}

const fn attempt(name: &'static str, holds: Holds, run: Run) -> Attempt {
    Attempt { name, holds, run }
}

/// `AT_FDCWD` as an argument.
const CWD: u64 = -100i64 as u64;
const NONE: u64 = u64::MAX;
const PATH: u64 = libc::O_PATH as u64;

/// A call that succeeds if it returns no error.
fn call(target: &mut Target, number: libc::c_long, args: &[u64]) -> Result<Verdict, Died> {
    target.process().call(number, args).map(Verdict::of)
}

/// The worst of several verdicts.
fn worst(verdicts: impl IntoIterator<Item = Result<Verdict, Died>>) -> Result<Verdict, Died> {
    let mut worst = Verdict::Denied("nothing to try".to_owned());
    for verdict in verdicts {
        worst = verdict?;
        if matches!(worst, Verdict::Succeeded(_)) {
            break;
        }
    }
    Ok(worst)
}

/// Opens `path` from `dir`; a success only if it leads to something that the process is not to have.
fn open_outside(target: &mut Target, dir: u64, path: &str, flags: u64) -> Result<Verdict, Died> {
    let at = target.process().path(path);
    let fd = target.process().call(libc::SYS_openat, &[dir, at, flags, 0])?;
    Ok(match Verdict::of(fd) {
        Verdict::Succeeded(_) if !target.leads_out(fd) => Verdict::Denied("stays inside".to_owned()),
        verdict => verdict,
    })
}

fn from_each_directory(target: &mut Target, path: &str) -> Result<Verdict, Died> {
    let directories = target.directories();
    worst(directories.into_iter().map(|dir| {
        target.process().forget();
        open_outside(target, dir, path, PATH)
    }))
}

fn up_and_down(target: &Target) -> String {
    format!("{}{}", "../".repeat(24), target.secret())
}

fn absolute(target: &mut Target) -> Result<Verdict, Died> {
    let secret = target.secret().to_owned();
    open_outside(target, CWD, &secret, 0)
}

fn absolute_by_old_open(target: &mut Target) -> Result<Verdict, Died> {
    let secret = target.secret().to_owned();
    let at = target.process().path(&secret);
    call(target, libc::SYS_open, &[at, 0, 0])
}

fn absolute_by_openat2(target: &mut Target) -> Result<Verdict, Died> {
    let secret = target.secret().to_owned();
    let at = target.process().path(&secret);
    let how = target.process().put(&[0; 24]);
    call(target, libc::SYS_openat2, &[CWD, at, how, 24])
}

fn absolute_by_directory_fd(target: &mut Target) -> Result<Verdict, Died> {
    let secret = target.secret().to_owned();
    from_each_directory(target, &secret)
}

fn dots(target: &mut Target) -> Result<Verdict, Died> {
    from_each_directory(target, "..")
}

fn dots_to_secret(target: &mut Target) -> Result<Verdict, Died> {
    let path = up_and_down(target);
    from_each_directory(target, &path)
}

fn proc_of_init(target: &mut Target) -> Result<Verdict, Died> {
    let path = format!("/proc/1/root{}", target.secret());
    open_outside(target, CWD, &path, 0)
}

fn proc_from_directories(target: &mut Target) -> Result<Verdict, Died> {
    let test = std::process::id();
    let mut verdict = Verdict::Denied("nothing to try".to_owned());
    for path in [format!("../../{test}/root"), format!("../../{test}/environ"), "../../sys/kernel".to_owned()]
    {
        verdict = from_each_directory(target, &path)?;
        if matches!(verdict, Verdict::Succeeded(_)) {
            break;
        }
    }
    Ok(verdict)
}

/// A `struct file_handle` of the secret file, as an attacker can make it from its inode number.
fn forged_handle(target: &Target) -> Vec<u8> {
    let path = CString::new(target.secret()).expect("a plain path");
    let mut handle = vec![0u8; 8 + 128];
    handle[..4].copy_from_slice(&128u32.to_ne_bytes());
    let mut mount = 0i32;
    // SAFETY: `path` is NUL-terminated, `handle` has room for a header and 128 bytes, as its first field says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            handle.as_mut_ptr(),
            &raw mut mount,
            0,
        )
    };
    assert_eq!(result, 0, "name_to_handle_at of our own file");
    handle
}

fn by_forged_handle(target: &mut Target) -> Result<Verdict, Died> {
    let handle = forged_handle(target);
    // O_PATH fds won't do: one of the same mount that is open.
    let (dir, here) = (target.share_fd(), target.process().path("."));
    let open = target.process().call(libc::SYS_openat, &[dir, here, libc::O_DIRECTORY as u64, 0])?;
    let directories = [target.directories(), vec![open.cast_unsigned()]].concat();
    worst(directories.into_iter().map(|dir| {
        target.process().forget();
        let at = target.process().put(&handle);
        call(target, libc::SYS_open_by_handle_at, &[dir, at, 0])
    }))
}

fn mknod(target: &mut Target, mode: u32, device: u64) -> Result<Verdict, Died> {
    let name = format!("device-{mode:o}");
    let (dir, name) = (target.share_fd(), target.process().path(&name));
    call(target, libc::SYS_mknodat, &[dir, name, (mode | 0o666).into(), device])
}

fn open_device(target: &mut Target) -> Result<Verdict, Died> {
    let (dir, name) = (target.share_fd(), target.process().path("null"));
    call(target, libc::SYS_openat, &[dir, name, libc::O_RDWR as u64, 0])
}

fn clone3(target: &mut Target) -> Result<Verdict, Died> {
    // struct clone_args, its first version: only the exit signal is set.
    let mut args = [0u8; 64];
    args[32..40].copy_from_slice(&(libc::SIGCHLD as u64).to_ne_bytes());
    let at = target.process().put(&args);
    call(target, libc::SYS_clone3, &[at, 64])
}

fn bpf(target: &mut Target) -> Result<Verdict, Died> {
    // BPF_MAP_CREATE of an array of one number: what needs the least privilege.
    let attributes: Vec<u8> = [2u32, 4, 4, 1, 0, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    let at = target.process().put(&attributes);
    call(target, libc::SYS_bpf, &[0, at, attributes.len() as u64])
}

fn execve(target: &mut Target) -> Result<Verdict, Died> {
    let (path, null) = (target.process().path("/bin/true"), target.process().put(&[0; 8]));
    call(target, libc::SYS_execve, &[path, null, null])
}

fn execveat_from_share(target: &mut Target) -> Result<Verdict, Died> {
    let dir = target.share_fd();
    let (name, null) = (target.process().path("program"), target.process().put(&[0; 8]));
    call(target, libc::SYS_execveat, &[dir, name, null, null, 0])
}

fn other_memory(target: &mut Target, number: libc::c_long, pid: u64) -> Result<Verdict, Died> {
    let buffer = target.process().put(&[0; 64]);
    let iov: Vec<u8> = [buffer, 64].into_iter().flat_map(u64::to_ne_bytes).collect();
    let iov = target.process().put(&iov);
    call(target, number, &[pid, iov, 1, iov, 1, 0])
}

fn set_owner(target: &mut Target) -> Result<Verdict, Died> {
    let (fds, victim) = (target.fds(), target.victim());
    let sockets = fds.into_iter().filter(|fd| fd.link.to_string_lossy().starts_with("socket:"));
    let set = |fd: OpenFd| call(target, libc::SYS_fcntl, &[fd.number as u64, libc::F_SETOWN as u64, victim]);
    worst(sockets.map(set))
}

/// Makes the filter's answers another process's business: whoever listens can also answer.
fn own_filter(target: &mut Target) -> Result<Verdict, Died> {
    // BPF_RET | BPF_K, SECCOMP_RET_ALLOW
    let code: Vec<u8> = [6u64 | 0x7fff_0000 << 32].into_iter().flat_map(u64::to_ne_bytes).collect();
    let code = target.process().put(&code);
    let program = [1u64, code].into_iter().flat_map(u64::to_ne_bytes).collect::<Vec<u8>>();
    let program = target.process().put(&program);
    // SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER
    call(target, libc::SYS_seccomp, &[1, 8, program])
}

fn mount(target: &mut Target) -> Result<Verdict, Died> {
    let (kind, root) = (target.process().path("tmpfs"), target.process().path("/"));
    call(target, libc::SYS_mount, &[kind, root, kind, 0, 0])
}

fn fsopen(target: &mut Target) -> Result<Verdict, Died> {
    let kind = target.process().path("proc");
    call(target, libc::SYS_fsopen, &[kind, 0])
}

fn open_tree(target: &mut Target) -> Result<Verdict, Died> {
    let (dir, empty) = (target.share_fd(), target.process().path(""));
    let flags = u64::from(libc::OPEN_TREE_CLONE) | libc::AT_EMPTY_PATH as u64;
    call(target, libc::SYS_open_tree, &[dir, empty, flags])
}

fn chroot(target: &mut Target) -> Result<Verdict, Died> {
    let path = target.process().path(".");
    call(target, libc::SYS_chroot, &[path])
}

fn pivot_root(target: &mut Target) -> Result<Verdict, Died> {
    let path = target.process().path(".");
    call(target, libc::SYS_pivot_root, &[path, path])
}

fn umount(target: &mut Target) -> Result<Verdict, Died> {
    let path = target.process().path("/");
    call(target, libc::SYS_umount2, &[path, libc::MNT_DETACH as u64])
}

fn setns(target: &mut Target) -> Result<Verdict, Died> {
    let fds = target.fds();
    worst(fds.into_iter().map(|fd| call(target, libc::SYS_setns, &[fd.number as u64, 0])))
}

fn with_zeros(target: &mut Target, number: libc::c_long, first: &[u64], at: usize) -> Result<Verdict, Died> {
    let zeros = target.process().put(&[0; 512]);
    let mut args = first.to_vec();
    args.insert(at, zeros);
    call(target, number, &args)
}

fn userfaultfd(target: &mut Target) -> Result<Verdict, Died> {
    call(target, libc::SYS_userfaultfd, &[libc::O_CLOEXEC as u64])
}

fn perf(target: &mut Target) -> Result<Verdict, Died> {
    // A software event of the process itself, user mode only: what needs the least privilege.
    let mut attributes = [0u8; 128];
    attributes[0] = 1;
    attributes[4..8].copy_from_slice(&128u32.to_ne_bytes());
    attributes[40..48].copy_from_slice(&(1u64 << 5 | 1 << 6).to_ne_bytes());
    let at = target.process().put(&attributes);
    call(target, libc::SYS_perf_event_open, &[at, 0, NONE, NONE, 0])
}

fn add_key(target: &mut Target) -> Result<Verdict, Died> {
    let (kind, name) = (target.process().path("user"), target.process().path("a-key"));
    call(target, libc::SYS_add_key, &[kind, name, name, 4, -3i64 as u64])
}

fn memfd(target: &mut Target) -> Result<Verdict, Died> {
    let name = target.process().path("code");
    call(target, libc::SYS_memfd_create, &[name, 0])
}

const ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;

fn mprotect(target: &mut Target) -> Result<Verdict, Died> {
    let page = target.process().put(&[0x90; 16]) & !4095;
    call(target, libc::SYS_mprotect, &[page, 4096, 5])
}

fn map_program(target: &mut Target) -> Result<Verdict, Died> {
    let (dir, name) = (target.share_fd(), target.process().path("program"));
    let fd = target.process().call(libc::SYS_openat, &[dir, name, 0, 0])?;
    if fd < 0 {
        return Ok(Verdict::of(fd));
    }
    call(target, libc::SYS_mmap, &[0, 4096, 5, libc::MAP_PRIVATE as u64, fd.cast_unsigned(), 0])
}

fn tiocsti(target: &mut Target) -> Result<Verdict, Died> {
    let fds = target.fds();
    worst(fds.into_iter().map(|fd| {
        target.process().forget();
        let byte = target.process().put(b"x");
        call(target, libc::SYS_ioctl, &[fd.number as u64, libc::TIOCSTI, byte])
    }))
}

/// Sets an attribute of a file in the share, through an fd and by the name that fd has in the fd directory.
fn set_xattr(target: &mut Target, attribute: &str) -> Result<Verdict, Died> {
    let (dir, name) = (target.share_fd(), target.process().path("file"));
    let fd = target.process().call(libc::SYS_openat, &[dir, name, libc::O_RDWR as u64, 0])?;
    if fd < 0 {
        return Ok(Verdict::of(fd));
    }
    let attribute = target.process().path(attribute);
    let link = target.process().path(&fd.to_string());
    let by_path = target.process().call(libc::SYS_setxattr, &[link, attribute, link, 1, 0])?;
    if by_path >= 0 {
        return Ok(Verdict::of(by_path));
    }
    call(target, libc::SYS_fsetxattr, &[fd.cast_unsigned(), attribute, link, 1, 0])
}

fn all_capabilities(target: &mut Target) -> Result<Verdict, Died> {
    // _LINUX_CAPABILITY_VERSION_3, this thread; all sets full.
    let header: Vec<u8> = [0x2008_0522u32, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    let (header, data) = (target.process().put(&header), target.process().put(&[0xff; 24]));
    call(target, libc::SYS_capset, &[header, data])
}

fn raise_limit(target: &mut Target) -> Result<Verdict, Died> {
    let all = target.process().put(&[0xff; 16]);
    call(target, libc::SYS_prlimit64, &[0, libc::RLIMIT_MEMLOCK.into(), all, 0])
}

fn host_name(target: &mut Target) -> Result<Verdict, Died> {
    // The name that the host has already: where it succeeds, it changes nothing.
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name").trim().to_owned();
    let name = target.process().path(&own);
    call(target, libc::SYS_sethostname, &[name, own.len() as u64])
}

/// The process that runs this test: one that the worker has nothing to do with.
fn other_process() -> u64 {
    std::process::id().into()
}

/// Everything.
pub const ATTEMPTS: &[Attempt] = &[
    attempt("read a host file by its absolute path", WithoutSeccomp, absolute),
    attempt("the same by open", WithoutSeccomp, absolute_by_old_open),
    attempt("the same by openat2", WithoutSeccomp, absolute_by_openat2),
    attempt("the same from each held directory", WithoutSeccomp, absolute_by_directory_fd),
    attempt("\"..\" from each held directory", WithoutSeccomp, dots),
    attempt("up and down again from each held directory", WithoutSeccomp, dots_to_secret),
    attempt("through /proc/1/root", WithoutSeccomp, proc_of_init),
    attempt("through /proc from each held directory", WithoutSeccomp, proc_from_directories),
    attempt("a forged handle of a file outside the share", WithoutSeccomp, by_forged_handle),
    attempt("make a block device", WithoutSeccomp, |t| mknod(t, libc::S_IFBLK, 0x800)),
    attempt("make a character device (/dev/mem)", WithoutSeccomp, |t| mknod(t, libc::S_IFCHR, 0x101)),
    attempt("open a device node that lies in the share", WithoutSeccomp, open_device),
    attempt("execve", WithoutSeccomp, execve),
    attempt("execveat of a program in the share", WithoutSeccomp, execveat_from_share),
    attempt("fork", BySeccompAlone, |t| call(t, libc::SYS_fork, &[])),
    attempt("vfork", BySeccompAlone, |t| call(t, libc::SYS_vfork, &[])),
    attempt("clone of a process", BySeccompAlone, |t| call(t, libc::SYS_clone, &[libc::SIGCHLD as u64])),
    attempt("clone3", BySeccompAlone, clone3),
    attempt("a UNIX socket", BySeccompAlone, |t| call(t, libc::SYS_socket, &[1, 1, 0])),
    attempt("an IPv4 socket", BySeccompAlone, |t| call(t, libc::SYS_socket, &[2, 1, 0])),
    attempt("an IPv6 socket", BySeccompAlone, |t| call(t, libc::SYS_socket, &[10, 2, 0])),
    attempt("a netlink socket", BySeccompAlone, |t| call(t, libc::SYS_socket, &[16, 3, 0])),
    attempt("a packet socket", WithoutSeccomp, |t| call(t, libc::SYS_socket, &[17, 3, 0])),
    attempt("a vsock socket", BySeccompAlone, |t| call(t, libc::SYS_socket, &[40, 1, 0])),
    attempt("a socket pair", BySeccompAlone, |t| with_zeros(t, libc::SYS_socketpair, &[1, 1, 0], 3)),
    attempt("signal another process", WithoutSeccomp, |t| call(t, libc::SYS_kill, &[other_process(), 0])),
    // The one signal that the filter has, for abort.
    attempt("abort another process", WithoutSeccomp, |t| {
        let victim = t.victim();
        call(t, libc::SYS_tgkill, &[victim, victim, libc::SIGABRT as u64])
    }),
    attempt("have another process signalled by a socket", WithoutSeccomp, set_owner),
    attempt("a pidfd of another process", WithoutSeccomp, |t| {
        call(t, libc::SYS_pidfd_open, &[other_process(), 0])
    }),
    attempt("trace another process", WithoutSeccomp, |t| {
        call(t, libc::SYS_ptrace, &[0x4206, other_process(), 0, 0])
    }),
    attempt("read another process's memory", WithoutSeccomp, |t| {
        other_memory(t, libc::SYS_process_vm_readv, other_process())
    }),
    attempt("write another process's memory", WithoutSeccomp, |t| {
        let victim = t.victim();
        other_memory(t, libc::SYS_process_vm_writev, victim)
    }),
    attempt("mount", WithoutSeccomp, mount),
    attempt("fsopen proc", WithoutSeccomp, fsopen),
    attempt("open_tree (clone)", WithoutSeccomp, open_tree),
    attempt("umount", WithoutSeccomp, umount),
    attempt("pivot_root", WithoutSeccomp, pivot_root),
    attempt("chroot", WithoutSeccomp, chroot),
    attempt("unshare a user namespace", BySeccompAlone, |t| {
        call(t, libc::SYS_unshare, &[libc::CLONE_NEWUSER as u64])
    }),
    attempt("unshare a mount namespace", WithoutSeccomp, |t| {
        call(t, libc::SYS_unshare, &[libc::CLONE_NEWNS as u64])
    }),
    attempt("setns by each held fd", WithoutSeccomp, setns),
    attempt("io_uring_setup", BySeccompAlone, |t| with_zeros(t, libc::SYS_io_uring_setup, &[4], 1)),
    attempt("bpf (map)", WithoutSeccomp, bpf),
    attempt("perf_event_open", BySeccompAlone, perf),
    attempt("userfaultfd", WithoutSeccomp, userfaultfd),
    attempt("shared memory of System V", BySeccompAlone, |t| {
        call(t, libc::SYS_shmget, &[0, 4096, (libc::IPC_CREAT | 0o600) as u64])
    }),
    attempt("a filter of its own, with a listener", BySeccompAlone, own_filter),
    attempt("keyctl (join a session)", BySeccompAlone, |t| call(t, libc::SYS_keyctl, &[1, 0])),
    attempt("add_key", BySeccompAlone, add_key),
    attempt("memfd_create", BySeccompAlone, memfd),
    attempt("mmap, writable and executable", BySeccompAlone, |t| {
        call(t, libc::SYS_mmap, &[0, 4096, 7, ANONYMOUS, NONE, 0])
    }),
    attempt("executable by reading (personality)", BySeccompAlone, |t| {
        call(t, libc::SYS_personality, &[libc::READ_IMPLIES_EXEC as u64])
    }),
    attempt("mmap of a program in the share", WithoutSeccomp, map_program),
    attempt("mprotect, executable", BySeccompAlone, mprotect),
    attempt("TIOCSTI on each held fd", WithoutSeccomp, tiocsti),
    attempt("set trusted.x", WithoutSeccomp, |t| set_xattr(t, "trusted.x")),
    attempt("set security.x", WithoutSeccomp, |t| set_xattr(t, "security.x")),
    attempt("dumpable again", BySeccompAlone, |t| {
        call(t, libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1])
    }),
    attempt("all capabilities", WithoutSeccomp, all_capabilities),
    attempt("setuid to an id outside the map", WithoutSeccomp, |t| call(t, libc::SYS_setuid, &[0xffff_fffe])),
    attempt("raise a resource limit", WithoutSeccomp, raise_limit),
    attempt("set the host name", WithoutSeccomp, host_name),
    attempt("read the kernel's log", WithoutSeccomp, |t| with_zeros(t, libc::SYS_syslog, &[3, 64], 1)),
    attempt("load a module", WithoutSeccomp, |t| with_zeros(t, libc::SYS_init_module, &[64], 0)),
    attempt("I/O ports", WithoutSeccomp, |t| call(t, libc::SYS_iopl, &[3])),
    attempt("swapoff", WithoutSeccomp, |t| with_zeros(t, libc::SYS_swapoff, &[], 0)),
];
