//! The tasks of a run, in order.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;
use tidegate_contracts::journal::Batch;
use tidegate_plan::{Plan, Step};
use tidegate_seal::digest::canonical_digest;
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::files::sites::Site;
use tidegate_types::ids::{SiteName, TaskName};
use tidegate_types::keeper::{ArtifactSummary, ReplyBody, RequestBody};

use crate::crossings::Wanted;
use crate::error::{EngineError, While};
use crate::ledger::Fact;
use crate::progress::Progress;
use crate::rows::is_rows;
use crate::run::Engine;
use crate::state::{JobRecord, JudgedStep, PreparedStep, ReleasedStep, RunRecord, RunStatus, TrainedStep, scan, value};
use crate::summary::{
    Summary, SummaryCrossing, SummaryLedger, SummaryMetrics, SummaryModel, SummaryPhase, SummaryRisk, points,
};

impl Engine {
    pub(crate) async fn tasks(
        &self,
        record: &mut RunRecord,
        plan: &Plan,
        began: Instant,
    ) -> Result<Summary, EngineError> {
        // Whether there is a program for the machines is told before anything is prepared for them.
        for site in std::iter::once(plan).chain(&plan.elsewhere).filter_map(Plan::trains_at) {
            self.worker_digest(site)?;
        }
        let mut done = Done::default();
        for planned in &plan.tasks {
            let (task, site) = (&planned.task, &planned.site);
            let run = record.clone();
            match planned.kind {
                Step::Prepare => {
                    let step = self.task(record, planned, self.prepare(&run)).await?;
                    done.prepared = Some(step);
                }
                Step::Train => {
                    let prepared = done.prepared()?;
                    let elsewhere = plan.elsewhere.iter().filter_map(Plan::trains_at);
                    let sites: Vec<&SiteName> = std::iter::once(site).chain(elsewhere).collect();
                    let work = self.train(&run, task, &sites, &prepared);
                    done.trained = Some(self.task(record, planned, work).await?);
                }
                Step::Evaluate => {
                    let model = done.model()?;
                    let work = self.judge(&run, &model, false);
                    done.evaluated = Some(self.judged(task, self.task(record, planned, work).await?));
                }
                Step::Refine => {
                    let model = done.model()?;
                    let work = self.judge(&run, &model, true);
                    done.refined = Some(self.judged(task, self.task(record, planned, work).await?));
                }
                Step::Release => {
                    let model = done.model()?;
                    let work = self.release(&run, task, &model);
                    done.released = Some(self.task(record, planned, work).await?);
                }
                Step::Deploy => {
                    let bundle = done.bundle()?;
                    let work = self.deploy(&run, task, site, &bundle);
                    self.task(record, planned, work).await?;
                    done.deployed.push(site.clone());
                }
            }
        }
        self.summary(record, done, began)
    }

    async fn prepare(&self, run: &RunRecord) -> Result<(PreparedStep, bool), EngineError> {
        let body = RequestBody::Prepare {
            run: run.id.clone(),
            pipeline: self.text.clone(),
        };
        let (reply, worked) = self.on_machines(run, "prepare", body).await?;
        let ReplyBody::Prepared {
            inputs,
            labels,
            risk,
            reused,
        } = reply
        else {
            return Err(self.keeper.wrong_reply());
        };
        let mut fact = Fact::new(EventType::Prepared, run.id.as_str())
            .number("k", risk.k)
            .number("rows", risk.rows)
            .number("suppressed", risk.suppressed_rows);
        for (name, input) in &inputs {
            fact = fact.digest(name, input.artifact);
        }
        self.ledger.record(&[fact])?;
        (self.progress)(&Progress::Prepared {
            rows: risk.rows - risk.suppressed_rows.min(risk.rows),
            suppressed: risk.suppressed_rows,
            k: risk.k,
        });
        Ok((PreparedStep { inputs, labels, risk }, reused && !worked))
    }

