//! The user and group ids of a new user namespace (user_namespaces(7)): made as a value, then written for a
//! process that waits for it. With privilege the maps are written directly; an ordinary user's maps of more
//! than the own id go through the set-uid programs newuidmap(1) and newgidmap(1), which check subuid(5).

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::unistd::{Pid, User, getegid, geteuid};

/// How many lines the kernel takes in one map (`UID_GID_MAP_MAX_EXTENTS`, Linux 4.15 and newer).
pub const MAX_ENTRIES: usize = 340;

/// Where newuidmap and newgidmap are looked for. Not `$PATH`: it belongs to whoever starts us.
const HELPER_DIRECTORIES: [&str; 3] = ["/usr/bin", "/bin", "/run/wrappers/bin"];

/// Most bytes of a helper's complaint that an error quotes.
const HELPER_MESSAGE_MAX: usize = 500;

/// One line of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMapEntry {
    /// First id inside the namespace.
    pub inner: u32,
    /// First id outside, as the process that writes the map sees it.
    pub outer: u32,
    /// How many ids, at least 1; neither range reaches 4294967295, which is no id.
    pub count: u32,
}

/// Both maps of a user namespace. The kernel checks ranges and overlaps when they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMaps {
    /// User ids, 1 to [`MAX_ENTRIES`] lines.
    pub uid: Vec<IdMapEntry>,
    /// Group ids, 1 to [`MAX_ENTRIES`] lines.
    pub gid: Vec<IdMapEntry>,
    /// Take setgroups(2) away in the namespace. An unprivileged writer of `gid` has to.
    pub setgroups_deny: bool,
}

/// Why maps could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum IdMapError {
    /// A map with no line, or with more than the kernel takes.
    #[error("the {map} has {count} lines; it must have 1 to {MAX_ENTRIES}")]
    Length {
        /// `uid_map` or `gid_map`.
        map: &'static str,
        /// Number of lines.
        count: usize,
    },
    /// A file in /proc could not be written.
    #[error(
        "cannot write \"{content}\" to {path}: {source}. The ids outside must exist in the user namespace of \
         the caller, ranges must not overlap, and anything but the caller's own id needs CAP_SETUID and \
         CAP_SETGID (for host id 0 also CAP_SETFCAP)"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written, line breaks shown as ';'.
        content: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// newuidmap or newgidmap is not installed.
    #[error(
        "{helper} is in none of {HELPER_DIRECTORIES:?}: install it (Debian: package uidmap) or map one id only"
    )]
    NoHelper {
        /// Its name.
        helper: &'static str,
    },
    /// newuidmap or newgidmap could not be started.
    #[error("cannot start {}: {source}", path.display())]
    StartHelper {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// newuidmap or newgidmap refused.
    #[error("{} refused to map ids ({status}): {message}. Check the caller's lines in {file}", path.display())]
    HelperRefused {
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it said, at most 500 bytes.
        message: String,
        /// Where the caller's ranges come from.
        file: &'static str,
    },
    /// A file with ids could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file with ids has a line that makes no sense.
    #[error("{} line {line} is not in the form {form}: \"{content}\"", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// The form that was expected.
        form: &'static str,
        /// The line.
        content: String,
    },
    /// The user has no subordinate ids.
    #[error("{user} has no line in {}: add one with usermod --add-subuids or --add-subgids", path.display())]
    NoSubordinateIds {
        /// The user's name.
        user: String,
        /// The file.
        path: PathBuf,
    },
}

impl IdMaps {
    /// Ids `0..count` are `base..base + count` outside, users and groups alike.
    pub fn shifted(base: u32, count: u32) -> Self {
        let line = IdMapEntry { inner: 0, outer: base, count };
        Self { uid: vec![line], gid: vec![line], setgroups_deny: false }
    }

