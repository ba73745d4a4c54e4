//! A private site with its keeper, and the control plane that asks it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::fakes::{MemoryCustody, MemoryStore};
use tidegate_contracts::identity::Verifier;
use tidegate_contracts::{Journal, ObjectName, Store};
use tidegate_keeper::{Keeper, Setup, log_origin};
use tidegate_ledger::merkle::leaf_hash;
use tidegate_ledger::{Checkpoint, SignedCheckpoint, Tree, VerifierKey};
use tidegate_policy::PolicySet;
use tidegate_seal::digest::{canonical_digest, sha256};
use tidegate_seal::dsse;
use tidegate_seal::sign::SigningKey;
use tidegate_types::event::{Event, EventData, EventType};
use tidegate_types::files::{read_catalog, read_sites};
use tidegate_types::ids::PermitId;
use tidegate_types::keeper::{
    AttemptOutcome, LedgerProof, Outcome, PipelineText, REQUEST_PAYLOAD, Reply, ReplyBody, Request, RequestBody,
};
use tidegate_types::message::{Attempt, Ticket};
use tidegate_types::{ArtifactId, Digest, RunId, SiteName, TaskName, to_canonical_json};

use crate::fakes::{Disk, Journals, Rows};

pub(crate) const ORGANISATION: &str = "st-mary";

const CATALOG: &str = "datasets:
  admissions:
    site: hospital
    source: admissions.csv
    subject: patient_id
    purposes: [quality-of-care]
    least_k: 5
    columns:
      patient_id: {role: identifier, kind: record_number}
      \"*\": {role: attribute}
";

const SITES: &str = "organisation: st-mary
sites:
  hospital:
    kind: private
    jurisdiction: US
    clearance: {level: restricted}
    store: \"folder:\"
    custody: \"file:\"
    compute: {driver: process, cpus: 2, memory: 2 GiB}
  cloud:
    kind: public
    jurisdiction: US
    clearance: {level: internal}
    store: \"folder:\"
    compute: {driver: process, cpus: 2, memory: 2 GiB}
  ward:
    kind: edge
    jurisdiction: US
    clearance: {level: internal}
    store: \"folder:\"
";

const PIPELINE: &str = "name: readmission
purpose: quality-of-care
prepare:
  from: admissions
  profile: hipaa-safe-harbor
  target: readmitted
  disclosure: {to: internal, k: 5}
train:
  resources: {infra: cloud}
  trainer: {model: logistic, epochs: 1, batch_size: 32}
  retries: 2
deploy: [hospital, ward]
";

/// The program that the keeper knows as its worker.
pub(crate) fn program() -> Digest {
    sha256(b"worker program")
}

pub(crate) fn run() -> RunId {
    RunId::new("r1").unwrap()
}

pub(crate) fn site(name: &str) -> SiteName {
    SiteName::new(name).unwrap()
}

pub(crate) fn attempt(number: u32) -> Attempt {
    Attempt {
        run: run(),
        task: TaskName::new("train").unwrap(),
        attempt: number,
        rank: 0,
    }
}

pub(crate) fn object(name: &str) -> ObjectName {
    ObjectName::new(name).unwrap()
}

pub(crate) fn text() -> PipelineText {
    PipelineText {
        file: "tidegate.yaml".to_owned(),
        text: PIPELINE.to_owned(),
        sql: None,
        code: BTreeMap::new(),
        sample: None,
    }
}

/// Between two looks into a mailbox, which has no other way to tell that something came.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

