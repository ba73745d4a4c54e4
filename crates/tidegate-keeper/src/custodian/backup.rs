//! A site's keys, sealed to somebody who keeps them elsewhere, and put back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tidegate_contracts::journal::Batch;
use tidegate_seal::envelope::{Identity, open, seal_to};
use tidegate_types::ids::{ArtifactId, PermitId, SiteName};
use zeroize::{Zeroize, Zeroizing};

use super::Custodian;
use crate::crossing::forget_notes;
use crate::error::{KeeperError, While};
use crate::keys::{export, import};
use crate::records::{PermitRecord, Tombstone, attempt_key, value};

/// What [`Custodian::backup`] gives.
#[derive(Debug)]
pub struct BackedUp {
    /// An age file.
    pub sealed: Vec<u8>,
    /// How many data keys are in it.
    pub data_keys: u64,
}

/// What [`Custodian::restore`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Whether the site's own keys came from the backup.
    pub site_keys: bool,
    /// How many data keys came from it.
    pub data_keys: u64,
    /// How many permits have no key because it was destroyed on purpose.
    pub destroyed: u64,
    /// How many permits' keys neither open nor are in the backup.
    pub lost: u64,
}

const BACKUP_FORMAT: &str = "tidegate.keys-backup.v1";

/// A backup before it is sealed. Keys are hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    format: String,
    site: SiteName,
    at: u64,
    keys: String,
    data_keys: BTreeMap<PermitId, String>,
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.keys.zeroize();
        self.data_keys.values_mut().for_each(Zeroize::zeroize);
    }
}

impl Custodian {
    /// The site's own keys and all data keys, sealed to a recipient of age (`age1…`) whose identity lies
    /// elsewhere. Restored, it opens what crossed even when custody is lost.
    ///
    /// # Errors
    /// When custody is out of reach, something in it does not open, or the recipient is none.
    pub async fn backup(&self, recipient: &str) -> Result<BackedUp, KeeperError> {
        let backing = "making a backup of the keys";
        let keys = export(&self.key_file(), &*self.custody, &self.site).await?;
        let mut data_keys = BTreeMap::new();
        for permit in self.records.all::<PermitRecord>("permits")? {
            if permit.wrapped_key.is_empty() {
                continue;
            }
            let wrapped = hex::decode(&permit.wrapped_key).while_(backing)?;
            let key = self.custody.unwrap_key(&wrapped, permit.id.as_str()).await;
            let key = Zeroizing::new(key.while_(backing)?);
            data_keys.insert(permit.id, hex::encode(*key));
        }
        let count = data_keys.len() as u64;
        let backup = Backup {
            format: BACKUP_FORMAT.to_owned(),
            site: self.site.clone(),
            at: (self.clock)(),
            keys: hex::encode(&*keys),
            data_keys,
        };
        let text = Zeroizing::new(serde_json::to_vec(&backup).while_(backing)?);
        Ok(BackedUp {
            sealed: seal_to(recipient, &text).while_(backing)?,
            data_keys: count,
        })
    }

    /// Puts back what a backup holds and this site cannot open any more. What was destroyed stays so: the keys of
    /// artifacts with a tombstone in the journal, or in `shredded`, which the ledger tells, are left out.
    ///
    /// # Errors
    /// When the backup does not open, is of another site, or the site has keys that open and are others.
    pub async fn restore(
        &self,
        sealed: &[u8],
        identity: &Identity,
        shredded: &BTreeSet<ArtifactId>,
    ) -> Result<Restored, KeeperError> {
        let restoring = "restoring the keys of a backup";
        let text = open(identity, sealed).while_(restoring)?;
        let backup: Backup = serde_json::from_slice(&text)
            .map_err(|_| KeeperError::failed(restoring, "it is no backup of a site's keys"))?;
        if backup.format != BACKUP_FORMAT || backup.site != self.site {
            let why = format!("it is a backup of site `{}`, or of another format", backup.site);
            return Err(KeeperError::failed(restoring, why));
        }
        let keys = Zeroizing::new(hex::decode(&backup.keys).while_(restoring)?);
        let mut restored = Restored {
            site_keys: import(&self.key_file(), &*self.custody, &self.site, &keys).await?,
            ..Restored::default()
        };
        for old in self.records.all::<PermitRecord>("permits")? {
            let mut new = old.clone();
            let mut batch = Batch::default();
            if self.records.tombstone(&old.artifact)?.is_some() || shredded.contains(&old.artifact) {
                new.wrapped_key.clear();
                restored.destroyed += 1;
                forget_notes(&self.folder, &old.id)?;
                if self.records.tombstone(&old.artifact)?.is_none() {
                    // Not done: what a journal from before holds is destroyed by `shred`, asked for again.
                    let tombstone = Tombstone {
                        at: (self.clock)(),
                        done: false,
                    };
                    batch = batch.set("tombstones", &old.artifact.to_hex(), value(&tombstone)?);
                }
            } else if self.opens(&old.wrapped_key, old.id.as_str()).await? {
                continue;
            } else if let Some(key) = backup.data_keys.get(&old.id) {
                let mut raw = Zeroizing::new([0; 32]);
                hex::decode_to_slice(key, raw.as_mut()).while_(restoring)?;
                let wrapped = self.custody.wrap(&raw, old.id.as_str()).await.while_(restoring)?;
                new.wrapped_key = hex::encode(wrapped);
                restored.data_keys += 1;
            } else {
                new.wrapped_key.clear();
                restored.lost += 1;
            }
            let batch = batch.replace("permits", old.id.as_str(), Some(value(&old)?), value(&new)?);
            self.records.commit(&batch)?;
        }
        // No backup has the secrets of tickets: a worker that was given one is not believed any more.
        for old in self.records.open_attempts()? {
            if !self.opens(&old.secret, &attempt_key(&old.attempt)).await? {
                let batch = self.fenced(Batch::default(), &old, "lost", (self.clock)())?;
                self.records.commit(&batch)?;
            }
        }
        Ok(restored)
    }
}
