//! Rounds: all daemons started, each workload through all of them, all ended; again and again.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use super::Failure;
use super::engine::{Measurement, Span, measure};
use super::fixture::Fixture;
use super::guest::{Guest, Startup};
use super::native;
use super::spec::DaemonSpec;
use super::workload::{Kind, Workload};
use crate::frontend::Wait;

/// Name of the column of plain system calls.
pub const NATIVE: &str = "native";
/// Name, for filters, of the measurement of an idle daemon.
pub const IDLE: &str = "idle";
/// Name, for filters, of the measurement of how a daemon starts.
pub const STARTUP: &str = "startup";

/// How long a daemon may go on after its last reply before it counts as idle.
const SETTLE: Duration = Duration::from_millis(200);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order of the columns; the first is the one that is judged.
    pub daemons: Vec<DaemonSpec>,
    /// In the order of the rows.
    pub workloads: Vec<Workload>,
    /// How often all of it.
    pub rounds: usize,
    /// How long each workload on each daemon in each round.
    pub span: Span,
    /// Whether to measure plain system calls, too.
    pub native: bool,
    /// How the front end waits where there is one queue. With more it sleeps: daemon and front end need the CPUs.
    pub wait: Wait,
    /// Whether daemons go before all other work of the machine.
    pub priority: bool,
    /// Additional starts in each round, for a better median.
    pub starts: usize,
    /// How long to look at idle daemons; not at all when zero.
    pub idle: Duration,
}

/// What an idle daemon did.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Idle {
    /// For how long we looked.
    pub watched: Duration,
    /// CPU time.
    pub cpu: Duration,
    /// How often a thread was woken.
    pub wakeups: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// By workload's and daemon's name, a measurement a round.
    pub cells: BTreeMap<(String, String), Vec<Measurement>>,
    /// By daemon's name.
    pub startups: BTreeMap<String, Vec<Startup>>,
    /// By daemon's name.
    pub idle: BTreeMap<String, Idle>,
    /// What else went wrong.
    pub failures: Vec<String>,
}

impl Outcome {
    fn record(&mut self, workload: &Workload, column: &str, measured: Measurement) {
        self.cells.entry((workload.name.clone(), column.to_owned())).or_default().push(measured);
    }
}

/// Runs all rounds. `progress` is told what happens now.
pub fn run(plan: &Plan, fixture: &Fixture, mut progress: impl FnMut(&str)) -> Outcome {
    let mut outcome = Outcome::default();
    for number in 0..plan.rounds {
        let round = Round { plan, fixture, number };
        for (xattr, queues) in groups(&plan.workloads) {
            progress(&format!("round {} of {}, {queues} queue(s)", number + 1, plan.rounds));
            let workloads: Vec<&Workload> =
                plan.workloads.iter().filter(|w| (w.needs_xattr(), w.queues) == (xattr, queues)).collect();
            let mut guests = round.start(xattr, queues, &mut outcome.failures);
            for workload in workloads {
                round.measure(workload, &mut guests, &mut outcome);
            }
        }
        round.start_and_idle(&mut outcome);
    }
    outcome
}

/// Workloads that can run in the same guest.
fn groups(workloads: &[Workload]) -> Vec<(bool, u16)> {
    let mut groups: Vec<(bool, u16)> = workloads.iter().map(|w| (w.needs_xattr(), w.queues)).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The daemons in a round's order: each one comes first in turn.
fn order(plan: &Plan, round: usize) -> impl Iterator<Item = &DaemonSpec> {
    let first = round % plan.daemons.len().max(1);
    plan.daemons[first..].iter().chain(&plan.daemons[..first])
}

struct Round<'a> {
    plan: &'a Plan,
    fixture: &'a Fixture,
    number: usize,
}

