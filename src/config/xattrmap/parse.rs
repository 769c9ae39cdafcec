//! The grammar of `--xattrmap`, with errors that point at the place.
//!
//! ```text
//! map   = { white space } rule { { white space } rule } { white space }
//! rule  = S type S scope S key S prepend S  |  S "map" S key S prepend S
//! type  = "prefix" | "ok" | "bad" | "unsupported"
//! scope = "client" | "server" | "all"
//! S     = any character but white space, the same one within a rule
//! ```
//!
//! A `map` rule is the last one. Every name must match a rule in both directions, which needs, for each, a rule
//! whose prefix is empty.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::{Kind, MAX_RULES, MAX_TEXT, Rule, Scope, XattrMap};

/// What is wrong with a map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing but white space.
    #[error("there is no rule; \":ok:all:::\" is the map that changes nothing")]
    Empty,
    /// Longer than [`MAX_TEXT`].
    #[error("it is longer than {MAX_TEXT} bytes")]
    TooLong,
    /// More than [`MAX_RULES`].
    #[error("it has more than {MAX_RULES} rules")]
    TooManyRules,
    /// A character that no name can have.
    #[error("a name cannot contain a NUL character")]
    Nul,
    /// The text ends within a rule.
    #[error(
        "the rule ends before its {field} is closed by another '{separator}'; the form is \
         {separator}TYPE{separator}SCOPE{separator}KEY{separator}PREPEND{separator}"
    )]
    Unfinished {
        /// What was being read.
        field: &'static str,
        /// The rule's separator.
        separator: char,
    },
    /// An unknown type.
    #[error("\"{0}\" is not a type of rule; use prefix, ok, bad, unsupported or map")]
    Type(String),
    /// An unknown scope.
    #[error("\"{0}\" is not a scope; use client, server or all")]
    Scope(String),
    /// A rule follows a `map` rule.
    #[error("the map rule must be the last one, since it decides about every name; remove what follows it")]
    AfterMap,
    /// A name of the guest could run off the end.
    #[error(
        "no rule matches all that remains of the guest's names; end with \":bad:all:::\" to deny the rest or \
         \":ok:all:::\" to let it through"
    )]
    ClientNotCovered,
    /// A name of the host could run off the end.
    #[error(
        "no rule matches all that remains of the host's names; end with \":bad:all:::\" to hide the rest or \
         \":ok:all:::\" to show it"
    )]
    ServerNotCovered,
}

/// A problem and its place. Its display form shows the rule with a mark below the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// What is wrong.
    pub problem: Problem,
    /// The rule's number, from 1; 0 when the map as a whole is meant.
    pub rule: usize,
    /// The character's number in the text, from 1; 0 when the map as a whole is meant.
    pub column: usize,
    /// The line of the rule from the rule's beginning, cut off, and where the mark goes, in characters.
    excerpt: Option<(String, usize)>,
}

impl std::error::Error for ParseError {}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((excerpt, mark)) = &self.excerpt else {
            return write!(f, "{}", self.problem);
        };
        write!(f, "rule {}, column {}: {}", self.rule, self.column, self.problem)?;
        write!(f, "\n    {excerpt}\n    {:mark$}^", "")
    }
}

impl FromStr for XattrMap {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_TEXT {
            return Err(ParseError::whole(Problem::TooLong));
        }
        let mut parser = Parser { text, at: 0, rule_start: 0, rules: Vec::new(), number: 0 };
        while parser.skip_to_rule() {
            parser.rule()?;
        }
        parser.finish()
    }
}

impl ParseError {
    fn whole(problem: Problem) -> Self {
        Self { problem, rule: 0, column: 0, excerpt: None }
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Byte offset of what comes next.
    at: usize,
    /// Byte offset of the current rule.
    rule_start: usize,
    /// Written-out rules so far.
    rules: Vec<Rule>,
    /// Rules as the user counts them.
    number: usize,
}

impl<'a> Parser<'a> {
    /// Skips white space; whether there is anything behind it.
    fn skip_to_rule(&mut self) -> bool {
        let rest = &self.text[self.at..];
        self.at = self.text.len() - rest.trim_start().len();
        self.rule_start = self.at;
        self.at < self.text.len()
    }

