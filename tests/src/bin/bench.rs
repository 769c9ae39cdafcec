//! Measures vhost-user-fs daemons side by side: see `bench --help`, and docs/performance.md for how to read what
//! it prints.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::json;
use tests::bench::engine::Span;
use tests::bench::fixture::{FULL, Fixture, QUICK};
use tests::bench::guest::Guest;
use tests::bench::report::{self, Results};
use tests::bench::run::{IDLE, NATIVE, Plan, STARTUP, run};
use tests::bench::spec::{DaemonSpec, default_daemons, variants};
use tests::bench::tree::OwnPriority;
use tests::bench::workload::{self, Workload};
use tests::bench::{kernel, million, proofs, recorder, syscalls};
use tests::frontend::Wait;

/// Measures vhost-user-fs daemons side by side, on the same directory, through an in-process front end.
///
/// Exits with 1 when one of the thresholds that could be judged doesn't hold, or something failed.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count system calls per request with strace.
    Syscalls(SyscallArguments),
    /// Run ordinary programs (tar, find, git, cargo, fio and others) on a mount of each daemon.
    Kernel(KernelArguments),
    /// List the workloads.
    List,
}

#[derive(Debug, Args)]
struct Common {
    /// A daemon: NAME=COMMAND or COMMAND, words without quoting. The first word is a path, or ours, 1.13.3,
    /// 1.14.0 or c; {dir} stands for the directory, {queues} for the number of request queues. The first daemon is
    /// judged. Ours and all peers when none is given.
    #[arg(long = "daemon", value_name = "NAME=COMMAND")]
    daemons: Vec<DaemonSpec>,
    /// Where to make the served directory; on the build's disk by default.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
}

impl Common {
    fn daemons(&self) -> Vec<DaemonSpec> {
        if self.daemons.is_empty() { default_daemons() } else { self.daemons.clone() }
    }
}

#[derive(Debug, Args)]
struct RunArguments {
    /// Only workloads whose names contain one of these, or `startup`, `idle`, `million`, `scale`.
    filters: Vec<String>,
    #[command(flatten)]
    common: Common,
    /// About a minute, for developers: fewer and shorter rounds, smaller directories, no million files.
    #[arg(long)]
    quick: bool,
    /// Rounds, of which the medians are taken [default: 7, quick: 2].
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds for each workload, daemon and round [default: 300, quick: 100].
    #[arg(long)]
    millis: Option<u64>,
    /// How the front end waits for replies, where there is one queue.
    #[arg(long, value_enum, default_value_t = WaitMode::Spin)]
    wait: WaitMode,
    /// Run before all other work of the machine (nice -20), so that it disturbs less.
    #[arg(long)]
    priority: bool,
    /// Also ours with other options: without polling, without seccomp, with full Landlock and others.
    #[arg(long)]
    variants: bool,
    /// Leave plain system calls out.
    #[arg(long)]
    no_native: bool,
    /// Files of the large working set.
    #[arg(long, default_value_t = million::COUNT)]
    million: usize,
}

#[derive(Debug, Args)]
struct SyscallArguments {
    #[command(flatten)]
    common: Common,
    /// Requests in flight.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    depth: u16,
}

#[derive(Debug, Args)]
struct KernelArguments {
    /// Only programs whose names contain one of these, and those that they work on the files of.
    filters: Vec<String>,
    #[command(flatten)]
    common: Common,
    /// Rounds, of which the medians are taken.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Request queues, for daemons that have several.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    queues: u16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WaitMode {
    /// On the call eventfd, as a guest waits for an interrupt.
    Sleep,
    /// Looking at the used ring all the time: it takes a CPU, and leaves the daemon alone.
    Spin,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Syscalls(arguments)) => count_syscalls(&arguments),
        Some(Command::Kernel(arguments)) => run_programs(&arguments),
        Some(Command::List) => list(),
        None => measure(&arguments.run),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> io::Result<bool> {
    let mut out = io::stdout().lock();
    for workload in workload::all() {
        writeln!(
            out,
            "{:<28} depth {:>2}, {} queue(s): {:?}",
            workload.name, workload.depth, workload.queues, workload.kind
        )?;
    }
    for name in [STARTUP, IDLE, million::NAME] {
        writeln!(out, "{name}")?;
    }
    Ok(true)
}

