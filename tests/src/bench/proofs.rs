//! The thresholds that our daemon has to hold, and whether it does.

use std::fmt::Write as _;

use super::million::Million;
use super::report::{Metric, Results};
use crate::peers::Implementation;

/// Daemon CPU per operation against each upstream release, at most; and operations a second, at least, where
/// there is such a threshold.
const UPSTREAM: [(&str, f64, Option<f64>); 22] = [
    ("getattr", 0.25, Some(METADATA)),
    ("lookup-warm", 0.5, Some(METADATA)),
    ("lookup-cold", 0.5, Some(METADATA)),
    ("open-release", 0.6, Some(METADATA)),
    ("readdirplus", 0.4, Some(METADATA)),
    ("readdirplus-32k", 0.4, Some(METADATA)),
    ("readdirplus-10k", 0.4, None),
    ("create-unlink", 0.7, Some(METADATA)),
    ("create-unlink-u1000", 0.7, Some(METADATA)),
    ("create-forget", 0.7, None),
    ("read-4k-d1", 0.8, None),
    ("read-4k", 0.8, Some(SMALL_DATA)),
    ("read-4k-d64", 0.8, None),
    ("write-4k-d1", 0.8, None),
    ("write-4k", 0.8, Some(SMALL_DATA)),
    ("write-4k-d64", 0.8, None),
    ("write-4k-large", 0.8, Some(SMALL_DATA)),
    ("read-1m", 1.0, None),
    ("write-1m", 1.0, None),
    ("getxattr", 1.0, Some(METADATA)),
    ("readlink", 1.0, Some(METADATA)),
    ("statfs", 1.0, Some(METADATA)),
];
/// Operations a second on metadata at depth 16.
const METADATA: f64 = 2.0;
/// Operations a second on 4 KiB of data at depth 16.
const SMALL_DATA: f64 = 1.2;
/// Daemon CPU per operation against the C daemon, on every workload.
const C_CPU: f64 = 1.0;
/// Private bytes of an idle looked-up inode.
const BYTES_PER_INODE: f64 = 200.0;
/// Of two queues over one.
const TWO_QUEUES: f64 = 1.6;
/// With two cores, two queues can only reach that when the front end takes at most this share of the daemon's
/// CPU time.
const FRONT_SHARE: f64 = 2.0 / TWO_QUEUES - 1.0;
/// Private memory of all processes after start, in MiB.
const PRIVATE_MIB: f64 = 8.0;
/// Of counting a request over all of it.
const COUNTING: f64 = 0.01;
/// The cheapest requests, by workloads.
const CHEAP: [&str; 2] = ["getattr", "read-4k"];
/// Bytes in a MiB.
const MIB: f64 = 1_048_576.0;

/// One threshold.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Proof {
    /// What is compared.
    pub what: String,
    /// What was measured.
    pub measured: f64,
    /// `true`: the limit is the most; else it is the least.
    pub at_most: bool,
    /// The limit.
    pub limit: f64,
}

impl Proof {
    fn at_most(what: impl Into<String>, measured: f64, limit: f64) -> Proof {
        Proof { what: what.into(), measured, at_most: true, limit }
    }

    fn at_least(what: impl Into<String>, measured: f64, limit: f64) -> Proof {
        Proof { what: what.into(), measured, at_most: false, limit }
    }

    /// Whether it holds.
    pub fn holds(&self) -> bool {
        if self.at_most { self.measured <= self.limit } else { self.measured >= self.limit }
    }
}

/// All thresholds for which there are figures, of the first daemon against those peers that were measured.
pub fn judge(results: &Results) -> Vec<Proof> {
    let Some(judged) = results.daemons.first() else { return Vec::new() };
    let mut proofs = Vec::new();
    for peer in &results.daemons[1..] {
        match peer.implementation {
            Implementation::Upstream(_) => against_upstream(results, &judged.name, &peer.name, &mut proofs),
            Implementation::C => against_c(results, &judged.name, &peer.name, &mut proofs),
            Implementation::Ours | Implementation::Binary(_) => {}
        }
    }
    scaling(results, &judged.name, &mut proofs);
    alone(results, &judged.name, &mut proofs);
    if judged.implementation == Implementation::Ours {
        counting(results, &judged.name, &mut proofs);
    }
    proofs
}

fn ratio(results: &Results, judged: &str, peer: &str, workload: &str, metric: Metric) -> Option<f64> {
    let value = |name| results.median(workload, name, metric);
    Some(value(judged)? / value(peer)?)
}

fn against_upstream(results: &Results, judged: &str, peer: &str, proofs: &mut Vec<Proof>) {
    for (workload, cpu, throughput) in UPSTREAM {
        if let Some(value) = ratio(results, judged, peer, workload, Metric::DaemonCpu) {
            proofs.push(Proof::at_most(format!("{workload}: CPU ÷ {peer}"), value, cpu));
        }
        let value = ratio(results, judged, peer, workload, Metric::Throughput);
        if let (Some(least), Some(value)) = (throughput, value) {
            proofs.push(Proof::at_least(format!("{workload}: operations a second ÷ {peer}"), value, least));
        }
    }
    let start = |name| results.startup(name, |s| s.first_reply.as_secs_f64());
    if let (Some(ours), Some(theirs)) = (start(judged), start(peer)) {
        proofs.push(Proof::at_most(format!("start to first reply ÷ {peer}"), ours / theirs, 1.0));
    }
}

