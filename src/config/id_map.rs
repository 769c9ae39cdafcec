//! `--uid-map` and `--gid-map`: lines of a user namespace's id map.
//!
//! The grammar is `:INNER:OUTER:COUNT:`, where `:` may be any character that is neither letter nor digit.

use std::str::FromStr;

use super::IdMapEntry;

/// The kernel takes at most this many lines (user_namespaces(7)).
const MAX_LINES: usize = 340;

/// Why a map, or a line of it, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// No separator around the fields.
    #[error(
        "begin and end with the separator that is also between the fields, such as ':' in :INNER:OUTER:COUNT:"
    )]
    Separator,
    /// Not three fields.
    #[error("{0} fields instead of three: the form is :INNER:OUTER:COUNT:")]
    Fields(usize),
    /// A field that is no id.
    #[error("\"{0}\" is not a number from 0 to 4294967295")]
    Number(String),
    /// The kernel refuses a line that maps nothing.
    #[error("{0} maps no id: COUNT must be at least 1")]
    Empty(IdMapEntry),
    /// The range ends beyond the last id.
    #[error("{0} goes beyond the last id, 4294967294")]
    Overflow(IdMapEntry),
    /// The kernel refuses lines that overlap on either side.
    #[error("{0} and {1} overlap: every id, inside and outside, may be in one range only")]
    Overlap(IdMapEntry, IdMapEntry),
    /// More lines than the kernel takes.
    #[error("{0} ranges: the kernel takes at most {MAX_LINES}")]
    TooMany(usize),
}

impl std::fmt::Display for IdMapEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, ":{}:{}:{}:", self.inner, self.outer, self.count)
    }
}

impl FromStr for IdMapEntry {
    type Err = IdMapError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let separator =
            text.chars().next_back().filter(|c| !c.is_alphanumeric()).ok_or(IdMapError::Separator)?;
        let fields = text
            .strip_suffix(separator)
            .and_then(|rest| rest.strip_prefix(separator))
            .ok_or(IdMapError::Separator)?;
        let fields: Vec<&str> = fields.split(separator).collect();
        let [inner, outer, count] = fields[..] else {
            return Err(IdMapError::Fields(fields.len()));
        };
        let number = |field: &str| field.parse::<u32>().map_err(|_| IdMapError::Number(field.to_owned()));
        Ok(Self { inner: number(inner)?, outer: number(outer)?, count: number(count)? })
    }
}

/// Checks what the kernel would refuse later with a bare EINVAL.
pub(super) fn check(map: &[IdMapEntry]) -> Result<(), IdMapError> {
    if map.len() > MAX_LINES {
        return Err(IdMapError::TooMany(map.len()));
    }
    for (index, line) in map.iter().enumerate() {
        if line.count == 0 {
            return Err(IdMapError::Empty(*line));
        }
        if line.inner.checked_add(line.count).is_none() || line.outer.checked_add(line.count).is_none() {
            return Err(IdMapError::Overflow(*line));
        }
        let clash = map[..index].iter().find(|other| {
            overlap(line.inner, line.count, other.inner, other.count)
                || overlap(line.outer, line.count, other.outer, other.count)
        });
        if let Some(other) = clash {
            return Err(IdMapError::Overlap(*other, *line));
        }
    }
    Ok(())
}

/// Neither range is empty or ends beyond `u32::MAX`.
fn overlap(a: u32, a_count: u32, b: u32, b_count: u32) -> bool {
    a <= b + (b_count - 1) && b <= a + (a_count - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[&str]) -> Vec<IdMapEntry> {
        lines.iter().map(|line| line.parse().unwrap()).collect()
    }

    #[test]
    fn any_separator_will_do() {
        let expected = IdMapEntry { inner: 0, outer: 100_000, count: 65_536 };
        for text in [":0:100000:65536:", "/0/100000/65536/", " 0 100000 65536 ", "·0·100000·65536·"] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn broken_lines() {
        use IdMapError::*;
        for (text, expected) in [
            ("", Separator),
            (":", Separator),
            ("0:1:2", Separator),
            (":0:1:2", Separator),
            ("0:1:2:", Separator),
            ("/0:1:2:", Separator),
            (":0:1:", Fields(2)),
            (":0:1:2:3:", Fields(4)),
            ("::", Fields(1)),
            (":0:x:2:", Number("x".into())),
            (":0:-1:2:", Number("-1".into())),
            (":0:4294967296:2:", Number("4294967296".into())),
        ] {
            assert_eq!(text.parse::<IdMapEntry>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn what_the_kernel_would_refuse() {
        let overflow = map(&[":0:4294967295:1:"]);
        assert_eq!(check(&overflow), Err(IdMapError::Overflow(overflow[0])));
        let empty = map(&[":0:0:0:"]);
        assert_eq!(check(&empty), Err(IdMapError::Empty(empty[0])));
        let inner = map(&[":0:100:10:", ":9:200:1:"]);
        assert_eq!(check(&inner), Err(IdMapError::Overlap(inner[0], inner[1])));
        let outer = map(&[":0:100:10:", ":10:109:5:"]);
        assert_eq!(check(&outer), Err(IdMapError::Overlap(outer[0], outer[1])));
        assert_eq!(check(&map(&[":0:100:10:", ":10:110:5:", ":15:0:100:"])), Ok(()));
    }

    #[test]
    fn as_many_lines_as_the_kernel_takes() {
        let line = |n: u32| IdMapEntry { inner: n, outer: n, count: 1 };
        let most: Vec<_> = (0..340).map(line).collect();
        assert_eq!(check(&most), Ok(()));
        let more: Vec<_> = (0..341).map(line).collect();
        assert_eq!(check(&more), Err(IdMapError::TooMany(341)));
    }
}
