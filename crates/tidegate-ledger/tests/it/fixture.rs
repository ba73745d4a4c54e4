//! A log with known keys, in memory and as a folder.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use tidegate_ledger::merkle::leaf_hash;
use tidegate_ledger::tiles::{CHECKPOINT_PATH, entry_bundles, hash_tiles};
use tidegate_ledger::{Checkpoint, LeafProof, SignedCheckpoint, Tree, TrustedKeys, VerifierKey, witness};

pub(crate) const ORIGIN: &str = "tidegate.example/st-mary";
pub(crate) const KEEPER: &str = "st-mary/hospital";

pub(crate) struct Signer {
    pub(crate) key: VerifierKey,
    pair: Ed25519KeyPair,
}

impl Signer {
    pub(crate) fn new(name: &str, seed: u8) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let key = VerifierKey::new(name, pair.public_key().as_ref().try_into().unwrap()).unwrap();
        Self { key, pair }
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.pair.sign(bytes).as_ref().try_into().unwrap()
    }
}

pub(crate) fn event(number: u64) -> Vec<u8> {
    let event = serde_json::json!({
        "specversion": "1.0",
        "id": format!("run-1/{number}"),
        "source": "/control",
        "type": "dev.tidegate.attempt-started",
        "subject": "run-1",
        "time": "2026-01-02T03:04:05Z",
        "datacontenttype": "application/json",
        "data": {"names": {"task": "train"}, "numbers": {"attempt": number}},
    });
    tidegate_types::to_canonical_json(&event).unwrap()
}

/// A log, the keys of its two signers, and what a folder of it holds.
pub(crate) struct Log {
    pub(crate) log: Signer,
    pub(crate) keeper: Signer,
    pub(crate) leaves: Vec<Vec<u8>>,
    pub(crate) tree: Tree,
    pub(crate) files: RefCell<BTreeMap<String, Vec<u8>>>,
    published: u64,
    last: Option<Checkpoint>,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            log: Signer::new(ORIGIN, 1),
            keeper: Signer::new(KEEPER, 2),
            leaves: Vec::new(),
            tree: Tree::default(),
            files: RefCell::default(),
            published: 0,
            last: None,
        }
    }

    pub(crate) fn of(size: u64) -> Self {
        let mut log = Self::new();
        log.grow(size);
        log
    }

    pub(crate) fn keys(&self) -> TrustedKeys {
        TrustedKeys {
            log: self.log.key.clone(),
            cosigners: vec![self.keeper.key.clone()],
        }
    }

    pub(crate) fn append(&mut self, leaf: Vec<u8>) {
        self.tree.append(leaf_hash(&leaf));
        self.leaves.push(leaf);
    }

    /// Appends events up to `size` leaves, signs, cosigns and publishes what is new.
    pub(crate) fn grow(&mut self, size: u64) {
        for number in self.tree.size()..size {
            self.append(event(number));
        }
        self.publish();
    }

    pub(crate) fn publish(&mut self) {
        let size = self.tree.size();
        let head = Checkpoint {
            origin: ORIGIN.to_owned(),
            size,
            root: self.tree.root(size).unwrap(),
        };
        let signed = SignedCheckpoint::sign(head.clone(), &self.log.key, &|bytes| self.log.sign(bytes)).unwrap();
        let old = self.last.as_ref().map_or(0, |last| last.size);
        let proof = self.tree.consistency_proof(old, size).unwrap();
        let (last, text) = (self.last.as_ref(), signed.to_string());
        let cosigned = witness(last, &text, &proof, &self.log.key, &self.keeper.key, &|bytes| {
            self.keeper.sign(bytes)
        })
        .unwrap();
        let mut files = self.files.borrow_mut();
        files.extend(hash_tiles(&self.tree, self.published, size).unwrap());
        files.extend(entry_bundles(self.leaves.as_slice(), self.published, size).unwrap());
        files.insert(CHECKPOINT_PATH.to_owned(), cosigned.to_string().into_bytes());
        self.published = size;
        self.last = Some(head);
    }

    pub(crate) fn checkpoint(&self) -> String {
        String::from_utf8(self.files.borrow()[CHECKPOINT_PATH].clone()).unwrap()
    }

    pub(crate) fn proof(&self, index: u64) -> LeafProof {
        LeafProof::new(&self.tree, index, SignedCheckpoint::parse(&self.checkpoint()).unwrap()).unwrap()
    }

    pub(crate) fn read(&self, path: &str) -> std::io::Result<Option<Vec<u8>>> {
        Ok(self.files.borrow().get(path).cloned())
    }

    pub(crate) fn write_to(&self, folder: &Path) {
        for (path, bytes) in self.files.borrow().iter() {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
}
