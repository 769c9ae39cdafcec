//! Tables for people and JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::engine::Measurement;
use super::guest::Startup;
use super::kernel;
use super::million::Million;
use super::run::{Idle, NATIVE, Outcome};
use super::spec::DaemonSpec;
use super::syscalls::Calls;
use super::workload::Workload;

/// All that was measured.
#[derive(Debug, Default)]
pub struct Results {
    /// The columns, the judged one first.
    pub daemons: Vec<DaemonSpec>,
    /// The rows.
    pub workloads: Vec<Workload>,
    /// The rounds.
    pub outcome: Outcome,
    /// By daemon's name.
    pub million: BTreeMap<String, Result<Million, String>>,
    /// CPU time that our daemon takes to count a request, in microseconds.
    pub counting: Option<f64>,
}

/// A figure of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Operations a second.
    Throughput,
    /// Microseconds of the daemon's CPU time an operation.
    DaemonCpu,
    /// Microseconds of the front end's CPU time an operation.
    FrontCpu,
    /// Median time of an operation, in microseconds.
    P50,
    /// The time that 99 % of the operations didn't exceed, in microseconds.
    P99,
}

impl Metric {
    /// Its value; `None` when nothing was measured.
    pub fn of(self, measured: &Measurement) -> Option<f64> {
        if measured.operations == 0 || measured.failure.is_some() {
            return None;
        }
        let operations = measured.operations as f64;
        let per_operation = |time: Duration| time.as_secs_f64() * 1e6 / operations;
        let quantile = |share| measured.latency.quantile(share).map(|time| time.as_secs_f64() * 1e6);
        match self {
            Metric::Throughput => Some(operations / measured.elapsed.as_secs_f64()),
            Metric::DaemonCpu => Some(per_operation(measured.daemon_cpu)),
            Metric::FrontCpu => Some(per_operation(measured.front_cpu)),
            Metric::P50 => quantile(0.5),
            Metric::P99 => quantile(0.99),
        }
    }

    fn key(self) -> &'static str {
        match self {
            Metric::Throughput => "ops_per_s",
            Metric::DaemonCpu => "daemon_cpu_us",
            Metric::FrontCpu => "front_cpu_us",
            Metric::P50 => "p50_us",
            Metric::P99 => "p99_us",
        }
    }
}

const METRICS: [Metric; 5] =
    [Metric::Throughput, Metric::DaemonCpu, Metric::FrontCpu, Metric::P50, Metric::P99];

/// The middle one, or the mean of the two in the middle; `None` of none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

impl Results {
    /// The median of all rounds.
    pub fn median(&self, workload: &str, daemon: &str, metric: Metric) -> Option<f64> {
        let rounds = self.outcome.cells.get(&(workload.to_owned(), daemon.to_owned()))?;
        median(rounds.iter().filter_map(|measured| metric.of(measured)).collect())
    }

    /// The median of all starts.
    pub fn startup(&self, daemon: &str, value: impl Fn(&Startup) -> f64) -> Option<f64> {
        median(self.outcome.startups.get(daemon)?.iter().map(value).collect())
    }

    fn columns(&self) -> Vec<String> {
        let daemons = self.daemons.iter().map(|spec| spec.name.clone());
        let native = self.outcome.cells.keys().any(|(_, column)| column == NATIVE);
        daemons.chain(native.then(|| NATIVE.to_owned())).collect()
    }

