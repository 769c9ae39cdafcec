//! For each rule of each policy, a call that only this rule decides and a mutant that must not pass.
//!
//! The calls are harmless where they do happen: most name no open fd. A rule without a row fails the suite,
//! and so does a row without a rule.

/// Arguments; missing ones are 0.
pub type Args = &'static [u64];

/// A row of the table.
pub struct Case {
    /// Key of the rule.
    pub rule: &'static str,
    /// The rule's system call, with arguments that meet its conditions.
    pub call: Args,
    /// What must not pass.
    pub mutant: Mutant,
}

/// The smallest step away from what a rule allows.
pub enum Mutant {
    /// The same call with other arguments.
    Same(Args),
    /// A neighbour, by name.
    Other(&'static str, Args),
}

use Mutant::{Other, Same};

const fn case(rule: &'static str, call: Args, mutant: Mutant) -> Case {
    Case { rule, call, mutant }
}

/// No fd, no process, no id.
const NO: u64 = u64::MAX;
/// A directory fd that isn't open.
const DIR: u64 = 0x7fff_ffff;
/// As a C compiler may pass it: 32 bits of -100.
const AT_FDCWD: u64 = 0xffff_ff9c;
const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;

/// Every rule's row.
pub const CASES: &[Case] = &[
    case("files/openat", &[NO], Other("openat2", &[NO])),
    case("files/statx", &[NO], Other("newfstatat", &[NO])),
    case("files/pread64", &[NO], Other("preadv", &[NO])),
    case("files/preadv2", &[NO], Other("preadv", &[NO])),
    case("files/pwrite64", &[NO], Other("pwritev", &[NO])),
    case("files/pwritev2", &[NO], Other("pwritev", &[NO])),
    case("files/getdents64", &[NO], Other("fanotify_init", &[NO])),
    case("files/lseek", &[NO], Other("vmsplice", &[NO])),
    case("files/readlinkat", &[NO], Other("getcwd", &[])),
    case("files/fsync", &[NO], Other("sync", &[])),
    case("files/fdatasync", &[NO], Other("sync_file_range", &[NO])),
    case("files/syncfs", &[NO], Other("sync", &[])),
    case("files/fallocate", &[NO], Other("readahead", &[NO])),
    case("files/copy_file_range", &[NO, 0, NO], Other("splice", &[NO, 0, NO])),
    case("files/fstatfs", &[NO], Other("statfs", &[])),
    case("files/ftruncate", &[NO], Other("truncate", &[])),
    case("files/fchmodat", &[NO], Other("fchmod", &[NO])),
    case("files/fchownat", &[NO], Other("fchown", &[NO])),
    case("files/utimensat", &[NO, 1], Other("settimeofday", &[1])),
    case("files/name_to_handle_at:AT_EMPTY_PATH", &[NO, 0, 0, 0, 0x1000], Other("open_by_handle_at", &[NO])),
    case("files/open_tree:OPEN_TREE_CLOEXEC|AT_EMPTY_PATH", &[NO, 0, 0x81000], Same(&[NO, 0, 0x81001])),
    case("files/mkdirat", &[NO], Other("chroot", &[])),
    case("files/mknodat:S_IFREG", &[NO, 0, 0x8000], Same(&[NO, 0, 0x6000])),
    case("files/mknodat:S_IFIFO", &[NO, 0, 0x1000], Same(&[NO, 0, 0x4000])),
    case("files/mknodat:S_IFSOCK", &[NO, 0, 0xc000], Same(&[NO, 0, 0xa000])),
    case("files/mknodat:S_IFCHR, device 0:0", &[NO, 0, 0x2000, 0], Same(&[NO, 0, 0x2000, 0x103])),
    case("files/symlinkat", &[0, NO], Other("mount", &[])),
    case("files/linkat", &[NO, 0, NO], Other("open_tree", &[NO])),
    case("files/unlinkat", &[NO], Other("umount2", &[])),
    case("files/renameat2", &[NO, 0, NO], Other("pivot_root", &[])),
    case("credentials/setfsuid", &[NO], Other("setresuid", &[NO, NO, NO])),
    case("credentials/setfsgid", &[NO], Other("setresgid", &[NO, NO, NO])),
    case("credentials/setgroups", &[0x7fff_ffff], Other("getgroups", &[0])),
    case("io/fcntl:F_GETFD", &[NO, 1], Same(&[NO, 8])),
    case("io/read", &[NO], Other("readv", &[NO])),
    case("io/write", &[NO], Other("writev", &[NO])),
    case("io/close", &[NO], Other("close_range", &[NO - 1, NO])),
    case("io/recvmsg", &[NO], Other("recvmmsg", &[NO])),
    case("io/sendmsg", &[NO], Other("sendmmsg", &[NO])),
    case("vhost-user/fcntl:F_DUPFD_CLOEXEC", &[NO, 1030], Same(&[NO, 0])),
    case("vhost-user/fcntl:F_SETFL, O_RDWR | O_NONBLOCK", &[NO, 4, 0x802], Same(&[NO, 4, 0x2802])),
    case("vhost-user/getsockopt:SOL_SOCKET, SO_DOMAIN", &[NO, 1, 39], Same(&[NO, 1, 17])),
    case("vhost-user/getsockopt:SOL_SOCKET, SO_TYPE", &[NO, 1, 3], Same(&[NO, 6, 3])),
    case("vhost-user/accept4", &[NO], Other("connect", &[NO])),
    case("vhost-user/shutdown", &[NO], Other("socket", &[1, 1])),
    case("vhost-user/epoll_ctl", &[NO], Other("epoll_create1", &[])),
    case("worker/epoll_wait", &[NO], Other("epoll_pwait2", &[NO])),
    case("worker/epoll_pwait", &[NO], Other("epoll_pwait2", &[NO])),
    case("memory/mmap:only PROT_READ and PROT_WRITE", &[0, 4096, 3, 0x22, NO], Same(&[0, 4096, 5, 0x22, NO])),
    case("memory/mprotect:only PROT_READ and PROT_WRITE", &[0, 0, 1], Same(&[0, 0, 5])),
    case("memory/munmap", &[], Other("memfd_create", &[])),
    case("memory/mremap=ENOSYS", &[0, 0, 0, NO], Other("pkey_mprotect", &[])),
    case("memory/madvise", &[0, 0, 4], Other("process_madvise", &[NO])),
    case("memory/brk", &[], Other("mlockall", &[])),
    case("threads/clone:a thread", &[0x3d_0f00], Same(&[libc::SIGCHLD as u64])),
    case("threads/clone3=ENOSYS", &[], Other("unshare", &[NEW_USER])),
    case("threads/futex", &[0, 1], Other("get_robust_list", &[NO])),
    case("threads/rseq", &[], Other("membarrier", &[])),
    case("threads/set_robust_list=ENOSYS", &[], Other("get_robust_list", &[NO])),
    case("threads/sched_yield", &[], Other("sched_setscheduler", &[NO])),
    case("threads/prctl:PR_SET_NAME", &[15], Same(&[1])),
    case("threads/exit", &[0], Other("kill", &[0x7fff_fff0])),
    case("process/rt_sigprocmask", &[], Other("rt_sigpending", &[])),
    case("process/restart_syscall", &[], Other("ptrace", &[NO])),
    case("process/getpid", &[], Other("getppid", &[])),
    case("process/gettid", &[], Other("getsid", &[])),
    case("process/tgkill:SIGABRT", &[NO, NO, 6], Same(&[NO, NO, 9])),
    case("process/clock_gettime", &[NO], Other("clock_settime", &[NO])),
    case("process/getrandom", &[], Other("keyctl", &[NO])),
    case("process/exit_group", &[0], Other("execve", &[])),
    case("xattr/getxattr", &[], Other("lgetxattr", &[])),
    case("xattr/listxattr", &[], Other("llistxattr", &[])),
    case("xattr/setxattr", &[], Other("lsetxattr", &[])),
    case("xattr/removexattr", &[], Other("lremovexattr", &[])),
    case("umask/unshare:CLONE_FS", &[0x200], Same(&[NEW_USER])),
    case("umask/umask", &[0o22], Other("chroot", &[])),
    case("capabilities/capset", &[], Other("capget", &[])),
    case("locks/fcntl:F_OFD_GETLK", &[NO, 36], Same(&[NO, 5])),
    case("locks/fcntl:F_OFD_SETLK", &[NO, 37], Same(&[NO, 38])),
    case("locks/flock", &[NO], Other("io_uring_setup", &[])),
    case("ioctl/ioctl:FS_IOC_GETFLAGS", &[NO, 0x8008_6601], Same(&[NO, 0x8008_7601])),
    case("ioctl/ioctl:FS_IOC_SETFLAGS", &[NO, 0x4008_6602], Same(&[NO, 0x4008_7602])),
    case("ioctl/ioctl:FS_IOC_FSGETXATTR", &[NO, 0x801c_581f], Same(&[NO, 0x5412])),
    case("ioctl/ioctl:FS_IOC_FSSETXATTR", &[NO, 0x401c_5820], Same(&[NO, 0x4004_9409])),
    case("handles/name_to_handle_at:AT_EMPTY_PATH", &[NO, 0, 0, 0, 0x1000], Same(&[NO, 0, 0, 0, 0x400])),
    case("handles/open_by_handle_at:O_PATH", &[NO, 0, 0x20_0000], Same(&[NO, 0, 0x2])),
    case("handles/openat:a directory fd, to read, nothing created", &[DIR], Same(&[DIR, 0, 2])),
    case("handles/statx", &[NO], Other("newfstatat", &[NO])),
    case("supervision/pidfd_send_signal:SIGKILL", &[NO, 9], Same(&[NO, 18])),
    case("supervision/waitid:P_PIDFD", &[3, NO], Same(&[1, NO])),
    case("supervision/unlinkat:a file", &[NO], Same(&[NO, 0, 0x200])),
    case("supervision/ioctl:SIOCOUTQ", &[NO, 0x5411], Same(&[NO, 0x5412])),
    case("supervision/capset", &[], Other("capget", &[])),
    case("supervision/openat=EACCES", &[AT_FDCWD], Other("openat2", &[NO])),
    case("broker/poll", &[0, NO], Other("pselect6", &[NO])),
    case("limits/timerfd_settime:a time from now", &[NO], Same(&[NO, 1])),
    case("exporter/accept4:SOCK_CLOEXEC|SOCK_NONBLOCK", &[NO, 0, 0, 0x80800], Same(&[NO, 0, 0, 0x800])),
    case("exporter/poll", &[0, NO], Other("pselect6", &[NO])),
    case("exporter/ppoll", &[0, NO], Other("pselect6", &[NO])),
    case("exporter/read", &[NO], Other("pread64", &[NO])),
    case("exporter/write", &[NO], Other("pwrite64", &[NO])),
    case("exporter/close", &[NO], Other("close_range", &[NO, 0])),
    case("exporter/fcntl:F_GETFD", &[NO, 1], Same(&[NO, 2])),
    case("follower/poll", &[0, NO], Other("pselect6", &[NO])),
    case("follower/ppoll", &[0, NO], Other("pselect6", &[NO])),
    case("follower/lseek", &[NO], Other("pread64", &[NO])),
    case("follower/read", &[NO], Other("pread64", &[NO])),
    case("follower/openat2:a directory fd", &[DIR], Same(&[AT_FDCWD])),
    case("follower/readlinkat:a directory fd", &[DIR], Same(&[AT_FDCWD])),
    case("follower/statx", &[NO], Other("newfstatat", &[NO])),
    case(
        "follower/open_tree:OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_EMPTY_PATH",
        &[NO, 0, 0x8_1001],
        Same(&[NO, 0, 0x8_9001]),
    ),
    case("follower/mount_setattr:AT_EMPTY_PATH", &[NO, 0, 0x1000], Same(&[NO, 0, 0x9000])),
    case(
        "follower/move_mount:MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH",
        &[NO, 0, NO, 0, 0x44],
        Same(&[NO, 0, NO, 0, 0x4]),
    ),
    case("follower/umount2:MNT_DETACH", &[0, 2], Same(&[0, 0])),
    case("follower/setns:CLONE_NEWNS", &[NO, 0x2_0000], Same(&[NO, 0x1000_0000])),
    case("follower/fchdir", &[NO], Other("chdir", &[0])),
    case("follower/write", &[NO], Other("pwrite64", &[NO])),
    case("follower/close", &[NO], Other("close_range", &[NO, 0])),
    case("follower/fcntl:F_GETFD", &[NO, 1], Same(&[NO, 2])),
    case("broker/ppoll", &[0, NO], Other("pselect6", &[NO])),
    case("make-device/mknodat:S_IFCHR", &[NO, 0, 0x2000], Same(&[NO, 0, 0x8000])),
    case("make-device/mknodat:S_IFBLK", &[NO, 0, 0x6000], Same(&[NO, 0, 0x1000])),
    case("make-device/setfsuid", &[NO], Other("setuid", &[NO])),
    case("make-device/setfsgid", &[NO], Other("setgid", &[NO])),
    case("make-device/umask", &[0o22], Other("chroot", &[])),
    case("trusted-xattr/getxattr", &[], Other("lgetxattr", &[])),
    case("trusted-xattr/listxattr", &[], Other("llistxattr", &[])),
    case("trusted-xattr/setxattr", &[], Other("lsetxattr", &[])),
    case("trusted-xattr/removexattr", &[], Other("lremovexattr", &[])),
];

/// All six arguments.
pub fn pad(args: Args) -> [u64; 6] {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    all
}
