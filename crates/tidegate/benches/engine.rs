//! What the platform itself costs: a pipeline of five steps that do nothing with rows.
//!
//! Everything else is real, and in one process but for the worker: journals and ledger on disk, requests and
//! answers in a mailbox, intents and permits, sealed crossings there and back, a worker that is started, tests
//! its sandbox, says hello, is granted keys and runs a command in the sandbox, a release and its deployment.

#![allow(clippy::unwrap_used, clippy::panic)] // A benchmark fails by panicking, as tests do.

#[path = "../../tidegate-keeper/tests/it/fakes.rs"]
#[allow(dead_code, reason = "some of it serves tests alone")]
mod fakes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tidegate_contracts::compute::Compute;
use tidegate_contracts::later::Later;
use tidegate_contracts::store::{Store, StoreAccess, StoreError, WorkerStores};
use tidegate_engine::{ControlKey, Engine, Progress, Setup, WorkerProgram};
use tidegate_keeper::Keeper;
use tidegate_local::{FileCustody, FolderStore, ProcessDriver, SqliteJournal, program_digest};
use tidegate_policy::PolicySet;
use tidegate_types::Digest;
use tidegate_types::files::{read_catalog, read_pipeline, read_sites};
use tidegate_types::ids::SiteName;
use tidegate_types::keeper::PipelineText;

