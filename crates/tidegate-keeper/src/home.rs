//! What happens with rows at home, and what is made of it: inputs, figures, bundles, releases.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tidegate_contracts::journal::Batch;
use tidegate_contracts::stage::{ModelAtHome, RowsWork, StageContext, StageError};
use tidegate_contracts::store::ObjectName;
use tidegate_seal::digest::{canonical_digest, sha256};
use tidegate_seal::packing;
use tidegate_transfer::{Description, describe};
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::files::Pipeline;
use tidegate_types::ids::{ArtifactId, RunId, TaskName};
use tidegate_types::keeper::{GateResult, PipelineText, QualitySummary, ReplyBody};
use tidegate_types::label::{Label, Level};
use tidegate_types::permit::Evidence;
use tidegate_types::to_canonical_json;

use crate::error::{KeeperError, While, refuse};
use crate::records::{ArtifactRecord, PreparedRecord, value};
use crate::service::Keeper;

/// How often the test part of one preparation may be used to judge models: exact scores of many
/// submitted models can read patients.
const EVALUATION_BUDGET: u64 = 500;

impl From<StageError> for KeeperError {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Refused(refusal) => Self::Refused(refusal),
            StageError::Input(why) => Self::Input(why),
            StageError::Failed(why) => Self::failed("working on rows at home", why),
        }
    }
}

/// Figures that were given before, so that asking again costs no budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Judgement {
    quality: QualitySummary,
    raw: Option<QualitySummary>,
    gates: Vec<GateResult>,
}

