//! The planner.

use tidegate_types::artifact::ArtifactKind;
use tidegate_types::files::check_refusals;
use tidegate_types::files::pipeline::OnViolation;
use tidegate_types::files::sites::Site;
use tidegate_types::ids::{SiteName, TaskName};
use tidegate_types::label::{Label, Level};
use tidegate_types::quantity::Money;
use tidegate_types::refusal::Refusal;

use crate::choose::{able, egress_within, held, refusal};
use crate::cost;
use crate::model::{Candidate, PLAN_FORMAT, Plan, PlanInput, PlannedCrossing, PlannedTask, Report, Step};

/// Places every task and lists every crossing, or says which rule forbids it.
///
/// # Errors
/// The refusal of the catalog, of the label analysis, of policy, of a budget or of a deadline that
/// leaves no plan.
pub fn plan(input: &PlanInput<'_>) -> Result<(Plan, Report), Refusal> {
    if let Some(refusal) = check_refusals(input.catalog, input.sites, input.pipeline)
        .into_iter()
        .next()
    {
        return Err(refusal);
    }
    if let Some(refusal) = input.labels.refusals.first() {
        return Err(refusal.clone());
    }
    let planner = Planner::new(input)?;
    let (plan, candidates) = if input.until == Some(Step::Prepare) {
        (planner.draft(None)?, Vec::new())
    } else {
        planner.choose()?
    };
    let report = Report {
        purpose: input.pipeline.purpose.clone(),
        candidates,
        conditions: planner.conditions(),
        row_reads: input.labels.row_reads.clone(),
        warnings: input.labels.warnings.clone(),
        budget: input.pipeline.budget.cost,
    };
    Ok((plan, report))
}

/// The most sites that a training may go on at after the first.
const MOST_ELSEWHERE: usize = 3;

struct Planner<'a> {
    input: &'a PlanInput<'a>,
    home: &'a SiteName,
    /// The label of the rows that leave.
    data: Label,
    code: Label,
    /// The label of what is made of both.
    model: Label,
    bundle: Label,
}

impl<'a> Planner<'a> {
    fn new(input: &'a PlanInput<'a>) -> Result<Self, Refusal> {
        let from = &input.pipeline.prepare.from;
        let dataset = input.catalog.datasets.get(from).ok_or_else(|| {
            let what = format!("planning with dataset `{from}`");
            refusal(
                "unknown-dataset",
                what,
                "the catalog does not name it".to_owned(),
                "correct `prepare.from`",
            )
        })?;
        // Residency belongs to the data and to all that is made from it: no profile removes it.
        let stays = |label: &Label| Label {
            residency: label.residency.join(&dataset.residency),
            ..label.clone()
        };
        let pipeline = input.pipeline;
        let mut data = stays(&input.labels.release);
        data.level = data.level.max(pipeline.prepare.disclosure.to);
        let level = pipeline.train.code_level;
        let code = Label::of(level.map_or(Level::Internal, |level| level.max(Level::Internal)));
        let model = data.join(&code);
        let bundle = Label {
            level: pipeline.release_model.to.max(model.level),
            ..model.clone()
        };
        Ok(Self {
            input,
            home: &dataset.site,
            data,
            code,
            model,
            bundle,
        })
    }