    /// All tables.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (index, spec) in self.daemons.iter().enumerate() {
            let judged = if index == 0 { "  (judged; ratios are it ÷ the others)" } else { "" };
            let _ = writeln!(text, "{:>12} = {}{judged}", spec.name, spec.describe());
        }
        for (title, metric) in [
            ("Daemon CPU, µs an operation (less is better)", Metric::DaemonCpu),
            ("Operations a second (more is better)", Metric::Throughput),
            ("Median latency, µs", Metric::P50),
            ("99th percentile latency, µs", Metric::P99),
            ("CPU of the front end itself, µs an operation", Metric::FrontCpu),
        ] {
            text += &self.metric_table(title, metric);
        }
        text += &self.scaling_table();
        text += &self.startup_table();
        text += &self.million_table();
        text += &self.failures();
        text
    }

    fn metric_table(&self, title: &str, metric: Metric) -> String {
        let columns = self.columns();
        let mut table = Table::new(title, "workload", &columns);
        for workload in self.workloads.iter().filter(|workload| !workload.is_scaling()) {
            let values = columns.iter().map(|column| {
                if self.failed(&workload.name, column) {
                    return Cell::Failed;
                }
                self.median(&workload.name, column, metric).map_or(Cell::None, Cell::Value)
            });
            table.row(&workload.name, values.collect());
        }
        if table.rows.is_empty() { String::new() } else { table.render() }
    }

    /// Operations a second with several queues, for each daemon that has them.
    fn scaling_table(&self) -> String {
        let mut text = String::new();
        for workload in self.workloads.iter().filter(|workload| workload.is_scaling()) {
            for spec in &self.daemons {
                let value = |metric| self.median(&workload.name, &spec.name, metric);
                let (Some(rate), Some(daemon), Some(front)) =
                    (value(Metric::Throughput), value(Metric::DaemonCpu), value(Metric::FrontCpu))
                else {
                    continue;
                };
                let one = self.median(&workload.with_queues(1), &spec.name, Metric::Throughput);
                let ratio = one.map_or("–".into(), |one| format!("{:.2}×", rate / one));
                let _ = writeln!(
                    text,
                    "{:<28}{:>10}{rate:>11.0}{ratio:>8}{daemon:>12.2}{front:>11.2}",
                    workload.name, spec.name
                );
            }
        }
        let head = format!(
            "\nQueues, with a front-end thread each\n{:<28}{:>10}{:>11}{:>8}{:>12}{:>11}\n",
            "workload", "daemon", "ops/s", "÷q1", "daemon, µs", "front, µs"
        );
        if text.is_empty() { text } else { head + &text }
    }

    fn failed(&self, workload: &str, column: &str) -> bool {
        let rounds = self.outcome.cells.get(&(workload.to_owned(), column.to_owned()));
        rounds.is_some_and(|rounds| rounds.iter().any(|measured| measured.failure.is_some()))
    }

    fn startup_table(&self) -> String {
        if self.outcome.startups.is_empty() && self.outcome.idle.is_empty() {
            return String::new();
        }
        let columns: Vec<String> = self.daemons.iter().map(|spec| spec.name.clone()).collect();
        let mut table = Table::new("Start, and after it; idle", "", &columns);
        let mut row = |name: &str, value: &dyn Fn(&str) -> Option<f64>| {
            table.row(name, columns.iter().map(|c| value(c).map_or(Cell::None, Cell::Value)).collect());
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        row("start to first reply, ms", &|c| self.startup(c, |s| s.first_reply.as_secs_f64() * 1e3));
        row("private memory, MiB", &|c| self.startup(c, |s| mib(s.memory.private)));
        row("PSS, MiB", &|c| self.startup(c, |s| mib(s.memory.pss)));
        row("RSS, MiB", &|c| self.startup(c, |s| mib(s.memory.rss)));
        row("threads", &|c| self.startup(c, |s| s.threads as f64));
        row("descriptors", &|c| self.startup(c, |s| s.descriptors as f64));
        row("idle: wake-ups a second", &|c| {
            self.outcome.idle.get(c).map(|i| i.wakeups as f64 / i.watched.as_secs_f64())
        });
        row("idle: CPU, µs a second", &|c| {
            self.outcome.idle.get(c).map(|i| i.cpu.as_secs_f64() * 1e6 / i.watched.as_secs_f64())
        });
        table.render()
    }

    fn million_table(&self) -> String {
        if self.million.is_empty() {
            return String::new();
        }
        let mut columns: Vec<String> = self.daemons.iter().map(|spec| spec.name.clone()).collect();
        columns.extend(self.million.contains_key(NATIVE).then(|| NATIVE.to_owned()));
        let mut table = Table::new("A directory of many files, all looked up", "", &columns);
        let mut row = |name: &str, value: &dyn Fn(&Million) -> Option<f64>| {
            let cell = |column: &String| match self.million.get(column) {
                Some(Ok(million)) => value(million).map_or(Cell::None, Cell::Value),
                Some(Err(_)) => Cell::Failed,
                None => Cell::None,
            };
            table.row(name, columns.iter().map(cell).collect());
        };
        let mib = |bytes: u64| (bytes > 0).then(|| bytes as f64 / f64::from(1 << 20));
        row("files looked up", &|m| (m.descriptors > 0).then_some(m.lookup.operations as f64));
        row("lookup: CPU, µs", &|m| cpu_even_if_failed(&m.lookup));
        row("lookup: ops/s", &|m| Some(m.lookup.operations as f64 / m.lookup.elapsed.as_secs_f64()));
        row("getattr over all: CPU, µs", &|m| Metric::DaemonCpu.of(&m.getattr));
        row("getattr over all: p99, µs", &|m| Metric::P99.of(&m.getattr));
        row("lookup again: CPU, µs", &|m| Metric::DaemonCpu.of(&m.revalidate));
        row("lookup again: ops/s", &|m| Metric::Throughput.of(&m.revalidate));
        row("list again: CPU, µs an entry", &|m| Metric::DaemonCpu.of(&m.again));
        row("list again: entries/s", &|m| Metric::Throughput.of(&m.again));
        row("readdirplus: CPU, µs an entry", &|m| Metric::DaemonCpu.of(&m.readdirplus));
        row("readdirplus: entries/s", &|m| Metric::Throughput.of(&m.readdirplus));
        row("private bytes an inode", &|m| m.bytes_per_inode().filter(|_| m.descriptors > 0));
        row("descriptors an inode", &|m| m.descriptors_per_inode().filter(|_| m.descriptors > 0));
        row("descriptors", &|m| (m.descriptors > 0).then_some(m.descriptors as f64));
        row("private, all looked up, MiB", &|m| mib(m.full.private));
        row("private, all forgotten, MiB", &|m| mib(m.forgotten.private));
        table.render()
    }

    fn failures(&self) -> String {
        let mut text = String::new();
        for ((workload, column), rounds) in &self.outcome.cells {
            let failure = rounds.iter().find_map(|measured| measured.failure.as_ref());
            if let Some(failure) = failure {
                let _ = writeln!(text, "FAILED: {workload} on {column}: {failure}");
            }
        }
        for (column, million) in &self.million {
            let failures = match million {
                Err(e) => vec![e.clone()],
                Ok(m) => [&m.lookup, &m.getattr, &m.revalidate, &m.again, &m.readdirplus]
                    .into_iter()
                    .flat_map(|m| m.failure.clone())
                    .collect(),
            };
            failures.iter().for_each(|failure| {
                let _ = writeln!(text, "FAILED: {} on {column}: {failure}", super::million::NAME);
            });
        }
        for failure in &self.outcome.failures {
            let _ = writeln!(text, "FAILED: {failure}");
        }
        if text.is_empty() { text } else { format!("\n{text}") }
    }

    /// Everything, each round included.
    pub fn json(&self) -> Value {
        let mut workloads = serde_json::Map::new();
        for workload in &self.workloads {
            let mut columns = serde_json::Map::new();
            for column in self.columns() {
                let Some(rounds) = self.outcome.cells.get(&(workload.name.clone(), column.clone())) else {
                    continue;
                };
                columns.insert(column.clone(), self.cell_json(&workload.name, &column, rounds));
            }
            workloads.insert(workload.name.clone(), columns.into());
        }
        let million: BTreeMap<&String, Value> =
            self.million.iter().map(|(name, m)| (name, million_json(m))).collect();
        json!({
            "daemons": self.daemons.iter().map(|d| json!({"name": d.name, "command": d.describe()})).collect::<Vec<_>>(),
            "workloads": workloads,
            "startups": to_json(&self.outcome.startups),
            "idle": to_json::<BTreeMap<String, Idle>>(&self.outcome.idle),
            "million": million,
            "counting_us": self.counting,
            "failures": self.outcome.failures,
        })
    }

    fn cell_json(&self, workload: &str, column: &str, rounds: &[Measurement]) -> Value {
        let mut cell = serde_json::Map::new();
        for metric in METRICS {
            cell.insert(metric.key().into(), json!(self.median(workload, column, metric)));
        }
        let round = |measured: &Measurement| {
            let metrics: BTreeMap<&str, Option<f64>> =
                METRICS.iter().map(|m| (m.key(), m.of(measured))).collect();
            json!({
                "metrics": metrics,
                "operations": measured.operations,
                "kicks": measured.kicks,
                "failure": measured.failure,
            })
        };
        cell.insert("rounds".into(), rounds.iter().map(round).collect());
        cell.into()
    }
}

