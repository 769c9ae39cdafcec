//! Messages as Linux 6.18 sent them (recorded from `/dev/fuse`, with SETXATTR_EXT, SECURITY_CTX,
//! CREATE_SUPP_GROUP and ALLOW_IDMAP negotiated; no security module in force), and what they mean.

use super::*;

/// Message in hexadecimal with its header; what it decodes to.
const RECORDED: &[(&str, &str)] = &[
    (
        "4b000000090000000c0000000000000001000000000000000000000001000000676e000003000000ed03000012000000646400080000000000000010000000200000000100000064000000",
        r#"MkDir { name: FileName("dd"), mode: 1005, umask: 18, ext: CreateExtensions { groups: [100], security_context: None } }"#,
    ),
    (
        "4d00000006000000140000000000000001000000000000000000000001000000676e0000030000006c6c002e2e2f74617267657400080000000000000010000000200000000100000064000000",
        r#"SymLink { name: FileName("ll"), target: "../target", ext: CreateExtensions { groups: [100], security_context: None } }"#,
    ),
    (
        "53000000080000001c0000000000000001000000000000000000000001000000676e000003000000a41100000000000012000000000000006e6e00080000000000000010000000200000000100000064000000",
        r#"MkNod { name: FileName("nn"), mode: 4516, rdev: 0, umask: 18, ext: CreateExtensions { groups: [100], security_context: None } }"#,
    ),
    (
        "5300000023000000240000000000000001000000000000000000000001000000676e00000300000042800000a08100001200000000000000636300080000000000000010000000200000000100000064000000",
        r#"Create { name: FileName("cc"), open: Open { flags: 32834, kill_suidgid: false }, mode: 416, umask: 18, ext: CreateExtensions { groups: [100], security_context: None } }"#,
    ),
    (
        "52000000330000002a0000000000000001000000000000000000000001000000676e000003000000028041008081000012000000000000002f00080000000000000010000000200000000100000064000000",
        "TmpFile { open: Open { flags: 4292610, kill_suidgid: false }, mode: 384, umask: 18, ext: CreateExtensions { groups: [100], security_context: None } }",
    ),
    (
        "800000000400000082000000000000000200000000000000ffffffffffffffff676e00000000000030000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000500000006000000000000000000000000000000000000000000000000000000",
        "SetAttr(SetAttr { handle: None, mode: None, uid: None, gid: None, size: None, atime: Some(At { seconds: 0, nanos: 5 }), mtime: Some(At { seconds: 0, nanos: 6 }), ctime: false, kill_suidgid: false })",
    ),
    (
        "80000000040000008c000000000000000200000000000000ffffffffffffffff676e00000000000008020000000000000000000000000000090000000000000053f178f39e291efa0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
        "SetAttr(SetAttr { handle: None, mode: None, uid: None, gid: None, size: Some(9), atime: None, mtime: None, ctime: false, kill_suidgid: false })",
    ),
    (
        "2e0000000a0000004e000000000000000100000000000000ffffffffffffffff676e000000000000686176653100",
        r#"Unlink(FileName("have1"))"#,
    ),
    (
        "380000000c00000038000000000000000100000000000000ffffffffffffffff676e00000000000001000000000000006861766531007800",
        r#"Rename { name: FileName("have1"), new_parent: NodeId(1), new_name: FileName("x"), flags: 0 }"#,
    ),
    (
        "410000002d000000c2000000000000000100000000000000ffffffffffffffff676e000000000000010000000000000001000000000000006861766531007a7a00",
        r#"Rename { name: FileName("have1"), new_parent: NodeId(1), new_name: FileName("zz"), flags: 1 }"#,
    ),
    (
        "320000000d00000046000000000000000100000000000000ffffffffffffffff676e00000000000002000000000000007900",
        r#"Link { source: NodeId(2), name: FileName("y") }"#,
    ),
    (
        "420000001500000056000000000000000200000000000000ffffffffffffffff676e00000000000003000000010000000000000000000000757365722e710076616c",
        r#"SetXattr { name: "user.q", value: [118, 97, 108], flags: 1, acl_kill_sgid: false }"#,
    ),
    (
        "37000000160000005e000000000000000200000000000000ffffffffffffffff676e0000000000008000000000000000757365722e7100",
        r#"GetXattr { name: "user.q", size: Some(128) }"#,
    ),
    (
        "300000001700000064000000000000000200000000000000ffffffffffffffff676e0000000000000001000000000000",
        "ListXattr { size: Some(256) }",
    ),
    (
        "400000002e00000076000000000000000200000000000000ffffffffffffffff676e0000000000004d00000000000000fbffffffffffffff0300000000000000",
        "ENXIO",
    ),
    (
        "40000000340000009a000000000000000200000000000000ffffffffffffffff676e0000000000000000000000000000000000000000000000000000ff0f0000",
        "Statx { handle: None, flags: 0, mask: 4095 }",
    ),
    (
        "4800000027000000a0000000000000000200000000000000ffffffffffffffff676e0000000000004d00000000000000000000000166088000000000000000000000000004000000",
        "Ioctl { handle: HandleId(77), flags: 0, command: 2148034049, input: [], out_size: 4 }",
    ),
    (
        "480000002b0000007c000000000000000200000000000000ffffffffffffffff676e0000000000004d0000000000000000000000000000000a000000000000000000000000000000",
        "FAllocate { handle: HandleId(77), offset: 0, length: 10, mode: 0 }",
    ),
    (
        "550000001000000096000000000000000200000000000000ffffffffffffffff676e0000000000004d00000000000000000000000000000005000000000000000000000000000000028000000000000068656c6c6f",
        "Write(Write { handle: HandleId(77), offset: 0, size: 5, flags: 32770, from_cache: false, kill_suidgid: false })",
    ),
    (
        "500000000f00000098000000000000000200000000000000ffffffffffffffff676e0000000000004d000000000000000000000000000000001000000000000000000000000000000280000000000000",
        "Read(Read { handle: HandleId(77), offset: 0, size: 4096, flags: 32770 })",
    ),
    (
        "4000000019000000c4000000000000000200000000000000ffffffffffffffff676e0000000000004d00000000000000000000000000000053f178f39e291efa",
        "Flush { handle: HandleId(77), lock_owner: 18022888521449664851 }",
    ),
];

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
    (0..hex.len()).step_by(2).map(digits).collect()
}

