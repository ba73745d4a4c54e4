//! A crossing that everybody allows, to be changed in one place at a time.

use std::collections::BTreeSet;

use tidegate_types::artifact::ArtifactKind;
use tidegate_types::files::sites::{NetworkRule, NetworkRules, Site, SiteKind};
use tidegate_types::ids::{Purpose, SiteName};
use tidegate_types::label::{Clearance, Label, Level, Residency};
use tidegate_types::permit::Evidence;
use tidegate_types::{Digest, Refusal};

use crate::{Moment, PolicySet, Question};

/// A question with its own values.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) moment: Moment,
    pub(super) kind: ArtifactKind,
    pub(super) label: Label,
    pub(super) lowered_from: Option<Label>,
    pub(super) from: (SiteName, Site),
    pub(super) to: (SiteName, Site),
    pub(super) purpose: Purpose,
    pub(super) run_network: bool,
    pub(super) worker_known: bool,
    pub(super) evidence: Option<Evidence>,
    pub(super) least_k: u32,
    pub(super) bounded_refine: bool,
}

pub(super) fn label(level: Level, tags: &[&str], places: &[&str]) -> Label {
    Label {
        level,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        residency: if places.is_empty() {
            Residency::Anywhere
        } else {
            Residency::only(places.iter().copied())
        },
    }
}

pub(super) fn site(name: &str, kind: SiteKind, level: Level, tags: &[&str]) -> (SiteName, Site) {
    let site = Site {
        kind,
        jurisdiction: "US".to_owned(),
        clearance: Clearance {
            level,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        },
        store: "folder:".to_owned(),
        custody: None,
        compute: None,
        egress: Default::default(),
        network: NetworkRules::default(),
        transfer: None,
    };
    (SiteName::new(name).unwrap(), site)
}

pub(super) fn hospital() -> (SiteName, Site) {
    site("hospital", SiteKind::Private, Level::Restricted, &["phi"])
}

pub(super) fn cloud() -> (SiteName, Site) {
    site("cloud", SiteKind::Public, Level::Internal, &[])
}

pub(super) fn ward() -> (SiteName, Site) {
    site("ward", SiteKind::Edge, Level::Internal, &[])
}

pub(super) fn measured(k: u64) -> Evidence {
    Evidence {
        sql: Some(Digest::from_bytes([1; 32])),
        label_report: Some(Digest::from_bytes([2; 32])),
        k: Some(k),
        l: None,
        suppressed_rows: Some(3),
    }
}

impl Case {
    /// A de-identified dataset on its way to the cloud.
    pub(super) fn dataset() -> Self {
        Self {
            moment: Moment::Permit,
            kind: ArtifactKind::Dataset,
            label: label(Level::Internal, &[], &[]),
            lowered_from: Some(label(Level::Restricted, &["phi"], &["US"])),
            from: hospital(),
            to: cloud(),
            purpose: Purpose::new("quality-of-care").unwrap(),
            run_network: false,
            worker_known: true,
            evidence: Some(measured(5)),
            least_k: 5,
            bounded_refine: false,
        }
    }

    /// A refined and released model on its way to a ward.
    pub(super) fn bundle() -> Self {
        Self {
            kind: ArtifactKind::Bundle,
            to: ward(),
            evidence: None,
            bounded_refine: true,
            ..Self::dataset()
        }
    }

    /// A model on its way home.
    pub(super) fn model() -> Self {
        Self {
            kind: ArtifactKind::Model,
            lowered_from: None,
            from: cloud(),
            to: hospital(),
            evidence: None,
            ..Self::dataset()
        }
    }

    /// The same, with something changed.
    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(super) fn offering_network(mut self) -> Self {
        self.to.1.network.run = NetworkRule::Allow;
        self
    }

    fn ask<T>(&self, answer: impl FnOnce(&Question<'_>) -> T) -> T {
        let allowed_purposes = BTreeSet::from([Purpose::new("quality-of-care").unwrap()]);
        answer(&Question {
            moment: self.moment,
            artifact: "admissions/train".to_owned(),
            kind: self.kind,
            label: &self.label,
            lowered_from: self.lowered_from.as_ref(),
            from: (&self.from.0, &self.from.1),
            to: (&self.to.0, &self.to.1),
            purpose: &self.purpose,
            allowed_purposes: &allowed_purposes,
            run_network: self.run_network,
            worker_known: self.worker_known,
            evidence: self.evidence.as_ref(),
            least_k: self.least_k,
            built_in_refine: self.bounded_refine,
        })
    }

    pub(super) fn decide(&self, policies: &PolicySet) -> Result<(), Refusal> {
        self.ask(|question| policies.decide(question))
    }

    /// The rules that say no.
    pub(super) fn denied_by(&self, policies: &PolicySet) -> Vec<String> {
        let refusals = self.ask(|question| policies.refusals(question));
        refusals.into_iter().map(|refusal| refusal.rule).collect()
    }
}

pub(super) fn own(texts: &[&str]) -> Vec<(String, String)> {
    let named = texts.iter().enumerate();
    named
        .map(|(number, text)| (format!("own{number}.cedar"), (*text).to_owned()))
        .collect()
}

pub(super) fn guardrails() -> PolicySet {
    PolicySet::load(&[]).unwrap()
}
