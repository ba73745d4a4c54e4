//! One attempt from hello to the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::later::Later;
use tidegate_contracts::{ObjectName, Store};
use tidegate_seal::digest::canonical_digest;
use tidegate_seal::envelope::{Identity, open, seal_to};
use tidegate_seal::key::DataKey;
use tidegate_seal::permit::OpenedPermit;
use tidegate_seal::random::random_bytes;
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_transfer::mailbox::{Inbox, Letter, Outbox, Side, contest, hello_mac};
use tidegate_transfer::{
    Crossing, Description, Expected, Gate, PermitCheck, Permitted, TransferError, describe, receive, send,
};
use tidegate_types::artifact::{ArtifactKind, Manifest};
use tidegate_types::message::{GrantedArtifact, Job, Numbered, SandboxEvidence, Ticket, WorkerMessage};
use tidegate_types::{ArtifactId, Digest, Label};
use zeroize::{Zeroize, Zeroizing};

use crate::command::{self, Task};
use crate::environment::Surroundings;
use crate::error::{Failure, Stage, WorkerError, folder};
use crate::grant::{self, CODE, Expectation, Granted, Moment};
use crate::mail::{Heard, Mail, now};
use crate::sandbox;
use crate::scratch::Scratch;

/// The standing slot under which the output goes home.
const OUTPUT_SLOT: &str = "output";
/// Shards of the output that are sealed at once: each takes 64 MiB of memory.
const SHARDS_IN_FLIGHT: usize = 2;

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
}