#[test]
fn messages_of_a_kernel_mean_what_its_programs_asked() {
    for (hex, expected) in RECORDED {
        let chain = bytes(hex);
        let (header, rest) = InHeader::read_from_prefix(&chain).expect("a header");
        let Frame { body, data } = frame(&header, chain.len()).expect("a frame");
        assert_eq!(HEADER + body + data, chain.len());
        let meaning = match decode_with(&header, &rest[..body], data, &all_features()) {
            Ok(operation) => format!("{operation:?}"),
            Err(errno) => format!("{errno:?}"),
        };
        assert_eq!(meaning, *expected);
    }
}

#[test]
fn caller_is_only_known_where_files_are_created() {
    // With ALLOW_IDMAP: whoever needs ids elsewhere has none.
    for (hex, _) in RECORDED {
        let header = InHeader::read_from_prefix(&bytes(hex)).expect("a header").0;
        let opcode = Opcode::from_raw(header.opcode).expect("a known opcode");
        let creating = matches!(
            opcode,
            Opcode::MkDir | Opcode::SymLink | Opcode::MkNod | Opcode::Create | Opcode::TmpFile
        );
        assert_eq!(header.uid != wire::INVALID_ID, creating, "{}", opcode.name());
        assert_eq!(header.gid != wire::INVALID_ID, creating, "{}", opcode.name());
    }
}
