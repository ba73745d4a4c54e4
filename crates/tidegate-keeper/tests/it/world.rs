//! A private site with its keeper, and the control plane that asks it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tidegate_contracts::fakes::{MemoryCustody, MemoryJournal, MemoryStore};
use tidegate_contracts::journal::{Batch, Journal, JournalError};
use tidegate_contracts::stage::{
    BundleFiles, HomeStages, Judged, ModelAtHome, PreparedFiles, SignPayload, StageContext, StageError,
};
use tidegate_contracts::{ObjectName, Store};
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
    AttemptOutcome, LedgerProof, Outcome, PipelineText, QualitySummary, REQUEST_PAYLOAD, Reply, ReplyBody, Request,
    RequestBody,
};
use tidegate_types::message::{Attempt, Ticket};
use tidegate_types::report::{LabelReport, RiskReport};
use tidegate_types::{ArtifactId, Digest, Label, Level, RunId, SiteName, TaskName, to_canonical_json};

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
    /// How far the keeper's clock is ahead. Test and keeper share a thread.
    static AHEAD: Cell<u64> = const { Cell::new(0) };
}

pub(crate) fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + AHEAD.get()
}

/// Lets time pass for the keeper.
pub(crate) fn let_pass(seconds: u64) {
    AHEAD.set(AHEAD.get() + seconds);
}

/// A journal that breaks off, as a kill would, where an attempt's log has just been written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journals {
    pub(crate) entries: MemoryJournal,
    pub(crate) failing: Arc<AtomicBool>,
    pub(crate) failed: Arc<AtomicU64>,
}

impl Journal for Journals {
    fn commit(&self, batch: &Batch) -> Result<(), JournalError> {
        let of_attempts = batch.put.iter().any(|(table, ..)| table == "attempts");
        if of_attempts && self.failing.load(Ordering::SeqCst) {
            self.failed.fetch_add(1, Ordering::SeqCst);
            return Err(JournalError::Failed {
                what: "committing".to_owned(),
                why: "the test says so".to_owned(),
            });
        }
        self.entries.commit(batch)
    }

    fn get(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, JournalError> {
        self.entries.get(table, key)
    }

    fn scan(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        self.entries.scan(table, prefix)
    }

    fn log_size(&self) -> Result<u64, JournalError> {
        self.entries.log_size()
    }

    fn log_leaves(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, JournalError> {
        self.entries.log_leaves(from, to)
    }

    fn log_index(&self, id: &str) -> Result<Option<u64>, JournalError> {
        self.entries.log_index(id)
    }
}

/// Stages that read no rows, and count how often models were judged and bundled.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) judged: AtomicU64,
    pub(crate) bundled: AtomicU64,
}

impl Rows {
    fn labels() -> LabelReport {
        LabelReport {
            sql: "select 1".to_owned(),
            release: Label::of(Level::Internal),
            columns: Vec::new(),
            row_label: Label::of(Level::Internal),
            row_reads: Vec::new(),
            refusals: Vec::new(),
        }
    }

    fn judge(&self) -> Judged {
        self.judged.fetch_add(1, Ordering::SeqCst);
        Judged {
            quality: QualitySummary::default(),
            raw: None,
            gates: Vec::new(),
        }
    }
}

#[async_trait]
impl HomeStages for Rows {
    async fn analyse(&self, _: &StageContext<'_>) -> Result<(LabelReport, u64), StageError> {
        Ok((Self::labels(), 1))
    }

    async fn prepare(&self, context: &StageContext<'_>) -> Result<PreparedFiles, StageError> {
        let part = |name: &str| {
            let folder = context.folder.join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("rows.csv"), format!("{name},readmitted\n1,0\n")).unwrap();
            (name.to_owned(), folder)
        };
        Ok(PreparedFiles {
            inputs: ["train", "validation"].map(part).into(),
            columns: vec!["readmitted".to_owned()],
            labels: Self::labels(),
            risk: RiskReport {
                quasi_identifiers: Vec::new(),
                sensitive: Vec::new(),
                k: 5,
                k_before: 5,
                l: None,
                groups: 1,
                rows: 5,
                suppressed_rows: 0,
                subjects: 5,
                earlier_releases: 0,
                raw_unique_rows: 0,
            },
            step_key: sha256(b"prepared"),
            home: part("home").1,
            reused: false,
        })
    }

    async fn evaluate(&self, _: &StageContext<'_>, _: &ModelAtHome<'_>) -> Result<Judged, StageError> {
        Ok(self.judge())
    }

    async fn refine(&self, _: &StageContext<'_>, _: &ModelAtHome<'_>) -> Result<Judged, StageError> {
        Ok(self.judge())
    }

