//! How layers are found: by a hash of all that led to them.

use std::fmt::Write as _;

use warren_types::Isolation;

use crate::app::images::canonical::{self, Hasher};
use crate::app::images::steps::Step;

/// Grows when the same steps come to give another disk.
const VERSION: &str = "warren-layer-1";

/// Of what the steps start from: a template and its digest, or a checkpoint.
pub(super) fn of_base(base: &str, isolation: Isolation) -> String {
    let mut hasher = Hasher::default();
    write!(hasher, "{VERSION}\n{base}\n{isolation}").expect("a hash takes everything");
    hasher.finish()
}

/// Of the state after each step; the first is that of the base.
pub(super) fn chain(base: String, steps: &[Step]) -> Vec<String> {
    let mut keys = vec![base];
    for step in steps {
        let mut hasher = Hasher::default();
        let written = hasher
            .write_str(&keys[keys.len() - 1])
            .and_then(|()| canonical::write(&step.canonical(), &mut hasher));
        written.expect("a hash takes everything");
        keys.push(hasher.finish());
    }
    keys
}

/// The number of steps after which there is the last layer of an image. What comes then is configuration alone.
pub(super) fn last_layer(steps: &[Step]) -> usize {
    let changes = |step: &Step| step.makes_layer() || matches!(step, Step::Workdir { .. });
    steps.iter().rposition(changes).map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str) -> Step {
        Step::Run { commands: vec![command.to_owned()] }
    }

    #[test]
    fn a_key_depends_on_all_that_came_before_and_on_nothing_after() {
        let base = of_base("base sha256:1", Isolation::Container);
        assert_ne!(base, of_base("base sha256:1", Isolation::Vm));
        assert_ne!(base, of_base("base sha256:2", Isolation::Container));
        let one = chain(base.clone(), &[run("a"), run("b")]);
        let other = chain(base.clone(), &[run("a"), run("c")]);
        let swapped = chain(base, &[run("b"), run("a")]);
        assert_eq!(one[..2], other[..2]);
        assert_ne!(one[2], other[2]);
        assert_ne!(one[2], swapped[2]);
    }

    #[test]
    fn configuration_at_the_end_needs_no_layer() {
        let env = Step::Env { vars: Default::default() };
        let workdir = Step::Workdir { path: "/w".into() };
        assert_eq!(last_layer(&[]), 0);
        assert_eq!(last_layer(std::slice::from_ref(&env)), 0);
        assert_eq!(last_layer(&[run("a"), env.clone()]), 1);
        assert_eq!(last_layer(&[run("a"), workdir, env]), 2);
    }
}
