//! The state machine: one journal transaction for each step, its letter delivered afterwards.

use bytes::Bytes;
use tidegate_contracts::identity::{IdentityError, Verifier};
use tidegate_contracts::store::{ObjectName, Patience};
use tidegate_transfer::mailbox::{HelloOpened, Inbox, Letter, MailboxError, Outbox, Side, is_contested};
use tidegate_types::files::sites::NetworkRule;
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::{Attempt, Grant, KeeperMessage, WorkerMessage};

use super::checkpoint::Told;
use super::output::METRICS;
use super::setup::keeps_setup;
use super::{LEASE_EVERY, LEASE_SECONDS};
use crate::admission::{Admitted, Requirements, Worker, admit, seal_access, second_hello, still_enforced, unproven};
use crate::away::is_away;
use crate::error::{KeeperError, While, refuse};
use crate::permits::SETUP;
use crate::records::{AttemptRecord, Pending, Phase, Position};
use crate::service::Keeper;

impl Keeper {
    /// Ends an attempt without an output and tells its worker.
    pub(super) async fn end_badly(
        &self,
        attempt: &Attempt,
        outcome: AttemptOutcome,
        reason: &str,
    ) -> Result<(), KeeperError> {
        loop {
            let record = self.attempt_record(attempt)?;
            if record.outcome.is_some() {
                return Ok(());
            }
            let mut new = record.clone();
            new.outcome = Some(outcome.clone());
            new.pending = None;
            if self.records.advance(&record, &new)? {
                self.forget_received(&new)?;
                let message = KeeperMessage::Refused {
                    reason: reason.to_owned(),
                };
                let letter = self.letter(&new, message)?;
                let _ = self.deliver(&new, &letter).await;
                return Ok(());
            }
        }
    }

    /// One letter to the attempt's worker, not delivered yet.
    pub(super) fn letter(&self, record: &AttemptRecord, message: KeeperMessage) -> Result<Pending, KeeperError> {
        let outbox = Outbox::resume(
            record.attempt.clone(),
            Side::Keeper,
            record.written.number,
            record.written.previous,
        );
        let letter = outbox.seal(&self.keys.signing, message).while_("writing to a worker")?;
        Ok(Pending {
            object: letter.object.to_string(),
            body: String::from_utf8(letter.body.to_vec()).while_("writing to a worker")?,
            number: letter.number,
            digest: letter.digest,
        })
    }

    pub(super) async fn deliver(&self, record: &AttemptRecord, pending: &Pending) -> Result<(), KeeperError> {
        let delivering = "writing to a worker";
        let letter = Letter {
            object: ObjectName::new(pending.object.clone()).while_(delivering)?,
            body: Bytes::from(pending.body.clone()),
            number: pending.number,
            digest: pending.digest,
        };
        let mut outbox = Outbox::resume(
            record.attempt.clone(),
            Side::Keeper,
            record.written.number,
            record.written.previous,
        );
        outbox
            .deliver(self.store(&record.site)?, &letter)
            .await
            .while_(delivering)
    }

    /// Writes the new state with its letter in one transaction, then delivers the letter. Gives the
    /// state after delivery, or nothing when the attempt was changed by somebody else (fenced).
    pub(super) async fn step(
        &self,
        old: &AttemptRecord,
        mut new: AttemptRecord,
        message: Option<KeeperMessage>,
    ) -> Result<Option<AttemptRecord>, KeeperError> {
        if let Some(message) = message {
            new.pending = Some(self.letter(&new, message)?);
        }
        if !self.records.advance(old, &new)? {
            return Ok(None);
        }
        self.flush(new).await
    }

    pub(super) async fn flush(&self, record: AttemptRecord) -> Result<Option<AttemptRecord>, KeeperError> {
        let Some(pending) = record.pending.clone() else {
            return Ok(Some(record));
        };
        self.deliver(&record, &pending).await?;
        let mut new = record.clone();
        new.pending = None;
        new.written = Position {
            number: pending.number,
            previous: Some(pending.digest),
        };
        Ok(self.records.advance(&record, &new)?.then_some(new))
    }