    async fn judge(
        &self,
        run: &RunRecord,
        model: &ArtifactSummary,
        refined: bool,
    ) -> Result<(JudgedStep, bool), EngineError> {
        let word = if refined { "refine" } else { "evaluate" };
        let key = self.key(&(word, &model.artifact, &self.text))?;
        if let Some(step) = self.step(&key)? {
            return Ok((step, true));
        }
        let (run_id, pipeline, artifact) = (run.id.clone(), self.text.clone(), model.artifact);
        let body = if refined {
            RequestBody::Refine {
                run: run_id,
                pipeline,
                model: artifact,
            }
        } else {
            RequestBody::Evaluate {
                run: run_id,
                pipeline,
                model: artifact,
            }
        };
        let step = match self.on_machines(run, word, body).await?.0 {
            ReplyBody::Evaluated { quality, raw, gates } => JudgedStep { quality, raw, gates },
            ReplyBody::Refined { quality, gates } => JudgedStep {
                quality,
                raw: None,
                gates,
            },
            _ => return Err(self.keeper.wrong_reply()),
        };
        let fact = Fact::new(EventType::Evaluated, run.id.as_str())
            .name("task", word)
            .digest("model", model.artifact);
        self.keep(&key, &step, &[fact])?;
        Ok((step, false))
    }

    /// Tells what came of judging a model, before a gate may end the run.
    fn judged(&self, task: &TaskName, step: JudgedStep) -> JudgedStep {
        (self.progress)(&Progress::Judged {
            task: task.clone(),
            roc_auc: step.quality.figures.get("roc_auc").copied(),
            gates: step.gates.clone(),
        });
        step
    }

    async fn release(
        &self,
        run: &RunRecord,
        task: &TaskName,
        model: &ArtifactSummary,
    ) -> Result<(ReleasedStep, bool), EngineError> {
        let key = self.key(&("release", &model.artifact, &self.text))?;
        if let Some(step) = self.step(&key)? {
            return Ok((step, true));
        }
        let intent = Fact::new(EventType::PermitRequested, run.id.as_str())
            .name("task", task.as_str())
            .digest("artifact", model.artifact);
        let ids = self.ledger.record(&[intent])?;
        let intent = ids.first().map(String::as_str).unwrap_or_default();
        let body = RequestBody::Release {
            run: run.id.clone(),
            pipeline: self.text.clone(),
            model: model.artifact,
            intent: self.ledger.prove(intent)?,
        };
        let ReplyBody::Released {
            bundle,
            version,
            manifest,
            gates,
            checkpoint,
        } = self.on_machines(run, "release", body).await?.0
        else {
            return Err(self.keeper.wrong_reply());
        };
        self.seen(&checkpoint)?;
        let fact = Fact::new(EventType::Released, run.id.as_str())
            .digest("bundle", bundle.artifact)
            .digest("manifest", manifest)
            .digest("model", model.artifact)
            .number("version", version);
        let step = ReleasedStep {
            bundle,
            version,
            manifest,
            gates,
        };
        self.keep(&key, &step, &[fact])?;
        Ok((step, false))
    }

    async fn deploy(
        &self,
        run: &RunRecord,
        task: &TaskName,
        site: &SiteName,
        bundle: &ArtifactSummary,
    ) -> Result<((), bool), EngineError> {
        let definition = self.sites.sites.get(site).map(Site::identity);
        let key = self.key(&("deploy", &bundle.artifact, site, definition))?;
        if self.step::<bool>(&key)?.is_some() {
            return Ok(((), true));
        }
        let permit = if *site == self.home {
            None
        } else {
            let (owner, _) = self.keeper.identify().await?;
            (self.enrol)(site, &owner.to_base64()).while_("enrolling a serving site")?;
            let wanted = Wanted {
                task,
                name: "bundle",
                artifact: &bundle.artifact,
                bytes: bundle.bytes,
                to: site,
                worker: None,
            };
            self.cross(run, &[wanted]).await?.pop()
        };
        let body = RequestBody::Deploy {
            run: run.id.clone(),
            pipeline: self.text.clone(),
            bundle: bundle.artifact,
            to: site.clone(),
            permit,
        };
        let ReplyBody::Deployed { .. } = self.keeper.ask("deploy", body).await? else {
            return Err(self.keeper.wrong_reply());
        };
        let fact = Fact::new(EventType::Deployed, run.id.as_str())
            .name("site", site.as_str())
            .digest("bundle", bundle.artifact);
        self.keep(&key, &true, &[fact])?;
        Ok(((), false))
    }

    /// The key of a step: equal keys mean that everything it depends on is equal.
    pub(crate) fn key<T: Serialize>(&self, parts: &T) -> Result<Digest, EngineError> {
        canonical_digest(parts).while_("naming a step")
    }