    /// Every id that the calling process can name, one to one. On a host that is `0 0 4294967295`; in a
    /// container it is what the container has.
    ///
    /// The namespace gives no capability over the host, but to file permissions its root is the host's root: what
    /// the process can name (a path, a descriptor) it can use as that. Combine it with an empty root.
    ///
    /// # Errors
    ///
    /// [`IdMapError::Read`] and [`IdMapError::Parse`], about the files in /proc/self.
    pub fn identity() -> Result<Self, IdMapError> {
        let setgroups = Path::new("/proc/self/setgroups");
        Ok(Self {
            uid: identity_map(Path::new("/proc/self/uid_map"))?,
            gid: identity_map(Path::new("/proc/self/gid_map"))?,
            setgroups_deny: read(setgroups)?.trim_end() == "deny",
        })
    }

    /// Id 0 is the caller's own effective id: all that an ordinary user can have without help.
    pub fn own() -> Self {
        Self {
            uid: vec![IdMapEntry { inner: 0, outer: geteuid().as_raw(), count: 1 }],
            gid: vec![IdMapEntry { inner: 0, outer: getegid().as_raw(), count: 1 }],
            setgroups_deny: true,
        }
    }

    /// Id 0 is the user's own, and from 1 on come the ranges that /etc/subuid and /etc/subgid give the user.
    ///
    /// # Errors
    ///
    /// [`IdMapError::Read`], [`IdMapError::Parse`], [`IdMapError::NoSubordinateIds`].
    pub fn from_subid_files(user: &User) -> Result<Self, IdMapError> {
        let map = |path: &'static str, own: u32| {
            let path = Path::new(path);
            subordinate_map(path, &read(path)?, &user.name, user.uid.as_raw(), own)
        };
        Ok(Self {
            uid: map(SUBUID, user.uid.as_raw())?,
            gid: map(SUBGID, user.gid.as_raw())?,
            setgroups_deny: false,
        })
    }

    /// Ids from 0 on are the ranges that /etc/subuid and /etc/subgid give to `owner`, who may be an account (by
    /// name or number) or a name in these files alone. There are as many user ids as group ids: as many as both
    /// files have. The owner's own id is not among them.
    ///
    /// # Errors
    ///
    /// [`IdMapError::Read`], [`IdMapError::Parse`], [`IdMapError::NoSubordinateIds`].
    pub fn of_subids(owner: &str) -> Result<Self, IdMapError> {
        let owner = SubidOwner::find(owner);
        let ranges = |path: &'static str| {
            let path = Path::new(path);
            subordinate_ranges(path, &read(path)?, &owner, 0)
        };
        let (uid, gid) = (ranges(SUBUID)?, ranges(SUBGID)?);
        let count = total(&uid).min(total(&gid));
        Ok(Self { uid: first_ids(uid, count), gid: first_ids(gid, count), setgroups_deny: false })
    }

    /// How many ids from 0 on are both user ids and group ids, where ranges follow one another.
    pub fn count(&self) -> u32 {
        total(&self.uid).min(total(&self.gid))
    }

    /// Writes the maps for `pid`, which is in a user namespace that a child of the caller has just made. That can
    /// be done once. When an ordinary caller may not, newuidmap(1) and newgidmap(1) are asked.
    ///
    /// # Errors
    ///
    /// Any [`IdMapError`] but those about reading. The namespace is then useless: end the process.
    pub fn write(&self, pid: Pid) -> Result<(), IdMapError> {
        for (map, lines) in [("uid_map", &self.uid), ("gid_map", &self.gid)] {
            if lines.is_empty() || lines.len() > MAX_ENTRIES {
                return Err(IdMapError::Length { map, count: lines.len() });
            }
        }
        if self.setgroups_deny {
            // Before gid_map, which an unprivileged process cannot write while setgroups is allowed.
            write_once(proc_file(pid, "setgroups"), "deny")?;
        }
        write_map(pid, "uid_map", &self.uid, "newuidmap", SUBUID)?;
        write_map(pid, "gid_map", &self.gid, "newgidmap", SUBGID)
    }
}

