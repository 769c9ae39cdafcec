//! Ordinary programs on a mount of each daemon, through the host kernel's FUSE client and the bridge.
//!
//! The kernel's caches lie between program and daemon, as in a guest, so this says what a user would notice; the
//! other workloads say why. The bridge's own work, a copy of each message, counts against every daemon alike.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::Failure;
use super::fixture::Fixture;
use super::run::NATIVE;
use super::spec::DaemonSpec;
use super::tree::ProcessTree;
use crate::bridge::{Bridge, BridgeOptions};
use crate::share::TempDir;

/// Directories of the source tree.
const DIRECTORIES: usize = 100;
/// Files in each.
const FILES: usize = 25;
/// Modules of the crate that is built.
const MODULES: usize = 40;
/// Longer than the client may trust attributes and names: a second, by default in all daemons.
const CACHED: Duration = Duration::from_millis(1100);
/// Size of fio's file.
const FIO_SIZE: &str = "64M";

/// Programs whose files others work on.
const TAR: &str = "tar x";
const CLONE: &str = "git clone";
const COPY: &str = "cp -r crate";
const BUILD: &str = "cargo build";
const FIO: &str = "fio write 1M";

/// A module of the crate.
const MODULE: &str = "#[derive(Clone, Debug, PartialEq, Eq, Hash)]\npub struct S(u32, Vec<u8>);\n\
                      pub fn f(x: u32) -> u32 { S(x, vec![1; 3]).clone().0.rotate_left(3) }\n";

/// What one program took.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Run {
    /// From its start to its end.
    pub elapsed: Duration,
    /// CPU time of the daemon meanwhile.
    pub daemon_cpu: Duration,
    /// Requests that the daemon got, but for forgets.
    pub requests: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The programs' names, in their order.
    pub programs: Vec<&'static str>,
    /// By program and daemon, a run a round.
    pub runs: BTreeMap<(String, String), Vec<Run>>,
    /// What went wrong, or could not be run.
    pub failures: Vec<String>,
}

/// A program and how it is called.
struct Step {
    name: &'static str,
    /// Those whose files it works on, in the order in which they are run.
    after: &'static [&'static str],
    /// A file that must be younger than all others for the program to do the same work each time.
    youngest: Option<String>,
    program: &'static str,
    arguments: Vec<String>,
}

impl Step {
    fn after(self, earlier: &'static [&'static str]) -> Step {
        Step { after: earlier, ..self }
    }
}

/// Where the programs take their input from, outside of all shares.
struct Sources {
    dir: TempDir,
}

