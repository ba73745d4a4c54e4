//! `docs/policy.md` tells the truth.

use tidegate_types::label::Level;

use super::fixture::{Case, guardrails, label};
use crate::PolicySet;
use crate::set::SCHEMA;

fn document() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policy.md");
    std::fs::read_to_string(path).unwrap()
}

/// The ```cedar blocks of the document.
fn examples() -> Vec<(String, String)> {
    let document = document();
    let blocks = document
        .split("```cedar\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap());
    blocks
        .enumerate()
        .map(|(number, text)| (format!("{number}.cedar"), text.to_owned()))
        .collect()
}

#[test]
fn the_examples_load_and_do_what_is_said_about_them() {
    let examples = examples();
    assert_eq!(examples.len(), 2);
    let policies = PolicySet::load(&examples).unwrap();
    let quiet = Case::dataset().with(|case| case.evidence.as_mut().unwrap().k = Some(11));
    assert_eq!(quiet.decide(&policies), Ok(()));
    assert_eq!(Case::dataset().denied_by(&policies), ["public-cloud-needs-k-11"]);
    let unmeasured = Case::dataset().with(|case| {
        case.moment = crate::Moment::Plan;
        case.evidence = None;
    });
    assert_eq!(
        unmeasured.decide(&policies),
        Ok(()),
        "a plan is made before anything is measured"
    );
    let code = Case::dataset().with(|case| {
        case.kind = tidegate_types::ArtifactKind::Code;
        case.label = label(Level::Internal, &[], &[]);
        case.lowered_from = None;
        case.to.0 = "elsewhere".parse().unwrap();
    });
    assert_eq!(code.denied_by(&policies), ["only-contracted-clouds"]);
}

#[test]
fn every_rule_and_every_attribute_is_described() {
    let document = document();
    for rule in guardrails().names() {
        assert!(
            document.contains(&format!("`{rule}`")),
            "the rule `{rule}` is not described"
        );
    }
    let attributes = SCHEMA
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
        .filter_map(|line| line.split_once(": "))
        .map(|(name, _)| name.trim_end_matches('?'))
        .filter(|name| !["principal", "resource", "context"].contains(name));
    for attribute in attributes {
        assert!(
            document.contains(attribute),
            "the attribute `{attribute}` is not described"
        );
    }
}
