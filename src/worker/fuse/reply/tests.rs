//! Bytes of replies against the layout in `fuse.h`, and the limits of the buffers that they go into.

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::worker::fuse::decode::{Message, decode};
use crate::worker::fuse::dirent::{DirEntry, MAX_NAME};
use crate::worker::fuse::negotiate::Negotiated;
use crate::worker::fuse::wire::{Dirent, DirentPlus, InHeader, Opcode};

const TIMEOUT: Duration = Duration::new(86400, 7);

/// A statx in which every field has its own value.
fn host_statx() -> libc::statx {
    // SAFETY: statx is a struct of integers, for which zeros are values.
    let mut st: libc::statx = unsafe { std::mem::zeroed() };
    st.stx_mask = u32::MAX;
    st.stx_blksize = 1;
    st.stx_attributes = u64::MAX;
    st.stx_attributes_mask = u64::MAX;
    st.stx_nlink = 2;
    st.stx_uid = 3;
    st.stx_gid = 4;
    st.stx_mode = 0o104_755;
    st.stx_ino = 6;
    st.stx_size = 7;
    st.stx_blocks = 8;
    (st.stx_atime.tv_sec, st.stx_atime.tv_nsec) = (-9, 10);
    (st.stx_btime.tv_sec, st.stx_btime.tv_nsec) = (11, 12);
    (st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec) = (13, 14);
    (st.stx_mtime.tv_sec, st.stx_mtime.tv_nsec) = (15, 16);
    (st.stx_rdev_major, st.stx_rdev_minor) = (0x101, 0x1_0203);
    (st.stx_dev_major, st.stx_dev_minor) = (19, 20);
    st
}

fn owner() -> Owner {
    Owner { uid: GuestUid(1003), gid: GuestGid(1004) }
}

fn sample_entry() -> Entry {
    Entry {
        node: NodeId(0x1122),
        generation: 5,
        attr: attr(&host_statx(), owner(), AttrFlags::SUBMOUNT),
        entry_timeout: Duration::from_millis(1500),
        attr_timeout: TIMEOUT,
    }
}

