//! The ledger: the journal's leaves, rendered as a folder of tiles under a signed checkpoint.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_contracts::journal::{Batch, Journal};
use tidegate_ledger::merkle::leaf_hash;
use tidegate_ledger::tiles::{CHECKPOINT_PATH, LeafSource, entry_bundles, hash_tiles};
use tidegate_ledger::{Checkpoint, LedgerError, SignedCheckpoint, Tree, VerifierKey};
use tidegate_seal::digest::canonical_digest;
use tidegate_types::digest::Digest;
use tidegate_types::event::{Event, EventData, EventType};
use tidegate_types::ids::SiteName;
use tidegate_types::keeper::LedgerProof;
use tidegate_types::to_canonical_json;

use crate::error::{EngineError, While};
use crate::key::ControlKey;

/// The newest checkpoint that a keeper has cosigned, beside the newest of all.
pub const COSIGNED_PATH: &str = "cosigned";

const WRITING: &str = "writing the ledger";

/// One thing to record.
#[derive(Debug, Clone)]
pub(crate) struct Fact {
    pub(crate) event: EventType,
    pub(crate) subject: String,
    pub(crate) data: EventData,
}

impl Fact {
    pub(crate) fn new(event: EventType, subject: &str) -> Self {
        Self {
            event,
            subject: subject.to_owned(),
            data: EventData::default(),
        }
    }

    pub(crate) fn name(mut self, key: &str, name: &str) -> Self {
        self.data.names.insert(key.to_owned(), name.to_owned());
        self
    }

    pub(crate) fn digest(mut self, key: &str, digest: Digest) -> Self {
        self.data.digests.insert(key.to_owned(), digest);
        self
    }

    pub(crate) fn number(mut self, key: &str, number: u64) -> Self {
        self.data.numbers.insert(key.to_owned(), number);
        self
    }
}

/// The organisation's log.
#[derive(Debug)]
pub struct LedgerBook {
    journal: Arc<dyn Journal>,
    key: Arc<ControlKey>,
    verifier: VerifierKey,
    folder: PathBuf,
    state: Mutex<State>,
    clock: fn() -> u64,
}

/// What the log knows without its folder.
#[derive(Debug, Default)]
struct State {
    tree: Tree,
    /// The newest checkpoint that the keeper has cosigned, as far as this process has heard.
    cosigned: Option<SignedCheckpoint>,
    /// Folders of tiles whose own names are known to be on disk.
    named: BTreeSet<PathBuf>,
}

impl State {
    /// How much of the log the keeper has cosigned.
    fn seen(&self) -> u64 {
        self.cosigned.as_ref().map_or(0, |cosigned| cosigned.checkpoint().size)
    }
}

