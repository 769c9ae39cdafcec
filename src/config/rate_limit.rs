//! `--limit-ops` and `--limit-bandwidth`: the arguments' grammar.

use serde::{Deserialize, Serialize};

/// A bucket that fills at a rate: so much a second in the long run, and a burst at once after a quiet time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// A second; at least 1.
    pub rate: u64,
    /// At once; at least 1.
    pub burst: u64,
}

/// Highest rate and burst: nanoseconds times this fit the calculations, and nothing is that fast.
const MAX: u64 = 1 << 40;

/// The part of a second that a burst is for when the user does not say.
const DEFAULT_BURST: u64 = 10;

/// A burst of bytes must let the largest request pass.
const MIN_BURST_BYTES: u64 = 1 << 20;

/// `N[/BURST]`
pub(super) fn parse_ops(text: &str) -> Result<RateLimit, String> {
    parse(text, |number| number.parse().ok(), 1).ok_or_else(|| {
        format!("use N or N/BURST: requests a second, and at once; each is a number from 1 to {MAX}")
    })
}

/// `N[K|M|G][/BURST[K|M|G]]`
pub(super) fn parse_bandwidth(text: &str) -> Result<RateLimit, String> {
    parse(text, bytes, MIN_BURST_BYTES).ok_or_else(|| {
        format!(
            "use N or N/BURST: bytes a second, and at once; each is a number from 1 to {MAX}, perhaps with K, M or G \
             (1024, 1024^2 or 1024^3) behind it"
        )
    })
}

fn parse(text: &str, number: impl Fn(&str) -> Option<u64>, least_burst: u64) -> Option<RateLimit> {
    let number = |text: &str| number(text).filter(|number| (1..=MAX).contains(number));
    let (rate, burst) = match text.split_once('/') {
        Some((rate, burst)) => (number(rate)?, number(burst)?),
        None => {
            let rate = number(text)?;
            (rate, (rate / DEFAULT_BURST).max(least_burst))
        }
    };
    Some(RateLimit { rate, burst })
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (text.get(..text.len() - 1)?, 10),
        b'M' | b'm' => (text.get(..text.len() - 1)?, 20),
        b'G' | b'g' => (text.get(..text.len() - 1)?, 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms() {
        assert_eq!(parse_ops("1000"), Ok(RateLimit { rate: 1000, burst: 100 }));
        assert_eq!(parse_ops("3"), Ok(RateLimit { rate: 3, burst: 1 }));
        assert_eq!(parse_ops("1000/5"), Ok(RateLimit { rate: 1000, burst: 5 }));
        assert_eq!(parse_bandwidth("10M"), Ok(RateLimit { rate: 10 << 20, burst: 1 << 20 }));
        assert_eq!(parse_bandwidth("1g/64k"), Ok(RateLimit { rate: 1 << 30, burst: 64 << 10 }));
    }

    #[test]
    fn what_is_none_of_them() {
        for text in ["", "0", "-1", "x", "1/", "/1", "1/0", "1/2/3", "1K", "1099511627777"] {
            assert!(parse_ops(text).is_err(), "{text}");
        }
        for text in ["", "K", "1T", "1.5M", "0", "18446744073709551615G", "é"] {
            assert!(parse_bandwidth(text).is_err(), "{text}");
        }
    }
}
