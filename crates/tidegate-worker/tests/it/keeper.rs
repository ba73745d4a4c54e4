//! A scripted keeper: the other end of the mailbox, with artifacts that crossed for real.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::{ObjectName, Store};
use tidegate_seal::digest::{sha256, sha256_reader};
use tidegate_seal::envelope::{Identity, open, seal_to};
use tidegate_seal::key::DataKey;
use tidegate_seal::permit::sign_permit;
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_transfer::mailbox::{HelloOpened, Inbox, Outbox, Side};
use tidegate_transfer::{
    Crossing, Description, Expected, PermitCheck, Permitted, Received, TransferError, describe, receive, send,
};
use tidegate_types::ids::{PermitId, Purpose};
use tidegate_types::message::{
    Attempt, Grant, GrantedArtifact, GrantedCheckpoint, Job, KeeperMessage, Node, SandboxEvidence, Ticket,
    WorkerMessage,
};
use tidegate_types::permit::{Envelope, Evidence, Permit, SiteReference, StandingSlot};
use tidegate_types::{ArtifactId, ArtifactKind, Digest, Label, Level, RunId, SiteName, TaskName};
use tidegate_worker::{Opener, WorkerError};

pub(crate) const ORGANISATION: &str = "st-mary";
const DIGEST_KEY: [u8; 32] = [3; 32];

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn site(name: &str) -> SiteReference {
    SiteReference {
        site: SiteName::new(name).unwrap(),
        definition: sha256(name.as_bytes()),
    }
}

/// An artifact that has crossed.
#[derive(Clone)]
pub(crate) struct Crossed {
    pub(crate) artifact: ArtifactId,
    pub(crate) key: [u8; 32],
    pub(crate) packing_list: ObjectName,
    pub(crate) packing_list_digest: Digest,
    pub(crate) envelope: Envelope,
    pub(crate) permit: Permit,
}

pub(crate) struct Keeper {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) key: SigningKey,
    pub(crate) recipient: Identity,
    pub(crate) ticket: Ticket,
    pub(crate) code: Crossed,
    pub(crate) train: Crossed,
    /// Where the worker looks for accelerators.
    pub(crate) machine: PathBuf,
    pub(crate) job: Job,
    outbox: Outbox,
    inbox: Inbox,
    worker: Option<HelloOpened>,
    /// Where the worker said that the job's other machines reach it.
    pub(crate) node: Option<Node>,
    /// What a data grant offers to go on with.
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) folder: tempfile::TempDir,
}

/// Unfinished work that a worker told of.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    pub(crate) packing_list: ObjectName,
    packing_list_digest: Digest,
    key: [u8; 32],
    signer: VerifyingKey,
}

/// The permit of `kind` for the worker program in these tests; `code` as in [`Permit::code`].
pub(crate) fn permit(id: &str, code: Option<Digest>, worker: Digest) -> Permit {
    let label = Label::of(Level::Internal);
    Permit {
        id: PermitId::new(id).unwrap(),
        organisation: ORGANISATION.to_owned(),
        from: site("hospital"),
        to: site("cloud"),
        pipeline: sha256(b"pipeline"),
        policies: sha256(b"policies"),
        code,
        worker: Some(worker),
        label: label.clone(),
        purpose: Purpose::new("quality-of-care").unwrap(),
        run: RunId::new("r1").unwrap(),
        task: TaskName::new("train").unwrap(),
        attempts: 3,
        evidence: Evidence {
            sql: None,
            label_report: None,
            k: None,
            l: None,
            suppressed_rows: None,
        },
        waivers: Vec::new(),
        approvals: Vec::new(),
        not_before: now() - 60,
        expires: now() + 3600,
        byte_limit: 1 << 30,
        revocation_epoch: 1,
        checkpoint: "checkpoint".to_owned(),
        standing: ["checkpoint", "output"]
            .map(|slot| StandingSlot {
                slot: slot.to_owned(),
                from: SiteName::new("cloud").unwrap(),
                to: SiteName::new("hospital").unwrap(),
                label: label.clone(),
                byte_limit: 1 << 20,
            })
            .into(),
    }
}