thread_local! {
    /// The keeper's time. Test and keeper share a thread.
    static NOW: Cell<u64> = Cell::new(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
}

/// The time at which the test began, and what it let pass since.
pub(crate) fn clock() -> u64 {
    NOW.get()
}

/// Lets time pass for the keeper.
pub(crate) fn let_pass(seconds: u64) {
    NOW.set(NOW.get() + seconds);
}

/// The control plane's ledger, and how far the keeper has seen it.
pub(crate) struct Ledger {
    tree: Tree,
    seen: u64,
}

/// Site, keeper and control plane.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) journal: Journals,
    pub(crate) stores: BTreeMap<SiteName, MemoryStore>,
    pub(crate) full: Arc<AtomicBool>,
    /// Whether stores lend objects.
    pub(crate) lends: Arc<AtomicBool>,
    /// After how long a crossing for which nobody asks is stopped; counts from the next restart on.
    pub(crate) unasked: Duration,
    pub(crate) verifiers: BTreeMap<SiteName, Arc<dyn Verifier>>,
    pub(crate) rows: Arc<Rows>,
    pub(crate) control: SigningKey,
    pub(crate) custody: MemoryCustody,
    /// The sites file.
    pub(crate) sites: String,
    /// What the control plane says is to be done.
    pub(crate) pipeline: PipelineText,
    /// The organisation's own policy.
    policy: &'static str,
    mailbox: MemoryStore,
    ledger: Ledger,
    asked: u64,
    /// The keeper's, which came with the last ticket.
    pub(crate) recipient: String,
    keeper: tokio::task::JoinHandle<()>,
}

impl World {
    /// A keeper that has met its control plane and prepared the run.
    pub(crate) async fn new() -> Self {
        Self::under("").await
    }

    /// The same, whose organisation has a policy of its own.
    pub(crate) async fn under(policy: &'static str) -> Self {
        Self::of(policy, SITES, text()).await
    }

    /// One whose pipeline trains on two machines of the cloud.
    pub(crate) async fn of_two_machines() -> Self {
        let trainer = "trainer: {model: logistic, epochs: 1, batch_size: 32}";
        let mut pipeline = text();
        pipeline.text = PIPELINE.replace(trainer, "num_nodes: 2\n  code: [train.sh]\n  run: sh train.sh");
        pipeline.code.insert("train.sh".to_owned(), STANDARD.encode("true"));
        let compute = "compute: {driver: process, cpus: 2, memory: 2 GiB}\n  ward:";
        assert!(SITES.contains(compute));
        let joined = compute.replace("\n  ward:", "\n    network: {nodes: allow}\n  ward:");
        Self::of("", &SITES.replace(compute, &joined), pipeline).await
    }

    /// One whose training is set up before.
    pub(crate) async fn with_setup() -> Self {
        let trainer = "trainer: {model: logistic, epochs: 1, batch_size: 32}";
        let mut pipeline = text();
        pipeline.text = PIPELINE.replace(trainer, "setup: make tools\n  code: [train.sh]\n  run: sh train.sh");
        pipeline.code.insert("train.sh".to_owned(), STANDARD.encode("true"));
        Self::of("", SITES, pipeline).await
    }

    /// One whose private site has machines for its rows.
    pub(crate) async fn with_machines_for_rows() -> Self {
        let compute = "compute: {driver: process, cpus: 2, memory: 2 GiB}";
        let sites = SITES.replacen(compute, &compute.replace('}', ", rows: true}"), 1);
        Self::of("", &sites, text()).await
    }

    /// One with two clouds, of which the second copies what stands in the first.
    pub(crate) async fn of_two_clouds() -> Self {
        let (home, others) = SITES.split_once("  cloud:\n").unwrap();
        let cloud = others
            .split_once("  ward:\n")
            .unwrap()
            .0
            .replace("folder:", "s3://cloud");
        let ward = others.split_once("  ward:\n").unwrap().1;
        let second = cloud.replace("s3://cloud", "s3://second");
        let sites =
            format!("{home}  cloud:\n{cloud}  second:\n{second}    transfer: {{copy_from: [cloud]}}\n  ward:\n{ward}");
        let mut pipeline = text();
        let both = "{any_of: [{infra: cloud}, {infra: second}]}";
        pipeline.text = PIPELINE.replace("{infra: cloud}", both);
        Self::of("", &sites, pipeline).await
    }