    fn rule(&mut self) -> Result<(), ParseError> {
        self.number += 1;
        let separator = self.text[self.at..].chars().next().unwrap_or(':');
        self.at += separator.len_utf8();
        let (name, place) = self.field("type", separator)?;
        let kind = match name {
            "prefix" => Kind::Prefix,
            "ok" => Kind::Ok,
            "bad" => Kind::Bad,
            "unsupported" => Kind::Unsupported,
            "map" => return self.map_rule(separator),
            other => return Err(self.error(Problem::Type(other.to_owned()), place.start)),
        };
        let (name, place) = self.field("scope", separator)?;
        let scope = match name {
            "client" => Scope::Client,
            "server" => Scope::Server,
            "all" => Scope::All,
            other => return Err(self.error(Problem::Scope(other.to_owned()), place.start)),
        };
        let (key, _) = self.field("key", separator)?;
        let (prepend, _) = self.field("prepend", separator)?;
        self.push(kind, scope, key, prepend)
    }

    /// The rest of a `map` rule, written out as the rules that it stands for.
    fn map_rule(&mut self, separator: char) -> Result<(), ParseError> {
        let (key, _) = self.field("key", separator)?;
        let (prepend, _) = self.field("prepend", separator)?;
        self.push(Kind::Prefix, Scope::All, key, prepend)?;
        if key.is_empty() {
            self.push(Kind::Bad, Scope::All, "", "")?;
        } else {
            // Neither may the host's own names of that kind be seen, nor the guest's be reached directly.
            self.push(Kind::Bad, Scope::All, prepend, key)?;
            self.push(Kind::Ok, Scope::All, "", "")?;
        }
        if self.skip_to_rule() {
            self.number += 1;
            return Err(self.error(Problem::AfterMap, self.at));
        }
        Ok(())
    }

    /// One field and its place, and past the separator behind it.
    fn field(&mut self, field: &'static str, separator: char) -> Result<(&'a str, Range<usize>), ParseError> {
        let rest = &self.text[self.at..];
        let Some((content, _)) = rest.split_once(separator) else {
            return Err(self.error(Problem::Unfinished { field, separator }, self.text.trim_end().len()));
        };
        let place = self.at..self.at + content.len();
        if let Some(nul) = content.find('\0') {
            return Err(self.error(Problem::Nul, place.start + nul));
        }
        self.at = place.end + separator.len_utf8();
        Ok((content, place))
    }

    fn push(&mut self, kind: Kind, scope: Scope, key: &str, prepend: &str) -> Result<(), ParseError> {
        if self.rules.len() == MAX_RULES {
            return Err(ParseError::whole(Problem::TooManyRules));
        }
        let (key, prepend) = (key.as_bytes().into(), prepend.as_bytes().into());
        self.rules.push(Rule { kind, scope, key, prepend, place: self.rule_start..self.at });
        Ok(())
    }

    fn finish(self) -> Result<XattrMap, ParseError> {
        if self.rules.is_empty() {
            return Err(ParseError::whole(Problem::Empty));
        }
        if !self.rules.iter().any(|rule| rule.scope.has_client() && rule.key.is_empty()) {
            return Err(ParseError::whole(Problem::ClientNotCovered));
        }
        if !self.rules.iter().any(|rule| rule.scope.has_server() && rule.prepend.is_empty()) {
            return Err(ParseError::whole(Problem::ServerNotCovered));
        }
        Ok(XattrMap { rules: self.rules })
    }