impl Keeper {
    /// Sends code and data to the site's store, and makes a ticket. `run` is the job's command.
    pub(crate) async fn new(store: Arc<dyn Store>, run: &str) -> Self {
        let key = SigningKey::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (worker, _) = sha256_reader(std::fs::File::open(crate::executable()).unwrap()).unwrap();
        let attempt = Attempt {
            run: RunId::new("r1").unwrap(),
            task: TaskName::new("train").unwrap(),
            attempt: 1,
            rank: 0,
        };
        let source = folder.path().join("source");
        let files = |name: &str, files: &[(&str, &str)]| {
            let at = source.join(name);
            std::fs::create_dir_all(&at).unwrap();
            for (file, content) in files {
                std::fs::write(at.join(file), content).unwrap();
            }
            at
        };
        let code = files(
            "code",
            &[(
                "train.sh",
                "cat \"$TIDEGATE_INPUT_TRAIN/rows.csv\" > \"$TIDEGATE_OUTPUT/model\"\n",
            )],
        );
        let train = files("train", &[("rows.csv", "age,died\n61,0\n70,1\n")]);
        let code = cross(&*store, &key, &code, ArtifactKind::Code, permit("code", None, worker)).await;
        let of_train = permit("train", Some(code.artifact), worker);
        let train = cross(&*store, &key, &train, ArtifactKind::Dataset, of_train).await;
        let ticket = Ticket {
            attempt: attempt.clone(),
            site: SiteName::new("cloud").unwrap(),
            store: "folder:".to_owned(),
            credentials: BTreeMap::new(),
            organisation: ORGANISATION.to_owned(),
            secret: hex::encode([5; 32]),
            worker,
            owner: SiteName::new("hospital").unwrap(),
            owner_key: key.public().to_base64(),
            expires: now() + 60,
        };
        let job = Job {
            run: run.to_owned(),
            target: "died".to_owned(),
            ..Job::default()
        };
        Self {
            store,
            key,
            recipient: Identity::generate(),
            ticket,
            code,
            train,
            job,
            outbox: Outbox::new(attempt.clone(), Side::Keeper),
            inbox: Inbox::new(attempt, Side::Keeper),
            worker: None,
            machine: "/".into(),
            node: None,
            checkpoint: None,
            folder,
        }
    }

    /// The next attempt, which goes on with what this one told.
    pub(crate) fn next_attempt(mut self, checkpoint: Option<Checkpoint>) -> Self {
        self.ticket.attempt.attempt += 1;
        self.outbox = Outbox::new(self.ticket.attempt.clone(), Side::Keeper);
        self.inbox = Inbox::new(self.ticket.attempt.clone(), Side::Keeper);
        self.worker = None;
        self.checkpoint = checkpoint;
        self
    }

    /// The same with room for larger outputs and checkpoints.
    pub(crate) async fn with_room(mut self, bytes: u64) -> Self {
        let mut permit = self.train.permit.clone();
        permit.id = PermitId::new("roomy").unwrap();
        for slot in &mut permit.standing {
            slot.byte_limit = bytes;
        }
        let source = self.folder.path().join("source/train");
        self.train = cross(&*self.store, &self.key, &source, ArtifactKind::Dataset, permit).await;
        self
    }

    /// Another machine of a job that this many others work at.
    pub(crate) fn of_several(mut self, rank: u32, others: u32) -> Self {
        self.ticket.attempt.rank = rank;
        self.job.others = others;
        self.outbox = Outbox::new(self.ticket.attempt.clone(), Side::Keeper);
        self.inbox = Inbox::new(self.ticket.attempt.clone(), Side::Keeper);
        self
    }

    /// Grants the data to a machine of several.
    pub(crate) async fn grant_data_with(&mut self, nodes: &[Node]) {
        let mut grant = self.grant("train", &self.train.clone());
        grant.nodes = nodes.to_vec();
        self.send(KeeperMessage::DataGrant(grant)).await;
    }

    fn offered(&self, checkpoint: &Checkpoint) -> GrantedCheckpoint {
        let Some(WorkerMessage::Hello { recipient, .. }) = self.worker.as_ref().map(|hello| &hello.numbered().message)
        else {
            panic!("no hello yet")
        };
        GrantedCheckpoint {
            attempt: self.ticket.attempt.attempt - 1,
            packing_list: checkpoint.packing_list.to_string(),
            packing_list_digest: checkpoint.packing_list_digest,
            signing_key: checkpoint.signer.to_base64(),
            sealed_key: STANDARD.encode(seal_to(recipient, &checkpoint.key).unwrap()),
        }
    }

