//! The question, as callers ask it and as Cedar reads it.

use std::collections::{BTreeSet, HashMap, HashSet};

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression, Schema,
};
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::files::sites::{NetworkRule, Site};
use tidegate_types::ids::{Purpose, SiteName};
use tidegate_types::label::{Clearance, Label, Level, Residency};
use tidegate_types::permit::Evidence;

/// When a question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// A plan is made; nothing has been measured yet.
    Plan,
    /// A keeper is about to sign a permit.
    Permit,
    /// A keeper is about to release a key to a worker.
    ReleaseKey,
}

impl Moment {
    /// The Cedar action.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Permit => "permit",
            Self::ReleaseKey => "release_key",
        }
    }
}

/// May this artifact be at that site, for this purpose, under these circumstances?
///
/// Whoever asks has computed the labels from the owner's catalog; nothing in here comes from a
/// pipeline's own claims but the purpose and the network wish.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// When it is asked.
    pub moment: Moment,
    /// The artifact's name, such as `admissions/train`.
    pub artifact: String,
    /// What it is.
    pub kind: ArtifactKind,
    /// Its label.
    pub label: &'a Label,
    /// The label it had, or that of what it was made from, before anything was lowered.
    pub lowered_from: Option<&'a Label>,
    /// Where it comes from.
    pub from: (&'a SiteName, &'a Site),
    /// Where it goes; the same as `from` for what stays.
    pub to: (&'a SiteName, &'a Site),
    /// What it is to be used for.
    pub purpose: &'a Purpose,
    /// What the data owner's catalog allows it to be used for.
    pub allowed_purposes: &'a BTreeSet<Purpose>,
    /// Whether the command that reads it may use the network while it runs.
    pub run_network: bool,
    /// Whether the worker that would receive a key is the program that the permit names.
    pub worker_known: bool,
    /// What was measured; `None` before anything was.
    pub evidence: Option<&'a Evidence>,
    /// The catalog's `least_k`.
    pub least_k: u32,
    /// Whether built-in code refined the model by the bounded-refine rule.
    pub built_in_refine: bool,
}

/// Anything that keeps a question from being put; the asker treats it as a no.
pub(crate) struct Unanswerable;

const fn level_number(level: Level) -> i64 {
    match level {
        Level::Public => 0,
        Level::Internal => 1,
        Level::Confidential => 2,
        Level::Restricted => 3,
    }
}

fn text(value: impl Into<String>) -> RestrictedExpression {
    RestrictedExpression::new_string(value.into())
}

fn number(value: u64) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(value).unwrap_or(i64::MAX))
}

fn texts<S: AsRef<str>>(values: impl IntoIterator<Item = S>) -> RestrictedExpression {
    RestrictedExpression::new_set(values.into_iter().map(|value| text(value.as_ref())))
}

