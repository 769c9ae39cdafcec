//! Where inodes lie, as far as is known: for each the directory that it is in, and its name there.
//!
//! A place names its directory by identity, not by path, so a renamed directory changes one place, whatever lies
//! below it. Paths are put together at the end, when the guest stands still.
//!
//! While a migration is being prepared ([`Tracker::start`] to [`Tracker::stop`]), the file system tells the
//! tracker of every name that it looks up, makes, moves or removes. Otherwise that costs one relaxed load.
//!
//! Lock order: `order`, then `places`. Operations that change names hold `order` from before the system call
//! until the tracker knows of it, so that somebody who checks a name and records it, under the same lock, can't
//! record what has just ceased to be true. No system call runs under `places`.

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::format::MAX_PATH;
use crate::worker::fs::inodes::Identity;

/// A directory and a name in it.
struct Place {
    parent: Identity,
    name: Box<CStr>,
}

/// All places that are known.
#[derive(Default)]
struct Places(HashMap<Identity, Place>);

/// Keeps the places up to date.
#[derive(Default)]
pub struct Tracker {
    on: AtomicBool,
    order: Mutex<()>,
    places: Mutex<Places>,
}

/// A change of names is under way, and the tracker will be told of it.
pub struct Change<'a> {
    tracker: &'a Tracker,
    _order: MutexGuard<'a, ()>,
}

impl Tracker {
    /// From here on operations are followed.
    pub fn start(&self) {
        let _order = self.order.lock();
        self.on.store(true, Ordering::Release);
    }

    /// From here on they are not; what is known is forgotten.
    pub fn stop(&self) {
        let _order = self.order.lock();
        self.on.store(false, Ordering::Release);
        let places = std::mem::take(&mut *self.places.lock());
        drop(places);
    }

    /// Are operations followed?
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// To be held while a name is changed or checked; `None` when nobody wants to know.
    pub fn change(&self) -> Option<Change<'_>> {
        if !self.is_on() {
            return None;
        }
        Some(Change { tracker: self, _order: self.order.lock() })
    }

    /// So many places will be recorded: nobody is to wait until room is made for them.
    pub fn expect(&self, places: usize) {
        self.places.lock().0.reserve(places);
    }

    /// A name in a directory leads to `child`.
    pub fn saw(&self, parent: &Identity, name: &CStr, child: &Identity) {
        if self.is_on() {
            self.record(parent, name, child);
        }
    }

    /// As [`Tracker::saw`], also when operations are not followed.
    pub fn record(&self, parent: &Identity, name: &CStr, child: &Identity) {
        let Places(places) = &mut *self.places.lock();
        match places.get_mut(child) {
            Some(place) if place.parent == *parent && *place.name == *name => {}
            Some(place) => *place = Place { parent: *parent, name: name.into() },
            None => drop(places.insert(*child, Place { parent: *parent, name: name.into() })),
        }
    }

    /// What was recorded of an inode turned out to be wrong.
    pub fn forget(&self, child: &Identity) {
        self.places.lock().0.remove(child);
    }

    /// Does `check` find an inode at the place that is recorded of it?
    pub fn leads_to(&self, child: &Identity, check: impl FnOnce(&Identity, &CStr) -> bool) -> bool {
        let place = self.places.lock().0.get(child).map(|place| (place.parent, place.name.clone()));
        place.is_some_and(|(parent, name)| check(&parent, &name))
    }

    /// Is a place recorded? Whether it leads up to the root is not said.
    pub fn knows(&self, child: &Identity) -> bool {
        self.places.lock().0.contains_key(child)
    }

    /// How to find each of `inodes` from `root`, whose nodes are `nodes`; `None` for those of which not every
    /// directory up to the root is known.
    pub fn locate<'a>(
        &self,
        root: &Identity,
        nodes: &HashMap<Identity, u64>,
        inodes: impl Iterator<Item = &'a Identity>,
    ) -> Vec<Option<Location>> {
        let places = self.places.lock();
        let mut reached = HashMap::from([(*root, true)]);
        inodes.map(|inode| places.locate(inode, nodes, &mut reached)).collect()
    }
}

/// How to find an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// By its name in the directory of a node.
    In {
        /// The directory's node id.
        parent: u64,
        /// The name.
        name: Box<CStr>,
    },
    /// By its path from the root: the guest doesn't know its directory.
    At {
        /// The path; at most [`MAX_PATH`] bytes.
        path: Vec<u8>,
    },
}

