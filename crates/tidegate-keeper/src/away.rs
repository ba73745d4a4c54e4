//! Work on rows that machines of this site do in the keeper's place, where `compute: {rows: true}` says so: preparing, and
//! scoring a model.
//!
//! ```text
//! asked ─▶ is it there? ──yes──▶ done here, at once
//!             │ no
//!             └─▶ packed: what is needed, sealed into this site's store ─▶ "a machine has to do it"
//!                    ▲                                                          │ an attempt, as of a training
//!                    └────────── asked again ◀── unpacked beside what is here ◀─┘
//! ```
//!
//! What comes back is what the keeper's own process would have made, under the same names, so that whatever follows finds it.
//! Nothing leaves the site: no other one may start such an attempt.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tidegate_contracts::journal::Batch;
use tidegate_contracts::stage::{ROWS_TASKS, RowsWork, StageError};
use tidegate_seal::digest::canonical_digest;
use tidegate_seal::packing;
use tidegate_seal::random::random_bytes;
use tidegate_transfer::{Description, remove};
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::digest::Digest;
use tidegate_types::files::Pipeline;
use tidegate_types::files::sites::ComputeOffer;
use tidegate_types::ids::{RunId, SiteName, TaskName};
use tidegate_types::keeper::{AttemptOutcome, PipelineText};
use tidegate_types::label::{Label, Level};
use tidegate_types::message::{Attempt, Job};
use tidegate_types::refusal::Refusal;

use crate::error::{KeeperError, While, refuse};
use crate::home::{no_evidence, task};
use crate::needless::objects;
use crate::records::{AttemptRecord, PermitRecord, PreparedRecord, attempt_key, value};
use crate::service::Keeper;

/// What a machine is given besides what it has to do.
pub(crate) const ROWS: &str = "rows";
/// The most bytes that come back.
pub(crate) const AWAY_BYTES: u64 = 256 << 30;
pub(crate) const TABLE: &str = "away";

/// Something that a machine does, or has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AwayRecord {
    /// What it is given.
    given: PreparedRecord,
    done: bool,
    /// Whether what it made cannot be taken, so that it has to be given anew.
    again: bool,
    /// What it refused.
    refused: Option<Refusal>,
    /// What it found wrong with what the user gave.
    wrong: Option<String>,
}

/// Whether a task is one of those.
pub(crate) fn is_away(task: &TaskName) -> bool {
    ROWS_TASKS.contains(&task.as_str())
}

/// Said where such a task, or what it is given, would go to another site.
pub(crate) fn rows_stay_home(task: &TaskName, to: &SiteName, home: &SiteName) -> Refusal {
    refuse(
        "rows-stay-home",
        format!("starting `{task}` on site `{to}`"),
        format!("it works on rows that do not leave site `{home}`"),
        "start it at home",
    )
}

impl Keeper {
    fn away_record(&self, run: &RunId, task: &TaskName) -> Result<Option<AwayRecord>, KeeperError> {
        self.records.get(TABLE, &format!("{run}.{task}"))
    }

    /// What the worker of a task is given.
    pub(crate) fn given(&self, run: &RunId, task: &TaskName) -> Result<Option<PreparedRecord>, KeeperError> {
        if is_away(task) {
            Ok(self.away_record(run, task)?.map(|record| record.given))
        } else {
            self.records.prepared(run)
        }
    }

