//! A snapshot as a table for people. With an earlier one, rates are those of the time between; else since the start.

use std::fmt::Write as _;

use crate::exporter::snapshot::{Operation, SAMPLE, Snapshot};

/// The table.
pub fn table(now: &Snapshot, before: Option<&Snapshot>) -> String {
    let mut text = String::new();
    // Writing into a String can't fail.
    let _ = write_table(&mut text, now, before);
    text
}

fn write_table(out: &mut String, now: &Snapshot, before: Option<&Snapshot>) -> std::fmt::Result {
    let subject = &now.subject;
    let (share, device) = (subject.share.escape_debug(), subject.device.escape_debug());
    writeln!(out, "{share} as {device}, up {}", duration(now.uptime_seconds))?;
    writeln!(
        out,
        "inodes {} ({} with an fd)   handles {}   queues 1+{}   waiting {}",
        now.inodes,
        now.hot_inodes,
        now.handles,
        subject.request_queues,
        now.queues.iter().fold(0, |sum: u64, queue| sum.saturating_add(queue.depth)),
    )?;
    limits(out, now)?;
    let broker: Vec<_> =
        now.broker_requests.iter().map(|(kind, count)| format!("{} {count}", kind.escape_debug())).collect();
    writeln!(out, "broker requests: {}", if broker.is_empty() { "none".into() } else { broker.join(", ") })?;
    writeln!(out)?;
    writeln!(
        out,
        "{:<20} {:>12} {:>10} {:>10} {:>10} {:>9} {:>9} {:>9}",
        "operation", "requests", "/s", "errors", "MiB/s", "mean", "p50 <", "p99 <"
    )?;
    let seconds = before.map_or(now.uptime_seconds, |before| now.uptime_seconds - before.uptime_seconds);
    let mut operations: Vec<_> = now.operations.iter().collect();
    operations.sort_by_key(|operation| std::cmp::Reverse(operation.requests));
    for operation in operations {
        let earlier = before.and_then(|before| before.operations.iter().find(|o| o.name == operation.name));
        row(out, operation, earlier, seconds)?;
    }
    writeln!(out, "\nmean and percentiles are of one request in {SAMPLE}, since the start")
}

fn limits(out: &mut String, now: &Snapshot) -> std::fmt::Result {
    if now.subject.limits.is_empty() {
        return Ok(());
    }
    let limits: Vec<_> =
        now.subject.limits.iter().map(|(name, limit)| format!("{} {limit}", name.escape_debug())).collect();
    let waits = now.queues.iter().fold(0, |sum: u64, queue| sum.saturating_add(queue.throttled));
    let waited: f64 = now.queues.iter().map(|queue| queue.throttled_seconds).sum();
    writeln!(
        out,
        "limits: {}   waited {waits} times, {}   refused {} inodes, {} handles",
        limits.join(", "),
        duration(waited),
        now.refused_inodes,
        now.refused_handles
    )
}

fn row(out: &mut String, now: &Operation, before: Option<&Operation>, seconds: f64) -> std::fmt::Result {
    let since = |now: u64, before: Option<u64>| now.saturating_sub(before.unwrap_or(0)) as f64;
    let rate = |number: f64| if seconds > 0.0 { number / seconds } else { 0.0 };
    let requests = rate(since(now.requests, before.map(|o| o.requests)));
    let mib = rate(since(now.bytes, before.map(|o| o.bytes))) / f64::from(1 << 20);
    let mean = if now.timed > 0 { Some(now.timed_seconds / now.timed as f64) } else { None };
    writeln!(
        out,
        "{:<20} {:>12} {:>10.0} {:>10} {:>10} {:>9} {:>9} {:>9}",
        now.name.escape_debug().to_string(),
        now.requests,
        requests,
        now.errors,
        if now.bytes > 0 { format!("{mib:.1}") } else { String::new() },
        latency(mean),
        latency(now.quantile(0.5)),
        latency(now.quantile(0.99)),
    )
}

fn latency(seconds: Option<f64>) -> String {
    match seconds {
        None => String::new(),
        Some(seconds) if seconds.is_infinite() => "more".to_owned(),
        Some(seconds) if seconds < 1e-3 => format!("{:.1} us", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.1} s"),
    }
}

fn duration(seconds: f64) -> String {
    // A conversion from a float ends at the type's limits.
    let whole = seconds as u64;
    match (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60) {
        (0, 0, 0, _) => format!("{seconds:.1} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, _, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exporter::snapshot::Subject;

    fn snapshot(requests: u64, uptime_seconds: f64) -> Snapshot {
        let subject = Subject { share: "/srv/\x1b[31m".into(), request_queues: 2, ..Subject::default() };
        let read = Operation {
            name: "READ".into(),
            requests,
            bytes: requests << 20,
            timed: 1,
            timed_seconds: 3e-6,
            buckets: vec![0, 0, 1],
            ..Operation::default()
        };
        Snapshot { subject, uptime_seconds, operations: vec![read], ..Snapshot::default() }
    }

    #[test]
    fn rates_are_those_between_two_looks() {
        let line = |text: String| text.lines().find(|line| line.starts_with("READ")).unwrap().to_owned();
        let words = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let first = words(line(table(&snapshot(100, 10.0), None)));
        assert_eq!(first, ["READ", "100", "10", "0", "10.0", "3.0", "us", "4.0", "us", "4.0", "us"]);
        let second = words(line(table(&snapshot(300, 12.0), Some(&snapshot(100, 10.0)))));
        assert_eq!(second[1..3], ["300", "100"]);
        // A daemon that was started anew in between.
        assert!(line(table(&snapshot(1, 1.0), Some(&snapshot(100, 10.0)))).contains(" 0 "));
    }

    #[test]
    fn nothing_from_the_socket_reaches_the_terminal_as_it_is() {
        let mut hostile = snapshot(1, 1.0);
        hostile.operations[0].name.push('\x1b');
        hostile.broker_requests.insert("\x1b".into(), 1);
        hostile.subject.limits.insert("\x1b".into(), 1);
        assert!(!table(&hostile, None).contains('\x1b'));
    }

    #[test]
    fn times_are_readable() {
        let shown = [0.5, 75.0, 3700.0, 90_000.0].map(duration);
        assert_eq!(shown, ["0.5 s", "1 min 15 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!(latency(Some(f64::INFINITY)), "more");
        assert_eq!(latency(Some(0.25)), "250.0 ms");
    }
}