impl LedgerBook {
    /// Opens the log named `origin` over the journal; its files lie in `folder`.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn open(
        origin: &str,
        journal: Arc<dyn Journal>,
        key: Arc<ControlKey>,
        folder: PathBuf,
        clock: fn() -> u64,
    ) -> Result<Self, EngineError> {
        let verifier = VerifierKey::new(origin, *key.public().as_bytes()).while_("naming the ledger's key")?;
        Ok(Self {
            journal,
            key,
            verifier,
            folder,
            state: Mutex::default(),
            clock,
        })
    }

    /// The key that verifies the log's checkpoints.
    #[must_use]
    pub const fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Adds a fact to a journal batch; gives the batch and the leaf's id. The same fact is the same leaf.
    pub(crate) fn add(&self, batch: Batch, fact: &Fact) -> Result<(Batch, String), EngineError> {
        let id = canonical_digest(&(fact.event, &fact.subject, &fact.data))
            .while_(WRITING)?
            .to_hex();
        let event = Event::new(
            fact.event,
            id.clone(),
            "/control".to_owned(),
            &fact.subject,
            (self.clock)(),
            fact.data.clone(),
        );
        let leaf = to_canonical_json(&event).while_(WRITING)?;
        Ok((batch.leaf(&id, leaf), id))
    }

    /// Records facts in one transaction; gives their ids.
    pub(crate) fn record(&self, facts: &[Fact]) -> Result<Vec<String>, EngineError> {
        let mut batch = Batch::default();
        let mut ids = Vec::new();
        for fact in facts {
            let (next, id) = self.add(batch, fact)?;
            batch = next;
            ids.push(id);
        }
        self.journal.commit(&batch).while_(WRITING)?;
        Ok(ids)
    }

    /// Renders everything in the journal under a signed checkpoint, and gives it. It carries the keeper's signature
    /// too where the keeper has cosigned all of it.
    ///
    /// # Errors
    /// When the journal cannot be read or the folder not be written, or when the folder holds more
    /// than the journal: somebody cut the journal.
    pub fn render(&self) -> Result<SignedCheckpoint, EngineError> {
        let mut state = self.state();
        let state = &mut *state;
        let size = self.grow(&mut state.tree)?;
        let rendered = self.agreeing(&state.tree, size)?;
        let old = rendered.as_ref().map_or(0, |rendered| rendered.checkpoint().size);
        let mut folders = BTreeSet::new();
        let leaves = Leaves {
            journal: &*self.journal,
            size,
        };
        for (path, bytes) in hash_tiles(&state.tree, old, size)
            .while_(WRITING)?
            .into_iter()
            .chain(entry_bundles(&leaves, old, size).while_(WRITING)?)
        {
            let file = self.folder.join(path);
            replace_file(&file, &bytes).while_(WRITING)?;
            let inside = file.ancestors().skip(1).take_while(|folder| **folder != *self.folder);
            for (height, folder) in inside.enumerate() {
                // Its own name, too, once: whoever made it may have died before that was on disk.
                if state.named.insert(folder.to_path_buf()) {
                    folders.extend(folder.parent().map(Path::to_path_buf));
                }
                if height == 0 {
                    folders.insert(folder.to_path_buf());
                }
            }
        }
        // The checkpoint comes after everything that it covers.
        for folder in &folders {
            sync_folder(folder).while_(WRITING)?;
        }
        let cosigned = state.cosigned.as_ref();
        let head = self.sign(size, state.tree.root(size).while_(WRITING)?)?;
        let whole = |signed: &SignedCheckpoint| signed.checkpoint() == head.checkpoint();
        let head = match (cosigned.filter(|cosigned| whole(cosigned)), rendered.filter(whole)) {
            (Some(cosigned), _) => cosigned.clone(),
            (None, Some(rendered)) => rendered,
            (None, None) => head,
        };
        let mut changed = self.publish(CHECKPOINT_PATH, &head)?;
        if let Some(cosigned) = cosigned
            && self
                .read(COSIGNED_PATH)?
                .is_none_or(|there| there.checkpoint().size < cosigned.checkpoint().size)
        {
            changed |= self.publish(COSIGNED_PATH, cosigned)?;
        }
        if changed {
            sync_folder(&self.folder).while_(WRITING)?;
        }
        Ok(head)
    }

    /// The folder's checkpoint, if there is one: an error when the journal does not continue it.
    fn agreeing(&self, tree: &Tree, size: u64) -> Result<Option<SignedCheckpoint>, EngineError> {
        let rendered = self.read(CHECKPOINT_PATH)?;
        if let Some(rendered) = &rendered {
            let old = rendered.checkpoint();
            if old.size > size || tree.root(old.size).while_(WRITING)? != old.root {
                return Err(EngineError::failed(
                    WRITING,
                    "the folder of the ledger does not agree with the journal; restore both from the same backup",
                ));
            }
        }
        Ok(rendered)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign(&self, size: u64, root: Digest) -> Result<SignedCheckpoint, EngineError> {
        let origin = self.verifier.name().to_owned();
        let head = Checkpoint { origin, size, root };
        SignedCheckpoint::sign(head, &self.verifier, &|text| self.key.signing().sign(text)).while_(WRITING)
    }

    /// Writes a checkpoint where the folder holds another one. It lasts when the folder is synced.
    fn publish(&self, path: &str, checkpoint: &SignedCheckpoint) -> Result<bool, EngineError> {
        let other = self.read(path)?.as_ref() != Some(checkpoint);
        if other {
            replace_file(&self.folder.join(path), checkpoint.to_string().as_bytes()).while_(WRITING)?;
        }
        Ok(other)
    }

    /// Appends the journal's new leaves to the tree; gives their number.
    fn grow(&self, tree: &mut Tree) -> Result<u64, EngineError> {
        let reading = "reading the ledger";
        let size = self.journal.log_size().while_(reading)?;
        while tree.size() < size {
            let from = tree.size();
            let to = size.min(from + 1024);
            for leaf in self.journal.log_leaves(from, to).while_(reading)? {
                tree.append(leaf_hash(&leaf));
            }
        }
        Ok(size)
    }

    /// Takes note of a checkpoint that the keeper of `site` has cosigned.
    ///
    /// # Errors
    /// A refusal when the log does not continue it: the log was cut or rewritten since.
    pub(crate) fn cosigned(&self, cosigned: SignedCheckpoint, site: &SiteName) -> Result<(), EngineError> {
        let mut state = self.state();
        let size = self.grow(&mut state.tree)?;
        let seen = cosigned.checkpoint();
        let why = if size < seen.size {
            format!(
                "the keeper of site `{site}` has seen {} entries, and {size} are left",
                seen.size
            )
        } else if state.tree.root(seen.size).while_("reading the ledger")? != seen.root {
            format!(
                "its first {} entries are not those that the keeper of site `{site}` has seen",
                seen.size
            )
        } else {
            if state.seen() <= seen.size {
                state.cosigned = Some(cosigned);
            }
            return Ok(());
        };
        Err(tidegate_types::Refusal {
            rule: "ledger-tampered".to_owned(),
            what: "continuing the ledger".to_owned(),
            why,
            fix: "restore the control plane's folder from its newest backup, and find out who changed it".to_owned(),
        }
        .into())
    }

    /// Proves to the keeper that the log holds a leaf, and that it continues what the keeper cosigned last.
    pub(crate) fn prove(&self, id: &str) -> Result<LedgerProof, EngineError> {
        let proving = "proving an entry of the ledger";
        let index = self
            .journal
            .log_index(id)
            .while_(proving)?
            .ok_or_else(|| EngineError::failed(proving, "it is not there"))?;
        let leaf = self.journal.log_leaves(index, index + 1).while_(proving)?;
        let leaf = leaf.into_iter().next().unwrap_or_default();
        let mut state = self.state();
        let size = self.grow(&mut state.tree)?;
        self.agreeing(&state.tree, size)?;
        let since = state.seen();
        let signed = self.sign(size, state.tree.root(size).while_(proving)?)?;
        let hex = |hashes: Vec<Digest>| hashes.iter().map(Digest::to_hex).collect();
        Ok(LedgerProof {
            leaf: String::from_utf8(leaf).while_(proving)?,
            index,
            checkpoint: signed.to_string(),
            inclusion: hex(state.tree.inclusion_proof(index, size).while_(proving)?),
            consistency: hex(state.tree.consistency_proof(since, size).while_(proving)?),
            since,
        })
    }

    fn read(&self, path: &str) -> Result<Option<SignedCheckpoint>, EngineError> {
        let reading = "reading the ledger's checkpoint";
        match std::fs::read_to_string(self.folder.join(path)) {
            Ok(text) => Ok(Some(SignedCheckpoint::parse(&text).while_(reading)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EngineError::failed(reading, error)),
        }
    }
}

/// The journal's log as the tiles read it.
struct Leaves<'a> {
    journal: &'a dyn Journal,
    size: u64,
}

impl LeafSource for Leaves<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn leaf(&self, index: u64) -> Result<Vec<u8>, LedgerError> {
        let missing = || LedgerError::NoSuchLeaf { index, size: self.size };
        let leaves = self.journal.log_leaves(index, index + 1).map_err(|_| missing())?;
        leaves.into_iter().next().ok_or_else(missing)
    }
}

/// Replaces a file atomically, and for good.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    replace_file(path, bytes)?;
    sync_folder(path.parent().unwrap_or_else(|| Path::new(".")))
}

/// Replaces a file atomically. After a power failure the old one may be there until its folder was synced.
fn replace_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;

    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".new-{}", std::process::id()));
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}
