//! What stands in stores and nobody needs any more: found by a person's wish, and removed.
//!
//! What this site put there, or received from there, it knows from its own records, and from nothing that stands in
//! the store. What stands there under permits of others, and what their lists name, is theirs. What no list names may be
//! on its way from somebody else: it counts only once it was seen twice, a day apart, and goes only when that is asked
//! for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_contracts::journal::Batch;
use tidegate_contracts::{ObjectInfo, ObjectName, Store};
use tidegate_transfer::{TransferError, named_by, names_in_flight, remove, stored};
use tidegate_types::artifact::SealedObject;
use tidegate_types::ids::{PermitId, SiteName};
use tidegate_types::keeper::AttemptOutcome;

use crate::attempt::SETUPS;
use crate::crossing::forget_notes;
use crate::error::{KeeperError, While};
use crate::records::{AttemptRecord, PermitRecord, SetupRecord, value};
use crate::transfers::Transfers;

/// Seconds for which something that nobody names must have stood there.
const UNNAMED_FOR: u64 = 24 * 3600;
const UNNAMED: &str = "unnamed";
const SWEEPING: &str = "looking for what nobody needs";

/// Why nobody needs an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Needless {
    /// It was sent to a worker under a permit that has ended: none is given its key any more.
    PermitEnded,
    /// The keys of its artifact were destroyed.
    Shredded,
    /// It is the output of an attempt that has ended: what counts of it is at home. Or its unfinished work, with which no
    /// attempt goes on any more.
    AttemptEnded,
    /// It was begun to be sent under a permit that ended before all of it was.
    NeverSent,
    /// No packing list that counts names it, and did not a day ago: what a sender left that was killed, or the output of
    /// an attempt that was never received.
    Unnamed,
}

/// An object that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeedlessObject {
    /// The site in whose store it stands.
    pub site: SiteName,
    /// Its name.
    pub object: String,
    /// Its length.
    pub bytes: u64,
    /// Why nobody needs it.
    pub why: Needless,
}

/// What a look into the stores found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sweep {
    /// What nobody needs: packing lists before what they name.
    pub needless: Vec<NeedlessObject>,
    /// Objects that no list of this site names, and that were first seen less than a day ago. They are left alone.
    pub waiting: u64,
    /// Sites where something may be on its way that cannot be told apart: a worker is at work, or a packing list of
    /// others cannot be read. What no list names there is left alone.
    pub unclear: BTreeSet<SiteName>,
    /// Sites whose stores could not be looked through, or from which not all could be removed, with the reason.
    pub failed: BTreeMap<SiteName, String>,
}

/// What is removed of what nobody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Nothing.
    Nothing,
    /// What this site put there itself, or received from there.
    Known,
    /// That, and what nobody names. Senders of others who take longer than a day would lose what they have put.
    Unnamed,
}

/// What this site knows of the objects in one store.
#[derive(Default)]
struct Known {
    kept: BTreeSet<ObjectName>,
    needless: BTreeMap<ObjectName, Needless>,
    /// Whether what others may be sending cannot be told.
    unclear: bool,
}

