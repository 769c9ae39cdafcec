//! `RUST_LOG`: the level that it asks for.
//!
//! Its directives are those of the `env_logger` crate: `LEVEL`, `TARGET` or `TARGET=LEVEL`, with commas between
//! them and perhaps `/REGEX` at the end. This daemon has one level for all its parts: the most verbose one that
//! is asked for any of them. Targets of other programs say nothing about this one.

use std::ffi::OsStr;

use log::LevelFilter;

use super::Warning;

/// Targets that are ours begin with this.
const OUR_TARGET: &str = "virtiofsd";

/// `None` when the variable is unset or empty.
pub(super) fn from_rust_log(value: Option<&OsStr>, warnings: &mut Vec<Warning>) -> Option<LevelFilter> {
    let value = value.filter(|value| !value.is_empty())?;
    let text = value.to_string_lossy();
    let (directives, regex) =
        text.split_once('/').map_or((&*text, None), |(left, right)| (left, Some(right)));
    if regex.is_some() {
        warnings.push(Warning::RustLogRegex);
    }
    let mut general = None;
    let mut ours = None;
    for directive in directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        match parse_directive(directive) {
            Some((None, level)) => general = Some(level),
            Some((Some(target), level)) if is_ours(target) => ours = ours.max(Some(level)),
            Some((Some(_), _)) => {}
            None => warnings.push(Warning::RustLogDirective(directive.to_owned())),
        }
    }
    // Directives for others only: as with env_logger, what isn't named is off. None at all: errors.
    Some(ours.or(general).unwrap_or(if directives.contains('=') {
        LevelFilter::Off
    } else {
        LevelFilter::Error
    }))
}

/// Target (none: all of them) and level.
fn parse_directive(directive: &str) -> Option<(Option<&str>, LevelFilter)> {
    match directive.split_once('=') {
        None => Some(match directive.parse() {
            Ok(level) => (None, level),
            Err(_) => (Some(directive), LevelFilter::Trace),
        }),
        Some((target, level)) => Some((Some(target.trim()), level.trim().parse().ok()?)),
    }
}

fn is_ours(target: &str) -> bool {
    target.strip_prefix(OUR_TARGET).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(value: &str) -> (Option<LevelFilter>, usize) {
        let mut warnings = Vec::new();
        (from_rust_log(Some(OsStr::new(value)), &mut warnings), warnings.len())
    }

    #[test]
    fn the_level_for_us() {
        use LevelFilter::*;
        for (value, expected) in [
            ("debug", Debug),
            ("WARN", Warn),
            ("off", Off),
            ("virtiofsd", Trace),
            ("virtiofsd=debug", Debug),
            ("virtiofsd::worker=trace,virtiofsd=info,error", Trace),
            ("warn,virtiofsd_other=trace", Warn),
            ("vhost_user_backend=debug", Off),
            ("debug , vhost=off", Debug),
        ] {
            assert_eq!(level(value), (Some(expected), 0), "{value}");
        }
    }

    #[test]
    fn nothing_said() {
        assert_eq!(level(""), (None, 0));
        assert_eq!(from_rust_log(None, &mut Vec::new()), None);
    }

    #[test]
    fn what_cannot_be_followed_is_told() {
        assert_eq!(level("info,virtiofsd=loud"), (Some(LevelFilter::Info), 1));
        assert_eq!(level("info/lookup"), (Some(LevelFilter::Info), 1));
        assert_eq!(level(",,"), (Some(LevelFilter::Error), 0));
    }
}
