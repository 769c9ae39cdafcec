//! What lies in files: mappings, appending, holes, direct access, locks.

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::sys::mman::MapFlags;

use super::sys::{Mapping, flock, range_lock, seek};

/// Opens for reading and writing, makes it when it isn't there.
fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}

fn digest(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    format!("{} bytes {:016x}", bytes.len(), hasher.finish())
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(131) ^ (at >> 7) ^ salt) as u8).collect()
}

/// Changes by a shared mapping are the file's, by a private one they are nobody's.
pub(super) fn mappings(dir: &Path) -> String {
    const LEN: usize = 300_000;
    let file = open(&dir.join("file"));
    file.write_all_at(&pattern(LEN, 1), 0).unwrap();
    let places = (0..LEN - 10).step_by(9_973);
    let shared = match Mapping::new(&file, LEN, MapFlags::MAP_SHARED) {
        Ok(mut mapping) => {
            for at in places {
                mapping.bytes()[at..at + 10].copy_from_slice(b"by mapping");
            }
            // What is written beside it shows in it.
            file.write_all_at(b"by writing", 150_005).unwrap();
            assert_eq!(&mapping.bytes()[150_005..150_015], b"by writing");
            mapping.sync().unwrap();
            "shared".to_owned()
        }
        Err(e) => {
            places.for_each(|at| file.write_all_at(b"by mapping", at as u64).unwrap());
            file.write_all_at(b"by writing", 150_005).unwrap();
            format!("not shared ({e:?})")
        }
    };
    let mut mapping = Mapping::new(&file, LEN, MapFlags::MAP_PRIVATE).unwrap();
    mapping.bytes()[77..84].copy_from_slice(b"private");
    let mut read = vec![0; LEN];
    file.read_exact_at(&mut read, 0).unwrap();
    assert_ne!(&read[77..84], b"private");
    assert_eq!(&mapping.bytes()[84..], &read[84..]);
    format!("{shared}, {}", digest(&read))
}

/// Whoever appends, nothing is lost or torn.
pub(super) fn appends(dir: &Path) -> String {
    let path = dir.join("log");
    let append = || OpenOptions::new().append(true).create(true).open(&path).unwrap();
    thread::scope(|scope| {
        for writer in 0..4 {
            let mut file = append();
            scope.spawn(move || {
                for n in 0..60 {
                    let line = format!("{writer} {n} {}\n", "x".repeat((n * 37) % 500));
                    assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
                }
            });
        }
    });
    // Appending counts for the flag, not for the offset.
    append().write_at(b"the end\n", 3).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.ends_with("the end\n"));
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    // The order in which threads come isn't the file system's.
    fs::write(&path, lines.join("\n")).unwrap();
    format!("{} lines, {}", lines.len(), digest(lines.join("\n").as_bytes()))
}

/// Sparse files, and offsets beyond 4 GiB.
pub(super) fn holes(dir: &Path) -> String {
    const FAR: i64 = 5 << 30;
    let file = open(&dir.join("sparse"));
    for at in [0, 1 << 20, FAR] {
        file.write_all_at(b"data", at as u64).unwrap();
    }
    // A client that writes back later asks for holes before it has.
    file.sync_all().unwrap();
    let found: Vec<_> = [(1, libc::SEEK_DATA), (100_000, libc::SEEK_DATA), (2 << 20, libc::SEEK_DATA)]
        .into_iter()
        .chain([(0, libc::SEEK_HOLE), (1 << 20, libc::SEEK_HOLE), (FAR, libc::SEEK_HOLE)])
        .chain([(FAR + 4, libc::SEEK_DATA), (FAR + 5, libc::SEEK_HOLE)])
        .map(|(at, whence)| seek(&file, at, whence))
        .collect();
    assert!(file.metadata().unwrap().blocks() < 1000, "the holes are filled");
    file.set_len(6 << 30).unwrap();
    let mut tail = [1; 8];
    file.read_exact_at(&mut tail, FAR as u64).unwrap();
    let beyond = file.write_at(b"x", i64::MAX as u64).map_err(|e| e.raw_os_error());
    // A tree with a file of gigabytes would take long to look at.
    file.set_len(1 << 21).unwrap();
    format!("{found:?} {tail:?} {beyond:?}")
}

/// O_DIRECT, and what it and the page cache see of each other.
pub(super) fn direct(dir: &Path) -> String {
    #[repr(align(4096))]
    struct Block([u8; 8192]);

    let path = dir.join("file");
    let cached = open(&path);
    cached.write_all_at(&pattern(65_536, 2), 0).unwrap();
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut block = Block([0; 8192]);
    file.read_exact_at(&mut block.0, 16_384).unwrap();
    assert_eq!(block.0[..], pattern(65_536, 2)[16_384..24_576]);
    block.0.fill(7);
    file.write_all_at(&block.0, 32_768).unwrap();
    let mut all = vec![0; 65_536];
    cached.read_exact_at(&mut all, 0).unwrap();
    digest(&all)
}

/// All ways to ask for durability.
pub(super) fn synced(dir: &Path) -> String {
    let file = open(&dir.join("file"));
    file.write_all_at(b"durable", 0).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    let dir = File::open(dir).unwrap();
    dir.sync_all().unwrap();
    nix::unistd::syncfs(&dir).unwrap();
    let space = nix::sys::statvfs::fstatvfs(&dir).unwrap();
    assert!(space.blocks() > 0 && space.files() > 0 && space.blocks_free() > 0);
    format!("{} {} {}", space.fragment_size(), space.name_max(), space.blocks())
}

/// Both kinds of locks, between open files.
pub(super) fn locks(dir: &Path) -> String {
    let path = dir.join("file");
    let (one, other) = (open(&path), open(&path));
    flock(&one, libc::LOCK_EX).unwrap();
    assert_eq!(flock(&other, libc::LOCK_SH), Err(Errno::EWOULDBLOCK));
    flock(&one, libc::LOCK_SH).unwrap();
    flock(&other, libc::LOCK_SH).unwrap();
    flock(&other, libc::LOCK_UN).unwrap();
    range_lock(&one, libc::F_WRLCK, 100, 10).unwrap();
    assert_eq!(range_lock(&other, libc::F_RDLCK, 109, 5), Err(Errno::EAGAIN));
    range_lock(&other, libc::F_WRLCK, 110, 5).unwrap();
    // They go with the open file.
    drop(one);
    flock(&other, libc::LOCK_EX).unwrap();
    range_lock(&other, libc::F_WRLCK, 0, 0).unwrap();
    "held and let go".to_owned()
}