impl Transfers {
    /// Looks for what nobody needs in the stores of sites, and removes it as far as that is wanted. Nothing is touched
    /// but packing lists and what is sealed. A store that fails is told in [`Sweep::failed`], and the same again goes on.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn sweep(
        &self,
        stores: &BTreeMap<SiteName, Arc<dyn Store>>,
        removal: Removal,
    ) -> Result<Sweep, KeeperError> {
        let mut sweep = Sweep::default();
        for (site, store) in stores {
            let found = match self.look(site, &**store, &mut sweep).await {
                Ok(found) => found,
                Err(error) => {
                    sweep.failed.insert(site.clone(), error.to_string());
                    continue;
                }
            };
            let goes = |why: Needless| match removal {
                Removal::Nothing => false,
                Removal::Known => why != Needless::Unnamed,
                Removal::Unnamed => true,
            };
            let names: Vec<ObjectName> = found
                .iter()
                .filter(|(_, why)| goes(*why))
                .map(|(info, _)| info.name.clone())
                .collect();
            if let Err(error) = remove(&**store, &names).await {
                sweep.failed.insert(site.clone(), error.to_string());
            } else if removal != Removal::Nothing {
                self.forget_never_sent(site)?;
                tracing::info!(%site, objects = names.len(), "removed what nobody needs");
            }
            sweep
                .needless
                .extend(found.into_iter().map(|(info, why)| NeedlessObject {
                    site: site.clone(),
                    object: info.name.to_string(),
                    bytes: info.bytes,
                    why,
                }));
        }
        Ok(sweep)
    }

    /// Removes the notes of crossings that will never go on. Keys of shards are in them.
    fn forget_never_sent(&self, site: &SiteName) -> Result<(), KeeperError> {
        for permit in self.records.all::<PermitRecord>("permits")? {
            let ended = permit.expires <= (self.clock)();
            if ended && permit.to == *site && self.records.crossing(&permit.id)?.is_none() {
                forget_notes(&self.folder, &permit.id)?;
            }
        }
        Ok(())
    }

    async fn look(
        &self,
        site: &SiteName,
        store: &dyn Store,
        sweep: &mut Sweep,
    ) -> Result<Vec<(ObjectInfo, Needless)>, KeeperError> {
        // First what is there, then what is named: a sender notes what it is about to put before it does.
        let there = stored(store).await.while_(SWEEPING)?;
        let lists: BTreeSet<ObjectName> = there.iter().map(|info| info.name.clone()).filter(is_list).collect();
        let known = self.known_objects(site, store, &lists).await?;
        if known.unclear {
            sweep.unclear.insert(site.clone());
        }
        let mut needless = Vec::new();
        let mut unnamed = Vec::new();
        for info in there {
            if known.kept.contains(&info.name) {
                continue;
            }
            match known.needless.get(&info.name) {
                Some(why) => needless.push((info, *why)),
                None if known.unclear => {}
                None => unnamed.push(info),
            }
        }
        let long = self.unnamed_long(site, &unnamed)?;
        for info in unnamed {
            if long.contains(&info.name) {
                needless.push((info, Needless::Unnamed));
            } else {
                sweep.waiting += 1;
            }
        }
        Ok(needless)
    }

    async fn known_objects(
        &self,
        site: &SiteName,
        store: &dyn Store,
        lists: &BTreeSet<ObjectName>,
    ) -> Result<Known, KeeperError> {
        let mut known = Known::default();
        let attempts: Vec<AttemptRecord> = self.records.all("attempts")?;
        let permits: Vec<PermitRecord> = self.records.all("permits")?;
        let at_work = |permit: &PermitId| {
            let mut open = attempts.iter().filter(|attempt| attempt.outcome.is_none());
            open.any(|attempt| attempt.inputs.values().any(|input| input == permit))
        };
        known.unclear = attempts
            .iter()
            .any(|attempt| attempt.outcome.is_none() && attempt.site == *site);
        for permit in &permits {
            // Notes before the record: they are removed once that is written.
            let notes = self.folder.join("transfers").join(permit.id.as_str());
            let mut names = names_in_flight(&notes).while_(SWEEPING)?;
            let crossing = self.records.crossing(&permit.id)?;
            let sent = crossing.is_some();
            if let Some(crossing) = crossing {
                names.extend(objects(&crossing.packing_list, &crossing.objects)?);
            }
            match self.needless(permit, sent, at_work(&permit.id))? {
                None => known.kept.extend(names),
                Some(why) if permit.to == *site => known.needless.extend(names.into_iter().map(|name| (name, why))),
                // Another name of the same store, perhaps: it is looked at under that.
                Some(_) => {}
            }
        }
        for attempt in &attempts {
            if let Some(checkpoint) = &attempt.checkpoint {
                let names = objects(&checkpoint.packing_list, &checkpoint.objects)?;
                // The next attempt may go on with it until the permit ends, unless there is a model.
                let same_task = attempts.iter().filter(|other| {
                    other.attempt.run == attempt.attempt.run && other.attempt.task == attempt.attempt.task
                });
                let done = same_task
                    .clone()
                    .any(|other| matches!(other.outcome, Some(AttemptOutcome::Accepted { .. })));
                let open = same_task.clone().any(|other| other.outcome.is_none());
                if open || (!done && attempt.ends > (self.clock)()) {
                    known.kept.extend(names);
                } else if attempt.site == *site {
                    let why = Needless::AttemptEnded;
                    known.needless.extend(names.into_iter().map(|name| (name, why)));
                }
            }
            let Some(output) = self.records.output(&attempt.attempt)? else {
                continue;
            };
            let names = objects(&output.packing_list, &output.objects)?;
            if attempt.outcome.is_none() {
                known.kept.extend(names);
            } else if attempt.site == *site {
                let why = Needless::AttemptEnded;
                known.needless.extend(names.into_iter().map(|name| (name, why)));
            }
        }
        for setup in self.records.all::<Option<SetupRecord>>(SETUPS)?.into_iter().flatten() {
            let names = objects(&setup.sealed.packing_list, &setup.sealed.objects)?;
            let permit = permits.iter().find(|permit| permit.id == setup.sealed.permit);
            let code = permit
                .map(|permit| self.records.tombstone(&permit.artifact))
                .transpose()?;
            if code.flatten().is_none() {
                known.kept.extend(names);
            } else if setup.site == *site {
                // Its key went with that of the code.
                let why = Needless::Shredded;
                known.needless.extend(names.into_iter().map(|name| (name, why)));
            }
        }
        for list in lists {
            if known.kept.contains(list) || known.needless.contains_key(list) {
                continue;
            }
            let ours = permits.iter().any(|permit| {
                list.as_str()
                    .starts_with(&format!("packing/{}/{}-", permit.run, permit.id))
            });
            if ours {
                // An output that was never received: what it names, anybody may have written into it.
                continue;
            }
            match named_by(store, &BTreeSet::from([list.clone()])).await {
                Ok(names) => known.kept.extend(names),
                Err(TransferError::Unexpected { .. }) => {
                    known.kept.insert(list.clone());
                    known.unclear = true;
                }
                Err(error) => return Err(KeeperError::failed(SWEEPING, error)),
            }
        }
        Ok(known)
    }

    /// Why nobody needs what was sent, or begun to be sent, under a permit.
    fn needless(&self, permit: &PermitRecord, sent: bool, at_work: bool) -> Result<Option<Needless>, KeeperError> {
        let ended = permit.expires <= (self.clock)();
        Ok(if self.records.tombstone(&permit.artifact)?.is_some() {
            Some(Needless::Shredded)
        } else if !sent && ended {
            Some(Needless::NeverSent)
        } else if permit.worker.is_some() && ended && !at_work {
            // What a site opens itself, it serves for as long as it likes.
            Some(Needless::PermitEnded)
        } else {
            None
        })
    }

    /// Those of some objects that were seen unnamed a day ago already; the others are noted.
    fn unnamed_long(&self, site: &SiteName, objects: &[ObjectInfo]) -> Result<BTreeSet<ObjectName>, KeeperError> {
        let now = (self.clock)();
        let mut long = BTreeSet::new();
        let mut batch = Batch::default();
        for info in objects {
            let key = format!("{site}/{}", info.name);
            match self.records.get::<Seen>(UNNAMED, &key)? {
                Some(seen) if now.saturating_sub(seen.since) >= UNNAMED_FOR => {
                    long.insert(info.name.clone());
                }
                Some(_) => {}
                None => batch = batch.set(UNNAMED, &key, value(&Seen { since: now })?),
            }
        }
        self.records.commit(&batch)?;
        Ok(long)
    }
}

/// When something that nobody names was seen first.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Seen {
    since: u64,
}

/// The names of a packing list and of what it names.
pub(crate) fn objects(list: &str, objects: &[SealedObject]) -> Result<Vec<ObjectName>, KeeperError> {
    let sealed = objects
        .iter()
        .map(|object| ObjectName::new(format!("sealed/{}", object.digest.to_hex())));
    let mut names = vec![ObjectName::new(list).while_(SWEEPING)?];
    for name in sealed {
        names.push(name.while_(SWEEPING)?);
    }
    Ok(names)
}

fn is_list(name: &ObjectName) -> bool {
    name.as_str().starts_with("packing/")
}
