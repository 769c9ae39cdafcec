//! Compiles rules to BPF with seccompiler, for any of the architectures.
//!
//! A program is put together when the filter is applied (`src/seccomp/tree.rs`), from a prologue (wrong architecture →
//! kill; load the call's number) and blocks, one a rule, in this order:
//!
//! ```text
//! rules with conditions, as written       (openat first: the hot path's only one)
//! refusals without conditions
//! allowances without conditions           (the kernel caches these: no BPF runs for them)
//! the same of each widening in force
//! ```
//!
//! A block leaves the call's number in the accumulator when it does not match, so blocks can be joined in any
//! order that respects [`crate::policy`]'s rule: of one call's, the first match decides. seccompiler's own program layout has one
//! action for all matches and sorts by call number; only its rules are used here.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use crate::policy::{Action, Comparison, Condition, PolicyError, Rule};

const LOAD_CALL_NUMBER: sock_filter = sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Compiles for one architecture.
pub struct Compiler {
    arch: TargetArch,
    numbers: RefCell<HashMap<String, u32>>,
}

impl Compiler {
    /// For the architecture of this name.
    pub fn new(arch: &str) -> Result<Self, PolicyError> {
        let arch = TargetArch::try_from(arch).map_err(|e| PolicyError(e.to_string()))?;
        Ok(Self { arch, numbers: RefCell::default() })
    }

    /// What every program begins with.
    pub fn prologue(&self) -> Result<BpfProgram, PolicyError> {
        let empty = SeccompFilter::new(BTreeMap::new(), SeccompAction::Trap, SeccompAction::Allow, self.arch)
            .map_err(|e| PolicyError(e.to_string()))?;
        let mut program = BpfProgram::try_from(empty).map_err(|e| PolicyError(e.to_string()))?;
        // The empty filter is the architecture check and a return of the default action.
        program.pop();
        program.push(LOAD_CALL_NUMBER);
        Ok(program)
    }

    /// The blocks of `rules`, joined in the order that the module describes.
    pub fn blocks(&self, rules: &[Rule]) -> Result<BpfProgram, PolicyError> {
        let rank = |rule: &Rule| match (rule.conditions.is_empty(), rule.action) {
            (false, _) => 0,
            (true, Action::Errno(_)) => 1,
            (true, Action::Allow) => 2,
        };
        let mut sorted: Vec<&Rule> = rules.iter().collect();
        sorted.sort_by_key(|rule| rank(rule));
        let mut program = BpfProgram::new();
        for rule in sorted {
            program.extend(self.block(rule)?);
        }
        Ok(program)
    }

    fn block(&self, rule: &Rule) -> Result<BpfProgram, PolicyError> {
        let mut body = BpfProgram::new();
        if !rule.conditions.is_empty() {
            let conditions = rule.conditions.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
            body = SeccompRule::new(conditions).map_err(|e| PolicyError(e.to_string()))?.into();
        }
        let action = match rule.action {
            Action::Allow => SeccompAction::Allow,
            Action::Errno(number) => SeccompAction::Errno(u32::from(number)),
        };
        // A rule of seccompiler's jumps to just behind the instruction that follows it when it does not match.
        body.push(sock_filter { code: RETURN, jt: 0, jf: 0, k: action.into() });
        if !rule.conditions.is_empty() {
            body.push(LOAD_CALL_NUMBER);
        }
        let skip = u8::try_from(body.len())
            .map_err(|_| PolicyError(format!("{}: too many conditions for one jump", rule.key)))?;
        let number = self.call_number(&rule.syscall)?;
        let mut block = vec![sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: skip, k: number }];
        block.extend(body);
        Ok(block)
    }

    /// The number of a system call of this architecture.
    pub fn call_number(&self, syscall: &str) -> Result<u32, PolicyError> {
        if let Some(&number) = self.numbers.borrow().get(syscall) {
            return Ok(number);
        }
        let number = self.ask_seccompiler(syscall)?;
        self.numbers.borrow_mut().insert(syscall.to_owned(), number);
        Ok(number)
    }

    /// seccompiler keeps its tables private, but a filter of one rule shows the number: it is what the first
    /// instruction behind the prologue compares with.
    fn ask_seccompiler(&self, syscall: &str) -> Result<u32, PolicyError> {
        let text = format!(
            r#"{{"one": {{"mismatch_action": "trap", "match_action": "allow", "filter": [{{"syscall": {syscall:?}}}]}}}}"#
        );
        let unknown = |e: &dyn std::fmt::Display| PolicyError(format!("{syscall}: {e}"));
        let programs = seccompiler::compile_from_json(text.as_bytes(), self.arch).map_err(|e| unknown(&e))?;
        let behind_prologue = self.prologue()?.len();
        programs
            .get("one")
            .and_then(|program| program.get(behind_prologue))
            .filter(|instruction| instruction.code == JUMP_IF_EQUAL)
            .map(|instruction| instruction.k)
            .ok_or_else(|| unknown(&"seccompiler's program has another shape than expected"))
    }
}

fn condition(condition: &Condition) -> Result<SeccompCondition, PolicyError> {
    let (operator, value) = match condition.comparison {
        Comparison::Eq(value) => (SeccompCmpOp::Eq, value),
        Comparison::Le(value) => (SeccompCmpOp::Le, value),
        Comparison::Masked { mask, eq } => (SeccompCmpOp::MaskedEq(mask), eq),
    };
    let length = if condition.wide { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
    SeccompCondition::new(condition.arg, length, operator, value)
        .map_err(|e| PolicyError(format!("{}: {e}", condition.is)))
}