impl Keeper {
    pub(crate) fn context<'a>(
        &'a self,
        pipeline: &'a Pipeline,
        text: &'a PipelineText,
        folder: &'a Path,
    ) -> StageContext<'a> {
        StageContext {
            catalog: &self.catalog,
            catalog_folder: &self.catalog_folder,
            pipeline,
            text,
            folder,
            keys: &self.keys.stages,
        }
    }

    pub(crate) async fn analyse(&self, text: &PipelineText) -> Result<ReplyBody, KeeperError> {
        let (pipeline, _) = self.pipeline(text)?;
        self.dataset(&pipeline)?;
        let folder = self.stage_folder()?;
        let (labels, source_bytes) = self.stages.analyse(&self.context(&pipeline, text, &folder)).await?;
        Ok(ReplyBody::Analysis {
            labels,
            source_bytes,
            catalog: canonical_digest(&self.catalog).while_("naming the catalog")?,
            policies: self.policies.digest(),
        })
    }

    pub(crate) async fn prepare(&self, run: &RunId, text: &PipelineText) -> Result<ReplyBody, KeeperError> {
        let _rows = self.rows.lock().await;
        let (pipeline, digest) = self.pipeline(text)?;
        if self.records.prepared(run)?.is_some() {
            // Attempts may be open whose permits were signed for what was prepared.
            self.prepared_record(run, digest)?;
        }
        let dataset = self.dataset(&pipeline)?;
        let folder = self.stage_folder()?;
        let asked = (text, &pipeline, digest);
        if self.is_for_a_machine(run, "prepare", asked, RowsWork::Prepare).await? {
            return Ok(ReplyBody::OnMachine);
        }
        let context = self.context(&pipeline, text, &folder);
        let prepared = self.stages.prepare(&context).await?;
        if let Some(refusal) = prepared.labels.refusals.first() {
            return Err(refusal.clone().into());
        }
        let evidence = Evidence {
            sql: Some(sha256(prepared.labels.sql.as_bytes())),
            label_report: Some(canonical_digest(&prepared.labels).while_("naming the label report")?),
            k: Some(prepared.risk.k),
            l: prepared.risk.l,
            suppressed_rows: Some(prepared.risk.suppressed_rows),
        };
        let raw = Label {
            level: if dataset.public {
                Level::Public
            } else {
                Level::Restricted
            },
            tags: dataset.tags.clone(),
            residency: dataset.residency.clone(),
        };
        let mut inputs = BTreeMap::new();
        let mut summaries = BTreeMap::new();
        for (name, source) in &prepared.inputs {
            let description = Description {
                kind: ArtifactKind::Dataset,
                name: format!("{}/{name}", pipeline.prepare.from),
                organisation: self.sites.organisation.clone(),
                owner: self.site.clone(),
                label: prepared.labels.release.clone(),
                lowered_from: Some(raw.clone()),
                columns: prepared.columns.clone(),
                lineage: BTreeSet::new(),
                task: task("prepare")?,
                step_key: prepared.step_key,
            };
            let record = self.describe(source, description, evidence.clone(), name)?;
            self.keep(name, record, &mut inputs, &mut summaries)?;
        }
        let code = self.code(&context, &prepared.home, &pipeline).await?;
        self.keep("code", code, &mut inputs, &mut summaries)?;
        let record = PreparedRecord {
            inputs,
            home: self.relative(&prepared.home)?,
            pipeline: digest,
            evidence,
            sample: text.sample.is_some(),
            at: (self.clock)(),
        };
        // Grants ask policy again, after a restart too, so the pipeline's text is kept.
        self.records
            .commit(&Batch::default().set("pipelines", run.as_str(), value(text)?).set(
                "prepared",
                run.as_str(),
                value(&record)?,
            ))?;
        Ok(ReplyBody::Prepared {
            inputs: summaries,
            labels: prepared.labels,
            risk: prepared.risk,
            reused: prepared.reused,
        })
    }

    fn keep(
        &self,
        name: &str,
        record: ArtifactRecord,
        inputs: &mut BTreeMap<String, ArtifactId>,
        summaries: &mut BTreeMap<String, tidegate_types::keeper::ArtifactSummary>,
    ) -> Result<(), KeeperError> {
        let artifact = packing::manifest_digest(&record.manifest).while_("naming an artifact")?;
        self.records.put_artifact(&artifact, &record)?;
        summaries.insert(name.to_owned(), record.summary(artifact));
        inputs.insert(name.to_owned(), artifact);
        Ok(())
    }

    pub(crate) fn describe(
        &self,
        source: &Path,
        description: Description,
        evidence: Evidence,
        role: &str,
    ) -> Result<ArtifactRecord, KeeperError> {
        let manifest = describe(source, description, &self.keys.digest).while_("describing an artifact")?;
        Ok(ArtifactRecord {
            manifest,
            folder: self.relative(source)?,
            evidence,
            role: role.to_owned(),
        })
    }

    /// The code that will cross: the built-in trainer's settings, or the files that the pipeline
    /// lists, each scanned for values of the data.
    async fn code(
        &self,
        context: &StageContext<'_>,
        home: &Path,
        pipeline: &Pipeline,
    ) -> Result<ArtifactRecord, KeeperError> {
        let making = "collecting the code";
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        if let Some(trainer) = &pipeline.train.trainer {
            files.insert("trainer.json".to_owned(), to_canonical_json(trainer).while_(making)?);
        }
        for (path, content) in &context.text.code {
            let content = STANDARD.decode(content).while_(making)?;
            self.stages.scan_code(context, home, path, &content).await?;
            files.insert(path.clone(), content);
        }
        // Commands and variables cross with the grant.
        let variables = pipeline.train.envs.iter().map(|(name, text)| (name.as_str(), text));
        let commands = [("setup", &pipeline.train.setup), ("run", &pipeline.train.run)];
        let commands = commands
            .into_iter()
            .filter_map(|(name, text)| Some((name, text.as_ref()?)));
        for (name, text) in commands.chain(variables) {
            self.stages.scan_code(context, home, name, text.as_bytes()).await?;
        }
        let listing: BTreeMap<&String, Digest> = files.iter().map(|(path, bytes)| (path, sha256(bytes))).collect();
        let key = canonical_digest(&listing).while_(making)?;
        let folder = self.folder.join("code").join(key.to_hex());
        if !folder.exists() {
            let temporary = self
                .folder
                .join("code")
                .join(format!("new-{}-{}", std::process::id(), key.short()));
            let _ = std::fs::remove_dir_all(&temporary);
            std::fs::create_dir_all(&temporary).while_(making)?;
            for (path, bytes) in &files {
                let name = ObjectName::new(path.clone()).while_(making)?;
                let file = temporary.join(name.as_str());
                std::fs::create_dir_all(file.parent().unwrap_or(&temporary)).while_(making)?;
                std::fs::write(&file, bytes).while_(making)?;
            }
            if let Err(error) = std::fs::rename(&temporary, &folder)
                && !folder.exists()
            {
                return Err(KeeperError::failed(making, error));
            }
        }
        let description = Description {
            kind: ArtifactKind::Code,
            name: format!("{}/code", pipeline.name),
            organisation: self.sites.organisation.clone(),
            owner: self.site.clone(),
            label: Label::of(
                pipeline
                    .train
                    .code_level
                    .map_or(Level::Internal, |level| level.max(Level::Internal)),
            ),
            lowered_from: None,
            columns: Vec::new(),
            lineage: BTreeSet::new(),
            task: task("prepare")?,
            step_key: key,
        };
        self.describe(&folder, description, no_evidence(), "code")
    }

    /// A model of this site, with where its preparation's home parts are.
    pub(crate) fn model(
        &self,
        run: &RunId,
        digest: Digest,
        model: &ArtifactId,
    ) -> Result<(ArtifactRecord, PreparedRecord), KeeperError> {
        let prepared = self.prepared_record(run, digest)?;
        let record = self.artifact_record(model)?;
        if record.manifest.kind != ArtifactKind::Model {
            return Err(refuse(
                "not-a-model",
                format!("judging artifact {}", model.short()),
                "it is not a model",
                "name the model that training made",
            )
            .into());
        }
        Ok((record, prepared))
    }

    pub(crate) async fn judge(
        &self,
        run: &RunId,
        text: &PipelineText,
        model: &ArtifactId,
        refined: bool,
    ) -> Result<ReplyBody, KeeperError> {
        let _rows = self.rows.lock().await;
        let (pipeline, digest) = self.pipeline(text)?;
        let (record, prepared) = self.model(run, digest, model)?;
        let word = if refined { "refined" } else { "evaluated" };
        let key = format!("{}.{}.{word}", model.to_hex(), digest.to_hex());
        let judgement = match self.records.get::<Judgement>("judgements", &key)? {
            Some(judgement) => judgement,
            None => {
                let folder = self.stage_folder()?;
                let context = self.context(&pipeline, text, &folder);
                let (at, home) = (self.folder.join(&record.folder), self.folder.join(&prepared.home));
                let at_home = ModelAtHome {
                    folder: &at,
                    home: &home,
                };
                self.charge_evaluation(&pipeline, &key)?;
                let (name, asked) = (if refined { "refine" } else { "evaluate" }, (text, &pipeline, digest));
                if self
                    .is_for_a_machine(run, name, asked, RowsWork::Judge(&at_home))
                    .await?
                {
                    return Ok(ReplyBody::OnMachine);
                }
                let judged = if refined {
                    self.stages.refine(&context, &at_home).await?
                } else {
                    self.stages.evaluate(&context, &at_home).await?
                };
                let judgement = Judgement {
                    quality: judged.quality,
                    raw: judged.raw,
                    gates: judged.gates,
                };
                let leaf = self.event(EventType::Evaluated, run, &[("part", "test")], &[("model", *model)])?;
                self.records.commit(
                    &Batch::default()
                        .set("judgements", &key, value(&judgement)?)
                        .leaf(&format!("judged/{key}"), leaf),
                )?;
                judgement
            }
        };
        Ok(if refined {
            ReplyBody::Refined {
                quality: judgement.quality,
                gates: judgement.gates,
            }
        } else {
            ReplyBody::Evaluated {
                quality: judgement.quality,
                raw: judgement.raw,
                gates: judgement.gates,
            }
        })
    }

    /// Counts one look at the test part, once for each that is asked for, whatever comes of it: a refusal tells something,
    /// too. The part depends on the dataset and its division alone, so another query over the same people spends from the same
    /// budget.
    pub(crate) fn charge_evaluation(&self, pipeline: &Pipeline, judgement: &str) -> Result<(), KeeperError> {
        if self.records.get::<bool>("charged", judgement)?.is_some() {
            return Ok(());
        }
        let prepare = &pipeline.prepare;
        let key = canonical_digest(&(&prepare.from, &prepare.split))
            .while_("counting evaluations")?
            .to_hex();
        let spent = self.records.get::<u64>("evaluations", &key)?.unwrap_or(0);
        if spent >= EVALUATION_BUDGET {
            return Err(refuse(
                "evaluation-budget",
                "judging another model on the test part",
                format!("{spent} models were judged on it already, and exact scores of many models can read patients"),
                "divide the dataset anew under `prepare: split:`, so that other people are in the test part",
            )
            .into());
        }
        self.records
            .commit(&Batch::default().set("evaluations", &key, value(&(spent + 1))?).set(
                "charged",
                judgement,
                value(&true)?,
            ))
    }
}

pub(crate) fn no_evidence() -> Evidence {
    Evidence {
        sql: None,
        label_report: None,
        k: None,
        l: None,
        suppressed_rows: None,
    }
}

pub(crate) fn task(name: &str) -> Result<TaskName, KeeperError> {
    TaskName::new(name).while_("naming a task")
}
