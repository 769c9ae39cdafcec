//! A script: operations on a small set of names, generated from a seed, so that most of them meet what earlier
//! ones made. [`world`] applies it to a directory, natively, through a mount of the bridge, or in a guest, and
//! [`Run`] is what came of it: the same wherever the file system is as good as the native one.

pub mod world;

use std::path::Path;

/// Who acts, as far as the file system asks: user, group, further groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Whose files it makes.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// Its other groups.
    pub groups: &'static [u32],
}

/// Who takes part: root, and two ordinary users with a group in common.
pub const USERS: [User; 3] = [
    User { uid: 0, gid: 0, groups: &[] },
    User { uid: 1000, gid: 1000, groups: &[] },
    User { uid: 1001, gid: 1001, groups: &[1000] },
];

/// Files that are open at the same time.
pub const SLOTS: usize = 6;

/// One step. Paths are relative to the share.
#[expect(missing_docs, reason = "these are the system calls of the same names, and their arguments")]
#[derive(Clone, Debug)]
pub enum Op {
    Mkdir { path: String, mode: u32 },
    Rmdir { path: String },
    Unlink { path: String },
    Rename { from: String, to: String, flags: u32 },
    Link { from: String, to: String },
    Symlink { target: String, path: String },
    Readlink { path: String },
    Mknod { path: String, kind: u32, mode: u32 },
    Chmod { path: String, mode: u32 },
    Chown { path: String, uid: u32, gid: u32 },
    Truncate { path: String, size: i64 },
    Utimens { path: String, seconds: i64 },
    Stat { path: String },
    Access { path: String, mask: i32 },
    List { path: String },
    SetXattr { path: String, name: &'static str, len: usize, flags: i32 },
    GetXattr { path: String, name: &'static str },
    ListXattr { path: String },
    RemoveXattr { path: String, name: &'static str },
    Open { slot: usize, path: String, flags: i32, mode: u32 },
    Close { slot: usize },
    Write { slot: usize, offset: i64, len: usize },
    Append { slot: usize, len: usize },
    Read { slot: usize, offset: i64, len: usize },
    Fallocate { slot: usize, mode: i32, offset: i64, len: i64 },
    Seek { slot: usize, offset: i64, whence: i32 },
    Ftruncate { slot: usize, size: i64 },
    Fstat { slot: usize },
    Fsync { slot: usize },
    CopyRange { from: usize, to: usize, from_offset: i64, to_offset: i64, len: usize },
    Tmpfile { path: String, link: Option<String> },
}

/// One step, by whom, under which umask.
#[derive(Clone, Debug)]
pub struct Step {
    /// By whom.
    pub user: User,
    /// Under which umask.
    pub umask: u32,
    /// What.
    pub op: Op,
}

/// What the steps said, one line each, and the tree that they left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// One line a step, with its errno.
    pub lines: Vec<String>,
    /// As [`world::tree`] sees it.
    pub tree: Vec<String>,
}

impl Run {
    /// Runs a script in an empty directory and looks at what it left, both by this kernel.
    pub fn here(root: &Path, script: &[Step]) -> Run {
        let lines = world::run(root, script);
        Run { lines, tree: world::tree(root) }
    }

    /// For another machine: the lines, an empty line, the tree.
    pub fn to_text(&self) -> String {
        let lines = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        format!("{}\n{}", lines(&self.lines), lines(&self.tree))
    }

    /// What [`Run::to_text`] made. None when there is no empty line.
    pub fn from_text(text: &str) -> Option<Run> {
        let (lines, tree) = text.split_once("\n\n")?;
        let split = |text: &str| text.lines().map(str::to_owned).collect();
        Some(Run { lines: split(lines), tree: split(tree) })
    }

    /// Panics at the first step with another outcome than here, showing what came before; `what` names the two.
    pub fn must_equal(&self, what: &str, got: &Run) {
        for (n, (a, b)) in self.lines.iter().zip(&got.lines).enumerate() {
            let before = &self.lines[n.saturating_sub(6)..n];
            assert!(a == b, "{what}:\n{before:#?}\nexpected {a}\ngot      {b}");
        }
        assert_eq!(self.lines.len(), got.lines.len(), "{what}: steps that were made");
        must_leave_the_same(what, &self.tree, &got.tree);
    }
}

/// Panics at the first thing in which two trees differ.
pub fn must_leave_the_same(what: &str, expected: &[String], got: &[String]) {
    for (a, b) in expected.iter().zip(got) {
        assert_eq!(a, b, "{what}: the trees that are left");
    }
    assert_eq!(expected.len(), got.len(), "{what}: the trees that are left");
}

/// The generator of PCG's simple relative: enough for choosing.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

const NAMES: [&str; 5] = ["a", "b", "c", "long-name-with-ünicode", "x y"];
const DIRECTORIES: [&str; 2] = ["d", "e"];
const XATTRS: [&str; 3] = ["user.one", "user.two", "user.three"];
const MODES: [u32; 8] = [0o644, 0o755, 0o600, 0o777, 0o700, 0o4755, 0o2775, 0o1777];
const SIZES: [i64; 7] = [0, 1, 511, 4096, 4097, 65_536, 200_000];

/// A path of up to three components; now and then one that can't be.
fn path(random: &mut Random) -> String {
    if random.below(60) == 0 {
        return format!("{}/{}", random.of(&NAMES), "n".repeat(random.of(&[255, 256])));
    }
    // Most names lie in directories that are there from the start.
    let depth = random.of(&[0, 1, 1, 2]);
    let mut names: Vec<&str> = (0..depth).map(|_| random.of(&DIRECTORIES)).collect();
    names.push(if random.below(40) == 0 { random.of(&DIRECTORIES) } else { random.of(&NAMES) });
    names.join("/")
}

/// A script of `count` steps.
pub fn generate(seed: u64, count: usize) -> Vec<Step> {
    let mut random = Random(seed);
    let directories = ["d", "e", "d/d", "d/e", "e/d", "e/e"].map(|path| Step {
        user: USERS[0],
        umask: 0,
        op: Op::Mkdir { path: path.into(), mode: 0o777 },
    });
    let steps = (0..count).map(|_| {
        let user = USERS[random.of(&[0, 0, 0, 1, 2])];
        // Set-group-id without execution for the group is a matter of the caller's groups, which most requests
        // don't tell: no umask takes that right away.
        let umask = random.of(&[0, 0o022, 0o027]);
        let op = if random.below(2) == 0 { on_path(&mut random) } else { on_file(&mut random) };
        Step { user, umask, op }
    });
    directories.into_iter().chain(steps).collect()
}

/// Where the guest's kernel is another than a native file system, with these options, whatever a daemon does. The
/// kernel 6.1 is among the options as `linux-6.1`.
pub fn client_differs(options: &[&str], step: &Step) -> Option<&'static str> {
    match step.op {
        Op::Fallocate { .. } | Op::CopyRange { .. } if options.contains(&"--killpriv-v2") => {
            Some("clearing set-id bits is left to the daemon, but not who may keep them: ours clears them")
        }
        Op::Seek { .. } if options.contains(&"--writeback") => {
            Some("the client asks for holes before it has written back what it holds")
        }
        Op::Tmpfile { .. } if options.contains(&"linux-6.1") => {
            Some("an overlay on the share breaks with it, so such a kernel isn't given it")
        }
        _ => None,
    }
}

/// A script without the steps that a daemon with these options can't make right.
pub fn for_client(seed: u64, count: usize, options: &[&str]) -> Vec<Step> {
    generate(seed, count).into_iter().filter(|step| client_differs(options, step).is_none()).collect()
}

fn on_path(r: &mut Random) -> Op {
    match r.below(24) {
        0..=3 => Op::Mkdir { path: path(r), mode: r.of(&MODES) },
        4 => Op::Rmdir { path: path(r) },
        5 => Op::Unlink { path: path(r) },
        6..=8 => {
            let flags =
                r.of(&[0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE, libc::RENAME_WHITEOUT, 8]);
            Op::Rename { from: path(r), to: path(r), flags }
        }
        9 => Op::Link { from: path(r), to: path(r) },
        10 => Op::Symlink { target: path(r), path: path(r) },
        11 => Op::Readlink { path: path(r) },
        12 => Op::Mknod {
            path: path(r),
            kind: r.of(&[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG, libc::S_IFCHR]),
            mode: r.of(&MODES),
        },
        13 | 14 => Op::Chmod { path: path(r), mode: r.of(&MODES) },
        15 => Op::Chown {
            path: path(r),
            uid: r.of(&[0, 1000, 1001, u32::MAX]),
            gid: r.of(&[0, 1000, 1001, u32::MAX]),
        },
        16 => Op::Truncate { path: path(r), size: r.of(&SIZES) },
        17 => Op::Utimens { path: path(r), seconds: r.of(&[0, 1, 1_000_000_000, 4_294_967_296]) },
        18 => Op::Stat { path: path(r) },
        19 => Op::Access { path: path(r), mask: r.below(8) as i32 },
        20 => Op::List { path: path(r) },
        21 => Op::SetXattr {
            path: path(r),
            name: r.of(&XATTRS),
            len: r.of(&[0, 5, 900]),
            flags: r.of(&[0, libc::XATTR_CREATE, libc::XATTR_REPLACE]),
        },
        22 => Op::GetXattr { path: path(r), name: r.of(&XATTRS) },
        _ => match r.below(3) {
            0 => Op::ListXattr { path: path(r) },
            1 => Op::RemoveXattr { path: path(r), name: r.of(&XATTRS) },
            _ => {
                let link = if r.below(2) == 0 { Some(path(r)) } else { None };
                Op::Tmpfile { path: path(r), link }
            }
        },
    }
}

fn on_file(r: &mut Random) -> Op {
    let slot = r.below(SLOTS);
    let offset = r.of(&SIZES) + r.below(100) as i64;
    match r.below(20) {
        0..=7 => {
            let mut flags = r.of(&[libc::O_RDWR, libc::O_RDWR, libc::O_WRONLY, libc::O_RDONLY]);
            for (flag, one_in) in [
                (libc::O_CREAT, 2),
                (libc::O_EXCL, 12),
                (libc::O_TRUNC, 6),
                (libc::O_APPEND, 5),
                (libc::O_NOFOLLOW, 8),
                (libc::O_DIRECTORY, 40),
            ] {
                flags |= if r.below(one_in) == 0 { flag } else { 0 };
            }
            // A FIFO must not make the script wait.
            Op::Open { slot, path: path(r), flags: flags | libc::O_NONBLOCK, mode: r.of(&MODES) }
        }
        8 => Op::Close { slot },
        9..=11 => Op::Write { slot, offset, len: 1 + r.below(9000) },
        12 => Op::Append { slot, len: 1 + r.below(5000) },
        13 | 14 => Op::Read { slot, offset, len: 1 + r.below(20_000) },
        15 => {
            let mode = r.of(&[
                0,
                libc::FALLOC_FL_KEEP_SIZE,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                libc::FALLOC_FL_ZERO_RANGE,
                libc::FALLOC_FL_PUNCH_HOLE,
            ]);
            Op::Fallocate { slot, mode, offset, len: r.of(&SIZES) }
        }
        16 => Op::Seek { slot, offset, whence: r.of(&[libc::SEEK_DATA, libc::SEEK_HOLE, libc::SEEK_END]) },
        17 => Op::Ftruncate { slot, size: offset },
        18 => match r.below(2) {
            0 => Op::Fstat { slot },
            _ => Op::Fsync { slot },
        },
        _ => Op::CopyRange {
            from: slot,
            to: r.below(SLOTS),
            from_offset: offset,
            to_offset: r.of(&SIZES),
            len: 1 + r.below(9000),
        },
    }
}
