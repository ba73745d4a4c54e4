//! A command's unfinished work: found when it stands still, copied, sealed and sent while the command goes on.
//!
//! ```text
//! command ──writes──▶ TIDEGATE_CHECKPOINT ──stands still──▶ copy ──sealed──▶ store ──told──▶ keeper
//!                                                                                              │
//! next attempt ◀──opened before its command starts── store ◀──────────granted──────────────────┘
//! ```
//!
//! What is half written is never sent: nothing counts whose name says that it is unfinished, and nothing is taken that is
//! written, or gets further names beside it, within a second. What is replaced meanwhile is held until then.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_transfer::{Standing, TransferError};
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::message::WorkerMessage;
use tokio::task::JoinHandle;

use crate::error::{Failure, Stage};
use crate::outgoing::{Before, Outgoing, Parcel, Sealed};

/// The standing slot under which unfinished work is sent.
pub(crate) const CHECKPOINT_SLOT: &str = "checkpoint";
/// For how long nothing may be written into what stood there.
const SETTLED: Duration = Duration::from_secs(1);
/// The folder is looked at this often, and more rarely where that takes long.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Of a long job so much time goes into sending at the most: a part in ten.
const PAUSE_PER_SENDING: u32 = 9;
/// How long nothing is sent after sending failed, the first time.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// After so many looks in a row that could not hold anything, the log says so.
const UNHELD: u32 = 40;
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The checkpoints of one command.
pub(crate) struct Checkpoints {
    outgoing: Arc<Outgoing>,
    folder: PathBuf,
    /// Where copies are made: out of the command's reach.
    state: PathBuf,
    /// The most bytes of one.
    limit: u64,
    /// Sealed bytes that the slot still carries.
    left: u64,
    /// What stood there at one moment, and where it is held since then.
    held: Option<(Standing, PathBuf, Instant)>,
    /// What needs not be sent: it was, or was there when the command started.
    sent: Standing,
    /// What stands in the store of the last one that was sent.
    before: Before,
    under_way: Option<UnderWay>,
    number: u64,
    look_at: Instant,
    send_at: Instant,
    failures: u32,
    refused: bool,
    /// Looks in a row after which nothing could be held.
    unheld: u32,
    /// Whether nothing is saved for later any more.
    hurried: bool,
}

/// A copy that is being sent.
struct UnderWay {
    /// Nothing where what was held did not stand still after all.
    sending: JoinHandle<Result<Option<Sealed>, Failure>>,
    standing: Standing,
    copy: PathBuf,
    begun: Instant,
}

/// What came of a look.
#[derive(Default)]
pub(crate) struct News {
    /// To be told to the keeper.
    pub(crate) message: Option<WorkerMessage>,
    /// To be told in the command's log.
    pub(crate) note: Option<String>,
}

impl News {
    fn note(text: String) -> Self {
        Self {
            note: Some(text),
            ..Self::default()
        }
    }
}

impl Checkpoints {
    /// Of a command that has not started; none where its permit carries none. `limit` bounds the bytes of one.
    pub(crate) async fn new(
        outgoing: &Arc<Outgoing>,
        folder: PathBuf,
        state: PathBuf,
        limit: u64,
    ) -> Result<Option<Self>, Failure> {
        let Some(left) = outgoing.slot_bytes(CHECKPOINT_SLOT) else {
            return Ok(None);
        };
        let now = Instant::now();
        let sent = look(&folder).await?.unwrap_or_default();
        Ok(Some(Self {
            outgoing: Arc::clone(outgoing),
            folder,
            state,
            limit,
            left,
            held: None,
            sent,
            before: Before::nothing()?,
            under_way: None,
            number: 0,
            look_at: now,
            send_at: now,
            failures: 0,
            refused: false,
            unheld: 0,
            hurried: false,
        }))
    }

    /// There may be no later: what stands still is sent as soon as it can be. Where it is certain that there is none, so is
    /// everything that comes after.
    pub(crate) fn hurry(&mut self, certain: bool) {
        self.hurried = certain;
        self.failures = 0;
        self.send_at = Instant::now();
        self.look_at = self.send_at;
    }

    /// Whether nothing is being held or sent.
    pub(crate) const fn is_idle(&self) -> bool {
        self.held.is_none() && self.under_way.is_none()
    }

    /// Sends what is under way to its end. What a command was writing when it was stopped is not taken.
    pub(crate) async fn last(&mut self) -> Result<News, Failure> {
        self.sent().await
    }

    /// Looks whether something is to be sent, or was sent; returns soon.
    pub(crate) async fn look(&mut self) -> Result<News, Failure> {
        if let Some(under_way) = &self.under_way {
            return if under_way.sending.is_finished() {
                self.sent().await
            } else {
                Ok(News::default())
            };
        }
        let begun = Instant::now();
        if begun < self.look_at || begun < self.send_at {
            return Ok(News::default());
        }
        let standing = look(&self.folder).await?;
        let now = Instant::now();
        self.look_at = now + ((now - begun) * 20).max(LOOK_EVERY);
        let standing = match standing {
            Ok(standing) => standing,
            Err(TransferError::NotAFile { path, why }) if !std::mem::replace(&mut self.refused, true) => {
                return Ok(News::note(format!(
                    "no checkpoint is kept while `{path}` is among them: {why}"
                )));
            }
            // A name that was there and is gone: something is being replaced.
            Err(_) => return Ok(News::default()),
        };
        match self.held.take() {
            Some((held, at, since)) if now - since < SETTLED => {
                self.held = Some((held, at, since));
                Ok(News::default())
            }
            Some((held, at, _)) if standing.has_names_of(&held) => Ok(self.begin(held, at)),
            old => {
                if let Some((_, at, _)) = old {
                    remove(at).await;
                }
                if standing.is_empty() || standing == self.sent {
                    return Ok(News::default());
                }
                self.hold(&standing).await
            }
        }
    }

