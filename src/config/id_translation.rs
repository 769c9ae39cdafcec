//! `--translate-uid` and `--translate-gid`: the rules' grammar, and the look-up made from them.
//!
//! A rule is `TYPE:BASE:TARGET:COUNT` (`forbid-guest` has no target). The two directions are independent of
//! each other; an id that no rule names stays as it is. The number 4294967295 is no id (in chown it means "leave
//! as it is"), so no rule can reach it.
//!
//! This translation is done by the daemon and has nothing to do with the id map of a user namespace.

use std::fmt;
use std::str::FromStr;

use super::IdTranslation;

/// How many rules one option may have. Far more than anybody writes; it bounds the start-up's work.
pub const MAX_RULES: usize = 4096;

/// A guest id that a `forbid-guest` rule names: the request fails with EPERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rule forbids the guest to use this id")]
pub struct Forbidden;

/// Why a rule cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No separator, or nothing before it.
    #[error("the form is TYPE:BASE:TARGET:COUNT, with TYPE {TYPES}")]
    Form,
    /// An unknown type.
    #[error("\"{0}\" is not a type of rule; use {TYPES}")]
    Type(String),
    /// The wrong number of fields after the type.
    #[error("{kind} takes {expected} numbers, not {found}: {form}")]
    Fields {
        /// The rule's type.
        kind: &'static str,
        /// How many numbers it takes.
        expected: usize,
        /// How many there are.
        found: usize,
        /// How it is written.
        form: &'static str,
    },
    /// A field that is no number.
    #[error("\"{0}\" is not a number from 0 to 4294967295")]
    Number(String),
}

/// Why rules cannot be used together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslationError {
    /// The source range ends beyond the last id.
    #[error("{0}: the range goes beyond the last id, 4294967294")]
    SourceOverflow(IdTranslation),
    /// The target is, or ends beyond, the last id.
    #[error("{0}: the target goes beyond the last id, 4294967294")]
    TargetOverflow(IdTranslation),
    /// Two rules name the same source id in the same direction.
    #[error("{first} and {second} overlap: in each direction every id may be in one rule only")]
    Overlap {
        /// The rule with the lower ids.
        first: IdTranslation,
        /// The other one.
        second: IdTranslation,
    },
    /// More than [`MAX_RULES`].
    #[error("{0} rules are more than the {MAX_RULES} that are allowed")]
    TooMany(usize),
}

const TYPES: &str = "guest, host, squash-guest, squash-host, forbid-guest or map";

impl fmt::Display for IdTranslation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Guest { guest, host, count } => write!(f, "guest:{guest}:{host}:{count}"),
            Self::Host { host, guest, count } => write!(f, "host:{host}:{guest}:{count}"),
            Self::SquashGuest { guest, host, count } => write!(f, "squash-guest:{guest}:{host}:{count}"),
            Self::SquashHost { host, guest, count } => write!(f, "squash-host:{host}:{guest}:{count}"),
            Self::ForbidGuest { guest, count } => write!(f, "forbid-guest:{guest}:{count}"),
            Self::Map { guest, host, count } => write!(f, "map:{guest}:{host}:{count}"),
        }
    }
}

impl FromStr for IdTranslation {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let in_type = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let separator = text.chars().find(|c| !in_type(*c)).ok_or(RuleError::Form)?;
        let (kind, numbers) = text.split_once(separator).ok_or(RuleError::Form)?;
        let fields: Vec<&str> = numbers.split(separator).collect();
        let three = |kind, form| -> Result<[u32; 3], RuleError> { parse_numbers(&fields, kind, form) };
        Ok(match kind.to_lowercase().as_str() {
            "" => return Err(RuleError::Form),
            "guest" => {
                let [guest, host, count] = three("guest", "guest:GUEST:HOST:COUNT")?;
                Self::Guest { guest, host, count }
            }
            "host" => {
                let [host, guest, count] = three("host", "host:HOST:GUEST:COUNT")?;
                Self::Host { host, guest, count }
            }
            "squash-guest" => {
                let [guest, host, count] = three("squash-guest", "squash-guest:GUEST:HOST:COUNT")?;
                Self::SquashGuest { guest, host, count }
            }
            "squash-host" => {
                let [host, guest, count] = three("squash-host", "squash-host:HOST:GUEST:COUNT")?;
                Self::SquashHost { host, guest, count }
            }
            "forbid-guest" => {
                let [guest, count] = parse_numbers(&fields, "forbid-guest", "forbid-guest:GUEST:COUNT")?;
                Self::ForbidGuest { guest, count }
            }
            "map" => {
                let [guest, host, count] = three("map", "map:GUEST:HOST:COUNT")?;
                Self::Map { guest, host, count }
            }
            _ => return Err(RuleError::Type(kind.to_owned())),
        })
    }
}