    fn site(&self, name: &SiteName) -> Result<&'a Site, Refusal> {
        self.input.sites.sites.get(name).ok_or_else(|| {
            let what = format!("planning with site `{name}`");
            refusal(
                "unknown-site",
                what,
                "the sites file does not name it".to_owned(),
                "correct the name",
            )
        })
    }

    /// The best plan over all sites, with a word about each site.
    fn choose(&self) -> Result<(Plan, Vec<Candidate>), Refusal> {
        let mut possible = Vec::new();
        let mut rejected = Vec::new();
        for (name, site) in &self.input.sites.sites {
            match self.candidate(name, site) {
                Ok(plan) => possible.push((name, plan)),
                Err(refusal) => rejected.push((name, refusal)),
            }
        }
        // What has no price is never cheaper than what has one; at equal cost data stays home.
        possible.sort_by_key(|(name, plan)| {
            (
                unknown_costs(plan),
                plan.cost_estimate,
                *name != self.home,
                (*name).clone(),
            )
        });
        let others: Vec<Plan> = possible
            .iter()
            .skip(1)
            .map(|(_, plan)| plan.clone())
            .take(MOST_ELSEWHERE)
            .collect();
        let mut possible = possible.into_iter();
        let Some((chosen, mut plan)) = possible.next() else {
            return Err(self.nowhere(&rejected));
        };
        let mut candidates = vec![Candidate {
            site: chosen.clone(),
            chosen: true,
            reason: self.why_chosen(&plan, possible.len()),
        }];
        candidates.extend(possible.map(|(name, other)| Candidate {
            site: name.clone(),
            chosen: false,
            reason: if unknown_costs(&other) > unknown_costs(&plan) {
                "more of its costs are not known, and what has no price is not free".to_owned()
            } else if other.cost_estimate == plan.cost_estimate {
                format!("costs the same, about {}", other.cost_estimate)
            } else {
                format!("costs more: about {} in all", other.cost_estimate)
            },
        }));
        candidates.extend(rejected.into_iter().map(|(name, refusal)| Candidate {
            site: name.clone(),
            chosen: false,
            reason: format!("{} (rule `{}`)", refusal.why, refusal.rule),
        }));
        plan.elsewhere = others;
        Ok((plan, candidates))
    }

    fn why_chosen(&self, plan: &Plan, others: usize) -> String {
        let cost = if plan.unpriced {
            format!("about {} and costs that are not known", plan.cost_estimate)
        } else {
            format!("about {} in all", plan.cost_estimate)
        };
        let why = match (&self.input.pipeline.train.resources.infra, others) {
            (Some(_), _) => "the pipeline names it",
            (None, 0) => "the only site that can and may do it",
            (None, _) => "the cheapest site that can and may do it",
        };
        format!("{why}: {cost}")
    }

    /// The refusal that helps most when no site is left: that of the site that was named, else that of
    /// the one that came furthest.
    fn nowhere(&self, rejected: &[(&SiteName, Refusal)]) -> Refusal {
        let resources = &self.input.pipeline.train.resources;
        let named = resources.infra.as_ref().or(match &resources.any_of[..] {
            [only] => Some(&only.infra),
            _ => None,
        });
        if let Some((_, refusal)) = rejected.iter().find(|(name, _)| Some(*name) == named) {
            return refusal.clone();
        }
        let why: Vec<String> = rejected
            .iter()
            .map(|(name, refusal)| format!("`{name}`: {} (rule `{}`)", refusal.why, refusal.rule))
            .collect();
        let furthest = rejected
            .iter()
            .map(|(_, refusal)| refusal)
            .max_by_key(|refusal| progress(&refusal.rule));
        refusal(
            furthest.map_or("no-site", |refusal| refusal.rule.as_str()),
            "placing the training".to_owned(),
            format!("no site can and may do it: {}", why.join("; ")),
            furthest.map_or("describe a site with compute", |refusal| refusal.fix.as_str()),
        )
    }

    /// The whole plan if `name` trains, held against labels, policy, budget and deadline.
    fn candidate(&self, name: &SiteName, site: &Site) -> Result<Plan, Refusal> {
        able(self.input, name, site)?;
        let plan = self.draft(Some(name))?;
        for crossing in &plan.crossings {
            let what = format!("`{}`", crossing.artifact);
            held(
                (&what, crossing.kind),
                &crossing.label,
                &crossing.to,
                self.site(&crossing.to)?,
            )?;
            (self.input.policies)(crossing)?;
        }
        let placing = format!("training on site `{name}`");
        let leaving = plan.crossings.iter().filter(|crossing| crossing.from == *self.home);
        let bytes = leaving.fold(0_u64, |sum, crossing| sum.saturating_add(crossing.bytes_estimate));
        egress_within(self.input.pipeline.budget.egress, bytes, &placing)?;
        if let Some(budget) = self
            .input
            .pipeline
            .budget
            .cost
            .filter(|budget| plan.cost_estimate > *budget)
        {
            let why = format!(
                "the run would cost about {}, and the budget is {budget}",
                plan.cost_estimate
            );
            return Err(refusal(
                "budget",
                placing,
                why,
                "raise `budget: {cost: …}`, or train less",
            ));
        }
        let seconds = plan
            .tasks
            .iter()
            .fold(0_u64, |sum, task| sum.saturating_add(task.seconds_estimate));
        if let Some(deadline) = plan.deadline.filter(|deadline| seconds > deadline.0) {
            let why = format!("the run would take about {seconds}s, and the deadline is {deadline}");
            return Err(refusal("deadline", placing, why, "raise `deadline`, or train less"));
        }
        Ok(plan)
    }

    /// The plan with the training on a site, not yet held against anything; without, preparation only.
    fn draft(&self, train: Option<&SiteName>) -> Result<Plan, Refusal> {
        let mut draft = Draft {
            planner: self,
            tasks: Vec::new(),
            crossings: Vec::new(),
        };
        let until = |step| self.input.until.is_none_or(|last| step <= last);
        draft.task("prepare", Step::Prepare, self.home)?;
        if let Some(train) = train {
            let task = draft.task("train", Step::Train, train)?;
            if train != self.home {
                draft.cross_for_training(&task, train);
            }
        }
        if until(Step::Evaluate) && train.is_some() {
            draft.task("evaluate", Step::Evaluate, self.home)?;
        }
        if until(Step::Refine) && train.is_some() && self.input.pipeline.refine.is_some() {
            draft.task("refine", Step::Refine, self.home)?;
        }
        if until(Step::Release) && train.is_some() {
            let release = draft.task("release", Step::Release, self.home)?;
            for site in self.input.pipeline.deploy.iter().filter(|_| until(Step::Deploy)) {
                let task = draft.task(&format!("deploy-{site}"), Step::Deploy, site)?;
                if let Some(planned) = draft.tasks.last_mut() {
                    planned.needs = vec![release.clone()];
                }
                if site != self.home {
                    let route = (self.home, site);
                    draft.cross(
                        &task,
                        ("bundle", ArtifactKind::Bundle),
                        route,
                        &self.bundle,
                        cost::BUNDLE_BYTES,
                    );
                }
            }
        }
        Ok(draft.finish())
    }

    fn conditions(&self) -> Vec<String> {
        let prepare = &self.input.pipeline.prepare;
        let Some(dataset) = self
            .input
            .catalog
            .datasets
            .get(&prepare.from)
            .filter(|dataset| !dataset.public)
        else {
            return Vec::new();
        };
        let disclosure = &prepare.disclosure;
        let k = disclosure.k.unwrap_or(dataset.least_k).max(dataset.least_k);
        let l = disclosure.l.unwrap_or(dataset.least_l).max(dataset.least_l);
        let mut conditions = vec![format!(
            "every combination of quasi-identifiers is shared by at least {k} people, counted over this and all earlier releases"
        )];
        if l > 1 {
            conditions.push(format!(
                "each such group holds at least {l} distinct values of every sensitive column"
            ));
        }
        conditions.push(match disclosure.on_violation {
            OnViolation::Refuse => "otherwise nothing leaves".to_owned(),
            OnViolation::Suppress => format!(
                "groups that are too small are removed, and nothing leaves if that is more than {} % of the rows",
                disclosure.max_suppressed * 100.0
            ),
        });
        conditions
    }
}

