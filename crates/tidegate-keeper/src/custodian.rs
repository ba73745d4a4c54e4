//! What a person on the private site does with its keys: list what they open, renew the key that wraps them, and
//! destroy those of an artifact.
//!
//! Nothing here answers a request: it runs on the private site itself, while no keeper does. A wrapping key is
//! destroyed only after everything that must still open is wrapped by the new one, so that a crash at any point
//! loses no key, and the same command goes on from there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tidegate_contracts::custody::{Custody, CustodyError};
use tidegate_contracts::journal::{Batch, Journal};
use tidegate_seal::digest::canonical_digest;
use tidegate_types::event::{Event, EventData, EventType};
use tidegate_types::ids::{ArtifactId, PermitId, RunId, SiteName, TaskName};
use tidegate_types::keeper::AttemptOutcome;
use zeroize::Zeroizing;

use crate::attempt::fence_key;
use crate::crossing::forget_notes;
use crate::error::{KeeperError, While, refuse};
use crate::events::numbers;
use crate::keys::{rewrap, wrap_anew};
use crate::records::{AttemptRecord, PermitRecord, Records, Tombstone, attempt_key, value};

pub(crate) mod backup;

/// The keys of a private site, for a person there.
#[derive(Debug)]
pub struct Custodian {
    site: SiteName,
    folder: PathBuf,
    records: Records,
    custody: Arc<dyn Custody>,
    clock: fn() -> u64,
}

/// Whom the data key of a crossing was given to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Grantee {
    /// The site where it is.
    pub site: SiteName,
    /// The run.
    pub run: RunId,
    /// The task, where a worker has it; nothing for a site that serves a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
}

/// What stands in stores outside, sealed under keys of this site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptArtifact {
    /// Its identity.
    pub artifact: ArtifactId,
    /// What it is called.
    pub name: String,
    /// The sites in whose stores it may stand.
    pub sites: BTreeSet<SiteName>,
    /// The permits under which it crossed, or may cross.
    pub permits: Vec<PermitId>,
    /// Who was given its keys. They may have kept them.
    pub grantees: BTreeSet<Grantee>,
    /// When its keys were destroyed (Unix time), where they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shredded: Option<u64>,
}

/// A wrapping key was renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rotated {
    /// How many keys the new one wraps now.
    pub wrapped_keys: u64,
    /// When (Unix time).
    pub at: u64,
}

impl Custodian {
    /// The keys of `site`, whose folder is `folder`.
    #[must_use]
    pub fn new(
        site: SiteName,
        folder: PathBuf,
        journal: Arc<dyn Journal>,
        custody: Arc<dyn Custody>,
        clock: fn() -> u64,
    ) -> Self {
        Self {
            site,
            folder,
            records: Records { journal },
            custody,
            clock,
        }
    }

