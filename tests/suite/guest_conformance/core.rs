//! The core of the suites in a guest: the script of `differential` and the chores, with each cache policy. What the
//! guest's programs see, and the tree that the host finds then, are those of the native file system.

use std::path::Path;
use std::time::Duration;

use tests::bounded::bounded;
use tests::chores;
use tests::guest::{Guest, Kernel};
use tests::script::{self, Run, must_leave_the_same, world};
use tests::share::Share;

use super::{Served, TestResult, succeed};

/// For one native run.
const NATIVE_LIMIT: Duration = Duration::from_secs(60);
/// For one run in a guest, whose processor is emulated.
const GUEST_LIMIT: Duration = Duration::from_secs(300);
/// Steps of a script.
const STEPS: usize = 1200;

/// A cache policy, the options it is served with, and the seed of its script. Past the page cache only killpriv-v2
/// tells whether a write clears set-id bits.
const POLICIES: [(&str, &[&str], u64); 3] = [
    ("auto", &["--cache=auto"], 21),
    ("always", &["--cache=always"], 22),
    ("never", &["--cache=never", "--allow-mmap", "--killpriv-v2"], 23),
];

/// What a chore says in a guest in place of what it says natively, and why.
fn instead(kernel: Kernel, policy: &str, native: &str) -> String {
    if policy == "never" && kernel == Kernel::V6_1 {
        // Linux maps a file shared past the page cache (allow-mmap) from 6.6 on.
        return native.replace("mappings: shared", "mappings: not shared (ENODEV)");
    }
    native.to_owned()
}

fn policies_in(kernel: Kernel) -> TestResult {
    let served: Vec<(Served, &[&str], u64)> = POLICIES
        .iter()
        .map(|(tag, options, seed)| {
            Ok((Served::new(tag, &[options, &["--xattr"][..]].concat())?, *options, *seed))
        })
        .collect::<Result<_, tests::guest::GuestError>>()?;
    let mut builder = Guest::builder().kernel(kernel).program(Path::new(env!("CARGO_BIN_EXE_guest-work")));
    for (served, ..) in &served {
        builder = builder.share(served.device());
    }
    let mut guest = builder.boot()?;
    for (served, options, seed) in &served {
        let kernel_option = format!("linux-{}", kernel.series());
        let options = &[options, &[kernel_option.as_str()][..]].concat();
        let root = guest.mount(&served.tag, "")?;
        script_is_as_natively(&mut guest, served, &root, options, *seed)?;
        chores_are_as_natively(&mut guest, served, &root, kernel)?;
    }
    guest.power_off()?;
    served.into_iter().try_for_each(|(served, ..)| served.ends_well())
}

fn in_guest(guest: &mut Guest, served: &Served, command: &str) -> Result<Run, Box<dyn std::error::Error>> {
    let text = succeed(guest, served, command, GUEST_LIMIT)?;
    Ok(Run::from_text(&text).ok_or_else(|| format!("{command} said {text}"))?)
}

fn script_is_as_natively(
    guest: &mut Guest,
    served: &Served,
    root: &str,
    options: &[&str],
    seed: u64,
) -> TestResult {
    let what = format!("seed {seed}, natively and in {} with {options:?}", guest.release());
    let native = bounded(NATIVE_LIMIT, || {
        let share = Share::new();
        std::fs::create_dir(share.join("script")).expect("make a directory");
        Run::here(&share.join("script"), &script::for_client(seed, STEPS, options))
    });
    let make = format!("mkdir {root}/script && exec");
    let command = format!("{make} guest-work script {seed} {STEPS} {root}/script {}", options.join(" "));
    native.must_equal(&what, &in_guest(guest, served, &command)?);
    must_leave_the_same(&what, &native.tree, &world::tree(&served.path().join("script")));
    Ok(())
}

fn chores_are_as_natively(guest: &mut Guest, served: &Served, root: &str, kernel: Kernel) -> TestResult {
    let what = format!("chores, natively and in {} with cache={}", guest.release(), served.tag);
    let mut native = bounded(NATIVE_LIMIT, || {
        let share = Share::new();
        std::fs::create_dir(share.join("chores")).expect("make a directory");
        let lines = chores::run(&share.join("chores"));
        Run { lines, tree: world::tree(&share.join("chores")) }
    });
    let command = format!("mkdir {root}/chores && exec guest-work chores {root}/chores");
    for line in &mut native.lines {
        *line = instead(kernel, &served.tag, line);
    }
    native.must_equal(&what, &in_guest(guest, served, &command)?);
    must_leave_the_same(&what, &native.tree, &world::tree(&served.path().join("chores")));
    Ok(())
}

#[test]
fn linux_6_1_with_each_cache_policy() -> TestResult {
    policies_in(Kernel::V6_1)
}

#[test]
fn linux_6_12_with_each_cache_policy() -> TestResult {
    policies_in(Kernel::V6_12)
}
