//! A keeper that says yes, a driver that starts nothing, a clock that the test moves.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tidegate_contracts::compute::Compute;
use tidegate_contracts::fakes::{FakeCompute, MemoryJournal, MemoryStore};
use tidegate_contracts::journal::Journal;
use tidegate_contracts::store::{ObjectName, Store, StoreAccess, StoreError, StoreExt, WorkerStores};
use tidegate_engine::{ControlKey, Engine, EngineError, Planned, Progress, Setup, Summary, WorkerProgram};
use tidegate_policy::PolicySet;
use tidegate_seal::digest::sha256;
use tidegate_seal::dsse;
use tidegate_seal::envelope::{Identity, open};
use tidegate_seal::sign::SigningKey;
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::event::Event;
use tidegate_types::files::{read_catalog, read_pipeline, read_sites};
use tidegate_types::ids::{PermitId, SiteName};
use tidegate_types::keeper::{
    ArtifactSummary, AttemptOutcome, Copied, Figure, Outcome, PipelineText, QualitySummary, REPLY_PAYLOAD, Reply,
    ReplyBody, Request, RequestBody,
};
use tidegate_types::label::{Label, Level};
use tidegate_types::message::{Attempt, Ticket};
use tidegate_types::permit::Envelope;
use tidegate_types::report::{LabelReport, RiskReport};
use tidegate_types::{Refusal, to_canonical_json};

const CATALOG: &str = "datasets:
  admissions:
    site: hospital
    source: admissions.csv
    subject: patient_id
    purposes: [care]
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
    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.08 USD/h}
    egress: {\"*\": 0.09 USD/GiB}
  cloud:
    kind: public
    jurisdiction: US
    clearance: {level: internal}
    store: \"folder:\"
    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 1.00 USD/h}
    network: {nodes: allow}
    egress: {\"*\": 0.09 USD/GiB}
  ward:
    kind: edge
    jurisdiction: US
    clearance: {level: internal}
    store: \"folder:\"
";

pub(crate) const PIPELINE: &str = "name: readmission
purpose: care
prepare:
  from: admissions
  profile: hipaa-safe-harbor
  target: readmitted
  split: {validation: 0.1, refine: 0.1, test: 0.2}
  disclosure: {to: internal}
train:
  resources: {infra: cloud}
  trainer: {model: logistic, epochs: 10, batch_size: 32}
refine: {calibrate: platt}
deploy: [hospital, ward]
";

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(1_800_000_000) };
}

/// The time that the engine is told.
pub(crate) fn now() -> u64 {
    NOW.with(Cell::get)
}

/// Lets time pass.
pub(crate) fn pass(seconds: u64) {
    NOW.with(|now| now.set(now.get() + seconds));
}

/// How the keeper says that an attempt ended; nothing while it goes on.
type Ends = Box<dyn FnMut(&Attempt) -> Option<AttemptOutcome> + Send>;

/// What a fake keeper was asked, and what it says.
pub(crate) struct Keeper {
    key: SigningKey,
    mailbox: MemoryStore,
    /// The kinds of requests that were answered, in order.
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) identity: Identity,
    pub(crate) renewed: Mutex<Vec<(Attempt, BTreeMap<String, String>)>>,
    /// On which machines attempts were said to be.
    pub(crate) machines: Mutex<Vec<(u32, String)>>,
    pub(crate) fenced: Mutex<Vec<(Attempt, String)>>,
    pub(crate) ends: Mutex<Ends>,
    /// Bytes of the prepared training rows.
    pub(crate) bytes: AtomicU64,
    /// Whether it refuses to release.
    pub(crate) gate_fails: AtomicBool,
    /// Whether bringing a checkpoint home goes wrong.
    pub(crate) fetch_fails: AtomicBool,
    /// What it says of copies, one question after the other; of none afterwards.
    pub(crate) copies: Mutex<VecDeque<Result<Option<u64>, &'static str>>>,
    /// Whether fencing goes wrong.
    pub(crate) fence_fails: AtomicBool,
    /// Types of the leaves that stood in the ledger when a permit or a release was asked for.
    pub(crate) intents: Mutex<Vec<String>>,
}

fn label() -> Label {
    Label::of(Level::Internal)
}

fn summary(name: &str, kind: ArtifactKind, bytes: u64) -> ArtifactSummary {
    ArtifactSummary {
        artifact: sha256(name.as_bytes()),
        kind,
        name: name.to_owned(),
        label: label(),
        bytes,
    }
}

/// An attempt that gave a model.
pub(crate) fn accepted() -> AttemptOutcome {
    AttemptOutcome::Accepted {
        model: summary("model", ArtifactKind::Model, 10),
        seconds: 1,
        bytes: 20,
        phases: BTreeMap::new(),
    }
}