impl Sources {
    /// A tree of small files as a tar archive, a repository with the same tree, and a crate.
    fn make() -> io::Result<Sources> {
        let sources = Sources { dir: TempDir::on_disk() };
        let tree = sources.path("tree");
        for directory in 0..DIRECTORIES {
            let directory = tree.join(format!("part-{}/directory-{directory}", directory % 10));
            fs::create_dir_all(&directory)?;
            for file in 0..FILES {
                let line = format!("fn function_{file}() -> usize {{ {file} }} // some text\n");
                fs::write(directory.join(format!("file-{file}.rs")), line.repeat(1 + file * file / 4))?;
            }
        }
        succeed(
            Command::new("tar")
                .arg("-cf")
                .arg(sources.path("tree.tar"))
                .arg("-C")
                .arg(sources.dir.path())
                .arg("tree"),
        )?;
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(&tree).args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"]);
            succeed(command.args(arguments))
        };
        git(&["init", "--quiet"])?;
        git(&["add", "."])?;
        git(&["commit", "--quiet", "-m", "tree"])?;
        sources.make_crate()?;
        Ok(sources)
    }

    fn make_crate(&self) -> io::Result<()> {
        let source = self.path("crate/src");
        fs::create_dir_all(&source)?;
        let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
        fs::write(self.path("crate/Cargo.toml"), manifest)?;
        let mut main = String::new();
        for module in 0..MODULES {
            fs::write(source.join(format!("m{module}.rs")), MODULE)?;
            main += &format!("mod m{module};\n");
        }
        let calls: Vec<String> = (0..MODULES).map(|module| format!("m{module}::f(1)")).collect();
        main += &format!("fn main() {{ println!(\"{{}}\", {}); }}\n", calls.join(" ^ "));
        fs::write(source.join("main.rs"), main)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The programs whose names contain one of `filters` (all, if there are none), and those that they work on the
    /// files of, in the order in which they are run.
    fn steps(&self, work: &Path, filters: &[String]) -> Vec<Step> {
        let mut steps = self.all_steps(work);
        let mut wanted: Vec<&str> = steps.iter().map(|step| step.name).collect();
        if !filters.is_empty() {
            wanted.retain(|name| filters.iter().any(|filter| name.contains(filter.as_str())));
        }
        for step in steps.iter().rev() {
            if wanted.contains(&step.name) {
                wanted.extend(step.after);
            }
        }
        steps.retain(|step| wanted.contains(&step.name));
        steps
    }

    fn all_steps(&self, work: &Path) -> Vec<Step> {
        let source = |name: &str| self.path(name).display().to_string();
        let work = |name: &str| work.join(name).display().to_string();
        let step = |name, program, arguments: &[String]| Step {
            name,
            program,
            after: &[],
            arguments: arguments.to_vec(),
            youngest: None,
        };
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let fio = |name, mode, block| step(name, "fio", &fio_arguments(mode, block, &work("fio-data")));
        let git_clone = words("clone --quiet --no-hardlinks");
        vec![
            step(TAR, "tar", &["-xf".into(), source("tree.tar"), "-C".into(), work("")]),
            step("diff -r", "diff", &["-r".into(), "--exclude=.git".into(), source("tree"), work("tree")])
                .after(&[TAR]),
            step("find", "find", &[vec![work("tree")], words("-type f -size +1k")].concat()).after(&[TAR]),
            step("rg", "rg", &["--count".into(), "function_24".into(), work("tree")]).after(&[TAR]),
            step("grep -r", "grep", &["-rc".into(), "function_24".into(), work("tree")]).after(&[TAR]),
            step(CLONE, "git", &[git_clone, vec![source("tree"), work("clone")]].concat()),
            Step {
                // It reads all files again that were written within the same second as the index, or later.
                youngest: Some(work("clone/.git/index")),
                ..step(
                    "git status",
                    "git",
                    &["-C".into(), work("clone"), "status".into(), "--porcelain".into()],
                )
                .after(&[CLONE])
            },
            step(COPY, "cp", &["-r".into(), source("crate"), work("crate")]),
            step(
                BUILD,
                "cargo",
                &[
                    "build".into(),
                    "--offline".into(),
                    "--quiet".into(),
                    format!("--manifest-path={}", work("crate/Cargo.toml")),
                    format!("--target-dir={}", work("target")),
                ],
            )
            .after(&[COPY]),
            fio(FIO, "write", "1M"),
            fio("fio read 1M", "read", "1M").after(&[FIO]),
            fio("fio randread 4k", "randread", "4k").after(&[FIO]),
            fio("fio randwrite 4k", "randwrite", "4k").after(&[FIO]),
            step("rm -r", "rm", &["-r".into(), work("tree"), work("clone"), work("crate"), work("target")])
                .after(&[TAR, CLONE, COPY, BUILD]),
        ]
    }
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let text = || format!("{:?} {:?}", command.get_program(), command.get_args().collect::<Vec<_>>());
    let text = text();
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).output();
    let output = output.map_err(|e| io::Error::new(e.kind(), format!("{text}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{text}: {}: {}", output.status, stderr.trim())))
}

/// What is to be run.
#[derive(Debug)]
pub struct Plan {
    /// On each of them, and on the directory itself.
    pub daemons: Vec<DaemonSpec>,
    /// Only programs whose names contain one of these, and those that they need; all, if there are none.
    pub filters: Vec<String>,
    /// Up to this many, as far as a daemon has them.
    pub queues: u16,
    /// Of which the medians are taken.
    pub rounds: usize,
}

