//! A plan: what the keeper says of the query, where every task goes, and what policy says of each crossing.

use std::collections::BTreeMap;

use tidegate_plan::{Plan, PlanInput, PlannedCrossing, Report, Step};
use tidegate_policy::{Moment, Question};
use tidegate_seal::digest::canonical_digest;
use tidegate_types::digest::Digest;
use tidegate_types::files::sites::NetworkRule;
use tidegate_types::ids::SiteName;
use tidegate_types::keeper::{ReplyBody, RequestBody};
use tidegate_types::refusal::Refusal;
use tidegate_types::report::LabelReport;

use crate::error::{EngineError, While};
use crate::run::Engine;

/// A plan that was checked, with what a person reads before saying yes.
#[derive(Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// Why it is this one.
    pub report: Report,
    /// The label flow of the query.
    pub labels: LabelReport,
    /// The same plan has the same key, and continues the same run.
    pub key: Digest,
}

impl Engine {
    /// Asks the keeper what the query would let out, places every task, and checks the plan.
    ///
    /// # Errors
    /// A refusal by labels or policy, or a keeper out of reach.
    pub async fn plan(&self, until: Option<Step>) -> Result<Planned, EngineError> {
        self.keeper.sweep().await?;
        let (_, checkpoint) = self.keeper.identify().await?;
        self.seen(&checkpoint)?;
        let analysed = self
            .keeper
            .ask(
                "analyse",
                RequestBody::Analyse {
                    pipeline: self.text.clone(),
                },
            )
            .await?;
        let ReplyBody::Analysis {
            labels,
            source_bytes,
            catalog,
            policies,
        } = analysed
        else {
            return Err(self.keeper.wrong_reply());
        };
        if let Some(refusal) = labels.refusals.first() {
            return Err(refusal.clone().into());
        }
        let input = PlanInput {
            catalog: &self.catalog,
            sites: &self.sites,
            pipeline: &self.pipeline,
            labels: &labels,
            source_bytes,
            policies: &|crossing| self.ask_policy(crossing),
            until,
        };
        let (plan, report) = tidegate_plan::plan(&input)?;
        if let Err(violations) = tidegate_plan::check(&input, &plan) {
            return Err(EngineError::failed("checking the plan", violations.join("; ")));
        }
        // How fast and when something is sent makes no other run.
        let sites = self.sites.sites.iter().map(|(name, site)| (name, site.identity()));
        let sites = (&self.sites.organisation, sites.collect::<BTreeMap<_, _>>());
        let key = canonical_digest(&(
            &self.text,
            &plan,
            catalog,
            policies,
            canonical_digest(&sites).while_("naming the sites")?,
        ))
        .while_("naming the plan")?;
        Ok(Planned {
            plan,
            report,
            labels,
            key,
        })
    }

    fn ask_policy(&self, crossing: &PlannedCrossing) -> Result<(), Refusal> {
        let unknown = |site: &SiteName| Refusal {
            rule: "unknown-site".to_owned(),
            what: format!("planning a crossing to site `{site}`"),
            why: "the sites file does not name it".to_owned(),
            fix: "add the site to the sites file".to_owned(),
        };
        let from = self
            .sites
            .sites
            .get(&crossing.from)
            .ok_or_else(|| unknown(&crossing.from))?;
        let to = self
            .sites
            .sites
            .get(&crossing.to)
            .ok_or_else(|| unknown(&crossing.to))?;
        let Some(dataset) = self.catalog.datasets.get(&self.pipeline.prepare.from) else {
            return Err(unknown(&crossing.from));
        };
        self.policies.decide(&Question {
            moment: Moment::Plan,
            artifact: crossing.artifact.clone(),
            kind: crossing.kind,
            label: &crossing.label,
            lowered_from: None,
            from: (&crossing.from, from),
            to: (&crossing.to, to),
            purpose: &self.pipeline.purpose,
            allowed_purposes: &dataset.purposes,
            run_network: to.network.run == NetworkRule::Allow,
            worker_known: true,
            evidence: None,
            least_k: dataset.least_k,
            built_in_refine: true,
        })
    }
}
