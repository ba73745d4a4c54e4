//! A worker that does what a test tells it, lies included.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::Store;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_seal::digest::{canonical_digest, sha256};
use tidegate_seal::envelope::{Identity, seal_to};
use tidegate_seal::key::DataKey;
use tidegate_seal::packing::{manifest_digest, seal_index, sign_packing_list};
use tidegate_seal::shard::seal_shard;
use tidegate_seal::sign::SigningKey;
use tidegate_transfer::mailbox::{Inbox, Letter, Outbox, Side, contest, hello_mac, identity_nonce};
use tidegate_transfer::packing_list_name;
use tidegate_types::artifact::{
    ArtifactKind, FileEntry, MANIFEST_FORMAT, PACKING_LIST_FORMAT, SEALED_INDEX_FORMAT, SealedIndex, SealedObject,
    ShardKey,
};
use tidegate_types::message::{Grant, KeeperMessage, Node, Numbered, SandboxEvidence, Ticket, WorkerMessage};
use tidegate_types::{Digest, KeyedDigest, Label, Level, Manifest, PackingList};

use crate::world::{ORGANISATION, object, pause, program, site};

/// A worker with a ticket.
pub(crate) struct Worker {
    pub(crate) store: MemoryStore,
    pub(crate) outbox: Outbox,
    pub(crate) signer: SigningKey,
    pub(crate) program: Digest,
    pub(crate) sandbox: SandboxEvidence,
    ticket: Ticket,
    pub(crate) identity: Identity,
    /// What its machine says of itself.
    pub(crate) statement: Option<String>,
    inbox: Inbox,
    /// The newest grant.
    pub(crate) granted: Option<Grant>,
    /// Where it says that the others of its job reach it.
    pub(crate) node: Option<Node>,
}

/// What a worker sends home.
pub(crate) struct Output {
    pub(crate) label: Label,
    /// Plaintext of one shard each.
    pub(crate) shards: Vec<Vec<u8>>,
    /// Objects of others that its list names too.
    pub(crate) also: Vec<Digest>,
    /// Files without a byte, beside the one of the shards.
    pub(crate) empty_files: usize,
    /// What the index says about each shard.
    pub(crate) told: fn(&mut ShardKey),
    /// What becomes of each sealed shard on its way.
    pub(crate) tampered: fn(&mut Vec<u8>),
    /// The key that it is sealed with, where that is not a new one.
    pub(crate) data_key: Option<DataKey>,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            label: Label::of(Level::Internal),
            shards: vec![b"a model".to_vec()],
            also: Vec::new(),
            empty_files: 0,
            told: |_| {},
            tampered: |_| {},
            data_key: None,
        }
    }
}

impl Worker {
    pub(crate) fn new(ticket: Ticket, store: MemoryStore) -> Self {
        Self {
            store,
            outbox: Outbox::new(ticket.attempt.clone(), Side::Worker),
            inbox: Inbox::new(ticket.attempt.clone(), Side::Worker),
            signer: SigningKey::generate().unwrap(),
            program: program(),
            sandbox: SandboxEvidence {
                network: "seccomp".to_owned(),
                files: "landlock-v5".to_owned(),
                limits: Vec::new(),
            },
            identity: Identity::generate(),
            statement: None,
            ticket,
            granted: None,
            node: None,
        }
    }

    /// What its machine's statement has to be about.
    pub(crate) fn nonce(&self) -> Digest {
        let mut secret = [0; 32];
        hex::decode_to_slice(&self.ticket.secret, &mut secret).unwrap();
        let (recipient, key) = (self.identity.recipient(), self.signer.public().to_base64());
        identity_nonce(&secret, &self.ticket.attempt, &recipient, &key).unwrap()
    }

    pub(crate) const fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// The hello, signed.
    pub(crate) fn letter(&self) -> Letter {
        let mut secret = [0; 32];
        hex::decode_to_slice(&self.ticket.secret, &mut secret).unwrap();
        let message = |mac| WorkerMessage::Hello {
            recipient: self.identity.recipient(),
            signing_key: self.signer.public().to_base64(),
            worker: self.program,
            sandbox: self.sandbox.clone(),
            identity: self.statement.clone(),
            mac,
        };
        let numbered = Numbered {
            attempt: self.ticket.attempt.clone(),
            number: 1,
            previous: None,
            message: message(String::new()),
        };
        let mac = hello_mac(&secret, &numbered).unwrap();
        self.outbox.seal(&self.signer, message(mac)).unwrap()
    }

    pub(crate) async fn hello(&mut self) {
        let letter = self.letter();
        self.outbox.deliver(&self.store, &letter).await.unwrap();
    }

    /// Tells the keeper that another worker was faster.
    pub(crate) async fn contest(&self) {
        contest(&self.ticket.attempt, &self.store, &self.letter())
            .await
            .unwrap();
    }

    pub(crate) async fn tell(&mut self, message: WorkerMessage) {
        self.outbox.post(&self.store, &self.signer, message).await.unwrap();
    }

    /// The next message but leases; waits for it.
    pub(crate) async fn hear(&mut self) -> KeeperMessage {
        let owner = tidegate_seal::sign::VerifyingKey::from_base64(&self.ticket.owner_key).unwrap();
        loop {
            match self.inbox.next::<KeeperMessage>(&self.store, &owner).await.unwrap() {
                Some(opened) if matches!(opened.numbered.message, KeeperMessage::Lease { .. }) => {}
                Some(opened) => return opened.numbered.message,
                None => pause().await,
            }
        }
    }

