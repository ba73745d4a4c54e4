//! Crossings that take longer than a question: each goes on by itself between the requests that ask for it, and
//! stops once nobody does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_transfer::Gate;
use tidegate_types::ids::{PermitId, SiteName};
use tidegate_types::keeper::{Held, ReplyBody};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

use crate::error::KeeperError;
use crate::records::{CrossingRecord, PermitRecord, Records};
use crate::service::Keeper;

/// How long a request waits for the end of a crossing before it is told how far that is.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// How often it is written down how far a crossing is.
const NOTED_EVERY: Duration = Duration::from_secs(2);
/// What is stored so soon stood there before.
const FOUND_WITHIN: Duration = Duration::from_millis(500);

/// Where a person has paused crossings: by permit, or all of them.
const HOLDS: &str = "holds";
/// The key of all crossings among the holds; no permit is called so.
const ALL: &str = "*";
const PROGRESS: &str = "progress";

/// That a person paused a crossing, or let it go on again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    /// Since when (Unix time); nothing where it may go on.
    pub(crate) since: Option<u64>,
}

/// How far a crossing was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgressRecord {
    /// Bytes of files that stood in the other site's store.
    pub(crate) stored: u64,
    /// How many of them did when this began to be counted.
    pub(crate) stored_before: u64,
    /// When that was (Unix time).
    pub(crate) began: u64,
    /// When this was written (Unix time).
    pub(crate) at: u64,
}

impl Records {
    pub(crate) fn hold(&self, permit: Option<&PermitId>) -> Result<Option<u64>, KeeperError> {
        let hold: Option<Hold> = self.get(HOLDS, permit.map_or(ALL, PermitId::as_str))?;
        Ok(hold.and_then(|hold| hold.since))
    }

    pub(crate) fn set_hold(&self, permit: Option<&PermitId>, since: Option<u64>) -> Result<(), KeeperError> {
        self.put(HOLDS, permit.map_or(ALL, PermitId::as_str), &Hold { since })
    }

    pub(crate) fn progress(&self, permit: &PermitId) -> Result<Option<ProgressRecord>, KeeperError> {
        self.get(PROGRESS, permit.as_str())
    }
}

/// What is known of a crossing while it goes on.
#[derive(Debug)]
pub(crate) struct Watch {
    stored: AtomicU64,
    bytes: u64,
    asked: Mutex<Instant>,
    unasked: Duration,
    held: Mutex<Option<Held>>,
    /// Whether it was stopped because nobody asked for it.
    given_up: AtomicBool,
    noted: Mutex<Option<Noted>>,
}

/// What was written down last of how far a crossing is.
#[derive(Debug, Clone, Copy)]
struct Noted {
    last: Instant,
    stored_before: u64,
    began: u64,
    written: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// A crossing of so many bytes that somebody has just asked for, and that stops once nobody has for `unasked`.
    pub(crate) fn new(bytes: u64, unasked: Duration) -> Self {
        Self {
            stored: AtomicU64::new(0),
            bytes,
            asked: Mutex::new(Instant::now()),
            unasked,
            held: Mutex::new(None),
            given_up: AtomicBool::new(false),
            noted: Mutex::new(None),
        }
    }

    fn asked(&self) {
        *locked(&self.asked) = Instant::now();
    }

    fn is_given_up(&self) -> bool {
        locked(&self.asked).elapsed() > self.unasked
    }

    fn reply(&self) -> ReplyBody {
        ReplyBody::Sending {
            stored: self.stored.load(Ordering::Relaxed),
            bytes: self.bytes,
            held: *locked(&self.held),
        }
    }
}

type Work = JoinHandle<Result<CrossingRecord, KeeperError>>;

/// A crossing that goes on by itself.
#[derive(Debug, Clone)]
pub(crate) struct Underway {
    watch: Arc<Watch>,
    /// Nothing once somebody has learned how it ended.
    work: Arc<tokio::sync::Mutex<Option<Work>>>,
    /// Ends it where it stands.
    end: AbortHandle,
}

/// All of them, by permit.
pub(crate) type AllUnderway = Mutex<BTreeMap<PermitId, Underway>>;

/// Ends what is under way with the keeper that began it: another one goes on with it.
pub(crate) struct EndsWith<'a>(pub(crate) &'a AllUnderway);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        for underway in std::mem::take(&mut *locked(self.0)).into_values() {
            underway.end.abort();
        }
    }
}

