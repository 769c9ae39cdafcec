//! What every [`Operation`] promises, as assertions: for the property tests here, and for the fuzz target,
//! which takes this file in by its path.

use super::*;

fn name(name: &FileName<'_>) {
    let bytes = name.as_cstr().to_bytes();
    assert!(!bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.contains(&b'/'), "{name:?}");
}

fn range(offset: u64, length: u64) {
    assert!(offset.checked_add(length).is_some_and(|end| i64::try_from(end).is_ok()), "{offset} + {length}");
}

fn extensions(ext: &CreateExtensions<'_>, negotiated: &Negotiated) {
    let groups = ext.groups.iter();
    assert!(groups.len() == 0 || negotiated.has(InitFlags::CREATE_SUPP_GROUP));
    assert!(groups.len() <= MAX_SUPP_GROUPS && ext.groups.iter().all(|gid| gid.0 != u32::MAX));
    if let Some((name, value)) = ext.security_context {
        assert!(!name.is_empty() && !value.is_empty());
        assert!(negotiated.has(InitFlags::SECURITY_CTX));
    }
}

fn time(time: Option<SetTime>) {
    if let Some(SetTime::At { nanos, .. }) = time {
        assert!(nanos < 1_000_000_000);
    }
}

fn lock(lock: &Lock) {
    assert!(lock.start <= lock.end && i64::try_from(lock.end).is_ok() && lock.kind <= 2);
}

/// Panics when `operation` is not what the comments in `operation.rs` promise.
pub(super) fn check(operation: &Operation<'_>, message: &Message<'_>, negotiated: &Negotiated) {
    let uid_and_gid = message.header.uid != u32::MAX && message.header.gid != u32::MAX;
    match operation {
        Operation::Lookup(LookupName::Name(one)) | Operation::Unlink(one) | Operation::RmDir(one) => {
            name(one)
        }
        Operation::Link { name: one, .. } => name(one),
        Operation::SymLink { name: one, target, ext } => {
            assert!(uid_and_gid && !target.is_empty());
            name(one);
            extensions(ext, negotiated);
        }
        Operation::MkNod { name: one, mode, umask, ext, .. } => {
            assert!(uid_and_gid && *umask <= 0o777 && mode & !0o177_777 == 0);
            assert!([0, 0o100_000, 0o010_000, 0o140_000, 0o020_000, 0o060_000].contains(&(mode & 0o170_000)));
            name(one);
            extensions(ext, negotiated);
        }
        Operation::MkDir { name: one, mode, umask, ext }
        | Operation::Create { name: one, mode, umask, ext, .. } => {
            assert!(uid_and_gid && *umask <= 0o777 && *mode <= 0o7777);
            name(one);
            extensions(ext, negotiated);
        }
        Operation::TmpFile { mode, umask, ext, .. } => {
            assert!(uid_and_gid && *umask <= 0o777 && *mode <= 0o7777);
            extensions(ext, negotiated);
        }
        Operation::Rename { name: old, new_name, flags, .. } => {
            name(old);
            name(new_name);
            assert!(*flags <= 7 && (flags & 4 == 0 || uid_and_gid));
        }
        Operation::SetAttr(set) => {
            assert!(set.mode.is_none_or(|mode| mode <= 0o7777));
            assert!(
                set.uid.is_none_or(|uid| uid.0 != u32::MAX) && set.gid.is_none_or(|gid| gid.0 != u32::MAX)
            );
            range(set.size.unwrap_or(0), 0);
            time(set.atime);
            time(set.mtime);
        }
        Operation::Read(read) => range(read.offset, u64::from(read.size)),
        Operation::Write(write) => {
            range(write.offset, u64::from(write.size));
            assert!(usize::try_from(write.size).is_ok_and(|size| size <= message.data));
        }
        Operation::FAllocate { offset, length, .. } => range(*offset, *length),
        Operation::LSeek { offset, whence, .. } => {
            range(*offset, 0);
            assert!(*whence <= 4);
        }
        Operation::CopyFileRange { offset_in, offset_out, length, wide, .. } => {
            range(*offset_in, *length);
            range(*offset_out, *length);
            assert!(*wide || u32::try_from(*length).is_ok());
        }
        Operation::ReadDir(list) | Operation::ReadDirPlus(list) => assert!(list.size <= MAX_DIR_REPLY),
        Operation::SetXattr { name, value, flags, acl_kill_sgid } => {
            assert!(!name.is_empty() && value.len() <= MAX_XATTR && *flags <= 3);
            assert!(!acl_kill_sgid || negotiated.has(InitFlags::SETXATTR_EXT));
        }
        Operation::GetXattr { name, size } => {
            assert!(!name.is_empty() && size.is_none_or(|size| size.get() as usize <= MAX_XATTR));
        }
        Operation::ListXattr { size } => assert!(size.is_none_or(|size| size.get() as usize <= MAX_XATTR)),
        Operation::RemoveXattr { name } => assert!(!name.is_empty()),
        Operation::GetLk(one) => {
            lock(one);
            assert!(one.kind < 2);
        }
        Operation::SetLk { lock: one, .. } => lock(one),
        Operation::Ioctl { input, out_size, .. } => {
            assert!(input.len() <= MAX_IOCTL && *out_size as usize <= MAX_IOCTL);
        }
        Operation::Statx { flags, mask, .. } => {
            assert!([0, 0x2000, 0x4000].contains(flags) && mask & 0x8000_0000 == 0);
        }
        Operation::Access { mask } => assert!(*mask <= 7),
        Operation::BatchForget(list) => {
            assert_eq!(list.iter().count(), list.len());
            assert!(list.len() * 16 <= message.body.len());
        }
        _ => {}
    }
}
