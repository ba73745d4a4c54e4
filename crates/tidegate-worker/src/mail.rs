//! The worker's end of the mailbox, with the lease that the keeper renews through it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::{ObjectName, Patience, Store};
use tidegate_seal::envelope::{Identity, open};
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_transfer::mailbox::{Inbox, Letter, MailboxError, Outbox, Side};
use tidegate_types::message::{Grant, KeeperMessage, Ticket, WorkerMessage};

use crate::access::Access;
use crate::error::{Failure, Stage};
use crate::notice::Notices;

/// How often a message is tried to be delivered while the store fails in passing.
const TRIES: u32 = 8;
/// The first pause between two tries; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Unix time in seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// What was found in the mailbox, besides what is dealt with at once.
#[derive(Debug)]
pub(crate) enum Heard {
    Code(Grant),
    Data(Grant),
}

/// Both directions of the mailbox.
pub(crate) struct Mail {
    access: Arc<Access>,
    /// Where this worker's hello stands.
    first: Option<ObjectName>,
    outbox: Outbox,
    inbox: Inbox,
    identity: Identity,
    signer: SigningKey,
    owner: VerifyingKey,
    /// The attempt is over from this second on (Unix time).
    lease: u64,
    /// It is also over when the machine ends.
    notices: Notices,
}

impl Mail {
    /// The ticket's time is the lease until the first grant brings another one.
    pub(crate) fn new(
        access: Access,
        ticket: &Ticket,
        identity: Identity,
        signer: SigningKey,
        owner: VerifyingKey,
        notices: Notices,
    ) -> Self {
        Self {
            access: Arc::new(access),
            first: None,
            outbox: Outbox::new(ticket.attempt.clone(), Side::Worker),
            inbox: Inbox::new(ticket.attempt.clone(), Side::Worker),
            identity,
            signer,
            owner,
            lease: ticket.expires,
            notices,
        }
    }

