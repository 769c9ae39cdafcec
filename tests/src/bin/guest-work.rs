//! What a guest is made to do, run inside it; the suite `guest_conformance` puts it there and compares what it says
//! with the same work done natively.
//!
//! `guest-work script SEED STEPS DIRECTORY [OPTION]...` runs the script that is generated for a daemon with these
//! options, `guest-work chores DIRECTORY` the chores. Each prints its lines, an empty line, and the tree that is left.
//! `guest-work steps SEED STEPS DIRECTORY` runs a script while others work there, too, and prints its lines.

use std::path::Path;
use std::process::ExitCode;

use tests::chores;
use tests::script::{self, Run, world};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let run = match words[..] {
        ["script", seed, steps, dir, ref options @ ..] => match (seed.parse(), steps.parse()) {
            (Ok(seed), Ok(steps)) => Run::here(Path::new(dir), &script::for_client(seed, steps, options)),
            _ => return usage(),
        },
        ["steps", seed, steps, dir] => match (seed.parse(), steps.parse()) {
            (Ok(seed), Ok(steps)) => {
                let lines = world::run(Path::new(dir), &script::generate(seed, steps));
                Run { lines, tree: Vec::new() }
            }
            _ => return usage(),
        },
        ["chores", dir] => Run { lines: chores::run(Path::new(dir)), tree: world::tree(Path::new(dir)) },
        _ => return usage(),
    };
    print!("{}", run.to_text());
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!(
        "guest-work script SEED STEPS DIRECTORY [OPTION]... | steps SEED STEPS DIRECTORY | chores DIRECTORY"
    );
    ExitCode::from(2)
}