/// Runs the programs of a plan.
pub fn run(plan: &Plan, fixture: &Fixture, mut progress: impl FnMut(&str)) -> io::Result<Outcome> {
    let Plan { daemons, filters, rounds, .. } = plan;
    let sources = Sources::make()?;
    let programs = sources.steps(Path::new("/"), filters).iter().map(|step| step.name).collect();
    let mut outcome = Outcome { programs, ..Default::default() };
    for round in 0..*rounds {
        let first = round % daemons.len().max(1);
        for spec in daemons[first..].iter().chain(&daemons[..first]) {
            progress(&format!("round {} of {rounds}, {}", round + 1, spec.name));
            let on_daemon = on_daemon(spec, plan, &sources, fixture, &mut outcome);
            if let Err(e) = on_daemon {
                outcome.failures.push(format!("{}: {e}", spec.name));
            }
        }
        let work = fixture.join("programs");
        fs::create_dir_all(&work)?;
        for step in sources.steps(&work, filters) {
            outcome.add(
                &step,
                NATIVE,
                prepare(&step).and_then(|()| timed(&step)).map(|elapsed| Run {
                    elapsed,
                    daemon_cpu: Duration::ZERO,
                    requests: 0,
                }),
            );
        }
        fs::remove_dir_all(&work)?;
    }
    Ok(outcome)
}

impl Outcome {
    fn add(&mut self, step: &Step, column: &str, run: Result<Run, String>) {
        match run {
            Ok(run) => self.runs.entry((step.name.to_owned(), column.to_owned())).or_default().push(run),
            Err(e) => self.failures.push(format!("{} on {column}: {e}", step.name)),
        }
    }
}

fn timed(step: &Step) -> Result<Duration, String> {
    let mut command = Command::new(step.program);
    command.args(&step.arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").env_remove("CARGO_TARGET_DIR");
    let start = Instant::now();
    succeed(&mut command).map_err(|e| e.to_string())?;
    Ok(start.elapsed())
}

/// Makes what a program finds the same for all: nothing is left in the client's caches of attributes and names, whose
/// requests would else depend on how quick the step before was.
fn prepare(step: &Step) -> Result<(), String> {
    std::thread::sleep(CACHED);
    let Some(youngest) = &step.youngest else { return Ok(()) };
    let touched = fs::File::open(youngest).and_then(|file| file.set_modified(SystemTime::now()));
    touched.map_err(|e| format!("{youngest}: {e}"))?;
    std::thread::sleep(CACHED);
    Ok(())
}

/// How fio does so many bytes in pieces, with 16 requests at a time.
fn fio_arguments(mode: &str, block: &str, file: &str) -> Vec<String> {
    let options = format!(
        "--name=job --rw={mode} --bs={block} --size={FIO_SIZE} --io_size={FIO_SIZE} --direct=1 --ioengine=libaio \
         --iodepth=16 --randseed=7 --output-format=terse --filename={file}"
    );
    options.split_whitespace().map(str::to_owned).collect()
}

/// Moves data through the guest's memory once, which a guest's life has done long ago: a daemon's first touch of each page
/// is a fault, and how many pages there are depends on how many buffers are in use at a time, that is on chance.
fn touch_memory(work: &Path) -> io::Result<()> {
    let file = work.join("touched");
    for mode in ["write", "read"] {
        succeed(Command::new("fio").args(fio_arguments(mode, "1M", &file.to_string_lossy())))?;
    }
    fs::remove_file(&file)
}

fn on_daemon(
    spec: &DaemonSpec,
    plan: &Plan,
    sources: &Sources,
    fixture: &Fixture,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let queues = spec.request_queues(plan.queues);
    let mountpoint = TempDir::short();
    let daemon = spec.command(fixture.path(), queues, false).start();
    let bridge = Bridge::connect(daemon.connect(), mountpoint.path(), BridgeOptions::with_queues(queues))
        .map_err(|e| Failure::Boot(e.to_string()))?;
    let tree = ProcessTree::of(&daemon)?;
    let work = bridge.path().join("programs");
    fs::create_dir(&work)?;
    touch_memory(&work)?;
    for step in sources.steps(&work, &plan.filters) {
        if let Err(e) = prepare(&step) {
            outcome.failures.push(format!("{} on {}: {e}", step.name, spec.name));
            continue;
        }
        tree.settle()?;
        let (cpu, requests) = (tree.cpu()?, bridge.forwarded());
        let elapsed = timed(&step);
        tree.settle()?;
        let (cpu, requests) = (tree.cpu()?.saturating_sub(cpu), bridge.forwarded() - requests);
        outcome.add(&step, &spec.name, elapsed.map(|elapsed| Run { elapsed, daemon_cpu: cpu, requests }));
    }
    fs::remove_dir_all(&work)?;
    bridge.unmount().map_err(Failure::Boot)
}