fn labels() -> LabelReport {
    LabelReport {
        sql: "select 1".to_owned(),
        release: label(),
        columns: Vec::new(),
        row_label: label(),
        row_reads: Vec::new(),
        warnings: Vec::new(),
        refusals: Vec::new(),
    }
}

fn quality() -> QualitySummary {
    let figure = Figure {
        value: 0.8,
        low: 0.7,
        high: 0.9,
    };
    QualitySummary {
        figures: BTreeMap::from([("roc_auc".to_owned(), figure)]),
        rows: 100,
        subjects: 100,
        confusion: None,
        subgroups: BTreeMap::new(),
    }
}

impl Keeper {
    /// Answers requests until it is dropped with its runtime.
    async fn answer(self: Arc<Self>) {
        loop {
            for object in self.mailbox.list_all("in/", 1000).await.unwrap() {
                let id = object.name.as_str().strip_prefix("in/").unwrap().to_owned();
                let answer = ObjectName::new(format!("out/{id}")).unwrap();
                if self.mailbox.head(&answer).await.is_ok() {
                    continue;
                }
                let Ok(bytes) = self.mailbox.get(&object.name, 1 << 20).await else {
                    continue;
                };
                let payload = dsse::peek(&dsse::from_bytes(&bytes).unwrap()).unwrap();
                let request: Request = serde_json::from_slice(&payload).unwrap();
                let Some(outcome) = self.outcome(&request.body) else {
                    continue;
                };
                self.asked.lock().unwrap().push(kind(&request.body));
                let reply = Reply {
                    id,
                    request: sha256(&payload),
                    outcome,
                };
                let envelope = dsse::sign(&self.key, REPLY_PAYLOAD, &to_canonical_json(&reply).unwrap());
                let body = Bytes::from(dsse::to_bytes(&envelope).unwrap());
                self.mailbox.put_new(&answer, body).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn outcome(&self, body: &RequestBody) -> Option<Outcome> {
        let done = |body| Some(Outcome::Done(Box::new(body)));
        match body {
            RequestBody::Identify { .. } => done(ReplyBody::Identity {
                signing_key: self.key.public().to_base64(),
                checkpoint: String::new(),
            }),
            RequestBody::Leaves { .. } => done(ReplyBody::Leaves { leaves: Vec::new() }),
            RequestBody::Cosign { .. } => done(ReplyBody::Cosigned {
                checkpoint: String::new(),
            }),
            RequestBody::Analyse { .. } => done(ReplyBody::Analysis {
                labels: labels(),
                source_bytes: 1 << 20,
                catalog: sha256(b"catalog"),
                policies: sha256(b"policies"),
            }),
            RequestBody::Prepare { .. } => {
                let bytes = self.bytes.load(Ordering::SeqCst);
                let inputs = [
                    ("train", ArtifactKind::Dataset, bytes),
                    ("validation", ArtifactKind::Dataset, 100),
                    ("code", ArtifactKind::Code, 10),
                ];
                done(ReplyBody::Prepared {
                    inputs: inputs
                        .into_iter()
                        .map(|(name, kind, bytes)| (name.to_owned(), summary(name, kind, bytes)))
                        .collect(),
                    labels: labels(),
                    risk: RiskReport {
                        quasi_identifiers: Vec::new(),
                        sensitive: Vec::new(),
                        k: 7,
                        k_before: 1,
                        l: None,
                        groups: 3,
                        rows: 100,
                        suppressed_rows: 2,
                        subjects: 100,
                        earlier_releases: 0,
                        raw_unique_rows: 90,
                    },
                    reused: false,
                })
            }
            RequestBody::SignPermit { artifact, intent, .. } => {
                let leaf: Event = serde_json::from_str(&intent.leaf).unwrap();
                self.intents.lock().unwrap().push(leaf.event_type);
                done(ReplyBody::Permit {
                    permit: PermitId::new(format!("p-{}", artifact.short())).unwrap(),
                    envelope: Envelope {
                        payload: String::new(),
                        payload_type: String::new(),
                        signatures: Vec::new(),
                    },
                    checkpoint: String::new(),
                })
            }
            RequestBody::Send { .. } => {
                let mut copies = self.copies.lock().unwrap();
                match copies.pop_front().unwrap_or(Ok(None)) {
                    Ok(copied) => done(ReplyBody::Sent {
                        bytes: 1000,
                        copied: copied.map(|bytes| Copied {
                            from: SiteName::new("elsewhere").unwrap(),
                            bytes,
                        }),
                    }),
                    Err(why) => Some(Outcome::Failed(why.to_owned())),
                }
            }
            RequestBody::StartAttempt {
                attempt, site, worker, ..
            } => done(ReplyBody::Ticket {
                ticket: Ticket {
                    attempt: attempt.clone(),
                    site: site.clone(),
                    store: "folder:".to_owned(),
                    credentials: BTreeMap::new(),
                    organisation: "st-mary".to_owned(),
                    secret: "00".repeat(32),
                    worker: *worker,
                    owner: SiteName::new("hospital").unwrap(),
                    owner_key: self.key.public().to_base64(),
                    expires: now() + 600,
                },
                recipient: self.identity.recipient(),
            }),
            RequestBody::RenewAccess { attempt, sealed } => {
                let opened = open(&self.identity, &STANDARD.decode(sealed).unwrap()).unwrap();
                let credentials: BTreeMap<String, String> = serde_json::from_slice(&opened).unwrap();
                self.renewed.lock().unwrap().push((attempt.clone(), credentials));
                done(ReplyBody::Noted)
            }
            RequestBody::Machine { attempt, machine } => {
                self.machines.lock().unwrap().push((attempt.attempt, machine.clone()));
                done(ReplyBody::Noted)
            }
            RequestBody::AwaitAttempt { attempt } => {
                let fenced = self.fenced.lock().unwrap();
                if let Some((_, why)) = fenced.iter().find(|(fenced, _)| fenced == attempt) {
                    let outcome = AttemptOutcome::Fenced { why: why.clone() };
                    return done(ReplyBody::AttemptEnded { outcome });
                }
                drop(fenced);
                let ended = (self.ends.lock().unwrap())(attempt)?;
                done(ReplyBody::AttemptEnded { outcome: ended })
            }
            RequestBody::FetchCheckpoint { .. } if self.fetch_fails.load(Ordering::SeqCst) => {
                Some(Outcome::Failed("the store does not answer".to_owned()))
            }
            RequestBody::FetchCheckpoint { .. } => done(ReplyBody::Checkpoint { checkpoint: None }),
            RequestBody::Fence { .. } if self.fence_fails.load(Ordering::SeqCst) => {
                Some(Outcome::Failed("out of reach".to_owned()))
            }
            RequestBody::Fence { attempt, why } => {
                self.fenced.lock().unwrap().push((attempt.clone(), why.clone()));
                done(ReplyBody::AttemptEnded {
                    outcome: AttemptOutcome::Fenced { why: why.clone() },
                })
            }
            RequestBody::Evaluate { .. } => done(ReplyBody::Evaluated {
                quality: quality(),
                raw: None,
                gates: Vec::new(),
            }),
            RequestBody::Refine { .. } => done(ReplyBody::Refined {
                quality: quality(),
                gates: Vec::new(),
            }),
            RequestBody::Release { .. } if self.gate_fails.load(Ordering::SeqCst) => Some(Outcome::Refused(Refusal {
                rule: "gate-failed".to_owned(),
                what: "releasing the model".to_owned(),
                why: "it is not good enough".to_owned(),
                fix: "improve it".to_owned(),
            })),
            RequestBody::Release { intent, .. } => {
                let leaf: Event = serde_json::from_str(&intent.leaf).unwrap();
                self.intents.lock().unwrap().push(leaf.event_type);
                done(ReplyBody::Released {
                    bundle: summary("bundle", ArtifactKind::Bundle, 500),
                    version: 1,
                    manifest: sha256(b"bundle.json"),
                    gates: Vec::new(),
                    checkpoint: String::new(),
                })
            }
            RequestBody::Deploy { to, .. } => done(ReplyBody::Deployed { site: to.clone() }),
        }
    }
}

/// The word that a request's kind is on the wire.
fn kind(body: &RequestBody) -> String {
    serde_json::to_value(body).unwrap()["kind"].as_str().unwrap().to_owned()
}

/// An engine's surroundings, which outlive it.
pub(crate) struct World {
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) compute: FakeCompute,
    pub(crate) stores: Arc<Stores>,
    pub(crate) journal: MemoryJournal,
    pub(crate) told: Arc<Mutex<Vec<Progress>>>,
    pub(crate) cancelled: Arc<AtomicBool>,
    pub(crate) folder: PathBuf,
}

/// A store for every site, whose credentials end when a test says so.
#[derive(Default)]
pub(crate) struct Stores {
    pub(crate) lasts: Mutex<Option<Duration>>,
    /// How often somebody was let in.
    pub(crate) given: AtomicU64,
}

#[async_trait]
impl WorkerStores for Stores {
    async fn access(&self, site: &str, _: &str, _: u64) -> Result<StoreAccess, StoreError> {
        let given = self.given.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(StoreAccess {
            address: format!("folder:/{site}"),
            credentials: [("TOKEN".to_owned(), given.to_string())].into(),
            lasts: *self.lasts.lock().unwrap(),
        })
    }
}

impl World {
    /// A world whose attempts end at once with a model; `name` is the test's own.
    pub(crate) fn new(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("engine-{name}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Self {
            keeper: Arc::new(Keeper {
                key: SigningKey::generate().unwrap(),
                mailbox: MemoryStore::new(),
                asked: Mutex::default(),
                fenced: Mutex::default(),
                identity: Identity::generate(),
                renewed: Mutex::default(),
                machines: Mutex::default(),
                ends: Mutex::new(Box::new(|_| Some(accepted()))),
                bytes: AtomicU64::new(1000),
                gate_fails: AtomicBool::new(false),
                fetch_fails: AtomicBool::new(false),
                copies: Mutex::default(),
                fence_fails: AtomicBool::new(false),
                intents: Mutex::default(),
            }),
            compute: FakeCompute::new(),
            stores: Arc::default(),
            journal: MemoryJournal::new(),
            told: Arc::default(),
            cancelled: Arc::default(),
            folder,
        }
    }

    pub(crate) fn ends(&self, ends: impl FnMut(&Attempt) -> Option<AttemptOutcome> + Send + 'static) {
        *self.keeper.ends.lock().unwrap() = Box::new(ends);
    }

    /// Does something with an engine over a pipeline, beside a keeper that answers.
    pub(crate) fn with<T>(&self, pipeline: &str, work: impl AsyncFnOnce(&Engine) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::spawn(Arc::clone(&self.keeper).answer());
            work(&self.engine(pipeline)).await
        })
    }