fn parse_numbers<const N: usize>(
    fields: &[&str],
    kind: &'static str,
    form: &'static str,
) -> Result<[u32; N], RuleError> {
    let fields: [&str; N] =
        fields.try_into().map_err(|_| RuleError::Fields { kind, expected: N, found: fields.len(), form })?;
    let mut numbers = [0; N];
    for (number, field) in numbers.iter_mut().zip(fields) {
        *number = field.parse().map_err(|_| RuleError::Number(field.to_owned()))?;
    }
    Ok(numbers)
}

impl IdTranslation {
    /// How many ids the rule covers; one that covers none is allowed and does nothing.
    pub fn count(&self) -> u32 {
        match *self {
            Self::Guest { count, .. }
            | Self::Host { count, .. }
            | Self::SquashGuest { count, .. }
            | Self::SquashHost { count, .. }
            | Self::ForbidGuest { count, .. }
            | Self::Map { count, .. } => count,
        }
    }

    /// What it does to guest ids on their way to the host.
    fn guest_side(&self) -> Option<(u32, Target)> {
        match *self {
            Self::Guest { guest, host, .. } | Self::Map { guest, host, .. } => {
                Some((guest, Target::From(host)))
            }
            Self::SquashGuest { guest, host, .. } => Some((guest, Target::One(host))),
            Self::ForbidGuest { guest, .. } => Some((guest, Target::Nothing)),
            Self::Host { .. } | Self::SquashHost { .. } => None,
        }
    }

    /// What it does to host ids on their way to the guest.
    fn host_side(&self) -> Option<(u32, Target)> {
        match *self {
            Self::Host { host, guest, .. } | Self::Map { host, guest, .. } => {
                Some((host, Target::From(guest)))
            }
            Self::SquashHost { host, guest, .. } => Some((host, Target::One(guest))),
            Self::Guest { .. } | Self::SquashGuest { .. } | Self::ForbidGuest { .. } => None,
        }
    }
}

/// Where the ids of a span go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// One to one, beginning with this one.
    From(u32),
    /// All to this one.
    One(u32),
    /// Nowhere.
    Nothing,
}

/// A range of source ids, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u32,
    last: u32,
    target: Target,
}

/// Translates ids between guest and host. A look-up is a binary search without allocation; without rules it is
/// one comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdTranslator {
    /// Sorted, without overlap.
    to_host: Vec<Span>,
    /// Sorted, without overlap.
    to_guest: Vec<Span>,
}

impl IdTranslator {
    /// Checks that the rules can be used together, in whatever order they were given.
    pub fn new(rules: &[IdTranslation]) -> Result<Self, TranslationError> {
        if rules.len() > MAX_RULES {
            return Err(TranslationError::TooMany(rules.len()));
        }
        Ok(Self {
            to_host: spans(rules, IdTranslation::guest_side)?,
            to_guest: spans(rules, IdTranslation::host_side)?,
        })
    }

    /// Nothing is ever translated.
    pub fn is_identity(&self) -> bool {
        self.to_host.is_empty() && self.to_guest.is_empty()
    }

    /// A guest's id as the host's.
    pub fn guest_to_host(&self, id: u32) -> Result<u32, Forbidden> {
        match find(&self.to_host, id) {
            None => Ok(id),
            Some(span) => span.translate(id).ok_or(Forbidden),
        }
    }

