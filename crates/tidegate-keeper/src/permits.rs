//! Signing permits.

use std::collections::BTreeSet;

use tidegate_contracts::journal::Batch;
use tidegate_policy::{Moment, Question};
use tidegate_seal::digest::{canonical_digest, sha256};
use tidegate_seal::dsse::payload_digest;
use tidegate_seal::key::DataKey;
use tidegate_seal::permit::sign_permit;
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::files::Pipeline;
use tidegate_types::ids::{ArtifactId, PermitId, RunId, SiteName, TaskName};
use tidegate_types::keeper::{LedgerProof, PipelineText, ReplyBody};
use tidegate_types::label::Label;
use tidegate_types::permit::{Permit, StandingSlot};

use crate::away::{AWAY_BYTES, is_away, rows_stay_home};
use crate::crossing::shredded;
use crate::error::{KeeperError, While, refuse};
use crate::records::{ArtifactRecord, PermitRecord, PreparedRecord, value};
use crate::service::Keeper;
use crate::witness::Intended;

/// How long a permit is valid, in seconds, when the pipeline has no deadline.
const PERMIT_SECONDS: u64 = 24 * 3600;
/// The most bytes of logs and metrics of one job, over all attempts.
pub(crate) const LOG_BYTES: u64 = 64 << 20;
/// The most bytes of a model that comes home, over all attempts.
pub(crate) const OUTPUT_BYTES: u64 = 1 << 30;
/// The most bytes of unfinished work of one job, over all attempts.
pub(crate) const CHECKPOINT_BYTES: u64 = 256 << 30;
/// What a setup left, and the most bytes of it.
pub(crate) const SETUP: &str = "setup";
pub(crate) const SETUP_BYTES: u64 = 8 << 30;

/// The most bytes that an artifact of so many bytes has when it is sealed, packing list and index
/// included.
pub(crate) const fn sealed_bytes(plaintext: u64) -> u64 {
    plaintext.saturating_add(plaintext / 64).saturating_add(1 << 20)
}

/// What shall cross.
pub(crate) struct Wanted<'a> {
    pub(crate) run: &'a RunId,
    pub(crate) task: &'a TaskName,
    pub(crate) artifact: &'a ArtifactId,
    pub(crate) to: &'a SiteName,
    pub(crate) worker: Option<Digest>,
}

/// What is about to be given away.
#[derive(Clone, Copy)]
pub(crate) enum Release<'a> {
    /// A permit.
    Permit,
    /// The data key of what crossed under this permit.
    Key(&'a PermitRecord),
}

impl Wanted<'_> {
    fn index(&self) -> String {
        format!("{}.{}.{}.{}", self.run, self.task, self.artifact.to_hex(), self.to)
    }
}

impl Keeper {
    pub(crate) async fn sign_permit(
        &self,
        wanted: &Wanted<'_>,
        text: &PipelineText,
        intent: &LedgerProof,
    ) -> Result<ReplyBody, KeeperError> {
        let _one_at_a_time = self.permitting.lock().await;
        let (pipeline, digest) = self.pipeline(text)?;
        let record = match self.valid_permit(wanted)? {
            Some(record) => record,
            None => {
                self.allowed(wanted, &pipeline, digest, Release::Permit)?;
                let checkpoint = self.witness(
                    intent,
                    Some(&Intended {
                        run: wanted.run,
                        task: wanted.task,
                        artifact: wanted.artifact,
                        to: Some(wanted.to),
                    }),
                )?;
                self.new_permit(wanted, &pipeline, digest, checkpoint).await?
            }
        };
        Ok(ReplyBody::Permit {
            permit: record.id,
            envelope: record.envelope,
            checkpoint: record.checkpoint,
        })
    }

    /// A permit for using an artifact on this very site: nothing crosses, so no intent is needed.
    pub(crate) async fn home_permit(
        &self,
        wanted: &Wanted<'_>,
        pipeline: &Pipeline,
        digest: Digest,
    ) -> Result<PermitRecord, KeeperError> {
        let _one_at_a_time = self.permitting.lock().await;
        if let Some(record) = self.valid_permit(wanted)? {
            return Ok(record);
        }
        self.allowed(wanted, pipeline, digest, Release::Permit)?;
        let checkpoint = self.records.checkpoint()?.unwrap_or_default();
        self.new_permit(wanted, pipeline, digest, checkpoint).await
    }

    fn valid_permit(&self, wanted: &Wanted<'_>) -> Result<Option<PermitRecord>, KeeperError> {
        let Some(id) = self.records.get::<PermitId>("permit-index", &wanted.index())? else {
            return Ok(None);
        };
        let record = self.permit_record(&id)?;
        if self.records.tombstone(&record.artifact)?.is_some() {
            return Err(shredded(&record.artifact));
        }
        let usable = !record.wrapped_key.is_empty() && record.worker == wanted.worker;
        Ok((usable && record.expires > (self.clock)() + 60).then_some(record))
    }