fn record(
    fields: impl IntoIterator<Item = (&'static str, RestrictedExpression)>,
) -> Result<RestrictedExpression, Unanswerable> {
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
    RestrictedExpression::new_record(fields).map_err(|_| Unanswerable)
}

fn label_record(label: &Label) -> Result<RestrictedExpression, Unanswerable> {
    let mut fields = vec![
        ("level", RestrictedExpression::new_long(level_number(label.level))),
        ("level_name", text(label.level.to_string())),
        ("tags", texts(&label.tags)),
    ];
    if let Residency::Only(places) = &label.residency {
        fields.push(("residency", texts(places)));
    }
    record(fields)
}

fn clearance_record(clearance: &Clearance) -> Result<RestrictedExpression, Unanswerable> {
    record([
        ("level", RestrictedExpression::new_long(level_number(clearance.level))),
        ("level_name", text(clearance.level.to_string())),
        ("tags", texts(&clearance.tags)),
    ])
}

fn evidence_record(evidence: Option<&Evidence>) -> Result<RestrictedExpression, Unanswerable> {
    let mut fields = vec![
        (
            "label_report",
            RestrictedExpression::new_bool(evidence.is_some_and(|e| e.label_report.is_some())),
        ),
        (
            "sql",
            RestrictedExpression::new_bool(evidence.is_some_and(|e| e.sql.is_some())),
        ),
    ];
    if let Some(evidence) = evidence {
        let measured = [
            ("k", evidence.k),
            ("l", evidence.l),
            ("suppressed_rows", evidence.suppressed_rows),
        ];
        fields.extend(
            measured
                .into_iter()
                .filter_map(|(name, value)| Some((name, number(value?)))),
        );
    }
    record(fields)
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, Unanswerable> {
    let kind: EntityTypeName = kind.parse().map_err(|_| Unanswerable)?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

fn entity(uid: EntityUid, attributes: Vec<(&'static str, RestrictedExpression)>) -> Result<Entity, Unanswerable> {
    let attributes: HashMap<String, RestrictedExpression> = attributes
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    Entity::new(uid, attributes, HashSet::new()).map_err(|_| Unanswerable)
}

fn site_entity((name, site): (&SiteName, &Site)) -> Result<Entity, Unanswerable> {
    let allows = |rule| RestrictedExpression::new_bool(rule == NetworkRule::Allow);
    let attributes = vec![
        ("name", text(name.as_str())),
        ("kind", text(site.kind.as_str())),
        ("jurisdiction", text(&site.jurisdiction)),
        ("clearance", clearance_record(&site.clearance)?),
        ("setup_network", allows(site.network.setup)),
        ("run_network", allows(site.network.run)),
    ];
    entity(uid("Site", name.as_str())?, attributes)
}

impl Question<'_> {
    /// Whether something was lowered: what it came from could not have become this by itself.
    fn lowered(&self) -> bool {
        self.lowered_from.is_some_and(|before| !before.flows_to(self.label))
    }

    /// The request and the entities that it speaks about, both checked against the schema.
    pub(crate) fn to_cedar(&self, schema: &Schema) -> Result<(Request, Entities), Unanswerable> {
        // One name with two definitions is a question about nothing that exists.
        if self.from.0 == self.to.0 && self.from.1 != self.to.1 {
            return Err(Unanswerable);
        }
        let (from, to) = (uid("Site", self.from.0.as_str())?, uid("Site", self.to.0.as_str())?);
        let artifact = uid("Artifact", &self.artifact)?;
        let mut attributes = vec![
            ("name", text(&self.artifact)),
            ("kind", text(self.kind.as_str())),
            ("label", label_record(self.label)?),
            ("lowered", RestrictedExpression::new_bool(self.lowered())),
        ];
        if let Some(before) = self.lowered_from {
            attributes.push(("lowered_from", label_record(before)?));
        }
        let mut entities = vec![entity(artifact.clone(), attributes)?, site_entity(self.to)?];
        if from != to {
            entities.push(site_entity(self.from)?);
        }
        let entities = Entities::from_entities(entities, Some(schema)).map_err(|_| Unanswerable)?;

        let context = [
            ("from", RestrictedExpression::new_entity_uid(from)),
            ("purpose", text(self.purpose.as_str())),
            (
                "allowed_purposes",
                texts(self.allowed_purposes.iter().map(Purpose::as_str)),
            ),
            ("run_network", RestrictedExpression::new_bool(self.run_network)),
            ("worker_known", RestrictedExpression::new_bool(self.worker_known)),
            ("evidence", evidence_record(self.evidence)?),
            ("least_k", number(self.least_k.into())),
            ("bounded_refine", RestrictedExpression::new_bool(self.built_in_refine)),
        ];
        let context = Context::from_pairs(context.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let context = context.map_err(|_| Unanswerable)?;
        let action = uid("Action", self.moment.as_str())?;
        let request = Request::new(to, action, artifact, context, Some(schema)).map_err(|_| Unanswerable)?;
        Ok((request, entities))
    }

    /// What was about to happen, as a clause.
    pub(crate) fn what(&self) -> String {
        let (from, to) = (self.from.0, self.to.0);
        let thing = format!("{} `{}` ({})", self.kind.as_str(), self.artifact, self.label);
        let clearance = Label {
            level: self.to.1.clearance.level,
            tags: self.to.1.clearance.tags.clone(),
            residency: Residency::Anywhere,
        };
        let place = format!(
            "{} site `{to}` (cleared for {clearance}, jurisdiction {})",
            self.to.1.kind.as_str(),
            self.to.1.jurisdiction
        );
        match self.moment {
            _ if from == to => format!("using {thing} at {place}"),
            Moment::Plan | Moment::Permit => format!("sending {thing} from site `{from}` to {place}"),
            Moment::ReleaseKey => format!("releasing the key of {thing} from site `{from}` to a worker at {place}"),
        }
    }
}