    /// Holds what stands there now.
    async fn hold(&mut self, standing: &Standing) -> Result<News, Failure> {
        let bytes = standing.bytes();
        if bytes > self.limit.min(self.left) {
            self.sent = standing.clone();
            return Ok(News::note(format!(
                "a checkpoint of {bytes} bytes is not kept: it is larger than allowed, or so many were sent that no more are"
            )));
        }
        self.number += 1;
        let at = self.state.join(format!("held-{}", self.number));
        let (folder, to) = (self.folder.clone(), at.clone());
        let held = tokio::task::spawn_blocking(move || Standing::hold(&folder, &to)).await;
        match held.map_err(|_| inside())? {
            Ok(Some(held)) => {
                self.held = Some((held, at, Instant::now()));
                self.unheld = 0;
                return Ok(News::default());
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "nothing is held of a checkpoint"),
        }
        // Mostly somebody was faster, and the next look tries again.
        self.unheld += 1;
        if self.unheld == UNHELD {
            return Ok(News::note(
                "no checkpoint could be kept so far: its files are replaced all the time, cannot be read, or stand on a file \
                 system without links"
                    .to_owned(),
            ));
        }
        Ok(News::default())
    }

    /// Begins to copy and send what was held.
    fn begin(&mut self, held: Standing, at: PathBuf) -> News {
        let copy = self.state.join(format!("checkpoint-{}", self.number));
        let (from, to, still) = (at.clone(), copy.clone(), held.clone());
        let begun = Instant::now();
        let (outgoing, parcel) = (
            Arc::clone(&self.outgoing),
            Parcel {
                slot: CHECKPOINT_SLOT,
                kind: ArtifactKind::Checkpoint,
                folder: copy.clone(),
                state: self.state.clone(),
                limit: self.limit,
                before: self.before.clone(),
                data_key: None,
            },
        );
        let sending = tokio::spawn(async move {
            let copied = tokio::task::spawn_blocking(move || still.copy(&from, &to)).await;
            remove(at).await;
            let copied = copied.map_err(|_| inside())?;
            if !copied.map_err(|error| Failure::new(Stage::Output, error.to_string()))? {
                return Ok(None);
            }
            outgoing.send(parcel).await.map(Some)
        });
        self.under_way = Some(UnderWay {
            sending,
            standing: held,
            copy,
            begun,
        });
        News::default()
    }

    /// What became of a sending that has ended.
    async fn sent(&mut self) -> Result<News, Failure> {
        // Taken only once it has ended: whoever stops waiting for it may have it ended.
        let Some(under_way) = &mut self.under_way else {
            return Ok(News::default());
        };
        let sent = (&mut under_way.sending).await;
        let Some(UnderWay {
            standing, copy, begun, ..
        }) = self.under_way.take()
        else {
            return Ok(News::default());
        };
        remove(copy).await;
        let sent = sent.map_err(|_| inside())?;
        match sent {
            Ok(None) => Ok(News::default()),
            Ok(Some(sealed)) => {
                self.left = self.left.saturating_sub(sealed.bytes);
                self.sent = standing;
                self.before = sealed.before;
                self.failures = 0;
                let pause = if self.hurried { 0 } else { PAUSE_PER_SENDING };
                self.send_at = Instant::now() + begun.elapsed() * pause;
                Ok(News {
                    message: Some(WorkerMessage::Checkpoint {
                        packing_list: sealed.packing_list,
                        packing_list_digest: sealed.packing_list_digest,
                        grant: sealed.grant,
                    }),
                    note: None,
                })
            }
            Err(failure) => Ok(self.failed(&failure.reason)),
        }
    }

    /// Unfinished work that cannot be kept now is no reason to end the work.
    fn failed(&mut self, why: &str) -> News {
        let times = if self.hurried { 0 } else { self.failures.min(6) };
        let pause = AFTER_FAILURE * 2_u32.pow(times);
        self.send_at = Instant::now() + pause.min(LONGEST_PAUSE);
        self.failures += 1;
        tracing::warn!(why, "a checkpoint was not sent");
        News::note(format!(
            "a checkpoint was not kept, and the next one is tried later: {why}"
        ))
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        if let Some(under_way) = &self.under_way {
            under_way.sending.abort();
        }
    }
}

async fn look(folder: &std::path::Path) -> Result<Result<Standing, TransferError>, Failure> {
    let folder = folder.to_owned();
    let looked = tokio::task::spawn_blocking(move || Standing::of(&folder)).await;
    looked.map_err(|_| inside())
}

async fn remove(folder: PathBuf) {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)).await;
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    if !removed.is_ok_and(|removed| removed.as_ref().err().is_none_or(gone)) {
        tracing::warn!("a copy of a checkpoint could not be removed; it goes with the attempt");
    }
}

fn inside() -> Failure {
    Failure::new(Stage::Output, "the worker failed inside while keeping a checkpoint")
}
