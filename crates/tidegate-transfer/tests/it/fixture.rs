//! One hospital, one cloud, one artifact between them.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tempfile::TempDir;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_contracts::{ObjectInfo, ObjectName, Pace, Store, StoreError};
use tidegate_seal::digest::sha256;
use tidegate_seal::dsse::payload_digest;
use tidegate_seal::key::DataKey;
use tidegate_seal::packing::manifest_digest;
use tidegate_seal::permit::sign_permit;
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_transfer::{
    Crossing, Description, Expected, Gate, KnownShards, PermitCheck, Permitted, Received, Sent, TransferError,
    describe, receive, send,
};
use tidegate_types::ids::{PermitId, Purpose};
use tidegate_types::permit::{Envelope, Evidence, Permit, SiteReference, StandingSlot};
use tidegate_types::{ArtifactKind, Digest, Label, Level, Manifest, Refusal, RunId, SiteName, TaskName};

pub(crate) const NOW: u64 = 1_000_000;
pub(crate) const ORGANISATION: &str = "st-mary";
pub(crate) const DIGEST_KEY: [u8; 32] = [9; 32];

pub(crate) fn site(name: &str) -> SiteReference {
    SiteReference {
        site: SiteName::new(name).unwrap(),
        definition: sha256(name.as_bytes()),
    }
}

pub(crate) fn no_progress(_: u64) {}

/// Everything that a crossing needs, with one folder for all of it.
pub(crate) struct World {
    pub(crate) folder: PathBuf,
    _temporary: Option<TempDir>,
    pub(crate) owner: SigningKey,
    pub(crate) public: VerifyingKey,
    pub(crate) data_key: DataKey,
    pub(crate) from: SiteReference,
    pub(crate) to: SiteReference,
    pub(crate) run: RunId,
    pub(crate) gate: Box<dyn Fn() -> Gate + Send + Sync>,
}