    /// An error at a byte offset at or behind the rule's beginning.
    fn error(&self, problem: Problem, offset: usize) -> ParseError {
        const WIDTH: usize = 60;
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1).max(self.rule_start);
        let line_end = self.text[offset..].find('\n').map_or(self.text.len(), |newline| offset + newline);
        let mark = self.text[line_start..offset].chars().count();
        // Keep the mark within the part that is shown.
        let skipped = mark.saturating_sub(WIDTH / 2);
        let line = self.text[line_start..line_end].chars().skip(skipped).take(WIDTH);
        let excerpt = line.map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
        ParseError {
            problem,
            rule: self.number,
            column: before.chars().count() + 1,
            excerpt: Some((excerpt, mark - skipped)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> ParseError {
        text.parse::<XattrMap>().expect_err(text)
    }

    #[test]
    fn rules_with_their_separators_and_white_space() {
        let map: XattrMap =
            "\n  /prefix/all/trusted./user.v./\n  /bad/server//trusted./ |ok|client||| :ok:all:::\t"
                .parse()
                .unwrap();
        let kinds: Vec<_> = map.rules.iter().map(|rule| (rule.kind, rule.scope)).collect();
        let expected = [
            (Kind::Prefix, Scope::All),
            (Kind::Bad, Scope::Server),
            (Kind::Ok, Scope::Client),
            (Kind::Ok, Scope::All),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(*map.rules[0].key, *b"trusted.");
        assert_eq!(*map.rules[0].prepend, *b"user.v.");
    }

    #[test]
    fn names_may_have_white_space_and_any_character_but_the_separator() {
        let map: XattrMap = "→prefix→all→user.ä b→user.:/→→ok→all→→→".parse().unwrap();
        assert_eq!(*map.rules[0].key, *"user.ä b".as_bytes());
        assert_eq!(*map.rules[0].prepend, *b"user.:/");
    }

    #[test]
    fn errors_tell_the_rule_and_the_column() {
        let unfinished = |field| Problem::Unfinished { field, separator: ':' };
        for (text, problem, rule, column) in [
            (":", unfinished("type"), 1, 2),
            (":ok", unfinished("type"), 1, 4),
            (":ok:all", unfinished("scope"), 1, 8),
            (":ok:all::", unfinished("prepend"), 1, 10),
            (":ok:all:: ", unfinished("prepend"), 1, 10),
            (":ok:all:::\n:prefxi:all:::", Problem::Type("prefxi".into()), 2, 13),
            (":OK:all:::", Problem::Type("OK".into()), 1, 2),
            ("::all:::", Problem::Type(String::new()), 1, 2),
            ("ü:all:::", unfinished("type"), 1, 9),
            (":ok:both:::", Problem::Scope("both".into()), 1, 5),
            (":map::a: :ok:all:::", Problem::AfterMap, 2, 10),
            (":map::a::map::b:", Problem::AfterMap, 2, 9),
            (":ok:all:a\0b::", Problem::Nul, 1, 10),
        ] {
            let problem = match problem {
                Problem::Unfinished { field, .. } if text.starts_with('ü') => {
                    Problem::Unfinished { field, separator: 'ü' }
                }
                other => other,
            };
            let found = error(text);
            assert_eq!((found.problem, found.rule, found.column), (problem, rule, column), "{text:?}");
        }
    }

    #[test]
    fn errors_of_the_whole() {
        for (text, problem) in [
            ("", Problem::Empty),
            (" \n", Problem::Empty),
            (":prefix:client:trusted.:user.v.:", Problem::ClientNotCovered),
            (":ok:server:::", Problem::ClientNotCovered),
            (":ok:client:::", Problem::ServerNotCovered),
            (":ok:all::user.:", Problem::ServerNotCovered),
        ] {
            assert_eq!(error(text), ParseError::whole(problem), "{text:?}");
        }
        assert_eq!(error(&" ".repeat(MAX_TEXT + 1)).problem, Problem::TooLong);
        assert_eq!(error(&":ok:all:::".repeat(MAX_RULES + 1)).problem, Problem::TooManyRules);
        assert!(":ok:all:::".repeat(MAX_RULES).parse::<XattrMap>().is_ok());
    }

    #[test]
    fn the_mark_stands_below_the_place() {
        let text = "  :ok:all:user.:user.:\n  :bad:al:security.:security.:\n  :ok:all:::";
        let expected = "rule 2, column 31: \"al\" is not a scope; use client, server or all\n    \
                        :bad:al:security.:security.:\n         ^";
        assert_eq!(error(text).to_string(), expected);
    }

    #[test]
    fn a_long_line_is_cut_around_the_mark() {
        let text = format!(":bad:all:{}:x", "é".repeat(500));
        let shown = error(&text).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        let [_, excerpt, mark] = lines[..] else { panic!("{shown}") };
        assert_eq!(mark.chars().count(), 4 + 30 + 1);
        assert_eq!(excerpt.chars().count(), 4 + 30);
        assert!(excerpt.ends_with("é:x"));
    }

    /// Total: no text of separators, names and noise makes it panic, and a map that it takes decides about
    /// every name.
    #[test]
    fn any_text_is_a_map_or_an_error() {
        const PIECES: [&str; 16] = [
            ":", ":", ":", "/", " ", "\n", "ok", "bad", "prefix", "map", "all", "client", "server", "user.",
            "ü", "\0",
        ];
        // A linear congruential generator (Knuth's MMIX): the same texts on every run.
        let mut state = 1_u64;
        let mut next = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        let mut accepted = 0;
        for _ in 0..100_000 {
            let prefix = if next(2) == 0 { ":ok:all:" } else { "" };
            let text: String =
                std::iter::once(prefix).chain((0..next(12)).map(|_| PIECES[next(16)])).collect();
            match text.parse::<XattrMap>() {
                Ok(map) => {
                    accepted += 1;
                    assert!(map.rules.iter().any(|rule| rule.matches_client(b"\xff")), "{text:?}");
                    assert!(map.rules.iter().any(|rule| rule.matches_server(b"\xff")), "{text:?}");
                }
                Err(error) => assert!(error.column <= text.chars().count() + 1, "{text:?}"),
            }
        }
        assert!(accepted > 100, "the generator finds maps too: {accepted}");
    }
}
