//! Each guardrail alone, and what happens without it.

use std::collections::BTreeSet;

use tidegate_types::artifact::ArtifactKind;
use tidegate_types::files::sites::SiteKind;
use tidegate_types::ids::Purpose;
use tidegate_types::label::Level;

use super::fixture::{Case, cloud, guardrails, hospital, label, measured, site, ward};
use crate::Moment;
use crate::set::{GUARDRAILS, PolicySet};

/// For each guardrail, the cases in which it alone says no.
fn denied() -> Vec<(&'static str, Case)> {
    let second = || site("second", SiteKind::Public, Level::Internal, &[]);
    let model_elsewhere = || Case::bundle().with(|case| case.bounded_refine = false);
    let wide = || site("cloud", SiteKind::Public, Level::Restricted, &["phi"]);
    vec![
        (
            "label-above-clearance",
            Case::dataset().with(|case| case.label.level = Level::Confidential),
        ),
        (
            "label-above-clearance",
            Case::bundle().with(|case| case.label.level = Level::Restricted),
        ),
        (
            "label-above-clearance",
            Case::dataset().with(|case| case.to.1.clearance.level = Level::Public),
        ),
        (
            "tag-not-cleared",
            Case::dataset().with(|case| case.label = label(Level::Internal, &["phi"], &[])),
        ),
        (
            "tag-not-cleared",
            Case::dataset().with(|case| {
                case.label = label(Level::Internal, &["phi", "pci"], &[]);
                case.to.1.clearance.tags = ["pci".to_owned()].into();
            }),
        ),
        (
            "residency",
            Case::dataset().with(|case| case.label = label(Level::Internal, &[], &["DE", "FR"])),
        ),
        (
            "residency",
            Case::dataset().with(|case| {
                case.label.residency = tidegate_types::Residency::Only(BTreeSet::new());
            }),
        ),
        (
            "purpose-not-in-catalog",
            Case::dataset().with(|case| case.purpose = Purpose::new("marketing").unwrap()),
        ),
        ("only-from-its-owner", Case::dataset().with(|case| case.from = second())),
        ("only-from-its-owner", Case::bundle().with(|case| case.from = second())),
        ("results-go-home", Case::model().with(|case| case.to = second())),
        (
            "results-go-home",
            Case::model().with(|case| {
                case.kind = ArtifactKind::Checkpoint;
                case.to = second();
            }),
        ),
        (
            "results-go-home",
            Case::model().with(|case| {
                case.kind = ArtifactKind::Report;
                case.to = second();
            }),
        ),
        (
            "k-not-measured",
            Case::dataset().with(|case| case.evidence = Some(measured(4))),
        ),
        (
            "k-not-measured",
            Case::dataset().with(|case| case.evidence.as_mut().unwrap().k = None),
        ),
        ("k-not-measured", Case::dataset().with(|case| case.evidence = None)),
        (
            "k-not-measured",
            Case::dataset().with(|case| {
                case.evidence = None;
                case.moment = Moment::ReleaseKey;
            }),
        ),
        (
            "k-not-measured",
            Case::dataset().with(|case| {
                case.evidence = Some(measured(4));
                case.moment = Moment::Plan;
            }),
        ),
        (
            "no-rule-lowers-this",
            Case::dataset().with(|case| case.kind = ArtifactKind::Report),
        ),
        (
            "no-rule-lowers-this",
            Case::dataset().with(|case| case.kind = ArtifactKind::Code),
        ),
        (
            "no-rule-lowers-this",
            Case::dataset().with(|case| case.kind = ArtifactKind::Checkpoint),
        ),
        (
            "model-of-higher-data",
            model_elsewhere().with(|case| case.lowered_from = Some(label(Level::Confidential, &[], &[]))),
        ),
        (
            "model-of-higher-data",
            model_elsewhere().with(|case| case.lowered_from = Some(label(Level::Internal, &["phi"], &[]))),
        ),
        (
            "model-of-higher-data",
            model_elsewhere().with(|case| case.lowered_from = Some(label(Level::Internal, &[], &["DE"]))),
        ),
        (
            "model-of-higher-data",
            Case::dataset().with(|case| {
                case.kind = ArtifactKind::Model;
                case.evidence = Some(measured(50));
            }),
        ),
        (
            "restricted-on-public-site",
            Case::dataset().with(|case| {
                case.to = wide();
                case.label = label(Level::Restricted, &["phi"], &["US"]);
            }),
        ),
        (
            "open-network",
            Case::dataset().offering_network().with(|case| case.run_network = true),
        ),
        (
            "open-network",
            Case::dataset()
                .with(|case| {
                    case.to = hospital();
                    case.to.0 = "second".parse().unwrap();
                    case.run_network = true;
                })
                .offering_network(),
        ),
        (
            "network-not-offered",
            Case::dataset().with(|case| {
                case.label = label(Level::Public, &[], &[]);
                case.run_network = true;
            }),
        ),
        (
            "network-not-offered",
            Case::dataset().with(|case| {
                case.kind = ArtifactKind::Code;
                case.lowered_from = None;
                case.run_network = true;
            }),
        ),
        ("edge-takes-bundles", Case::dataset().with(|case| case.to = ward())),
        (
            "edge-takes-bundles",
            Case::dataset().with(|case| {
                case.kind = ArtifactKind::Code;
                case.lowered_from = None;
                case.to = ward();
            }),
        ),
        (
            "worker-not-known",
            Case::dataset().with(|case| {
                case.moment = Moment::ReleaseKey;
                case.worker_known = false;
            }),
        ),
    ]
}

