//! A working set of a million files: what an idle looked-up inode costs, and whether all stay usable.

use std::time::Duration;

use super::Failure;
use super::engine::{Measurement, Script, Span, measure, once};
use super::fixture::{self, Fixture};
use super::guest::{Guest, ROOT_USER};
use super::message::Message;
use super::native;
use super::run::Plan;
use super::scripts::{ColdLookup, ReadDirPlus, Single, exactly};
use super::spec::DaemonSpec;
use super::tree::Memory;
use crate::fuse::wire::{self, opcode};

/// How many files.
pub const COUNT: usize = 1_000_000;
/// Name for filters.
pub const NAME: &str = "million";
/// A lap over all of them may take this long.
const LONG: Duration = Duration::from_secs(180);
/// How long to use the looked-up files.
const USE: Duration = Duration::from_secs(2);
const DEPTH: u16 = 16;

/// What was measured with one daemon, or natively.
#[derive(Clone, Debug, Default)]
pub struct Million {
    /// LOOKUP of each file once.
    pub lookup: Measurement,
    /// GETATTR of files all over the set, the longest idle as well as others.
    pub getattr: Measurement,
    /// LOOKUP of each file once more.
    pub revalidate: Measurement,
    /// READDIRPLUS of the directory while all are looked up, in replies of a page.
    pub again: Measurement,
    /// The same when all are forgotten.
    pub readdirplus: Measurement,
    /// Before.
    pub empty: Memory,
    /// With all looked up.
    pub full: Memory,
    /// With all forgotten again.
    pub forgotten: Memory,
    /// Descriptors with all looked up.
    pub descriptors: usize,
}

impl Million {
    /// Private bytes that one looked-up file costs.
    pub fn bytes_per_inode(&self) -> Option<f64> {
        let count = self.lookup.operations;
        let more = self.full.private.saturating_sub(self.empty.private);
        (count > 0).then(|| more as f64 / count as f64)
    }

    /// Descriptors for each looked-up file.
    pub fn descriptors_per_inode(&self) -> Option<f64> {
        let count = self.lookup.operations;
        (count > 0).then(|| self.descriptors as f64 / count as f64)
    }
}

/// Measures one daemon, alone.
pub fn run(spec: &DaemonSpec, fixture: &Fixture, count: usize, plan: &Plan) -> Result<Million, Failure> {
    let mut guest = Guest::boot(spec.command(fixture.path(), 1, false), 1, plan.wait)?;
    if plan.priority {
        guest.tree.prioritise()?;
    }
    let directory = guest.lookup(wire::ROOT, fixture::MILLION.as_bytes())?;
    let mut result = Million { empty: guest.tree.memory()?, ..Default::default() };

    let mut lookup = ColdLookup::new(DEPTH, directory, count);
    lookup.keep = true;
    result.lookup = once(&mut guest, &mut lookup, DEPTH, LONG);
    result.full = guest.tree.memory()?;
    result.descriptors = guest.tree.descriptors()?;
    if lookup.nodes.is_empty() {
        return Ok(result);
    }
    result.getattr = use_all(&mut guest, lookup.nodes.clone());
    result.revalidate = once(&mut guest, &mut ColdLookup::new(DEPTH, directory, count), DEPTH, LONG);
    result.again = list(&mut guest, directory, count);
    guest.forget_all(&mut lookup.nodes)?;
    guest.tree.settle()?;
    result.forgotten = guest.tree.memory()?;
    result.readdirplus = list(&mut guest, directory, count);
    Ok(result)
}

/// READDIRPLUS of the whole directory, once.
fn list(guest: &mut Guest, directory: u64, count: usize) -> Measurement {
    let mut script = ReadDirPlus::new(1, vec![directory], 4096, count, count);
    let mut listed = once(guest, &mut script, 1, LONG);
    if listed.failure.is_none() && script.seen != count as u64 {
        listed.failure = Some(format!("{} of {count} entries", script.seen));
    }
    listed
}

fn use_all(guest: &mut Guest, nodes: Vec<u64>) -> Measurement {
    let message = Message::new(opcode::GETATTR, 0, ROOT_USER).arg(&wire::GetAttrIn::default());
    // A step that has no divisor in common with the count comes to each node once in a turn.
    let step = (nodes.len() * 5 / 13) | 1;
    let mut next = 0;
    let change = move |_: usize, message: &mut Message| {
        next = (next + step) % nodes.len();
        message.set_node(nodes[next]);
    };
    let script =
        Single::new(DEPTH, message.reply::<wire::AttrOut>(), change, exactly(size_of::<wire::AttrOut>()));
    let mut scripts: Vec<Box<dyn Script>> = vec![Box::new(script)];
    measure(guest, &mut scripts, DEPTH, Span { warm_up: Duration::ZERO, measured: USE })
}

/// The same as plain system calls.
pub fn native(fixture: &Fixture, count: usize) -> Result<Million, Failure> {
    let span = Span { warm_up: Duration::ZERO, measured: USE };
    let lookup = native::measure(native::lookup(fixture, fixture::MILLION, count)?, 0, span);
    let readdir = native::readdir(fixture, &[fixture::MILLION.to_owned()])?;
    Ok(Million { lookup, readdirplus: native::measure(readdir, 0, span), ..Default::default() })
}
