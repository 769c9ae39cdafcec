//! Any list of mounts comes to an end, and to a plan that keeps to the share: a guest has a say in it, by the names of the
//! directories that lead to a mount.
//!
//! Input: the id of the share's mount, one byte; its directory, a NUL, the list.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use sandbox::mountinfo;
use virtiofsd::follower::plan;

fuzz_target!(|input: &[u8]| {
    let Some((top, rest)) = input.split_first() else { return };
    let Some(end) = rest.iter().position(|byte| *byte == 0) else { return };
    let (directory, text) = (&rest[..end], &rest[end + 1..]);
    let table = mountinfo::parse(text);
    assert!(table.len() <= text.len() / 8, "a line is longer than that");
    let wanted = plan::below(table.clone(), u64::from(*top), directory);
    assert!(wanted.len() <= table.len());
    let mut shown = HashSet::from([u64::from(*top)]);
    for one in &wanted {
        assert!(shown.contains(&one.key.parent), "it is on nothing that is shown");
        shown.insert(one.id);
        let path = one.path.to_bytes();
        assert!(!path.is_empty());
        let full = [directory.strip_suffix(b"/").unwrap_or(directory), b"/", path].concat();
        assert!(table.iter().any(|mount| mount.id == one.id && mount.point == full), "it is not there");
    }
});
