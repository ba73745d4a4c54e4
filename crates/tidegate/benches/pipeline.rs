//! What the platform itself costs: a whole pipeline whose steps have next to nothing to do, from the command
//! to the served bundle, and the same command again, which finds every step done.
//!
//! Everything is real: keeper and worker are processes, stores are folders, every crossing has its permit,
//! and whatever must survive a crash is written through to the disk.

#![allow(clippy::unwrap_used)] // A benchmark fails by panicking, as tests do.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

const CATALOG: &str = "datasets:
  visits:
    site: hospital
    source: visits.csv
    subject: patient
    purposes: [quality-of-care]
    least_k: 5
    columns:
      patient: {role: identifier, kind: record_number}
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
  cloud:
    kind: public
    jurisdiction: US
    clearance: {level: internal}
    store: \"folder:\"
    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.10 USD/h}
    egress: {\"*\": 0.09 USD/GiB}
";

const PIPELINE: &str = "name: next-to-nothing
purpose: quality-of-care
prepare:
  from: visits
  profile: hipaa-safe-harbor
  target: back
  split: {validation: 0.1, refine: 0.2, test: 0.2}
  disclosure: {to: internal, k: 5}
train:
  resources: {infra: cloud}
  trainer: {model: logistic, epochs: 1, batch_size: 64, seed: 1}
refine: {calibrate: platt}
deploy: [cloud]
";

/// As many people as the intervals of calibration and leak test need.
const PEOPLE: u32 = 2_000;

fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = String::from("patient,days,back\n");
    for person in 0..PEOPLE {
        let days = person * 7 % 30;
        let back = (days >= 15) != (person % 9 == 0);
        writeln!(rows, "P{person},{days},{}", u32::from(back)).unwrap();
    }
    let files = [
        ("visits.csv", rows.as_str()),
        ("catalog.yaml", CATALOG),
        ("sites.yaml", SITES),
        ("tidegate.yaml", PIPELINE),
    ];
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn run(folder: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["run", "--yes", "tidegate.yaml"])
        .current_dir(folder)
        .env_remove("TIDEGATE_HOME")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn pipelines(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a pipeline of five steps with next to nothing to do");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(15));
    group.bench_function("from an empty state folder", |bencher| {
        bencher.iter_batched_ref(project, |folder| run(folder.path()), BatchSize::PerIteration);
    });
    let done = project();
    run(done.path());
    group.bench_function("again, every step done", |bencher| bencher.iter(|| run(done.path())));
    group.finish();
}

criterion_group!(benches, pipelines);
criterion_main!(benches);
