//! What a keeper does with data at home. The keeper owns keys and decisions; the binary wires in the
//! stages that read rows, so that the keeper does not depend on a query engine or a learner.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tidegate_types::digest::Digest;
use tidegate_types::files::{Catalog, Pipeline};
use tidegate_types::keeper::{GateResult, PipelineText, QualitySummary};
use tidegate_types::refusal::Refusal;
use tidegate_types::report::{LabelReport, RiskReport};

/// What can go wrong in a stage. No text in it holds a value from the data.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A rule said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What the user gave is wrong: the query, the source, a value in it.
    #[error("{0}")]
    Input(String),
    /// It went wrong.
    #[error("{0}")]
    Failed(String),
}

/// Where a stage finds the world: the owner's catalog, the pipeline, a folder of its own.
#[derive(Debug)]
pub struct StageContext<'a> {
    /// The owner's catalog.
    pub catalog: &'a Catalog,
    /// The folder that the catalog's sources are relative to.
    pub catalog_folder: &'a Path,
    /// The pipeline, checked.
    pub pipeline: &'a Pipeline,
    /// The pipeline's texts.
    pub text: &'a PipelineText,
    /// The stage's own folder on the private site, kept between calls.
    pub folder: &'a Path,
    /// Keys of the site that only stages use.
    pub keys: &'a StageKeys,
}

/// Keys of a private site that decide over splits and shuffles. They never leave and are not shown.
#[derive(Clone)]
pub struct StageKeys {
    /// Divides subjects.
    pub split: [u8; 32],
    /// Orders rows, makes tokens and keyed digests of values.
    pub values: [u8; 32],
}

impl fmt::Debug for StageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StageKeys([secret])")
    }
}

/// What preparation made: folders whose files may be asked to cross, and what stays.
#[derive(Debug, Clone)]
pub struct PreparedFiles {
    /// Folders by input name: `train`, `validation`.
    pub inputs: BTreeMap<String, PathBuf>,
    /// Columns of the inputs in order.
    pub columns: Vec<String>,
    /// The label flow.
    pub labels: LabelReport,
    /// What was measured.
    pub risk: RiskReport,
    /// A digest over everything that the result depends on.
    pub step_key: tidegate_types::Digest,
    /// Where the recipe and the home parts are.
    pub home: PathBuf,
    /// Whether all of it was there already.
    pub reused: bool,
}

/// A model at home.
#[derive(Debug)]
pub struct ModelAtHome<'a> {
    /// The folder with `model.onnx` and `schema.json`, as the worker wrote it: hostile until inspected.
    pub folder: &'a Path,
    /// [`PreparedFiles::home`] of the preparation that it was trained on.
    pub home: &'a Path,
}

/// The tasks of a run that work on rows, and that a keeper may have a machine of its site do.
pub const ROWS_TASKS: [&str; 4] = ["prepare", "evaluate", "refine", "release"];

/// Work on rows that a machine of the site can do in the keeper's place.
#[derive(Debug, Clone, Copy)]
pub enum RowsWork<'a> {
    /// What [`HomeStages::prepare`] does.
    Prepare,
    /// What [`HomeStages::evaluate`] and all that follows it ask of the rows: the model's scores.
    Judge(&'a ModelAtHome<'a>),
}

/// How good a model is, and what the gates say.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The figures, rounded and with small cells suppressed: what may be told outside.
    pub quality: QualitySummary,
    /// The same training on raw columns, where the stage was asked for it.
    pub raw: Option<QualitySummary>,
    /// The gates on the unfavourable ends of the intervals.
    pub gates: Vec<GateResult>,
}

/// Signs a payload of a type with the keeper's key: gives the bytes of a DSSE envelope.
pub type SignPayload<'a> = dyn Fn(&str, &[u8]) -> Result<Vec<u8>, String> + Send + Sync + 'a;

/// A model that was judged to be released.
#[derive(Debug, Clone)]
pub struct Bundled {
    /// The gates, leak test included.
    pub gates: Vec<GateResult>,
    /// The bundle; absent where a gate does not pass.
    pub files: Option<BundleFiles>,
}

/// A signed bundle in a folder of the private site.
#[derive(Debug, Clone)]
pub struct BundleFiles {
    /// The folder.
    pub folder: PathBuf,
    /// SHA-256 of its `bundle.json`.
    pub manifest: Digest,
}

/// Everything a keeper does with rows.
///
/// # Contract
/// Every method is idempotent: called again with the same input after a crash at any instruction, it
/// ends with the same result, and says so faster. Nothing outside `context.folder` is written.
#[async_trait]
pub trait HomeStages: Send + Sync + fmt::Debug {
    /// The label flow of the pipeline's query; reads headers and schemas only. Gives the bytes of the
    /// source too.
    async fn analyse(&self, context: &StageContext<'_>) -> Result<(LabelReport, u64), StageError>;

    /// Snapshot, split, de-identify, measure.
    async fn prepare(&self, context: &StageContext<'_>) -> Result<PreparedFiles, StageError>;

    /// Whether a machine has anything to do before that work is done here at once. Puts what it needs into the folder
    /// `into`, which is empty: `code`, small and with the site's keys, and `rows`.
    async fn pack(&self, context: &StageContext<'_>, work: RowsWork<'_>, into: &Path) -> Result<bool, StageError>;

    /// Takes what a machine made of that from the folder `from`. What it refused, or found wrong, is this method's error.
    async fn unpack(&self, context: &StageContext<'_>, from: &Path) -> Result<(), StageError>;

    /// Judges a model on the test part.
    async fn evaluate(&self, context: &StageContext<'_>, model: &ModelAtHome<'_>) -> Result<Judged, StageError>;

    /// Calibrates on the refine part and judges again on the test part.
    async fn refine(&self, context: &StageContext<'_>, model: &ModelAtHome<'_>) -> Result<Judged, StageError>;

    /// Leak test, gates, card: everything of the bundle but its signature. `version` and `provenance`
    /// are the keeper's.
    async fn bundle(
        &self,
        context: &StageContext<'_>,
        model: &ModelAtHome<'_>,
        version: u64,
        provenance: &BTreeMap<String, String>,
        sign: &SignPayload<'_>,
    ) -> Result<Bundled, StageError>;

    /// Whether a file that shall cross as code holds an identifier from the data that was prepared in
    /// `home`; names the file and the rule, never the value.
    async fn scan_code(
        &self,
        context: &StageContext<'_>,
        home: &Path,
        file: &str,
        content: &[u8],
    ) -> Result<(), StageError>;
}