    /// What the run prepared, if `pipeline` is the pipeline that it prepared for.
    pub(crate) fn prepared_record(&self, run: &RunId, pipeline: Digest) -> Result<PreparedRecord, KeeperError> {
        fitting(self.records.prepared(run)?, run, pipeline)
    }

    /// What the worker of a task is given, if `pipeline` is the pipeline that it is for.
    pub(crate) fn given_record(
        &self,
        run: &RunId,
        task: &TaskName,
        pipeline: Digest,
    ) -> Result<PreparedRecord, KeeperError> {
        fitting(self.given(run, task)?, run, pipeline)
    }

    pub(crate) fn artifact_record(&self, artifact: &ArtifactId) -> Result<ArtifactRecord, KeeperError> {
        self.records.artifact(artifact)?.ok_or_else(|| {
            refuse(
                "unknown-artifact",
                format!("using artifact {}", artifact.short()),
                "this site does not have it",
                "prepare it first",
            )
            .into()
        })
    }

    /// Asks policy about one crossing, with what this site knows itself.
    pub(crate) fn allowed(
        &self,
        wanted: &Wanted<'_>,
        pipeline: &Pipeline,
        digest: Digest,
        release: Release<'_>,
    ) -> Result<(), KeeperError> {
        if self.records.tombstone(wanted.artifact)?.is_some() {
            return Err(shredded(wanted.artifact));
        }
        if is_away(wanted.task) && *wanted.to != self.site {
            return Err(rows_stay_home(wanted.task, wanted.to, &self.site).into());
        }
        let prepared = self.given_record(wanted.run, wanted.task, digest)?;
        let artifact = self.artifact_record(wanted.artifact)?;
        let inputs: BTreeSet<&ArtifactId> = prepared.inputs.values().collect();
        let own_bundle = artifact.manifest.kind == ArtifactKind::Bundle
            && artifact.manifest.name.rsplit_once('/').map(|(name, _)| name) == Some(pipeline.name.as_str());
        let carried = self.carried(wanted.run, wanted.task)?;
        if !own_bundle && !inputs.contains(wanted.artifact) && carried != Some(*wanted.artifact) {
            return Err(refuse(
                "permit-other-artifact",
                format!("sending artifact {} to site `{}`", wanted.artifact.short(), wanted.to),
                "it is neither prepared by this run, nor its unfinished work, nor a bundle of its pipeline",
                "name an artifact that the run prepared",
            )
            .into());
        }
        if let Some(worker) = &wanted.worker
            && !self.workers.get().contains(worker)
        {
            return Err(refuse(
                "worker-not-known",
                format!("sending artifact {} to site `{}`", wanted.artifact.short(), wanted.to),
                format!(
                    "this site does not know the program {} that would open it",
                    worker.short()
                ),
                "start the run with the programs that lie beside this site's keeper; one that was put there later, it knows when it is started again",
            )
            .into());
        }
        let dataset = self.dataset(pipeline)?;
        let (from, to) = (self.site_definition(&self.site)?, self.site_definition(wanted.to)?);
        self.policies.decide(&Question {
            moment: match release {
                Release::Permit => Moment::Permit,
                Release::Key(_) => Moment::ReleaseKey,
            },
            artifact: artifact.manifest.name.clone(),
            kind: artifact.manifest.kind,
            label: &artifact.manifest.label,
            lowered_from: artifact.manifest.lowered_from.as_ref(),
            from: (&self.site, from),
            to: (wanted.to, to),
            purpose: &pipeline.purpose,
            allowed_purposes: &dataset.purposes,
            run_network: to.network.run == tidegate_types::files::sites::NetworkRule::Allow,
            worker_known: match release {
                Release::Permit => true,
                Release::Key(permit) => permit.worker == wanted.worker,
            },
            evidence: Some(&artifact.evidence),
            least_k: dataset.least_k,
            built_in_refine: artifact.manifest.kind == ArtifactKind::Bundle,
        })?;
        Ok(())
    }

