//! Counts of durations in buckets of about 3 %, so that recording one takes a few instructions and no memory.

use std::time::Duration;

/// Buckets between one power of two and the next.
const FINE: u64 = 32;
/// Up to 2^40 ns, 18 minutes; longer ones count in the last bucket.
const BUCKETS: usize = (FINE as usize) * 37;

/// A histogram of durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u32]>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; BUCKETS].into(), total: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let count = &mut self.counts[bucket(nanos)];
        *count = count.saturating_add(1);
        self.total += 1;
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.total += other.total;
    }

    /// The duration below which this share (0 to 1) of all lie; `None` when nothing was counted.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let index = self.counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        });
        index.map(|index| Duration::from_nanos(middle(index)))
    }
}

/// Durations below `FINE` ns have a bucket each; from there on the leading bits count.
fn bucket(nanos: u64) -> usize {
    let shift = (64 - nanos.leading_zeros()).saturating_sub(FINE.trailing_zeros() + 1);
    let index = u64::from(shift) * FINE + (nanos >> shift);
    (index as usize).min(BUCKETS - 1)
}

/// A value in the middle of a bucket.
fn middle(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * FINE {
        return index;
    }
    let shift = index / FINE - 1;
    let low = (index - shift * FINE) << shift;
    low + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_within_its_bucket() {
        for nanos in (0..200).chain([1_000, 12_345, 999_999, 1 << 30, (1 << 39) + 12_345]) {
            let back = middle(bucket(nanos));
            assert!(back.abs_diff(nanos) <= nanos / 32, "{nanos} came back as {back}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_ranks() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=50).for_each(|nanos| histogram.record(Duration::from_nanos(nanos)));
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_nanos(25)));
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_nanos(50)));
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        assert_eq!(twice.quantile(0.5), Some(Duration::from_nanos(25)));
    }
}