impl<'a> Round<'a> {
    /// Boots a guest on each daemon that has this many queues.
    fn start(&self, xattr: bool, queues: u16, failures: &mut Vec<String>) -> Vec<(&'a DaemonSpec, Guest)> {
        let mut guests = Vec::new();
        for spec in order(self.plan, self.number).filter(|spec| spec.request_queues(queues) == queues) {
            let command = spec.command(self.fixture.path(), queues, xattr);
            let guest = Guest::boot(command, queues, self.plan.wait).and_then(|guest| {
                if self.plan.priority {
                    guest.tree.prioritise()?;
                }
                Ok(guest)
            });
            match guest {
                Ok(guest) => guests.push((spec, guest)),
                Err(e) => failures.push(format!("{}: {e}", spec.name)),
            }
        }
        guests
    }

    /// One workload through all of them.
    fn measure(&self, workload: &Workload, guests: &mut [(&DaemonSpec, Guest)], outcome: &mut Outcome) {
        for (spec, guest) in guests {
            if workload.is_scaling() && spec.request_queues(2) == 1 {
                continue;
            }
            let wait = if workload.is_scaling() { Wait::Sleep } else { self.plan.wait };
            guest.queues_mut().iter_mut().for_each(|queue| queue.set_wait(wait));
            let spread = if workload.is_scaling() { guest.spread() } else { Ok(()) };
            let scripts = spread.and_then(|()| guest.check_alive());
            let scripts = scripts.and_then(|()| workload.scripts(guest, self.fixture));
            let measured = match scripts {
                Ok(mut scripts) => measure(guest, &mut scripts, workload.depth, self.plan.span),
                Err(e) => Measurement { failure: Some(e.to_string()), ..Default::default() },
            };
            outcome.record(workload, &spec.name, measured);
        }
        if self.plan.native {
            match workload.native(self.fixture) {
                Ok(None) => {}
                Ok(Some((work, uid))) => {
                    outcome.record(workload, NATIVE, native::measure(work, uid, self.plan.span));
                }
                Err(e) => outcome.failures.push(format!("native {}: {e}", workload.name)),
            }
        }
    }

    /// Starts each daemon some times, one after the other, and looks at what they do when nothing is asked.
    fn start_and_idle(&self, outcome: &mut Outcome) {
        let mut guests = Vec::new();
        for _ in 0..self.plan.starts {
            guests = self.start(false, 1, &mut outcome.failures);
            for (spec, guest) in &guests {
                outcome.startups.entry(spec.name.clone()).or_default().push(guest.startup);
            }
        }
        // Once is enough: it is long, and nothing to take a median of.
        if self.number + 1 != self.plan.rounds || self.plan.idle.is_zero() {
            return;
        }
        if guests.is_empty() {
            guests = self.start(false, 1, &mut outcome.failures);
        }
        match idle(self.plan.idle, self.fixture, &mut guests) {
            Ok(idle) => outcome.idle.extend(idle),
            Err(e) => outcome.failures.push(format!("idle: {e}")),
        }
    }
}

/// Looks at guests that have worked a little and then do nothing.
fn idle(
    length: Duration,
    fixture: &Fixture,
    guests: &mut [(&DaemonSpec, Guest)],
) -> Result<Vec<(String, Idle)>, Failure> {
    let workload = Workload { name: IDLE.into(), kind: Kind::GetAttr, depth: 16, queues: 1 };
    for (_, guest) in guests.iter_mut() {
        let mut scripts = workload.scripts(guest, fixture)?;
        let span = Span { warm_up: Duration::ZERO, measured: Duration::from_millis(20) };
        measure(guest, &mut scripts, workload.depth, span);
    }
    let look = || -> Result<Vec<(Duration, u64)>, Failure> {
        guests.iter().map(|(_, guest)| Ok((guest.tree.cpu()?, guest.tree.wakeups()?))).collect()
    };
    // What ends an episode of polling, or closes handles in the background, is no idle work yet.
    thread::sleep(SETTLE);
    let before = look()?;
    // The one place that has to wait for nothing to happen.
    thread::sleep(length);
    let after = look()?;
    let changes = before.iter().zip(&after).zip(guests.iter()).map(|((before, after), (spec, _))| {
        let idle = Idle { watched: length, cpu: after.0 - before.0, wakeups: after.1 - before.1 };
        (spec.name.clone(), idle)
    });
    Ok(changes.collect())
}
