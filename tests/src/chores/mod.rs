//! What programs do with files that takes more than one call, or more than one thread: mappings, locks, large
//! listings, files without a name, programs that are run from the share. [`script`](crate::script) has the single
//! calls.
//!
//! Each chore works in a new directory of its own and tells what it saw; a good file system makes it say what the
//! native one does, and leaves the same tree. What can be wrong whatever is native (an entry listed twice) makes the
//! chore panic.

mod contents;
mod names;
mod sys;

use std::fs;
use std::path::Path;

/// A name, and what is done in a directory.
pub struct Chore {
    /// Also the name of its directory.
    pub name: &'static str,
    /// Does it, in an empty directory.
    pub act: fn(&Path) -> String,
}

/// All of them.
pub const CHORES: [Chore; 12] = [
    Chore { name: "mappings", act: contents::mappings },
    Chore { name: "appends", act: contents::appends },
    Chore { name: "holes", act: contents::holes },
    Chore { name: "direct", act: contents::direct },
    Chore { name: "synced", act: contents::synced },
    Chore { name: "locks", act: contents::locks },
    Chore { name: "listing", act: names::listing },
    Chore { name: "unlinked", act: names::unlinked },
    Chore { name: "renames", act: names::renames },
    Chore { name: "threads", act: names::threads },
    Chore { name: "special", act: names::special },
    Chore { name: "programs", act: names::programs },
];

/// Does all chores below a directory; one line each.
pub fn run(root: &Path) -> Vec<String> {
    let line = |chore: &Chore| {
        let dir = root.join(chore.name);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        format!("{}: {}", chore.name, (chore.act)(&dir))
    };
    CHORES.iter().map(line).collect()
}