    /// Reads until unfinished work is told of.
    pub(crate) async fn until_checkpoint(&mut self) -> Checkpoint {
        let mut ending = Ending::default();
        loop {
            let message = self.next().await;
            assert!(!self.take(message, &mut ending), "{ending:?}: {}", ending.text());
            if let Some(checkpoint) = ending.checkpoints.pop() {
                return checkpoint;
            }
        }
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Opens the store to whoever has the credentials of the ticket, or newer ones.
    pub(crate) fn opener(&self) -> Opener {
        let store = Arc::clone(&self.store);
        Box::new(move |_| Ok(Arc::clone(&store)))
    }

    /// Starts the worker beside this keeper.
    pub(crate) fn start(&self) -> tokio::task::JoinHandle<Result<(), WorkerError>> {
        self.start_with(self.opener())
    }

    pub(crate) fn start_with(&self, opener: Opener) -> tokio::task::JoinHandle<Result<(), WorkerError>> {
        let mut options = crate::options(self.work());
        options.machine.clone_from(&self.machine);
        tokio::spawn(tidegate_worker::run(self.ticket.clone(), opener, options))
    }

    /// What the worker that was heard alone can open.
    pub(crate) fn seal_to_worker(&self, text: &[u8]) -> String {
        let Some(WorkerMessage::Hello { recipient, .. }) = self.worker.as_ref().map(|hello| &hello.numbered().message)
        else {
            panic!("no hello yet")
        };
        seal(recipient, text)
    }

    pub(crate) async fn hello(&mut self) -> SandboxEvidence {
        let hello = loop {
            if let Some(hello) = self.inbox.hello(&*self.store, &[5; 32]).await.unwrap() {
                break hello;
            }
            pause().await;
        };
        let WorkerMessage::Hello { sandbox, .. } = hello.numbered().message.clone() else {
            panic!("no hello")
        };
        self.worker = Some(hello);
        sandbox
    }

    /// The digest of the hello that was heard.
    pub(crate) fn accepted(&self) -> Digest {
        self.worker.as_ref().unwrap().digest()
    }

    fn worker_key(&self) -> VerifyingKey {
        self.worker.as_ref().unwrap().signing_key().clone()
    }

    pub(crate) fn granted(&self, input: &str, crossed: &Crossed) -> GrantedArtifact {
        let Some(WorkerMessage::Hello { recipient, .. }) = self.worker.as_ref().map(|hello| &hello.numbered().message)
        else {
            panic!("no hello yet")
        };
        GrantedArtifact {
            input: input.to_owned(),
            artifact: crossed.artifact,
            packing_list: crossed.packing_list.to_string(),
            packing_list_digest: crossed.packing_list_digest,
            key_commitment: DataKey::from_bytes(crossed.key).commitment(),
            sealed_key: STANDARD.encode(seal_to(recipient, &crossed.key).unwrap()),
            permit_envelope: crossed.envelope.clone(),
        }
    }

    pub(crate) fn grant(&self, input: &str, crossed: &Crossed) -> Grant {
        Grant {
            hello: self.worker.as_ref().unwrap().digest(),
            permit: crossed.permit.id.clone(),
            permit_digest: tidegate_seal::dsse::payload_digest(&crossed.envelope).unwrap(),
            artifacts: vec![self.granted(input, crossed)],
            checkpoint: (input != "code")
                .then(|| self.checkpoint.as_ref().map(|it| self.offered(it)))
                .flatten(),
            nodes: Vec::new(),
            output_recipient: self.recipient.recipient(),
            job: self.job.clone(),
            permit_envelope: crossed.envelope.clone(),
            expires: now() + 600,
            lease: now() + 600,
        }
    }

    pub(crate) async fn send(&mut self, message: KeeperMessage) {
        self.outbox.post(&*self.store, &self.key, message).await.unwrap();
    }

    pub(crate) async fn grant_code(&mut self) {
        let grant = self.grant("code", &self.code.clone());
        self.send(KeeperMessage::CodeGrant(grant)).await;
    }

    pub(crate) async fn grant_data(&mut self) {
        let grant = self.grant("train", &self.train.clone());
        self.send(KeeperMessage::DataGrant(grant)).await;
    }

    /// The next message; waits for it.
    pub(crate) async fn next(&mut self) -> WorkerMessage {
        let key = self.worker_key();
        loop {
            if let Some(opened) = self.inbox.next::<WorkerMessage>(&*self.store, &key).await.unwrap() {
                return opened.numbered.message;
            }
            pause().await;
        }
    }

    /// Grants everything once it is asked for.
    pub(crate) async fn admit(&mut self) {
        self.hello().await;
        self.grant_code().await;
        self.until_setup_is_done().await.unwrap();
        self.grant_data().await;
    }

    /// Reads until `SetupDone`; an error is the failure that came in its place.
    pub(crate) async fn until_setup_is_done(&mut self) -> Result<SandboxEvidence, Ending> {
        let mut ending = Ending::default();
        loop {
            match self.next().await {
                WorkerMessage::SetupDone { sandbox, node } => {
                    self.node = node;
                    return Ok(sandbox);
                }
                other => {
                    if self.take(other, &mut ending) {
                        return Err(ending);
                    }
                }
            }
        }
    }

    /// Reads to the last message.
    pub(crate) async fn ending(&mut self) -> Ending {
        let mut ending = Ending::default();
        loop {
            let message = self.next().await;
            if self.take(message, &mut ending) {
                return ending;
            }
        }
    }

    fn take(&self, message: WorkerMessage, ending: &mut Ending) -> bool {
        let unseal = |sealed: &str| {
            let opened = open(&self.recipient, &STANDARD.decode(sealed).unwrap()).unwrap();
            opened.to_vec()
        };
        match message {
            WorkerMessage::Log { sealed } => ending.log.extend(unseal(&sealed)),
            WorkerMessage::Metric { sealed } => ending.metrics.push(String::from_utf8(unseal(&sealed)).unwrap()),
            WorkerMessage::Output {
                packing_list,
                packing_list_digest,
                grant,
            } => {
                let key = unseal(&grant).try_into().unwrap();
                ending.output = Some((ObjectName::new(packing_list).unwrap(), packing_list_digest, key));
            }
            WorkerMessage::Checkpoint {
                packing_list,
                packing_list_digest,
                grant,
            } => ending.checkpoints.push(Checkpoint {
                packing_list: ObjectName::new(packing_list).unwrap(),
                packing_list_digest,
                key: unseal(&grant).try_into().unwrap(),
                signer: self.worker_key(),
            }),
            WorkerMessage::Finished { seconds } => {
                ending.finished = Some(seconds);
                return true;
            }
            WorkerMessage::Failed {
                stage,
                reason,
                exit_code,
            } => {
                ending.failed = Some((stage, reason, exit_code));
                return true;
            }
            WorkerMessage::Hello { .. } | WorkerMessage::SetupDone { .. } => panic!("not expected here: {message:?}"),
        }
        false
    }

    /// Opens the output as the keeper at home does.
    pub(crate) async fn receive(&self, ending: &Ending) -> Result<(Received, PathBuf), TransferError> {
        let (packing_list, digest, key) = ending.output.clone().unwrap();
        let destination = self.folder.path().join("home");
        let expected = Expected {
            packing_list: &packing_list,
            packing_list_digest: &digest,
            sender: &self.worker_key(),
            organisation: ORGANISATION,
            artifact: None,
            permit: &self.train.permit.id,
            permit_digest: &tidegate_seal::dsse::payload_digest(&self.train.envelope).unwrap(),
            to: &SiteName::new("hospital").unwrap(),
            key_commitment: None,
            byte_limit: 1 << 30,
            plaintext_limit: 1 << 30,
            ceiling: None,
        };
        let received = receive(&expected, &*self.store, &DataKey::from_bytes(key), &destination).await?;
        Ok((received, destination))
    }
}

pub(crate) fn seal(recipient: &str, text: &[u8]) -> String {
    STANDARD.encode(seal_to(recipient, text).unwrap())
}

/// What a worker told.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    pub(crate) checkpoints: Vec<Checkpoint>,
    pub(crate) log: Vec<u8>,
    pub(crate) metrics: Vec<String>,
    pub(crate) output: Option<(ObjectName, Digest, [u8; 32])>,
    pub(crate) finished: Option<u64>,
    pub(crate) failed: Option<(String, String, Option<i32>)>,
}

