//! Releasing a model: every gate passed, one more version, a bundle that this site signed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tidegate_contracts::journal::Batch;
use tidegate_contracts::stage::{ModelAtHome, RowsWork};
use tidegate_seal::digest::{canonical_digest, sha256};
use tidegate_seal::{dsse, packing};
use tidegate_transfer::Description;
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::files::Pipeline;
use tidegate_types::ids::{ArtifactId, RunId};
use tidegate_types::keeper::{GateResult, LedgerProof, PipelineText, ReplyBody};
use tidegate_types::label::{Label, Level};

use crate::error::{KeeperError, While, refuse};
use crate::home::task;
use crate::records::value;
use crate::service::Keeper;
use crate::witness::Intended;

/// A bundle that was released.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Released {
    bundle: ArtifactId,
    version: u64,
    manifest: Digest,
    gates: Vec<GateResult>,
    checkpoint: String,
}

impl Keeper {
    pub(crate) async fn release(
        &self,
        run: &RunId,
        text: &PipelineText,
        model: &ArtifactId,
        intent: &LedgerProof,
    ) -> Result<ReplyBody, KeeperError> {
        let _rows = self.rows.lock().await;
        let releasing = "releasing a model";
        let (pipeline, digest) = self.pipeline(text)?;
        let (record, prepared) = self.model(run, digest, model)?;
        if prepared.sample {
            return Err(refuse(
                "sample",
                "releasing the model",
                "it was trained on a sample of the rows",
                "run without `--sample`",
            )
            .into());
        }
        let key = format!("{}.{}", model.to_hex(), digest.to_hex());
        let released = match self.records.get::<Released>("releases", &key)? {
            Some(released) => released,
            None => {
                let (at, home) = (self.folder.join(&record.folder), self.folder.join(&prepared.home));
                let at_home = ModelAtHome {
                    folder: &at,
                    home: &home,
                };
                // What gates say of a model tells as much as its figures.
                let judged = |word: &str| self.records.get::<bool>("charged", &format!("{key}.{word}"));
                if judged("evaluated")?.or(judged("refined")?).is_none() {
                    self.charge_evaluation(&pipeline, &format!("{key}.released"))?;
                }
                let asked = (text, &pipeline, digest);
                if self
                    .is_for_a_machine(run, "release", asked, RowsWork::Judge(&at_home))
                    .await?
                {
                    return Ok(ReplyBody::OnMachine);
                }
                let checkpoint = self.witness(
                    intent,
                    Some(&Intended {
                        run,
                        task: &task("release")?,
                        artifact: model,
                        to: None,
                    }),
                )?;
                let counter: Option<u64> = self.records.get("models", pipeline.name.as_str())?;
                let version = counter.unwrap_or(0) + 1;
                let provenance = BTreeMap::from([
                    ("run".to_owned(), run.to_string()),
                    ("model".to_owned(), model.to_string()),
                    ("pipeline".to_owned(), digest.to_string()),
                    (
                        "catalog".to_owned(),
                        canonical_digest(&self.catalog).while_(releasing)?.to_string(),
                    ),
                    ("policies".to_owned(), self.policies.digest().to_string()),
                    ("organisation".to_owned(), self.sites.organisation.clone()),
                    ("owner".to_owned(), self.site.to_string()),
                ]);
                let sign = |payload_type: &str, payload: &[u8]| -> Result<Vec<u8>, String> {
                    dsse::to_bytes(&dsse::sign(&self.keys.signing, payload_type, payload))
                        .map_err(|error| error.to_string())
                };
                let folder = self.stage_folder()?;
                let context = self.context(&pipeline, text, &folder);
                let bundled = self
                    .stages
                    .bundle(&context, &at_home, version, &provenance, &sign)
                    .await?;
                let passed = bundled.gates.iter().all(|gate| gate.passed);
                let Some(files) = bundled.files.filter(|_| passed) else {
                    return Err(gates_failed(&pipeline, &bundled.gates).into());
                };
                let description = Description {
                    kind: ArtifactKind::Bundle,
                    name: format!("{}/{version}", pipeline.name),
                    organisation: self.sites.organisation.clone(),
                    owner: self.site.clone(),
                    label: self.release_label(&pipeline, &record.manifest.label),
                    lowered_from: Some(Label {
                        level: Level::Restricted,
                        ..record.manifest.label.clone()
                    }),
                    columns: Vec::new(),
                    lineage: BTreeSet::from([*model]),
                    task: task("release")?,
                    step_key: sha256(key.as_bytes()),
                };
                let bundle = self.describe(&files.folder, description, prepared.evidence.clone(), "bundle")?;
                let artifact = packing::manifest_digest(&bundle.manifest).while_(releasing)?;
                let released = Released {
                    bundle: artifact,
                    version,
                    manifest: files.manifest,
                    gates: bundled.gates,
                    checkpoint,
                };
                let leaf = self.event(
                    EventType::Released,
                    run,
                    &[],
                    &[("bundle", artifact), ("manifest", files.manifest), ("model", *model)],
                )?;
                self.records.commit(
                    &Batch::default()
                        .replace(
                            "models",
                            pipeline.name.as_str(),
                            counter.map(|counter| value(&counter)).transpose()?,
                            value(&version)?,
                        )
                        .create("releases", &key, value(&released)?)
                        .set("artifacts", &artifact.to_hex(), value(&bundle)?)
                        .leaf(&format!("released/{key}"), leaf),
                )?;
                released
            }
        };
        let bundle = self.artifact_record(&released.bundle)?;
        Ok(ReplyBody::Released {
            bundle: bundle.summary(released.bundle),
            version: released.version,
            manifest: released.manifest,
            gates: released.gates,
            checkpoint: released.checkpoint,
        })
    }
}

/// Names every gate that the model does not pass.
fn gates_failed(pipeline: &Pipeline, gates: &[GateResult]) -> tidegate_types::Refusal {
    let failed = || gates.iter().filter(|gate| !gate.passed);
    let told: Vec<String> = failed()
        .map(|gate| {
            let value = gate.value.map_or_else(
                || "could not be measured".to_owned(),
                |value| {
                    format!(
                        "is {value}, with {} at the unfavourable end of its interval",
                        gate.judged
                    )
                },
            );
            format!("`{}` {value}, and must be {}", gate.metric, gate.condition)
        })
        .collect();
    let default = failed().find(|gate| !pipeline.evaluate.gates.contains_key(&gate.metric));
    let fix = match default {
        None => "improve the model, or change `evaluate: gates:`; the model stays at home".to_owned(),
        Some(gate) => format!(
            "improve the model, or give the test part more people, which makes the interval narrower. `{0}: \"{1}\"` holds \
             wherever a pipeline does not write its own under `evaluate: gates:`; the model stays at home",
            gate.metric, gate.condition
        ),
    };
    refuse(
        "gate-failed",
        format!("releasing model `{}`", pipeline.name),
        told.join("; "),
        fix,
    )
}
