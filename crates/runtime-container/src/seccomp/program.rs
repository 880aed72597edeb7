//! A seccomp filter as a search tree over system call numbers.
//!
//! Classic BPF jumps forward only, and conditional jumps at most 255 instructions; a node is therefore a comparison that
//! either goes on to its left half or takes the unconditional jump behind it to its right half.

pub(crate) use warren_runtime::sys::Instruction;

/// `SECCOMP_RET_…` values.
pub(crate) const ALLOW: u32 = 0x7fff_0000;
pub(crate) const KILL: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO` with `ENOSYS`.
pub(crate) const NO_SUCH_CALL: u32 = 0x0005_0000 | 38;
/// The same with no error: nothing is done, and the caller is told that it was.
pub(crate) const PRETEND: u32 = 0x0005_0000;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const JUMP_IF_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
/// Of an argument; its lower half comes first.
const ARGUMENT_BYTES: u32 = 8;
const UPPER_HALF: u32 = 4;

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Refuse,
    Allow,
    /// Allowed unless its first argument has one of these bits.
    AllowUnlessSet(u32),
    /// Allowed if its first argument is one of these.
    AllowOneOf(&'static [u32]),
    /// Allowed, but only pretended when its argument `of` is that value and its argument `sets`, if it has one, is not null.
    PretendFor {
        of: u32,
        value: u32,
        sets: Option<u32>,
    },
}

pub(super) struct Program {
    architecture: u32,
    /// First number and action of each run of equal actions, from 0 up.
    runs: Vec<(u32, Action)>,
}

impl Program {
    /// Calls that are not among `actions` are refused.
    pub(super) fn new(architecture: u32, mut actions: Vec<(u32, Action)>) -> Self {
        actions.sort_by_key(|(number, _)| *number);
        let mut runs = vec![(0, Action::Refuse)];
        for (number, action) in actions {
            // The refusal that the call before ended with gives way to this one.
            runs.pop_if(|(start, _)| *start == number);
            runs.extend([(number, action), (number + 1, Action::Refuse)]);
        }
        runs.dedup_by_key(|(_, action)| *action);
        Self { architecture, runs }
    }

    pub(super) fn assemble(&self) -> Vec<Instruction> {
        let mut code = vec![
            plain(LOAD, ARCHITECTURE),
            branch(JUMP_IF_EQUAL, self.architecture, 1, 0),
            plain(RETURN, KILL),
            plain(LOAD, NUMBER),
        ];
        code.extend(tree(&self.runs));
        code
    }
}

fn tree(runs: &[(u32, Action)]) -> Vec<Instruction> {
    if let [(_, action)] = runs {
        return leaf(*action);
    }
    let (low, high) = runs.split_at(runs.len() / 2);
    let (low, right) = (tree(low), tree(high));
    let mut code = vec![branch(JUMP_IF_AT_LEAST, high[0].0, 0, 1), jump(low.len())];
    code.extend(low);
    code.extend(right);
    code
}

fn leaf(action: Action) -> Vec<Instruction> {
    let (allow, refuse) = (plain(RETURN, ALLOW), plain(RETURN, NO_SUCH_CALL));
    match action {
        Action::Refuse => vec![refuse],
        Action::Allow => vec![allow],
        Action::AllowUnlessSet(bits) => {
            vec![plain(LOAD, FIRST_ARGUMENT), branch(JUMP_IF_SET, bits, 1, 0), allow, refuse]
        }
        Action::AllowOneOf(values) => {
            let mut code = vec![plain(LOAD, FIRST_ARGUMENT)];
            for (index, value) in values.iter().enumerate() {
                let to_allow = u8::try_from(values.len() - index).expect("lists of arguments are short");
                code.push(branch(JUMP_IF_EQUAL, *value, to_allow, 0));
            }
            code.extend([refuse, allow]);
            code
        }
        Action::PretendFor { of, value, sets } => {
            let pretend = plain(RETURN, PRETEND);
            let mut code = vec![plain(LOAD, lower_half(of)), branch(JUMP_IF_EQUAL, value, 1, 0), allow];
            if let Some(pointer) = sets {
                let half = lower_half(pointer);
                code.extend([
                    plain(LOAD, half),
                    branch(JUMP_IF_EQUAL, 0, 0, 3),
                    plain(LOAD, half + UPPER_HALF),
                    branch(JUMP_IF_EQUAL, 0, 0, 1),
                    allow,
                ]);
            }
            code.push(pretend);
            code
        }
    }
}

/// Where the lower half of an argument is; they are counted from 0.
fn lower_half(argument: u32) -> u32 {
    FIRST_ARGUMENT + argument * ARGUMENT_BYTES
}

fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, value }
}

fn branch(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

fn jump(over: usize) -> Instruction {
    plain(JUMP, u32::try_from(over).expect("a filter has at most 4096 instructions"))
}

/// What the kernel would answer: an interpreter of the instructions above.
#[cfg(test)]
pub(super) fn run(code: &[Instruction], architecture: u32, number: u32, argument: u32) -> u32 {
    run_with(code, architecture, number, &[argument.into()])
}

/// The same with more arguments.
#[cfg(test)]
pub(super) fn run_with(code: &[Instruction], architecture: u32, number: u32, arguments: &[u64]) -> u32 {
    interpret(code, architecture, number, arguments).0
}

#[cfg(test)]
pub(super) fn steps(code: &[Instruction], architecture: u32, number: u32, argument: u32) -> usize {
    interpret(code, architecture, number, &[argument.into()]).1
}

#[cfg(test)]
fn interpret(code: &[Instruction], architecture: u32, number: u32, arguments: &[u64]) -> (u32, usize) {
    let argument = |offset: u32| {
        let whole = arguments.get((offset / ARGUMENT_BYTES) as usize).copied().unwrap_or(0);
        let half = if offset.is_multiple_of(ARGUMENT_BYTES) { whole } else { whole >> 32 };
        u32::try_from(half & u64::from(u32::MAX)).unwrap()
    };
    let (mut at, mut loaded, mut steps) = (0, 0, 0);
    loop {
        let Instruction { code, if_true, if_false, value } = code[at];
        at += 1;
        steps += 1;
        let mut decide = |holds: bool| at += usize::from(if holds { if_true } else { if_false });
        match code {
            LOAD => {
                loaded = match value {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    FIRST_ARGUMENT.. => argument(value - FIRST_ARGUMENT),
                    other => panic!("load from {other}"),
                }
            }
            JUMP => at += value as usize,
            JUMP_IF_EQUAL => decide(loaded == value),
            JUMP_IF_AT_LEAST => decide(loaded >= value),
            JUMP_IF_SET => decide(loaded & value != 0),
            RETURN => return (value, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}