const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";

fn proc_file(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn read(path: &Path) -> Result<String, IdMapError> {
    fs::read_to_string(path).map_err(|source| IdMapError::Read { path: path.to_owned(), source })
}

/// The kernel takes a map in one write(2) only, and only the first.
fn write_once(path: PathBuf, content: &str) -> Result<(), IdMapError> {
    let result =
        fs::OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(content.as_bytes()));
    result.map_err(|source| {
        let content = content.trim_end().replace('\n', ";");
        IdMapError::Write { path, content, source }
    })
}

fn write_map(
    pid: Pid,
    map: &'static str,
    lines: &[IdMapEntry],
    helper: &'static str,
    file: &'static str,
) -> Result<(), IdMapError> {
    match write_once(proc_file(pid, map), &map_text(lines)) {
        Err(IdMapError::Write { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() =>
        {
            run_helper(find_helper(helper)?, file, &helper_arguments(pid, lines))
        }
        other => other,
    }
}

fn map_text(lines: &[IdMapEntry]) -> String {
    lines.iter().fold(String::new(), |mut text, line| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", line.inner, line.outer, line.count);
        text
    })
}

fn helper_arguments(pid: Pid, lines: &[IdMapEntry]) -> Vec<String> {
    let numbers = lines.iter().flat_map(|line| [line.inner, line.outer, line.count]);
    std::iter::once(pid.to_string()).chain(numbers.map(|number| number.to_string())).collect()
}

fn find_helper(helper: &'static str) -> Result<PathBuf, IdMapError> {
    HELPER_DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(helper))
        .find(|path| path.exists())
        .ok_or(IdMapError::NoHelper { helper })
}

fn run_helper(path: PathBuf, file: &'static str, arguments: &[String]) -> Result<(), IdMapError> {
    let output = Command::new(&path).args(arguments).env_clear().stdin(Stdio::null()).output();
    let output = match output {
        Ok(output) => output,
        Err(source) => return Err(IdMapError::StartHelper { path, source }),
    };
    if output.status.success() {
        return Ok(());
    }
    let shown = output.stderr.get(..HELPER_MESSAGE_MAX).unwrap_or(&output.stderr);
    let message = String::from_utf8_lossy(shown).trim_end().to_owned();
    Err(IdMapError::HelperRefused { path, status: output.status, message, file })
}

/// Ranges of /proc/self/uid_map or gid_map, each mapped to itself.
fn identity_map(path: &Path) -> Result<Vec<IdMapEntry>, IdMapError> {
    parse_identity_map(path, &read(path)?)
}

fn parse_identity_map(path: &Path, text: &str) -> Result<Vec<IdMapEntry>, IdMapError> {
    let parse = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(inner)), Some(Ok(_)), Some(Ok(count)), None) => {
                Some(IdMapEntry { inner, outer: inner, count })
            }
            _ => None,
        }
    };
    parse_lines(path, text, "INNER OUTER COUNT", parse)
}

/// Whose lines of subuid(5) files count.
struct SubidOwner {
    name: String,
    uid: Option<u32>,
}

impl SubidOwner {
    /// An account has a name and a number, either of which may be in the files; a name that is no account's
    /// may be there as well.
    fn find(text: &str) -> Self {
        let number = text.parse::<u32>().ok();
        let account = match number {
            Some(uid) => User::from_uid(uid.into()),
            None => User::from_name(text),
        };
        match account {
            Ok(Some(user)) => Self { name: user.name, uid: Some(user.uid.as_raw()) },
            Ok(None) | Err(_) => Self { name: text.to_owned(), uid: number },
        }
    }

    fn is(&self, owner: &str) -> bool {
        owner == self.name || (self.uid.is_some() && owner.parse().ok() == self.uid)
    }
}

