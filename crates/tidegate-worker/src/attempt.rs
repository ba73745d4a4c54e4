//! One attempt from hello to the end.

mod restore;
mod setup;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::identity::Prover;
use tidegate_contracts::later::Later;
use tidegate_contracts::{ObjectName, Store};
use tidegate_seal::envelope::{Identity, open};
use tidegate_seal::key::DataKey;
use tidegate_seal::permit::OpenedPermit;
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_transfer::mailbox::{Inbox, Letter, Outbox, Side, contest, hello_mac, identity_nonce};
use tidegate_transfer::{Copying, Expected, TransferError, receive};
use tidegate_types::artifact::{ArtifactKind, Manifest};
use tidegate_types::message::{GrantedArtifact, Numbered, SandboxEvidence, Ticket, WorkerMessage};
use tidegate_types::{ArtifactId, Digest, Label};
use zeroize::{Zeroize, Zeroizing};

use crate::accelerators::Accelerators;
use crate::access::{Access, Borrow, Opener};
use crate::checkpoint::{CHECKPOINT_SLOT, Checkpoints};
use crate::command::{self, Task};
use crate::environment::Surroundings;
use crate::error::{Failure, Stage, WorkerError, folder};
use crate::grant::{self, CODE, Expectation, Granted, Moment};
use crate::mail::{Heard, Mail, now};
use crate::nodes::{self, Mesh};
use crate::notice::Notices;
use crate::outgoing::{Before, Outgoing, Parcel};
use crate::sandbox;
use crate::scratch::Scratch;

/// So many checkpoints as large as the output may stand in the command's folder: while one is written, those before it are
/// there.
const CHECKPOINTS: u64 = 4;
/// The standing slot under which the output goes home.
const OUTPUT_SLOT: &str = "output";

/// Where a worker may work.
#[derive(Debug, Clone)]
pub struct Options {
    /// A folder in which the worker makes one private folder for the attempt (mode 0700) and removes
    /// it at the end. Made when it is not there.
    pub work: PathBuf,
    /// The worker program itself: it is started again for the sandbox, and is the built-in trainer that
    /// commands find in `TIDEGATE_TRAINER`.
    pub executable: PathBuf,
    /// SHA-256 of the worker program's file, or why it cannot be read: it is compared with the ticket.
    pub digest: Later<Result<Digest, String>>,
    /// Where the machine's `dev`, `proc` and `sys` are: `/`.
    pub machine: PathBuf,
    /// Something in the network through which the other machines of a job reach this one; nothing is sent there. The way
    /// out where it is nothing.
    pub towards: Option<IpAddr>,
    /// Where word comes from that the machine will be taken away.
    pub notices: Notices,
    /// Opens what a keeper lends of another site's store.
    pub borrow: Borrow,
    /// What proves who this machine is, where its platform lets it.
    pub prover: Option<Arc<dyn Prover>>,
}

/// Works through one attempt: says hello, takes the grants, runs the command, sends its output home.
///
/// Keys live in memory only and are wiped with it; the attempt's folder is removed whatever happens.
///
/// # Errors
/// [`WorkerError::Failed`] when the attempt failed and the keeper was told; the others when it did not
/// come to that: a wrong program, a used ticket, a store that is out of reach.
pub async fn run(ticket: Ticket, opener: Opener, options: Options) -> Result<(), WorkerError> {
    let mut ticket = ticket;
    let secret = read_secret(&mut ticket)?;
    let owner = VerifyingKey::from_base64(&ticket.owner_key)
        .map_err(|_| WorkerError::Ticket("the owner's key in it is not an Ed25519 key in base64"))?;
    if now() >= ticket.expires {
        return Err(WorkerError::Ticket("it has expired"));
    }
    let executable = options.executable;
    let scratch = Scratch::create(&options.work, &ticket.attempt)?;
    let (tested, within) = (executable.clone(), scratch.temporary());
    let evidence = blocking("testing the sandbox", move || sandbox::self_test(&tested, &within)).await?;
    let digest = options.digest;
    let found = blocking("reading the worker program", move || digest.get().clone())
        .await?
        .map_err(std::io::Error::other)
        .map_err(folder("reading the worker program", &executable))?;
    if found != ticket.worker {
        return Err(WorkerError::OtherProgram {
            expected: ticket.worker,
            found,
        });
    }

    let identity = Identity::generate();
    let signer = SigningKey::generate()?;
    let proof = proof(options.prover, &ticket, &secret, &identity, &signer).await?;
    let hello = hello(&ticket, &secret, &identity, &signer, &evidence, proof)?;
    let hello = Outbox::new(ticket.attempt.clone(), Side::Worker).seal(&signer, hello)?;
    let before = scratch.note_hello(&hello.digest)?;
    let access = Access::open(opener, &ticket.credentials).map_err(WorkerError::Store)?;
    let mut mail = Mail::new(access, &ticket, identity, signer, owner.clone(), options.notices);
    if !mail.hello(&hello).await? {
        tell_contest(&ticket, &*mail.store(), &secret, &hello, before.as_ref()).await;
        return Err(WorkerError::TicketUsed);
    }
    drop(secret);
    let hello = hello.digest;
    let mut attempt = Attempt {
        ticket,
        owner,
        hello,
        evidence,
        scratch,
        executable,
        accelerators: Accelerators::find(&options.machine),
        towards: options.towards,
        borrow: options.borrow,
        mail,
    };
    let result = attempt.work().await;
    if let Err(failure) = &result {
        attempt.mail.tell_failure(failure).await;
    }
    Ok(result?)
}

