//! Reads `seccomp-policies/`: the grammar of the files as types, inclusion by name, and the checks that need
//! no knowledge of system call numbers.
//!
//! Shared by the build script and by the tests, which look at the rules of every architecture. Knows nothing
//! of BPF.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Architectures that have policies; also the names of their directories.
pub const ARCHITECTURES: [&str; 3] = ["x86_64", "aarch64", "riscv64"];

/// The policies that each architecture has; also the names of their files.
pub const POLICIES: [&str; 4] = ["worker", "broker", "exporter", "follower"];

/// Error of reading or compiling a policy; the text names file and rule.
#[derive(Debug)]
pub struct PolicyError(pub String);

impl std::fmt::Display for PolicyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seccomp policy: {}", self.0)
    }
}

impl std::error::Error for PolicyError {}

/// A number in JSON, or a string with one in hexadecimal (`"0x3d0f00"`).
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(u64),
    Hex(String),
}

impl Number {
    fn value(&self) -> Result<u64, PolicyError> {
        match self {
            Self::Plain(value) => Ok(*value),
            Self::Hex(text) => text
                .strip_prefix("0x")
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .ok_or_else(|| PolicyError(format!("{text:?} is no hexadecimal number (0x...)"))),
        }
    }
}

/// One test of one argument, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConditionText {
    arg: u8,
    name: String,
    bits: u8,
    mask: Option<Number>,
    eq: Option<Number>,
    le: Option<Number>,
    is: String,
}

/// One rule, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    syscall: String,
    #[serde(default)]
    args: Vec<ConditionText>,
    errno: Option<String>,
    why: String,
}

/// A fragment file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FragmentText {
    about: String,
    rules: Vec<RuleText>,
}

/// A policy file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyText {
    about: String,
    include: Vec<String>,
    rules: Vec<RuleText>,
    widenings: BTreeMap<String, WideningText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WideningText {
    why: String,
    include: Vec<String>,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Equal to the value.
    Eq(u64),
    /// Unsigned, at most the value.
    Le(u64),
    /// Equal to the value in the bits of the mask.
    Masked {
        /// Which bits are compared.
        mask: u64,
        /// What they must be.
        eq: u64,
    },
}

/// One test of one argument.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Which argument, from 0.
    pub arg: u8,
    /// Whether the kernel takes all 64 bits of it, or only the low 32.
    pub wide: bool,
    /// What it must be.
    pub comparison: Comparison,
    /// The comparison in words.
    pub is: String,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let the call happen.
    Allow,
    /// Refuse it with this error number.
    Errno(u16),
}

/// One rule: if all of `conditions` hold, `action`.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Names the rule uniquely within its policy: `fragment/syscall:conditions` or `fragment/syscall=ERROR`.
    pub key: String,
    /// The system call's name.
    pub syscall: String,
    /// All must hold; none holds always.
    pub conditions: Vec<Condition>,
    /// What happens then.
    pub action: Action,
}