impl Ending {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.log).into_owned()
    }

    pub(crate) fn stage(&self) -> &str {
        self.failed.as_ref().map_or("", |(stage, _, _)| stage)
    }
}

async fn cross(store: &dyn Store, key: &SigningKey, source: &Path, kind: ArtifactKind, permit: Permit) -> Crossed {
    let description = Description {
        kind,
        name: permit.id.to_string(),
        organisation: ORGANISATION.to_owned(),
        owner: permit.from.site.clone(),
        label: permit.label.clone(),
        lowered_from: None,
        columns: Vec::new(),
        lineage: BTreeSet::new(),
        task: permit.task.clone(),
        step_key: sha256(b"step"),
    };
    let manifest = describe(source, description, &DIGEST_KEY).unwrap();
    let artifact = tidegate_seal::packing::manifest_digest(&manifest).unwrap();
    let envelope = sign_permit(key, &permit, &artifact, "test").unwrap();
    let check = PermitCheck {
        owner: &key.public(),
        organisation: ORGANISATION,
        from: &permit.from,
        to: &permit.to,
        run: &permit.run,
        now: now(),
        revocation_epoch: permit.revocation_epoch,
    };
    let permitted = Permitted::verify(&check, &envelope, manifest).unwrap();
    let data_key = DataKey::generate().unwrap();
    let state = tempfile::tempdir().unwrap();
    let crossing = Crossing {
        source,
        store,
        signer: key,
        data_key: &data_key,
        digest_key: &DIGEST_KEY,
        known: tidegate_transfer::KnownShards::NONE,
        state: state.path(),
        shards_in_flight: 1,
        progress: &|_| {},
        gate: &|| tidegate_transfer::Gate::Open,
    };
    let sent = send(&permitted, &crossing).await.unwrap();
    Crossed {
        artifact,
        key: *data_key.expose(),
        packing_list: sent.packing_list,
        packing_list_digest: sent.packing_list_digest,
        envelope,
        permit,
    }
}

/// Between two looks into the mailbox, which has no other way to tell that something came.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}