fn read_secret(ticket: &mut Ticket) -> Result<Zeroizing<[u8; 32]>, WorkerError> {
    let mut secret = Zeroizing::new([0; 32]);
    let read = hex::decode_to_slice(&ticket.secret, &mut *secret);
    ticket.secret.zeroize();
    read.map_err(|_| WorkerError::Ticket("its secret is not 32 bytes in hexadecimal"))?;
    Ok(secret)
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, WorkerError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| WorkerError::Inside(what))
}

/// What the machine says of itself. Without it the keeper decides: it knows whether it needs one.
async fn proof(
    prover: Option<Arc<dyn Prover>>,
    ticket: &Ticket,
    secret: &[u8; 32],
    identity: &Identity,
    signer: &SigningKey,
) -> Result<Option<String>, WorkerError> {
    let Some(prover) = prover else { return Ok(None) };
    let (recipient, key) = (identity.recipient(), signer.public().to_base64());
    let nonce = identity_nonce(secret, &ticket.attempt, &recipient, &key)?;
    let proof = prover.state(&nonce).await;
    if let Err(why) = &proof {
        tracing::error!(why, "this machine cannot prove who it is");
    }
    Ok(proof.ok())
}

fn hello(
    ticket: &Ticket,
    secret: &[u8; 32],
    identity: &Identity,
    signer: &SigningKey,
    evidence: &SandboxEvidence,
    proof: Option<String>,
) -> Result<WorkerMessage, WorkerError> {
    let message = |mac| WorkerMessage::Hello {
        recipient: identity.recipient(),
        signing_key: signer.public().to_base64(),
        worker: ticket.worker,
        sandbox: evidence.clone(),
        identity: proof.clone(),
        mac,
    };
    let numbered = Numbered {
        attempt: ticket.attempt.clone(),
        number: 1,
        previous: None,
        message: message(String::new()),
    };
    Ok(message(hello_mac(secret, &numbered)?))
}

/// Another hello stands where ours should be: the ticket is in two hands, and the keeper must know.
/// Unless it is what this worker said `before` it was killed and started again: its keys are gone, the
/// attempt is lost, and nobody else had the ticket.
async fn tell_contest(ticket: &Ticket, store: &dyn Store, secret: &[u8; 32], hello: &Letter, before: Option<&Digest>) {
    let first = Inbox::new(ticket.attempt.clone(), Side::Keeper)
        .hello(store, secret)
        .await;
    if let (Ok(Some(first)), Some(before)) = (first, before)
        && first.digest() == *before
    {
        return;
    }
    if let Err(error) = contest(&ticket.attempt, store, hello).await {
        tracing::error!(%error, "another worker has used this ticket, and the keeper could not be told");
    }
}

struct Attempt {
    ticket: Ticket,
    owner: VerifyingKey,
    hello: Digest,
    evidence: SandboxEvidence,
    scratch: Scratch,
    executable: PathBuf,
    accelerators: Accelerators,
    towards: Option<IpAddr>,
    borrow: Borrow,
    mail: Mail,
}

