//! Cold inodes that are opened for the requests of one batch, and closed behind it.
//!
//! A guest that goes through more inodes than can be hot (`find`, a backup) uses most of them once. To make each hot would
//! cool another, at the cost of a request to the broker for each, and in the end those that the guest does use again. So
//! the first use is a visit: the inode stays cold, and only the thread that serves the batch has the fd. An inode that is
//! visited again while not yet as many others were as can be hot is worth to be kept, and becomes hot.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::residence::HotFd;
use crate::worker::fuse::operation::NodeId;

thread_local! {
    /// What this thread visits: as many as a batch has requests, at most.
    static VISITS: RefCell<Vec<(NodeId, Rc<HotFd>)>> = const { RefCell::new(Vec::new()) };
}

/// How a request will use a node's fd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Perhaps this once.
    Once,
    /// Others will use it, too.
    Often,
}

/// The calling thread visits these, until it [ends](end) its visits.
pub fn begin(opened: impl Iterator<Item = (NodeId, HotFd)>) {
    VISITS.with_borrow_mut(|visits| visits.extend(opened.map(|(node, fd)| (node, Rc::new(fd)))));
}

/// The fd of a node that the calling thread visits.
pub fn find(node: NodeId) -> Option<Rc<HotFd>> {
    VISITS.with_borrow(|visits| {
        visits.iter().find(|(visited, _)| *visited == node).map(|(_, fd)| Rc::clone(fd))
    })
}

/// Closes the fds of all that the calling thread visits.
pub fn end() {
    VISITS.with_borrow_mut(Vec::clear);
}

/// Whether, or when, an inode was used: a hot one since the keeper's hand last passed, a cold one in which age.
#[derive(Default)]
pub struct Touched(AtomicU8);

impl Touched {
    const NO: u8 = 0;
    const YES: u8 = 1;

    /// It is hot and used. Read first: most often it is known, and the line stays in all caches.
    pub fn mark(&self) {
        if self.0.load(Ordering::Relaxed) != Self::YES {
            self.0.store(Self::YES, Ordering::Relaxed);
        }
    }

    /// Was it marked? From now on it is not.
    pub fn take(&self) -> bool {
        self.0.swap(Self::NO, Ordering::Relaxed) != Self::NO
    }

    /// It is cold and visited at this age. Was it visited before at this age or the one before?
    pub fn again(&self, now: Moment) -> bool {
        let before = self.0.swap(now.0, Ordering::Relaxed);
        before == now.0 || before == now.before().0
    }
}

/// An age. Their numbers come again, at last: an inode that is kept for an old visit's sake does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u8);

impl Moment {
    /// The first one: smaller numbers mean something else.
    const FIRST: u8 = Touched::YES + 1;
    /// How many there are.
    const NUMBER: usize = (u8::MAX - Self::FIRST) as usize + 1;

    fn nth(age: usize) -> Self {
        // Below `NUMBER` it fits.
        Moment(Self::FIRST + u8::try_from(age % Self::NUMBER).unwrap_or(0))
    }

    fn before(self) -> Self {
        if self.0 == Self::FIRST { Moment(u8::MAX) } else { Moment(self.0 - 1) }
    }
}

/// Time, measured in visits.
pub struct Age {
    visits: AtomicUsize,
    /// Visits of one age.
    length: usize,
}

impl Age {
    /// Two ages have as many visits as there can be hot inodes.
    pub fn new(hot: usize) -> Self {
        Age { visits: AtomicUsize::new(0), length: (hot / 2).max(1) }
    }

    /// The age at which so many more visits begin.
    pub fn after(&self, more: usize) -> Moment {
        Moment::nth(self.visits.fetch_add(more, Ordering::Relaxed) / self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_visited_again_soon_is_known_and_what_is_not_is_forgotten() {
        let age = Age::new(20);
        let (often, seldom) = (Touched::default(), Touched::default());
        assert!(!often.again(age.after(1)));
        assert!(!seldom.again(age.after(1)));
        // A whole age further, but not two.
        for _ in 0..100 {
            let now = age.after(10);
            assert!(often.again(now), "{now:?}");
        }
        assert!(!seldom.again(age.after(1)));
    }

    #[test]
    fn ages_follow_each_other_for_ever() {
        for age in 0..3 * Moment::NUMBER {
            let (now, next) = (Moment::nth(age), Moment::nth(age + 1));
            assert_eq!(next.before(), now);
            assert!(now.0 > Touched::YES);
        }
    }

    #[test]
    fn the_hand_finds_each_mark_once() {
        let touched = Touched::default();
        assert!(!touched.take());
        touched.mark();
        assert!(touched.take());
        assert!(!touched.take());
    }
}
