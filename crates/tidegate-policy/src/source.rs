//! From texts to policies, one by one, each with its place.
//!
//! Cedar reads a whole file at once and numbers what it finds. Here every file is first cut at the
//! `;` that end policies, so that each policy has its own place and an error in it the right line. A
//! cut in the wrong place cannot do harm: what is not one whole policy does not parse.

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Policy, PolicyId};
use serde_json::Value;

use crate::error::PolicyError;

/// The longest text of one file, in bytes.
const MAX_FILE_BYTES: usize = 1 << 20;
/// The most policies in one file.
const MAX_POLICIES: usize = 1000;
/// The deepest nesting of an expression; Cedar's own evaluator has a limit, and hitting it is an error.
const MAX_DEPTH: usize = 100;

/// One policy with its place.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) policy: Policy,
    pub(crate) file: String,
    /// Line where the policy begins, counted from 1.
    pub(crate) line: usize,
    /// The policy's own text, from that line on.
    text: String,
}

impl Rule {
    pub(crate) fn id(&self) -> &str {
        self.policy.id().as_ref()
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.policy
            .annotation(key)
            .map(str::trim)
            .filter(|text| !text.is_empty())
    }

    /// Where in the file the first of a diagnostic's places is, and what it says.
    pub(crate) fn schema_error(&self, error: &DetailedError) -> PolicyError {
        let (line, column) = place(&self.text, self.line, error);
        PolicyError::Schema {
            file: self.file.clone(),
            line,
            column,
            policy: self.id().to_owned(),
            reason: message(error),
        }
    }
}

fn place(text: &str, first_line: usize, error: &DetailedError) -> (usize, usize) {
    let offset = error.source_locations.first().map_or(0, |location| location.loc.start);
    let before = text.get(..offset.min(text.len())).unwrap_or_default();
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (first_line + before.matches('\n').count(), column)
}

fn message(error: &DetailedError) -> String {
    match &error.help {
        Some(help) => format!("{} ({help})", error.message),
        None => error.message.clone(),
    }
}

/// Reads all policies of a file. Only what one policy says by itself is checked here; how it fits the
/// schema is not.
pub(crate) fn read(file: &str, text: &str) -> Result<Vec<Rule>, PolicyError> {
    let too_much = |what, limit| PolicyError::TooMuch {
        file: file.to_owned(),
        what,
        limit,
    };
    if text.len() > MAX_FILE_BYTES {
        return Err(too_much("its length in bytes", MAX_FILE_BYTES));
    }
    let pieces = pieces(text);
    if pieces.len() > MAX_POLICIES {
        return Err(too_much("the number of its policies", MAX_POLICIES));
    }
    pieces
        .into_iter()
        .map(|(line, text)| read_one(file, line, text))
        .collect()
}

fn read_one(file: &str, line: usize, text: &str) -> Result<Rule, PolicyError> {
    let policy = Policy::parse(None, text).map_err(|error| {
        let error = DetailedError::from(&error);
        let (line, column) = place(text, line, &error);
        PolicyError::Syntax {
            file: file.to_owned(),
            line,
            column,
            reason: message(&error),
        }
    })?;
    let usable = |id: &&str| {
        (1..=100).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let Some(id) = policy.annotation("id").filter(usable) else {
        return Err(PolicyError::NoId {
            file: file.to_owned(),
            line,
        });
    };
    let policy = policy.new_id(PolicyId::new(id));
    let rule = Rule {
        policy,
        file: file.to_owned(),
        line,
        text: text.to_owned(),
    };
    check_cannot_fail(&rule)?;
    Ok(rule)
}

/// Cuts a text after every `;` outside of strings and comments. Each piece begins with its first
/// character that is neither white space nor comment; a rest without any is dropped.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    enum In {
        Code,
        Text,
        Comment,
    }
    let (mut found, mut state, mut escaped) = (Vec::new(), In::Code, false);
    let (mut start, mut start_line, mut line) = (None, 1, 1);
    for (at, character) in text.char_indices() {
        match state {
            In::Text => match character {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => state = In::Code,
                _ => {}
            },
            In::Comment if character == '\n' => state = In::Code,
            In::Comment => {}
            In::Code if text.get(at..).is_some_and(|rest| rest.starts_with("//")) => state = In::Comment,
            In::Code if character.is_whitespace() => {}
            In::Code => {
                if start.is_none() {
                    (start, start_line) = (Some(at), line);
                }
                if character == '"' {
                    state = In::Text;
                } else if character == ';' {
                    found.extend(
                        start
                            .take()
                            .and_then(|from| text.get(from..=at))
                            .map(|piece| (start_line, piece)),
                    );
                }
            }
        }
        line += usize::from(character == '\n');
    }
    found.extend(start.and_then(|from| text.get(from..)).map(|piece| (start_line, piece)));
    found
}