/// Works through one attempt: says hello, takes the grants, runs the command, sends its output home.
///
/// Keys live in memory only and are wiped with it; the attempt's folder is removed whatever happens.
///
/// # Errors
/// [`WorkerError::Failed`] when the attempt failed and the keeper was told; the others when it did not
/// come to that: a wrong program, a used ticket, a store that is out of reach.
pub async fn run(ticket: Ticket, store: Arc<dyn Store>, options: Options) -> Result<(), WorkerError> {
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
    let hello = hello(&ticket, &secret, &identity, &signer, &evidence)?;
    let hello = Outbox::new(ticket.attempt.clone(), Side::Worker).seal(&signer, hello)?;
    let before = scratch.note_hello(&hello.digest)?;
    let mut mail = Mail::new(store, &ticket.attempt, signer, owner.clone(), ticket.expires);
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
        identity,
        evidence,
        scratch,
        executable,
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

fn hello(
    ticket: &Ticket,
    secret: &[u8; 32],
    identity: &Identity,
    signer: &SigningKey,
    evidence: &SandboxEvidence,
) -> Result<WorkerMessage, WorkerError> {
    let message = |mac| WorkerMessage::Hello {
        recipient: identity.recipient(),
        signing_key: signer.public().to_base64(),
        worker: ticket.worker,
        sandbox: evidence.clone(),
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
    identity: Identity,
    evidence: SandboxEvidence,
    scratch: Scratch,
    executable: PathBuf,
    mail: Mail,
}

impl Attempt {
    async fn work(&mut self) -> Result<(), Failure> {
        let code = self.take_code().await?;
        let granted = self.take_data(code).await?;
        let mut inputs = Vec::new();
        for (artifact, permit) in &granted.artifacts {
            inputs.push((artifact.input.clone(), self.receive(artifact, permit).await?));
        }
        let limit = output_limit(&granted)?;
        let job = granted.grant.job.clone();
        let names: Vec<String> = inputs.iter().map(|(name, _)| name.clone()).collect();
        let took = {
            let around = Surroundings::new(&job, &self.scratch, &self.executable);
            let task = Task {
                stage: Stage::Command,
                executable: &self.executable,
                policy: around.run_policy(),
                text: &job.run,
                environment: around.environment(&names),
                folder: self.scratch.code(),
                recipient: &granted.grant.output_recipient,
                metrics: Some(self.scratch.metrics()),
                output: vec![self.scratch.output(), self.scratch.checkpoint()],
                output_bytes: limit,
            };
            command::run(&task, &mut self.mail).await?
        };
        // A command's outputs carry the join of its inputs' labels.
        let label = Label::join_all(inputs.iter().map(|(_, manifest)| &manifest.label));
        self.send_output(&granted, code, label, &job).await?;
        self.mail
            .tell(WorkerMessage::Finished {
                seconds: whole_seconds(took),
            })
            .await
    }

    /// Code grant, code, setup: what happens before any data is there.
    async fn take_code(&mut self) -> Result<Option<ArtifactId>, Failure> {
        let Heard::Code(grant) = self.mail.wait().await? else {
            return Err(Failure::new(Stage::Grant, "the keeper granted data before the code"));
        };
        let granted = self.check(grant, Moment::Code)?;
        self.mail.begin_lease(granted.grant.lease);
        let code = match granted.artifacts.as_slice() {
            [(artifact, permit)] => {
                self.receive(artifact, permit).await?;
                Some(artifact.artifact)
            }
            _ => {
                self.scratch
                    .create_code()
                    .map_err(|error| Failure::new(Stage::Input, error.to_string()))?;
                None
            }
        };
        let job = &granted.grant.job;
        if !job.setup.trim().is_empty() {
            let around = Surroundings::new(job, &self.scratch, &self.executable);
            let task = Task {
                stage: Stage::Setup,
                executable: &self.executable,
                policy: around.setup_policy(),
                text: &job.setup,
                environment: around.environment(&[]),
                folder: self.scratch.code(),
                recipient: &granted.grant.output_recipient,
                metrics: None,
                output: Vec::new(),
                output_bytes: 0,
            };
            command::run(&task, &mut self.mail).await?;
        }
        Ok(code)
    }

    /// Tells that setup is done, and waits for the data.
    async fn take_data(&mut self, code: Option<ArtifactId>) -> Result<Granted, Failure> {
        self.mail
            .tell(WorkerMessage::SetupDone {
                sandbox: self.evidence.clone(),
            })
            .await?;
        let Heard::Data(grant) = self.mail.wait().await? else {
            return Err(Failure::new(Stage::Grant, "the keeper granted the code twice"));
        };
        let granted = self.check(grant, Moment::Data { code })?;
        self.mail.renew(granted.grant.lease);
        Ok(granted)
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

    /// Opens an artifact into its folder. Its key is wiped when this returns.
    async fn receive(&mut self, granted: &GrantedArtifact, permit: &OpenedPermit) -> Result<Manifest, Failure> {
        let failed = |what: &str| Failure::new(Stage::Input, format!("input `{}`: {what}", granted.input));
        let sealed = STANDARD
            .decode(&granted.sealed_key)
            .map_err(|_| failed("its sealed key is not base64"))?;
        let opened = open(&self.identity, &sealed).map_err(|_| failed("its key is not sealed to this worker"))?;
        let mut bytes = Zeroizing::new([0; 32]);
        if opened.len() != bytes.len() {
            return Err(failed("its key has not 32 bytes"));
        }
        bytes.copy_from_slice(&opened);
        let key = DataKey::from_bytes(*bytes);
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
        let store = self.mail.store();
        let work = receive(&expected, &*store, &key, &destination);
        let received = self.mail.while_leased(work).await?.map_err(|error| match error {
            // What store and disk do may pass; an input that is another than the granted one will not.
            TransferError::Store { .. } | TransferError::Local { .. } => failed(&error.to_string()),
            _ => Failure::new(Stage::Tampered, format!("input `{}`: {error}", granted.input)),
        })?;
        Ok(received.manifest)
    }

    /// Describes, seals and sends the output under the standing slot of the permit.
    async fn send_output(
        &mut self,
        granted: &Granted,
        code: Option<ArtifactId>,
        label: Label,
        job: &Job,
    ) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(Stage::Output, error.to_string());
        let digest_key = Zeroizing::new(random_bytes::<32>().map_err(|error| failed(&error))?);
        let artifacts: Vec<ArtifactId> = granted
            .artifacts
            .iter()
            .map(|(artifact, _)| artifact.artifact)
            .collect();
        let step_key = canonical_digest(&(code, &artifacts, job)).map_err(|error| failed(&error))?;
        let (ticket, folder, key) = (self.ticket.clone(), self.scratch.output(), digest_key.clone());
        let describing = move || {
            let description = Description {
                kind: ArtifactKind::Model,
                name: format!("{}/{}", ticket.attempt.run, ticket.attempt.task),
                organisation: ticket.organisation,
                owner: ticket.owner,
                label,
                lowered_from: None,
                columns: Vec::new(),
                lineage: artifacts.into_iter().chain(code).collect(),
                task: ticket.attempt.task,
                step_key,
            };
            describe(&folder, description, &key)
        };
        let described = self.mail.while_leased(tokio::task::spawn_blocking(describing)).await?;
        let manifest = described
            .map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))?;
        if manifest.total_bytes() > output_limit(granted)? {
            return Err(Failure::new(
                Stage::Output,
                "the command wrote more output than allowed",
            ));
        }
        let permit = &granted.standing.permit;
        let check = PermitCheck {
            owner: &self.owner,
            organisation: &self.ticket.organisation,
            from: &permit.to,
            to: &permit.from,
            run: &self.ticket.attempt.run,
            now: now(),
            revocation_epoch: permit.revocation_epoch,
        };
        let permitted = Permitted::standing(&check, &granted.grant.permit_envelope, OUTPUT_SLOT, manifest)
            .map_err(|refusal| failed(&refusal))?;
        let data_key = DataKey::generate().map_err(|error| failed(&error))?;
        let sealed = seal_to(&granted.grant.output_recipient, data_key.expose()).map_err(|error| failed(&error))?;
        let (source, state, store) = (self.scratch.output(), self.scratch.state(), self.mail.store());
        let sent = {
            let signer = SigningKey::from_seed(&self.mail.signer().seed()).map_err(|error| failed(&error))?;
            let crossing = Crossing {
                source: &source,
                store: &*store,
                signer: &signer,
                data_key: &data_key,
                digest_key: &digest_key,
                state: &state,
                shards_in_flight: SHARDS_IN_FLIGHT,
                progress: &|_| {},
                gate: &|| Gate::Open,
            };
            self.mail
                .while_leased(send(&permitted, &crossing))
                .await?
                .map_err(|error| failed(&error))?
        };
        let output = WorkerMessage::Output {
            packing_list: sent.packing_list.as_str().to_owned(),
            packing_list_digest: sent.packing_list_digest,
            grant: STANDARD.encode(sealed),
        };
        self.mail.tell(output).await
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