/// The map that subuid(5) text gives to the user who is called `name` or has number `uid`: id 0 is `own`, and
/// the ranges follow one another from 1.
fn subordinate_map(
    path: &Path,
    text: &str,
    name: &str,
    uid: u32,
    own: u32,
) -> Result<Vec<IdMapEntry>, IdMapError> {
    let owner = SubidOwner { name: name.to_owned(), uid: Some(uid) };
    let mut map = vec![IdMapEntry { inner: 0, outer: own, count: 1 }];
    map.extend(subordinate_ranges(path, text, &owner, 1)?);
    map.truncate(MAX_ENTRIES);
    Ok(map)
}

/// The ranges that subuid(5) text gives to `owner`, one after another from `inner`; at least one.
fn subordinate_ranges(
    path: &Path,
    text: &str,
    owner: &SubidOwner,
    mut inner: u32,
) -> Result<Vec<IdMapEntry>, IdMapError> {
    let parse = |line: &str| {
        let mut fields = line.split(':');
        match (fields.next(), fields.next(), fields.next(), fields.next()) {
            (Some(whose), Some(first), Some(count), None) => {
                Some((owner.is(whose), first.trim().parse::<u32>().ok()?, count.trim().parse::<u32>().ok()?))
            }
            _ => None,
        }
    };
    let mut map = Vec::new();
    for (ours, outer, count) in parse_lines(path, text, "USER:FIRST:COUNT", parse)? {
        // What no longer fits below 2^32 - 1 is left out, as are the empty ranges that the kernel refuses.
        let count = count.min(u32::MAX - inner);
        if ours && count > 0 && map.len() < MAX_ENTRIES {
            map.push(IdMapEntry { inner, outer, count });
            inner += count;
        }
    }
    if map.is_empty() {
        return Err(IdMapError::NoSubordinateIds { user: owner.name.clone(), path: path.to_owned() });
    }
    Ok(map)
}

/// How many ids there are in ranges that follow one another below 2^32.
fn total(map: &[IdMapEntry]) -> u32 {
    map.iter().fold(0, |sum: u32, line| sum.saturating_add(line.count))
}

/// Of ranges that follow one another from 0, the first `count` ids.
fn first_ids(map: Vec<IdMapEntry>, count: u32) -> Vec<IdMapEntry> {
    let within = map.into_iter().filter(|line| line.inner < count);
    within.map(|line| IdMapEntry { count: line.count.min(count - line.inner), ..line }).collect()
}