/// A buffer for one reply.
fn buf(room: usize) -> ReplyBuf {
    let mut buf = ReplyBuf::default();
    buf.begin(room);
    buf
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

#[test]
fn entry_and_attributes_are_laid_out_as_in_fuse_h() {
    let mut out = buf(4096);
    out.entry(&sample_entry()).expect("there is room");
    let minus_nine = [u32::MAX - 8, u32::MAX];
    let attr: Vec<u32> = [
        [6, 0, 7, 0, 8, 0].as_slice(),
        &minus_nine,
        &[15, 0, 13, 0],
        &[10, 16, 14],
        &[0o104_755, 2, 1003, 1004, 0x1021_0103, 1, 1],
    ]
    .concat();
    let expected = [[0x1122, 0, 5, 0, 1, 0, 86400, 0, 500_000_000, 7].as_slice(), &attr].concat();
    assert_eq!(words(out.bytes()), expected);

    let mut out = buf(4096);
    out.attr(&sample_entry().attr, TIMEOUT).expect("there is room");
    assert_eq!(words(out.bytes()), [[86400, 0, 7, 0].as_slice(), &attr].concat());
}

#[test]
fn statx_hides_what_belongs_to_the_host() {
    let mut out = buf(4096);
    out.statx(&statx(&host_statx(), owner()), TIMEOUT).expect("there is room");
    let reply = wire::StatxOut::read_from_bytes(out.bytes()).expect("its size");
    assert_eq!((reply.attr_valid, reply.attr_valid_nsec, reply.flags), (86400, 7, 0));
    let stat = reply.stat;
    assert_eq!((stat.dev_major, stat.dev_minor), (0, 0));
    assert_eq!(stat.mask, 0xfff);
    assert_eq!(stat.attributes, 0x10_0874);
    assert_eq!(stat.attributes_mask, 0x10_0874);
    assert_eq!((stat.uid, stat.gid, stat.mode, stat.nlink), (1003, 1004, 0o104_755, 2));
    assert_eq!((stat.btime.tv_sec, stat.btime.tv_nsec, stat.atime.tv_sec), (11, 12, -9));
    assert_eq!((stat.mtime.tv_sec, stat.ctime.tv_sec, stat.rdev_minor), (15, 13, 0x1_0203));
}

#[test]
fn device_numbers_are_coded_as_by_the_kernel() {
    assert_eq!(encode_dev(8, 1), 0x801);
    assert_eq!(encode_dev(0, 0), 0);
    assert_eq!(encode_dev(0x101, 0x1_0203), 0x1021_0103);
    for (major, minor) in [(0, 0), (8, 1), (0xfff, 0xf_ffff), (259, 300), (1, 0x1_0000)] {
        assert_eq!(decode_dev(encode_dev(major, minor)), (major, minor));
    }
}

#[test]
fn small_replies_have_their_values_in_place() {
    type Say = fn(&mut ReplyBuf) -> Result<(), Errno>;
    let flags = OpenReplyFlags::KEEP_CACHE | OpenReplyFlags::CACHE_DIR;
    assert_eq!(flags.bits(), 10);
    let cases: [(Say, &[u32]); 9] = [
        (|out| out.no_entry(TIMEOUT), &[0, 0, 0, 0, 86400, 0, 0, 0, 7, 0]),
        (|out| out.open(HandleId(9), OpenReplyFlags::DIRECT_IO), &[9, 0, 1, 0]),
        (|out| out.written(11), &[11, 0]),
        (|out| out.copied(12, false), &[12, 0]),
        (|out| out.copied(1 << 33, true), &[0, 2]),
        (|out| out.xattr_size(13), &[13, 0]),
        (|out| out.seek(1 << 32 | 14), &[14, 1]),
        (|out| out.lock(wire::FileLock { start: 1, end: 2, kind: 1, pid: 4 }), &[1, 0, 2, 0, 1, 4]),
        (|out| out.ioctl(-1, &[5, 0, 0, 0]), &[u32::MAX, 0, 0, 0, 5]),
    ];
    for (say, expected) in cases {
        let mut out = buf(4096);
        say(&mut out).expect("there is room");
        let got = words(out.bytes());
        assert_eq!(got[..expected.len()], *expected);
        assert!(got[expected.len()..].iter().all(|word| *word == 0));
    }
    assert_eq!(buf(4096).copied(1 << 33, false), Err(Errno::EOVERFLOW));
}

#[test]
fn create_is_an_entry_and_a_handle() {
    let mut out = buf(4096);
    out.create(&sample_entry(), HandleId(9), OpenReplyFlags::empty()).expect("there is room");
    assert_eq!(out.payload_len(), 144);
    assert_eq!(words(&out.bytes()[128..]), [9, 0, 0, 0]);
}

#[test]
fn statfs_is_that_of_the_host() {
    let st = nix::sys::statvfs::statvfs("/").expect("statvfs of the root");
    let reply = StatFsOut::from(&st);
    assert_eq!((reply.blocks, reply.files), (st.blocks(), st.files()));
    assert_eq!(u64::from(reply.frsize), st.fragment_size());
    assert_eq!((u64::from(reply.bsize), u64::from(reply.namelen)), (st.block_size(), st.name_max()));
    let mut out = buf(80);
    out.statfs(&reply).expect("exactly room");
    assert_eq!(out.bytes().len(), 80);
}

#[test]
fn headers_say_length_or_errno() {
    let mut out = buf(100);
    out.written(1).expect("there is room");
    assert_eq!(out.header(77, Ok(())), OutHeader { len: 24, error: 0, unique: 77 });
    assert_eq!(out.header(77, Err(Errno::ENOENT)), OutHeader { len: 16, error: -2, unique: 77 });
    out.begin(100);
    assert_eq!(out.header(78, Ok(())).len, 16);
    out.in_place(60);
    assert_eq!(out.header(78, Ok(())).len, 76);
    assert!(out.bytes().is_empty());
    out.in_place(101);
    assert_eq!(out.payload_len(), 100, "never more than the guest's buffers hold");
}

#[test]
fn what_does_not_fit_leaves_the_reply_as_it_was() {
    let mut out = buf(15);
    assert_eq!(out.open(HandleId(1), OpenReplyFlags::empty()), Err(Errno::EINVAL));
    assert_eq!(out.payload_len(), 0);
    out.written(1).expect("8 of 15 bytes");
    assert_eq!(out.written(2), Err(Errno::EINVAL));
    assert_eq!((out.payload_len(), out.room()), (8, 7));
    let mut out = buf(usize::MAX);
    assert_eq!(out.bytes_from(&vec![0; LARGEST + 1]), Err(Errno::EINVAL));
    out.bytes_from(&vec![1; LARGEST]).expect("the largest reply");
    assert_eq!(out.written(2), Err(Errno::EINVAL));
}

#[test]
fn a_new_reply_shows_nothing_of_the_last() {
    let mut out = buf(4096);
    out.bytes_from(&[0xaa; 500]).expect("there is room");
    out.begin(4096);
    assert!(out.bytes().is_empty());
    out.fill(300, |space| {
        assert_eq!(space.len(), 300);
        space[..3].copy_from_slice(b"abc");
        Ok(3)
    })
    .expect("filled");
    assert_eq!(out.bytes(), b"abc");
    out.begin(4096);
    let mut dir = out.dir(4096).expect("there is room");
    assert!(dir.push(&DirEntry { ino: 1, offset: 2, kind: 8, name: b"x" }));
    assert_eq!(out.bytes()[24..], *b"x\0\0\0\0\0\0\0", "padding is not what was there before");
}

#[test]
fn fill_is_bounded_by_the_guest_and_by_itself() {
    let mut out = buf(10);
    let whole = out.fill(100, |space| Ok(space.len()));
    assert_eq!((whole, out.payload_len()), (Ok(()), 10));
    out.begin(10);
    assert_eq!(out.fill(5, |_| Ok(6)), Err(Errno::EIO));
    assert_eq!(out.fill(5, |_| Err(Errno::ERANGE)), Err(Errno::ERANGE));
    assert_eq!(out.payload_len(), 0);
    out.begin(usize::MAX);
    let largest = out.fill(usize::MAX, |space| Ok(space.len()));
    assert_eq!((largest, out.payload_len()), (Ok(()), LARGEST));
}

#[test]
fn directories_are_packed_in_eights() {
    let mut out = buf(4096);
    let mut dir = out.dir(200).expect("there is room");
    assert!(dir.is_empty());
    assert!(dir.push(&DirEntry { ino: 7, offset: 8, kind: 4, name: b"12345678" }));
    assert!(dir.push_plus(&DirEntry { ino: 9, offset: 10, kind: 8, name: b"a" }, Some(&sample_entry())));
    assert!(!dir.is_empty());
    assert!(!dir.push(&DirEntry { ino: 7, offset: 8, kind: 4, name: b"n" }), "192 of 200 bytes are used");
    let bytes = out.bytes();
    assert_eq!(bytes.len(), 192);
    assert_eq!(words(&bytes[..24]), [7, 0, 8, 0, 8, 4]);
    assert_eq!(bytes[24..32], *b"12345678");
    let plus = DirentPlus::read_from_bytes(&bytes[32..184]).expect("its size");
    assert_eq!(plus.entry, EntryOut::from(&sample_entry()));
    assert_eq!(plus.dirent, Dirent { ino: 9, off: 10, namelen: 1, kind: 8 });
    assert_eq!(bytes[184..], *b"a\0\0\0\0\0\0\0");
}

#[test]
fn names_that_break_a_listing_are_left_out() {
    let mut out = buf(4096);
    let mut dir = out.dir(4096).expect("there is room");
    let long = [b'n'; MAX_NAME + 1];
    for name in [&b""[..], &long] {
        let entry = DirEntry { ino: 1, offset: 1, kind: 8, name };
        assert!(!dir.push(&entry) && !dir.push_plus(&entry, None) && !dir.fits_plus(name.len()));
    }
    assert!(dir.push_plus(&DirEntry { ino: 1, offset: 1, kind: 8, name: &long[1..] }, None));
    let plus = DirentPlus::read_from_prefix(out.bytes()).expect("its size").0;
    assert_eq!((plus.entry, plus.dirent.namelen), (EntryOut::default(), 255));
}

/// What a handler would reply to each request, at its shortest.
fn shortest_reply(operation: &Operation<'_>, out: &mut ReplyBuf) -> Result<(), Errno> {
    let entry = sample_entry();
    match operation {
        Operation::Lookup(_)
        | Operation::SymLink { .. }
        | Operation::MkNod { .. }
        | Operation::MkDir { .. }
        | Operation::Link { .. } => out.entry(&entry),
        Operation::Create { .. } | Operation::TmpFile { .. } => {
            out.create(&entry, HandleId(1), OpenReplyFlags::empty())
        }
        Operation::GetAttr { .. } | Operation::SetAttr(_) => out.attr(&entry.attr, TIMEOUT),
        Operation::Statx { .. } => out.statx(&wire::Statx::default(), TIMEOUT),
        Operation::Open(_) | Operation::OpenDir(_) => out.open(HandleId(1), OpenReplyFlags::empty()),
        Operation::Write(_) => out.written(1),
        Operation::CopyFileRange { wide, .. } => out.copied(1, *wide),
        Operation::StatFs => out.statfs(&StatFsOut::default()),
        Operation::GetXattr { size: None, .. } | Operation::ListXattr { size: None } => out.xattr_size(1),
        Operation::GetLk(_) => out.lock(wire::FileLock::default()),
        Operation::Ioctl { .. } => out.ioctl(0, b""),
        Operation::LSeek { .. } => out.seek(1),
        Operation::Init(_) => out.init(&wire::InitOut::default()),
        _ => Ok(()),
    }
}

#[test]
fn reply_len_is_what_the_shortest_reply_takes() {
    let negotiated = Negotiated::default();
    let mut checked = 0;
    for &opcode in Opcode::ALL {
        // Zeros, and a name where the fixed part of each request with names ends.
        for fixed in [0, 8, 16, 24, 32, 40, 48, 56, 88] {
            let body = [vec![0; fixed], b"a\0b\0".to_vec()].concat();
            let header = InHeader { opcode: opcode as u32, ..Default::default() };
            let bodies = [body.as_slice(), &body[..fixed + 2], &body[..fixed]];
            for body in bodies {
                let Ok(operation) = decode(&Message { header: &header, body, data: 0 }, &negotiated) else {
                    continue;
                };
                let len = operation.reply_len();
                let mut out = buf(len);
                assert_eq!(shortest_reply(&operation, &mut out), Ok(()), "{operation:?}");
                assert_eq!(out.payload_len(), len, "{operation:?}");
                if len > 0 {
                    assert_eq!(shortest_reply(&operation, &mut buf(len - 1)), Err(Errno::EINVAL));
                }
                checked |= 1_u64 << opcode as u32;
            }
        }
    }
    let missing: Vec<_> = Opcode::ALL.iter().filter(|opcode| checked & 1 << **opcode as u32 == 0).collect();
    assert!(missing.is_empty(), "no body was found that decodes: {missing:?}");
}

proptest! {
    #[test]
    fn listings_hold_what_was_pushed_and_no_more(
        names in prop::collection::vec(prop::collection::vec(1..=255_u8, 0..=300), 0..40),
        size in 0..6000_u32, room in 0..6000_usize, plus in any::<bool>(),
    ) {
        let mut out = buf(room);
        let mut dir = out.dir(size).expect("within the room");
        let mut taken = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let entry = DirEntry { ino: at as u64, offset: at as u64 + 1, kind: 8, name };
            let fits = dir.fits_plus(name.len());
            let pushed = if plus { dir.push_plus(&entry, None) } else { dir.push(&entry) };
            prop_assert!(!plus || pushed == fits);
            if pushed {
                taken.push((at as u64, name.clone()));
            }
        }
        prop_assert!(out.payload_len() <= room.min(size as usize));
        let mut rest = out.bytes();
        for (ino, name) in taken {
            let skip = if plus { 128 } else { 0 };
            let dirent = Dirent::read_from_bytes(&rest[skip..skip + 24]).expect("its size");
            prop_assert_eq!((dirent.ino, dirent.off, dirent.namelen as usize), (ino, ino + 1, name.len()));
            prop_assert_eq!(&rest[skip + 24..skip + 24 + name.len()], name.as_slice());
            let end = (skip + 24 + name.len()).next_multiple_of(8);
            prop_assert!(rest[skip + 24 + name.len()..end].iter().all(|byte| *byte == 0));
            rest = &rest[end..];
        }
        prop_assert!(rest.is_empty());
    }
}
