//! A good message of each opcode and what it means: tables for the tests.

use super::*;

/// A security context and two groups, as Linux pads them.
fn extension_bytes() -> Vec<u8> {
    let context = b"security.selinux\0unconfined_t\0\0\0";
    let context_len = 8 + 8 + context.len() as u32;
    let mut bytes = wire::ExtHeader { size: context_len, kind: 1 }.as_bytes().to_vec();
    bytes.extend(wire::SecCtx { size: 13, padding: 0 }.as_bytes());
    bytes.extend(context);
    bytes.extend(wire::ExtHeader { size: 24, kind: wire::EXT_GROUPS }.as_bytes());
    bytes.extend([2_u32, 100, 200, 0].as_bytes());
    bytes
}

/// A good body of each opcode; the length up to which a shorter one is good, too (0 for the requests that
/// need none); WRITE's data. Each field has its own value, so that none can be taken for another.
pub(super) fn sample(opcode: Opcode) -> (Vec<u8>, Vec<usize>, usize) {
    let whole = |body: Vec<u8>| (body, vec![], 0);
    let with_extensions = |body: Vec<u8>| {
        let first = body.len() + 48;
        let also_good = vec![body.len(), first];
        (join(&body, &extension_bytes()), also_good, 0)
    };
    match opcode {
        Opcode::Lookup | Opcode::Unlink | Opcode::RmDir | Opcode::RemoveXattr => whole(b"name\0".to_vec()),
        Opcode::Forget => whole(wire::ForgetIn { nlookup: 11 }.as_bytes().to_vec()),
        Opcode::BatchForget => whole([2_u64, 21, 22, 31, 32].as_bytes().to_vec()),
        Opcode::GetAttr => whole(wire::GetAttrIn { getattr_flags: 1, dummy: 0, fh: 11 }.as_bytes().to_vec()),
        Opcode::SetAttr => whole(sample_setattr().as_bytes().to_vec()),
        Opcode::Statx => {
            let fixed = wire::StatxIn {
                getattr_flags: 1,
                fh: 11,
                sx_flags: 0x2000,
                sx_mask: 0xfff,
                ..Default::default()
            };
            whole(fixed.as_bytes().to_vec())
        }
        Opcode::SymLink => with_extensions(b"name\0../tar/get\0".to_vec()),
        Opcode::MkNod => {
            let fixed = wire::MkNodIn { mode: 0o020_644, rdev: 11, umask: 0o22, padding: 0 };
            with_extensions(join(fixed.as_bytes(), b"name\0"))
        }
        Opcode::MkDir => {
            with_extensions(join(wire::MkDirIn { mode: 0o1755, umask: 0o22 }.as_bytes(), b"name\0"))
        }
        Opcode::Create | Opcode::TmpFile => {
            let fixed = wire::CreateIn { flags: 0o102, mode: 0o100_640, umask: 0o27, open_flags: 1 };
            let name: &[u8] = if opcode == Opcode::Create { b"name\0" } else { b"/\0" };
            with_extensions(join(fixed.as_bytes(), name))
        }
        Opcode::Rename => whole(join(wire::RenameIn { newdir: 11 }.as_bytes(), b"old\0new\0")),
        Opcode::Rename2 => {
            whole(join(wire::Rename2In { newdir: 11, flags: 2, padding: 0 }.as_bytes(), b"old\0new\0"))
        }
        Opcode::Link => whole(join(wire::LinkIn { oldnodeid: 11 }.as_bytes(), b"name\0")),
        Opcode::Open | Opcode::OpenDir => {
            whole(wire::OpenIn { flags: 0o2001, open_flags: 1 }.as_bytes().to_vec())
        }
        Opcode::Read | Opcode::ReadDir | Opcode::ReadDirPlus => {
            let fixed = wire::ReadIn {
                fh: 11,
                offset: 12,
                size: 13,
                flags: 14,
                lock_owner: 15,
                ..Default::default()
            };
            whole(fixed.as_bytes().to_vec())
        }
        Opcode::Write => {
            let fixed = wire::WriteIn {
                fh: 11,
                offset: 12,
                size: 13,
                write_flags: 5,
                flags: 14,
                ..Default::default()
            };
            (fixed.as_bytes().to_vec(), vec![], 13)
        }
        Opcode::Release | Opcode::ReleaseDir => {
            let fixed = wire::ReleaseIn { fh: 11, flags: 12, release_flags: 2, lock_owner: 13 };
            whole(fixed.as_bytes().to_vec())
        }
        Opcode::Flush => {
            whole(wire::FlushIn { fh: 11, lock_owner: 12, ..Default::default() }.as_bytes().to_vec())
        }
        Opcode::FSync | Opcode::FSyncDir => {
            whole(wire::FSyncIn { fh: 11, fsync_flags: 1, padding: 0 }.as_bytes().to_vec())
        }
        Opcode::SetXattr => {
            let fixed = join(
                wire::SetXattrIn { size: 5, flags: 2 }.as_bytes(),
                wire::SetXattrExt { setxattr_flags: 1, padding: 0 }.as_bytes(),
            );
            whole(join(&fixed, b"user.x\0v\0lue"))
        }
        Opcode::GetXattr => whole(join(wire::GetXattrIn { size: 11, padding: 0 }.as_bytes(), b"user.x\0")),
        Opcode::ListXattr => whole(wire::GetXattrIn { size: 11, padding: 0 }.as_bytes().to_vec()),
        Opcode::Init => {
            let fixed = wire::InitIn { major: 7, minor: 41, max_readahead: 11, flags: 1 << 30 | 1 };
            let ext = InitInExt { flags2: 1 << 2, ..Default::default() };
            whole(join(fixed.as_bytes(), ext.as_bytes()))
        }
        Opcode::GetLk | Opcode::SetLk | Opcode::SetLkWait => {
            let lk = FileLock { start: 13, end: 14, kind: 1, pid: 15 };
            whole(wire::LkIn { fh: 11, owner: 12, lk, lk_flags: 1, padding: 0 }.as_bytes().to_vec())
        }
        Opcode::Access => whole(wire::AccessIn { mask: 5, padding: 0 }.as_bytes().to_vec()),
        Opcode::Interrupt => whole(wire::InterruptIn { unique: 11 }.as_bytes().to_vec()),
        Opcode::Ioctl => {
            let fixed = wire::IoctlIn { fh: 11, flags: 12, cmd: 13, arg: 14, in_size: 3, out_size: 16 };
            whole(join(fixed.as_bytes(), b"abc"))
        }
        Opcode::FAllocate => {
            let fixed = wire::FAllocateIn { fh: 11, offset: 12, length: 13, mode: 3, padding: 0 };
            whole(fixed.as_bytes().to_vec())
        }
        Opcode::LSeek => {
            whole(wire::LSeekIn { fh: 11, offset: 12, whence: 3, padding: 0 }.as_bytes().to_vec())
        }
        Opcode::CopyFileRange | Opcode::CopyFileRange64 => {
            whole([11_u64, 12, 13, 14, 15, 16, 0].as_bytes().to_vec())
        }
        Opcode::ReadLink
        | Opcode::StatFs
        | Opcode::SyncFs
        | Opcode::Destroy
        | Opcode::BMap
        | Opcode::Poll
        | Opcode::NotifyReply
        | Opcode::SetupMapping
        | Opcode::RemoveMapping => (b"12345678".to_vec(), (0..8).collect(), 0),
    }
}

