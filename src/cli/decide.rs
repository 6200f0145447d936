//! What the user decides: read from `--decide PROBLEM=CHOICE`, or asked for on a terminal.
//!
//! Invariant: nothing is ever decided for the user. An empty answer, an unknown one and the end of the input all
//! leave the matter as it is, and without a terminal nobody is asked.

use std::io::{self, BufRead, IsTerminal as _, Write};

use instar_abi::choice::{Decision, Decisions};
use instar_abi::problem::Problem;

use crate::heal::option_of;
use crate::report::{Tally, units::counted};

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 256;

/// Reads one `--decide`.
///
/// # Errors
/// What would have been understood.
pub fn parse(text: &str) -> Result<Decision, String> {
    let (problem, choice) = text.split_once('=').unwrap_or((text, ""));
    let of_problem: Vec<Decision> =
        Decision::ALL.iter().copied().filter(|decision| decision.problem().row().id == problem).collect();
    let chosen = of_problem.iter().find(|decision| decision.id() == choice);
    chosen.copied().ok_or_else(|| {
        let listed = if of_problem.is_empty() { Decision::ALL } else { &of_problem };
        let options: Vec<_> = listed.iter().map(|decision| option_of(*decision)).collect();
        format!("there is no such decision; there are {}", options.join(", "))
    })
}

/// Whether somebody can be asked.
#[must_use]
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks about everything among the findings that is to be decided and is not yet.
///
/// # Errors
/// Those of the terminal.
pub fn ask(found: &Tally, made: Decisions) -> io::Result<Decisions> {
    ask_at(found, made, &mut io::stdin().lock(), &mut io::stderr().lock())
}

fn ask_at(
    found: &Tally,
    made: Decisions,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
) -> io::Result<Decisions> {
    let mut made = made;
    for row in found.rows() {
        let mut options = options_of(row.problem);
        options.retain(|option| row.allows(*option));
        if options.is_empty() || options.iter().any(|option| made.has(*option)) {
            continue;
        }
        let items = counted(row.items, "item", "items");
        writeln!(output, "{}: {items}. {}", row.problem.row().id, row.problem.row().meaning)?;
        for (at, option) in options.iter().enumerate() {
            writeln!(output, "  {}  {}: {}", at + 1, option.id(), option.sentence())?;
        }
        write!(output, "Number, or nothing to leave it as it is: ")?;
        output.flush()?;
        let mut answer = String::new();
        io::Read::take(&mut *input, ANSWER_BYTES_MAX).read_line(&mut answer)?;
        let number = answer.trim().parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        match number.and_then(|at| options.get(at)) {
            Some(option) => made = made.with(*option),
            None => writeln!(output, "left as it is")?,
        }
    }
    Ok(made)
}

/// What can be decided about a problem.
#[must_use]
pub fn options_of(problem: Problem) -> Vec<Decision> {
    Decision::ALL.iter().copied().filter(|decision| decision.problem() == problem).collect()
}

#[cfg(test)]
mod tests {
    use instar_abi::finding::Finding;
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn decisions_are_read_and_others_answered_with_those_that_there_are() {
        for decision in Decision::ALL {
            assert_eq!(parse(&option_of(*decision)), Ok(*decision));
        }
        let error = parse("orphan-table=burn").unwrap_err();
        assert!(
            error.contains("orphan-table=free, orphan-table=attach") && !error.contains("orphan-data"),
            "{error}"
        );
        for text in ["orphan", "", "=", "orphan-data"] {
            assert!(parse(text).unwrap_err().contains("orphan-data=free"), "{text}");
        }
    }

    fn asked(answers: &str) -> (Decisions, String) {
        let mut found = Tally::default();
        for problem in [Problem::OrphanTable, Problem::OrphanData, Problem::RefcountLeak] {
            found.add(problem, &Finding::new_zeroed());
        }
        let mut said = Vec::new();
        let made = ask_at(&found, Decisions::default(), &mut answers.as_bytes(), &mut said).unwrap();
        (made, String::from_utf8(said).unwrap())
    }

    #[test]
    fn answers_decide_and_everything_else_leaves_it_as_it_is() {
        let (made, said) = asked("\n\n");
        assert_eq!(made, Decisions::default());
        assert!(said.contains("orphan-data: 1 item.") && !said.contains("refcount-leak"), "{said}");
        for answers in ["", "0\n", "9\n9\n", "free\n", "-1\n"] {
            assert_eq!(asked(answers).0, Decisions::default(), "{answers:?}");
        }
        assert_ne!(asked("1\n1\n").0, Decisions::default());
    }
}