/// Parses each line that is neither empty nor a comment.
fn parse_lines<T>(
    path: &Path,
    text: &str,
    form: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, IdMapError> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(index, content)| {
            parse(content).ok_or_else(|| IdMapError::Parse {
                path: path.to_owned(),
                line: index + 1,
                form,
                content: content.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(inner: u32, outer: u32, count: u32) -> IdMapEntry {
        IdMapEntry { inner, outer, count }
    }

    #[test]
    fn map_text_is_one_line_an_entry() {
        assert_eq!(map_text(&[entry(0, 1000, 1), entry(1, 100_000, 65_536)]), "0 1000 1\n1 100000 65536\n");
        assert_eq!(map_text(&IdMaps::shifted(2_147_483_648, 2_147_483_647).uid), "0 2147483648 2147483647\n");
    }

    #[test]
    fn helpers_get_the_process_and_then_triples() {
        let arguments = helper_arguments(Pid::from_raw(42), &[entry(0, 1000, 1), entry(1, 100_000, 65_536)]);
        assert_eq!(arguments, ["42", "0", "1000", "1", "1", "100000", "65536"]);
    }

    #[test]
    fn identity_follows_the_callers_own_map() {
        let map = |text| parse_identity_map(Path::new("/m"), text);
        assert_eq!(map("         0          0 4294967295\n").unwrap(), [entry(0, 0, u32::MAX)]);
        assert_eq!(map("0 1000 1\n1 100000 65536\n").unwrap(), [entry(0, 0, 1), entry(1, 1, 65_536)]);
        for broken in ["0 0", "0 0 1 1", "a 0 1", "0 0 4294967296"] {
            assert!(matches!(map(broken), Err(IdMapError::Parse { line: 1, .. })), "{broken}");
        }
    }

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let text = "# comment\nalice:100000:65536\n\nbob:5:1\n1000:300000:10\nalice:1:0\n";
        let map = subordinate_map(Path::new("/s"), text, "alice", 1000, 1000).unwrap();
        assert_eq!(map, [entry(0, 1000, 1), entry(1, 100_000, 65_536), entry(65_537, 300_000, 10)]);
    }

    #[test]
    fn subordinate_ids_end_below_the_id_that_is_none() {
        let map = subordinate_map(Path::new("/s"), "a:7:4294967295\na:1:1\n", "a", 1, 1).unwrap();
        assert_eq!(map, [entry(0, 1, 1), entry(1, 7, u32::MAX - 1)]);
    }

    #[test]
    fn ranges_of_a_name_or_a_number_follow_one_another_from_0() {
        let ranges = |owner: &SubidOwner| {
            let text = "tenant:100000:65536\n1000:7:3\nother:1:1\ntenant:300000:10\n01000:20:1\n";
            subordinate_ranges(Path::new("/s"), text, owner, 0)
        };
        let owner = |name: &str, uid| SubidOwner { name: name.to_owned(), uid };
        let of_tenant = [entry(0, 100_000, 65_536), entry(65_536, 300_000, 10)];
        assert_eq!(ranges(&owner("tenant", None)).unwrap(), of_tenant);
        assert_eq!(ranges(&owner("a", Some(1000))).unwrap(), [entry(0, 7, 3), entry(3, 20, 1)]);
        assert!(matches!(ranges(&owner("b", None)), Err(IdMapError::NoSubordinateIds { .. })));
        assert_eq!(SubidOwner::find("no such tenant").uid, None);
        let root = SubidOwner::find("0");
        assert_eq!((root.name.as_str(), root.uid), ("root", Some(0)));
        assert_eq!(SubidOwner::find("root").uid, Some(0));
    }

    #[test]
    fn no_more_ids_are_taken_than_wanted() {
        let map = || vec![entry(0, 100, 10), entry(10, 500, 10), entry(20, 900, 5)];
        assert_eq!(first_ids(map(), 25), map());
        assert_eq!(first_ids(map(), 15), [entry(0, 100, 10), entry(10, 500, 5)]);
        assert_eq!(first_ids(map(), 10), [entry(0, 100, 10)]);
        assert_eq!(total(&map()), 25);
    }

    #[test]
    fn a_user_without_subordinate_ids_is_told_so() {
        let error = subordinate_map(Path::new("/s"), "bob:5:1\n", "alice", 1000, 1000).unwrap_err();
        assert!(matches!(error, IdMapError::NoSubordinateIds { ref user, .. } if user == "alice"), "{error}");
        let error = subordinate_map(Path::new("/s"), "bob:5:1\nx:1\n", "alice", 1000, 1000).unwrap_err();
        assert!(matches!(error, IdMapError::Parse { line: 2, .. }), "{error}");
    }

    #[test]
    fn a_helpers_refusal_is_quoted() {
        let arguments = ["-c".to_owned(), "echo no way >&2; exit 3".to_owned()];
        let error = run_helper(PathBuf::from("/bin/sh"), SUBUID, &arguments).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("no way") && text.contains("/bin/sh") && text.contains("/etc/subuid"),
            "{text}"
        );
        assert!(
            run_helper(PathBuf::from("/bin/sh"), SUBUID, &["-c".to_owned(), "exit 0".to_owned()]).is_ok()
        );
        let error = run_helper(PathBuf::from("/no/such/helper"), SUBUID, &[]).unwrap_err();
        assert!(matches!(error, IdMapError::StartHelper { .. }), "{error}");
    }
}
