//! `--ioctl`: inode flags and projects, and nothing else.

use std::process::Command;

use nix::errno::Errno;
use tests::fuse::Client;
use tests::fuse::wire::{self, ROOT, opcode};
use zerocopy::{FromBytes, IntoBytes};

use super::with_client;

const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;
/// `FS_NODUMP_FL`
const NODUMP: u32 = 0x40;

fn ioctl(
    client: &mut Client,
    (node, fh): (u64, u64),
    cmd: u32,
    input: &[u8],
    out_size: u32,
) -> Result<Vec<u8>, Errno> {
    let in_size = u32::try_from(input.len()).unwrap();
    let request = wire::IoctlIn { fh, cmd, in_size, out_size, ..Default::default() };
    let room = wire::OUT_HEADER + size_of::<wire::IoctlOut>() + out_size as usize;
    let body = client.raw(opcode::IOCTL, node, &[request.as_bytes(), input].concat(), room)?;
    let (out, data) = wire::IoctlOut::read_from_prefix(&body).unwrap();
    assert_eq!((out.result, out.flags, out.in_iovs, out.out_iovs), (0, 0, 0, 0));
    Ok(data.to_vec())
}

#[test]
fn flags_are_read_and_set() {
    with_client(&["--ioctl"], |share, client| {
        let path = share.write("file", "x");
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
        let dir = (ROOT, client.opendir(ROOT).unwrap().fh);
        for (number, file) in [(node, fh), dir].into_iter().enumerate() {
            let before = ioctl(client, file, GETFLAGS, &[], 4).unwrap();
            let before = u32::from_le_bytes(before.try_into().unwrap());
            assert_eq!(before & NODUMP, 0);
            assert_eq!(ioctl(client, file, SETFLAGS, &(before | NODUMP).to_le_bytes(), 0).unwrap(), b"");
            // As a program's own ioctl sends it: eight bytes, of which four count.
            let after = ioctl(client, file, GETFLAGS, &[], 8).unwrap();
            assert_eq!(after, u64::from(before | NODUMP).to_le_bytes());
            // struct fsxattr's fsx_xflags has the same as FS_XFLAG_NODUMP.
            let fsxattr = ioctl(client, file, FSGETXATTR, &[], 28).unwrap();
            assert_eq!(u32::from_le_bytes(fsxattr[..4].try_into().unwrap()) & 0x80, 0x80, "file {number}");
            assert_eq!(ioctl(client, file, FSSETXATTR, &[0; 28], 0).unwrap(), b"");
            let cleared = ioctl(client, file, GETFLAGS, &[], 4).unwrap();
            assert_eq!(u32::from_le_bytes(cleared.try_into().unwrap()), before);
        }
        let seen = Command::new("lsattr").arg(&path).output().unwrap();
        let flags = String::from_utf8_lossy(&seen.stdout);
        let flags = flags.split_whitespace().next().unwrap();
        assert!(seen.status.success() && !flags.contains('d'), "{seen:?}");
    });
}

#[test]
fn other_commands_and_arguments_are_refused() {
    with_client(&["--ioctl"], |share, client| {
        share.write("file", "x");
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let file = (node, client.open(node, libc::O_RDWR).unwrap().fh);
        // FIONREAD, FICLONE, FS_IOC_FIEMAP, FITRIM, FIFREEZE, FS_IOC_ADD_ENCRYPTION_KEY.
        for command in [0x541b, 0x4004_9409, 0xc020_660b, 0xc018_5879, 0xc004_5877, 0xc050_6617, 0, u32::MAX]
        {
            assert_eq!(ioctl(client, file, command, &[0; 64], 64), Err(Errno::ENOTTY), "{command:#x}");
        }
        assert_eq!(ioctl(client, file, SETFLAGS, &[0; 3], 0), Err(Errno::EINVAL));
        assert_eq!(ioctl(client, file, FSSETXATTR, &[0; 27], 0), Err(Errno::EINVAL));
        assert_eq!(ioctl(client, file, GETFLAGS, &[], 3), Err(Errno::EINVAL));
        assert_eq!(ioctl(client, file, FSGETXATTR, &[], 27), Err(Errno::EINVAL));
        assert_eq!(ioctl(client, (node, file.1 + 1), GETFLAGS, &[], 4), Err(Errno::EBADF));
        assert_eq!(ioctl(client, (ROOT, file.1), GETFLAGS, &[], 4), Err(Errno::EBADF));
        // Immutable takes a privilege that no worker has.
        assert_eq!(ioctl(client, file, SETFLAGS, &0x10u32.to_le_bytes(), 0), Err(Errno::EPERM));
    });
}

#[test]
fn a_read_only_share_has_flags_to_read() {
    with_client(&["--ioctl", "--readonly"], |share, client| {
        share.write("file", "x");
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let file = (node, client.open(node, libc::O_RDONLY).unwrap().fh);
        ioctl(client, file, GETFLAGS, &[], 4).unwrap();
        assert_eq!(ioctl(client, file, SETFLAGS, &NODUMP.to_le_bytes(), 0), Err(Errno::EROFS));
    });
}

#[test]
fn nothing_without_the_option() {
    with_client(&[], |_, client| {
        let dir = (ROOT, client.opendir(ROOT).unwrap().fh);
        assert_eq!(ioctl(client, dir, GETFLAGS, &[], 4), Err(Errno::ENOSYS));
    });
}
