//! Golden bytes written by hand from the specification, round trips, and hostile streams.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;

/// Upstream's types as upstream nests them: what derived serde makes of a stream.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Nested {
    V1(NestedV1),
    V2 { v1: NestedV1, mount_paths: BTreeMap<u64, String> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct NestedV1 {
    inodes: Vec<Inode>,
    next_inode: u64,
    handles: Vec<Handle>,
    next_handle: u64,
    negotiated_opts: NegotiatedOptions,
}

impl From<DeviceState> for Nested {
    fn from(state: DeviceState) -> Nested {
        let v1 = NestedV1 {
            inodes: state.inodes,
            next_inode: state.next_inode,
            handles: state.handles,
            next_handle: state.next_handle,
            negotiated_opts: state.negotiated,
        };
        Nested::V2 { v1, mount_paths: state.mount_paths }
    }
}

fn encode(state: &DeviceState) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(state, &mut bytes).expect("a Vec takes everything");
    bytes
}

fn inode(id: u64, refcount: u64, location: InodeLocation) -> Inode {
    Inode { id, refcount, location, file_handle: None }
}

/// One of everything.
fn sample() -> DeviceState {
    let handle = FileHandle { mnt_id: 300, handle_type: -2, handle: vec![0xde, 0xad] };
    let with_handle = Inode {
        file_handle: Some(FileHandle { mnt_id: 1, handle_type: 1, handle: vec![7] }),
        ..inode(6, 1, InodeLocation::FileHandle { handle })
    };
    DeviceState {
        inodes: vec![
            inode(1, 2, InodeLocation::RootNode),
            inode(128, 16384, InodeLocation::Path { parent: 1, filename: "a".into() }),
            inode(4, 1, InodeLocation::Invalid),
            inode(5, 1, InodeLocation::FullPath { filename: "d/\u{e9}".into() }),
            with_handle,
        ],
        next_inode: 129,
        handles: vec![
            Handle { id: 0, inode: 128, source: HandleSource::OpenInode { flags: 2 } },
            Handle { id: 9, inode: 4, source: HandleSource::OpenInode { flags: -1 } },
        ],
        next_handle: 10,
        negotiated: NegotiatedOptions {
            announce_submounts: true,
            sup_group_extension: true,
            ..Default::default()
        },
        mount_paths: BTreeMap::from([(1, "sub".into()), (300, ".".into())]),
    }
}

/// The V1 part of [`sample`], by the specification of the encoding.
#[rustfmt::skip]
const GOLDEN: &[u8] = &[
    5,                                                  // five inodes
    1, 2, 0, 0,                                         // id 1, 2 references, RootNode, no handle
    0x80, 0x01, 0x80, 0x80, 0x01, 1, 1, 1, b'a', 0,     // id 128, 16384 references, Path: parent 1, "a"
    4, 1, 2, 0,                                         // Invalid
    5, 1, 3, 4, b'd', b'/', 0xc3, 0xa9, 0,              // FullPath, four bytes of UTF-8
    6, 1, 4, 0xac, 0x02, 3, 2, 0xde, 0xad,              // FileHandle: mount 300, type -2 (zigzag 3), two bytes
    1, 1, 2, 1, 7,                                      // handle to verify: mount 1, type 1 (zigzag 2), one byte
    0x81, 0x01,                                         // next inode 129
    2,                                                  // two handles
    0, 0x80, 0x01, 0, 4,                                // id 0, inode 128, OpenInode, flags 2 (zigzag 4)
    9, 4, 0, 1,                                         // id 9, inode 4, OpenInode, flags -1 (zigzag 1)
    10,                                                 // next handle
    0, 1, 0, 1,                                         // writeback, announce_submounts, posix_acl, groups
];

/// What version 2 adds.
#[rustfmt::skip]
const GOLDEN_MOUNTS: &[u8] = &[
    2,                                                  // two mounts
    1, 3, b's', b'u', b'b',
    0xac, 0x02, 1, b'.',                                // mount 300 is the share's root
];