    /// Whether a machine has to do this before the keeper goes on with it. What a machine refused is refused here, once.
    pub(crate) async fn is_for_a_machine(
        &self,
        run: &RunId,
        name: &str,
        (text, pipeline, digest): (&PipelineText, &Pipeline, Digest),
        work: RowsWork<'_>,
    ) -> Result<bool, KeeperError> {
        let offer = self.site_definition(&self.site)?.compute.as_ref();
        if !offer.is_some_and(|offer| offer.rows) {
            return Ok(false);
        }
        let packing = "packing what a machine needs";
        let task = task(name)?;
        let key = format!("{run}.{task}");
        let first = Attempt {
            run: run.clone(),
            task: task.clone(),
            attempt: 1,
            rank: 0,
        };
        if self
            .records
            .attempts_of(&first)?
            .iter()
            .any(|one| one.outcome.is_none())
        {
            return Ok(true);
        }
        let before = self.away_record(run, &task)?;
        if let Some(mut record) = before.filter(|record| record.given.pipeline == digest) {
            if !record.done && !record.again && self.has_what_is_given(&record)? {
                return Ok(true);
            }
            let (refused, wrong) = (record.refused.take(), record.wrong.take());
            if refused.is_some() || wrong.is_some() {
                self.records.put(TABLE, &key, &record)?;
            }
            if let Some(refusal) = refused {
                return Err(refusal.into());
            }
            if let Some(wrong) = wrong {
                return Err(KeeperError::Input(wrong));
            }
        }
        let folder = self.folder.join(TABLE).join(&key);
        remove_if_there(&folder).while_(packing)?;
        self.forget_all_received(&key).while_(packing)?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .while_(packing)?;
        let stage_folder = self.stage_folder()?;
        let context = self.context(pipeline, text, &stage_folder);
        let packed = self.stages.pack(&context, work, &folder).await;
        if !matches!(packed, Ok(true)) {
            remove_if_there(&folder).while_(packing)?;
            return Ok(packed?);
        }
        let dataset = self.dataset(pipeline)?;
        // With the site's own keys in it, also where the rows are public.
        let label = Label {
            level: Level::Restricted,
            tags: dataset.tags.clone(),
            residency: dataset.residency.clone(),
        };
        let mut batch = Batch::default();
        // Nothing that was packed before is this, whatever time it is.
        let nonce: [u8; 16] = random_bytes().while_(packing)?;
        let mut given = PreparedRecord {
            inputs: std::collections::BTreeMap::new(),
            home: self.relative(&folder)?,
            pipeline: digest,
            evidence: no_evidence(),
            sample: text.sample.is_some(),
            at: (self.clock)(),
        };
        for (part, kind) in [("code", ArtifactKind::Code), (ROWS, ArtifactKind::Dataset)] {
            let description = Description {
                kind,
                name: format!("{}/{task}-{part}", pipeline.name),
                organisation: self.sites.organisation.clone(),
                owner: self.site.clone(),
                label: label.clone(),
                lowered_from: None,
                columns: Vec::new(),
                lineage: std::collections::BTreeSet::new(),
                task: task.clone(),
                step_key: canonical_digest(&(&key, digest, nonce)).while_(packing)?,
            };
            let record = self.describe(&folder.join(part), description, no_evidence(), part)?;
            let artifact = packing::manifest_digest(&record.manifest).while_(packing)?;
            given.inputs.insert(part.to_owned(), artifact);
            batch = batch.set("artifacts", &artifact.to_hex(), value(&record)?);
        }
        let record = AwayRecord {
            given,
            done: false,
            again: false,
            refused: None,
            wrong: None,
        };
        // Grants ask policy again, after a restart too, so the pipeline's text is kept.
        let batch = batch.set("pipelines", run.as_str(), value(text)?);
        self.records.commit(&batch.set(TABLE, &key, value(&record)?))?;
        Ok(true)
    }