impl Attempt {
    async fn work(&mut self) -> Result<(), Failure> {
        let (code, others) = self.take_code().await?;
        let (granted, mut mesh) = self.take_data(code, others).await?;
        let mut inputs = Vec::new();
        for (artifact, permit) in &granted.artifacts {
            inputs.push((artifact.input.clone(), self.receive(artifact, permit).await?));
        }
        let limit = output_limit(&granted)?;
        let job = &granted.grant.job;
        let carried = inputs.iter().any(|(name, _)| name == CHECKPOINT_SLOT);
        let names = inputs.iter().map(|(name, _)| name.clone());
        let names: Vec<String> = names.filter(|name| name != CHECKPOINT_SLOT).collect();
        // A command's outputs carry the join of its inputs' labels.
        let label = Label::join_all(inputs.iter().map(|(_, manifest)| &manifest.label));
        let note = match &granted.grant.checkpoint {
            Some(checkpoint) => Some(self.restore(checkpoint, &granted, &label, limit).await?),
            // It crossed as an input does, and came as one.
            None if carried => {
                let moved = std::fs::rename(self.scratch.input(CHECKPOINT_SLOT), self.scratch.checkpoint());
                moved.map_err(|error| Failure::new(Stage::Input, error.to_string()))?;
                Some("it goes on from the checkpoint of an attempt at another site".to_owned())
            }
            None => None,
        };
        let permitted = (&granted.grant, &granted.standing.permit);
        let outgoing = Outgoing::new(&self.ticket, &self.owner, &self.mail, permitted, code, label)?;
        let outgoing = Arc::new(outgoing);
        let (folder, state) = (self.scratch.checkpoint(), self.scratch.state());
        let rank = self.ticket.attempt.rank;
        let checkpoints = match rank {
            0 => Checkpoints::new(&outgoing, folder, state, limit).await?,
            // All machines go on with what the first one keeps.
            _ => None,
        };
        let took = {
            let around = Surroundings::new(
                job,
                &self.scratch,
                &self.executable,
                &self.accelerators,
                rank,
                &self.evidence,
            );
            let task = Task {
                stage: Stage::Command,
                executable: &self.executable,
                policy: around.run_policy(),
                text: &job.run,
                environment: around.environment(&names),
                folder: self.scratch.code(),
                recipient: &granted.grant.output_recipient,
                metrics: Some(self.scratch.metrics()),
                notice: self.scratch.notice(),
                limits: vec![
                    (self.scratch.output(), limit),
                    (self.scratch.checkpoint(), limit.saturating_mul(CHECKPOINTS)),
                ],
                notes: [self.accelerators.note(job.accelerators), note]
                    .into_iter()
                    .flatten()
                    .collect(),
            };
            command::run(&task, &mut self.mail, checkpoints, mesh.as_mut())
                .await?
                .took
        };
        let finished = WorkerMessage::Finished {
            seconds: whole_seconds(took),
        };
        if rank > 0 {
            self.settle(mesh).await?;
            return self.mail.tell(finished).await;
        }
        let parcel = Parcel {
            slot: OUTPUT_SLOT,
            kind: ArtifactKind::Model,
            folder: self.scratch.output(),
            state: self.scratch.state(),
            limit,
            before: Before::nothing()?,
            data_key: None,
        };
        let sealed = self.mail.while_leased(outgoing.send(parcel)).await??;
        let output = WorkerMessage::Output {
            packing_list: sealed.packing_list,
            packing_list_digest: sealed.packing_list_digest,
            grant: sealed.grant,
        };
        self.mail.tell(output).await?;
        self.settle(mesh).await?;
        self.mail.tell(finished).await
    }

    /// What the command said last to other machines arrives before this one is gone.
    async fn settle(&mut self, mesh: Option<Mesh>) -> Result<(), Failure> {
        match mesh {
            Some(mesh) => self.mail.while_leased(mesh.settle()).await?,
            None => Ok(()),
        }
    }

