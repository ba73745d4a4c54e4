//! Refusals: what the platform will not do, said so that the reader can act on it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the process tells its caller when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for was done.
    Done = 0,
    /// Something went wrong that is not the user's input and not a rule.
    Failed = 1,
    /// The command line or a file is wrong.
    Usage = 2,
    /// A rule forbids it; nothing moved.
    Refused = 3,
}

/// A rule said no. Holds names of columns, sites and rules, never a value from the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The rule that said no: a guardrail's or policy's id, or a check's name, such as
    /// `label-above-clearance`.
    pub rule: String,
    /// What was about to happen, as a full clause: "sending column `sex` to site `cloud`".
    pub what: String,
    /// Why the rule forbids it.
    pub why: String,
    /// What would make it pass.
    pub fix: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "refused: {}: {} (rule `{}`). To make it pass: {}",
            self.what, self.why, self.rule, self.fix
        )
    }
}
