//! Holds a finished plan against what it was made from. Written from the design and not from the
//! planner, and shares no code with it: what one gets wrong the other must find.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_types::artifact::ArtifactKind;
use tidegate_types::files::catalog::Dataset;
use tidegate_types::files::sites::NetworkRule;
use tidegate_types::ids::{SiteName, TaskName};
use tidegate_types::label::{Label, Level, Residency};
use tidegate_types::quantity::Money;

use crate::model::{Plan, PlanInput, PlannedCrossing, Step};

/// Whether `plan` may be executed for `input`.
///
/// # Errors
/// Every sentence that does not hold, each naming the task or crossing.
pub fn check(input: &PlanInput<'_>, plan: &Plan) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    match input.catalog.datasets.get(&input.pipeline.prepare.from) {
        None => faults.push("the dataset is not in the catalog".to_owned()),
        Some(dataset) => {
            let mut checker = Checker {
                input,
                plan,
                dataset,
                faults: &mut faults,
            };
            checker.head();
            checker.tasks();
            checker.routes();
            for crossing in &plan.crossings {
                checker.crossing(crossing);
            }
            checker.limits();
            checker.elsewhere();
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

struct Checker<'a> {
    input: &'a PlanInput<'a>,
    plan: &'a Plan,
    dataset: &'a Dataset,
    faults: &'a mut Vec<String>,
}

impl Checker<'_> {
    fn expect(&mut self, holds: bool, fault: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(fault());
        }
    }

    fn head(&mut self) {
        let (plan, pipeline) = (self.plan, self.input.pipeline);
        self.expect(plan.format == "tidegate.plan.v1", || {
            "the plan has another format".to_owned()
        });
        self.expect(plan.pipeline == pipeline.name, || {
            "the plan is for another pipeline".to_owned()
        });
        self.expect(plan.home == self.dataset.site, || {
            "home is not the site that owns the dataset".to_owned()
        });
        self.expect(plan.deadline == pipeline.deadline, || {
            "the deadline is not the pipeline's".to_owned()
        });
        let dataset = self.dataset;
        self.expect(dataset.purposes.contains(&pipeline.purpose), || {
            "the purpose is not the owner's".to_owned()
        });
        let disclosure = &pipeline.prepare.disclosure;
        let tight =
            disclosure.k.is_none_or(|k| k >= dataset.least_k) && disclosure.l.is_none_or(|l| l >= dataset.least_l);
        self.expect(tight, || {
            "the pipeline asks for less than the catalog's k or l".to_owned()
        });
        let clean = self.input.labels.refusals.is_empty();
        self.expect(clean, || "the label analysis refuses the query".to_owned());
    }

    /// The tasks are exactly those that the pipeline asks for, each where it belongs and after what it
    /// needs.
    fn tasks(&mut self) {
        let (plan, pipeline) = (self.plan, self.input.pipeline);
        let last = self.input.until.unwrap_or(Step::Deploy);
        let mut wanted: BTreeMap<(Step, Option<&SiteName>), &str> = BTreeMap::new();
        for step in [Step::Prepare, Step::Train, Step::Evaluate, Step::Refine, Step::Release] {
            if step <= last && (step != Step::Refine || pipeline.refine.is_some()) {
                wanted.insert((step, None), step.as_str());
            }
        }
        if last == Step::Deploy {
            wanted.extend(
                pipeline
                    .deploy
                    .iter()
                    .map(|site| ((Step::Deploy, Some(site)), "deploy")),
            );
        }
        let mut seen: BTreeSet<&TaskName> = BTreeSet::new();
        let mut done: BTreeSet<Step> = BTreeSet::new();
        for task in &plan.tasks {
            let name = &task.task;
            let target = (task.kind == Step::Deploy).then_some(&task.site);
            self.expect(wanted.remove(&(task.kind, target)).is_some(), || {
                format!("task `{name}` is not asked for")
            });
            let right_name = match target {
                Some(site) => name.as_str() == format!("deploy-{site}"),
                None => name.as_str() == task.kind.as_str(),
            };
            self.expect(right_name, || {
                format!("task `{name}` has another name than its kind and site give")
            });
            self.expect(task.needs.iter().all(|need| seen.contains(need)), || {
                format!("task `{name}` stands before something that it needs")
            });
            self.expect(seen.insert(name), || format!("task `{name}` stands there twice"));
            let before: &[Step] = match task.kind {
                Step::Prepare => &[],
                Step::Train => &[Step::Prepare],
                Step::Evaluate => &[Step::Train],
                Step::Refine => &[Step::Evaluate],
                Step::Release if pipeline.refine.is_some() => &[Step::Refine],
                Step::Release => &[Step::Evaluate],
                Step::Deploy => &[Step::Release],
            };
            let follows = before
                .iter()
                .all(|step| done.contains(step) && task.needs.iter().any(|need| need.as_str() == step.as_str()));
            self.expect(follows, || {
                format!("task `{name}` does not wait for the step before it")
            });
            done.insert(task.kind);
            if !matches!(task.kind, Step::Train | Step::Deploy) {
                let at_home = task.site == plan.home;
                self.expect(at_home, || {
                    format!("task `{name}` reads private data and is not at home")
                });
            }
        }
        for ((step, site), _) in wanted {
            let site = site.map_or(String::new(), |site| format!(" to `{site}`"));
            self.faults
                .push(format!("nobody does the step `{}`{site}", step.as_str()));
        }
        self.trainer();
    }

    /// The site that trains is able to.
    fn trainer(&mut self) {
        let resources = &self.input.pipeline.train.resources;
        let trainers: Vec<&SiteName> = self
            .plan
            .tasks
            .iter()
            .filter(|task| task.kind == Step::Train)
            .map(|task| &task.site)
            .collect();
        for name in trainers {
            let mut named = resources
                .any_of
                .iter()
                .map(|one| &one.infra)
                .chain(&resources.infra)
                .peekable();
            let free = named.peek().is_none();
            self.expect(free || named.any(|one| one == name), || {
                format!("training is on `{name}`, and the pipeline names another site")
            });
            let site = self.input.sites.sites.get(name);
            // Who names the site vouches that its setup needs no network.
            let sets_up = self.input.pipeline.train.setup.is_none()
                || resources.infra.is_some()
                || !resources.any_of.is_empty()
                || site.is_some_and(|site| site.network.setup == NetworkRule::Allow);
            self.expect(sets_up, || format!("`{name}` has no network for the setup"));
            let joined = self.input.pipeline.train.num_nodes <= 1
                || site.is_some_and(|site| site.network.nodes == NetworkRule::Allow);
            self.expect(joined, || format!("machines of `{name}` do not reach one another"));
            let Some(offer) = site.and_then(|site| site.compute.as_ref()) else {
                self.faults
                    .push(format!("training is on `{name}`, which has no compute"));
                continue;
            };
            let hosts = offer.hosts.len();
            let enough = hosts == 0 || hosts >= self.input.pipeline.train.num_nodes as usize;
            self.expect(enough, || format!("`{name}` has too few machines"));
            let asked = resources
                .cpus
                .as_deref()
                .unwrap_or("1")
                .trim_end_matches('+')
                .parse::<u32>();
            self.expect(asked.is_ok_and(|asked| asked <= offer.cpus), || {
                format!("`{name}` has too few processors")
            });
            let memory = resources.memory.is_none_or(|memory| memory.0 <= offer.memory.0);
            self.expect(memory, || format!("`{name}` has too little memory"));
            let accelerators = resources.accelerators.as_ref().is_none_or(|asked| {
                // Read apart from how the planner does.
                let counted = |text: &str| {
                    let (kind, count) = text.split_once(':').unwrap_or((text, "1"));
                    Some((kind.to_lowercase(), count.parse::<u32>().ok()?))
                };
                match (counted(asked), offer.accelerators.as_deref().and_then(counted)) {
                    (Some((kind, count)), Some((there, most))) => kind == there && count <= most,
                    _ => false,
                }
            });
            self.expect(accelerators, || format!("`{name}` lacks the accelerators"));
        }
    }

    /// Exactly what must cross does, once, from and to where it belongs.
    fn routes(&mut self) {
        let home = &self.plan.home;
        let mut wanted: BTreeSet<(String, &str, &SiteName, &SiteName)> = BTreeSet::new();
        for task in &self.plan.tasks {
            let name = task.task.to_string();
            if task.site == *home {
                continue;
            }
            match task.kind {
                Step::Train => {
                    wanted.insert((name.clone(), "code", home, &task.site));
                    wanted.insert((name.clone(), "train", home, &task.site));
                    if self.input.pipeline.prepare.split.validation != 0.0 {
                        wanted.insert((name.clone(), "validation", home, &task.site));
                    }
                    wanted.insert((name, "model", &task.site, home));
                }
                Step::Deploy => {
                    wanted.insert((name, "bundle", home, &task.site));
                }
                _ => {}
            }
        }
        let mut faults = Vec::new();
        for crossing in &self.plan.crossings {
            let route = (
                crossing.task.to_string(),
                crossing.artifact.as_str(),
                &crossing.from,
                &crossing.to,
            );
            if !wanted.remove(&route) {
                faults.push(format!(
                    "`{}` from `{}` to `{}` is needed by no task",
                    route.1, route.2, route.3
                ));
            }
        }
        for (_, artifact, from, to) in wanted {
            faults.push(format!(
                "`{artifact}` does not cross from `{from}` to `{to}`, and is needed there"
            ));
        }
        self.faults.append(&mut faults);
    }

    fn crossing(&mut self, crossing: &PlannedCrossing) {
        let name = format!("`{}` to `{}`", crossing.artifact, crossing.to);
        let label = &crossing.label;
        let kind = match crossing.artifact.as_str() {
            "train" | "validation" => ArtifactKind::Dataset,
            "code" => ArtifactKind::Code,
            "model" => ArtifactKind::Model,
            _ => ArtifactKind::Bundle,
        };
        self.expect(crossing.kind == kind, || {
            format!("{name} is called another kind of thing")
        });
        match self.input.sites.sites.get(&crossing.to) {
            None => self.faults.push(format!("{name}: there is no such site")),
            Some(site) => {
                self.expect(label.level <= site.clearance.level, || {
                    format!("{name} is above the site's clearance")
                });
                let tags = label.tags.iter().all(|tag| site.clearance.tags.contains(tag));
                self.expect(tags, || {
                    format!("{name} carries a tag that the site is not cleared for")
                });
                let place = &site.jurisdiction;
                let resides = |residency: &Residency| match residency {
                    Residency::Anywhere => true,
                    Residency::Only(places) => places.iter().any(|allowed| allowed == place),
                };
                self.expect(resides(&label.residency), || {
                    format!("{name} may not be held in `{place}`")
                });
                if kind != ArtifactKind::Code {
                    let whole = resides(&self.dataset.residency);
                    self.expect(whole, || format!("{name}: the dataset may not be held in `{place}`"));
                }
            }
        }
        let pipeline = self.input.pipeline;
        let release = &self.input.labels.release;
        let code = pipeline
            .train
            .code_level
            .unwrap_or(Level::Internal)
            .max(Level::Internal);
        let data = release.level.max(pipeline.prepare.disclosure.to);
        let least = match kind {
            ArtifactKind::Dataset => data,
            ArtifactKind::Code => code,
            ArtifactKind::Model => data.max(code),
            ArtifactKind::Bundle => pipeline.release_model.to.max(release.level).max(code),
            _ => label.level,
        };
        self.expect(label.level >= least, || {
            format!("{name} is labelled lower than what it is made from")
        });
        if kind != ArtifactKind::Code {
            let tags = release.tags.iter().all(|tag| label.tags.contains(tag));
            self.expect(tags, || format!("{name} has lost a tag of what it is made from"));
        }
        if kind == ArtifactKind::Dataset {
            self.columns(&name, crossing, label);
        }
        if let Err(refusal) = (self.input.policies)(crossing) {
            self.faults
                .push(format!("{name}: policy says no: rule `{}`", refusal.rule));
        }
    }

    fn columns(&mut self, name: &str, crossing: &PlannedCrossing, label: &Label) {
        let same = crossing.columns == self.input.labels.columns;
        self.expect(same, || {
            format!("{name} has other columns than the label analysis has seen")
        });
        for column in &crossing.columns {
            let within =
                column.label.level <= label.level && column.label.tags.iter().all(|tag| label.tags.contains(tag));
            self.expect(within, || {
                format!("{name}: column `{}` is above the label of the whole", column.name)
            });
        }
    }

    /// Every other site is as good a plan by itself, and stands there once.
    fn elsewhere(&mut self) {
        let train = |plan: &Plan| {
            plan.tasks
                .iter()
                .find(|task| task.kind == Step::Train)
                .map(|task| task.site.clone())
        };
        let mut seen = BTreeSet::from([train(self.plan)]);
        for other in &self.plan.elsewhere {
            let site = train(other);
            self.expect(other.elsewhere.is_empty(), || {
                "another site has others after it".to_owned()
            });
            self.expect(site.is_some() && seen.insert(site.clone()), || {
                "another site is one that stood there before, or trains nothing".to_owned()
            });
            let site = site.map_or(String::new(), |site| site.to_string());
            if other.elsewhere.is_empty()
                && let Err(faults) = check(self.input, other)
            {
                self.faults.extend(
                    faults
                        .into_iter()
                        .map(|fault| format!("with the training on `{site}`: {fault}")),
                );
            }
        }
    }

    /// Sums, budget and deadline.
    fn limits(&mut self) {
        let (plan, sites, pipeline) = (self.plan, self.input.sites, self.input.pipeline);
        let mut micro = 0_u64;
        let mut unknown = false;
        let tasks = plan.tasks.iter().map(|task| task.cost);
        for cost in tasks.chain(plan.crossings.iter().map(|crossing| crossing.cost)) {
            match cost {
                Some(cost) => micro = micro.saturating_add(cost.micro_usd),
                None => unknown = true,
            }
        }
        self.expect(plan.cost_estimate.micro_usd == micro, || {
            "the costs do not add up to the estimate".to_owned()
        });
        self.expect(plan.unpriced == unknown, || {
            "a cost is not known, and the plan hides it".to_owned()
        });
        for task in &plan.tasks {
            let offer = sites.sites.get(&task.site).and_then(|site| site.compute.as_ref());
            let spot = offer
                .and_then(|offer| offer.spot_price)
                .filter(|_| task.kind == Step::Train && pipeline.train.resources.use_spot);
            let machines = match task.kind {
                Step::Train => pipeline.train.num_nodes,
                _ => 1,
            };
            self.expect(task.machines == machines, || {
                format!("task `{}` has not as many machines as the pipeline asks for", task.task)
            });
            let seconds = u64::from(machines).saturating_mul(task.seconds_estimate);
            let cost = match (task.kind, spot) {
                // A deployment takes no machine.
                (Step::Deploy, _) => Some(Money::ZERO),
                // A fifth of the work on a machine that may be taken away is done twice.
                (_, Some(price)) => Some(price.for_seconds(seconds.saturating_add(seconds.div_ceil(5)))),
                (_, None) => offer
                    .and_then(|offer| offer.price)
                    .map(|price| price.for_seconds(seconds)),
            };
            self.expect(task.cost == cost, || {
                format!("task `{}` has another cost than its site's price gives", task.task)
            });
        }
        let mut leaving = 0_u64;
        for crossing in &plan.crossings {
            if crossing.from == plan.home {
                leaving = leaving.saturating_add(crossing.bytes_estimate);
            }
            let inputs = crossing.from == plan.home && crossing.artifact != "bundle";
            let destination = sites.sites.get(&crossing.to);
            let named: &[SiteName] = match destination.and_then(|site| site.transfer.as_ref()) {
                Some(rules) if inputs => &rules.copy_from,
                _ => &[],
            };
            self.expect(crossing.copied_from == named, || {
                format!(
                    "`{}` is copied from other sites than its destination names",
                    crossing.artifact
                )
            });
            let mut cost = Some(Money::ZERO);
            for from in named.iter().chain([&crossing.from]) {
                let price = sites
                    .sites
                    .get(from)
                    .and_then(|site| site.egress.get(crossing.to.as_str()).or_else(|| site.egress.get("*")));
                let here = price.map(|price| price.for_bytes(crossing.bytes_estimate));
                cost = cost.zip(here).map(|(most, here)| most.max(here));
            }
            self.expect(crossing.cost == cost, || {
                format!("`{}` has another cost than its price gives", crossing.artifact)
            });
        }
        let trains = plan.tasks.iter().any(|task| task.kind == Step::Train);
        let seconds = plan
            .tasks
            .iter()
            .fold(0_u64, |sum, task| sum.saturating_add(task.seconds_estimate));
        let (egress, cost) = (pipeline.budget.egress, pipeline.budget.cost);
        self.expect(egress.is_none_or(|limit| leaving <= limit.0), || {
            "more bytes leave than the budget allows".to_owned()
        });
        self.expect(!trains || cost.is_none_or(|limit| micro <= limit.micro_usd), || {
            "it costs more than the budget".to_owned()
        });
        let in_time = !trains || pipeline.deadline.is_none_or(|limit| seconds <= limit.0);
        self.expect(in_time, || "it takes longer than the deadline allows".to_owned());
    }
}