    /// Plans and runs a pipeline to its end.
    pub(crate) fn run(&self, pipeline: &str) -> Result<Summary, EngineError> {
        self.with(pipeline, async |engine| {
            let planned: Planned = engine.plan(None).await?;
            engine.run(&planned).await
        })
    }

    pub(crate) fn engine(&self, pipeline: &str) -> Engine {
        let told = Arc::clone(&self.told);
        let cancelled = Arc::clone(&self.cancelled);
        let sites = read_sites("sites.yaml", SITES).unwrap();
        let driver: Arc<dyn Compute> = Arc::new(self.compute.clone());
        let drivers = ["hospital", "cloud"].map(|site| (SiteName::new(site).unwrap(), Arc::clone(&driver)));
        Engine::open(Setup {
            catalog: read_catalog("catalog.yaml", CATALOG).unwrap(),
            stores: Arc::clone(&self.stores) as Arc<dyn WorkerStores>,
            sites,
            pipeline: read_pipeline("tidegate.yaml", pipeline).unwrap(),
            text: PipelineText {
                file: "tidegate.yaml".to_owned(),
                text: pipeline.to_owned(),
                sql: None,
                code: BTreeMap::new(),
                sample: None,
            },
            policies: PolicySet::load(&[]).unwrap(),
            journal: Arc::new(self.journal.clone()),
            key: Arc::new(ControlKey::open(&self.folder.join("control.key")).unwrap()),
            ledger_folder: self.folder.join("ledger"),
            mailbox: Arc::new(self.keeper.mailbox.clone()),
            compute: drivers.into_iter().collect(),
            home_worker: worker("at home"),
            worker: worker("elsewhere"),
            enrol: Arc::new(|_, _| Ok(())),
            watchdog: Arc::new(|| Ok(())),
            cancelled: Arc::new(move |_| cancelled.load(Ordering::SeqCst)),
            progress: Arc::new(move |progress: &Progress| told.lock().unwrap().push(progress.clone())),
            clock: now,
        })
        .unwrap()
    }

    /// What was asked of the keeper, without what comes with every run.
    pub(crate) fn asked(&self) -> Vec<String> {
        let asked = self.keeper.asked.lock().unwrap();
        let always = ["identify", "analyse", "leaves", "cosign"];
        asked
            .iter()
            .filter(|kind| !always.contains(&kind.as_str()))
            .cloned()
            .collect()
    }

    /// Types of the ledger's entries.
    pub(crate) fn ledger(&self) -> Vec<Event> {
        let size = self.journal.log_size().unwrap();
        let leaves = self.journal.log_leaves(0, size).unwrap();
        leaves
            .iter()
            .map(|leaf| serde_json::from_slice(leaf).unwrap())
            .collect()
    }
}

/// A program that is told apart by its name.
fn worker(name: &str) -> WorkerProgram {
    WorkerProgram {
        command: vec![name.to_owned()],
        digest: Ok(sha256(name.as_bytes())).into(),
    }
}