const CATALOG: &str = "datasets:
  visits:
    site: hospital
    source: visits.csv
    subject: patient
    purposes: [quality-of-care]
    columns: {\"*\": {role: attribute}, patient: {role: identifier}}
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
  cloud:
    kind: public
    jurisdiction: US
    clearance: {level: internal}
    store: \"folder:\"
    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.10 USD/h}
    egress: {\"*\": 0.09 USD/GiB}
";

const PIPELINE: &str = "name: nothing
purpose: quality-of-care
prepare:
  from: visits
  profile: hipaa-safe-harbor
  target: readmitted
  disclosure: {to: internal, k: 5}
train:
  resources: {infra: cloud}
  run: echo 1 > \"$TIDEGATE_OUTPUT/model.onnx\"
deploy: [hospital]
";

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn site(name: &str) -> SiteName {
    SiteName::new(name).unwrap()
}

fn digest_of_program(memory: PathBuf) -> Digest {
    program_digest(Path::new(PROGRAM), Some(&memory)).unwrap()
}

/// Stores of sites are folders below one.
struct Folders(std::path::PathBuf);

impl Folders {
    fn of(&self, site: &str) -> std::path::PathBuf {
        self.0.join("sites").join(site).join("store")
    }
}

#[async_trait]
impl WorkerStores for Folders {
    async fn access(&self, site: &str, _: &str, _: u64) -> Result<StoreAccess, StoreError> {
        Ok(StoreAccess {
            address: format!("folder:{}", self.of(site).display()),
            ..StoreAccess::default()
        })
    }
}

async fn keeper(folder: &Path) -> Arc<Keeper> {
    let folders = Folders(folder.to_owned());
    let home = folder.join("sites/hospital");
    std::fs::create_dir_all(&home).unwrap();
    let memory = home.join("program.json");
    let store = |name: &str| -> (SiteName, Arc<dyn Store>) {
        (site(name), Arc::new(FolderStore::open(folders.of(name)).unwrap()))
    };
    Keeper::open(tidegate_keeper::Setup {
        site: site("hospital"),
        sites: read_sites("sites.yaml", SITES).unwrap(),
        catalog: read_catalog("catalog.yaml", CATALOG).unwrap(),
        catalog_folder: folder.to_owned(),
        policies: PolicySet::load(&[]).unwrap(),
        journal: Arc::new(SqliteJournal::open(home.join("journal.sqlite")).unwrap()),
        custody: Arc::new(FileCustody::open_or_create(home.join("custody.key"), None).unwrap()),
        stages: Arc::<fakes::Rows>::default(),
        stores: ["hospital", "cloud"].map(store).into(),
        mailbox: Arc::new(FolderStore::open_mailbox(folder.join("mailbox")).unwrap()),
        folder: home,
        workers: Later::begin(move || BTreeSet::from([digest_of_program(memory)])),
        clock: now,
        unasked: tidegate_keeper::Setup::UNASKED,
        verifiers: BTreeMap::new(),
    })
    .await
    .unwrap()
}

fn engine(folder: &Path, pipeline: &str) -> Engine {
    let control = folder.join("control");
    std::fs::create_dir_all(&control).unwrap();
    let memory = control.join("program.json");
    let driver = |name: &str| -> (SiteName, Arc<dyn Compute>) {
        let driver = ProcessDriver::open(control.join("compute").join(name)).unwrap();
        (site(name), Arc::new(driver))
    };
    let worker = WorkerProgram {
        command: vec![
            PROGRAM.to_owned(),
            "worker".to_owned(),
            "--memory".to_owned(),
            "../../program.json".to_owned(),
        ],
        digest: Later::begin(move || Ok(digest_of_program(memory))),
    };
    Engine::open(Setup {
        catalog: read_catalog("catalog.yaml", CATALOG).unwrap(),
        sites: read_sites("sites.yaml", SITES).unwrap(),
        pipeline: read_pipeline("tidegate.yaml", pipeline).unwrap(),
        text: PipelineText {
            file: "tidegate.yaml".to_owned(),
            text: pipeline.to_owned(),
            sql: None,
            code: BTreeMap::new(),
            sample: None,
        },
        policies: PolicySet::load(&[]).unwrap(),
        journal: Arc::new(SqliteJournal::open(control.join("journal.sqlite")).unwrap()),
        key: Arc::new(ControlKey::open(&control.join("control.key")).unwrap()),
        ledger_folder: control.join("ledger"),
        mailbox: Arc::new(FolderStore::open_mailbox(folder.join("mailbox")).unwrap()),
        compute: ["hospital", "cloud"].map(driver).into(),
        stores: Arc::new(Folders(folder.to_owned())),
        home_worker: worker.clone(),
        worker,
        enrol: Arc::new(|_, _| Ok(())),
        watchdog: Arc::new(|| Ok(())),
        cancelled: Arc::new(|_| false),
        progress: Arc::new(|_: &Progress| {}),
        clock: now,
    })
    .unwrap()
}

/// One run of all steps in a folder.
fn run(folder: &Path, pipeline: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let keeper = keeper(folder).await;
        let keeping = tokio::spawn(async move {
            let until = async {
                let _ = ended.await;
            };
            keeper.run(until).await.unwrap();
        });
        let engine = engine(folder, pipeline);
        let planned = engine.plan(None).await.unwrap();
        let summary = engine.run(&planned).await.unwrap();
        assert_eq!((planned.plan.tasks.len(), summary.crossings.len()), (5, 4));
        assert_eq!(summary.deployed, [site("hospital")]);
        assert_eq!(summary.reused, [""; 0]);
        let _ = end.send(());
        keeping.await.unwrap();
    });
}

fn pipelines(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("an empty pipeline of five steps");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(10));
    group.bench_function("from nothing", |bencher| {
        let folder = || tempfile::tempdir().unwrap();
        bencher.iter_batched_ref(folder, |folder| run(folder.path(), PIPELINE), BatchSize::PerIteration);
    });
    // What a changed pipeline costs where another one ran before: keys and journals are there.
    let changed = PIPELINE.replace("k: 5", "k: 6").replace("echo 1", "echo 2");
    group.bench_function("changed, all steps anew", |bencher| {
        let folder = || {
            let folder = tempfile::tempdir().unwrap();
            run(folder.path(), PIPELINE);
            folder
        };
        bencher.iter_batched_ref(folder, |folder| run(folder.path(), &changed), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, pipelines);
criterion_main!(benches);
