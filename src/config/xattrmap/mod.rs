//! `--xattrmap`: how names of extended attributes change between guest ("client") and host ("server").
//!
//! A map is a list of rules; the first one that matches a name decides. [`XattrMap`] only renames: which
//! attributes a guest may have at all (`system.posix_acl_*`, for example) is decided elsewhere, and values are
//! never looked at. `docs/xattr-mapping.md` explains the rules to users; `parse` is their grammar.
//!
//! Invariant: every name matches a rule, in both directions. The parser refuses a map for which that isn't so;
//! hence no name from a guest can run off a map's end.

#[cfg(test)]
mod doc_tests;
mod parse;

use std::borrow::Cow;
use std::ops::Range;

pub use parse::{ParseError, Problem};

/// How many rules a map may have, after `map` rules were written out. Each attribute operation walks them.
pub const MAX_RULES: usize = 1024;

/// How long a map's text may be, in bytes.
pub const MAX_TEXT: usize = 64 << 10;

/// Why a guest may not use a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// A `bad` rule. For getxattr, virtiofsd tells the guest ENODATA instead, since a hidden attribute reads as
    /// one that isn't there.
    #[error("a rule of the xattr map denies this name")]
    Eperm,
    /// An `unsupported` rule.
    #[error("a rule of the xattr map says that this name is not supported")]
    Enotsup,
}

/// What a rule does with a name that matches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Put `prepend` before the guest's name, take it off the host's.
    Prefix,
    /// Leave the name as it is.
    Ok,
    /// EPERM for the guest, hidden from the host's list.
    Bad,
    /// ENOTSUP for the guest, hidden from the host's list.
    Unsupported,
}

/// Which direction a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Names that the guest asks for.
    Client,
    /// Names that the host lists.
    Server,
    /// Both.
    All,
}

impl Scope {
    fn has_client(self) -> bool {
        matches!(self, Self::Client | Self::All)
    }

    fn has_server(self) -> bool {
        matches!(self, Self::Server | Self::All)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    kind: Kind,
    scope: Scope,
    /// Beginning of the guest's names that it matches.
    key: Box<[u8]>,
    /// Beginning of the host's names that it matches.
    prepend: Box<[u8]>,
    /// Where it stands in the text, in bytes.
    place: Range<usize>,
}

impl Rule {
    fn matches_client(&self, name: &[u8]) -> bool {
        self.scope.has_client() && name.starts_with(&self.key)
    }

    fn matches_server(&self, name: &[u8]) -> bool {
        self.scope.has_server() && name.starts_with(&self.prepend)
    }
}

/// A checked map. Made from its text form by [`str::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrMap {
    rules: Vec<Rule>,
}

