//! Offsets to the end of their range, and files of holes.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use tests::fuse::SetAttr;
use tests::fuse::wire::{ROOT, fattr};

use super::with_client;

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().expect("an error of the system"))
}

/// Each offset does what it does natively.
#[test]
fn offsets_reach_to_the_end_of_their_range() {
    const MAX: u64 = i64::MAX as u64;
    with_client(&[], |share, client| {
        let made = client.create(ROOT, "ours", libc::O_RDWR, 0o600).unwrap();
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        let native =
            File::options().read(true).write(true).create_new(true).open(share.join("native")).unwrap();
        for offset in [
            0,
            4095,
            1 << 20,
            (1 << 31) - 1,
            1 << 32,
            1 << 43,
            (1 << 44) - 4097,
            1 << 44,
            1 << 62,
            MAX - 1,
            MAX,
        ] {
            let expected = native.write_at(b"x", offset).map(|n| n as u32).map_err(|e| errno(&e));
            assert_eq!(client.write(node, fh, offset, b"x"), expected, "write at {offset:#x}");
            let mut byte = [0];
            let expected =
                native.read_at(&mut byte, offset).map(|n| byte[..n].to_vec()).map_err(|e| errno(&e));
            // The last byte that can't be: natively EINVAL since the range ends beyond, here the end of the file.
            let got = client.read(node, fh, offset, 1);
            assert!(got == expected || (offset == MAX && got == Ok(vec![])), "read at {offset:#x}: {got:?}");
            let expected = native.set_len(offset).map_err(|e| errno(&e));
            let size = SetAttr { valid: fattr::SIZE, size: offset, ..Default::default() };
            assert_eq!(client.setattr(node, size).map(drop), expected, "truncate to {offset:#x}");
            for whence in [libc::SEEK_DATA, libc::SEEK_HOLE, libc::SEEK_END] {
                // SAFETY: passes integers only.
                let place = unsafe { libc::lseek(native.as_raw_fd(), offset as i64, whence) };
                let expected = Errno::result(place).map(|place| place as u64);
                assert_eq!(
                    client.lseek(node, fh, offset, whence),
                    expected,
                    "seek {whence} from {offset:#x}"
                );
            }
        }
        // Beyond it there is nothing natively.
        for offset in [MAX + 1, u64::MAX] {
            assert_eq!(client.write(node, fh, offset, b"x"), Err(Errno::EINVAL), "{offset:#x}");
            assert_eq!(client.read(node, fh, offset, 1), Err(Errno::EINVAL), "{offset:#x}");
            assert!(client.lseek(node, fh, offset, libc::SEEK_DATA).is_err(), "{offset:#x}");
            assert!(client.fallocate(node, fh, 0, offset, 1).is_err(), "{offset:#x}");
        }
        client.release(node, fh).unwrap();
    });
}

#[test]
fn holes_stay_holes() {
    with_client(&[], |share, client| {
        let made = client.create(ROOT, "sparse", libc::O_RDWR, 0o600).unwrap();
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        let block = vec![b'x'; 4096];
        for at in [0, 1 << 30, 1 << 40] {
            assert_eq!(client.write(node, fh, at, &block), Ok(4096));
        }
        assert_eq!(client.lseek(node, fh, 1, libc::SEEK_HOLE), Ok(4096));
        assert_eq!(client.lseek(node, fh, 4096, libc::SEEK_DATA), Ok(1 << 30));
        assert_eq!(client.lseek(node, fh, (1 << 30) + 4096, libc::SEEK_DATA), Ok(1 << 40));
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        client.fallocate(node, fh, punch, 1 << 30, 4096).unwrap();
        assert_eq!(client.lseek(node, fh, 4096, libc::SEEK_DATA), Ok(1 << 40));
        assert_eq!(client.read(node, fh, 1 << 30, 4096).unwrap(), vec![0; 4096]);
        let size = (1 << 40) + 4096;
        let on_host = fs::metadata(share.join("sparse")).unwrap();
        assert!((on_host.size(), on_host.blocks() < 100) == (size, true), "{on_host:?}");
        let attr = client.getattr(node, None).unwrap().attr;
        assert_eq!((attr.size, attr.blocks), (size, on_host.blocks()));
        client.release(node, fh).unwrap();
    });
}