    /// A host's id as the guest's.
    pub fn host_to_guest(&self, id: u32) -> u32 {
        find(&self.to_guest, id).and_then(|span| span.translate(id)).unwrap_or(id)
    }
}

impl Span {
    fn translate(&self, id: u32) -> Option<u32> {
        match self.target {
            Target::From(base) => Some(base + (id - self.first)),
            Target::One(id) => Some(id),
            Target::Nothing => None,
        }
    }
}

fn find(spans: &[Span], id: u32) -> Option<&Span> {
    if spans.is_empty() {
        return None;
    }
    let span = spans.get(spans.partition_point(|span| span.last < id))?;
    (span.first <= id).then_some(span)
}

/// One direction's spans, sorted and checked.
fn spans(
    rules: &[IdTranslation],
    side: fn(&IdTranslation) -> Option<(u32, Target)>,
) -> Result<Vec<Span>, TranslationError> {
    let mut spans = Vec::new();
    for rule in rules {
        let count = rule.count();
        let Some((first, target)) = side(rule).filter(|_| count > 0) else {
            continue;
        };
        first.checked_add(count).ok_or(TranslationError::SourceOverflow(*rule))?;
        let width = match target {
            Target::From(base) => base.checked_add(count),
            Target::One(id) => id.checked_add(1),
            Target::Nothing => Some(0),
        };
        width.ok_or(TranslationError::TargetOverflow(*rule))?;
        spans.push((Span { first, last: first + (count - 1), target }, *rule));
    }
    spans.sort_by_key(|(span, _)| span.first);
    for pair in spans.windows(2) {
        let [(low, first), (high, second)] = [pair[0], pair[1]];
        if high.first <= low.last {
            return Err(TranslationError::Overlap { first, second });
        }
    }
    Ok(spans.into_iter().map(|(span, _)| span).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translator(rules: &[&str]) -> Result<IdTranslator, TranslationError> {
        let rules: Vec<IdTranslation> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        IdTranslator::new(&rules)
    }

    #[test]
    fn every_form_reads_back_as_written() {
        for text in [
            "guest:0:1000:1",
            "host:1000:0:1",
            "squash-guest:0:1000:4294967295",
            "squash-host:0:1000:65536",
            "forbid-guest:0:1",
            "map:1:2:3",
        ] {
            assert_eq!(text.parse::<IdTranslation>().unwrap().to_string(), text);
        }
        // Other separators, and the type in any case.
        assert_eq!("MAP/1/2/3".parse::<IdTranslation>().unwrap().to_string(), "map:1:2:3");
    }

    #[test]
    fn broken_rules() {
        use RuleError::*;
        for (text, expected) in [
            ("", Form),
            ("guest", Form),
            (":1:2:3", Form),
            ("gast:1:2:3", Type("gast".into())),
            ("guest:1:x:3", Number("x".into())),
            ("guest:1:2:3 ", Number("3 ".into())),
            ("map:1:2:-3", Number("-3".into())),
            ("map:1:2:4294967296", Number("4294967296".into())),
        ] {
            assert_eq!(text.parse::<IdTranslation>(), Err(expected), "{text}");
        }
        for text in ["guest:1:2", "guest:1:2:3:4", "forbid-guest:1:2:3", "map:1"] {
            assert!(matches!(text.parse::<IdTranslation>(), Err(Fields { .. })), "{text}");
        }
    }

    #[test]
    fn each_type_acts_in_its_direction_only() {
        let guest = translator(&["guest:10:1000:5"]).unwrap();
        assert_eq!(guest.guest_to_host(9), Ok(9));
        assert_eq!(guest.guest_to_host(10), Ok(1000));
        assert_eq!(guest.guest_to_host(14), Ok(1004));
        assert_eq!(guest.guest_to_host(15), Ok(15));
        assert_eq!(guest.host_to_guest(1000), 1000);

        let host = translator(&["host:1000:10:5"]).unwrap();
        assert_eq!(host.host_to_guest(1004), 14);
        assert_eq!(host.guest_to_host(14), Ok(14));

        let map = translator(&["map:10:1000:5"]).unwrap();
        assert_eq!(map.guest_to_host(12), Ok(1002));
        assert_eq!(map.host_to_guest(1002), 12);

        let squash = translator(&["squash-guest:0:1001:4294967295", "squash-host:5:7:2"]).unwrap();
        assert_eq!(squash.guest_to_host(0), Ok(1001));
        assert_eq!(squash.guest_to_host(u32::MAX - 1), Ok(1001));
        assert_eq!(squash.guest_to_host(u32::MAX), Ok(u32::MAX), "means \"as it is\", never an id");
        assert_eq!((squash.host_to_guest(5), squash.host_to_guest(6), squash.host_to_guest(7)), (7, 7, 7));

        let forbid = translator(&["forbid-guest:1:2"]).unwrap();
        assert_eq!(forbid.guest_to_host(0), Ok(0));
        assert_eq!(forbid.guest_to_host(1), Err(Forbidden));
        assert_eq!(forbid.guest_to_host(2), Err(Forbidden));
        assert_eq!(forbid.guest_to_host(3), Ok(3));
        assert_eq!(forbid.host_to_guest(1), 1);
    }

    #[test]
    fn nothing_to_do() {
        assert!(translator(&[]).unwrap().is_identity());
        assert!(translator(&["map:1:2:0"]).unwrap().is_identity(), "an empty range translates nothing");
        assert!(!translator(&["map:1:2:1"]).unwrap().is_identity());
    }

    #[test]
    fn overlaps_are_found_in_any_order() {
        for rules in [
            ["guest:0:1:10", "guest:9:100:1"],
            ["guest:9:100:1", "squash-guest:0:1:10"],
            ["forbid-guest:5:1", "map:0:100:10"],
            ["host:5:1:1", "map:0:5:1"],
            ["map:0:0:1", "map:0:9:1"],
        ] {
            assert!(matches!(translator(&rules), Err(TranslationError::Overlap { .. })), "{rules:?}");
        }
        // Neighbours, and the same ids in different directions.
        assert!(translator(&["guest:0:1:10", "guest:10:100:1", "host:0:1:10"]).is_ok());
    }

    #[test]
    fn ranges_end_before_the_number_that_is_no_id() {
        assert!(matches!(translator(&["guest:1:0:4294967295"]), Err(TranslationError::SourceOverflow(_))));
        assert!(matches!(
            translator(&["forbid-guest:4294967295:1"]),
            Err(TranslationError::SourceOverflow(_))
        ));
        assert!(matches!(translator(&["guest:0:1:4294967295"]), Err(TranslationError::TargetOverflow(_))));
        assert!(matches!(
            translator(&["squash-guest:0:4294967295:1"]),
            Err(TranslationError::TargetOverflow(_))
        ));
        assert!(matches!(translator(&["map:0:4294967290:6"]), Err(TranslationError::TargetOverflow(_))));
        assert!(translator(&["map:0:4294967290:5"]).is_ok());
    }

    #[test]
    fn agrees_with_a_search_through_the_rules() {
        let rules = ["map:100:1000:50", "forbid-guest:150:10", "squash-guest:0:7:100", "host:0:5000:999"];
        let parsed: Vec<IdTranslation> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let translator = IdTranslator::new(&parsed).unwrap();
        for id in (0..3000).chain([u32::MAX - 1, u32::MAX]) {
            let host = match id {
                0..=99 => Ok(7),
                100..=149 => Ok(id + 900),
                150..=159 => Err(Forbidden),
                _ => Ok(id),
            };
            let guest = match id {
                0..=998 => id + 5000,
                1000..=1049 => id - 900,
                _ => id,
            };
            assert_eq!(translator.guest_to_host(id), host, "{id}");
            assert_eq!(translator.host_to_guest(id), guest, "{id}");
        }
    }

    #[test]
    fn the_number_of_rules_is_bounded() {
        let rules: Vec<_> =
            (0..=MAX_RULES as u32).map(|n| IdTranslation::ForbidGuest { guest: n, count: 1 }).collect();
        assert!(IdTranslator::new(&rules[1..]).is_ok());
        assert_eq!(IdTranslator::new(&rules), Err(TranslationError::TooMany(MAX_RULES + 1)));
    }
}
