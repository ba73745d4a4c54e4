//! The keys of a site, renewed and destroyed by a person there, with a crash at every step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use serde_json::Value;
use tidegate_contracts::fakes::MemoryCustody;
use tidegate_contracts::journal::{Batch, Journal};
use tidegate_contracts::{Custody, CustodyError};
use tidegate_keeper::{Custodian, KeeperError};
use tidegate_seal::envelope::Identity;
use tidegate_types::event::Event;
use tidegate_types::ids::ArtifactId;
use tidegate_types::keeper::{AttemptOutcome, RequestBody};

use crate::world::{World, clock, site};

/// A custody that is out of reach once it was asked so often.
#[derive(Debug)]
struct Failing {
    custody: MemoryCustody,
    left: AtomicU64,
}

impl Failing {
    fn asked(&self) -> Result<(), CustodyError> {
        let less = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        less.map(|_| ()).map_err(|_| CustodyError::Unreachable {
            what: "asking".to_owned(),
            why: "the test says so".to_owned(),
        })
    }
}

#[async_trait]
impl Custody for Failing {
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError> {
        self.asked()?;
        self.custody.wrap(key, context).await
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        self.asked()?;
        self.custody.unwrap_key(wrapped, context).await
    }

    async fn rotate(&self) -> Result<u64, CustodyError> {
        self.asked()?;
        self.custody.rotate().await
    }

    async fn retire(&self, before: u64) -> Result<(), CustodyError> {
        self.asked()?;
        self.custody.retire(before).await
    }
}

/// A custody whose answers are damaged on their way: what it gives opens as another key.
#[derive(Debug)]
struct Damaged(MemoryCustody);

#[async_trait]
impl Custody for Damaged {
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError> {
        let mut other = *key;
        other[7] ^= 1;
        self.0.wrap(&other, context).await
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        self.0.unwrap_key(wrapped, context).await
    }

    async fn rotate(&self) -> Result<u64, CustodyError> {
        self.0.rotate().await
    }

    async fn retire(&self, before: u64) -> Result<(), CustodyError> {
        self.0.retire(before).await
    }
}

pub(crate) fn custodian(world: &World, left: u64) -> Custodian {
    let custody = Failing {
        custody: world.custody.clone(),
        left: AtomicU64::new(left),
    };
    custodian_by(world, Arc::new(custody))
}

fn custodian_by(world: &World, custody: Arc<dyn Custody>) -> Custodian {
    let folder = world.folder.path().to_owned();
    let journal = Arc::new(world.journal.clone());
    Custodian::new(site("hospital"), folder, journal, custody, clock)
}

/// The wrapped keys of permits, with the artifacts that they open.
fn wrapped(world: &World) -> Vec<(String, ArtifactId, Vec<u8>)> {
    let permits = world.journal.scan("permits", "").unwrap();
    let permits = permits.into_iter().map(|(id, bytes)| {
        let record: Value = serde_json::from_slice(&bytes).unwrap();
        let artifact = serde_json::from_value(record["artifact"].clone()).unwrap();
        let wrapped = hex::decode(record["wrapped_key"].as_str().unwrap()).unwrap();
        (id, artifact, wrapped)
    });
    permits.collect()
}

/// The data keys that open now, by permit.
async fn opening(world: &World) -> Vec<(String, [u8; 32])> {
    let mut keys = Vec::new();
    for (id, _, wrapped) in wrapped(world) {
        if let Ok(key) = world.custody.unwrap_key(&wrapped, &id).await {
            keys.push((id, key));
        }
    }
    keys
}

fn recorded(world: &World, name: &str) -> usize {
    let leaves = world.journal.log_leaves(0, u64::MAX).unwrap();
    let events = leaves.iter().map(|leaf| serde_json::from_slice::<Event>(leaf).unwrap());
    events
        .filter(|event| event.event_type == format!("dev.tidegate.{name}"))
        .count()
}

#[tokio::test]
async fn a_rotation_that_breaks_off_anywhere_loses_no_key_and_goes_on() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    world.ticket(1, &permits).await;
    let before = opening(&world).await;
    assert_eq!(before.len(), permits.len());
    let old = wrapped(&world);
    let mut broken = 0;
    for left in 0.. {
        match custodian(&world, left).rotate().await {
            Ok(rotated) => {
                // The site's own keys, each permit's, and the ticket's.
                assert_eq!(rotated.wrapped_keys, permits.len() as u64 + 2);
                break;
            }
            Err(KeeperError::Refused(refusal)) => panic!("{refusal}"),
            Err(_) => broken += 1,
        }
        assert_eq!(opening(&world).await, before, "after {left} steps");
        assert_eq!(recorded(&world, "keys-rotated"), 0);
        world.restart().await;
    }
    assert!(broken > 8, "{broken}");
    assert_eq!(opening(&world).await, before);
    assert_eq!(recorded(&world, "keys-rotated"), 1);
    for (id, _, wrapped) in old {
        assert!(
            world.custody.unwrap_key(&wrapped, &id).await.is_err(),
            "a destroyed key opens"
        );
    }
    world.restart().await;
    for permit in permits.into_values() {
        world.done(RequestBody::Send { permit }).await;
    }
}

