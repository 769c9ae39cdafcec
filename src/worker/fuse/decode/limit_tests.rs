//! Numbers at and beyond their limits: sizes, offsets, flags, masks.

use super::*;

#[test]
fn setxattr_without_the_extension_is_shorter() {
    let body = join(wire::SetXattrIn { size: 1, flags: 0 }.as_bytes(), b"user.x\0v");
    let header = header(Opcode::SetXattr as u32, body.len(), 0);
    match decode_with(&header, &body, 0, &Negotiated::default()) {
        Ok(Operation::SetXattr { name, value: b"v", flags: 0, acl_kill_sgid: false }) => {
            assert_eq!(name.to_bytes(), b"user.x");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(decode_with(&header, &body, 0, &all_features()).err(), Some(Errno::EINVAL));
}

#[test]
fn setxattr_value_has_the_length_that_it_says() {
    let request = |size: u32, flags, value: &[u8]| {
        let fixed = [size, flags, 0, 0];
        decoded(Opcode::SetXattr, &[fixed.as_bytes(), b"user.x\0", value].concat(), 0).err()
    };
    assert_eq!(request(0, 0, b""), None);
    assert_eq!(request(2, 0, b"v"), Some(Errno::EINVAL));
    assert_eq!(request(1, 0, b"vv"), Some(Errno::EINVAL));
    assert_eq!(request(1, 4, b"v"), Some(Errno::EINVAL));
    assert_eq!(request(65536, 0, &[0; 65536]), None);
    assert_eq!(request(65537, 0, &[0; 65537]), Some(Errno::E2BIG));
    assert_eq!(request(u32::MAX, 0, b""), Some(Errno::E2BIG));
}

#[test]
fn xattr_room_is_no_longer_than_any_value() {
    for (size, expected) in [(0, "None"), (1, "Some(1)"), (65536, "Some(65536)"), (u32::MAX, "Some(65536)")] {
        let fixed = wire::GetXattrIn { size, padding: 0 };
        let shown = decoded(Opcode::ListXattr, fixed.as_bytes(), 0);
        assert_eq!(shown, Ok(format!("ListXattr {{ size: {expected} }}")));
    }
}

const MAX: u64 = i64::MAX as u64;

#[test]
fn reads_end_with_the_largest_file() {
    let size = |offset, size| {
        let fixed = wire::ReadIn { fh: 1, offset, size, ..Default::default() };
        let header = header(Opcode::Read as u32, 40, 0);
        match decode_with(&header, fixed.as_bytes(), 0, &all_features()) {
            Ok(Operation::Read(Read { size, .. })) => Ok(size),
            Err(errno) => Err(errno),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(size(0, 4096), Ok(4096));
    assert_eq!(size(MAX - 4095, 4096), Ok(4095), "the last page of the largest file");
    assert_eq!(size(MAX, 4096), Ok(0));
    assert_eq!(size(MAX + 1, 0), Err(Errno::EINVAL));
    assert_eq!(size(u64::MAX, u32::MAX), Err(Errno::EINVAL));
    assert_eq!(size(0, u32::MAX), Ok(0x7fff_f000));
}

#[test]
fn directory_replies_are_limited() {
    let fixed = wire::ReadIn { fh: 1, offset: u64::MAX, size: u32::MAX, ..Default::default() };
    let header = header(Opcode::ReadDirPlus as u32, 40, 0);
    let result = decode_with(&header, fixed.as_bytes(), 0, &all_features());
    let expected = ReadDir { handle: HandleId(1), offset: u64::MAX, size: MAX_DIR_REPLY };
    assert!(matches!(result, Ok(Operation::ReadDirPlus(list)) if list == expected));
}

#[test]
fn writes_have_their_data_and_their_range() {
    let request = |offset, size, data| {
        let fixed = wire::WriteIn { offset, size, ..Default::default() };
        decoded(Opcode::Write, fixed.as_bytes(), data).err()
    };
    assert_eq!(request(0, 4096, 4096), None);
    assert_eq!(request(0, 4096, 5000), None);
    assert_eq!(request(0, 4096, 4095), Some(Errno::EINVAL));
    assert_eq!(request(0, u32::MAX, 0), Some(Errno::EINVAL));
    assert_eq!(request(MAX - 10, 10, 10), None);
    assert_eq!(request(MAX - 10, 11, 11), Some(Errno::EINVAL));
    assert_eq!(request(u64::MAX, 1, 1), Some(Errno::EINVAL));
    assert_eq!(request(MAX + 1, 0, 0), Some(Errno::EINVAL));
}

#[test]
fn ranges_that_overflow_are_refused() {
    let fallocate = |offset, length| {
        let fixed = wire::FAllocateIn { offset, length, ..Default::default() };
        decoded(Opcode::FAllocate, fixed.as_bytes(), 0).err()
    };
    assert_eq!(fallocate(MAX - 1, 1), None);
    assert_eq!(fallocate(MAX, 1), Some(Errno::EINVAL));
    assert_eq!(fallocate(u64::MAX, u64::MAX), Some(Errno::EINVAL));
    let lseek = |offset, whence| {
        let fixed = wire::LSeekIn { offset, whence, ..Default::default() };
        decoded(Opcode::LSeek, fixed.as_bytes(), 0).err()
    };
    assert_eq!(lseek(MAX, 3), None);
    assert_eq!(lseek(MAX + 1, 3), Some(Errno::ENXIO));
    assert_eq!(lseek(u64::MAX, 4), Some(Errno::ENXIO));
    assert_eq!(lseek(u64::MAX, 0), Some(Errno::EINVAL));
    assert_eq!(lseek(0, 5), Some(Errno::EINVAL));
}

#[test]
fn copies_are_cut_to_what_can_be_counted() {
    let length = |opcode: Opcode, off_in, off_out, len| {
        let body = [0, off_in, 0, 0, off_out, len, 0];
        let header = header(opcode as u32, 56, 0);
        match decode_with(&header, body.as_bytes(), 0, &all_features()) {
            Ok(Operation::CopyFileRange { length, .. }) => Ok(length),
            Err(errno) => Err(errno),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(length(Opcode::CopyFileRange, 0, 0, u64::MAX), Ok(0xffff_f000));
    assert_eq!(length(Opcode::CopyFileRange64, 0, 0, u64::MAX), Ok(MAX));
    assert_eq!(length(Opcode::CopyFileRange64, 0, MAX - 9, u64::MAX), Ok(9));
    assert_eq!(length(Opcode::CopyFileRange64, MAX - 8, 0, u64::MAX), Ok(8));
    assert_eq!(length(Opcode::CopyFileRange64, MAX + 1, 0, 1), Err(Errno::EINVAL));
    assert_eq!(length(Opcode::CopyFileRange64, 0, u64::MAX, 1), Err(Errno::EINVAL));
}

#[test]
fn setattr_values_are_checked() {
    let request = |change: fn(&mut wire::SetAttrIn)| {
        let mut fixed = sample_setattr();
        change(&mut fixed);
        decoded(Opcode::SetAttr, fixed.as_bytes(), 0).err()
    };
    assert_eq!(request(|set| set.size = MAX), None);
    assert_eq!(request(|set| set.size = MAX + 1), Some(Errno::EINVAL));
    assert_eq!(request(|set| set.uid = u32::MAX), Some(Errno::EINVAL));
    assert_eq!(request(|set| set.gid = u32::MAX), Some(Errno::EINVAL));
    assert_eq!(request(|set| set.atimensec = 1_000_000_000), Some(Errno::EINVAL));
    assert_eq!(request(|set| set.mtimensec = u32::MAX), None, "not used: the time is to be now");
    let nothing =
        wire::SetAttrIn { valid: 0, uid: u32::MAX, size: u64::MAX, atimensec: u32::MAX, ..sample_setattr() };
    assert!(
        decoded(Opcode::SetAttr, nothing.as_bytes(), 0).is_ok(),
        "fields that don't count aren't checked"
    );
    let negative = wire::SetAttrIn { valid: 1 << 4, atime: -5_i64 as u64, ..sample_setattr() };
    let shown = decoded(Opcode::SetAttr, negative.as_bytes(), 0).expect("times before 1970");
    assert!(shown.contains("atime: Some(At { seconds: -5, nanos: 15 })"), "{shown}");
}

#[test]
fn locks_modes_flags_and_masks_are_checked() {
    let lock = |opcode, start, end, kind| {
        let lk = FileLock { start, end, kind, pid: 1 };
        decoded(opcode, wire::LkIn { lk, ..Default::default() }.as_bytes(), 0).err()
    };
    assert_eq!(lock(Opcode::SetLk, 0, MAX, 2), None);
    assert_eq!(lock(Opcode::SetLk, 0, MAX + 1, 1), Some(Errno::EINVAL));
    assert_eq!(lock(Opcode::SetLk, 2, 1, 1), Some(Errno::EINVAL));
    assert_eq!(lock(Opcode::SetLkWait, 0, 1, 3), Some(Errno::EINVAL));
    assert_eq!(lock(Opcode::GetLk, 0, 1, 2), Some(Errno::EINVAL));
    let mknod = |mode| {
        let fixed = wire::MkNodIn { mode, ..Default::default() };
        decoded(Opcode::MkNod, &join(fixed.as_bytes(), b"n\0"), 0).err()
    };
    for kind in [0, 0o010_000, 0o020_000, 0o060_000, 0o100_000, 0o140_000] {
        assert_eq!(mknod(kind | 0o644), None);
    }
    for kind in [0o040_000, 0o120_000, 0o030_000, 0o170_000] {
        assert_eq!(mknod(kind | 0o644), Some(Errno::EINVAL));
    }
    let rename = |flags| {
        let fixed = wire::Rename2In { newdir: 1, flags, padding: 0 };
        decoded(Opcode::Rename2, &join(fixed.as_bytes(), b"a\0b\0"), 0).err()
    };
    assert_eq!(rename(7), None);
    assert_eq!(rename(8), Some(Errno::EINVAL));
    let access = |mask| decoded(Opcode::Access, wire::AccessIn { mask, padding: 0 }.as_bytes(), 0).err();
    assert_eq!(access(7), None);
    assert_eq!(access(8), Some(Errno::EINVAL));
    let statx = |sx_flags, sx_mask| {
        decoded(Opcode::Statx, wire::StatxIn { sx_flags, sx_mask, ..Default::default() }.as_bytes(), 0)
    };
    assert_eq!(statx(0x6000, 0), Err(Errno::EINVAL));
    let expected = "Statx { handle: None, flags: 0, mask: 2147483647 }";
    assert_eq!(statx(0x100, u32::MAX), Ok(expected.to_owned()));
}

#[test]
fn ioctl_sizes_are_limited() {
    let request = |in_size, out_size| {
        let fixed = wire::IoctlIn { in_size, out_size, ..Default::default() };
        decoded(Opcode::Ioctl, &join(fixed.as_bytes(), &[0; MAX_IOCTL]), 0).err()
    };
    let most = MAX_IOCTL as u32;
    assert_eq!(request(most, most), None);
    assert_eq!(request(most + 1, 0), Some(Errno::EINVAL));
    assert_eq!(request(0, most + 1), Some(Errno::EINVAL));
}

#[test]
fn init_of_other_versions() {
    let init = |major, flags, ext: &[u8]| {
        let fixed = wire::InitIn { major, minor: 31, max_readahead: 0, flags };
        decoded(Opcode::Init, &join(fixed.as_bytes(), ext), 0)
    };
    assert!(init(7, 1, b"").is_ok(), "16 bytes before 7.36");
    assert_eq!(init(7, 1 << 30, b""), Err(Errno::EINVAL));
    assert!(init(8, 1 << 30, b"").is_ok(), "what a later version sends is not known");
    let unknown = InitInExt { flags2: u32::MAX, ..Default::default() };
    let shown = init(7, 1, unknown.as_bytes()).expect("flags2 doesn't count");
    assert!(shown.ends_with("flags: InitFlags(ASYNC_READ) })"), "{shown}");
}