/// A lookup that ended early, because the daemon had no more descriptors, still says what one costs.
fn cpu_even_if_failed(measured: &Measurement) -> Option<f64> {
    Metric::DaemonCpu.of(&Measurement { failure: None, ..measured.clone() })
}

fn to_json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn million_json(million: &Result<Million, String>) -> Value {
    let million = match million {
        Ok(million) => million,
        Err(e) => return json!({ "failure": e }),
    };
    let part = |m: &Measurement| {
        json!({
            "operations": m.operations,
            "ops_per_s": Metric::Throughput.of(m),
            "daemon_cpu_us": cpu_even_if_failed(m),
            "p99_us": Metric::P99.of(m),
            "failure": m.failure,
        })
    };
    json!({
        "lookup": part(&million.lookup),
        "getattr": part(&million.getattr),
        "revalidate": part(&million.revalidate),
        "again": part(&million.again),
        "readdirplus": part(&million.readdirplus),
        "bytes_per_inode": million.bytes_per_inode(),
        "descriptors": million.descriptors,
        "memory": to_json(&[million.empty, million.full, million.forgotten]),
    })
}

/// System calls: totals per request, side by side, and then which ones.
pub fn syscalls(columns: &[(String, Vec<(String, Calls)>)]) -> String {
    let names: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
    let mut table = Table::new("System calls a request, all of them", "request", &names);
    let mut text = String::new();
    let Some((_, first)) = columns.first() else { return text };
    for (request, _) in first {
        let find = |counted: &Vec<(String, Calls)>| {
            counted.iter().find(|(name, _)| name == request).map(|(_, c)| c.clone())
        };
        let all: Vec<Option<Calls>> = columns.iter().map(|(_, counted)| find(counted)).collect();
        let cell =
            |calls: &Option<Calls>| calls.as_ref().map_or(Cell::None, |c| Cell::Value(c.per_request()));
        table.row(request, all.iter().map(cell).collect());
        for (name, calls) in names.iter().zip(&all) {
            let Some(calls) = calls else { continue };
            let mut list: Vec<(&String, f64)> = calls
                .by_name
                .iter()
                .map(|(call, count)| (call, *count as f64 / calls.requests.max(1) as f64))
                .collect();
            list.sort_by(|a, b| b.1.total_cmp(&a.1));
            let list: Vec<String> = list.iter().map(|(call, count)| format!("{call} {count:.2}")).collect();
            let _ = writeln!(text, "{request:<28} {name:>8}: {}", list.join(", "));
        }
    }
    format!("{}\n{text}", table.render())
}