impl Change<'_> {
    /// A name that led to `child` is gone.
    pub fn gone(&self, parent: &Identity, name: &CStr, child: &Identity) {
        let Places(places) = &mut *self.tracker.places.lock();
        if places.get(child).is_some_and(|place| place.parent == *parent && *place.name == *name) {
            places.remove(child);
        }
    }
}

impl Places {
    fn locate(
        &self,
        inode: &Identity,
        nodes: &HashMap<Identity, u64>,
        reached: &mut HashMap<Identity, bool>,
    ) -> Option<Location> {
        let place = self.0.get(inode)?;
        if !self.reaches(place.parent, reached) {
            return None;
        }
        match nodes.get(&place.parent) {
            Some(parent) => Some(Location::In { parent: *parent, name: place.name.clone() }),
            None => self.path(inode, reached).map(|path| Location::At { path }),
        }
    }

    /// Is every directory from here up to the root known? `reached` keeps what was found out before.
    fn reaches(&self, directory: Identity, reached: &mut HashMap<Identity, bool>) -> bool {
        let (mut way, mut at) = (Vec::new(), directory);
        let answer = loop {
            if let Some(known) = reached.get(&at) {
                break *known;
            }
            // Until the answer is known it is "no", which also ends a circle.
            reached.insert(at, false);
            way.push(at);
            match self.0.get(&at) {
                Some(place) => at = place.parent,
                None => break false,
            }
        };
        reached.extend(way.into_iter().map(|directory| (directory, answer)));
        answer
    }

    /// The path of an inode that reaches the root, unless it is too long.
    fn path(&self, inode: &Identity, reached: &HashMap<Identity, bool>) -> Option<Vec<u8>> {
        let (mut names, mut length, mut at) = (Vec::new(), 0, inode);
        while let Some(place) = self.0.get(at) {
            length += place.name.count_bytes() + 1;
            if length > MAX_PATH || !reached.contains_key(&place.parent) {
                return None;
            }
            names.push(place.name.to_bytes());
            at = &place.parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ino: u64) -> Identity {
        Identity { mount: 1, device: 1, ino }
    }

    fn path(tracker: &Tracker, ino: u64) -> Option<String> {
        match tracker.locate(&id(1), &HashMap::new(), [id(ino)].iter()).pop()?? {
            Location::At { path } => Some(String::from_utf8(path).unwrap()),
            Location::In { .. } => panic!("no directory is a node"),
        }
    }

    #[test]
    fn paths_follow_directories_that_move() {
        let tracker = Tracker::default();
        tracker.saw(&id(1), c"a", &id(2));
        assert_eq!(path(&tracker, 2), None, "nobody asked for it yet");
        tracker.start();
        tracker.saw(&id(1), c"a", &id(2));
        tracker.saw(&id(2), c"b", &id(3));
        tracker.saw(&id(3), c"c", &id(4));
        assert_eq!(path(&tracker, 4).as_deref(), Some("a/b/c"));
        tracker.saw(&id(1), c"moved", &id(3));
        assert_eq!(path(&tracker, 4).as_deref(), Some("moved/c"));
        let nodes = HashMap::from([(id(3), 17)]);
        let located = tracker.locate(&id(1), &nodes, [id(4)].iter());
        assert_eq!(located, [Some(Location::In { parent: 17, name: c"c".into() })]);
        tracker.stop();
        assert!(!tracker.knows(&id(4)) && tracker.change().is_none());
    }

    #[test]
    fn a_removed_name_counts_only_if_it_was_the_recorded_one() {
        let tracker = Tracker::default();
        tracker.start();
        tracker.saw(&id(1), c"a", &id(2));
        tracker.change().unwrap().gone(&id(1), c"another hard link", &id(2));
        assert!(tracker.knows(&id(2)));
        tracker.change().unwrap().gone(&id(1), c"a", &id(2));
        assert!(!tracker.knows(&id(2)));
    }

    #[test]
    fn circles_and_gaps_are_no_paths() {
        let tracker = Tracker::default();
        tracker.start();
        tracker.saw(&id(2), c"a", &id(3));
        assert_eq!(path(&tracker, 3), None);
        tracker.saw(&id(3), c"b", &id(2));
        assert_eq!(path(&tracker, 3), None);
    }
}