/// How far a site came that a rule rejected: what it cannot, what it may not hold, what policy says,
/// what it costs.
fn progress(rule: &str) -> u8 {
    match rule {
        "other-site-named" => 0,
        "no-compute" => 1,
        "capacity" | "network" => 2,
        "label-above-clearance" | "tag-not-cleared" | "residency" => 3,
        "budget" | "egress-budget" | "deadline" => 5,
        _ => 4,
    }
}

fn unknown_costs(plan: &Plan) -> usize {
    let tasks = plan.tasks.iter().filter(|task| task.cost.is_none()).count();
    tasks + plan.crossings.iter().filter(|crossing| crossing.cost.is_none()).count()
}

struct Draft<'a> {
    planner: &'a Planner<'a>,
    tasks: Vec<PlannedTask>,
    crossings: Vec<PlannedCrossing>,
}

impl Draft<'_> {
    fn task(&mut self, name: &str, kind: Step, site: &SiteName) -> Result<TaskName, Refusal> {
        let input = self.planner.input;
        let task = TaskName::new(name).map_err(|error| {
            let fix = "give the site a name of at most 56 characters";
            refusal(
                "name-too-long",
                format!("planning task `{name}`"),
                error.to_string(),
                fix,
            )
        })?;
        let offer = self.planner.site(site)?.compute.as_ref();
        let seconds = cost::seconds(kind, input.pipeline, input.source_bytes);
        let spot = kind == Step::Train && input.pipeline.train.resources.use_spot;
        let machines = if kind == Step::Train {
            input.pipeline.train.num_nodes
        } else {
            1
        };
        self.tasks.push(PlannedTask {
            task: task.clone(),
            kind,
            site: site.clone(),
            machines,
            needs: self
                .tasks
                .last()
                .map(|before| before.task.clone())
                .into_iter()
                .collect(),
            seconds_estimate: seconds,
            cost: if kind == Step::Deploy {
                Some(Money::ZERO) // Takes no machine; its crossing is priced by itself.
            } else {
                cost::compute_cost(offer, spot, seconds.saturating_mul(u64::from(machines)))
            },
        });
        Ok(task)
    }

    fn cross_for_training(&mut self, task: &TaskName, site: &SiteName) {
        let planner = self.planner;
        let pipeline = planner.input.pipeline;
        let (train, validation) = cost::part_bytes(pipeline.prepare.split, planner.input.source_bytes);
        let there = (planner.home, site);
        // Code crosses first: it is set up before any data is on the machine.
        self.cross(
            task,
            ("code", ArtifactKind::Code),
            there,
            &planner.code,
            cost::code_bytes(pipeline),
        );
        self.cross(task, ("train", ArtifactKind::Dataset), there, &planner.data, train);
        if pipeline.prepare.split.validation > 0.0 {
            self.cross(
                task,
                ("validation", ArtifactKind::Dataset),
                there,
                &planner.data,
                validation,
            );
        }
        let back = (site, planner.home);
        self.cross(
            task,
            ("model", ArtifactKind::Model),
            back,
            &planner.model,
            cost::MODEL_BYTES,
        );
    }

    fn cross(
        &mut self,
        task: &TaskName,
        (artifact, kind): (&str, ArtifactKind),
        (from, to): (&SiteName, &SiteName),
        label: &Label,
        bytes: u64,
    ) {
        let input = self.planner.input;
        // Workers copy what they open, and a bundle is opened by no worker.
        let inputs = from == self.planner.home && kind != ArtifactKind::Bundle;
        let rules = input.sites.sites.get(to).and_then(|site| site.transfer.as_ref());
        let copied_from = rules
            .filter(|_| inputs)
            .map_or(Vec::new(), |rules| rules.copy_from.clone());
        self.crossings.push(PlannedCrossing {
            task: task.clone(),
            artifact: artifact.to_owned(),
            kind,
            from: from.clone(),
            to: to.clone(),
            label: label.clone(),
            columns: if kind == ArtifactKind::Dataset {
                input.labels.columns.clone()
            } else {
                Vec::new()
            },
            bytes_estimate: bytes,
            cost: cost::egress_cost(input.sites, from, &copied_from, to, bytes),
            copied_from,
        });
    }

    fn finish(self) -> Plan {
        let costs = || {
            let tasks = self.tasks.iter().map(|task| task.cost);
            tasks.chain(self.crossings.iter().map(|crossing| crossing.cost))
        };
        Plan {
            format: PLAN_FORMAT.to_owned(),
            pipeline: self.planner.input.pipeline.name.clone(),
            home: self.planner.home.clone(),
            cost_estimate: costs().flatten().fold(Money::ZERO, Money::saturating_add),
            unpriced: costs().any(|cost| cost.is_none()),
            deadline: self.planner.input.pipeline.deadline,
            tasks: self.tasks,
            crossings: self.crossings,
            elsewhere: Vec::new(),
        }
    }
}
