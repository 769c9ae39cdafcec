//! Runs cases, and what they have in common.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sandbox::id_maps::IdMaps;
use sandbox::namespaces::Namespaces;
use sandbox::process::{Child, Exit, Spawn, SpawnError};

/// The ordinary user: exists everywhere, owns nothing.
pub const NOBODY: u32 = 65534;

/// Seconds after which a case that hangs is killed, and with it what it has started.
const DEADLINE: u32 = 30;

/// Who runs a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    Ordinary,
}

#[derive(Clone, Copy)]
pub struct Case {
    pub who: Who,
    pub name: &'static str,
    pub run: fn(),
}

#[derive(Clone, Copy)]
pub struct Role {
    pub name: &'static str,
    pub run: fn(),
}

/// `cases![Root: a, b; Ordinary: c]`
macro_rules! cases {
    ($($who:ident: $($run:ident),+);+ $(;)?) => {
        &[$($($crate::harness::Case {
            who: $crate::harness::Who::$who,
            name: concat!(module_path!(), "::", stringify!($run)),
            run: $run,
        }),+),+]
    };
}
pub(crate) use cases;

/// `roles![a, b]`
macro_rules! roles {
    ($($run:ident),*) => {
        &[$($crate::harness::Role { name: stringify!($run), run: $run }),*]
    };
}
pub(crate) use roles;

/// As the standard harness: arguments that are no options select by a part of the name, and selecting none is no
/// failure (the same arguments go to all tests of the workspace).
pub fn run_all(cases: &[Case], arguments: &[&str]) -> ExitCode {
    let filters: Vec<&&str> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |case: &&Case| filters.is_empty() || filters.iter().any(|part| label(case).contains(**part));
    let selected: Vec<&Case> = cases.iter().filter(wanted).collect();
    if arguments.contains(&"--list") {
        selected.iter().for_each(|case| println!("{}: test", label(case)));
        return ExitCode::SUCCESS;
    }
    if !selected.is_empty() && !nix::unistd::geteuid().is_root() {
        println!("the layers are tested as root and as an ordinary user: start this as root");
        return ExitCode::FAILURE;
    }
    let failed: Vec<String> = selected.iter().filter(|case| !passes(case)).map(|case| label(case)).collect();
    let (passed, filtered) = (selected.len() - failed.len(), cases.len() - selected.len());
    println!("\n{passed} passed, {} failed {failed:?}, {filtered} filtered out", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn label(case: &Case) -> String {
    format!("{} ({:?})", case.name, case.who)
}

/// Runs one case in a process of its own.
fn passes(case: &Case) -> bool {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--case", &label(case)]).env_clear();
    if case.who == Who::Ordinary {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    if output.status.success() {
        println!("test {} ... ok", label(case));
    } else {
        println!("test {} ... FAILED: {}", label(case), output.status);
        println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

pub fn run_case(cases: &[Case], name: &str) -> ExitCode {
    nix::unistd::alarm::set(DEADLINE);
    let case = cases.iter().find(|case| label(case) == name).unwrap();
    assert_eq!(nix::unistd::geteuid().is_root(), case.who == Who::Root);
    (case.run)();
    assert_no_children();
    ExitCode::SUCCESS
}

pub fn run_role(roles: &[Role], name: &str) -> ExitCode {
    let role = roles.iter().find(|role| role.name == name).unwrap();
    (role.run)();
    ExitCode::SUCCESS
}

/// No child of this process is left, not even an unreaped one.
pub fn assert_no_children() {
    assert_eq!(nix::sys::wait::waitpid(None, None), Err(Errno::ECHILD), "a child is left");
}

/// All seven kinds.
pub fn everything() -> Namespaces {
    Namespaces::all()
}

/// The range of the daemon's default.
pub fn shifted() -> IdMaps {
    IdMaps::shifted(2_147_483_648, 2_147_483_647)
}

/// Starts this executable in a role, with our standard output and error, and these descriptors besides.
pub fn start_role(
    name: &str,
    namespaces: Namespaces,
    id_maps: Option<IdMaps>,
    fds: &[(BorrowedFd<'_>, RawFd)],
) -> Result<Child, SpawnError> {
    let exe = File::open("/proc/self/exe").unwrap();
    let (out, err) = (std::io::stdout(), std::io::stderr());
    let mut all = vec![(out.as_fd(), 1), (err.as_fd(), 2)];
    all.extend_from_slice(fds);
    let argv = ["layers", "--role", name].map(|text| CString::new(text).unwrap()).to_vec();
    Spawn { exe: exe.as_fd(), argv, envp: Vec::new(), fds: all, namespaces, id_maps }.spawn()
}

/// Starts a role, and expects it to succeed.
pub fn expect_role(
    name: &str,
    namespaces: Namespaces,
    id_maps: Option<IdMaps>,
    fds: &[(BorrowedFd<'_>, RawFd)],
) {
    let mut child = start_role(name, namespaces, id_maps, fds).unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Status(0), "role {name}");
}

/// Where a role finds its end of a [`Rendezvous`].
pub const RENDEZVOUS_FD: RawFd = 9;

/// Where a role finds the first descriptor that its case gives it.
pub const FIRST_FD: RawFd = 10;

/// Two processes that wait for each other. When the other one is gone, waiting fails.
pub struct Rendezvous(UnixStream);

impl Rendezvous {
    pub fn pair() -> (Self, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Self(ours), theirs.into())
    }

    /// A role's end.
    pub fn inherited() -> Self {
        Self(inherited(RENDEZVOUS_FD).into())
    }

    pub fn signal(&mut self) {
        self.0.write_all(&[1]).unwrap();
    }

    pub fn wait(&mut self) {
        self.0.read_exact(&mut [0]).expect("the other process is gone");
    }

    /// Waits for the other's end of it to be closed.
    pub fn wait_for_end(&mut self) {
        assert_eq!(self.0.read(&mut [0]).unwrap(), 0);
    }
}

/// Takes a descriptor that this program was started with.
pub fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: a role takes each number once; nothing else in it knows of the number.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// The role that says it runs, and then waits until its case lets it end.
pub fn idle() {
    let mut rendezvous = Rendezvous::inherited();
    rendezvous.signal();
    rendezvous.wait();
}

/// The numbers of this process's open descriptors.
pub fn open_fds() -> Vec<RawFd> {
    let entries: Vec<PathBuf> = fs::read_dir("/proc/self/fd").unwrap().map(|e| e.unwrap().path()).collect();
    // The one with which the directory was read is closed by now.
    let open = entries.iter().filter(|path| fs::read_link(path).is_ok());
    let mut numbers: Vec<RawFd> =
        open.map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

/// A field of /proc/PID/status (or of a thread's), without white space around.
pub fn status_field(task: &str, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{task}/status")).unwrap();
    let prefix = format!("{field}:");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().trim().to_owned()
}

/// The same as a hexadecimal number.
pub fn status_mask(task: &str, field: &str) -> u64 {
    u64::from_str_radix(&status_field(task, field), 16).unwrap()
}

/// A mount namespace of this case's own, with an empty tmpfs; it all goes away with the case.
pub fn private_tmpfs() -> &'static Path {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let root = Path::new("/tmp");
    tmpfs(root);
    // Not sticky: in sticky directories fs.protected_regular has rules of its own, on the machines that set it.
    fs::set_permissions(root, Permissions::from_mode(0o777)).unwrap();
    root
}

pub fn tmpfs(at: &Path) {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// A directory that goes away at the end of the scope.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        Self(nix::unistd::mkdtemp("/tmp/layers-XXXXXX").unwrap())
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The errno in an `io::Error`.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
}