impl World {
    pub(crate) fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut world = Self::at(temporary.path());
        world._temporary = Some(temporary);
        world
    }

    /// A world in a folder that several processes share: keys are the same in all of them.
    pub(crate) fn at(folder: &Path) -> Self {
        let owner = SigningKey::from_seed(&[3; 32]).unwrap();
        let world = Self {
            folder: folder.to_owned(),
            _temporary: None,
            public: owner.public(),
            owner,
            data_key: DataKey::from_bytes([5; 32]),
            from: site("hospital"),
            to: site("cloud"),
            run: RunId::new("run-1").unwrap(),
            gate: Box::new(|| Gate::Open),
        };
        std::fs::create_dir_all(world.source()).unwrap();
        world
    }

    /// A world with a few small files.
    pub(crate) fn small() -> Self {
        let world = Self::new();
        world.write("train.csv", &b"age,died\n70,1\n".repeat(1000));
        world.write("deep/er/empty", b"");
        world.write("deep/notes.bin", &[0, 255, 13, 10]);
        world
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(crate) fn destination(&self) -> PathBuf {
        self.folder.join("received/train")
    }

    pub(crate) fn write(&self, path: &str, content: &[u8]) {
        let path = self.source().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn description(&self) -> Description {
        Description {
            kind: ArtifactKind::Dataset,
            name: "admissions/train".to_owned(),
            organisation: ORGANISATION.to_owned(),
            owner: self.from.site.clone(),
            label: Label::of(Level::Internal),
            lowered_from: Some(Label::of(Level::Restricted)),
            columns: vec!["age".to_owned(), "died".to_owned()],
            lineage: BTreeSet::new(),
            task: TaskName::new("prepare").unwrap(),
            step_key: sha256(b"step"),
        }
    }

    pub(crate) fn manifest(&self) -> Manifest {
        describe(&self.source(), self.description(), &DIGEST_KEY).unwrap()
    }

    pub(crate) fn permit(&self) -> Permit {
        Permit {
            id: PermitId::new("permit-1").unwrap(),
            organisation: ORGANISATION.to_owned(),
            from: self.from.clone(),
            to: self.to.clone(),
            copied_from: None,
            pipeline: sha256(b"pipeline"),
            policies: sha256(b"policies"),
            code: None,
            worker: None,
            label: Label::of(Level::Internal),
            purpose: Purpose::new("quality-of-care").unwrap(),
            run: self.run.clone(),
            task: TaskName::new("train").unwrap(),
            attempts: 3,
            evidence: Evidence {
                sql: None,
                label_report: None,
                k: Some(5),
                l: None,
                suppressed_rows: None,
            },
            waivers: Vec::new(),
            approvals: Vec::new(),
            not_before: NOW - 10,
            expires: NOW + 1000,
            byte_limit: 1 << 30,
            revocation_epoch: 4,
            checkpoint: String::new(),
            standing: vec![StandingSlot {
                slot: "output".to_owned(),
                from: self.to.site.clone(),
                to: self.from.site.clone(),
                label: Label::of(Level::Internal),
                byte_limit: 1 << 20,
            }],
        }
    }

    pub(crate) fn check(&self) -> PermitCheck<'_> {
        PermitCheck {
            owner: &self.public,
            organisation: ORGANISATION,
            from: &self.from,
            to: &self.to,
            run: &self.run,
            now: NOW,
            revocation_epoch: 4,
        }
    }

    pub(crate) fn sign(&self, permit: &Permit, manifest: &Manifest) -> Envelope {
        sign_permit(&self.owner, permit, &manifest_digest(manifest).unwrap(), &manifest.name).unwrap()
    }

    pub(crate) fn verify(&self, permit: &Permit) -> Result<Permitted<Manifest>, Refusal> {
        let manifest = self.manifest();
        Permitted::verify(&self.check(), &self.sign(permit, &manifest), manifest)
    }

    pub(crate) fn permitted(&self) -> Permitted<Manifest> {
        self.verify(&self.permit()).unwrap()
    }

    pub(crate) async fn send_as(
        &self,
        permitted: &Permitted<Manifest>,
        store: &dyn Store,
    ) -> Result<Sent, TransferError> {
        self.send_knowing(permitted, store, KnownShards::NONE).await
    }

    /// Sends what an earlier crossing has not put.
    pub(crate) async fn send_knowing(
        &self,
        permitted: &Permitted<Manifest>,
        store: &dyn Store,
        known: &KnownShards,
    ) -> Result<Sent, TransferError> {
        let crossing = Crossing {
            source: &self.source(),
            store,
            signer: &self.owner,
            data_key: &self.data_key,
            digest_key: &DIGEST_KEY,
            known,
            state: &self.state(),
            shards_in_flight: 2,
            progress: &no_progress,
            gate: &*self.gate,
        };
        send(permitted, &crossing).await
    }

    pub(crate) async fn send(&self, store: &dyn Store) -> Result<Sent, TransferError> {
        self.send_as(&self.permitted(), store).await
    }

    /// Receives what was sent, as somebody who was told all about it.
    pub(crate) async fn receive(&self, sent: &Sent, store: &dyn Store) -> Result<Received, TransferError> {
        self.receive_with(sent, store, |_| {}).await
    }

    /// As [`World::receive`], with something told otherwise.
    pub(crate) async fn receive_with(
        &self,
        sent: &Sent,
        store: &dyn Store,
        told_otherwise: impl FnOnce(&mut Expected<'_>),
    ) -> Result<Received, TransferError> {
        let manifest = self.manifest();
        let permit = self.permit();
        let artifact = manifest_digest(&manifest).unwrap();
        let permit_digest = payload_digest(&self.sign(&permit, &manifest)).unwrap();
        let key_commitment = self.data_key.commitment();
        let mut expected = Expected {
            packing_list: &sent.packing_list,
            packing_list_digest: &sent.packing_list_digest,
            sender: &self.public,
            organisation: ORGANISATION,
            artifact: Some(&artifact),
            permit: &permit.id,
            permit_digest: &permit_digest,
            to: &self.to.site,
            key_commitment: Some(&key_commitment),
            byte_limit: sent.bytes,
            plaintext_limit: manifest.total_bytes(),
            ceiling: None,
        };
        told_otherwise(&mut expected);
        std::fs::create_dir_all(self.destination().parent().unwrap()).unwrap();
        receive(&expected, store, &self.data_key, &self.destination()).await
    }

    /// What lies beside the destination: nothing may be left there.
    pub(crate) fn received_names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.destination().parent().unwrap()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// Every file below a folder with its content.
pub(crate) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            found.push((name, std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// What happens to one put.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// It goes well.
    Fine,
    /// The store asks for less.
    Busy,
    /// The store wants to be left alone for so long.
    LeaveAlone(Duration),
    /// The connection breaks before anything was stored.
    Reset,
    /// The connection breaks, and the object stands.
    ResetAfterEffect,
    /// The disk is full.
    Full,
    /// Somebody else's object stands there.
    Usurped,
    /// It takes longer than a second.
    Slow,
}

/// A store in memory with a list of what goes wrong with the next puts, and with reads.
#[derive(Debug)]
pub(crate) struct Flaky {
    pub(crate) inner: MemoryStore,
    puts: Mutex<VecDeque<Fault>>,
    busy_reads: AtomicU64,
    pub(crate) put_bytes: AtomicU64,
    pub(crate) put_calls: AtomicU64,
    /// When it was put or asked for something.
    pub(crate) asked: Mutex<Vec<Instant>>,
}

impl Flaky {
    pub(crate) fn new(inner: &MemoryStore, puts: impl IntoIterator<Item = Fault>, busy_reads: u64) -> Self {
        Self {
            inner: inner.clone(),
            puts: Mutex::new(puts.into_iter().collect()),
            busy_reads: AtomicU64::new(busy_reads),
            put_bytes: AtomicU64::new(0),
            put_calls: AtomicU64::new(0),
            asked: Mutex::default(),
        }
    }

    fn reading(&self) -> Result<(), StoreError> {
        self.asked.lock().unwrap().push(Instant::now());
        let left = self
            .busy_reads
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err(StoreError::Busy {
                what: "reading".to_owned(),
                after: None,
            }),
            Err(_) => Ok(()),
        }
    }
}

#[async_trait]
impl Store for Flaky {
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        self.put_bytes.fetch_add(body.len() as u64, Ordering::SeqCst);
        self.put_calls.fetch_add(1, Ordering::SeqCst);
        self.asked.lock().unwrap().push(Instant::now());
        let fault = self.puts.lock().unwrap().pop_front().unwrap_or(Fault::Fine);
        let what = format!("putting {name}");
        let reset = |what| StoreError::Transient {
            what,
            source: std::io::ErrorKind::ConnectionReset.into(),
        };
        match fault {
            Fault::Fine => self.inner.put_new(name, body).await,
            Fault::Busy => Err(StoreError::Busy { what, after: None }),
            Fault::LeaveAlone(after) => Err(StoreError::Busy {
                what,
                after: Some(after),
            }),
            Fault::Reset => Err(reset(what)),
            Fault::ResetAfterEffect => {
                self.inner.put_new(name, body).await?;
                Err(reset(what))
            }
            Fault::Full => Err(StoreError::Permanent {
                what,
                source: std::io::ErrorKind::StorageFull.into(),
            }),
            Fault::Usurped => {
                let mut other = body.to_vec();
                other[0] ^= 1;
                self.inner.overwrite(name, other.into());
                self.inner.put_new(name, body).await
            }
            Fault::Slow => {
                tokio::time::sleep(Duration::from_millis(1100)).await;
                self.inner.put_new(name, body).await
            }
        }
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        self.reading()?;
        self.inner.get(name, limit).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.reading()?;
        self.inner.get_range(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.reading()?;
        self.inner.head(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }

    fn pace(&self) -> Pace {
        self.inner.pace()
    }
}

/// The digests under `sealed/`, sorted, as hexadecimal.
pub(crate) fn sealed(store: &MemoryStore) -> Vec<String> {
    store
        .names()
        .iter()
        .filter_map(|name| name.as_str().strip_prefix("sealed/").map(str::to_owned))
        .collect()
}

/// What a crossing should have put under `sealed/`: all its objects but the packing list.
pub(crate) fn expected_sealed(sent: &Sent) -> Vec<String> {
    let digests: BTreeSet<&Digest> = sent.objects.iter().map(|object| &object.digest).collect();
    let list = &sent.packing_list_digest;
    digests
        .into_iter()
        .filter(|digest| *digest != list)
        .map(Digest::to_hex)
        .collect()
}