    /// Drives an attempt from where its record stands until it has ended.
    pub(super) async fn drive(&self, attempt: &Attempt) -> Result<(), KeeperError> {
        let record = self.attempt_record(attempt)?;
        if record.outcome.is_none() && self.flush(record).await?.is_none() {
            return Ok(());
        }
        let secret = self.ticket_secret(&self.attempt_record(attempt)?).await?;
        let mut admitted: Option<Admitted<Worker>> = None;
        let pace = self.store(&self.attempt_record(attempt)?.site)?.pace();
        let mut patience = Patience::begin(pace);
        let mut lease = tokio::time::Instant::now() + LEASE_EVERY;
        loop {
            let mut record = match self.attempt_record(attempt)? {
                current if current.outcome.is_some() => {
                    if let Some(AttemptOutcome::Fenced { why }) = &current.outcome {
                        // A courtesy: without a lease the worker stops by itself.
                        let letter = self.letter(&current, KeeperMessage::Cancel { reason: why.clone() })?;
                        let _ = self.deliver(&current, &letter).await;
                    }
                    return Ok(());
                }
                current => current,
            };
            if (self.clock)() >= record.ends {
                return Err(refuse(
                    "permit-expired",
                    "following a worker",
                    "a permit of its inputs has expired",
                    "raise `deadline:`, or let the command do less, and run the pipeline again",
                )
                .into());
            }
            let next = match &admitted {
                None => self.hello(&record, &secret).await?.map(|(new, worker, message)| {
                    admitted = Some(worker);
                    (new, message)
                }),
                Some(worker) => match self.message(&record, worker, &secret).await? {
                    None if record.phase == Phase::SetUp => self.joined(&record, worker, &secret).await?,
                    next => next,
                },
            };
            match next {
                Some((new, message)) => {
                    patience = Patience::begin(pace);
                    let Some(stepped) = self.step(&record, new, message).await? else {
                        continue;
                    };
                    self.forget_checkpoint(&record, &stepped).await?;
                    if is_away(&stepped.attempt.task) && matches!(stepped.outcome, Some(AttemptOutcome::Worked { .. }))
                    {
                        self.forget_given(&stepped).await?;
                    }
                    record = stepped;
                }
                None => tokio::time::sleep(patience.pause()).await,
            }
            if let Some(worker) = &admitted
                && record.outcome.is_none()
                && let Some(credentials) = self.noted_access(attempt)
            {
                self.uncontested(&record, worker, &secret).await?;
                let sealed = seal_access(worker, &credentials)?;
                let new = record.clone();
                let stepped = self.step(&record, new, Some(KeeperMessage::Access { sealed })).await?;
                self.forget_access(attempt, Some(&credentials));
                match stepped {
                    Some(stepped) => record = stepped,
                    None => continue,
                }
            }
            if let Some(worker) = &admitted
                && record.outcome.is_none()
                && tokio::time::Instant::now() >= lease
            {
                self.uncontested(&record, worker, &secret).await?;
                lease = tokio::time::Instant::now() + LEASE_EVERY;
                let message = KeeperMessage::Lease {
                    expires: (self.clock)() + LEASE_SECONDS,
                };
                let new = record.clone();
                self.step(&record, new, Some(message)).await?;
            }
        }
    }

