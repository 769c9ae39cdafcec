//! The compiled programs of all three architectures, in an interpreter.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use seccompiler::{BpfProgram, sock_filter};

use crate::bpf::{Call, Outcome, audit_arch, is_cached, run};
use crate::cases::{CASES, Mutant, pad};
use crate::compile::Compiler;
use crate::policy::{self, ARCHITECTURES, Action, Comparison, POLICIES, Policy, Rule};
use crate::tree;

/// Where the policies are.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../seccomp-policies")
}

/// One policy of one architecture, with one of its widenings or none.
struct Setup {
    name: String,
    arch: &'static str,
    compiler: Compiler,
    base: Vec<Rule>,
    extra: Vec<Rule>,
}

impl Setup {
    fn all() -> Vec<Self> {
        let mut setups = Vec::new();
        for arch in ARCHITECTURES {
            for policy in POLICIES {
                let Policy { rules, widenings, .. } = policy::load(&root(), arch, policy).unwrap();
                let new = |suffix: &str, extra: Vec<Rule>| Self {
                    name: format!("{arch}/{policy}{suffix}"),
                    arch,
                    compiler: Compiler::new(arch).unwrap(),
                    base: rules.clone(),
                    extra,
                };
                setups.push(new("", Vec::new()));
                setups.extend(widenings.iter().map(|w| new(&format!("+{}", w.name), w.rules.clone())));
            }
        }
        setups
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.base.iter().chain(&self.extra)
    }

    /// As `sandbox::seccomp` joins it; without the rule `omit`.
    fn program(&self, omit: Option<&str>) -> BpfProgram {
        let keep = |rules: &[Rule]| -> Vec<Rule> {
            rules.iter().filter(|rule| Some(rule.key.as_str()) != omit).cloned().collect()
        };
        let prologue = self.compiler.prologue().unwrap();
        let mut blocks = self.compiler.blocks(&keep(&self.base)).unwrap();
        blocks.extend(self.compiler.blocks(&keep(&self.extra)).unwrap());
        let default = sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_KILL_PROCESS };
        tree::join(&prologue, &blocks, &default)
    }

    fn call(&self, syscall: &str, args: [u64; 6]) -> Call {
        let number = self.compiler.call_number(syscall).unwrap();
        Call { arch: audit_arch(self.arch), number, args }
    }

    /// What the rules say, read straight from them.
    fn model(&self, syscall: &str, args: [u64; 6]) -> Outcome {
        self.rules()
            .find(|rule| rule.syscall == syscall && rule.conditions.iter().all(|c| holds(c, args)))
            .map_or(Outcome::Kill, outcome)
    }
}

fn holds(condition: &policy::Condition, args: [u64; 6]) -> bool {
    let arg = args[usize::from(condition.arg)];
    let arg = if condition.wide { arg } else { arg & u64::from(u32::MAX) };
    match condition.comparison {
        Comparison::Eq(value) => arg == value,
        Comparison::Le(value) => arg <= value,
        Comparison::Masked { mask, eq } => arg & mask == eq,
    }
}

/// The outcome that a rule is for.
pub fn outcome(rule: &Rule) -> Outcome {
    match rule.action {
        Action::Allow => Outcome::Allow,
        Action::Errno(number) => Outcome::Errno(number),
    }
}

#[test]
fn every_rule_has_a_case_and_every_case_a_rule() {
    let rules: BTreeSet<String> =
        Setup::all().iter().flat_map(|s| s.rules().map(|r| r.key.clone()).collect::<Vec<_>>()).collect();
    let cases: BTreeSet<String> = CASES.iter().map(|case| case.rule.to_owned()).collect();
    assert_eq!(cases.len(), CASES.len(), "a rule has two cases");
    assert_eq!(rules, cases);
}

