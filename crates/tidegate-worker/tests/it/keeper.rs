//! A scripted keeper: the other end of the mailbox, with artifacts that crossed for real.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::{ObjectName, Store};
use tidegate_seal::digest::sha256_reader;
use tidegate_seal::envelope::{Identity, open, seal_to};
use tidegate_seal::key::DataKey;
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_transfer::mailbox::{HelloOpened, Inbox, Outbox, Side};
use tidegate_transfer::{Expected, Permitted, Received, TransferError, receive};
use tidegate_types::ids::PermitId;
use tidegate_types::message::{
    Attempt, Grant, GrantedArtifact, GrantedCheckpoint, GrantedSetup, Job, KeeperMessage, Node, SandboxEvidence,
    Ticket, WorkerMessage,
};
use tidegate_types::{ArtifactKind, Digest, RunId, SiteName, TaskName};
use tidegate_worker::{Notices, Opener, WorkerError};

use crate::crossing::{Crossed, ORGANISATION, check, cross, manifest_of, now, permit, put};

pub(crate) struct Keeper {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) key: SigningKey,
    pub(crate) recipient: Identity,
    pub(crate) ticket: Ticket,
    pub(crate) code: Crossed,
    pub(crate) train: Crossed,
    /// Where the worker looks for accelerators.
    pub(crate) machine: PathBuf,
    /// What the worker hears of its machine's end.
    pub(crate) notices: Notices,
    pub(crate) job: Job,
    outbox: Outbox,
    inbox: Inbox,
    worker: Option<HelloOpened>,
    /// Where the worker said that the job's other machines reach it.
    pub(crate) node: Option<Node>,
    /// What a data grant offers to go on with.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// What a code grant offers in place of running the setup.
    pub(crate) setup: Option<(Digest, Checkpoint)>,
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
            notices: Notices::default(),
            node: None,
            checkpoint: None,
            setup: None,
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

    /// What another worker put under the slot of setups.
    pub(crate) async fn set_up_by_another(&self, source: &Path) -> Checkpoint {
        let permit = &self.code.permit;
        let (owner, signer) = (self.key.public(), SigningKey::generate().unwrap());
        let check = check(&owner, (&permit.to, &permit.from), permit, now());
        let manifest = manifest_of(source, ArtifactKind::Code, permit);
        let permitted = Permitted::standing(&check, &self.code.envelope, "setup", manifest).unwrap();
        let (packing_list, packing_list_digest, key) = put(&permitted, &*self.store, &signer, source).await;
        Checkpoint {
            packing_list,
            packing_list_digest,
            key,
            signer: signer.public(),
        }
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

    /// Reads until the command has written something.
    pub(crate) async fn until_log(&mut self) {
        let mut ending = Ending::default();
        while !ending.text().contains("waits") {
            let message = self.next().await;
            assert!(!self.take(message, &mut ending), "{ending:?}: {}", ending.text());
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
        options.notices.clone_from(&self.notices);
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
            lent: None,
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
            setup: self
                .setup
                .as_ref()
                .filter(|_| input == "code")
                .map(|(machine, setup)| GrantedSetup {
                    machine: *machine,
                    permit: crossed.permit.id.clone(),
                    permit_digest: tidegate_seal::dsse::payload_digest(&crossed.envelope).unwrap(),
                    sealed: self.offered(setup),
                }),
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
        self.set_up().await;
    }

    /// The same; gives what was told until the data was granted.
    pub(crate) async fn set_up(&mut self) -> Ending {
        self.hello().await;
        self.grant_code().await;
        let mut ending = Ending::default();
        loop {
            match self.next().await {
                WorkerMessage::SetupDone { node, .. } => {
                    self.node = node;
                    break;
                }
                other => assert!(!self.take(other, &mut ending), "{ending:?}: {}", ending.text()),
            }
        }
        self.grant_data().await;
        ending
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
            WorkerMessage::Setup {
                machine,
                packing_list,
                packing_list_digest,
                salt,
            } => {
                let salt = hex::decode(salt).unwrap().try_into().unwrap();
                let setup = Checkpoint {
                    packing_list: ObjectName::new(packing_list).unwrap(),
                    packing_list_digest,
                    key: *DataKey::from_bytes(self.code.key).derived("setup", &salt).expose(),
                    signer: self.worker_key(),
                };
                ending.setup = Some((machine, setup));
            }
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
    pub(crate) setup: Option<(Digest, Checkpoint)>,
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

/// Between two looks into the mailbox, which has no other way to tell that something came.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}