/// A named set of rules that an option adds.
#[derive(Debug)]
pub struct Widening {
    /// Its name.
    pub name: String,
    /// Which option, and why it needs them.
    pub why: String,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// One policy with its fragments in place.
#[derive(Debug)]
pub struct Policy {
    /// Always in force.
    pub rules: Vec<Rule>,
    /// In force when asked for.
    pub widenings: Vec<Widening>,
    /// Every file that was read, for the build's change tracking and the test for unused ones.
    pub files: BTreeSet<PathBuf>,
}

/// Reads policy `name` of `arch` from the directory `root`.
pub fn load(root: &Path, arch: &str, name: &str) -> Result<Policy, PolicyError> {
    let mut files = BTreeSet::new();
    let text: PolicyText = parse(&root.join(arch).join(format!("{name}.json")), &mut files)?;
    require_text(name, "about", &text.about)?;
    let mut rules = include(root, &text.include, &mut files)?;
    rules.extend(check_all(name, &text.rules)?);
    let widenings = text
        .widenings
        .into_iter()
        .map(|(name, widening)| {
            require_text(&name, "why", &widening.why)?;
            let rules = include(root, &widening.include, &mut files)?;
            Ok(Widening { name, why: widening.why, rules })
        })
        .collect::<Result<Vec<_>, PolicyError>>()?;
    let policy = Policy { rules, widenings, files };
    check_order(&policy)?;
    Ok(policy)
}

fn parse<T: DeserializeOwned>(path: &Path, files: &mut BTreeSet<PathBuf>) -> Result<T, PolicyError> {
    let at = |e: &dyn std::fmt::Display| PolicyError(format!("{}: {e}", path.display()));
    let text = fs::read_to_string(path).map_err(|e| at(&e))?;
    files.insert(path.to_path_buf());
    serde_json::from_str(&text).map_err(|e| at(&e))
}

fn include(root: &Path, names: &[String], files: &mut BTreeSet<PathBuf>) -> Result<Vec<Rule>, PolicyError> {
    let mut rules = Vec::new();
    for name in names {
        let fragment: FragmentText = parse(&root.join("fragments").join(format!("{name}.json")), files)?;
        require_text(name, "about", &fragment.about)?;
        rules.extend(check_all(name, &fragment.rules)?);
    }
    Ok(rules)
}

fn check_all(source: &str, rules: &[RuleText]) -> Result<Vec<Rule>, PolicyError> {
    rules.iter().map(|rule| check_rule(source, rule)).collect()
}

fn check_rule(source: &str, text: &RuleText) -> Result<Rule, PolicyError> {
    require_text(source, &text.syscall, &text.why)?;
    let mut key = format!("{source}/{}", text.syscall);
    let action = match &text.errno {
        None => Action::Allow,
        Some(name) => {
            key.push('=');
            key.push_str(name);
            Action::Errno(errno(name)?)
        }
    };
    for (index, condition) in text.args.iter().enumerate() {
        key.push_str(if index == 0 { ":" } else { ", " });
        key.push_str(&condition.is);
    }
    let conditions = text
        .args
        .iter()
        .map(|condition| check_condition(condition).map_err(|e| PolicyError(format!("{key}: {}", e.0))))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Rule { key, syscall: text.syscall.clone(), conditions, action })
}

fn check_condition(text: &ConditionText) -> Result<Condition, PolicyError> {
    require_text(&text.name, "is", &text.is)?;
    let wide = match text.bits {
        32 => false,
        64 => true,
        other => return Err(PolicyError(format!("an argument has 32 or 64 bits, not {other}"))),
    };
    let comparison = match (&text.mask, &text.eq, &text.le) {
        (None, Some(eq), None) => Comparison::Eq(eq.value()?),
        (None, None, Some(le)) => Comparison::Le(le.value()?),
        (Some(mask), Some(eq), None) => Comparison::Masked { mask: mask.value()?, eq: eq.value()? },
        _ => return Err(PolicyError("one of: eq; le; mask with eq".to_owned())),
    };
    let (mask, value) = match comparison {
        Comparison::Eq(value) | Comparison::Le(value) => (u64::MAX, value),
        Comparison::Masked { mask, eq } => (mask, eq),
    };
    if value & !mask != 0 || (!wide && (value | (mask & value)) > u64::from(u32::MAX)) {
        return Err(PolicyError(format!(
            "{value:#x} can never be equal in {} bits under that mask",
            text.bits
        )));
    }
    Ok(Condition { arg: text.arg, wide, comparison, is: text.is.clone() })
}

/// The error numbers that rules use; the same on all of [`ARCHITECTURES`].
fn errno(name: &str) -> Result<u16, PolicyError> {
    match name {
        "EACCES" => Ok(13),
        "ENOSYS" => Ok(38),
        other => Err(PolicyError(format!("error {other:?} is not in the table of build/policy.rs"))),
    }
}

/// Rules of one call are tried in order, so one without conditions must be its last, and only a refusal may
/// follow rules with conditions: an allowance would make them pointless.
fn check_order(policy: &Policy) -> Result<(), PolicyError> {
    let mut keys = BTreeSet::new();
    let mut decided = BTreeSet::new();
    let mut conditional = BTreeSet::new();
    for rule in policy.rules.iter().chain(policy.widenings.iter().flat_map(|w| &w.rules)) {
        if !keys.insert(&rule.key) {
            return Err(PolicyError(format!("{}: stated twice", rule.key)));
        }
        if decided.contains(&rule.syscall) {
            return Err(PolicyError(format!("{}: an earlier rule decides every such call", rule.key)));
        }
        if !rule.conditions.is_empty() {
            conditional.insert(&rule.syscall);
            continue;
        }
        if rule.action == Action::Allow && conditional.contains(&rule.syscall) {
            return Err(PolicyError(format!("{}: makes the argument tests before it pointless", rule.key)));
        }
        decided.insert(&rule.syscall);
    }
    Ok(())
}

fn require_text(place: &str, what: &str, text: &str) -> Result<(), PolicyError> {
    if text.trim().is_empty() {
        return Err(PolicyError(format!("{place}: {what}: a reason is missing")));
    }
    Ok(())
}