pub(super) fn sample_setattr() -> wire::SetAttrIn {
    wire::SetAttrIn {
        valid: 0xdff & !(1 << 7),
        fh: 11,
        size: 12,
        atime: 13,
        mtime: 14,
        atimensec: 15,
        mtimensec: 16,
        mode: 0o100_644,
        uid: 17,
        gid: 18,
        ..Default::default()
    }
}

/// What each sample means, in the debug form of the operation.
pub(super) fn meaning(opcode: Opcode) -> &'static str {
    const EXT: &str = r#"CreateExtensions { groups: [100, 200], security_context: Some(("security.selinux", [117, 110, 99, 111, 110, 102, 105, 110, 101, 100, 95, 116, 0])) }"#;
    let with_ext = |before: &str| -> &'static str { Box::leak(format!("{before}, ext: {EXT} }}").into()) };
    match opcode {
        Opcode::Lookup => r#"Lookup(Name(FileName("name")))"#,
        Opcode::Forget => "Forget { nlookup: 11 }",
        Opcode::GetAttr => "GetAttr { handle: Some(HandleId(11)) }",
        Opcode::SetAttr => {
            "SetAttr(SetAttr { handle: Some(HandleId(11)), mode: Some(420), uid: Some(GuestUid(17)), \
             gid: Some(GuestGid(18)), size: Some(12), atime: Some(At { seconds: 13, nanos: 15 }), \
             mtime: Some(Now), ctime: true, kill_suidgid: true })"
        }
        Opcode::ReadLink => "ReadLink",
        Opcode::SymLink => with_ext(r#"SymLink { name: FileName("name"), target: "../tar/get""#),
        Opcode::MkNod => with_ext(r#"MkNod { name: FileName("name"), mode: 8612, rdev: 11, umask: 18"#),
        Opcode::MkDir => with_ext(r#"MkDir { name: FileName("name"), mode: 1005, umask: 18"#),
        Opcode::Unlink => r#"Unlink(FileName("name"))"#,
        Opcode::RmDir => r#"RmDir(FileName("name"))"#,
        Opcode::Rename => {
            r#"Rename { name: FileName("old"), new_parent: NodeId(11), new_name: FileName("new"), flags: 0 }"#
        }
        Opcode::Rename2 => {
            r#"Rename { name: FileName("old"), new_parent: NodeId(11), new_name: FileName("new"), flags: 2 }"#
        }
        Opcode::Link => r#"Link { source: NodeId(11), name: FileName("name") }"#,
        Opcode::Open => "Open(Open { flags: 1025, kill_suidgid: true })",
        Opcode::OpenDir => "OpenDir(Open { flags: 1025, kill_suidgid: true })",
        Opcode::Create => with_ext(
            r#"Create { name: FileName("name"), open: Open { flags: 66, kill_suidgid: true }, mode: 416, umask: 23"#,
        ),
        Opcode::TmpFile => {
            with_ext("TmpFile { open: Open { flags: 66, kill_suidgid: true }, mode: 416, umask: 23")
        }
        Opcode::Read => "Read(Read { handle: HandleId(11), offset: 12, size: 13, flags: 14 })",
        Opcode::ReadDir => "ReadDir(ReadDir { handle: HandleId(11), offset: 12, size: 13 })",
        Opcode::ReadDirPlus => "ReadDirPlus(ReadDir { handle: HandleId(11), offset: 12, size: 13 })",
        Opcode::Write => {
            "Write(Write { handle: HandleId(11), offset: 12, size: 13, flags: 14, from_cache: true, \
             kill_suidgid: true })"
        }
        Opcode::StatFs => "StatFs",
        Opcode::Release => "Release { handle: HandleId(11), flock_unlock: true, lock_owner: 13 }",
        Opcode::ReleaseDir => "ReleaseDir { handle: HandleId(11) }",
        Opcode::FSync => "FSync { handle: HandleId(11), datasync: true }",
        Opcode::FSyncDir => "FSyncDir { handle: HandleId(11), datasync: true }",
        Opcode::Flush => "Flush { handle: HandleId(11), lock_owner: 12 }",
        Opcode::SetXattr => {
            r#"SetXattr { name: "user.x", value: [118, 0, 108, 117, 101], flags: 2, acl_kill_sgid: true }"#
        }
        Opcode::GetXattr => r#"GetXattr { name: "user.x", size: Some(11) }"#,
        Opcode::ListXattr => "ListXattr { size: Some(11) }",
        Opcode::RemoveXattr => r#"RemoveXattr { name: "name" }"#,
        Opcode::Init => {
            "Init(Init { major: 7, minor: 41, max_readahead: 11, \
             flags: InitFlags(ASYNC_READ | INIT_EXT | CREATE_SUPP_GROUP) })"
        }
        Opcode::GetLk => {
            "GetLk(Lock { handle: HandleId(11), owner: 12, start: 13, end: 14, kind: 1, pid: 15, flock: true })"
        }
        Opcode::SetLk => {
            "SetLk { lock: Lock { handle: HandleId(11), owner: 12, start: 13, end: 14, kind: 1, pid: 15, \
             flock: true }, wait: false }"
        }
        Opcode::SetLkWait => {
            "SetLk { lock: Lock { handle: HandleId(11), owner: 12, start: 13, end: 14, kind: 1, pid: 15, \
             flock: true }, wait: true }"
        }
        Opcode::Access => "Access { mask: 5 }",
        Opcode::Interrupt => "Interrupt { unique: 11 }",
        Opcode::Destroy => "Destroy",
        Opcode::Ioctl => {
            "Ioctl { handle: HandleId(11), flags: 12, command: 13, input: [97, 98, 99], out_size: 16 }"
        }
        Opcode::FAllocate => "FAllocate { handle: HandleId(11), offset: 12, length: 13, mode: 3 }",
        Opcode::LSeek => "LSeek { handle: HandleId(11), offset: 12, whence: 3 }",
        Opcode::CopyFileRange => {
            "CopyFileRange { handle_in: HandleId(11), offset_in: 12, node_out: NodeId(13), \
             handle_out: HandleId(14), offset_out: 15, length: 16, flags: 0, wide: false }"
        }
        Opcode::CopyFileRange64 => {
            "CopyFileRange { handle_in: HandleId(11), offset_in: 12, node_out: NodeId(13), \
             handle_out: HandleId(14), offset_out: 15, length: 16, flags: 0, wide: true }"
        }
        Opcode::SyncFs => "SyncFs",
        Opcode::Statx => "Statx { handle: Some(HandleId(11)), flags: 8192, mask: 4095 }",
        Opcode::BatchForget => "BatchForget(",
        Opcode::BMap | Opcode::Poll | Opcode::NotifyReply | Opcode::SetupMapping | Opcode::RemoveMapping => {
            "Unsupported"
        }
    }
}
