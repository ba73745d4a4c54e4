//! What a keeper stands on, with ways to break it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_contracts::fakes::{MemoryJournal, MemoryStore};
use tidegate_contracts::journal::{Batch, Journal, JournalError};
use tidegate_contracts::stage::{
    BundleFiles, Bundled, HomeStages, Judged, ModelAtHome, PreparedFiles, RowsWork, SignPayload, StageContext,
    StageError,
};
use tidegate_contracts::{ObjectInfo, ObjectName, Pace, Store, StoreError};
use tidegate_seal::digest::sha256;
use tidegate_types::keeper::QualitySummary;
use tidegate_types::refusal::Refusal;
use tidegate_types::report::{LabelReport, RiskReport};
use tidegate_types::{Label, Level};

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

/// A site's store whose disk may be full for everything that is sealed.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) store: MemoryStore,
    pub(crate) full: Arc<AtomicBool>,
    /// Whether it lends objects: by their names, one in a line.
    pub(crate) lends: Arc<AtomicBool>,
}

#[async_trait]
impl Store for Disk {
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        if self.full.load(Ordering::SeqCst) && name.as_str().starts_with("sealed/") {
            return Err(StoreError::Permanent {
                what: format!("putting {name}"),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        self.store.put_new(name, body).await
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        self.store.get(name, limit).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.store.get_range(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.store.head(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        self.store.list(prefix, after).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.store.delete(name).await
    }

    async fn lend(&self, names: &[ObjectName], _: Duration) -> Result<Option<String>, StoreError> {
        let names: Vec<&str> = names.iter().map(ObjectName::as_str).collect();
        Ok(self.lends.load(Ordering::SeqCst).then(|| names.join("\n")))
    }

    fn pace(&self) -> Pace {
        self.store.pace()
    }
}

/// Stages that read no rows, and count how often models were judged and bundled.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Bytes beside the rows, which no compression makes fewer.
    pub(crate) ballast: AtomicUsize,
    /// Preparing meets a defect.
    pub(crate) defective: AtomicBool,
    /// A machine has something to do.
    pub(crate) away: AtomicBool,
    /// A machine refuses.
    pub(crate) refusing: AtomicBool,
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
            warnings: Vec::new(),
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
        assert!(!self.defective.load(Ordering::SeqCst), "row of Ann Smith");
        let part = |name: &str| {
            let folder = context.folder.join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("rows.csv"), format!("{name},readmitted\n1,0\n")).unwrap();
            let ballast = self.ballast.load(Ordering::SeqCst);
            let noise: Vec<u8> = (0..ballast as u64 / 32)
                .flat_map(|n| *sha256(&n.to_be_bytes()).as_bytes())
                .collect();
            std::fs::write(folder.join("noise"), noise).unwrap();
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

    async fn pack(&self, _: &StageContext<'_>, _: RowsWork<'_>, into: &Path) -> Result<bool, StageError> {
        let there = self.away.load(Ordering::SeqCst);
        for folder in ["code", "rows"] {
            std::fs::create_dir_all(into.join(folder)).unwrap();
            std::fs::write(into.join(folder).join("needed"), "row of Ann Smith").unwrap();
        }
        Ok(there)
    }

    async fn unpack(&self, _: &StageContext<'_>, from: &Path) -> Result<(), StageError> {
        assert_eq!(std::fs::read(from.join("model.onnx")).unwrap(), b"a model");
        if self.refusing.load(Ordering::SeqCst) {
            return Err(StageError::Refused(Refusal {
                rule: "k-not-reached".to_owned(),
                what: "preparing".to_owned(),
                why: "groups are small".to_owned(),
                fix: "generalise".to_owned(),
            }));
        }
        self.away.store(false, Ordering::SeqCst);
        Ok(())
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
    ) -> Result<Bundled, StageError> {
        self.bundled.fetch_add(1, Ordering::SeqCst);
        let folder = context.folder.join("bundle");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("bundle.json"), "{}").unwrap();
        Ok(Bundled {
            files: Some(BundleFiles {
                folder,
                manifest: sha256(b"{}"),
            }),
            gates: Vec::new(),
        })
    }

    async fn scan_code(&self, _: &StageContext<'_>, _: &Path, _: &str, _: &[u8]) -> Result<(), StageError> {
        Ok(())
    }
}