impl XattrMap {
    /// The host's name for a name that the guest uses in getxattr, setxattr or removexattr. The result can be
    /// longer than the kernel's XATTR_NAME_MAX (255): the system call then says ERANGE.
    pub fn client_to_host<'a>(&self, name: &'a [u8]) -> Result<Cow<'a, [u8]>, MapError> {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches_client(name)) else {
            // Not reached, by the invariant; denying is the safe answer.
            return Err(MapError::Eperm);
        };
        match rule.kind {
            Kind::Ok => Ok(Cow::Borrowed(name)),
            Kind::Prefix => Ok(Cow::Owned([&rule.prepend, name].concat())),
            Kind::Bad => Err(MapError::Eperm),
            Kind::Unsupported => Err(MapError::Enotsup),
        }
    }

    /// The guest's name for a name that the host's listxattr gave; `None` hides it.
    pub fn host_to_client<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        let rule = self.rules.iter().find(|rule| rule.matches_server(name))?;
        match rule.kind {
            Kind::Ok => Some(name),
            // A name that is nothing but the prefix would become an empty one, which ends a list.
            Kind::Prefix => name.get(rule.prepend.len()..).filter(|name| !name.is_empty()),
            Kind::Bad | Kind::Unsupported => None,
        }
    }

    /// Whether some name that a guest may use becomes this host name: whoever acts on host names for a worker
    /// that isn't trusted asks this first.
    pub fn can_produce(&self, host_name: &[u8]) -> bool {
        let becomes = |name: &[u8]| self.client_to_host(name).is_ok_and(|host| *host == *host_name);
        becomes(host_name)
            || self
                .rules
                .iter()
                .filter(|rule| rule.kind == Kind::Prefix && rule.scope.has_client())
                .filter_map(|rule| host_name.strip_prefix(&*rule.prepend))
                .any(becomes)
    }

    /// The host's name of `security.capability` when the map gives it another one. The host's kernel then
    /// doesn't drop it when a file is written, truncated or changes its owner: the daemon has to.
    pub fn renamed_capability(&self) -> Option<Vec<u8>> {
        const CAPABILITY: &[u8] = b"security.capability";
        self.client_to_host(CAPABILITY).ok().filter(|name| **name != *CAPABILITY).map(Cow::into_owned)
    }

    /// Rules whose result the guest can also name directly, as places in the text. For example, with
    /// `:prefix:all:trusted.:user.v.:` alone, an ordinary user of the guest can set `user.v.trusted.x`, and so
    /// what only the guest's root may set.
    pub fn bypasses<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let open = |rule: &&Rule| {
            let target = [&*rule.prepend, &*rule.key].concat();
            rule.kind == Kind::Prefix
                && rule.scope.has_client()
                && !rule.prepend.is_empty()
                && self.client_to_host(&target).is_ok_and(|host| *host == *target)
        };
        self.rules.iter().filter(open).filter_map(|rule| text.get(rule.place.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> XattrMap {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn to_host(map: &XattrMap, name: &str) -> Result<String, MapError> {
        map.client_to_host(name.as_bytes()).map(|name| String::from_utf8(name.into_owned()).unwrap())
    }

    fn to_client<'a>(map: &XattrMap, name: &'a str) -> Option<&'a str> {
        map.host_to_client(name.as_bytes()).map(|name| std::str::from_utf8(name).unwrap())
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let map = map(
            ":ok:all:user.a:user.a: :bad:all:user.:user.: :unsupported:all:trusted.:trusted.: :ok:all:::",
        );
        assert_eq!(to_host(&map, "user.abc").as_deref(), Ok("user.abc"));
        assert_eq!(to_host(&map, "user.b"), Err(MapError::Eperm));
        assert_eq!(to_host(&map, "trusted.b"), Err(MapError::Enotsup));
        assert_eq!(to_host(&map, "security.b").as_deref(), Ok("security.b"));
        assert_eq!(to_client(&map, "user.abc"), Some("user.abc"));
        assert_eq!(to_client(&map, "user.b"), None);
        assert_eq!(to_client(&map, "trusted.b"), None);
        assert_eq!(to_client(&map, "security.b"), Some("security.b"));
    }

    #[test]
    fn scopes_keep_to_their_direction() {
        let map = map(":prefix:client:trusted.:user.v.: :prefix:server:nothing:user.w.: :ok:all:::");
        assert_eq!(to_host(&map, "trusted.x").as_deref(), Ok("user.v.trusted.x"));
        assert_eq!(to_client(&map, "user.v.trusted.x"), Some("user.v.trusted.x"));
        assert_eq!(to_host(&map, "nothing.x").as_deref(), Ok("nothing.x"));
        assert_eq!(to_client(&map, "user.w.x"), Some("x"));
    }

    /// Nothing is in a list but names, and no name is empty.
    #[test]
    fn a_bare_prefix_is_hidden() {
        let map = map(":map::user.virtiofs.:");
        assert_eq!(to_client(&map, "user.virtiofs."), None);
        assert_eq!(to_client(&map, "user.virtiofs.x"), Some("x"));
    }

    #[test]
    fn the_map_rule_is_what_the_reference_says() {
        let cases = [
            (":map::user.v.:", ":prefix:all::user.v.::bad:all:::"),
            (":map:trusted.:user.v.:", ":prefix:all:trusted.:user.v.: :bad:all:user.v.:trusted.: :ok:all:::"),
        ];
        let names =
            ["user.a", "trusted.a", "user.v.a", "user.v.trusted.a", "security.capability", "user.v.", "a"];
        for (short, long) in cases {
            let (short, long) = (map(short), map(long));
            for name in names {
                assert_eq!(to_host(&short, name), to_host(&long, name), "{name}");
                assert_eq!(to_client(&short, name), to_client(&long, name), "{name}");
            }
        }
    }

    /// What the guest sets, it sees under the same name.
    #[test]
    fn a_map_rule_is_a_round_trip() {
        for text in [":map::user.v.:", ":map:trusted.:user.v.:", "/map/security.capability/trusted.v./"] {
            let map = map(text);
            for name in ["user.a", "trusted.a", "security.capability", "system.x", "user.v.trusted.a"] {
                if let Ok(host) = map.client_to_host(name.as_bytes()) {
                    assert_eq!(map.host_to_client(&host), Some(name.as_bytes()), "{text} {name}");
                }
            }
        }
    }

    #[test]
    fn names_that_can_and_cannot_be_produced() {
        let map = map(":prefix:all:trusted.:user.v.: :bad:all:user.v.:trusted.: :ok:all:::");
        assert!(map.can_produce(b"user.v.trusted.x"));
        assert!(map.can_produce(b"user.x"));
        assert!(!map.can_produce(b"user.v.x"));
        assert!(!map.can_produce(b"trusted.x"));
        let all = super::tests::map(":map::trusted.virtiofs.:");
        assert!(all.can_produce(b"trusted.virtiofs.user.x"));
        assert!(!all.can_produce(b"trusted.overlay.opaque"));
    }

    #[test]
    fn a_renamed_capability_is_told() {
        assert_eq!(
            map(":map::user.v.:").renamed_capability().as_deref(),
            Some(&b"user.v.security.capability"[..])
        );
        assert_eq!(map(":map:trusted.:user.v.:").renamed_capability(), None);
        assert_eq!(map(":bad:all:security.:security.: :ok:all:::").renamed_capability(), None);
    }

    #[test]
    fn a_way_around_the_guests_own_rules_is_told() {
        let rule = ":prefix:all:trusted.:user.v.:";
        let open = format!("{rule} :bad:server::trusted.: :ok:all:::");
        assert_eq!(map(&open).bypasses(&open), [rule]);
        for closed in [":map:trusted.:user.v.:", ":map::user.v.:", ":prefix:server::user.v.: :ok:all:::"] {
            assert!(map(closed).bypasses(closed).is_empty(), "{closed}");
        }
    }

    #[test]
    fn names_are_bytes() {
        let map = map(":map::user.v.:");
        let strange = b"user.\xff\xfe\n";
        let host = map.client_to_host(strange).unwrap();
        assert_eq!(map.host_to_client(&host), Some(&strange[..]));
    }
}