    async fn of(policy: &'static str, sites: &str, pipeline: PipelineText) -> Self {
        let mut world = Self {
            folder: tempfile::tempdir().unwrap(),
            journal: Journals::default(),
            stores: ["hospital", "cloud", "ward", "second"]
                .map(|name| (site(name), MemoryStore::new()))
                .into(),
            full: Arc::default(),
            lends: Arc::default(),
            unasked: Setup::UNASKED,
            verifiers: BTreeMap::new(),
            rows: Arc::default(),
            control: SigningKey::generate().unwrap(),
            custody: MemoryCustody::new(),
            sites: sites.to_owned(),
            pipeline,
            policy,
            mailbox: MemoryStore::new(),
            ledger: Ledger {
                tree: Tree::default(),
                seen: 0,
            },
            asked: 0,
            recipient: String::new(),
            keeper: tokio::spawn(async {}),
        };
        world.restart().await;
        let control_key = world.control.public().to_base64();
        world.done(RequestBody::Identify { control_key }).await;
        world.prepare().await;
        world
    }

    /// Ends the keeper wherever it stands, and starts another one on the same site.
    pub(crate) async fn restart(&mut self) {
        self.keeper.abort();
        let stores = self.stores.iter().map(|(name, store)| {
            let disk = Disk {
                store: store.clone(),
                full: Arc::clone(&self.full),
                lends: Arc::clone(&self.lends),
            };
            (name.clone(), Arc::new(disk) as Arc<dyn Store>)
        });
        let keeper = Keeper::open(Setup {
            site: site("hospital"),
            sites: read_sites("sites.yaml", &self.sites).unwrap(),
            catalog: read_catalog("catalog.yaml", CATALOG).unwrap(),
            catalog_folder: self.folder.path().to_owned(),
            policies: PolicySet::load(&[("own.cedar".to_owned(), self.policy.to_owned())]).unwrap(),
            folder: self.folder.path().to_owned(),
            journal: Arc::new(self.journal.clone()),
            custody: Arc::new(self.custody.clone()),
            stages: Arc::<Rows>::clone(&self.rows),
            stores: stores.collect(),
            mailbox: Arc::new(self.mailbox.clone()),
            workers: BTreeSet::from([program()]).into(),
            clock,
            unasked: self.unasked,
            verifiers: self.verifiers.clone(),
        })
        .await
        .unwrap();
        self.keeper = tokio::spawn(async move { keeper.run(std::future::pending()).await.unwrap() });
    }

    pub(crate) fn store(&self, name: &str) -> MemoryStore {
        self.stores[&site(name)].clone()
    }

    /// Names of a site's objects outside the mailboxes: sealed bytes, packing lists, releases.
    pub(crate) fn objects(&self, name: &str) -> Vec<String> {
        let names = self.store(name).names().into_iter();
        names
            .map(|name| name.to_string())
            .filter(|name| !name.starts_with("mailbox/"))
            .collect()
    }

    /// How many entries a table of the keeper's journal has.
    pub(crate) fn entries(&self, table: &str) -> usize {
        self.journal.scan(table, "").unwrap().len()
    }

    /// Whether the site's own log holds a refusal by this rule.
    pub(crate) fn recorded(&self, rule: &str) -> bool {
        let refused = self.events(EventType::Refused);
        refused
            .iter()
            .any(|event| event.names.get("rule").map(String::as_str) == Some(rule))
    }

    /// What the site's own log holds of one kind.
    pub(crate) fn events(&self, kind: EventType) -> Vec<EventData> {
        let leaves = self.journal.log_leaves(0, u64::MAX).unwrap().into_iter();
        let events = leaves.map(|leaf| serde_json::from_slice::<Event>(&leaf).unwrap());
        let of_it = events.filter(|event| event.event_type == kind.cloud_event_type());
        of_it.map(|event| event.data).collect()
    }

    pub(crate) async fn ask(&mut self, body: RequestBody) -> Outcome {
        let control = SigningKey::from_seed(&self.control.seed()).unwrap();
        self.ask_as(&control, body).await
    }

