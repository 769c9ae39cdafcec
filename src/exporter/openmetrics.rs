//! The counters as OpenMetrics text, by the prometheus-client library.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::snapshot::{Operation, Queue, Snapshot, upper_bound};

/// The type of what [`text`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Before each name.
const PREFIX: &str = "virtiofsd";

/// A snapshot as text.
///
/// # Errors
/// None, as the text goes to memory; the library's functions have one.
pub fn text(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Shown(snapshot)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Shown(Snapshot);

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = &self.0;
        self.device(&mut encoder)?;
        let queues = |encoder: &mut DescriptorEncoder<'_>,
                      name,
                      help,
                      unit: Option<&Unit>,
                      counter,
                      value| {
            let kind = if counter { MetricType::Counter } else { MetricType::Gauge };
            per_queue(encoder.encode_descriptor(name, help, unit, kind)?, &snapshot.queues, counter, value)
        };
        let e = &mut encoder;
        queues(e, "queue_batches", "Batches taken from a virtqueue.", None, true, |q| q.batches as f64)?;
        queues(e, "queue_requests", "Requests taken from a virtqueue.", None, true, |q| q.taken as f64)?;
        queues(e, "queue_depth", "Requests of the present batch.", None, false, |q| q.depth as f64)?;
        queues(e, "queue_throttled", "Waits for a limit.", None, true, |q| q.throttled as f64)?;
        let help = "Time waited for a limit.";
        queues(e, "queue_throttled", help, Some(&Unit::Seconds), true, |q| q.throttled_seconds)?;

        let operations = |encoder: &mut DescriptorEncoder<'_>, name, help, unit: Option<&Unit>, value| {
            let family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
            per_operation(family, &snapshot.operations, value)
        };
        operations(e, "requests", "Requests by opcode.", None, |o| o.requests)?;
        operations(e, "errors", "Requests answered with an error.", None, |o| o.errors)?;
        let help = "File data read or written.";
        operations(e, "data", help, Some(&Unit::Bytes), |o| o.bytes)?;
        let help = "Time to serve a request; one of 16 requests of an opcode is timed.";
        let family = e.encode_descriptor("duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        histograms(family, &snapshot.operations)
    }
}

impl Shown {
    fn device(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = &self.0;
        let subject = &snapshot.subject;
        let labels = [("share", subject.share.as_str()), ("device", subject.device.as_str())];
        let help = "What is shared.";
        encoder.encode_descriptor("share", help, None, MetricType::Info)?.encode_info(&labels)?;
        let mut gauge = |name, help, unit: Option<&Unit>, value: f64| {
            encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
        };
        gauge("uptime", "Since the start.", Some(&Unit::Seconds), snapshot.uptime_seconds)?;
        gauge("inodes", "Inodes that the guest knows.", None, snapshot.inodes as f64)?;
        gauge(
            "hot_inodes",
            "Inodes kept by a file descriptor; up to 15 a thread may be counted too many.",
            None,
            snapshot.hot_inodes as f64,
        )?;
        gauge("handles", "Open files and directories.", None, snapshot.handles as f64)?;
        let mut limits = encoder.encode_descriptor("limit", "Limits in force.", None, MetricType::Gauge)?;
        for (name, limit) in &subject.limits {
            limits.encode_family(&[("option", name.as_str())])?.encode_gauge(&(*limit as f64))?;
        }
        let help = "Requests refused because of a limit.";
        let mut refused = encoder.encode_descriptor("refused", help, None, MetricType::Counter)?;
        for (option, count) in
            [("max-inodes", snapshot.refused_inodes), ("max-handles", snapshot.refused_handles)]
        {
            counter(refused.encode_family(&[("option", option)])?, count as f64)?;
        }
        let help = "Requests to the broker by kind.";
        let mut requests = encoder.encode_descriptor("broker_requests", help, None, MetricType::Counter)?;
        for (kind, count) in &snapshot.broker_requests {
            counter(requests.encode_family(&[("kind", kind.as_str())])?, *count as f64)?;
        }
        Ok(())
    }
}

fn counter(mut encoder: MetricEncoder<'_>, value: f64) -> Result<(), fmt::Error> {
    encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None)
}

fn per_queue(
    mut family: MetricEncoder<'_>,
    queues: &[Queue],
    is_counter: bool,
    value: fn(&Queue) -> f64,
) -> Result<(), fmt::Error> {
    for queue in queues {
        let label = if queue.index == 0 { "hiprio".to_owned() } else { queue.index.to_string() };
        let labels = [("queue", label.as_str())];
        let mut encoder = family.encode_family(&labels)?;
        if is_counter { counter(encoder, value(queue))? } else { encoder.encode_gauge(&value(queue))? }
    }
    Ok(())
}

fn per_operation(
    mut family: MetricEncoder<'_>,
    operations: &[Operation],
    value: fn(&Operation) -> u64,
) -> Result<(), fmt::Error> {
    for operation in operations {
        counter(family.encode_family(&[("op", operation.name.as_str())])?, value(operation) as f64)?;
    }
    Ok(())
}

fn histograms(mut family: MetricEncoder<'_>, operations: &[Operation]) -> Result<(), fmt::Error> {
    for operation in operations {
        let buckets = operation.buckets.iter().enumerate();
        let buckets: Vec<_> = buckets.map(|(index, count)| (upper_bound(index), *count)).collect();
        let labels = [("op", operation.name.as_str())];
        let mut encoder = family.encode_family(&labels)?;
        encoder.encode_histogram::<NoLabelSet>(operation.timed_seconds, operation.timed, &buckets, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::Subject;
    use super::*;

    #[test]
    fn the_text_has_each_number_once() {
        let snapshot = Snapshot {
            subject: Subject { share: "/a\"b\n".into(), device: "t".into(), ..Subject::default() },
            inodes: 7,
            queues: vec![Queue { throttled_seconds: 0.5, ..Queue::default() }],
            operations: vec![Operation {
                name: "READ".into(),
                requests: 32,
                bytes: 4096,
                timed: 2,
                timed_seconds: 0.25,
                buckets: [vec![1], vec![0; 23], vec![1]].concat(),
                ..Operation::default()
            }],
            ..Snapshot::default()
        };
        let text = text(snapshot).unwrap();
        for line in [
            "virtiofsd_share_info{share=\"/a\\\"b\\n\",device=\"t\"} 1",
            "virtiofsd_inodes 7.0",
            "virtiofsd_requests_total{op=\"READ\"} 32.0",
            "virtiofsd_data_bytes_total{op=\"READ\"} 4096.0",
            "virtiofsd_queue_throttled_seconds_total{queue=\"hiprio\"} 0.5",
            "virtiofsd_duration_seconds_bucket{le=\"0.000001\",op=\"READ\"} 1",
            "virtiofsd_duration_seconds_bucket{le=\"+Inf\",op=\"READ\"} 2",
            "virtiofsd_duration_seconds_count{op=\"READ\"} 2",
        ] {
            assert_eq!(text.lines().filter(|l| *l == line).count(), 1, "{line} in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
