//! What a person on the private site sees of its crossings, and how they are paused and let go on.
//!
//! All of it works while the site's keeper runs: a keeper looks before each object whether somebody paused it.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tidegate_contracts::journal::Journal;
use tidegate_seal::dsse;
use tidegate_transfer::is_sending;
use tidegate_types::files::Sites;
use tidegate_types::ids::{ArtifactId, PermitId, Purpose, RunId, SiteName, TaskName};
use tidegate_types::keeper::Held;
use tidegate_types::label::Label;
use tidegate_types::permit::{Permit, Statement};

use crate::error::{KeeperError, While, refuse};
use crate::records::{PermitRecord, Records};
use crate::underway::held;

/// The crossings of a private site, for a person there.
#[derive(Debug)]
pub struct Transfers {
    site: SiteName,
    sites: Sites,
    pub(crate) folder: PathBuf,
    pub(crate) records: Records,
    pub(crate) clock: fn() -> u64,
}

/// One crossing: what a permit of this site allows, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Transfer {
    /// The permit.
    pub permit: PermitId,
    /// The run that it is for.
    pub run: RunId,
    /// The task that it is for.
    pub task: TaskName,
    /// What crosses.
    pub artifact: ArtifactId,
    /// What that is called.
    pub name: String,
    /// Where to.
    pub to: SiteName,
    /// Its label.
    pub label: Label,
    /// What it may be used for.
    pub purpose: Purpose,
    /// The smallest group of people in it that share all quasi-identifiers, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<u64>,
    /// Until when it may cross (Unix time).
    pub expires: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// How far it is.
    #[serde(flatten)]
    pub state: TransferState,
}

/// How far a crossing is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TransferState {
    /// All of it stands in the other site's store.
    Sent {
        /// Bytes that were put there.
        sealed: u64,
        /// Objects that they are.
        objects: u64,
        /// When (Unix time); 0 where that was not written down.
        at: u64,
    },
    /// It is being sent.
    Sending {
        /// Bytes of files that stand there already.
        stored: u64,
        /// Bytes in a second, once that can be told.
        per_second: Option<u64>,
        /// Seconds that are left at that rate.
        seconds_left: Option<u64>,
    },
    /// It may be sent, and is held back.
    Held {
        /// Bytes of files that stand there already.
        stored: u64,
        /// By what.
        by: Held,
    },
    /// It is not sent now: the run that wants it has not come to it, or was interrupted.
    Waiting {
        /// Bytes of files that stand there already.
        stored: u64,
    },
    /// Its permit has ended before all of it was sent.
    Expired {
        /// Bytes of files that stand there.
        stored: u64,
    },
}

impl Transfers {
    /// The crossings of `site`, whose folder is `folder`.
    #[must_use]
    pub fn new(site: SiteName, sites: Sites, folder: PathBuf, journal: Arc<dyn Journal>, clock: fn() -> u64) -> Self {
        Self {
            site,
            sites,
            folder,
            records: Records { journal },
            clock,
        }
    }

    /// Every crossing out of this site that a permit was signed for: run by run, the last ones last.
    ///
    /// # Errors
    /// When the journal or notes of a crossing cannot be read.
    pub fn all(&self) -> Result<Vec<Transfer>, KeeperError> {
        let mut transfers = Vec::new();
        for record in self.records.all::<PermitRecord>("permits")? {
            // What stays at home is sealed for its worker there, and crosses nothing.
            if record.to != self.site {
                transfers.push(self.transfer(record)?);
            }
        }
        // Permits of a run end together; those of later runs later.
        transfers
            .sort_by(|one, other| (one.expires, &one.run, &one.name).cmp(&(other.expires, &other.run, &other.name)));
        Ok(transfers)
    }

    fn transfer(&self, record: PermitRecord) -> Result<Transfer, KeeperError> {
        let reading = "reading a permit";
        let payload = dsse::peek(&record.envelope).while_(reading)?;
        let statement: Statement<Permit> = serde_json::from_slice(&payload).while_(reading)?;
        let manifest = self.records.artifact(&record.artifact)?.map(|record| record.manifest);
        let bytes = manifest.as_ref().map_or(0, |manifest| manifest.total_bytes());
        Ok(Transfer {
            state: self.state(&record, bytes)?,
            permit: record.id,
            run: record.run,
            task: record.task,
            artifact: record.artifact,
            name: manifest.map(|manifest| manifest.name).unwrap_or_default(),
            to: record.to,
            label: statement.predicate.label,
            purpose: statement.predicate.purpose,
            k: statement.predicate.evidence.k,
            expires: record.expires,
            bytes,
        })
    }

