//! Directories of very many entries, listed while entries come and go.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::{Mode, SFlag, mknod};
use tests::bounded::bounded;
use tests::fuse::Client;
use tests::fuse::wire::ROOT;
use tests::share::Share;

use super::{finish, start};

/// Bytes of a READDIR reply.
const PAGE: u32 = 65_536;
/// After how many listed entries a place is noted that is come back to.
const LANDMARK: usize = 997;

fn entries() -> usize {
    std::env::var("VIRTIOFSD_TEST_ENTRIES").map_or(100_000, |text| text.parse().expect("a number"))
}

fn make(path: &Path) {
    mknod(path, SFlag::S_IFREG, Mode::S_IRUSR, 0).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// What was seen of the files that stay: how many, and landmarks (a cookie, and the entry behind it).
struct Listing {
    seen: usize,
    landmarks: Vec<(u64, Vec<u8>)>,
}

/// Lists the root; `meanwhile` is called after each reply. Panics when one of those that stay is seen twice.
fn list(client: &mut Client, fh: u64, mut meanwhile: impl FnMut(usize)) -> Listing {
    let (mut seen, mut landmarks, mut offset) = (HashSet::new(), Vec::new(), 0);
    let mut last: Option<u64> = None;
    for reply in 0.. {
        let batch = client.readdir(ROOT, fh, offset, PAGE).unwrap();
        let Some(end) = batch.last() else { break };
        offset = end.offset;
        for entry in batch {
            let stays = entry.name.starts_with(b"stays-");
            if let Some(before) = last.filter(|_| stays && seen.len() % LANDMARK == 0) {
                landmarks.push((before, entry.name.clone()));
            }
            last = Some(entry.offset);
            assert!(!stays || seen.insert(entry.name.clone()), "seen twice: {:?}", entry.name);
        }
        meanwhile(reply);
    }
    Listing { seen: seen.len(), landmarks }
}

/// Each file that stays is listed exactly once, whatever comes and goes; and a cookie leads to the same place later,
/// also when what was there is gone, in this handle and in another.
#[test]
fn a_large_directory_is_listed_while_entries_come_and_go() {
    let count = entries();
    bounded(Duration::from_secs(180 + count as u64 / 500), || {
        let share = Share::new();
        for n in 0..count {
            make(&share.join(format!("stays-{n}")));
            if n % 10 == 0 {
                make(&share.join(format!("goes-{n}")));
            }
        }
        let mut session = start(share.path(), &[]);
        let client = session.client();
        let fh = client.opendir(ROOT).unwrap().fh;
        let mut going = (0..count).step_by(10);
        let first = list(client, fh, |reply| {
            for n in 0..20 {
                make(&share.join(format!("comes-{reply}-{n}")));
            }
            going.by_ref().take(count / 1000).for_each(|n| {
                fs::remove_file(share.join(format!("goes-{n}"))).unwrap();
            });
        });
        assert_eq!(first.seen, count, "each of those that stay");
        // All that was to go is gone now, and with it what some cookies stood on.
        going.for_each(|n| fs::remove_file(share.join(format!("goes-{n}"))).unwrap());
        let other = client.opendir(ROOT).unwrap().fh;
        for handle in [fh, other] {
            for (cookie, name) in first.landmarks.iter().rev() {
                come_back(client, handle, *cookie, name);
            }
        }
        client.releasedir(ROOT, fh).unwrap();
        let again = list(client, other, |_| {});
        assert_eq!(again.seen, count, "listed again");
        client.releasedir(ROOT, other).unwrap();
        finish(session);
    });
}

/// The next of those that stay behind a cookie is the one that was there.
fn come_back(client: &mut Client, fh: u64, cookie: u64, name: &[u8]) {
    let mut offset = cookie;
    loop {
        let batch = client.readdir(ROOT, fh, offset, 1024).unwrap();
        let end = batch.last().unwrap_or_else(|| panic!("the end of the directory, not {name:?}"));
        offset = end.offset;
        if let Some(found) = batch.iter().find(|entry| entry.name.starts_with(b"stays-")) {
            assert_eq!(found.name, name, "behind cookie {cookie}");
            return;
        }
    }
}
