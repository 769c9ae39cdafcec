//! `--worker-ids`: the argument's grammar.

use std::str::FromStr;

use super::WorkerIds;

/// What `shifted` alone means: all ids below 2^31 - 1, in the upper half of the host's, which systems leave free.
const DEFAULT_BASE: u32 = 1 << 31;
const DEFAULT_COUNT: u32 = (1 << 31) - 1;

/// Longest USER, in bytes: the longest name that Linux systems take (`LOGIN_NAME_MAX`).
const OWNER_MAX: usize = 256;

/// Why an argument of `--worker-ids` is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerIdsError {
    /// None of the forms.
    #[error("use auto, identity, shifted, shifted:BASE:COUNT with two numbers, or subids:USER")]
    Form,
    /// No USER, or one that no line of the files can have.
    #[error(
        "USER is a name or number as in /etc/subuid, of 1 to {OWNER_MAX} bytes, without colons or white space"
    )]
    Owner,
    /// An empty range.
    #[error("COUNT is 0: the worker needs at least one id")]
    Empty,
    /// 4294967295 is no id, and numbers end there.
    #[error("BASE + COUNT may be at most 4294967295")]
    Range,
}

impl FromStr for WorkerIds {
    type Err = WorkerIdsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(owner) = text.strip_prefix("subids:") {
            let no_name = |c: char| c == ':' || c.is_whitespace() || c.is_control();
            let is_name = !owner.is_empty() && owner.len() <= OWNER_MAX && !owner.contains(no_name);
            return if is_name { Ok(Self::Subids(owner.to_owned())) } else { Err(WorkerIdsError::Owner) };
        }
        let (base, count) = match text {
            "auto" => return Ok(Self::Auto),
            "identity" => return Ok(Self::Identity),
            "shifted" => (DEFAULT_BASE, DEFAULT_COUNT),
            _ => {
                let range = text.strip_prefix("shifted:").ok_or(WorkerIdsError::Form)?;
                let (base, count) = range.split_once(':').ok_or(WorkerIdsError::Form)?;
                let number = |digits: &str| digits.parse::<u32>().map_err(|_| WorkerIdsError::Form);
                (number(base)?, number(count)?)
            }
        };
        if count == 0 {
            return Err(WorkerIdsError::Empty);
        }
        base.checked_add(count).ok_or(WorkerIdsError::Range)?;
        Ok(Self::Shifted { base, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms() {
        assert_eq!("auto".parse(), Ok(WorkerIds::Auto));
        assert_eq!("identity".parse(), Ok(WorkerIds::Identity));
        assert_eq!("shifted".parse(), Ok(WorkerIds::Shifted { base: 2_147_483_648, count: 2_147_483_647 }));
        assert_eq!("shifted:100000:65536".parse(), Ok(WorkerIds::Shifted { base: 100_000, count: 65_536 }));
        assert_eq!("subids:tenant-a".parse(), Ok(WorkerIds::Subids("tenant-a".to_owned())));
        assert_eq!("subids:1000".parse(), Ok(WorkerIds::Subids("1000".to_owned())));
    }

    #[test]
    fn what_is_none_of_them() {
        for text in [
            "",
            "Auto",
            "shifted:",
            "shifted:1",
            "shifted:1:2:3",
            "shifted:a:1",
            "shifted:1:-1",
            "none",
            "subids",
        ] {
            assert_eq!(text.parse::<WorkerIds>(), Err(WorkerIdsError::Form), "{text}");
        }
        for text in
            ["subids:", "subids:a:b", "subids:a b", "subids:a\n", &format!("subids:{}", "x".repeat(257))]
        {
            assert_eq!(text.parse::<WorkerIds>(), Err(WorkerIdsError::Owner), "{text}");
        }
        assert_eq!("shifted:1:0".parse::<WorkerIds>(), Err(WorkerIdsError::Empty));
        assert_eq!("shifted:4294967295:1".parse::<WorkerIds>(), Err(WorkerIdsError::Range));
        assert!("shifted:4294967294:1".parse::<WorkerIds>().is_ok());
    }
}
