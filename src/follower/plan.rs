//! From the host's list of mounts to those that are to be seen in the share. No system call.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;

use sandbox::mountinfo::Mount;

/// What makes a mount with the same id the same mount: ids are used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The id of the mount that it is on.
    pub parent: u64,
    /// The file system's device.
    pub device: (u32, u32),
    /// The directory of the file system that is its root.
    pub root: Vec<u8>,
}

/// A mount that is to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its id.
    pub id: u64,
    /// What tells it from others.
    pub key: Key,
    /// Where it is, from the share's root.
    pub path: CString,
    /// Nothing can be written through it.
    pub read_only: bool,
    /// Something else is mounted over its root or over a directory on the way to it, so that its path leads elsewhere.
    pub covered: bool,
}

/// The mounts below `directory` of the mount `top`, each behind the one that it is on. `directory` is the path of a
/// directory in that mount as the list would have it.
///
/// A mount counts if the mount that it is on is `top` or counts itself, and it is below the directory: what is mounted
/// over the directory itself does not, nor what is on other mounts that happen to have such a path.
pub fn below(table: Vec<Mount>, top: u64, directory: &[u8]) -> Vec<Wanted> {
    let mut by_parent: HashMap<u64, Vec<Mount>> = HashMap::new();
    for mount in table {
        by_parent.entry(mount.parent).or_default().push(mount);
    }
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut parents = vec![top];
    // Each parent's children are taken out of the map, so that even a list that goes in circles comes to an end.
    while let Some(parent) = parents.pop() {
        for mount in by_parent.remove(&parent).unwrap_or_default() {
            let Some(path) = relative(&mount.point, directory) else { continue };
            parents.push(mount.id);
            let Mount { id, parent, device, root, read_only, .. } = mount;
            wanted.push(Wanted { id, key: Key { parent, device, root }, path, read_only, covered: false });
        }
    }
    mark_covered(&mut wanted);
    wanted
}

/// Says of which mounts the path leads to something else: to what is mounted over their root, or over a directory on
/// the way.
fn mark_covered(wanted: &mut [Wanted]) {
    let paths: HashMap<u64, &[u8]> = wanted.iter().map(|one| (one.id, one.path.to_bytes())).collect();
    let places: HashSet<(u64, &[u8])> =
        wanted.iter().map(|one| (one.key.parent, one.path.to_bytes())).collect();
    let mut hidden: HashSet<u64> = HashSet::new();
    let mut covered = Vec::with_capacity(wanted.len());
    for one in wanted.iter() {
        let (parent, path) = (one.key.parent, one.path.to_bytes());
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut on_the_way = slashes.map(|at| path.get(..at).unwrap_or_default());
        // Over the root of the mount that it is on, or over another directory there.
        let behind = on_the_way.any(|directory| places.contains(&(parent, directory)));
        let over_root = paths.get(&parent) == Some(&path);
        if hidden.contains(&parent) || behind && !over_root {
            hidden.insert(one.id);
        }
        covered.push(hidden.contains(&one.id) || places.contains(&(one.id, path)));
    }
    for (one, covered) in wanted.iter_mut().zip(covered) {
        one.covered = covered;
    }
}

/// `path` from `directory`, if it is below.
fn relative(path: &[u8], directory: &[u8]) -> Option<CString> {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    let rest = path.strip_prefix(directory)?.strip_prefix(b"/")?;
    // The kernel's paths have no NUL.
    CString::new(rest).ok().filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mount(id: u64, parent: u64, point: &str) -> Mount {
        Mount {
            id,
            parent,
            device: (0, 9),
            root: b"/".to_vec(),
            point: point.into(),
            read_only: false,
            propagates: false,
        }
    }

    fn paths(table: Vec<Mount>, directory: &str) -> Vec<(u64, String, bool)> {
        let wanted = below(table, 1, directory.as_bytes());
        let text = |wanted: &Wanted| wanted.path.to_str().unwrap().to_owned();
        wanted.iter().map(|wanted| (wanted.id, text(wanted), wanted.covered)).collect()
    }

    #[test]
    fn what_is_below_counts_and_nothing_else() {
        let table = vec![
            mount(1, 0, "/"),
            mount(2, 1, "/srv/share/a"),
            mount(3, 2, "/srv/share/a/b"),
            // Over the share, beside it, and with its name as a beginning.
            mount(4, 1, "/srv/share"),
            mount(5, 4, "/srv/share/c"),
            mount(6, 1, "/srv/other"),
            mount(7, 1, "/srv/share2/d"),
            // On another mount.
            mount(8, 6, "/srv/share/e"),
        ];
        let found = paths(table, "/srv/share");
        assert_eq!(found, [(2, "a".to_owned(), false), (3, "a/b".to_owned(), false)]);
    }

    #[test]
    fn what_is_stacked_comes_in_order() {
        // The list need not be in the order of the tree.
        let table = vec![mount(4, 3, "/s/a"), mount(3, 2, "/s/a"), mount(2, 1, "/s/a"), mount(1, 0, "/s")];
        let name = || "a".to_owned();
        assert_eq!(paths(table, "/s"), [(2, name(), true), (3, name(), true), (4, name(), false)]);
    }

    #[test]
    fn what_is_behind_another_mount_is_covered() {
        let table = vec![
            mount(2, 1, "/s/a/b"),
            mount(3, 2, "/s/a/b/c"),
            // Over the directory that leads to both, and something in there.
            mount(4, 1, "/s/a"),
            mount(5, 4, "/s/a/b"),
            // Over the root of that.
            mount(6, 5, "/s/a/b"),
            mount(7, 6, "/s/a/b/d"),
            mount(8, 5, "/s/a/b/e"),
        ];
        let mut covered: Vec<_> =
            paths(table, "/s").into_iter().map(|(id, _, covered)| (id, covered)).collect();
        covered.sort_unstable();
        let expected = [(2, true), (3, true), (4, false), (5, true), (6, false), (7, false), (8, true)];
        assert_eq!(covered, expected);
    }

    #[test]
    fn a_share_that_is_the_root_has_everything() {
        let table = vec![mount(1, 1, "/"), mount(2, 1, "/proc"), mount(3, 2, "/proc/x")];
        assert_eq!(paths(table, "/"), [(2, "proc".to_owned(), false), (3, "proc/x".to_owned(), false)]);
    }

    proptest! {
        /// Whatever the list, each mount counts at most once, below the share, and behind its parent.
        #[test]
        fn any_list_will_do(list in proptest::collection::vec((0u64..8, 0u64..8, "(/s)?(/a)?(/b)?(//)?"), 0..12)) {
            let table: Vec<_> = list.iter().map(|(id, parent, point)| mount(*id, *parent, point)).collect();
            let wanted = below(table.clone(), 1, b"/s");
            prop_assert!(wanted.len() <= table.len());
            for (position, one) in wanted.iter().enumerate() {
                prop_assert!(!one.path.is_empty());
                let behind = one.key.parent == 1
                    || wanted.iter().take(position).any(|other| other.id == one.key.parent);
                prop_assert!(behind, "{wanted:?}");
            }
        }
    }
}