    /// Code grant, code, setup: what happens before any data is there. Gives the code, and how many other machines work at
    /// the job.
    async fn take_code(&mut self) -> Result<(Option<ArtifactId>, u32), Failure> {
        let Heard::Code(grant) = self.mail.wait().await? else {
            return Err(Failure::new(Stage::Grant, "the keeper granted data before the code"));
        };
        let granted = self.check(grant, Moment::Code)?;
        self.mail.begin_lease(granted.grant.lease);
        let code = match granted.artifacts.as_slice() {
            [(artifact, permit)] => {
                let manifest = self.receive(artifact, permit).await?;
                Some((artifact.artifact, manifest.label))
            }
            _ => {
                self.scratch
                    .create_code()
                    .map_err(|error| Failure::new(Stage::Input, error.to_string()))?;
                None
            }
        };
        let job = &granted.grant.job;
        let (asked, found) = (job.accelerators, self.accelerators.count());
        if found < usize::try_from(asked).unwrap_or(usize::MAX) {
            return Err(Failure::new(
                Stage::Sandbox,
                format!(
                    "the job asks for {asked} accelerators, and the machine shows {found}; are their drivers there?"
                ),
            ));
        }
        let others = job.others;
        self.set_up(&granted, code.clone()).await?;
        Ok((code.map(|(code, _)| code), others))
    }

    /// Tells that setup is done, and waits for the data, and for the other machines where there are any.
    async fn take_data(&mut self, code: Option<ArtifactId>, others: u32) -> Result<(Granted, Option<Mesh>), Failure> {
        let own = match others {
            0 => None,
            _ => Some(self.own_end().await?),
        };
        if self.mail.notices().is_certain() {
            // No data comes to a machine that will not work on it.
            return Err(self.mail.notices().failure());
        }
        let sandbox = own.as_ref().map_or(&self.evidence, |(_, evidence)| evidence);
        self.mail
            .tell(WorkerMessage::SetupDone {
                sandbox: sandbox.clone(),
                node: own.as_ref().map(|(own, _)| own.node().clone()),
            })
            .await?;
        let Heard::Data(grant) = self.mail.wait().await? else {
            return Err(Failure::new(Stage::Grant, "the keeper granted the code twice"));
        };
        let granted = self.check(grant, Moment::Data { code })?;
        self.mail.renew(granted.grant.lease);
        let nodes = &granted.grant.nodes;
        let expected = if others == 0 { 0 } else { u64::from(others) + 1 };
        if nodes.len() as u64 != expected || granted.grant.job.others != others {
            let why = "the data grant names another number of machines than the code grant";
            return Err(Failure::new(Stage::Grant, why));
        }
        let rank = self.ticket.attempt.rank;
        let mut mesh = own.map(|(own, _)| own.with(nodes, rank)).transpose()?;
        if let Some(mesh) = &mut mesh {
            self.mail.while_leased(mesh.meet()).await??;
        }
        Ok((granted, mesh))
    }

    /// This machine's end of the tunnels to the others, and what the sandbox enforces on a command with a network of its own:
    /// it is tried before any data is there.
    async fn own_end(&mut self) -> Result<(nodes::Own, SandboxEvidence), Failure> {
        let (executable, within) = (self.executable.clone(), self.scratch.temporary());
        let (rank, evidence) = (self.ticket.attempt.rank, self.evidence.clone());
        let trying = blocking("joining the job's machines", move || {
            sandbox::try_node(&executable, &within, rank, &evidence)
        });
        let failed = |why: String| Failure::new(Stage::Sandbox, why);
        let tried = self.mail.while_leased(trying).await?;
        let evidence = tried
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        Ok((nodes::Own::open(self.towards).await?, evidence))
    }

    fn check(&self, grant: tidegate_types::message::Grant, moment: Moment) -> Result<Granted, Failure> {
        let expected = Expectation {
            ticket: &self.ticket,
            owner: &self.owner,
            hello: &self.hello,
            now: now(),
            moment,
        };
        grant::check(grant, &expected).map_err(|why| Failure::new(Stage::Grant, why))
    }