/// Ordinary programs: time, the daemon's CPU time, and requests.
pub fn programs(daemons: &[DaemonSpec], outcome: &kernel::Outcome) -> String {
    let columns: Vec<String> =
        daemons.iter().map(|spec| spec.name.clone()).chain(std::iter::once(NATIVE.to_owned())).collect();
    let mut text = String::new();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    for (title, columns, value) in [
        ("Programs: time, ms", &columns[..], (|run| run.0) as fn((f64, f64, f64)) -> f64),
        ("Programs: daemon CPU, ms", &columns[..daemons.len()], |run| run.1),
        ("Programs: requests", &columns[..daemons.len()], |run| run.2),
    ] {
        let mut table = Table::new(title, "program", columns);
        for name in &outcome.programs {
            let cell = |column: &String| {
                let runs = outcome.runs.get(&((*name).to_owned(), column.clone()))?;
                let figures =
                    runs.iter().map(|r| value((millis(r.elapsed), millis(r.daemon_cpu), r.requests as f64)));
                median(figures.collect())
            };
            table.row(name, columns.iter().map(|c| cell(c).map_or(Cell::None, Cell::Value)).collect());
        }
        text += &table.render();
    }
    for failure in &outcome.failures {
        let _ = writeln!(text, "FAILED: {failure}");
    }
    text
}