    /// What crossed, or may cross, under keys of this site, by identity.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn artifacts(&self) -> Result<Vec<KeptArtifact>, KeeperError> {
        let released = self.released()?;
        let mut kept: BTreeMap<ArtifactId, KeptArtifact> = BTreeMap::new();
        for permit in self.records.all::<PermitRecord>("permits")? {
            let artifact = match kept.entry(permit.artifact) {
                Entry::Occupied(kept) => kept.into_mut(),
                Entry::Vacant(place) => place.insert(self.described(permit.artifact)?),
            };
            for task in released.get(&permit.id).into_iter().flatten() {
                artifact.grantees.insert(Grantee {
                    site: permit.to.clone(),
                    run: permit.run.clone(),
                    task: Some(task.clone()),
                });
            }
            // A serving site finds its key beside what was sent.
            if permit.worker.is_none() && permit.to != self.site && self.records.crossing(&permit.id)?.is_some() {
                artifact.grantees.insert(Grantee {
                    site: permit.to.clone(),
                    run: permit.run.clone(),
                    task: None,
                });
            }
            artifact.sites.insert(permit.to);
            artifact.permits.push(permit.id);
        }
        Ok(kept.into_values().collect())
    }

    fn described(&self, artifact: ArtifactId) -> Result<KeptArtifact, KeeperError> {
        let name = self.records.artifact(&artifact)?.map(|record| record.manifest.name);
        Ok(KeptArtifact {
            artifact,
            name: name.unwrap_or_default(),
            sites: BTreeSet::new(),
            permits: Vec::new(),
            grantees: BTreeSet::new(),
            shredded: self.records.tombstone(&artifact)?.map(|tombstone| tombstone.at),
        })
    }

    /// The tasks whose workers were given the key of a permit, as this keeper's own entries for the ledger
    /// tell it: they are written before a grant is delivered.
    fn released(&self) -> Result<BTreeMap<PermitId, BTreeSet<TaskName>>, KeeperError> {
        let reading = "reading who was given keys";
        let mut released: BTreeMap<PermitId, BTreeSet<TaskName>> = BTreeMap::new();
        self.records.each_leaf(|leaf| {
            let event: Event = serde_json::from_slice(leaf).while_(reading)?;
            if event.event_type != EventType::Granted.cloud_event_type() {
                return Ok(());
            }
            let task = event.data.names.get("task").map(TaskName::new).transpose();
            let Some(task) = task.while_(reading)? else {
                return Ok(());
            };
            for (key, name) in &event.data.names {
                if key.starts_with("permit_") {
                    let permit = PermitId::new(name).while_(reading)?;
                    released.entry(permit).or_default().insert(task.clone());
                }
            }
            Ok(())
        })?;
        Ok(released)
    }

    /// Makes a new wrapping key, wraps everything by it, and destroys those before it. What lies outside is not
    /// touched: the keys that opened it open it afterwards.
    ///
    /// # Errors
    /// When custody is out of reach or does not allow it, or something that must still open does not. No key is
    /// lost then, and the same again goes on.
    pub async fn rotate(&self) -> Result<Rotated, KeeperError> {
        let rotated = self.renew().await?;
        let numbers = BTreeMap::from([
            ("wrapped_keys".to_owned(), rotated.wrapped_keys),
            ("at".to_owned(), rotated.at),
        ]);
        let data = EventData {
            numbers,
            ..EventData::default()
        };
        let (key, leaf) = self.event(EventType::KeysRotated, self.site.as_str(), rotated.at, data)?;
        self.records.commit(&Batch::default().leaf(&key, leaf))?;
        Ok(rotated)
    }

    async fn renew(&self) -> Result<Rotated, KeeperError> {
        let number = self.custody.rotate().await.while_("making a new wrapping key")?;
        let wrapped_keys = self.wrap_again().await?;
        self.custody
            .retire(number)
            .await
            .while_("destroying the wrapping keys before the newest")?;
        tracing::info!(site = %self.site, wrapped_keys, "wrapping key renewed");
        Ok(Rotated {
            wrapped_keys,
            at: (self.clock)(),
        })
    }

    /// Wraps by the newest key everything that must open after the others are destroyed.
    async fn wrap_again(&self) -> Result<u64, KeeperError> {
        let mut count = 1;
        rewrap(&self.key_file(), &*self.custody, &self.site).await?;
        for old in self.records.all::<PermitRecord>("permits")? {
            if old.wrapped_key.is_empty() {
                continue;
            }
            let mut new = old.clone();
            new.wrapped_key = wrap_anew(&*self.custody, &old.wrapped_key, old.id.as_str()).await?;
            self.replace("permits", old.id.as_str(), value(&old)?, value(&new)?)?;
            count += 1;
        }
        for old in self.records.all::<AttemptRecord>("attempts")? {
            if old.secret.is_empty() {
                continue;
            }
            let key = attempt_key(&old.attempt);
            let mut new = old.clone();
            // Whoever goes on with a run asks for the tickets of attempts that have ended, too. One that was lost
            // with an earlier wrapping key must not keep this one from being renewed.
            new.secret = if old.outcome.is_some() && !self.opens(&old.secret, &key).await? {
                String::new()
            } else {
                wrap_anew(&*self.custody, &old.secret, &key).await?
            };
            count += u64::from(!new.secret.is_empty());
            self.replace("attempts", &key, value(&old)?, value(&new)?)?;
        }
        Ok(count)
    }

    fn replace(&self, table: &str, key: &str, old: Vec<u8>, new: Vec<u8>) -> Result<(), KeeperError> {
        let replaced = self
            .records
            .commit_if(&Batch::default().replace(table, key, Some(old), new))?;
        if replaced {
            Ok(())
        } else {
            Err(KeeperError::failed(
                "wrapping a key anew",
                "the journal was changed meanwhile; end the keeper of this site, and try again",
            ))
        }
    }

    /// Destroys the keys of an artifact: every copy of it that was sealed under a permit of this site is
    /// unreadable afterwards, in every store, except to the grantees that are given back, who may have kept their
    /// keys, and to whoever has a backup of the keys. Attempts that wait for the keys are fenced. What lies in the
    /// clear on this site stays.
    ///
    /// # Errors
    /// A refusal when nothing was sealed of it; as [`Self::rotate`]. The keys are never used again, whatever
    /// else fails, and the same again goes on.
    pub async fn shred(&self, artifact: &ArtifactId) -> Result<KeptArtifact, KeeperError> {
        let Some(kept) = self.artifacts()?.into_iter().find(|kept| kept.artifact == *artifact) else {
            return Err(refuse(
                "unknown-artifact",
                format!("destroying the keys of artifact {}", artifact.short()),
                "no permit of this site is about it",
                "name an artifact that `tidegate keys list` shows",
            )
            .into());
        };
        let tombstone = self.records.tombstone(artifact)?;
        if tombstone.as_ref().is_some_and(|tombstone| tombstone.done) {
            return Ok(kept);
        }
        let at = tombstone.map_or_else(|| (self.clock)(), |tombstone| tombstone.at);
        self.forget(&kept, at)?;
        for permit in &kept.permits {
            forget_notes(&self.folder, permit)?;
        }
        self.renew().await?;
        let data = EventData {
            digests: BTreeMap::from([("artifact".to_owned(), *artifact)]),
            names: BTreeMap::new(),
            numbers: BTreeMap::from([
                ("permits".to_owned(), kept.permits.len() as u64),
                ("grantees".to_owned(), kept.grantees.len() as u64),
            ]),
        };
        let (key, leaf) = self.event(EventType::Shredded, &artifact.to_hex(), at, data)?;
        let done = Tombstone { at, done: true };
        let batch = Batch::default().set("tombstones", &artifact.to_hex(), value(&done)?);
        self.records.commit(&batch.leaf(&key, leaf))?;
        tracing::info!(site = %self.site, artifact = %artifact.short(), "keys destroyed");
        Ok(KeptArtifact {
            shredded: Some(at),
            ..kept
        })
    }

    /// From this commit on no key of the artifact is given to anybody.
    fn forget(&self, kept: &KeptArtifact, at: u64) -> Result<(), KeeperError> {
        let tombstone = Tombstone { at, done: false };
        let mut batch = Batch::default().set("tombstones", &kept.artifact.to_hex(), value(&tombstone)?);
        for permit in &kept.permits {
            let Some(old) = self.records.permit(permit)? else {
                continue;
            };
            let mut new = old.clone();
            new.wrapped_key.clear();
            batch = batch.replace("permits", permit.as_str(), Some(value(&old)?), value(&new)?);
        }
        // A grant that is written and not delivered would be delivered by the next keeper.
        for old in self.records.open_attempts()? {
            if old.inputs.values().any(|permit| kept.permits.contains(permit)) {
                batch = self.fenced(batch, &old, "shredded", at)?;
            }
        }
        self.records.commit(&batch)
    }

    /// Whether a wrapped key opens; a custody that is out of reach is an error, and no answer.
    async fn opens(&self, wrapped: &str, context: &str) -> Result<bool, KeeperError> {
        let trying = "trying whether a key opens";
        let wrapped = hex::decode(wrapped).while_(trying)?;
        match self.custody.unwrap_key(&wrapped, context).await.map(Zeroizing::new) {
            Ok(_) => Ok(true),
            Err(CustodyError::WrongKey { .. }) => Ok(false),
            Err(error) => Err(KeeperError::failed(trying, error)),
        }
    }

    fn key_file(&self) -> PathBuf {
        self.folder.join("keys").join("site-keys.json")
    }

    /// Ends an attempt: no output of it is accepted any more, and nothing is delivered for it.
    fn fenced(&self, batch: Batch, old: &AttemptRecord, why: &str, at: u64) -> Result<Batch, KeeperError> {
        let mut new = old.clone();
        new.outcome = Some(AttemptOutcome::Fenced { why: why.to_owned() });
        new.pending = None;
        let names = [("task", old.attempt.task.as_str()), ("why", why)];
        let data = EventData {
            names: names.map(|(key, name)| (key.to_owned(), name.to_owned())).into(),
            numbers: numbers(&old.attempt),
            ..EventData::default()
        };
        let (_, leaf) = self.event(EventType::Fenced, old.attempt.run.as_str(), at, data)?;
        let key = attempt_key(&old.attempt);
        Ok(batch
            .replace("attempts", &key, Some(value(old)?), value(&new)?)
            .set("fences", &fence_key(&old.attempt), value(&old.attempt.attempt)?)
            .leaf(&format!("fence/{key}"), leaf))
    }

    fn event(
        &self,
        event_type: EventType,
        subject: &str,
        at: u64,
        data: EventData,
    ) -> Result<(String, Vec<u8>), KeeperError> {
        let recording = "recording an event";
        let id = canonical_digest(&(event_type, subject, &data))
            .while_(recording)?
            .to_hex();
        let source = format!("/{}", self.site);
        let event = Event::new(event_type, id.clone(), source, subject, at, data);
        Ok((format!("keys/{id}"), value(&event)?))
    }
}
