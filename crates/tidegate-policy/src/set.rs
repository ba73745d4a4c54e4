//! The set of all policies, and its answers.

use std::collections::BTreeMap;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{
    AuthorizationError, Authorizer, Decision, PolicySet as CedarSet, Schema, ValidationMode, Validator,
};
use serde::Serialize;
use tidegate_types::{Digest, Refusal, to_canonical_json};

use crate::error::PolicyError;
use crate::question::Question;
use crate::source::{self, Rule};

const SCHEMA: &str = include_str!("cedar/tidegate.cedarschema");
const GUARDRAILS: &str = include_str!("cedar/guardrails.cedar");
/// The file name of the locked rules, as errors and the digest write it.
const GUARDRAILS_FILE: &str = "guardrails.cedar";
/// The rule that a refusal names when no policy said no, but none could be asked properly.
const NOT_ANSWERED: &str = "policy-not-answered";

/// The locked guardrails and an organisation's own policies, checked and ready to answer.
#[derive(Debug, Clone)]
pub struct PolicySet {
    schema: Schema,
    policies: CedarSet,
    /// All rules, guardrails first, in the order of their texts.
    rules: Vec<Rule>,
    digest: Digest,
}

/// What the digest is over.
#[derive(Serialize)]
struct Texts<'a> {
    schema: &'a str,
    guardrails: &'a str,
    own: BTreeMap<&'a str, &'a str>,
}

impl PolicySet {
    /// Loads the guardrails and the organisation's own policies: file names and texts, in any order.
    ///
    /// Own policies need `@id("…")`, unique over all files. `@why("…")` and `@fix("…")` are shown in
    /// refusals. An own `permit` is accepted and changes nothing: what no rule forbids is permitted
    /// already, and what a guardrail forbids stays forbidden.
    ///
    /// # Errors
    /// When a text is not Cedar, does not fit the schema strictly, could raise an error when it is
    /// asked, or its id is missing or taken. Then no policy of any file counts.
    pub fn load(own: &[(String, String)]) -> Result<Self, PolicyError> {
        Self::assemble(GUARDRAILS, own)
    }

    fn assemble(guardrails: &str, own: &[(String, String)]) -> Result<Self, PolicyError> {
        let built_in = |error: PolicyError| PolicyError::BuiltIn(error.to_string());
        let mut texts = BTreeMap::new();
        for (file, text) in own {
            if texts.insert(file.as_str(), text.as_str()).is_some() {
                return Err(PolicyError::SameFile { file: file.clone() });
            }
        }
        let mut rules = source::read(GUARDRAILS_FILE, guardrails).map_err(built_in)?;
        let locked = rules.len();
        for (file, text) in &texts {
            rules.extend(source::read(file, text)?);
        }

        let schema: Schema = SCHEMA
            .parse()
            .map_err(|error| PolicyError::BuiltIn(format!("schema: {error}")))?;
        let validator = Validator::new(schema.clone());
        let mut policies = CedarSet::new();
        for (at, rule) in rules.iter().enumerate() {
            add(rule, &rules, &validator, &mut policies)
                .map_err(|error| if at < locked { built_in(error) } else { error })?;
        }
        let digest = digest(&Texts {
            schema: SCHEMA,
            guardrails,
            own: texts,
        })?;
        Ok(Self {
            schema,
            policies,
            rules,
            digest,
        })
    }

    /// SHA-256 over the canonical JSON of the schema, the guardrails and the own texts by file name:
    /// what a permit names.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The ids of all rules, guardrails first.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.rules.iter().map(|rule| rule.id().to_owned()).collect()
    }

    /// Answers a question.
    ///
    /// # Errors
    /// The refusal by the first rule that says no, guardrails first. Also when the question could not
    /// be put or an error came up while answering: doubt is a no.
    pub fn decide(&self, question: &Question<'_>) -> Result<(), Refusal> {
        self.refusals(question).into_iter().next().map_or(Ok(()), Err)
    }

    /// The refusals by all rules that say no, guardrails first: everything that would have to change
    /// before the answer is yes. Empty when the answer is yes.
    #[must_use]
    pub fn refusals(&self, question: &Question<'_>) -> Vec<Refusal> {
        let what = question.what();
        let unanswered = |why: String| Refusal {
            rule: NOT_ANSWERED.to_owned(),
            what: what.clone(),
            why,
            fix: "this is a defect of the product or of a policy file: run `tidegate check` and report what it says"
                .to_owned(),
        };
        let Ok((request, entities)) = question.to_cedar(&self.schema) else {
            return vec![unanswered("the question does not fit the policies' schema".to_owned())];
        };
        let answer = Authorizer::new().is_authorized(&request, &self.policies, &entities);
        let failed: Vec<String> = answer
            .diagnostics()
            .errors()
            .map(|AuthorizationError::PolicyEvaluationError(error)| error.policy_id().to_string())
            .collect();
        let denied_by = |rule: &&Rule| {
            answer.decision() == Decision::Deny && answer.diagnostics().reason().any(|id| id == rule.policy.id())
        };
        let mut refusals: Vec<Refusal> = self
            .rules
            .iter()
            .filter(denied_by)
            .map(|rule| Refusal {
                rule: rule.id().to_owned(),
                what: what.clone(),
                why: rule
                    .annotation("why")
                    .unwrap_or("a policy of the organisation forbids it")
                    .to_owned(),
                fix: rule.annotation("fix").map_or_else(
                    || format!("ask whoever keeps the policy at {}:{}", rule.file, rule.line),
                    str::to_owned,
                ),
            })
            .collect();
        if !failed.is_empty() {
            refusals.push(unanswered(format!(
                "these policies failed when they were asked: {}",
                failed.join(", ")
            )));
        } else if answer.decision() == Decision::Deny && refusals.is_empty() {
            refusals.push(unanswered("no policy permits it".to_owned()));
        }
        refusals
    }
}

/// Adds a rule after checking it against the schema and all rules before it.
fn add(rule: &Rule, rules: &[Rule], validator: &Validator, policies: &mut CedarSet) -> Result<(), PolicyError> {
    if policies.add(rule.policy.clone()).is_err() {
        let first = rules.iter().find(|other| other.id() == rule.id());
        return Err(PolicyError::SameId {
            file: rule.file.clone(),
            line: rule.line,
            policy: rule.id().to_owned(),
            first: first.map_or_else(String::new, |first| format!("{}:{}", first.file, first.line)),
        });
    }
    // One at a time, so that a place in the text is a place in this text.
    let alone =
        CedarSet::from_policies([rule.policy.clone()]).map_err(|error| PolicyError::BuiltIn(error.to_string()))?;
    let result = validator.validate(&alone, ValidationMode::Strict);
    // A warning says that a policy can never apply, or looks like another text than it is.
    let errors = result.validation_errors().map(DetailedError::from);
    let warnings = result.validation_warnings().map(DetailedError::from);
    // In the order of their words, because the validator looks at the actions in an order of its own.
    match errors.chain(warnings).min_by_key(|error| error.message.clone()) {
        Some(error) => Err(rule.schema_error(&error)),
        None => Ok(()),
    }
}

fn digest(texts: &Texts<'_>) -> Result<Digest, PolicyError> {
    let json = to_canonical_json(texts).map_err(|error| PolicyError::BuiltIn(error.to_string()))?;
    let mut bytes = [0; 32];
    bytes.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &json).as_ref());
    Ok(Digest::from_bytes(bytes))
}

#[cfg(test)]
mod tests;