enum Cell {
    Value(f64),
    Failed,
    None,
}

/// Columns of figures, and behind them the first one's ratio to each of the others.
struct Table<'a> {
    title: &'a str,
    columns: &'a [String],
    rows: Vec<(String, Vec<Cell>)>,
    corner: &'a str,
}

impl<'a> Table<'a> {
    fn new(title: &'a str, corner: &'a str, columns: &'a [String]) -> Table<'a> {
        Table { title, columns, rows: Vec::new(), corner }
    }

    fn row(&mut self, name: &str, cells: Vec<Cell>) {
        self.rows.push((name.to_owned(), cells));
    }

    fn render(&self) -> String {
        let first =
            self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(self.corner.len());
        let mut text = format!("\n{}\n{:<first$}", self.title, self.corner);
        let width = |name: &str| name.chars().count().max(9) + 1;
        for name in self.columns {
            let _ = write!(text, "{name:>width$}", width = width(name));
        }
        for name in self.columns.iter().skip(1) {
            let name = format!("÷{name}");
            let _ = write!(text, "{name:>width$}", width = width(&name));
        }
        text.push('\n');
        for (name, cells) in &self.rows {
            let _ = write!(text, "{name:<first$}");
            for (column, cell) in self.columns.iter().zip(cells) {
                let _ = write!(text, "{:>width$}", show(cell), width = width(column));
            }
            for (column, cell) in self.columns.iter().zip(cells).skip(1) {
                let width = width(&format!("÷{column}"));
                let ratio = match (&cells[0], cell) {
                    (Cell::Value(ours), Cell::Value(theirs)) if *theirs > 0.0 => {
                        format!("{:.2}×", ours / theirs)
                    }
                    _ => "–".into(),
                };
                let _ = write!(text, "{ratio:>width$}");
            }
            text.push('\n');
        }
        text
    }
}

fn show(cell: &Cell) -> String {
    match cell {
        Cell::None => "–".into(),
        Cell::Failed => "FAILED".into(),
        Cell::Value(value) if *value >= 1000.0 || *value == 0.0 => format!("{value:.0}"),
        Cell::Value(value) if *value >= 100.0 => format!("{value:.1}"),
        Cell::Value(value) => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_none_one_two_and_three() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 2.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn ratios_are_the_first_column_s() {
        let columns = ["ours".to_owned(), "theirs".to_owned()];
        let mut table = Table::new("T", "w", &columns);
        table.row("x", vec![Cell::Value(1.0), Cell::Value(4.0)]);
        table.row("y", vec![Cell::Failed, Cell::None]);
        let lines: Vec<String> =
            table.render().lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[3..], ["x 1.00 4.00 0.25×", "y FAILED – –"]);
    }
}
