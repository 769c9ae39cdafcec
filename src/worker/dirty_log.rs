//! The dirty log of guest memory: which pages the device wrote, while a migration wants to know.
//!
//! vhost-user-backend's own bitmap counts a reference and takes a lock for each access to guest memory, on cache
//! lines that all queue threads share. Here an access borrows, and looks at the log only when there is one.

use std::sync::atomic::{AtomicBool, Ordering};

use vhost_user_backend::bitmap::{AtomicBitmapMmap, BitmapMmapRegion, BitmapReplace};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;

/// The log of one memory region.
#[derive(Debug, Default)]
pub struct DirtyLog {
    /// `log` has one; false until the first `SET_LOG_BASE`.
    given: AtomicBool,
    /// `log` has one, and it is wanted.
    there: AtomicBool,
    log: BitmapMmapRegion,
}

impl DirtyLog {
    fn log(&self) -> Option<&BitmapMmapRegion> {
        self.there.load(Ordering::Acquire).then_some(&self.log)
    }
}

impl Clone for DirtyLog {
    fn clone(&self) -> Self {
        let copy = |flag: &AtomicBool| AtomicBool::new(flag.load(Ordering::Acquire));
        DirtyLog { given: copy(&self.given), there: copy(&self.there), log: self.log.clone() }
    }
}

impl Bitmap for DirtyLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(log) = self.log() {
            log.mark_dirty(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log().is_some_and(|log| log.dirty_at(offset))
    }

    fn slice_at(&self, offset: usize) -> DirtyLogSlice<'_> {
        DirtyLogSlice { whole: self, base: offset }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyLog {
    type S = DirtyLogSlice<'a>;
}

impl NewBitmap for DirtyLog {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl BitmapReplace for DirtyLog {
    type InnerBitmap = AtomicBitmapMmap;

    fn replace(&self, bitmap: AtomicBitmapMmap) {
        self.log.replace(bitmap);
        self.given.store(true, Ordering::Release);
        self.there.store(true, Ordering::Release);
    }
}

/// The part of a region's log from `base` on.
#[derive(Clone, Copy, Debug)]
pub struct DirtyLogSlice<'a> {
    whole: &'a DirtyLog,
    base: usize,
}

impl DirtyLogSlice<'_> {
    /// The front end sets or clears `VHOST_F_LOG_ALL`, for the whole region.
    pub fn want(&self, wanted: bool) {
        let given = self.whole.given.load(Ordering::Acquire);
        self.whole.there.store(wanted && given, Ordering::Release);
    }
}

impl Bitmap for DirtyLogSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.whole.mark_dirty(self.base.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.whole.dirty_at(self.base.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        DirtyLogSlice { whole: self.whole, base: self.base.saturating_add(offset) }
    }
}

impl WithBitmapSlice<'_> for DirtyLogSlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtyLogSlice<'_> {}