    pub(super) fn requirements<'a>(&self, record: &'a AttemptRecord) -> Result<Requirements<'a>, KeeperError> {
        let definition = self.site_definition(&record.site)?;
        Ok(Requirements {
            attempt: &record.attempt,
            worker: &record.worker,
            accepted: record.hello.as_ref(),
            network_closed: definition.network.run == NetworkRule::Deny,
            apart: record.job.others > 0 && record.phase != Phase::Waiting,
            files_closed: definition.kind == tidegate_types::files::sites::SiteKind::Private,
            machine: record.machine.as_deref(),
        })
    }

    /// The hello: for the first time, or read again after a restart.
    pub(super) async fn hello(
        &self,
        record: &AttemptRecord,
        secret: &[u8; 32],
    ) -> Result<Option<(AttemptRecord, Admitted<Worker>, Option<KeeperMessage>)>, KeeperError> {
        let mut inbox = Inbox::new(record.attempt.clone(), Side::Keeper);
        let opened = inbox
            .hello(self.store(&record.site)?, secret)
            .await
            .map_err(|error| burned(&error))?;
        let verifier = self.verifiers.get(&record.site).filter(|_| record.hello.is_none());
        // Whoever starts machines may still be asking which one it is.
        let Some(opened) = opened.filter(|_| verifier.is_none() || record.machine.is_some()) else {
            if record.phase == Phase::Waiting && (self.clock)() >= record.expires {
                return Err(refuse(
                    "ticket-expired",
                    "waiting for a worker",
                    "no hello came before the ticket expired, or nobody said on which machine it was started",
                    "look at the driver's log of the job, and start another attempt",
                )
                .into());
            }
            return Ok(None);
        };
        let proven = match verifier {
            Some(verifier) => Some(self.proven(record, &**verifier, &opened).await?),
            None => None,
        };
        let worker = admit(&self.requirements(record)?, &opened, proven.as_deref())?;
        self.uncontested(record, &worker, secret).await?;
        if record.phase != Phase::Waiting {
            return Ok(Some((record.clone(), worker, None)));
        }
        let mut new = record.clone();
        new.phase = Phase::CodeGranted;
        new.reach("hello");
        new.hello = Some(opened.digest());
        new.read = Position {
            number: inbox.number(),
            previous: inbox.previous(),
        };
        let setup = self.granted_setup(record, &worker).await?;
        let before = setup.as_ref().map(|setup| ("setup", setup.sealed.packing_list_digest));
        let grant = self.grant(record, &worker, &["code"], "code", before).await?;
        let grant = KeeperMessage::CodeGrant(Grant { setup, ..grant });
        Ok(Some((new, worker, Some(grant))))
    }

    /// The machine that a hello's statement is from, as its platform says.
    async fn proven(
        &self,
        record: &AttemptRecord,
        verifier: &dyn Verifier,
        hello: &HelloOpened,
    ) -> Result<String, KeeperError> {
        let WorkerMessage::Hello {
            identity: Some(statement),
            ..
        } = &hello.numbered().message
        else {
            return Err(unproven(&record.attempt, "its machine proves nothing of itself").into());
        };
        verifier
            .machine(statement, hello.nonce())
            .await
            .map_err(|error| match error {
                IdentityError::Expired => refuse(
                    "ticket-expired",
                    "admitting a worker",
                    "what its machine says of itself was too old when it was read",
                    "start another attempt; see that clocks agree",
                )
                .into(),
                IdentityError::Transient(_) => KeeperError::failed("asking who a worker's machine is", error),
                error => unproven(&record.attempt, error.to_string()).into(),
            })
    }

    /// Refuses to go on when another worker has said hello with the same ticket: asked before anything is
    /// granted, renewed or accepted.
    pub(super) async fn uncontested(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        secret: &[u8; 32],
    ) -> Result<(), KeeperError> {
        let store = self.store(&record.site)?;
        let contested = is_contested(&record.attempt, store, secret, worker.hello()).await;
        if contested.map_err(|error| burned(&error))? {
            return Err(second_hello(&record.attempt).into());
        }
        Ok(())
    }

    /// The next message of an admitted worker.
    pub(super) async fn message(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        secret: &[u8; 32],
    ) -> Result<Option<(AttemptRecord, Option<KeeperMessage>)>, KeeperError> {
        let mut inbox = Inbox::resume(
            record.attempt.clone(),
            Side::Keeper,
            record.read.number,
            record.read.previous,
        );
        let opened = inbox
            .next::<WorkerMessage>(self.store(&record.site)?, worker.signing_key())
            .await
            .map_err(|error| burned(&error))?;
        let Some(opened) = opened else { return Ok(None) };
        self.uncontested(record, worker, secret).await?;
        let mut new = record.clone();
        new.read = Position {
            number: inbox.number(),
            previous: inbox.previous(),
        };
        let mut answer = None;
        match (record.phase, opened.numbered.message) {
            (Phase::CodeGranted, WorkerMessage::SetupDone { sandbox, node }) => {
                still_enforced(&self.requirements(record)?, &sandbox)?;
                if record.job.others == 0 {
                    new.phase = Phase::DataGranted;
                    new.reach("data");
                    answer = Some(self.data_grant(record, worker, Vec::new()).await?);
                } else {
                    new.node = Some(self.believable(record, node)?);
                    new.phase = Phase::SetUp;
                }
            }
            (Phase::CodeGranted | Phase::DataGranted | Phase::OutputReceived, WorkerMessage::Log { sealed }) => {
                new.log_bytes = self.keep_log(record, "log", record.log_bytes, &sealed)?;
                new.reach("line");
            }
            (Phase::CodeGranted | Phase::DataGranted | Phase::OutputReceived, WorkerMessage::Metric { sealed }) => {
                new.metric_bytes = self.keep_log(record, METRICS, record.metric_bytes, &sealed)?;
            }
            (
                Phase::DataGranted,
                WorkerMessage::Checkpoint {
                    packing_list,
                    packing_list_digest,
                    grant,
                },
            ) if record.attempt.rank == 0 => {
                let told = Told {
                    packing_list: &packing_list,
                    packing_list_digest: &packing_list_digest,
                    number: inbox.number(),
                };
                if let Some(checkpoint) = self.take_checkpoint(record, worker, &told, &grant).await? {
                    new.checkpoint_bytes = record.checkpoint_bytes.saturating_add(checkpoint.bytes);
                    new.checkpoint = Some(checkpoint);
                }
            }
            (
                Phase::CodeGranted,
                WorkerMessage::Setup {
                    machine,
                    packing_list,
                    packing_list_digest,
                    salt,
                },
            ) if keeps_setup(&record.job) && !record.phases.contains_key(SETUP) => {
                let told = Told {
                    packing_list: &packing_list,
                    packing_list_digest: &packing_list_digest,
                    number: inbox.number(),
                };
                self.take_setup(record, worker, &told, (machine, &salt)).await?;
                new.reach(SETUP);
            }
            (
                Phase::DataGranted,
                WorkerMessage::Output {
                    packing_list,
                    packing_list_digest,
                    grant,
                },
            ) if record.attempt.rank == 0 => {
                let (folder, bytes) = self
                    .receive_output(record, worker, &packing_list, &packing_list_digest, &grant)
                    .await?;
                new.phase = Phase::OutputReceived;
                new.reach("output");
                new.output = Some(folder);
                new.output_bytes = bytes;
            }
            (Phase::OutputReceived, WorkerMessage::Finished { seconds }) => {
                self.others_uncontested(record).await?;
                if is_away(&record.attempt.task) {
                    self.bring_back(record, &mut new, seconds).await?;
                } else {
                    self.accept(record, &mut new, seconds)?;
                }
            }
            (Phase::DataGranted, WorkerMessage::Finished { seconds }) if record.attempt.rank > 0 => {
                new.outcome = Some(AttemptOutcome::Worked { seconds });
            }
            (
                _,
                WorkerMessage::Failed {
                    stage,
                    reason,
                    exit_code,
                },
            ) => {
                new.outcome = Some(self.failed(record, &stage, &reason, exit_code));
            }
            _ => {
                return Err(refuse(
                    "message-order",
                    "reading a worker's message",
                    "it does not belong to this phase of the attempt",
                    "start another attempt",
                )
                .into());
            }
        }
        Ok(Some((new, answer)))
    }

    /// How an attempt ended whose worker says that it failed. Of a private site only the stage is told:
    /// reasons and exit codes of a command carry the label of its inputs, and its log stays there.
    fn failed(&self, record: &AttemptRecord, stage: &str, reason: &str, code: Option<i32>) -> AttemptOutcome {
        let stage = STAGES.into_iter().find(|known| *known == stage).unwrap_or("command");
        let reason = if record.site == self.site {
            "its log on the site says why".to_owned()
        } else {
            let code = code.filter(|_| !reason.contains("exit code"));
            let code = code.map_or(String::new(), |code| format!(" (exit code {code})"));
            let reason: String = reason.chars().filter(|it| !it.is_control()).take(REASON).collect();
            format!("{reason}{code}")
        };
        if stage == "tampered" {
            return AttemptOutcome::Refused {
                refusal: refuse(
                    "input-tampered",
                    format!(
                        "opening the inputs of `{}` on site `{}`",
                        record.attempt.task, record.site
                    ),
                    reason,
                    "look for who else writes into the site's store, and run the pipeline again",
                ),
            };
        }
        AttemptOutcome::Failed {
            stage: stage.to_owned(),
            reason,
        }
    }
}

/// What a worker may say that failed; anything else is the command's.
const STAGES: [&str; 13] = [
    "setup",
    "command",
    "memory",
    "time",
    "processes",
    "lease",
    "cancelled",
    "grant",
    "input",
    "tampered",
    "output",
    "sandbox",
    "machine",
];
/// The most characters of a worker's reason that are passed on.
const REASON: usize = 400;

/// A mailbox that does not fit is no accident: the attempt is over.
pub(super) fn burned(error: &MailboxError) -> KeeperError {
    if error.is_transient() {
        return KeeperError::failed("reading a worker's mailbox", error);
    }
    refuse(
        "mailbox-tampered",
        "reading a worker's mailbox",
        format!("{error}; the attempt is burned"),
        "start another attempt, and look for who else wrote into the mailbox",
    )
    .into()
}