/// The locked rules without one of them.
fn without(id: &str) -> PolicySet {
    let mark = format!("@id(\"{id}\")");
    let (before, rest) = GUARDRAILS.split_once(&mark).unwrap();
    // No guardrail has a `;` at the end of a line but its last.
    let (_, after) = rest.split_once(";\n").unwrap();
    let policies = PolicySet::assemble(&format!("{before}{after}"), &[]).unwrap();
    assert_eq!(policies.names().len() + 1, guardrails().names().len());
    policies
}

#[test]
fn each_guardrail_says_no_alone_and_is_missed_when_it_is_gone() {
    let all = guardrails();
    let mut seen = BTreeSet::new();
    for (id, case) in denied() {
        assert_eq!(case.denied_by(&all), [id], "{case:?}");
        assert_eq!(case.denied_by(&without(id)), Vec::<String>::new(), "{case:?}");
        seen.insert(id.to_owned());
    }
    let locked: BTreeSet<String> = all
        .names()
        .into_iter()
        .filter(|id| id != "what-no-rule-forbids")
        .collect();
    assert_eq!(seen, locked, "a guardrail has no case");
}

#[test]
fn without_the_general_permission_nothing_is_permitted() {
    assert_eq!(
        Case::dataset().denied_by(&without("what-no-rule-forbids")),
        ["policy-not-answered"]
    );
}

#[test]
fn what_the_product_does_every_day_is_permitted() {
    let all = guardrails();
    let public = |case: &mut Case| {
        case.label = label(Level::Public, &[], &[]);
        case.lowered_from = None;
        case.evidence = None;
    };
    for (what, case) in [
        ("a dataset to the cloud", Case::dataset()),
        (
            "its key to a worker",
            Case::dataset().with(|case| case.moment = Moment::ReleaseKey),
        ),
        (
            "a plan before anything is measured",
            Case::dataset().with(|case| {
                case.moment = Moment::Plan;
                case.evidence = None;
            }),
        ),
        (
            "code to the cloud, with network there",
            Case::dataset()
                .with(|case| {
                    case.kind = ArtifactKind::Code;
                    case.lowered_from = None;
                    case.evidence = None;
                    case.run_network = true;
                })
                .offering_network(),
        ),
        (
            "a bundle to a site whose commands have network",
            Case::bundle().offering_network().with(|case| case.run_network = true),
        ),
        (
            "a model home, where commands have network",
            Case::model().offering_network().with(|case| case.run_network = true),
        ),
        (
            "public data with network",
            Case::dataset()
                .with(public)
                .offering_network()
                .with(|case| case.run_network = true),
        ),
        (
            "public data from a public site to another",
            Case::dataset()
                .with(public)
                .with(|case| case.from = site("second", SiteKind::Public, Level::Public, &[])),
        ),
        ("a model home", Case::model()),
        (
            "a checkpoint where it was made",
            Case::model().with(|case| {
                case.kind = ArtifactKind::Checkpoint;
                case.to = cloud();
            }),
        ),
        ("a bundle to a ward", Case::bundle()),
        (
            "a bundle that nothing was refined in",
            Case::bundle().with(|case| {
                case.bounded_refine = false;
                case.lowered_from = Some(label(Level::Internal, &[], &[]));
            }),
        ),
        (
            "raw data at home",
            Case::dataset().with(|case| {
                case.label = label(Level::Restricted, &["phi"], &["US"]);
                case.lowered_from = None;
                case.evidence = None;
                case.to = hospital();
            }),
        ),
    ] {
        assert_eq!(case.decide(&all), Ok(()), "{what}");
    }
}

#[test]
fn a_refusal_says_what_why_and_how_to_go_on() {
    let case = Case::dataset().with(|case| {
        case.label = label(Level::Confidential, &["phi"], &[]);
        case.evidence = None;
    });
    insta::assert_snapshot!(case.decide(&guardrails()).unwrap_err());
    assert_eq!(
        case.denied_by(&guardrails()),
        ["label-above-clearance", "tag-not-cleared", "k-not-measured"],
        "all that would have to change"
    );
    let key = Case::dataset().with(|case| {
        case.moment = Moment::ReleaseKey;
        case.worker_known = false;
    });
    insta::assert_snapshot!(key.decide(&guardrails()).unwrap_err());
}

#[test]
fn one_name_with_two_definitions_is_no_question() {
    let case = Case::dataset().with(|case| case.to.0 = case.from.0.clone());
    assert_eq!(case.denied_by(&guardrails()), ["policy-not-answered"]);
}
