//! Reading directories: `getdents64` in large pieces, handed out entry by entry.
//!
//! A guest asks for a page at a time. What one `getdents64` returned beyond that page is kept with the handle
//! for the next request, if that goes on where this one stopped; any other offset seeks. Offsets are the host
//! file system's own cookies, so they stay valid while entries come and go.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;

use super::sys::{self, Result};

/// One `getdents64` reads at most this many bytes.
const BUFFER: usize = 32 * 1024;
/// All directory streams together keep at most this many bytes between requests; beyond it they seek.
const KEPT_LIMIT: usize = 64 * 1024 * 1024;
/// The fixed part of `struct linux_dirent64`: `d_ino`, `d_off`, `d_reclen`, `d_type`.
const DIRENT_HEADER: usize = 19;

/// Bytes kept by all streams now.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// An entry of a directory as the kernel gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// Inode number (of the covered directory, where something is mounted).
    pub ino: u64,
    /// Cookie of the entry behind this one.
    pub next: u64,
    /// `DT_*`
    pub kind: u8,
    /// The name.
    pub name: &'a CStr,
}

impl RawEntry<'_> {
    /// Is it `.` or `..`?
    pub fn is_dot(&self) -> bool {
        matches!(self.name.to_bytes(), b"." | b"..")
    }
}

/// The position in an open directory and what was read ahead of it.
#[derive(Default)]
pub struct DirStream {
    /// What `getdents64` gave; empty or a whole number of entries.
    buffer: Vec<u8>,
    /// Where in the buffer the next entry begins.
    position: usize,
    /// The cookie of that entry.
    cookie: u64,
    /// The file's offset isn't the one behind the buffer: seek before reading on.
    displaced: bool,
    /// Bytes of the buffer that count in [`KEPT`].
    kept: usize,
}

impl DirStream {
    /// Hands out entries from `offset` on until `sink` refuses one or the directory ends. The refused entry
    /// comes again next time.
    ///
    /// # Errors
    /// What `lseek` and `getdents64` say, if nothing was handed out before; what `sink` says.
    pub fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        mut sink: impl FnMut(RawEntry<'_>) -> Result<bool>,
    ) -> Result<()> {
        self.take_back();
        if offset != self.cookie || self.displaced {
            self.buffer.clear();
            self.position = 0;
            // Cookies are 64 bits of the file system's choice; lseek hands them back to it.
            sys::lseek(fd, offset.cast_signed(), libc::SEEK_SET)?;
            self.cookie = offset;
            self.displaced = false;
        }
        let mut any = false;
        loop {
            if self.position >= self.buffer.len() {
                match self.refill(fd) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(_) if any => break,
                    Err(e) => return Err(e),
                }
            }
            let Some((entry, length)) = parse(self.buffer.get(self.position..).unwrap_or_default()) else {
                return Err(Errno::EIO);
            };
            let next = entry.next;
            if !sink(entry)? {
                break;
            }
            any = true;
            self.position += length;
            self.cookie = next;
        }
        self.keep();
        Ok(())
    }

    fn refill(&mut self, fd: BorrowedFd<'_>) -> Result<usize> {
        self.position = 0;
        self.buffer.resize(BUFFER, 0);
        let result = sys::getdents64(fd, &mut self.buffer);
        self.buffer.truncate(*result.as_ref().unwrap_or(&0));
        result
    }

    /// Keeps what is left for the next request, within the limit for all streams.
    fn keep(&mut self) {
        let left = self.buffer.len() - self.position.min(self.buffer.len());
        if left == 0 {
            self.buffer = Vec::new();
            self.position = 0;
            return;
        }
        self.kept = self.buffer.capacity();
        if KEPT.fetch_add(self.kept, Ordering::Relaxed) > KEPT_LIMIT {
            self.take_back();
            self.buffer = Vec::new();
            self.position = 0;
            self.displaced = true;
        }
    }

    /// The buffer no longer counts as kept: it is in use, or goes away.
    fn take_back(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        if kept > 0 {
            KEPT.fetch_sub(kept, Ordering::Relaxed);
        }
    }
}

impl Drop for DirStream {
    fn drop(&mut self) {
        self.take_back();
    }
}

/// The first `struct linux_dirent64` of a buffer, and its length.
fn parse(buffer: &[u8]) -> Option<(RawEntry<'_>, usize)> {
    let (ino, rest) = buffer.split_first_chunk::<8>()?;
    let (next, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let kind = *rest.first()?;
    let length = usize::from(u16::from_ne_bytes(*length));
    let name = CStr::from_bytes_until_nul(buffer.get(DIRENT_HEADER..length)?).ok()?;
    let (ino, next) = (u64::from_ne_bytes(*ino), u64::from_ne_bytes(*next));
    Some((RawEntry { ino, next, kind, name }, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::os::fd::AsFd;

    fn names(stream: &mut DirStream, fd: BorrowedFd<'_>, offset: u64, limit: usize) -> (Vec<String>, u64) {
        let (mut all, mut next) = (Vec::new(), offset);
        stream
            .read(fd, offset, |entry| {
                if all.len() == limit {
                    return Ok(false);
                }
                all.push(entry.name.to_str().unwrap().to_owned());
                next = entry.next;
                Ok(true)
            })
            .unwrap();
        (all, next)
    }

    #[test]
    fn pages_seeks_and_rewinds_see_each_entry_once() {
        let dir = std::env::temp_dir().join(format!("directory-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let expected: BTreeSet<String> = (0..3000).map(|n| format!("file-{n}")).collect();
        for name in &expected {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let file = std::fs::File::open(&dir).unwrap();
        let mut stream = DirStream::default();
        for _ in 0..2 {
            let (mut seen, mut offset, mut pages) = (Vec::new(), 0, Vec::new());
            loop {
                let (page, next) = names(&mut stream, file.as_fd(), offset, 7);
                if page.is_empty() {
                    break;
                }
                pages.push((offset, page.clone()));
                seen.extend(page);
                offset = next;
            }
            assert_eq!(seen.len(), expected.len() + 2);
            assert!(expected.iter().all(|name| seen.contains(name)));
            // Going back to any earlier offset gives the same page again.
            for (offset, page) in pages.iter().step_by(97) {
                assert_eq!(names(&mut stream, file.as_fd(), *offset, 7).0, *page);
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn garbage_from_the_kernel_is_not_read_past() {
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[1; 18]), None);
        assert_eq!(parse(&[255; 64]), None);
    }
}