#[test]
fn version_2_is_written_and_read_as_specified() {
    let golden = [&[1], GOLDEN, GOLDEN_MOUNTS].concat();
    assert_eq!(encode(&sample()), golden);
    assert_eq!(decode(&golden).expect("golden stream"), sample());
}

#[test]
fn version_1_is_read_as_specified() {
    let golden = [&[0], GOLDEN].concat();
    let expected = DeviceState { mount_paths: BTreeMap::new(), ..sample() };
    assert_eq!(decode(&golden).expect("golden stream"), expected);
}

#[test]
fn every_truncation_and_every_added_byte_is_refused() {
    let golden = [&[1], GOLDEN, GOLDEN_MOUNTS].concat();
    for len in 0..golden.len() {
        assert!(decode(&golden[..len]).is_err(), "the first {len} bytes were taken");
    }
    let longer = [golden.as_slice(), &[0]].concat();
    assert!(matches!(decode(&longer), Err(DecodeError::Trailing(1))));
}

#[test]
fn later_versions_are_named() {
    let error = decode(&[2, 0, 0]).expect_err("version 3");
    assert!(matches!(error, DecodeError::Version(2)));
    assert!(error.to_string().contains("format version 3"), "{error}");
}

#[test]
fn counts_beyond_the_stream_allocate_nothing() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let announce = |part: &[u8]| decode(&[part, &huge, &[0; 8]].concat());
    let cases: [(&[u8], Part); 3] =
        [(&[0], Part::Inode), (&[0, 0, 1], Part::Handle), (&[1, 0, 1, 0, 1, 0, 0, 0, 0], Part::Mount)];
    for (before, expected) in cases {
        match announce(before) {
            Err(DecodeError::Count { part, count: u64::MAX, limit }) => {
                assert_eq!(part, expected);
                assert!(limit <= 4);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn counts_at_the_limit_need_the_bytes() {
    // 2 ** 24 + 1 inodes, in a stream that is long enough for them.
    let mut bytes = vec![0, 0x81, 0x80, 0x80, 0x08];
    bytes.resize(bytes.len() + MIN_INODE * (MAX_INODES + 2), 0);
    match decode(&bytes) {
        Err(DecodeError::Count { part: Part::Inode, count, limit: MAX_INODES }) => {
            assert_eq!(count, MAX_INODES as u64 + 1);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn lengths_inside_records_are_limited() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let string = [&[0, 1, 1, 1, 3], huge.as_slice(), b"abc"].concat();
    assert!(matches!(
        decode(&string),
        Err(DecodeError::Malformed { part: Part::Inode, index: 0, offset: 2, .. })
    ));
    let bytes = [&[0, 1, 1, 1, 4, 1, 2], huge.as_slice(), b"abc"].concat();
    assert!(matches!(decode(&bytes), Err(DecodeError::Malformed { part: Part::Inode, .. })));

    let mut long = sample();
    let handle = FileHandle { mnt_id: 1, handle_type: 1, handle: vec![0; MAX_HANDLE + 1] };
    long.inodes[2].file_handle = Some(handle);
    assert!(matches!(decode(&encode(&long)), Err(DecodeError::HandleLength { id: 4, len: 129 })));
}

#[test]
fn paths_that_leave_the_share_are_refused() {
    let long = "x".repeat(MAX_PATH + 1);
    let bad = ["", "/etc", "..", "a/../b", "a/..", "../a", "a\0b", long.as_str()];
    for path in bad {
        let in_inode = |location| DeviceState { inodes: vec![inode(77, 1, location)], ..Default::default() };
        let states = [
            in_inode(InodeLocation::FullPath { filename: path.into() }),
            in_inode(InodeLocation::Path { parent: 1, filename: path.into() }),
            DeviceState { mount_paths: BTreeMap::from([(77, path.into())]), ..Default::default() },
        ];
        for state in states {
            match decode(&encode(&state)) {
                Err(DecodeError::Path { id: 77, path: shown, .. }) => assert!(shown.len() <= 80),
                other => panic!("{path:?}: {other:?}"),
            }
        }
    }
    for path in [".", "a", "a/b", "...", "..a", "a..", "a//b", "./a"] {
        let location = InodeLocation::FullPath { filename: path.into() };
        let state = DeviceState { inodes: vec![inode(1, 1, location)], ..Default::default() };
        assert_eq!(decode(&encode(&state)).expect(path), state);
    }
}

#[test]
fn a_mount_is_told_once() {
    let twice = [&[1], GOLDEN, &[2, 1, 1, b'a', 1, 1, b'b']].concat();
    assert!(matches!(decode(&twice), Err(DecodeError::DuplicateMount { id: 1 })));
}

#[test]
fn errors_of_the_front_end_are_kept() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(libc::EPIPE))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
    match write(&sample(), Broken) {
        Err(EncodeError::Write(error)) => assert_eq!(error.raw_os_error(), Some(libc::EPIPE)),
        other => panic!("{other:?}"),
    }
    match read(Broken) {
        Err(DecodeError::Read(error)) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
        other => panic!("{other:?}"),
    }
}

fn path() -> impl Strategy<Value = String> {
    "[a-z\u{e4}]{1,12}(/[a-z.]{1,4}x){0,3}"
}

fn file_handle() -> impl Strategy<Value = FileHandle> {
    (any::<u64>(), any::<i32>(), vec(any::<u8>(), 0..=MAX_HANDLE))
        .prop_map(|(mnt_id, handle_type, handle)| FileHandle { mnt_id, handle_type, handle })
}

fn location() -> impl Strategy<Value = InodeLocation> {
    prop_oneof![
        Just(InodeLocation::RootNode),
        (any::<u64>(), path()).prop_map(|(parent, filename)| InodeLocation::Path { parent, filename }),
        Just(InodeLocation::Invalid),
        path().prop_map(|filename| InodeLocation::FullPath { filename }),
        file_handle().prop_map(|handle| InodeLocation::FileHandle { handle }),
    ]
}

prop_compose! {
    fn any_inode()(
        id in any::<u64>(), refcount in any::<u64>(), location in location(),
        file_handle in option::of(file_handle()),
    ) -> Inode {
        Inode { id, refcount, location, file_handle }
    }
}

prop_compose! {
    fn any_handle()(id in any::<u64>(), inode in any::<u64>(), flags in any::<i32>()) -> Handle {
        Handle { id, inode, source: HandleSource::OpenInode { flags } }
    }
}

prop_compose! {
    fn any_state()(
        inodes in vec(any_inode(), 0..20), next_inode in any::<u64>(),
        handles in vec(any_handle(), 0..20), next_handle in any::<u64>(),
        options in any::<[bool; 4]>(), mount_paths in btree_map(any::<u64>(), path(), 0..5),
    ) -> DeviceState {
        let [writeback, announce_submounts, posix_acl, sup_group_extension] = options;
        let negotiated = NegotiatedOptions { writeback, announce_submounts, posix_acl, sup_group_extension };
        DeviceState { inodes, next_inode, handles, next_handle, negotiated, mount_paths }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(state in any_state()) {
        let bytes = encode(&state);
        prop_assert_eq!(&decode(&bytes).expect("own stream"), &state);
        let nested = Nested::from(state);
        prop_assert_eq!(postcard::to_stdvec(&nested).expect("upstream's form"), bytes);
    }

    /// Ours takes what derived serde takes, or refuses it for a reason of its own.
    #[test]
    fn mutated_streams_are_refused_or_mean_the_same(
        state in any_state(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = encode(&state);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        match (decode(&bytes), postcard::take_from_bytes::<Nested>(&bytes)) {
            (Ok(ours), Ok((theirs @ Nested::V2 { .. }, []))) => prop_assert_eq!(Nested::from(ours), theirs),
            (Ok(ours), Ok((Nested::V1(_), []))) => prop_assert!(ours.mount_paths.is_empty()),
            (Ok(ours), theirs) => prop_assert!(false, "ours {:?}, theirs {:?}", ours, theirs),
            (Err(DecodeError::Malformed { .. }), Ok((theirs, []))) => {
                prop_assert!(false, "refused {:?}", theirs)
            }
            (Err(_), _) => {}
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..400)) {
        if let Ok(state) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&state)).expect("own stream"), state);
        }
    }
}