impl Keeper {
    /// Lets a crossing go on, begins it where it does not, and waits a moment for its end. `None` while there is none.
    pub(crate) async fn crossing_or_progress(
        self: &Arc<Self>,
        record: &PermitRecord,
    ) -> Result<Result<CrossingRecord, ReplyBody>, KeeperError> {
        let underway = self.begun(record)?;
        underway.watch.asked();
        let mut work = underway.work.lock().await;
        let Some(handle) = work.as_mut() else {
            // Another request has just learned how it ended.
            return match self.records.crossing(&record.id)? {
                Some(crossing) => Ok(Ok(crossing)),
                None => Ok(Err(underway.watch.reply())),
            };
        };
        let Ok(ended) = tokio::time::timeout(ANSWERED_WITHIN, handle).await else {
            return Ok(Err(underway.watch.reply()));
        };
        *work = None;
        locked(&self.underway).remove(&record.id);
        let ended = ended.map_err(|_| KeeperError::failed("sending what a permit allows", "its task was ended"))?;
        match ended {
            Ok(crossing) => Ok(Ok(crossing)),
            // Somebody waits for it again: whoever asks next begins anew.
            Err(_) if underway.watch.given_up.load(Ordering::Relaxed) => Ok(Err(underway.watch.reply())),
            Err(error) => Err(error),
        }
    }

    /// The crossing of a permit, which is begun unless it goes on already.
    fn begun(self: &Arc<Self>, record: &PermitRecord) -> Result<Underway, KeeperError> {
        let mut all = locked(&self.underway);
        // Nobody will ask what became of those that were given up. One that still goes on is asked for again.
        all.retain(|_, underway| !(underway.watch.is_given_up() && underway.end.is_finished()));
        if let Some(underway) = all.get(&record.id) {
            return Ok(underway.clone());
        }
        let watch = Arc::new(Watch::new(
            self.artifact_record(&record.artifact)?.manifest.total_bytes(),
            self.unasked,
        ));
        let (keeper, permit, watching) = (Arc::clone(self), record.clone(), Arc::clone(&watch));
        let handle = tokio::spawn(async move { keeper.cross(&permit, &watching).await });
        let underway = Underway {
            watch,
            end: handle.abort_handle(),
            work: Arc::new(tokio::sync::Mutex::new(Some(handle))),
        };
        all.insert(record.id.clone(), underway.clone());
        Ok(underway)
    }

    /// Whether a crossing may go on now.
    pub(crate) fn gate(&self, permit: &PermitId, to: &SiteName, watch: &Watch) -> Gate {
        if *to == self.site {
            return Gate::Open;
        }
        if watch.is_given_up() {
            watch.given_up.store(true, Ordering::Relaxed);
            return Gate::Shut("nobody waits for it any more");
        }
        let Ok(held) = self.held(permit, to) else {
            return Gate::Shut("it cannot be read whether somebody paused it");
        };
        let before = std::mem::replace(&mut *locked(&watch.held), held);
        if before != held {
            // Waiting is no part of how fast it is.
            *locked(&watch.noted) = None;
            tracing::info!(%permit, site = %to, ?held, "crossing held or let go on");
        }
        if held.is_some() { Gate::Held } else { Gate::Open }
    }

    fn held(&self, permit: &PermitId, to: &SiteName) -> Result<Option<Held>, KeeperError> {
        let window = self
            .site_definition(to)?
            .transfer
            .as_ref()
            .and_then(|rules| rules.window);
        held(&self.records, permit, window, (self.clock)())
    }

    /// Notes how far a crossing is, now and then.
    pub(crate) fn note_progress(&self, permit: &PermitId, watch: &Watch, stored: u64) {
        watch.stored.store(stored, Ordering::Relaxed);
        let now = (self.clock)();
        let mut noted = locked(&watch.noted);
        let noted = noted.get_or_insert(Noted {
            last: Instant::now(),
            stored_before: stored,
            began: now,
            written: false,
        });
        if !noted.written && noted.last.elapsed() < FOUND_WITHIN {
            // What stood there already is found faster than anything is sent.
            noted.stored_before = stored;
        }
        if noted.last.elapsed() < NOTED_EVERY {
            return;
        }
        (noted.last, noted.written) = (Instant::now(), true);
        let record = ProgressRecord {
            stored,
            stored_before: noted.stored_before,
            began: noted.began,
            at: now,
        };
        if let Err(error) = self.records.put(PROGRESS, permit.as_str(), &record) {
            tracing::debug!(%permit, %error, "how far it is was not written down");
        }
    }
}

/// Why nothing of a crossing moves, where that is so.
pub(crate) fn held(
    records: &Records,
    permit: &PermitId,
    window: Option<tidegate_types::quantity::DailyWindow>,
    now: u64,
) -> Result<Option<Held>, KeeperError> {
    if records.hold(None)?.is_some() || records.hold(Some(permit))?.is_some() {
        return Ok(Some(Held::Paused));
    }
    let left = window.map_or(0, |window| window.opens_in(now));
    Ok((left > 0).then(|| Held::Window { opens: now + left }))
}