    /// Asks with a key of one's own.
    pub(crate) async fn ask_as(&mut self, signer: &SigningKey, body: RequestBody) -> Outcome {
        self.asked += 1;
        let id = format!("q{}", self.asked);
        let request = Request {
            site: site("hospital"),
            id: id.clone(),
            body,
        };
        let envelope = dsse::sign(signer, REQUEST_PAYLOAD, &to_canonical_json(&request).unwrap());
        let bytes = dsse::to_bytes(&envelope).unwrap();
        let (question, answer) = (object(&format!("in/{id}")), object(&format!("out/{id}")));
        self.mailbox.put_new(&question, bytes.into()).await.unwrap();
        let reply = loop {
            match self.mailbox.get(&answer, 1 << 26).await {
                Ok(reply) => break reply,
                Err(_) => pause().await,
            }
        };
        self.mailbox.delete(&question).await.unwrap();
        let payload = dsse::peek(&dsse::from_bytes(&reply).unwrap()).unwrap();
        let reply: Reply = serde_json::from_slice(&payload).unwrap();
        reply.outcome
    }

    pub(crate) async fn done(&mut self, body: RequestBody) -> ReplyBody {
        match self.ask(body).await {
            Outcome::Done(body) => *body,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for something that a rule must refuse; gives the rule.
    pub(crate) async fn refused(&mut self, body: RequestBody) -> String {
        match self.ask(body).await {
            Outcome::Refused(refusal) => refusal.rule,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Prepares the run; gives its inputs.
    pub(crate) async fn prepare(&mut self) -> BTreeMap<String, ArtifactId> {
        let body = RequestBody::Prepare {
            run: run(),
            pipeline: self.pipeline.clone(),
        };
        let ReplyBody::Prepared { inputs, .. } = self.done(body).await else {
            panic!("not prepared")
        };
        let inputs = inputs.into_iter();
        inputs.map(|(name, input)| (name, input.artifact)).collect()
    }

    /// Writes an intent into the ledger; gives the proof that a keeper wants.
    pub(crate) fn intent(&mut self, task: &str, artifact: &ArtifactId, to: Option<&str>) -> LedgerProof {
        let mut data = EventData::default();
        data.names.insert("task".to_owned(), task.to_owned());
        if let Some(to) = to {
            data.names.insert("to".to_owned(), to.to_owned());
        }
        data.digests.insert("artifact".to_owned(), *artifact);
        let id = canonical_digest(&data).unwrap().to_hex();
        let event = Event::new(
            EventType::PermitRequested,
            id,
            "/control".to_owned(),
            "r1",
            clock(),
            data,
        );
        let leaf = to_canonical_json(&event).unwrap();
        let index = self.ledger.tree.size();
        self.ledger.tree.append(leaf_hash(&leaf));
        let size = self.ledger.tree.size();
        let hex = |hashes: Vec<Digest>| hashes.iter().map(Digest::to_hex).collect();
        LedgerProof {
            leaf: String::from_utf8(leaf).unwrap(),
            index,
            checkpoint: self.checkpoint(&self.control),
            inclusion: hex(self.ledger.tree.inclusion_proof(index, size).unwrap()),
            consistency: hex(self.ledger.tree.consistency_proof(self.ledger.seen, size).unwrap()),
            since: self.ledger.seen,
        }
    }

    /// The ledger's checkpoint as somebody signs it.
    pub(crate) fn checkpoint(&self, signer: &SigningKey) -> String {
        let size = self.ledger.tree.size();
        let origin = log_origin(ORGANISATION);
        let key = VerifierKey::new(origin.clone(), *signer.public().as_bytes()).unwrap();
        let head = Checkpoint {
            origin,
            size,
            root: self.ledger.tree.root(size).unwrap(),
        };
        SignedCheckpoint::sign(head, &key, &|text| signer.sign(text))
            .unwrap()
            .to_string()
    }

    /// Begins another ledger, as somebody would who wants an entry to be forgotten.
    pub(crate) fn rewrite_ledger(&mut self) {
        self.ledger.tree = Tree::default();
    }

    /// Remembers how far the keeper has seen the ledger.
    pub(crate) fn seen(&mut self, checkpoint: &str) {
        self.ledger.seen = SignedCheckpoint::parse(checkpoint).unwrap().checkpoint().size;
    }

    /// The question for a permit of the training, to be spoiled by a test.
    pub(crate) fn permit_request(&mut self, artifact: &ArtifactId, to: &str) -> RequestBody {
        RequestBody::SignPermit {
            run: run(),
            task: TaskName::new("train").unwrap(),
            pipeline: self.pipeline.clone(),
            artifact: *artifact,
            to: site(to),
            worker: Some(program()),
            intent: self.intent("train", artifact, Some(to)),
        }
    }

    pub(crate) async fn permit(&mut self, body: RequestBody) -> PermitId {
        let ReplyBody::Permit { permit, checkpoint, .. } = self.done(body).await else {
            panic!("no permit")
        };
        self.seen(&checkpoint);
        permit
    }

    /// Asks for a crossing until all of it was sent.
    pub(crate) async fn send(&mut self, permit: &PermitId) {
        while let ReplyBody::Sending { .. } = self.done(RequestBody::Send { permit: permit.clone() }).await {}
    }

    /// A permit for the training part to cross to the cloud.
    pub(crate) async fn permit_to_train(&mut self) -> PermitId {
        let artifacts = self.prepare().await;
        let body = self.permit_request(&artifacts["train"], "cloud");
        self.permit(body).await
    }

    /// Permits everything of the training for the cloud, and sends it there.
    pub(crate) async fn cross(&mut self) -> BTreeMap<String, PermitId> {
        let mut permits = BTreeMap::new();
        for (name, artifact) in self.prepare().await {
            let body = self.permit_request(&artifact, "cloud");
            let permit = self.permit(body).await;
            self.send(&permit).await;
            permits.insert(name, permit);
        }
        permits
    }

    pub(crate) fn start_request(&self, number: u32, permits: &BTreeMap<String, PermitId>) -> RequestBody {
        self.start_request_of(attempt(number), permits)
    }

    fn start_request_of(&self, attempt: Attempt, permits: &BTreeMap<String, PermitId>) -> RequestBody {
        RequestBody::StartAttempt {
            attempt,
            pipeline: self.pipeline.clone(),
            site: site("cloud"),
            worker: program(),
            permits: permits.clone(),
        }
    }

    pub(crate) async fn ticket(&mut self, number: u32, permits: &BTreeMap<String, PermitId>) -> Ticket {
        self.ticket_of(attempt(number), permits).await
    }

    pub(crate) async fn ticket_of(&mut self, attempt: Attempt, permits: &BTreeMap<String, PermitId>) -> Ticket {
        let body = self.start_request_of(attempt, permits);
        let ReplyBody::Ticket { ticket, recipient } = self.done(body).await else {
            panic!("no ticket")
        };
        self.recipient = recipient;
        ticket
    }

    pub(crate) async fn fence(&mut self, number: u32) -> AttemptOutcome {
        self.fence_of(attempt(number)).await
    }

    pub(crate) async fn fence_of(&mut self, attempt: Attempt) -> AttemptOutcome {
        let body = RequestBody::Fence {
            attempt,
            why: "lost".to_owned(),
        };
        let ReplyBody::AttemptEnded { outcome } = self.done(body).await else {
            panic!("not ended")
        };
        outcome
    }

    /// Waits for how an attempt ends.
    pub(crate) async fn ended(&mut self, number: u32) -> AttemptOutcome {
        self.ended_of(attempt(number)).await
    }

    pub(crate) async fn ended_of(&mut self, attempt: Attempt) -> AttemptOutcome {
        let ReplyBody::AttemptEnded { outcome } = self.done(RequestBody::AwaitAttempt { attempt }).await else {
            panic!("not ended")
        };
        outcome
    }

    /// Waits for the rule that ends an attempt, and finds the refusal in the site's own log.
    pub(crate) async fn burned(&mut self, number: u32) -> String {
        self.burned_of(attempt(number)).await
    }

    pub(crate) async fn burned_of(&mut self, attempt: Attempt) -> String {
        let AttemptOutcome::Refused { refusal } = self.ended_of(attempt).await else {
            panic!("not refused")
        };
        assert!(self.recorded(&refusal.rule), "{}", refusal.rule);
        refusal.rule
    }

    pub(crate) async fn accepted(&mut self, number: u32) -> ArtifactId {
        match self.ended(number).await {
            AttemptOutcome::Accepted { model, .. } => model.artifact,
            other => panic!("not accepted: {other:?}"),
        }
    }

    /// Models that came home, finished or not.
    pub(crate) fn models(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join("models")) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}