    async fn new_permit(
        &self,
        wanted: &Wanted<'_>,
        pipeline: &Pipeline,
        digest: Digest,
        checkpoint: String,
    ) -> Result<PermitRecord, KeeperError> {
        let signing = "signing a permit";
        let artifact = self.artifact_record(wanted.artifact)?;
        let prepared = self.given_record(wanted.run, wanted.task, digest)?;
        let now = (self.clock)();
        let name = sha256(format!("{}.{now}", wanted.index()).as_bytes());
        let id = PermitId::new(format!("p-{}", name.to_hex().get(..20).unwrap_or_default())).while_(signing)?;
        let is_input = artifact.manifest.kind == ArtifactKind::Dataset;
        let bytes = artifact.manifest.total_bytes();
        let away = is_away(wanted.task);
        let attempts = if away {
            u32::MAX
        } else {
            pipeline.train.retries.saturating_add(1)
        };
        let expires = now + pipeline.deadline.map_or(PERMIT_SECONDS, |seconds| seconds.0.max(60));
        let permit = Permit {
            id: id.clone(),
            organisation: self.sites.organisation.clone(),
            from: self.reference(&self.site)?,
            to: self.reference(wanted.to)?,
            // A worker copies, and nobody else.
            copied_from: match wanted.worker {
                Some(_) => self.copy_source(wanted.artifact, wanted.to)?,
                None => None,
            },
            pipeline: digest,
            policies: self.policies.digest(),
            code: if is_input || artifact.manifest.kind == ArtifactKind::Checkpoint {
                prepared.inputs.get("code").copied()
            } else {
                None
            },
            worker: wanted.worker,
            label: artifact.manifest.label.clone(),
            purpose: pipeline.purpose.clone(),
            run: wanted.run.clone(),
            task: wanted.task.clone(),
            attempts,
            evidence: artifact.evidence.clone(),
            waivers: Vec::new(),
            approvals: Vec::new(),
            not_before: now,
            expires,
            byte_limit: sealed_bytes(bytes).saturating_mul(3),
            revocation_epoch: 0,
            checkpoint: checkpoint.clone(),
            standing: match artifact.manifest.kind {
                ArtifactKind::Dataset => {
                    let output = if away { sealed_bytes(AWAY_BYTES) } else { OUTPUT_BYTES };
                    self.slots(wanted.to, &artifact.manifest.label, output)
                }
                ArtifactKind::Code if pipeline.train.setup.is_some() && !away => {
                    vec![self.slot(wanted.to, &artifact.manifest.label, SETUP, SETUP_BYTES)]
                }
                _ => Vec::new(),
            },
        };
        let envelope =
            sign_permit(&self.keys.signing, &permit, wanted.artifact, &artifact.manifest.name).while_(signing)?;
        let key = DataKey::generate().while_(signing)?;
        let wrapped = self.custody.wrap(key.expose(), id.as_str()).await.while_(signing)?;
        let record = PermitRecord {
            id: id.clone(),
            run: wanted.run.clone(),
            task: wanted.task.clone(),
            artifact: *wanted.artifact,
            to: wanted.to.clone(),
            worker: wanted.worker,
            attempts,
            expires,
            envelope,
            wrapped_key: hex::encode(wrapped),
            checkpoint,
        };
        let mut batch = Batch::default().create("permits", id.as_str(), value(&record)?).set(
            "permit-index",
            &wanted.index(),
            value(&id)?,
        );
        let leaf = self.event(
            EventType::PermitSigned,
            wanted.run,
            &[("permit", id.as_str()), ("to", wanted.to.as_str())],
            &[
                ("artifact", *wanted.artifact),
                ("statement", payload_digest(&record.envelope).while_(signing)?),
            ],
        )?;
        batch = batch.leaf(&format!("permit/{id}"), leaf);
        self.records.commit(&batch)?;
        tracing::info!(permit = %id, run = %wanted.run, task = %wanted.task, site = %wanted.to, "permit signed");
        Ok(record)
    }

    fn slot(&self, worker_site: &SiteName, label: &Label, name: &str, byte_limit: u64) -> StandingSlot {
        StandingSlot {
            slot: name.to_owned(),
            from: worker_site.clone(),
            to: self.site.clone(),
            label: label.clone(),
            byte_limit,
        }
    }

    /// What crosses besides the subject for the same job.
    fn slots(&self, worker_site: &SiteName, label: &Label, output_bytes: u64) -> Vec<StandingSlot> {
        let slot = |name: &str, byte_limit: u64| self.slot(worker_site, label, name, byte_limit);
        vec![
            slot("hello", 1 << 20),
            slot("log", LOG_BYTES),
            slot("metric", LOG_BYTES),
            slot("checkpoint", CHECKPOINT_BYTES),
            slot("output", output_bytes),
        ]
    }

    /// The label of a bundle: the pipeline's release level, and what else the model's data carried.
    pub(crate) fn release_label(&self, pipeline: &Pipeline, model: &Label) -> Label {
        Label {
            level: pipeline.release_model.to.max(model.level),
            ..model.clone()
        }
    }

    /// How a permit names a site.
    pub(crate) fn reference(&self, site: &SiteName) -> Result<tidegate_types::permit::SiteReference, KeeperError> {
        Ok(tidegate_types::permit::SiteReference {
            site: site.clone(),
            definition: canonical_digest(&self.site_definition(site)?.identity()).while_("naming a site")?,
        })
    }
}

fn fitting(record: Option<PreparedRecord>, run: &RunId, pipeline: Digest) -> Result<PreparedRecord, KeeperError> {
    let record = record.ok_or_else(|| {
        refuse(
            "not-prepared",
            format!("working on run `{run}`"),
            "this site has prepared nothing for it",
            "prepare first",
        )
    })?;
    if record.pipeline != pipeline {
        return Err(refuse(
            "pipeline-changed",
            format!("working on run `{run}`"),
            "the pipeline is not the one that was prepared",
            "start another run",
        )
        .into());
    }
    Ok(record)
}
