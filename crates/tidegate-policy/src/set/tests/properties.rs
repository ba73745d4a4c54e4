//! What holds for every question and every set of own policies.

use proptest::prelude::*;
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::files::sites::{NetworkRule, SiteKind};
use tidegate_types::label::{Label, Level, Residency};

use super::fixture::{Case, guardrails, measured, own, site};
use crate::{Moment, PolicySet};

fn level() -> impl Strategy<Value = Level> {
    proptest::sample::select(vec![
        Level::Public,
        Level::Internal,
        Level::Confidential,
        Level::Restricted,
    ])
}

fn label() -> impl Strategy<Value = Label> {
    let set = |of: [&'static str; 2]| proptest::collection::btree_set(proptest::sample::select(of.to_vec()), 0..3);
    (level(), set(["phi", "pci"]), proptest::option::of(set(["US", "DE"]))).prop_map(|(level, tags, places)| Label {
        level,
        tags: tags.into_iter().map(str::to_owned).collect(),
        residency: places.map_or(Residency::Anywhere, Residency::only),
    })
}

fn case() -> impl Strategy<Value = Case> {
    let kinds = vec![
        ArtifactKind::Dataset,
        ArtifactKind::Code,
        ArtifactKind::Checkpoint,
        ArtifactKind::Model,
        ArtifactKind::Report,
        ArtifactKind::Bundle,
    ];
    let place = || {
        let sites = vec![SiteKind::Private, SiteKind::Public, SiteKind::Edge];
        let tags = proptest::sample::subsequence(vec!["phi", "pci"], 0..=2);
        (proptest::sample::select(sites), level(), tags, any::<bool>())
    };
    let moments = vec![Moment::Plan, Moment::Permit, Moment::ReleaseKey];
    (
        (proptest::sample::select(moments), proptest::sample::select(kinds)),
        (label(), proptest::option::of(label())),
        (place(), place()),
        proptest::option::of(proptest::option::of(0_u64..10)),
        any::<[bool; 3]>(),
    )
        .prop_map(|((moment, kind), (label, lowered_from), (from, to), k, flags)| {
            let place = |name: &str, (kind, level, tags, open): (SiteKind, Level, Vec<&str>, bool)| {
                let mut place = site(name, kind, level, &tags);
                place.1.network.run = if open { NetworkRule::Allow } else { NetworkRule::Deny };
                place
            };
            Case {
                moment,
                kind,
                label,
                lowered_from,
                from: place("here", from),
                to: place("there", to),
                run_network: flags[0],
                worker_known: flags[1],
                bounded_refine: flags[2],
                evidence: k.map(|k| {
                    let mut evidence = measured(0);
                    evidence.k = k;
                    evidence
                }),
                ..Case::dataset()
            }
        })
}

/// Own policies of either effect over everything that can be asked about.
fn policy() -> impl Strategy<Value = (bool, String)> {
    let conditions = vec![
        "true",
        "principal.kind == \"public\"",
        "principal == Site::\"there\" && context.from != principal",
        "resource.label.level >= 1",
        "resource.label.tags.containsAny([\"phi\"])",
        "resource has lowered_from && resource.lowered_from.level > resource.label.level",
        "context.evidence has k && context.evidence.k < 7",
        "context.run_network || !context.worker_known",
        "action == Action::\"release_key\"",
        "resource.name like \"admissions/*\"",
    ];
    (any::<bool>(), proptest::sample::select(conditions)).prop_map(|(permit, condition)| (permit, condition.to_owned()))
}

fn load(policies: &[(bool, String)]) -> PolicySet {
    let texts: Vec<String> = policies
        .iter()
        .enumerate()
        .map(|(number, (permit, condition))| {
            let effect = if *permit { "permit" } else { "forbid" };
            format!("@id(\"own-{number}\") {effect} (principal, action, resource) when {{ {condition} }};")
        })
        .collect();
    PolicySet::load(&own(&texts.iter().map(String::as_str).collect::<Vec<_>>())).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever an organisation adds can only take away, and every no has its rule.
    #[test]
    fn own_policies_only_take_away(case in case(), policies in proptest::collection::vec(policy(), 0..4)) {
        let (locked, all) = (guardrails(), load(&policies));
        if case.decide(&locked).is_err() {
            prop_assert!(case.decide(&all).is_err());
        }
        if policies.iter().all(|(permit, _)| *permit) {
            prop_assert_eq!(case.decide(&locked).is_ok(), case.decide(&all).is_ok());
        }
        if let Err(refusal) = case.decide(&all) {
            prop_assert!(all.names().contains(&refusal.rule), "{}", refusal);
        }
    }

    /// What may not be held is never sent, whoever asks and whatever is written.
    #[test]
    fn what_may_not_be_held_is_never_permitted(case in case(), policies in proptest::collection::vec(policy(), 0..2)) {
        if case.decide(&load(&policies)).is_ok() {
            let site = &case.to.1;
            prop_assert!(case.label.may_be_held(&site.clearance, &site.jurisdiction));
            prop_assert!(site.kind != SiteKind::Public || case.label.level < Level::Restricted);
            prop_assert!(site.kind != SiteKind::Edge || case.kind == ArtifactKind::Bundle);
            let results = [ArtifactKind::Checkpoint, ArtifactKind::Model, ArtifactKind::Report];
            let comes_home = case.from.1.kind != SiteKind::Private && site.kind == SiteKind::Private;
            let read_by_no_command =
                case.kind == ArtifactKind::Bundle || (results.contains(&case.kind) && comes_home);
            let harmless = case.label.level == Level::Public || case.kind == ArtifactKind::Code;
            prop_assert!(!case.run_network || harmless || read_by_no_command);
        }
    }
}