#[tokio::test]
async fn keys_that_are_destroyed_never_come_back() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let artifacts = world.prepare().await;
    let backup = world.journal.scan("permits", "").unwrap();
    let (before, old) = (opening(&world).await, wrapped(&world));
    let train = artifacts["train"];
    let kept = custodian(&world, u64::MAX).artifacts().unwrap();
    let kept = kept.iter().find(|kept| kept.artifact == train).unwrap();
    assert_eq!(kept.sites, [site("cloud")].into());
    assert_eq!(
        (kept.permits.clone(), kept.shredded),
        (vec![permits["train"].clone()], None)
    );
    assert!(kept.grantees.is_empty(), "nobody said hello");
    let notes = world.folder.path().join("transfers").join(permits["train"].as_str());
    assert!(!notes.exists(), "notes of a crossing hold keys of shards");
    // A backup of the folder may still have them.
    std::fs::create_dir_all(&notes).unwrap();
    std::fs::write(notes.join("left.resume"), "keys").unwrap();

    for left in 0.. {
        let shredded = custodian(&world, left).shred(&train).await;
        let opens = opening(&world).await;
        // From the first step on, whatever comes after.
        let others: Vec<_> = before
            .iter()
            .filter(|(id, _)| *id != permits["train"].as_str())
            .cloned()
            .collect();
        assert_eq!(opens, others, "after {left} steps");
        if let Ok(shredded) = shredded {
            assert_eq!(shredded.shredded, Some(clock()));
            assert!(left > 4);
            break;
        }
        assert_eq!(recorded(&world, "shredded"), 0);
        world.restart().await;
    }
    assert_eq!(recorded(&world, "shredded"), 1);
    assert!(!notes.exists());
    for (id, _, wrapped) in old {
        assert!(world.custody.unwrap_key(&wrapped, &id).await.is_err(), "a backup opens");
    }
    // Again: the same answer, and nothing is renewed for it.
    let again = custodian(&world, 0).shred(&train).await.unwrap();
    assert_eq!(again.shredded, Some(clock()));
    assert_eq!(recorded(&world, "shredded"), 1);

    world.restart().await;
    let body = world.permit_request(&train, "cloud");
    assert_eq!(world.refused(body).await, "artifact-shredded");
    // A journal from before, put back: what it holds was wrapped by a key that is no more.
    let restored = backup.into_iter().fold(Batch::default(), |batch, (key, bytes)| {
        batch.set("permits", &key, bytes)
    });
    world.journal.commit(&restored).unwrap();
    assert_eq!(opening(&world).await, []);
    let error = custodian(&world, u64::MAX).rotate().await.unwrap_err().to_string();
    assert!(error.contains("cannot be opened"), "{error}");
}

#[tokio::test]
async fn no_key_is_destroyed_while_the_new_one_gives_what_opens_as_another() {
    let mut world = World::new().await;
    world.cross().await;
    let before = opening(&world).await;
    let damaged = custodian_by(&world, Arc::new(Damaged(world.custody.clone())));
    let error = damaged.rotate().await.unwrap_err().to_string();
    assert!(error.contains("opens as another key"), "{error}");
    assert_eq!(opening(&world).await, before);
    world.restart().await;
    custodian(&world, u64::MAX).rotate().await.unwrap();
    assert_eq!(opening(&world).await, before);
}

/// A run that was interrupted asks again for the tickets of its attempts, and finds how they ended.
#[tokio::test]
async fn an_attempt_that_ended_before_a_rotation_is_found_ended_after_it() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let before = world.ticket(1, &permits).await;
    world.fence(1).await;
    custodian(&world, u64::MAX).rotate().await.unwrap();
    world.restart().await;
    let after = world.ticket(1, &permits).await;
    assert!(before.secret == after.secret, "it is another ticket");
    assert!(matches!(world.ended(1).await, AttemptOutcome::Fenced { .. }));
}

