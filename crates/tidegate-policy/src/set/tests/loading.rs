//! What an organisation may write, and what it hears otherwise.

use super::fixture::{Case, guardrails, own};
use crate::{PolicyError, PolicySet};

fn load(text: &str) -> Result<PolicySet, PolicyError> {
    PolicySet::load(&own(&[text]))
}

#[test]
fn an_own_rule_refuses_in_its_own_words() {
    let text = "\n@id(\"no-tuesdays\")\n@why(\"nothing leaves in the test\")\n@fix(\"wait\")\nforbid (principal == Site::\"cloud\", action, resource);\n";
    let policies = load(text).unwrap();
    let refusal = Case::dataset().decide(&policies).unwrap_err();
    assert_eq!(
        (refusal.rule.as_str(), refusal.why.as_str(), refusal.fix.as_str()),
        ("no-tuesdays", "nothing leaves in the test", "wait")
    );
    assert_eq!(Case::bundle().decide(&policies), Ok(()));
    assert_eq!(policies.names().last().map(String::as_str), Some("no-tuesdays"));

    let refusal = Case::dataset().decide(&load("@id(\"quiet\") forbid (principal, action, resource);").unwrap());
    assert_eq!(
        refusal.unwrap_err().fix,
        "ask whoever keeps the policy at own0.cedar:1",
        "a rule without words still leads somewhere"
    );
}

#[test]
fn an_own_permit_opens_nothing() {
    let policies = load("@id(\"open\") permit (principal, action, resource);").unwrap();
    let case = Case::dataset().with(|case| case.evidence = None);
    assert_eq!(case.denied_by(&policies), ["k-not-measured"]);
}

#[test]
fn what_could_fail_or_never_apply_is_refused_with_its_place() {
    let forbid = |condition: &str| {
        format!("// a comment\n@id(\"x\")\nforbid (principal, action, resource)\nwhen {{ {condition} }};")
    };
    let texts = [
        ("an optional attribute without `has`", forbid("context.evidence.k < 10")),
        ("an attribute that there is not", forbid("resource.size > 3")),
        (
            "a comparison of two types",
            forbid("resource.label.level == \"public\""),
        ),
        ("a condition that is never true", forbid("resource is Site")),
        ("arithmetic", forbid("resource.label.level + 1 > 2")),
        (
            "an entity that is not asked about",
            forbid("Site::\"cloud\".kind == \"public\""),
        ),
        (
            "an unknown action",
            "\n\n@id(\"x\") forbid (principal, action == Action::\"send\", resource);".to_owned(),
        ),
        ("an extension", forbid("ip(\"10.0.0.1\").isLoopback()")),
        (
            "a template",
            "@id(\"x\") forbid (principal == ?principal, action, resource);".to_owned(),
        ),
        (
            "no Cedar",
            "@id(\"x\")\nforbid (principal, action resource);".to_owned(),
        ),
        (
            "half a policy",
            "@id(\"x\") forbid (principal, action, resource)".to_owned(),
        ),
        ("no id", "forbid (principal, action, resource);".to_owned()),
        (
            "an id with spaces",
            "@id(\"a b\") forbid (principal, action, resource);".to_owned(),
        ),
        (
            "the id of a guardrail",
            "@id(\"residency\") forbid (principal, action, resource);".to_owned(),
        ),
        (
            "a hidden change of direction",
            forbid("resource.name == \"user\u{202e} \u{2066}// admin\u{2069} \u{2066}\""),
        ),
    ];
    let said: Vec<String> = texts
        .iter()
        .map(|(what, text)| match load(text) {
            Ok(_) => panic!("{what} was accepted"),
            Err(error) => format!("{what}:\n    {error}"),
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_guarded_optional_attribute_is_fine() {
    let policies = load(
        "@id(\"at-least-ten\") forbid (principal, action, resource)\n\
         when { context.evidence has k && context.evidence.k < 10 };",
    )
    .unwrap();
    assert_eq!(Case::dataset().denied_by(&policies), ["at-least-ten"]);
}

#[test]
fn ids_are_unique_over_files_and_files_over_names() {
    let rule = "@id(\"x\") forbid (principal, action, resource) when { context.run_network };";
    let error = PolicySet::load(&own(&[rule, rule])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "own1.cedar:1: the id `x` is taken by the policy at own0.cedar:1: give this one another"
    );
    let twice = vec![("a.cedar".to_owned(), String::new()); 2];
    assert!(matches!(PolicySet::load(&twice), Err(PolicyError::SameFile { .. })));
    let long = vec![("a.cedar".to_owned(), "// ".repeat(1 << 19))];
    assert!(matches!(PolicySet::load(&long), Err(PolicyError::TooMuch { .. })));
    let many: String = (0..1001)
        .map(|n| format!("@id(\"r{n}\") forbid (principal, action, resource);"))
        .collect();
    assert!(matches!(load(&many), Err(PolicyError::TooMuch { .. })));
}

#[test]
fn the_digest_is_of_every_text_and_of_no_order() {
    let (a, b) = (
        ("a.cedar".to_owned(), "// a".to_owned()),
        ("b.cedar".to_owned(), "// b".to_owned()),
    );
    let digest = |texts: &[(String, String)]| PolicySet::load(texts).unwrap().digest();
    assert_eq!(digest(&[a.clone(), b.clone()]), digest(&[b.clone(), a.clone()]));
    let others = [
        digest(&[]),
        digest(std::slice::from_ref(&a)),
        digest(&[("a.cedar".to_owned(), "// c".to_owned())]),
    ];
    assert!(others.iter().all(|other| *other != digest(&[a.clone(), b.clone()])));
    assert_eq!(digest(&[]), guardrails().digest(), "the same texts, the same digest");
    let changed = crate::set::GUARDRAILS.replace("// The locked rules.", "// Locked rules.");
    assert_ne!(PolicySet::assemble(&changed, &[]).unwrap().digest(), digest(&[]));
}

#[test]
fn a_broken_built_in_rule_is_called_a_defect() {
    let error = PolicySet::assemble("@id(\"x\") forbid (principal);", &[]).unwrap_err();
    assert!(matches!(error, PolicyError::BuiltIn(_)));
}
