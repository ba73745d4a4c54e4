use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_contracts::conformance::{self, ComputeSubject};
use tidegate_contracts::fakes::{FakeCompute, MemoryCustody, MemoryJournal, MemoryStore};
use tidegate_contracts::{ComputeError, JobState};

/// Opens by name: the same name gives a clone of the same fake.
fn by_name<T: Clone>(new: impl Fn() -> T) -> impl Fn(&str) -> Arc<T> {
    let known: RefCell<BTreeMap<String, T>> = RefCell::default();
    move |name: &str| Arc::new(known.borrow_mut().entry(name.to_owned()).or_insert_with(&new).clone())
}

#[tokio::test]
async fn memory_store_conforms() {
    let open = by_name(MemoryStore::new);
    conformance::store(&|name| open(name)).await.unwrap();
}

#[test]
fn memory_journal_conforms() {
    let open = by_name(MemoryJournal::new);
    conformance::journal(&|name| open(name)).unwrap();
}

#[tokio::test]
async fn memory_custody_conforms() {
    let open = by_name(MemoryCustody::new);
    conformance::custody(&|name| open(name)).await.unwrap();
}

#[tokio::test]
async fn fake_compute_conforms() {
    let open = by_name(|| {
        FakeCompute::with(|request| match request.command.first().map(String::as_str) {
            None => Err(ComputeError::Invalid {
                id: request.id.clone(),
                why: "it has no command".to_owned(),
            }),
            Some("runs") => Ok(JobState::Running),
            Some(code) => Ok(JobState::Ended(code.parse().ok())),
        })
    });
    let subject = ComputeSubject {
        open: &|name| open(name),
        ends: &|code, _| vec![code.to_string()],
        runs: vec!["runs".to_owned()],
        patience: Duration::from_secs(5),
        knows_exit_codes: true,
    };
    conformance::compute(&subject).await.unwrap();
}