    fn state(&self, record: &PermitRecord, bytes: u64) -> Result<TransferState, KeeperError> {
        if let Some(crossing) = self.records.crossing(&record.id)? {
            return Ok(TransferState::Sent {
                sealed: crossing.bytes,
                objects: crossing.objects.len() as u64,
                at: crossing.at,
            });
        }
        let now = (self.clock)();
        let progress = self.records.progress(&record.id)?;
        let stored = progress.map_or(0, |progress| progress.stored);
        if record.expires <= now {
            return Ok(TransferState::Expired { stored });
        }
        let rules = self.sites.sites.get(&record.to).and_then(|site| site.transfer.as_ref());
        if let Some(by) = held(&self.records, &record.id, rules.and_then(|rules| rules.window), now)? {
            return Ok(TransferState::Held { stored, by });
        }
        let notes = self.folder.join("transfers").join(record.id.as_str());
        if !is_sending(&notes).while_("looking whether something is sent")? {
            return Ok(TransferState::Waiting { stored });
        }
        let per_second = progress.and_then(|progress| {
            let seconds = progress.at.saturating_sub(progress.began);
            let moved = progress.stored.saturating_sub(progress.stored_before);
            moved.checked_div(seconds).filter(|rate| *rate > 0)
        });
        Ok(TransferState::Sending {
            stored,
            per_second,
            seconds_left: per_second.map(|rate| bytes.saturating_sub(stored).div_ceil(rate)),
        })
    }

    /// Holds back a crossing, or all of them that this site begins or has begun: nothing more is sealed or put from now
    /// on but what is under way, until [`Self::resume`].
    ///
    /// # Errors
    /// A refusal when there is no such permit, or all of it was sent already; when the journal cannot be written.
    pub fn pause(&self, permit: Option<&PermitId>) -> Result<(), KeeperError> {
        let pausing = "pausing a crossing";
        if let Some(permit) = permit {
            self.known(permit, pausing)?;
            if self.records.crossing(permit)?.is_some() {
                return Err(refuse(
                    "transfer-sent",
                    format!("pausing the crossing under permit `{permit}`"),
                    "all of it was sent already",
                    "destroy its keys with `tidegate keys shred`, where nobody shall read it any more",
                )
                .into());
            }
        }
        if self.records.hold(permit)?.is_none() {
            self.records.set_hold(permit, Some((self.clock)()))?;
        }
        Ok(())
    }

    /// Lets a crossing go on that was paused; without a permit, all of them.
    ///
    /// # Errors
    /// A refusal when there is no such permit; when the journal cannot be read or written.
    pub fn resume(&self, permit: Option<&PermitId>) -> Result<(), KeeperError> {
        let resuming = "letting a crossing go on";
        match permit {
            Some(permit) => {
                self.known(permit, resuming)?;
                if self.records.hold(None)?.is_some() {
                    return Err(refuse(
                        "transfers-paused",
                        format!("letting the crossing under permit `{permit}` go on"),
                        "all crossings of this site are paused",
                        "let all of them go on first, without naming a permit",
                    )
                    .into());
                }
                self.records.set_hold(Some(permit), None)
            }
            None => {
                for record in self.records.all::<PermitRecord>("permits")? {
                    if self.records.hold(Some(&record.id))?.is_some() {
                        self.records.set_hold(Some(&record.id), None)?;
                    }
                }
                self.records.set_hold(None, None)
            }
        }
    }

    /// Since when all crossings of this site are paused (Unix time), where they are.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn paused(&self) -> Result<Option<u64>, KeeperError> {
        self.records.hold(None)
    }

    fn known(&self, permit: &PermitId, what: &str) -> Result<(), KeeperError> {
        if self.records.permit(permit)?.is_some() {
            return Ok(());
        }
        Err(refuse(
            "permit-missing",
            what,
            format!("this site signed no permit `{permit}`"),
            "name a permit that `tidegate transfers list` shows",
        )
        .into())
    }
}