    /// Keeps a step's result with its leaves in one transaction.
    pub(crate) fn keep<T: Serialize>(&self, key: &Digest, step: &T, facts: &[Fact]) -> Result<(), EngineError> {
        let mut batch = Batch::default().set("steps", &key.to_hex(), value(step)?);
        for fact in facts {
            batch = self.ledger.add(batch, fact)?.0;
        }
        self.journal.commit(&batch).while_("keeping a step's result")
    }

    /// What of the training of this run took how long; nothing where an earlier result was used.
    fn training_of(&self, record: &RunRecord) -> Result<Vec<SummaryPhase>, EngineError> {
        let jobs: Vec<JobRecord> = scan(&*self.journal, "jobs", "")?;
        // Of several machines, what is told is the first one's.
        let of_run = jobs
            .iter()
            .filter(|job| job.attempt.run == record.id && job.attempt.rank == 0 && !is_rows(&job.attempt.task));
        let last = of_run.map(|job| &job.attempt).max();
        last.map_or(Ok(Vec::new()), |attempt| self.phases_of(attempt))
    }

    fn summary(&self, record: &RunRecord, done: Done, began: Instant) -> Result<Summary, EngineError> {
        let crossings = self.crossings(record)?;
        let quality = |step: &Option<JudgedStep>| step.as_ref().map(|step| step.quality.clone());
        let metrics = |step: &Option<JudgedStep>| step.as_ref().map(|step| points(&step.quality)).unwrap_or_default();
        Ok(Summary {
            run: record.id.clone(),
            status: RunStatus::Done,
            model: done.released.as_ref().map(|released| SummaryModel {
                name: self.pipeline.name.to_string(),
                version: released.version,
                digest: released.manifest.to_string(),
            }),
            metrics: SummaryMetrics {
                home: metrics(&done.evaluated),
                refined: metrics(&done.refined),
                raw: done
                    .evaluated
                    .as_ref()
                    .and_then(|step| step.raw.as_ref())
                    .map(points)
                    .unwrap_or_default(),
            },
            home: quality(&done.evaluated),
            refined: quality(&done.refined),
            gates: done
                .released
                .map(|released| released.gates)
                .or_else(|| done.refined.map(|step| step.gates))
                .or_else(|| done.evaluated.map(|step| step.gates))
                .unwrap_or_default(),
            risk: done.prepared.map(|prepared| SummaryRisk {
                k: prepared.risk.k,
                l: prepared.risk.l,
                suppressed: prepared.risk.suppressed_rows,
                rows: prepared.risk.rows,
                raw_unique: prepared.risk.raw_unique_rows,
            }),
            training: self.training_of(record)?,
            crossings: crossings
                .into_iter()
                .map(|entry| SummaryCrossing {
                    artifact: entry.artifact,
                    from: entry.from,
                    to: entry.to,
                    bytes: entry.bytes,
                    permit: entry.permit,
                })
                .collect(),
            cost: self.cost(record)?,
            ledger: SummaryLedger::default(),
            deployed: done.deployed,
            reused: record
                .tasks
                .iter()
                .filter(|(_, state)| state.reused)
                .map(|(task, _)| task.to_string())
                .collect(),
            seconds: began.elapsed().as_secs_f64(),
        })
    }
}

/// What the tasks so far have given.
#[derive(Default)]
struct Done {
    prepared: Option<PreparedStep>,
    trained: Option<TrainedStep>,
    evaluated: Option<JudgedStep>,
    refined: Option<JudgedStep>,
    released: Option<ReleasedStep>,
    deployed: Vec<SiteName>,
}

impl Done {
    fn prepared(&self) -> Result<BTreeMap<String, ArtifactSummary>, EngineError> {
        let prepared = self.prepared.as_ref().map(|step| step.inputs.clone());
        prepared.ok_or_else(|| EngineError::failed("following the plan", "it trains before it prepares"))
    }

    fn model(&self) -> Result<ArtifactSummary, EngineError> {
        let model = self.trained.as_ref().map(|step| step.model.clone());
        model.ok_or_else(|| EngineError::failed("following the plan", "it needs a model before it trains one"))
    }

    fn bundle(&self) -> Result<ArtifactSummary, EngineError> {
        let bundle = self.released.as_ref().map(|step| step.bundle.clone());
        bundle.ok_or_else(|| EngineError::failed("following the plan", "it deploys before it releases"))
    }
}
