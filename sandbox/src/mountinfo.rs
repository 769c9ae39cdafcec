//! The kernel's list of mounts, `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
//!
//! Reading is total: whatever the bytes are, it ends, panics nowhere, and leaves out the lines that it can't read.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use crate::sys;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its id, which is another mount's once this one is gone.
    pub id: u64,
    /// The id of the mount that it is on.
    pub parent: u64,
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// Which directory of the file system is its root. Bytes, as everything below.
    pub root: Vec<u8>,
    /// Where it is, as a path from the root of the process that asks.
    pub point: Vec<u8>,
    /// Nothing can be written through it.
    pub read_only: bool,
    /// It gets what is mounted elsewhere, or shares what is mounted on it.
    pub propagates: bool,
}

/// The mounts in the text of a mountinfo file, in its order.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = number(words.next()?)?;
    let parent = number(words.next()?)?;
    let device = device(words.next()?)?;
    let (root, point) = (unescape(words.next()?), unescape(words.next()?));
    let read_only = words.next()?.split(|byte| *byte == b',').any(|option| option == b"ro");
    // Optional fields end with a dash.
    let propagates = words
        .take_while(|word| *word != b"-")
        .any(|word| word.starts_with(b"shared:") || word.starts_with(b"master:"));
    Some(Mount { id, parent, device, root, point, read_only, propagates })
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    // FromStr takes a sign as well.
    let digits = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
    digits.parse().ok()
}

fn device(word: &[u8]) -> Option<(u32, u32)> {
    let colon = word.iter().position(|byte| *byte == b':')?;
    Some((number(word.get(..colon)?)?, number(word.get(colon + 1..)?)?))
}

/// The kernel writes blank, tabulator, newline and backslash as a backslash and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    loop {
        rest = match rest {
            [] => return bytes,
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                behind
            }
            [byte, behind @ ..] => {
                bytes.push(*byte);
                behind
            }
        };
    }
}

/// Whether the mount that `fd` is on gets mounts from elsewhere, or shares what is mounted on it. statmount(2) tells
/// it at once (Linux 6.8); before, the whole list is read.
///
/// # Errors
/// When there is no procfs, or the kernel can't tell which mount the fd is on (before 5.8).
pub fn propagates(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let asked = sys::statx_fd(fd, sys::STATX_MNT_ID_UNIQUE).and_then(|stat| sys::statmount(stat.stx_mnt_id));
    if let Ok(stat) = asked {
        return Ok(stat.peer_group != 0 || stat.master != 0);
    }
    let id = sys::statx_fd(fd, libc::STATX_MNT_ID)?.stx_mnt_id;
    let table = parse(&fs::read("/proc/self/mountinfo")?);
    Ok(table.iter().any(|mount| mount.id == id && mount.propagates))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_line_is_read() {
        let text =
            b"36 35 98:0 /mnt1 /mnt\\040two\\134 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                     37 36 0:5 / /x ro,nosuid - tmpfs ro rw\n";
        let mounts = parse(text);
        let first = Mount {
            id: 36,
            parent: 35,
            device: (98, 0),
            root: b"/mnt1".to_vec(),
            point: b"/mnt two\\".to_vec(),
            read_only: false,
            propagates: true,
        };
        assert_eq!(mounts[0], first);
        assert_eq!((mounts[1].read_only, mounts[1].propagates, mounts.len()), (true, false, 2));
        for (optional, propagates) in
            [("", false), ("shared:7 ", true), ("propagate_from:2 ", false), ("unbindable ", false)]
        {
            let line = format!("1 2 3:4 / / rw {optional}- shared:1 master:1 rw");
            assert_eq!(parse(line.as_bytes())[0].propagates, propagates, "{line}");
        }
    }

    #[test]
    fn other_lines_are_left_out() {
        let bad = [
            "",
            "1",
            "1 2 3:4 / /",
            "x 2 3:4 / / rw - a b c",
            "1 2 34 / / rw - a b c",
            "1 +2 3:4 / / rw - a b c",
        ];
        for line in bad {
            assert_eq!(parse(line.as_bytes()), [], "{line}");
        }
        assert_eq!(parse(b"99999999999999999999999 2 3:4 / / rw - a b c"), []);
    }

    #[test]
    fn escapes_come_back_and_nothing_else_is_changed() {
        let every: Vec<u8> = (1..=255).collect();
        let escaped: Vec<u8> = every
            .iter()
            .flat_map(|byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                byte => vec![*byte],
            })
            .collect();
        assert_eq!(unescape(&escaped), every);
        for odd in [&b"\\"[..], b"\\04", b"\\0", b"\\999", b"\\400", b"a\\"] {
            assert_eq!(unescape(odd), odd);
        }
        assert_eq!(unescape(b"\\134040"), b"\\040");
    }

    /// Cut off and changed anywhere, the kernel's own text never makes it panic, and never makes more mounts than lines.
    #[test]
    fn any_bytes_will_do() {
        let text = fs::read("/proc/self/mountinfo").unwrap();
        let head = &text[..text.len().min(1500)];
        let lines = |text: &[u8]| text.split(|byte| *byte == b'\n').count();
        for end in 0..head.len() {
            assert!(parse(&head[..end]).len() <= lines(&head[..end]));
            for byte in [0, b' ', b'\n', b'\\', b':', b'-', b'9', 0xff] {
                let mut changed = head.to_vec();
                changed[end] = byte;
                assert!(parse(&changed).len() <= lines(&changed));
            }
        }
    }

    #[test]
    fn the_kernel_s_own_list_has_no_line_that_cannot_be_read() {
        let text = fs::read("/proc/self/mountinfo").unwrap();
        let mounts = parse(&text);
        assert_eq!(mounts.len(), text.iter().filter(|byte| **byte == b'\n').count());
        // Both ways of asking agree.
        let root = fs::File::open("/").unwrap();
        let id = sys::statx_fd(root.as_fd(), libc::STATX_MNT_ID).unwrap().stx_mnt_id;
        let line = mounts.iter().find(|mount| mount.id == id).unwrap();
        assert_eq!(propagates(root.as_fd()).unwrap(), line.propagates);
    }
}