    /// A data key that was sealed to this worker.
    fn data_key(&self, what: &str, sealed: &str) -> Result<DataKey, Failure> {
        let failed = |why: &str| Failure::new(Stage::Input, format!("{what}: {why}"));
        let sealed = STANDARD
            .decode(sealed)
            .map_err(|_| failed("its sealed key is not base64"))?;
        let opened = open(self.mail.identity(), &sealed).map_err(|_| failed("its key is not sealed to this worker"))?;
        let mut bytes = Zeroizing::new([0; 32]);
        if opened.len() != bytes.len() {
            return Err(failed("its key has not 32 bytes"));
        }
        bytes.copy_from_slice(&opened);
        Ok(DataKey::from_bytes(*bytes))
    }

    /// What of an artifact does not stand in the site's store yet, at the site that it is copied from.
    fn lent(&self, granted: &GrantedArtifact) -> Result<Option<Arc<dyn Store>>, Failure> {
        let failed = |why: &str| Failure::new(Stage::Input, format!("input `{}`: what was lent {why}", granted.input));
        let Some(sealed) = &granted.lent else {
            return Ok(None);
        };
        let sealed = STANDARD.decode(sealed).map_err(|_| failed("is not base64"))?;
        let opened = open(self.mail.identity(), &sealed).map_err(|_| failed("is not sealed to this worker"))?;
        let text = std::str::from_utf8(&opened).map_err(|_| failed("is no text"))?;
        let store = (self.borrow)(text).map_err(|why| failed(&format!("cannot be used: {why}")))?;
        Ok(Some(store))
    }

    /// Opens an artifact into its folder. Its key is wiped when this returns.
    async fn receive(&mut self, granted: &GrantedArtifact, permit: &OpenedPermit) -> Result<Manifest, Failure> {
        let failed = |what: &str| Failure::new(Stage::Input, format!("input `{}`: {what}", granted.input));
        let key = self.data_key(&format!("input `{}`", granted.input), &granted.sealed_key)?;
        if key.commitment() != granted.key_commitment {
            return Err(failed("its key is not the one that the packing list commits to"));
        }
        let packing_list = ObjectName::new(granted.packing_list.as_str())
            .map_err(|_| failed("its packing list has a name that is none"))?;
        let expected = Expected {
            packing_list: &packing_list,
            packing_list_digest: &granted.packing_list_digest,
            sender: &self.owner,
            organisation: &self.ticket.organisation,
            artifact: Some(&granted.artifact),
            permit: &permit.permit.id,
            permit_digest: &permit.digest,
            to: &self.ticket.site,
            key_commitment: Some(&granted.key_commitment),
            byte_limit: permit.permit.byte_limit,
            plaintext_limit: permit.permit.byte_limit,
            ceiling: None,
        };
        let destination = if granted.input == CODE {
            self.scratch.code()
        } else {
            self.scratch.input(&granted.input)
        };
        let (own, lent) = (self.mail.store(), self.lent(granted)?);
        let copying = lent.as_deref().map(|lent| Copying::new(&*own, lent));
        let store = copying.as_ref().map_or(&*own as &dyn Store, |copying| copying);
        let work = receive(&expected, store, &key, &destination);
        let received = self.mail.while_leased(work).await?.map_err(|error| match error {
            // What store and disk do may pass; an input that is another than the granted one will not.
            TransferError::Store { .. } | TransferError::Local { .. } => failed(&error.to_string()),
            _ => Failure::new(Stage::Tampered, format!("input `{}`: {error}", granted.input)),
        })?;
        Ok(received.manifest)
    }
}

/// The smaller of what the job and the permit's slot allow.
fn output_limit(granted: &Granted) -> Result<u64, Failure> {
    let slots = &granted.standing.permit.standing;
    let slot = slots.iter().find(|slot| slot.slot == OUTPUT_SLOT);
    let slot = slot.ok_or_else(|| Failure::new(Stage::Grant, "the permit has no slot for an output"))?;
    Ok(match granted.grant.job.output_bytes {
        0 => slot.byte_limit,
        job => job.min(slot.byte_limit),
    })
}

const fn whole_seconds(took: Duration) -> u64 {
    let seconds = took.as_secs();
    if took.subsec_nanos() > 0 {
        seconds.saturating_add(1)
    } else {
        seconds
    }
}

/// The folder of the running program: what [`Options::executable`] mostly is.
///
/// # Errors
/// When the system does not tell.
pub fn own_executable() -> Result<PathBuf, WorkerError> {
    std::env::current_exe().map_err(folder("finding the worker program", Path::new("/proc/self/exe")))
}