impl RunArguments {
    fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }

    fn plan(&self) -> Plan {
        let mut daemons = self.common.daemons();
        if self.variants {
            daemons.extend(variants());
        }
        let workloads: Vec<Workload> = workload::all().into_iter().filter(|w| self.wants(&w.name)).collect();
        let millis = self.millis.unwrap_or(if self.quick { 100 } else { 300 });
        let idle = if self.quick { 2 } else { 10 };
        Plan {
            daemons,
            workloads,
            rounds: self.rounds.unwrap_or(if self.quick { 2 } else { 7 }).max(1),
            span: Span {
                warm_up: Duration::from_millis(millis / 5),
                measured: Duration::from_millis(millis),
            },
            native: !self.no_native,
            wait: match self.wait {
                WaitMode::Sleep => Wait::Sleep,
                WaitMode::Spin => Wait::Spin,
            },
            priority: self.priority,
            starts: if self.wants(STARTUP) { 3 } else { 0 },
            idle: Duration::from_secs(if self.wants(IDLE) { idle } else { 0 }),
        }
    }

    fn wants_million(&self) -> bool {
        self.wants(million::NAME) && !(self.quick && self.filters.is_empty())
    }
}

fn measure(arguments: &RunArguments) -> io::Result<bool> {
    let plan = arguments.plan();
    eprintln!("making files ...");
    let _priority = plan.priority.then(OwnPriority::raise).transpose()?;
    let sizes = if arguments.quick { QUICK } else { FULL };
    let mut fixture = Fixture::new(arguments.common.dir.as_deref(), sizes)?;
    let outcome = run(&plan, &fixture, |what| eprintln!("{what} ..."));
    let mut results = Results {
        daemons: plan.daemons.clone(),
        workloads: plan.workloads.clone(),
        outcome,
        counting: Some(recorder::cost().map_err(io::Error::other)?),
        ..Default::default()
    };
    if arguments.wants_million() {
        many_files(&plan, &mut fixture, arguments.million, &mut results)?;
    }
    let proofs = proofs::judge(&results);
    let mut out = io::stdout().lock();
    if arguments.common.json {
        let mut value = results.json();
        value["thresholds"] =
            proofs.iter().map(|proof| json!({"proof": proof, "holds": proof.holds()})).collect();
        writeln!(out, "{value:#}")?;
    } else {
        write!(out, "{}{}", results.text(), proofs::text(&proofs))?;
    }
    Ok(proofs.iter().all(proofs::Proof::holds) && results.outcome.failures.is_empty())
}

fn many_files(plan: &Plan, fixture: &mut Fixture, count: usize, results: &mut Results) -> io::Result<()> {
    eprintln!("making {count} files ...");
    fixture.make_million(count)?;
    if plan.native {
        let native = million::native(fixture, count).map_err(|e| e.to_string());
        results.million.insert(NATIVE.to_owned(), native);
    }
    for spec in &plan.daemons {
        eprintln!("{count} files on {} ...", spec.name);
        let measured = million::run(spec, fixture, count, plan).map_err(|e| e.to_string());
        results.million.insert(spec.name.clone(), measured);
    }
    Ok(())
}

fn count_syscalls(arguments: &SyscallArguments) -> io::Result<bool> {
    let fixture = Fixture::new(arguments.common.dir.as_deref(), QUICK)?;
    let mut columns = Vec::new();
    let mut complete = true;
    for spec in arguments.common.daemons() {
        eprintln!("{} ...", spec.name);
        let boot = Guest::boot(spec.command(fixture.path(), 1, true), 1, Wait::Sleep);
        match boot.and_then(|mut guest| syscalls::count(&mut guest, &fixture, arguments.depth)) {
            Ok(counted) => columns.push((spec.name.clone(), counted)),
            Err(e) => {
                eprintln!("bench: {}: {e}", spec.name);
                complete = false;
            }
        }
    }
    let mut out = io::stdout().lock();
    if arguments.common.json {
        writeln!(out, "{:#}", json!(columns))?;
    } else {
        write!(out, "{}", report::syscalls(&columns))?;
    }
    Ok(complete)
}

fn run_programs(arguments: &KernelArguments) -> io::Result<bool> {
    let fixture = Fixture::new(arguments.common.dir.as_deref(), QUICK)?;
    let daemons = arguments.common.daemons();
    let plan = kernel::Plan {
        daemons,
        filters: arguments.filters.clone(),
        queues: arguments.queues,
        rounds: arguments.rounds.into(),
    };
    let outcome = kernel::run(&plan, &fixture, |what| eprintln!("{what} ..."))?;
    let mut out = io::stdout().lock();
    if arguments.common.json {
        let mut programs: BTreeMap<&str, BTreeMap<&str, _>> = BTreeMap::new();
        for ((program, daemon), runs) in &outcome.runs {
            programs.entry(program).or_default().insert(daemon, json!(runs));
        }
        writeln!(out, "{:#}", json!({"programs": programs, "failures": outcome.failures}))?;
    } else {
        write!(out, "{}", report::programs(&plan.daemons, &outcome))?;
    }
    Ok(outcome.failures.is_empty())
}