    /// Says hello and takes the code grant.
    pub(crate) async fn admitted(&mut self) {
        self.hello().await;
        self.code_grant().await;
    }

    async fn code_grant(&mut self) {
        let KeeperMessage::CodeGrant(grant) = self.hear().await else {
            panic!("no code grant")
        };
        assert_eq!(grant.artifacts.len(), 1);
        self.granted = Some(grant);
    }

    pub(crate) async fn setup_done(&mut self) {
        self.tell(WorkerMessage::SetupDone {
            sandbox: self.sandbox.clone(),
            node: self.node.clone(),
        })
        .await;
    }

    /// Says hello and takes both grants.
    pub(crate) async fn granted(&mut self) {
        self.hello().await;
        self.grants().await;
    }

    /// Takes both grants.
    pub(crate) async fn grants(&mut self) {
        self.code_grant().await;
        self.setup_done().await;
        self.data_grant().await;
    }

    pub(crate) async fn data_grant(&mut self) {
        let KeeperMessage::DataGrant(grant) = self.hear().await else {
            panic!("no data grant")
        };
        self.granted = Some(grant);
    }

    /// Nothing was ever granted: the first that comes is a refusal or a cancellation. Gives its text.
    pub(crate) async fn turned_away(&mut self) -> String {
        match self.hear().await {
            KeeperMessage::Refused { reason } | KeeperMessage::Cancel { reason } => reason,
            KeeperMessage::CodeGrant(_)
            | KeeperMessage::DataGrant(_)
            | KeeperMessage::Lease { .. }
            | KeeperMessage::Access { .. } => panic!("granted"),
        }
    }

    /// Something that is sealed to the keeper, in base64.
    pub(crate) fn sealed(&self, plaintext: &[u8]) -> String {
        let grant = self.granted.as_ref().unwrap();
        STANDARD.encode(seal_to(&grant.output_recipient, plaintext).unwrap())
    }

    pub(crate) async fn log(&mut self, text: &str) {
        let sealed = self.sealed(text.as_bytes());
        self.tell(WorkerMessage::Log { sealed }).await;
    }

    /// Puts an output into the store as the format says, and tells of it.
    pub(crate) async fn output(&mut self, output: Output) {
        let message = self.put(output).await;
        self.tell(message).await;
    }

    /// Puts an output into the store; gives the message that tells of it.
    pub(crate) async fn put(&self, output: Output) -> WorkerMessage {
        let grant = self.granted.as_ref().unwrap();
        let (mut keys, mut objects) = (Vec::new(), Vec::new());
        for plaintext in &output.shards {
            let (mut sealed, mut key) = seal_shard(plaintext, ORGANISATION).unwrap();
            (output.told)(&mut key);
            keys.push(key);
            let digest = sha256(&sealed);
            let bytes = sealed.len() as u64;
            (output.tampered)(&mut sealed);
            self.put_sealed(digest, sealed).await;
            objects.push(SealedObject { digest, bytes });
        }
        objects.extend(output.also.into_iter().map(|digest| SealedObject { digest, bytes: 0 }));
        let file = |path: String, bytes| FileEntry {
            path,
            bytes,
            keyed_digest: KeyedDigest::from_bytes([7; 32]),
        };
        let model = file(
            "model.onnx".to_owned(),
            keys.iter().map(|key| key.plaintext_bytes).sum(),
        );
        let empty = (0..output.empty_files).map(|number| file(format!("empty/{number}"), 0));
        let files = empty.chain([model]).collect();
        let manifest = Manifest {
            format: MANIFEST_FORMAT.to_owned(),
            kind: ArtifactKind::Model,
            name: "r1/train".to_owned(),
            organisation: ORGANISATION.to_owned(),
            owner: site("hospital"),
            label: output.label,
            lowered_from: None,
            files,
            columns: Vec::new(),
            lineage: [].into(),
            task: self.ticket.attempt.task.clone(),
            step_key: canonical_digest(&1).unwrap(),
        };
        let artifact = manifest_digest(&manifest).unwrap();
        let data_key = output.data_key.unwrap_or_else(|| DataKey::generate().unwrap());
        let index = SealedIndex {
            format: SEALED_INDEX_FORMAT.to_owned(),
            manifest,
            shards: keys,
        };
        let index = seal_index(&index, &data_key).unwrap();
        let (digest, bytes) = (sha256(&index), index.len() as u64);
        self.put_sealed(digest, index).await;
        let list = PackingList {
            format: PACKING_LIST_FORMAT.to_owned(),
            organisation: ORGANISATION.to_owned(),
            from: self.ticket.site.clone(),
            to: site("hospital"),
            run: self.ticket.attempt.run.clone(),
            artifact,
            permit: grant.permit.clone(),
            permit_digest: grant.permit_digest,
            key_commitment: data_key.commitment(),
            shards: objects,
            index: SealedObject { digest, bytes },
        };
        let body = sign_packing_list(&self.signer, &list).unwrap();
        let packing_list_digest = sha256(&body);
        let packing_list = packing_list_name(&list.run, &list.permit, &list.artifact);
        self.store.put_new(&packing_list, body.into()).await.unwrap();
        WorkerMessage::Output {
            packing_list: packing_list.to_string(),
            packing_list_digest,
            grant: self.sealed(data_key.expose()),
        }
    }

    async fn put_sealed(&self, digest: Digest, body: Vec<u8>) {
        let name = object(&format!("sealed/{}", digest.to_hex()));
        self.store.put_new(&name, body.into()).await.unwrap();
    }
}
