//! What setups left: sealed in the store of the site where they ran, and granted to workers whose setup would do the same.

use tidegate_contracts::journal::Batch;
use tidegate_seal::digest::canonical_digest;
use tidegate_seal::dsse::payload_digest;
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::ids::SiteName;
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::{GrantedCheckpoint, GrantedSetup, Job};

use super::checkpoint::{Told, malformed};
use crate::admission::{Admitted, Worker, release_key};
use crate::error::{KeeperError, While};
use crate::permits::{SETUP, SETUP_BYTES, sealed_bytes};
use crate::records::{AttemptRecord, SetupRecord, attempt_key, value};
use crate::service::Keeper;

/// Whether what a job's setup leaves is kept: what several machines set up may differ by rank.
pub(super) const fn keeps_setup(job: &Job) -> bool {
    !job.setup.is_empty() && job.others == 0
}

fn salt_of(text: &str) -> Option<[u8; 32]> {
    let mut salt = [0; 32];
    hex::decode_to_slice(text, &mut salt).ok().map(|()| salt)
}

/// Where the journal has them: by site, and by what they are of.
pub(crate) const SETUPS: &str = "setups";
/// The most of one site that are kept: those that were sent last.
const KEPT: usize = 8;

impl Keeper {
    /// Notes what a worker's setup left, in the place of what the same setup left before.
    pub(super) async fn take_setup(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        told: &Told<'_>,
        (machine, salt): (Digest, &str),
    ) -> Result<(), KeeperError> {
        let taking = "taking note of what a setup left";
        let code = record.inputs.get("code");
        let code = code.ok_or_else(|| KeeperError::failed(taking, "the attempt has no permit for code"))?;
        let code = self.permit_record(code)?;
        let label = self.artifact_record(&code.artifact)?.manifest.label;
        let limit = (sealed_bytes(SETUP_BYTES), SETUP_BYTES);
        let salt_bytes = salt_of(salt).ok_or_else(|| malformed(taking))?;
        let key = self.data_key(&code).await?.derived(SETUP, &salt_bytes);
        let sealed = self
            .stands(taking, record, worker, (told, &key), ("code", &label), limit)
            .await?;
        let leaf = self.attempt_event(
            EventType::Checkpointed,
            &record.attempt,
            &[("permit", code.id.as_str()), ("slot", "setup")],
            &[("packing_list", *told.packing_list_digest)],
        )?;
        let new = SetupRecord {
            site: record.site.clone(),
            attempt: record.attempt.clone(),
            machine,
            permit_digest: payload_digest(&code.envelope).while_(taking)?,
            sealed,
            salt: salt.to_owned(),
            sent: (self.clock)(),
        };
        let key = self.setup_key(record)?;
        let before: Option<SetupRecord> = self.records.get(SETUPS, &key)?.flatten();
        let fact = format!("setup/{}/{}", attempt_key(&record.attempt), told.number);
        self.records.commit(
            &Batch::default()
                .set(SETUPS, &key, value(&Some(&new))?)
                .leaf(&fact, leaf),
        )?;
        let before = before.filter(|before| before.sealed.packing_list_digest != new.sealed.packing_list_digest);
        if let Some(before) = before {
            self.remove_needless(&before.site, &before.sealed).await?;
        }
        self.forget_setups(&record.site).await
    }

    /// What an attempt's worker need not set up again, if its machine is the same.
    pub(super) async fn granted_setup(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
    ) -> Result<Option<GrantedSetup>, KeeperError> {
        if !keeps_setup(&record.job) {
            return Ok(None);
        }
        let key = self.setup_key(record)?;
        let Some(setup) = self.records.get::<Option<SetupRecord>>(SETUPS, &key)?.flatten() else {
            return Ok(None);
        };
        // What was sent by a worker that nobody believes is worth nothing; of one that still works, nobody knows yet.
        let sender = self.records.attempt(&setup.attempt)?.and_then(|sender| sender.outcome);
        if !sender.is_some_and(|outcome| !matches!(outcome, AttemptOutcome::Refused { .. })) {
            return Ok(None);
        }
        let permit = self.permit_record(&setup.sealed.permit)?;
        let salt = salt_of(&setup.salt);
        let Some(salt) = salt.filter(|_| !permit.wrapped_key.is_empty()) else {
            return Ok(None);
        };
        let raw = self.data_key(&permit).await?.derived(SETUP, &salt);
        Ok(Some(GrantedSetup {
            machine: setup.machine,
            permit: setup.sealed.permit,
            permit_digest: setup.permit_digest,
            sealed: GrantedCheckpoint {
                attempt: setup.attempt.attempt,
                packing_list: setup.sealed.packing_list,
                packing_list_digest: setup.sealed.packing_list_digest,
                signing_key: setup.sealed.signing_key,
                sealed_key: release_key(worker, &raw)?,
            },
        }))
    }

    /// Where the journal has what the setup of an attempt's job left: by all that the job says about it. The code is named by
    /// its own digest, so that none is given away with code that was shredded.
    fn setup_key(&self, record: &AttemptRecord) -> Result<String, KeeperError> {
        let naming = "naming a setup";
        let code = record.inputs.get("code");
        let code = code.ok_or_else(|| KeeperError::failed(naming, "the attempt has no permit for code"))?;
        let code = self.permit_record(code)?.artifact;
        let job = &record.job;
        let all = (&job.setup, &job.environment, job.setup_network, code);
        let all = canonical_digest(&all).while_(naming)?;
        Ok(format!("{}.{}", record.site, all.to_hex()))
    }

    /// Removes the oldest of a site, where there are many.
    async fn forget_setups(&self, site: &SiteName) -> Result<(), KeeperError> {
        let scanning = "looking for setups that nobody uses";
        let prefix = format!("{site}.");
        let mut there = Vec::new();
        for (key, bytes) in self.records.journal.scan(SETUPS, &prefix).while_(scanning)? {
            let setup: Option<SetupRecord> = serde_json::from_slice(&bytes).while_(scanning)?;
            there.extend(setup.map(|setup| (key, setup)));
        }
        there.sort_by_key(|(_, setup)| std::cmp::Reverse(setup.sent));
        for (key, setup) in there.into_iter().skip(KEPT) {
            self.records.put(SETUPS, &key, &None::<SetupRecord>)?;
            self.remove_needless(&setup.site, &setup.sealed).await?;
        }
        Ok(())
    }
}