    async fn bundle(
        &self,
        context: &StageContext<'_>,
        _: &ModelAtHome<'_>,
        _: u64,
        _: &BTreeMap<String, String>,
        _: &SignPayload<'_>,
    ) -> Result<BundleFiles, StageError> {
        self.bundled.fetch_add(1, Ordering::SeqCst);
        let folder = context.folder.join("bundle");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("bundle.json"), "{}").unwrap();
        Ok(BundleFiles {
            folder,
            gates: Vec::new(),
        })
    }

    async fn scan_code(&self, _: &StageContext<'_>, _: &Path, _: &str, _: &[u8]) -> Result<(), StageError> {
        Ok(())
    }
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
    pub(crate) rows: Arc<Rows>,
    pub(crate) control: SigningKey,
    custody: MemoryCustody,
    mailbox: MemoryStore,
    ledger: Ledger,
    asked: u64,
    keeper: tokio::task::JoinHandle<()>,
}

impl World {
    /// A keeper that has met its control plane and prepared the run.
    pub(crate) async fn new() -> Self {
        let mut world = Self {
            folder: tempfile::tempdir().unwrap(),
            journal: Journals::default(),
            stores: ["hospital", "cloud", "ward"]
                .map(|name| (site(name), MemoryStore::new()))
                .into(),
            rows: Arc::default(),
            control: SigningKey::generate().unwrap(),
            custody: MemoryCustody::new(),
            mailbox: MemoryStore::new(),
            ledger: Ledger {
                tree: Tree::default(),
                seen: 0,
            },
            asked: 0,
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
        let stores = self.stores.iter();
        let keeper = Keeper::open(Setup {
            site: site("hospital"),
            sites: read_sites("sites.yaml", SITES).unwrap(),
            catalog: read_catalog("catalog.yaml", CATALOG).unwrap(),
            catalog_folder: self.folder.path().to_owned(),
            policies: PolicySet::load(&[]).unwrap(),
            folder: self.folder.path().to_owned(),
            journal: Arc::new(self.journal.clone()),
            custody: Arc::new(self.custody.clone()),
            stages: Arc::<Rows>::clone(&self.rows),
            stores: stores
                .map(|(name, store)| (name.clone(), Arc::new(store.clone()) as Arc<dyn Store>))
                .collect(),
            mailbox: Arc::new(self.mailbox.clone()),
            workers: BTreeSet::from([program()]),
            clock,
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
        let leaves = self.journal.log_leaves(0, u64::MAX).unwrap();
        leaves.iter().any(|leaf| {
            let event: Event = serde_json::from_slice(leaf).unwrap();
            event.event_type == EventType::Refused.cloud_event_type()
                && event.data.names.get("rule").map(String::as_str) == Some(rule)
        })
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
            pipeline: text(),
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
            pipeline: text(),
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

    /// Permits everything of the training for the cloud, and sends it there.
    pub(crate) async fn cross(&mut self) -> BTreeMap<String, PermitId> {
        let mut permits = BTreeMap::new();
        for (name, artifact) in self.prepare().await {
            let body = self.permit_request(&artifact, "cloud");
            let permit = self.permit(body).await;
            self.done(RequestBody::Send { permit: permit.clone() }).await;
            permits.insert(name, permit);
        }
        permits
    }

    pub(crate) fn start_request(&self, number: u32, permits: &BTreeMap<String, PermitId>) -> RequestBody {
        RequestBody::StartAttempt {
            attempt: attempt(number),
            pipeline: text(),
            site: site("cloud"),
            worker: program(),
            permits: permits.clone(),
        }
    }

    pub(crate) async fn ticket(&mut self, number: u32, permits: &BTreeMap<String, PermitId>) -> Ticket {
        let body = self.start_request(number, permits);
        let ReplyBody::Ticket { ticket } = self.done(body).await else {
            panic!("no ticket")
        };
        ticket
    }

    pub(crate) async fn fence(&mut self, number: u32) -> AttemptOutcome {
        let body = RequestBody::Fence {
            attempt: attempt(number),
            why: "lost".to_owned(),
        };
        let ReplyBody::AttemptEnded { outcome } = self.done(body).await else {
            panic!("not ended")
        };
        outcome
    }

    /// Waits for how an attempt ends.
    pub(crate) async fn ended(&mut self, number: u32) -> AttemptOutcome {
        let attempt = attempt(number);
        let ReplyBody::AttemptEnded { outcome } = self.done(RequestBody::AwaitAttempt { attempt }).await else {
            panic!("not ended")
        };
        outcome
    }

    /// Waits for the rule that ends an attempt, and finds the refusal in the site's own log.
    pub(crate) async fn burned(&mut self, number: u32) -> String {
        let AttemptOutcome::Refused { refusal } = self.ended(number).await else {
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