fn against_c(results: &Results, judged: &str, peer: &str, proofs: &mut Vec<Proof>) {
    for workload in results.workloads.iter().filter(|workload| !workload.is_scaling()) {
        if let Some(value) = ratio(results, judged, peer, &workload.name, Metric::DaemonCpu) {
            proofs.push(Proof::at_most(format!("{}: CPU ÷ {peer}", workload.name), value, C_CPU));
        }
    }
}

fn scaling(results: &Results, judged: &str, proofs: &mut Vec<Proof>) {
    for workload in results.workloads.iter().filter(|workload| workload.is_scaling() && workload.queues == 2)
    {
        let value = |queues, metric| results.median(&workload.with_queues(queues), judged, metric);
        let (one, two) = (value(1, Metric::Throughput), value(2, Metric::Throughput));
        let (front, daemon) = (value(2, Metric::FrontCpu), value(2, Metric::DaemonCpu));
        let (Some(one), Some(two), Some(front), Some(daemon)) = (one, two, front, daemon) else { continue };
        if front / daemon <= FRONT_SHARE {
            proofs.push(Proof::at_least(format!("{} ÷ one queue", workload.name), two / one, TWO_QUEUES));
        }
    }
}

fn alone(results: &Results, judged: &str, proofs: &mut Vec<Proof>) {
    if let Some(private) = results.startup(judged, |s| s.memory.private as f64 / MIB) {
        proofs.push(Proof::at_most("private memory after start, MiB", private, PRIVATE_MIB));
    }
    if let Some(idle) = results.outcome.idle.get(judged) {
        proofs.push(Proof::at_most("idle: wake-ups", idle.wakeups as f64, 0.0));
        proofs.push(Proof::at_most("idle: CPU, µs", idle.cpu.as_secs_f64() * 1e6, 0.0));
    }
    match results.million.get(judged) {
        Some(Ok(million)) => working_set(million, proofs),
        Some(Err(_)) => proofs.push(Proof::at_most("many files: failures", 1.0, 0.0)),
        None => {}
    }
}

fn counting(results: &Results, judged: &str, proofs: &mut Vec<Proof>) {
    let Some(counting) = results.counting else { return };
    for workload in CHEAP {
        if let Some(all) = results.median(workload, judged, Metric::DaemonCpu) {
            proofs.push(Proof::at_most(
                format!("{workload}: CPU of counting it ÷ all"),
                counting / all,
                COUNTING,
            ));
        }
    }
}

fn working_set(million: &Million, proofs: &mut Vec<Proof>) {
    let parts = [&million.lookup, &million.getattr, &million.readdirplus];
    let failed = parts.iter().filter(|part| part.failure.is_some()).count();
    proofs.push(Proof::at_most("many files: failures", failed as f64, 0.0));
    if let Some(bytes) = million.bytes_per_inode() {
        proofs.push(Proof::at_most("many files: private bytes an inode", bytes, BYTES_PER_INODE));
    }
    if let Some(descriptors) = million.descriptors_per_inode() {
        // Bounded means that most of the idle ones have none.
        proofs.push(Proof::at_most("many files: descriptors an inode", descriptors, 0.5));
    }
}

/// A line each, and a sum.
pub fn text(proofs: &[Proof]) -> String {
    let mut text = String::from("\nThresholds (medians)\n");
    let width = proofs.iter().map(|proof| proof.what.chars().count()).max().unwrap_or(0);
    for proof in proofs {
        let verdict = if proof.holds() { "holds" } else { "FAILS" };
        let relation = if proof.at_most { "≤" } else { "≥" };
        let Proof { what, measured, limit, .. } = proof;
        let _ = writeln!(text, "  {verdict}  {what:<width$}  {measured:>9.3} {relation} {limit}");
    }
    let held = proofs.iter().filter(|proof| proof.holds()).count();
    let _ = writeln!(text, "{held} of {} thresholds hold", proofs.len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload;

    #[test]
    fn limits_belong_to_the_better_side() {
        assert!(Proof::at_most("", 1.0, 1.0).holds());
        assert!(!Proof::at_most("", 1.1, 1.0).holds());
        assert!(!Proof::at_most("", f64::NAN, 1.0).holds());
        assert!(Proof::at_least("", 2.0, 2.0).holds());
        assert!(!Proof::at_least("", 1.9, 2.0).holds());
    }

    #[test]
    fn thresholds_name_workloads() {
        let names: Vec<String> = workload::all().into_iter().map(|workload| workload.name).collect();
        assert!(CHEAP.iter().all(|name| names.iter().any(|known| known == name)));
        assert!(UPSTREAM.iter().all(|(name, ..)| names.iter().any(|known| known == name)));
    }
}