/// A grant that was committed and not delivered when the keeper died is not delivered after a destruction.
#[tokio::test]
async fn an_attempt_that_waits_for_destroyed_keys_is_fenced() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    world.ticket(1, &permits).await;
    let train = world.prepare().await["train"];
    custodian(&world, u64::MAX).shred(&train).await.unwrap();
    assert_eq!(recorded(&world, "fenced"), 1);
    world.restart().await;
    match world.ended(1).await {
        AttemptOutcome::Fenced { why } => assert_eq!(why, "shredded"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn after_a_restoration_keys_are_renewed_and_destroyed_as_before() {
    let mut world = World::new().await;
    let last = world.prepare().await["validation"];
    let body = world.permit_request(&last, "cloud");
    world.permit(body).await;
    let identity = Identity::generate();
    let backup = custodian(&world, u64::MAX).backup(&identity.recipient()).await.unwrap();
    // The other permits are younger than the backup: nobody can open their keys any more.
    let permits = world.cross().await;
    world.ticket(1, &permits).await;
    world.custody = MemoryCustody::new();
    let custodian = custodian(&world, u64::MAX);
    let restored = custodian.restore(&backup.sealed, &identity, &[].into()).await.unwrap();
    assert_eq!((restored.data_keys, restored.lost), (1, permits.len() as u64 - 1));
    assert_eq!(opening(&world).await.len(), 1);
    assert_eq!(custodian.rotate().await.unwrap().wrapped_keys, 2);
    assert_eq!(custodian.backup(&identity.recipient()).await.unwrap().data_keys, 1);
    assert!(custodian.shred(&last).await.unwrap().shredded.is_some());
    assert_eq!(opening(&world).await, []);
    world.restart().await;
    match world.ended(1).await {
        AttemptOutcome::Fenced { why } => assert_eq!(why, "lost"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_never_crossed_has_no_keys_to_destroy() {
    let world = World::new().await;
    let unknown = tidegate_seal::digest::sha256(b"unknown");
    match custodian(&world, u64::MAX).shred(&unknown).await.unwrap_err() {
        KeeperError::Refused(refusal) => assert_eq!(refusal.rule, "unknown-artifact"),
        other => panic!("{other}"),
    }
    assert_eq!(recorded(&world, "shredded"), 0);
}

#[tokio::test]
async fn a_backup_opens_what_crossed_after_custody_is_lost_but_nothing_that_was_destroyed() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let before = opening(&world).await;
    let identity = Identity::generate();
    let backup = custodian(&world, u64::MAX).backup(&identity.recipient()).await.unwrap();
    assert_eq!(backup.data_keys, permits.len() as u64);
    let train = world.prepare().await["train"];
    custodian(&world, u64::MAX).shred(&train).await.unwrap();
    let others: Vec<_> = before
        .into_iter()
        .filter(|(id, _)| *id != permits["train"].as_str())
        .collect();

    // Nothing is lost yet, and nothing is put back.
    let restore = |world: &World, custody: MemoryCustody| {
        let folder = world.folder.path().to_owned();
        Custodian::new(
            site("hospital"),
            folder,
            Arc::new(world.journal.clone()),
            Arc::new(custody),
            clock,
        )
    };
    let none = [].into();
    let restored = restore(&world, world.custody.clone())
        .restore(&backup.sealed, &identity, &none)
        .await
        .unwrap();
    assert_eq!(
        (
            restored.site_keys,
            restored.data_keys,
            restored.destroyed,
            restored.lost
        ),
        (false, 0, 1, 0)
    );

    world.custody = MemoryCustody::new();
    assert_eq!(opening(&world).await, []);
    let custodian = restore(&world, world.custody.clone());
    let stranger = Identity::generate();
    assert!(custodian.restore(&backup.sealed, &stranger, &none).await.is_err());
    let restored = custodian.restore(&backup.sealed, &identity, &none).await.unwrap();
    assert_eq!(
        (restored.site_keys, restored.data_keys),
        (true, permits.len() as u64 - 1)
    );
    assert_eq!((restored.destroyed, restored.lost), (1, 0));
    assert_eq!(opening(&world).await, others);
    world.restart().await;
    for (name, permit) in permits {
        if name != "train" {
            world.done(RequestBody::Send { permit }).await;
        }
    }
}

#[tokio::test]
async fn a_journal_from_before_a_destruction_learns_of_it_from_the_ledger() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let identity = Identity::generate();
    let backup = custodian(&world, u64::MAX).backup(&identity.recipient()).await.unwrap();
    let train = world.prepare().await["train"];
    world.custody = MemoryCustody::new();
    let custodian = custodian(&world, u64::MAX);
    let restored = custodian
        .restore(&backup.sealed, &identity, &[train].into())
        .await
        .unwrap();
    assert_eq!((restored.data_keys, restored.destroyed), (permits.len() as u64 - 1, 1));
    world.restart().await;
    let body = world.permit_request(&train, "cloud");
    assert_eq!(world.refused(body).await, "artifact-shredded");
}