/// What the schema's types do not rule out: overflow, attributes of entities that are not part of the
/// question, expressions too deep to evaluate.
fn check_cannot_fail(rule: &Rule) -> Result<(), PolicyError> {
    let may_fail = |reason| PolicyError::MayFail {
        file: rule.file.clone(),
        line: rule.line,
        policy: rule.id().to_owned(),
        reason,
    };
    let tree = rule.policy.to_json().map_err(|_| may_fail("it has no JSON form"))?;
    let conditions = tree.get("conditions").and_then(Value::as_array);
    for condition in conditions.into_iter().flatten() {
        check_expression(condition.get("body").unwrap_or(&Value::Null), 0).map_err(may_fail)?;
    }
    Ok(())
}

/// Walks an expression in Cedar's JSON form: an object whose only key is the operator. Only operators
/// that cannot fail on well-typed operands are let through, so that whatever Cedar learns later, or is
/// built with, is refused until somebody has thought about it.
fn check_expression(expression: &Value, depth: usize) -> Result<(), &'static str> {
    if depth > MAX_DEPTH {
        return Err("it is nested too deeply: split it into several policies");
    }
    let mut entries = expression.as_object().into_iter().flatten();
    let (Some((operator, operands)), None) = (entries.next(), entries.next()) else {
        return Err("it holds an expression of a form that is not known");
    };
    let check = |operand: &Value| check_expression(operand, depth + 1);
    let named = |names: &[&str]| {
        let mut given = names.iter().map(|name| operands.get(name).unwrap_or(&Value::Null));
        given.try_for_each(check)
    };
    match operator.as_str() {
        "Value" | "Var" => Ok(()),
        "!" | "isEmpty" => named(&["arg"]),
        "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "&&" | "||" | "contains" | "containsAll" | "containsAny" => {
            named(&["left", "right"])
        }
        "if-then-else" => named(&["if", "then", "else"]),
        "has" | "like" => named(&["left"]),
        "is" => named(if operands.get("in").is_some() {
            &["left", "in"]
        } else {
            &["left"]
        }),
        "Set" => operands.as_array().into_iter().flatten().try_for_each(check),
        "Record" => operands
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.values())
            .try_for_each(check),
        "." if starts_at_variable(operands.get("left")) => named(&["left"]),
        "." => Err(
            "it reads an attribute of something that may not be part of the question: begin with `principal`, \
             `resource` or `context`",
        ),
        "+" | "-" | "*" | "neg" => Err("arithmetic may overflow: compare with a number written out instead"),
        _ => Err("it calls a function that is not offered, such as those over addresses, decimals and times"),
    }
}

/// Whether a chain of attributes begins with a variable.
fn starts_at_variable(mut expression: Option<&Value>) -> bool {
    while let Some(inner) = expression {
        if inner.get("Var").is_some() {
            return true;
        }
        expression = inner.get(".").and_then(|access| access.get("left"));
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pieces_know_their_lines() {
        let text =
            "// a; b\n@id(\"a;\\\";\") // c;\npermit(principal, action, resource);\n\n\nforbid (x) ; rest // no end";
        let found: Vec<_> = pieces(text)
            .into_iter()
            .map(|(line, piece)| (line, piece.len()))
            .collect();
        assert_eq!(found.len(), 3);
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 6, 6]);
        assert!(pieces("  // only a comment\n").is_empty());
    }

    #[test]
    fn only_what_cannot_fail_is_let_through() {
        let check = |condition: &str| {
            let text = format!("@id(\"x\")\nforbid (principal, action, resource) when {{ {condition} }};");
            read("own.cedar", &text).map(|_| ())
        };
        for good in [
            "principal.clearance.level > 1 && context[\"from\"].kind == \"private\"",
            "!(principal is Site) || principal in [Site::\"cloud\"] || resource.label.tags.isEmpty()",
            "if resource has lowered_from then resource.lowered_from.level != -1 else resource.name like \"a*\"",
            "context has evidence.k && [context.evidence.k].contains(5)",
            "principal is Site in Site::\"cloud\"",
        ] {
            check(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in [
            "Site::\"cloud\".kind == \"public\"",
            "(if context.run_network then principal else context.from).kind == \"public\"",
            "resource.label.level + 1 > 2",
            "resource.label.level * 2 > 2",
            "-resource.label.level < 0",
            "[1, resource.label.level - 1].contains(1)",
            "{a: Site::\"x\".kind}.a == \"public\"",
            "ip(\"10.0.0.1\").isLoopback()",
            "decimal(\"1.5\").lessThan(decimal(\"2.5\"))",
            "datetime(\"2026-01-01\").offset(duration(\"1d\")) > datetime(\"2026-01-01\")",
            "[decimal(\"1.5\")].contains(decimal(\"1.5\"))",
            "resource.hasTag(\"x\")",
        ] {
            assert!(
                matches!(check(bad), Err(PolicyError::MayFail { line: 1, .. })),
                "{bad}: {:?}",
                check(bad)
            );
        }
    }
}