    /// Whether what a machine is given can be given to it, still or already.
    fn has_what_is_given(&self, record: &AwayRecord) -> Result<bool, KeeperError> {
        if self.folder.join(&record.given.home).is_dir() {
            return Ok(true);
        }
        // Once all of it is sealed, nothing is left in the clear.
        let permits = self.records.all::<PermitRecord>("permits")?;
        for artifact in record.given.inputs.values() {
            let mut good = permits.iter().filter(|permit| {
                let known = permit.worker.is_some_and(|worker| self.workers.get().contains(&worker));
                let lasts = permit.expires > (self.clock)() + 60;
                permit.artifact == *artifact && known && lasts && !permit.wrapped_key.is_empty()
            });
            let crossed = good.try_fold(false, |crossed, permit| {
                Ok::<_, KeeperError>(crossed || self.records.crossing(&permit.id)?.is_some())
            })?;
            if !crossed {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Refuses to seal what is not there any more; whoever asks for the work again has it packed again.
    pub(crate) fn is_packed(&self, attempt: &Attempt, given: &PreparedRecord) -> Result<(), KeeperError> {
        if !is_away(&attempt.task) || self.folder.join(&given.home).is_dir() {
            return Ok(());
        }
        let key = format!("{}.{}", attempt.run, attempt.task);
        if let Some(mut record) = self.away_record(&attempt.run, &attempt.task)? {
            record.again = true;
            self.records.put(TABLE, &key, &record)?;
        }
        Err(refuse(
            "rows-not-packed",
            format!("giving `{}` to a machine", attempt.task),
            "what it needs is not there any more",
            "ask for it again",
        )
        .into())
    }

    /// What such a worker runs.
    pub(crate) fn away_job(&self, pipeline: &Pipeline, offer: Option<&ComputeOffer>) -> Job {
        Job {
            run: "\"$TIDEGATE_TRAINER\" rows".to_owned(),
            memory_bytes: offer.map_or(0, |offer| offer.memory.0),
            seconds: pipeline.deadline.map_or(0, |deadline| deadline.0),
            output_bytes: AWAY_BYTES,
            ..Job::default()
        }
    }

    /// Puts what a machine made beside what is here, and ends its attempt.
    pub(crate) async fn bring_back(
        &self,
        record: &AttemptRecord,
        new: &mut AttemptRecord,
        seconds: u64,
    ) -> Result<(), KeeperError> {
        let bringing = "taking what a machine made";
        let _rows = self.rows.lock().await;
        let (run, task) = (&record.attempt.run, &record.attempt.task);
        let made = record.output.clone();
        let made = self
            .folder
            .join(made.ok_or_else(|| KeeperError::failed(bringing, "there is nothing"))?);
        let mut away = self.away_record(run, task)?.ok_or_else(|| {
            refuse(
                "not-prepared",
                bringing,
                "nobody asked a machine for it",
                "start another run",
            )
        })?;
        if !made.is_dir() && !away.done {
            return Err(KeeperError::failed(bringing, "it is not there"));
        }
        let text: Option<PipelineText> = self.records.get("pipelines", run.as_str())?;
        let text = text.ok_or_else(|| KeeperError::failed(bringing, "its pipeline is not known"))?;
        let (pipeline, _) = self.pipeline(&text)?;
        let folder = self.stage_folder()?;
        match self
            .stages
            .unpack(&self.context(&pipeline, &text, &folder), &made)
            .await
        {
            Ok(()) => {}
            Err(StageError::Refused(refusal)) => away.refused = Some(refusal),
            Err(StageError::Input(why)) => away.wrong = Some(why),
            // It is tried again, and what the machine made stays for that.
            Err(error @ StageError::Failed(_)) => {
                away.again = true;
                self.records.put(TABLE, &format!("{run}.{task}"), &away)?;
                return Err(error.into());
            }
        }
        away.done = true;
        self.records.put(TABLE, &format!("{run}.{task}"), &away)?;
        for folder in [&made, &self.folder.join(&away.given.home)] {
            remove_if_there(folder).while_(bringing)?;
        }
        new.reach("accepted");
        new.outcome = Some(AttemptOutcome::Worked { seconds });
        Ok(())
    }

    /// Removes what was received of an attempt that came to nothing, of work on rows.
    pub(crate) fn forget_received(&self, record: &AttemptRecord) -> Result<(), KeeperError> {
        if !is_away(&record.attempt.task) {
            return Ok(());
        }
        let received = self.folder.join("models").join(attempt_key(&record.attempt));
        remove_if_there(&received).while_("removing what came to nothing")
    }

    /// Removes what was received of attempts of a task that came to nothing.
    fn forget_all_received(&self, key: &str) -> std::io::Result<()> {
        let entries = match std::fs::read_dir(self.folder.join("models")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&format!("{key}.")) {
                remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes what was packed for a machine: nothing of it stays in the clear. What is still needed is packed again.
    pub(crate) fn forget_packed(&self, packed: &Path) -> Result<(), KeeperError> {
        remove_if_there(&self.folder.join(packed)).while_("removing what was packed for a machine")
    }

    /// Removes what was sealed for such an attempt, and by it. What cannot be removed now is found by a sweep.
    pub(crate) async fn forget_given(&self, record: &AttemptRecord) -> Result<(), KeeperError> {
        let mut needless = Vec::new();
        for permit in record.inputs.values() {
            if let Some(crossing) = self.records.crossing(permit)? {
                needless.extend(objects(&crossing.packing_list, &crossing.objects)?);
            }
        }
        if let Some(output) = self.records.output(&record.attempt)? {
            needless.extend(objects(&output.packing_list, &output.objects)?);
        }
        if let Err(error) = remove(self.store(&record.site)?, &needless).await {
            tracing::warn!(%error, "what a machine was given, and what it made, was not removed");
        }
        Ok(())
    }
}

fn remove_if_there(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