    pub(crate) const fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) const fn signer(&self) -> &SigningKey {
        &self.signer
    }

    /// What is said about the machine.
    pub(crate) const fn notices(&mut self) -> &mut Notices {
        &mut self.notices
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.access) as Arc<dyn Store>
    }

    /// A lease is never shortened: the keeper cancels for that.
    pub(crate) fn renew(&mut self, lease: u64) {
        self.lease = self.lease.max(lease);
    }

    /// The lease that a grant brings replaces the ticket's.
    pub(crate) const fn begin_lease(&mut self, lease: u64) {
        self.lease = lease;
    }

    /// How long this worker may still do something.
    fn lease_left(&self) -> Result<Duration, Failure> {
        let end = UNIX_EPOCH.checked_add(Duration::from_secs(self.lease));
        let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok());
        let left = left.filter(|left| !left.is_zero()).ok_or_else(expired)?;
        match self.notices.words_left() {
            Some(words) if words.is_zero() => Err(self.notices.failure()),
            words => Ok(words.map_or(left, |words| words.min(left))),
        }
    }

    /// Why something was not done in the time that was left.
    fn too_late(&self) -> Failure {
        self.lease_left().err().unwrap_or_else(expired)
    }

    /// Delivers the first message; false when another worker was faster.
    pub(crate) async fn hello(&mut self, hello: &Letter) -> Result<bool, MailboxError> {
        match deliver(&mut self.outbox, &*self.access, hello).await {
            Err(MailboxError::Taken { .. }) => Ok(false),
            other => other.map(|()| {
                self.first = Some(hello.object.clone());
                true
            }),
        }
    }

    /// Delivers a message within the lease.
    pub(crate) async fn tell(&mut self, message: WorkerMessage) -> Result<(), Failure> {
        let left = self.lease_left()?;
        let failed =
            |error: MailboxError| Failure::new(Stage::Output, format!("a message could not be delivered: {error}"));
        let letter = self.outbox.seal(&self.signer, message).map_err(failed)?;
        let delivery = deliver(&mut self.outbox, &*self.access, &letter);
        let delivered = tokio::time::timeout(left, delivery).await;
        delivered.map_err(|_| self.too_late())?.map_err(failed)
    }

    /// The last message of a failed attempt: tried for a few seconds, also when the lease is over.
    pub(crate) async fn tell_failure(&mut self, failure: &Failure) {
        let message = WorkerMessage::Failed {
            stage: failure.stage.as_str().to_owned(),
            reason: failure.reason.clone(),
            exit_code: failure.exit_code,
        };
        let Ok(letter) = self.outbox.seal(&self.signer, message) else {
            return;
        };
        let delivery = deliver(&mut self.outbox, &*self.access, &letter);
        match tokio::time::timeout(Duration::from_secs(5), delivery).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the failure could not be told"),
            Err(_) => tracing::warn!("the failure could not be told in time"),
        }
    }

    /// Looks once. Leases are taken note of; a cancellation, a refusal, a message that cannot be
    /// believed and the end of the lease are failures.
    pub(crate) async fn look(&mut self) -> Result<Option<Heard>, Failure> {
        let left = self.lease_left()?;
        let next = self.inbox.next::<KeeperMessage>(&*self.access, &self.owner);
        let opened = tokio::time::timeout(left, next).await;
        let opened = match opened.map_err(|_| self.too_late())? {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            // The lease bounds how long this can go on.
            Err(MailboxError::Store(error)) if error.is_transient() => return Ok(None),
            Err(error) => return Err(Failure::new(Stage::Grant, error.to_string())),
        };
        match opened.numbered.message {
            KeeperMessage::CodeGrant(grant) => Ok(Some(Heard::Code(grant))),
            KeeperMessage::DataGrant(grant) => Ok(Some(Heard::Data(grant))),
            KeeperMessage::Lease { expires } => {
                self.renew(expires);
                Ok(None)
            }
            KeeperMessage::Access { sealed } => {
                let credentials = self.credentials(&sealed).map_err(|why| {
                    Failure::new(
                        Stage::Grant,
                        format!("credentials of the store that the keeper sent: {why}"),
                    )
                })?;
                // The old ones are good for a while yet, and others will follow.
                if let Err(why) = self.access.renew(&credentials, self.first.as_ref()).await {
                    tracing::warn!(%why, "new credentials do not open the store; the worker goes on with the old ones");
                }
                Ok(None)
            }
            KeeperMessage::Cancel { .. } => Err(Failure::new(Stage::Cancelled, "the keeper cancelled the attempt")),
            KeeperMessage::Refused { reason } => {
                Err(Failure::new(Stage::Grant, format!("the keeper refused: {reason}")))
            }
        }
    }

    /// Variables that were sealed to this worker.
    fn credentials(&self, sealed: &str) -> Result<BTreeMap<String, String>, String> {
        let sealed = STANDARD.decode(sealed).map_err(|_| "they are not base64".to_owned())?;
        let opened = open(&self.identity, &sealed).map_err(|_| "they are not sealed to this worker".to_owned())?;
        serde_json::from_slice(&opened).map_err(|_| "they are no JSON object of texts".to_owned())
    }

    /// Waits for a grant, for as long as the lease holds.
    pub(crate) async fn wait(&mut self) -> Result<Heard, Failure> {
        let mut patience = Patience::begin(self.access.pace());
        loop {
            let before = self.inbox.number();
            if let Some(heard) = self.look().await? {
                return Ok(heard);
            }
            if self.inbox.number() == before {
                tokio::time::sleep(patience.pause().min(self.lease_left()?)).await;
            } else {
                patience = Patience::begin(self.access.pace());
            }
        }
    }

    /// How long to pause between two looks while nothing is expected there but leases and cancellations.
    pub(crate) fn aside(&self) -> Duration {
        self.access.pace().most() * 4
    }

    /// Looks into the mailbox while nothing is expected there but leases and cancellations.
    pub(crate) async fn look_aside(&mut self) -> Result<(), Failure> {
        loop {
            let before = self.inbox.number();
            if self.look().await?.is_some() {
                return Err(Failure::new(
                    Stage::Grant,
                    "the keeper granted something that was not asked for",
                ));
            }
            // Several leases may lie there where looks are rare.
            if self.inbox.number() == before {
                return Ok(());
            }
        }
    }

    /// Does something for as long as the lease holds and nobody cancels; otherwise drops it.
    pub(crate) async fn while_leased<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let mut work = pin!(work);
        loop {
            // Nothing is awaited beside `work` that could keep it from being looked at.
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(self.aside().min(self.lease_left()?)) => {}
            }
            let look = self.look_aside();
            let mut look = pin!(look);
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                looked = &mut look => looked?,
            }
        }
    }
}

fn expired() -> Failure {
    Failure::new(Stage::Lease, "the keeper did not renew the lease in time")
}

/// Delivers with a few tries, because a store may be busy for a moment.
async fn deliver(outbox: &mut Outbox, store: &dyn Store, letter: &Letter) -> Result<(), MailboxError> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match outbox.deliver(store, letter).await {
            Err(error) if error.is_transient() => {}
            other => return other,
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    outbox.deliver(store, letter).await
}
