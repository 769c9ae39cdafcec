//! A program for a guest that is migrated under it: it reads, writes and renames without a pause, and checks all that it
//! reads against what it wrote.
//!
//!     guest-io DIRECTORY ENTRIES [--remove]
//!
//! DIRECTORY has the empty directories `kept` and `before`, and `many` with ENTRIES entries. The program opens three
//! files, renames the directory of one, with `--remove` removes one (else it stays), and reads a part of `many`. Then it
//! works on the open files until `/tmp/stop` is there; `/tmp/progress` has the number of its rounds. In the end it reads
//! the rest of `many` and checks every byte of the files. Its last line is `ok ROUNDS`; it ends at the first error.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes that are read or written at once.
const BLOCK: usize = 1024;
/// Blocks of a file.
const BLOCKS: usize = 64;
/// Entries of `many` that are read before the program goes on to other things.
const FIRST: usize = 100;
/// Rounds between two small files that are made, renamed and removed.
const BETWEEN_FILES: u64 = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [directory, entries] => run(Path::new(directory), entries, false),
        [directory, entries, "--remove"] => run(Path::new(directory), entries, true),
        _ => Err(failure("usage: guest-io DIRECTORY ENTRIES [--remove]")),
    };
    match result {
        Ok(rounds) => {
            println!("ok {rounds}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            println!("failed: {e}");
            ExitCode::FAILURE
        }
    }
}

fn failure(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

/// Says what was done when an error came.
fn at<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| failure(format!("{what}: {e}")))
}

/// An open file, and for each of its blocks the round that it was written in.
struct Open {
    name: &'static str,
    file: File,
    written: [u64; BLOCKS],
}

/// What a block has that was written in this round.
fn block(name: &str, index: usize, round: u64) -> Vec<u8> {
    let line = format!("{name} {index} {round}\n");
    line.bytes().cycle().take(BLOCK).collect()
}

impl Open {
    fn new(directory: &Path, name: &'static str) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(directory.join(name));
        let mut this = Open { name, file: at(name, file)?, written: [0; BLOCKS] };
        (0..BLOCKS).try_for_each(|index| this.write(index, 0))?;
        Ok(this)
    }

    fn write(&mut self, index: usize, round: u64) -> io::Result<()> {
        let data = block(self.name, index, round);
        at(&format!("write {}", self.name), self.file.write_all_at(&data, (index * BLOCK) as u64))?;
        self.written[index] = round;
        Ok(())
    }

    fn check(&self, index: usize) -> io::Result<()> {
        let mut data = [0; BLOCK];
        let read = self.file.read_exact_at(&mut data, (index * BLOCK) as u64);
        at(&format!("read {}", self.name), read)?;
        if data[..] == block(self.name, index, self.written[index])[..] {
            return Ok(());
        }
        let found = String::from_utf8_lossy(&data[..40]).into_owned();
        Err(failure(format!("{} block {index}: {found:?}, not of round {}", self.name, self.written[index])))
    }
}

fn run(directory: &Path, entries: &str, remove: bool) -> io::Result<u64> {
    let entries: usize = entries.parse().map_err(|_| failure("ENTRIES is no number"))?;
    let mut files =
        [Open::new(directory, "opened")?, Open::new(directory, "renamed")?, Open::new(directory, "removed")?];
    at("rename", fs::rename(directory.join("renamed"), directory.join("before/moved")))?;
    at("rename a directory", fs::rename(directory.join("before"), directory.join("after")))?;
    if remove {
        at("remove", fs::remove_file(directory.join("removed")))?;
    }
    let mut listing = at("open many", fs::read_dir(directory.join("many")))?;
    let mut seen = BTreeSet::new();
    for entry in listing.by_ref().take(FIRST) {
        seen.insert(at("read many", entry)?.file_name());
    }
    let rounds = work(directory, &mut files)?;
    for entry in listing {
        let name = at("read many on", entry)?.file_name();
        if !seen.insert(name.clone()) {
            return Err(failure(format!("{name:?} is in the directory twice")));
        }
    }
    if seen.len() != entries {
        return Err(failure(format!("{} of {entries} entries", seen.len())));
    }
    files.iter().try_for_each(|file| (0..BLOCKS).try_for_each(|index| file.check(index)))?;
    Ok(rounds)
}

/// Reads and writes until somebody says stop; the number of rounds.
fn work(directory: &Path, files: &mut [Open]) -> io::Result<u64> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut round = 0;
    while !Path::new("/tmp/stop").exists() {
        round += 1;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let index = (random >> 8) as usize % BLOCKS;
        for file in files.iter_mut() {
            file.check((random >> 20) as usize % BLOCKS)?;
            file.write(index, round)?;
            file.check(index)?;
            let length = at("stat", file.file.metadata())?.len();
            if length != (BLOCKS * BLOCK) as u64 {
                return Err(failure(format!("{} has {length} bytes", file.name)));
            }
        }
        if round % BETWEEN_FILES == 0 {
            small_file(directory, round)?;
        }
        // In the guest's own memory, and whole at any moment.
        let (new, progress) = (PathBuf::from("/tmp/progress.new"), Path::new("/tmp/progress"));
        at("progress", fs::write(&new, round.to_string()).and_then(|()| fs::rename(&new, progress)))?;
    }
    Ok(round)
}

/// Names come, move and go, in a directory that was renamed and one that wasn't.
fn small_file(directory: &Path, round: u64) -> io::Result<()> {
    let (made, moved) =
        (directory.join(format!("after/{round}")), directory.join(format!("kept/{}", round % 16)));
    at("make a file", fs::write(&made, round.to_string()))?;
    at("rename over a file", fs::rename(&made, &moved))?;
    let found = at("read a file", fs::read_to_string(&moved))?;
    if found == round.to_string() {
        Ok(())
    } else {
        Err(failure(format!("{} has {found:?}", moved.display())))
    }
}