/// No file is read by none of the policies, or by those of some architectures only.
#[test]
fn every_file_is_used_on_every_architecture() {
    for arch in ARCHITECTURES {
        let used: BTreeSet<PathBuf> =
            POLICIES.iter().flat_map(|policy| policy::load(&root(), arch, policy).unwrap().files).collect();
        let present: BTreeSet<PathBuf> = ["fragments", arch]
            .iter()
            .flat_map(|directory| fs::read_dir(root().join(directory)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(used, present);
    }
}

/// Files that contradict themselves don't get into a build.
#[test]
fn mistakes_in_policies_are_refused() {
    let one = |rules: &str| {
        let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mistakes");
        fs::create_dir_all(root.join("x86_64")).unwrap();
        let text = format!(r#"{{"about": "a", "include": [], "rules": [{rules}], "widenings": {{}}}}"#);
        fs::write(root.join("x86_64/worker.json"), text).unwrap();
        let policy = policy::load(&root, "x86_64", "worker")?;
        Compiler::new("x86_64")?.blocks(&policy.rules).map(|_| ())
    };
    let condition = |test: &str| {
        format!(
            r#"{{"syscall": "prctl", "why": "w", "args": [{{"arg": 0, "name": "n", "is": "i", {test}}}]}}"#
        )
    };
    let good = condition(r#""bits": 32, "eq": 15"#);
    one(&good).unwrap();
    let plain = r#"{"syscall": "prctl", "why": "w"}"#.to_owned();
    for (rules, complaint) in [
        (r#"{"syscall": "prctl", "why": " "}"#.to_owned(), "a reason is missing"),
        (r#"{"syscall": "prctl"}"#.to_owned(), "missing field `why`"),
        (r#"{"syscall": "no_such_call", "why": "w"}"#.to_owned(), "no_such_call"),
        (r#"{"syscall": "prctl", "why": "w", "errno": "EWHAT"}"#.to_owned(), "EWHAT"),
        (r#"{"syscall": "prctl", "why": "w", "comment": "c"}"#.to_owned(), "unknown field `comment`"),
        (format!("{good}, {good}"), "stated twice"),
        (format!("{good}, {plain}"), "pointless"),
        (format!("{plain}, {good}"), "an earlier rule decides"),
        (condition(r#""bits": 16, "eq": 1"#), "32 or 64 bits"),
        (condition(r#""bits": 32, "eq": 1, "le": 1"#), "one of: eq; le; mask with eq"),
        (condition(r#""bits": 32, "mask": 1"#), "one of: eq; le; mask with eq"),
        (condition(r#""bits": 32, "mask": 1, "eq": 2"#), "never be equal"),
        (condition(r#""bits": 32, "eq": "0x100000000""#), "never be equal"),
        (condition(r#""bits": 32, "eq": "15""#), "no hexadecimal number"),
    ] {
        let error = one(&rules).unwrap_err().to_string();
        assert!(error.contains(complaint), "{rules}: {error}");
    }
}

#[test]
fn every_rule_is_needed_and_its_mutant_does_not_pass() {
    for setup in Setup::all() {
        let whole = setup.program(None);
        for rule in setup.rules() {
            let case = CASES.iter().find(|case| case.rule == rule.key).unwrap();
            let call = setup.call(&rule.syscall, pad(case.call));
            assert_eq!(run(&whole, &call).0, outcome(rule), "{} {}", setup.name, rule.key);

            let without = setup.program(Some(&rule.key));
            assert_ne!(run(&without, &call).0, outcome(rule), "{} {}: redundant", setup.name, rule.key);

            let mutant = match case.mutant {
                Mutant::Same(args) => setup.call(&rule.syscall, pad(args)),
                Mutant::Other(syscall, args) => setup.call(syscall, pad(args)),
            };
            assert_ne!(run(&whole, &mutant).0, Outcome::Allow, "{} {}: mutant", setup.name, rule.key);
        }
    }
}

/// All arguments of a rule's call, one bit flipped at a time, judged by the program and by the rules.
#[test]
fn programs_agree_with_the_rules_on_every_bit() {
    for setup in Setup::all() {
        let program = setup.program(None);
        for rule in setup.rules() {
            let case = CASES.iter().find(|case| case.rule == rule.key).unwrap();
            for start in [pad(case.call), [0; 6], [u64::MAX; 6]] {
                for bit in 0..6 * 64 {
                    let mut args = start;
                    args[bit / 64] ^= 1 << (bit % 64);
                    let call = setup.call(&rule.syscall, args);
                    let expected = setup.model(&rule.syscall, args);
                    assert_eq!(run(&program, &call).0, expected, "{} {} {args:x?}", setup.name, rule.key);
                }
            }
        }
    }
}

#[test]
fn all_other_numbers_and_architectures_die() {
    for setup in Setup::all() {
        let program = setup.program(None);
        let known: BTreeSet<u32> =
            setup.rules().map(|rule| setup.compiler.call_number(&rule.syscall).unwrap()).collect();
        let arch = audit_arch(setup.arch);
        for args in [[0; 6], [u64::MAX; 6]] {
            for number in (0..1024).chain([u32::MAX]).filter(|number| !known.contains(number)) {
                assert_eq!(run(&program, &Call { arch, number, args }).0, Outcome::Kill, "{}", setup.name);
            }
            for &number in &known {
                let x32 = Call { arch, number: number | 0x4000_0000, args };
                assert_eq!(run(&program, &x32).0, Outcome::Kill, "{}", setup.name);
                for foreign in [0x4000_0003, 0x4000_0028].into_iter().chain(ARCHITECTURES.map(audit_arch)) {
                    let call = Call { arch: foreign, number, args };
                    assert!(foreign == arch || run(&program, &call).0 == Outcome::Kill, "{}", setup.name);
                }
            }
        }
    }
}

/// The hot path costs no BPF.
#[test]
fn calls_without_argument_tests_are_cached() {
    for setup in Setup::all() {
        let program = setup.program(None);
        for rule in setup.rules().filter(|rule| rule.action == Action::Allow) {
            let number = setup.compiler.call_number(&rule.syscall).unwrap();
            let cached = is_cached(&program, audit_arch(setup.arch), number);
            assert_eq!(cached, rule.conditions.is_empty(), "{} {}", setup.name, rule.key);
        }
        if setup.name.contains("/worker") {
            for call in ["openat", "statx", "pread64", "pwrite64", "preadv2", "pwritev2", "close"] {
                let number = setup.compiler.call_number(call).unwrap();
                assert!(is_cached(&program, audit_arch(setup.arch), number), "{} {call}", setup.name);
            }
        }
        assert!(program.len() < 400, "{}: {} instructions", setup.name, program.len());
        // The kernel runs the program for every number that there is when the filter is attached.
        let arch = audit_arch(setup.arch);
        let steps: usize = (0..450).map(|number| run(&program, &Call { arch, number, args: [0; 6] }).1).sum();
        assert!(steps < 450 * 25, "{}: {steps} steps for 450 calls", setup.name);
    }
}

#[test]
fn the_worker_has_at_most_sixty_calls_by_default() {
    for arch in ARCHITECTURES {
        let policy = policy::load(&root(), arch, "worker").unwrap();
        let calls: BTreeSet<_> = policy
            .rules
            .iter()
            .filter(|rule| rule.action == Action::Allow)
            .map(|rule| rule.syscall.as_str())
            .collect();
        assert!(calls.len() <= 60, "{arch}: {} calls", calls.len());
    }
}

/// The library's own program, made by the build script, is the one that the tests above looked at.
#[test]
fn the_library_has_the_tested_programs() {
    use sandbox::seccomp::{self, Mode};
    for (policy, name) in [
        (seccomp::Policy::Worker, "worker"),
        (seccomp::Policy::Broker, "broker"),
        (seccomp::Policy::Exporter, "exporter"),
        (seccomp::Policy::Follower, "follower"),
    ] {
        let prefix = format!("{}/{name}", std::env::consts::ARCH);
        let setups: Vec<_> = Setup::all().into_iter().filter(|s| s.name.starts_with(&prefix)).collect();
        let whys = policy::load(&root(), std::env::consts::ARCH, name).unwrap().widenings;
        let whys: Vec<_> = whys.iter().map(|w| (w.name.as_str(), w.why.as_str())).collect();
        assert_eq!(whys, policy.widenings().collect::<Vec<_>>());
        assert_eq!(setups.len(), 1 + whys.len());
        for setup in setups {
            let extra: Vec<&str> = setup.name.split('+').skip(1).collect();
            let program = seccomp::program(policy, Mode::Kill, &extra).unwrap().unwrap();
            assert_eq!(program, setup.program(None), "{}", setup.name);
        }
    }
}
