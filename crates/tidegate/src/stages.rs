//! What a keeper does with rows, wired from preparation, learning and bundles.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tidegate_bundle::{BundleContent, Calibration, FeatureSchema, InspectedModel, bundle, inspect};
use tidegate_contracts::stage::{
    BundleFiles, Bundled, HomeStages, Judged, ModelAtHome, PreparedFiles, RowsWork, SignPayload, StageContext,
    StageError,
};
use tidegate_learn::{JudgeInput, Judgement, Membership, Table, fit_platt, gates, judge, membership, metrics, train};
use tidegate_prepare::{Keys, Part, PrepareError, PrepareInput, home_rows, raw_rows, read_recipe};
use tidegate_seal::digest::{canonical_digest, sha256};
use tidegate_types::digest::Digest;
use tidegate_types::keeper::{GateResult, QualitySummary};
use tidegate_types::refusal::Refusal;
use tidegate_types::release::BUNDLE_PAYLOAD;
use tidegate_types::report::{LabelReport, RiskReport};

use crate::infer::predict_in_sandbox;
use crate::project::now;
use crate::scores::{self, Scored, Scores};
use crate::sources::{self, Brought};
use crate::stores;

mod away;
mod card;

pub(crate) use away::rows;
use card::{card, leak_line};

/// The metric of the leak test in `evaluate: gates:`.
const MEMBERSHIP: &str = "membership_auc";
/// What a leak test must not exceed when the pipeline names no gate of its own.
const MEMBERSHIP_LIMIT: &str = "<= 0.60";
/// The largest model and schema that are looked at.
const MODEL_BYTES: u64 = 64 << 20;

/// The stages over rows.
#[derive(Debug)]
pub(crate) struct Rows {
    /// This program, which runs itself inside the sandbox.
    executable: PathBuf,
    scores: Scores,
}

/// A model whose files were inspected, with everything to judge it by.
struct Opened {
    schema: FeatureSchema,
    inspected: InspectedModel,
    folder: PathBuf,
    scratch: PathBuf,
    /// Of both files and of the prepared rows, which their folder's name names.
    digest: Digest,
}

impl Rows {
    pub(crate) fn new(executable: PathBuf) -> Self {
        Self {
            executable,
            scores: Scores::default(),
        }
    }

    /// Those of a machine that works in a keeper's place, which finds the scores in files.
    pub(crate) fn for_keeper(executable: PathBuf) -> Self {
        let mut rows = Self::new(executable);
        rows.scores.for_others = true;
        rows
    }

    fn open(&self, context: &StageContext<'_>, model: &ModelAtHome<'_>) -> Result<Opened, StageError> {
        let refused = hostile;
        let described = read(&model.folder.join("schema.json"), &refused)?;
        let schema = FeatureSchema::from_json(&described).map_err(|error| refused(error.to_string()))?;
        let bytes = read(&model.folder.join("model.onnx"), &refused)?;
        let inspected = inspect(&bytes, &schema).map_err(|error| refused(error.to_string()))?;
        Ok(Opened {
            schema,
            inspected,
            folder: model.folder.to_path_buf(),
            scratch: context.folder.join("inference"),
            digest: canonical_digest(&(sha256(&bytes), sha256(&described), name_of(model.home)))
                .map_err(|error| failed("naming a model", error))?,
        })
    }

    /// The rows of one part through the frozen recipe, with the model's probabilities.
    async fn score(
        &self,
        context: &StageContext<'_>,
        opened: &Opened,
        home: &Path,
        part: Part,
        by: &[String],
    ) -> Result<Arc<Scored>, StageError> {
        let key = Scores::key(opened.digest, part, by);
        if let Some(scored) = self.scores.find(context.folder, &key) {
            return Ok(scored);
        }
        let rows = home_rows(home, &keys(context), part, by).await.map_err(stage_error)?;
        let matrix = opened
            .schema
            .encode(&rows.header, &rows.records)
            .map_err(|error| failed("encoding rows for the model", error))?;
        let (executable, folder, scratch) = (self.executable.clone(), opened.folder.clone(), opened.scratch.clone());
        let probabilities =
            tokio::task::spawn_blocking(move || predict_in_sandbox(&executable, &folder, matrix.view(), &scratch))
                .await
                .map_err(|error| failed("running the model in the sandbox", error))?
                .map_err(|error| hostile(error.to_string()))?;
        let scored = Arc::new(Scored::new(rows, probabilities));
        self.scores
            .keep(context.folder, key, &scored)
            .map_err(|error| failed("keeping what a model gave", error))?;
        Ok(scored)
    }

    /// The same training on raw columns at home: what de-identification cost.
    async fn raw(
        &self,
        context: &StageContext<'_>,
        opened: &Opened,
        home: &Path,
    ) -> Result<Option<QualitySummary>, StageError> {
        let comparing = "training on raw columns for comparison";
        let Some(settings) = context.pipeline.train.trainer.clone() else {
            return Ok(None);
        };
        if let Some(found) = raw_file(context, opened).as_deref().and_then(scores::read) {
            return Ok(found);
        }
        let keys = keys(context);
        let target = context.pipeline.prepare.target.clone();
        let train_rows = raw_rows(home, &keys, Part::Train).await.map_err(stage_error)?;
        let validation = raw_rows(home, &keys, Part::Validation).await.map_err(stage_error)?;
        let test = raw_rows(home, &keys, Part::Test).await.map_err(stage_error)?;
        let min_cell = context.pipeline.release_model.min_cell;
        let judged = tokio::task::spawn_blocking(move || -> Result<Judgement, StageError> {
            let train_table = table(&train_rows, &target).map_err(|error| failed(comparing, error))?;
            let validation = table(&validation, &target).map_err(|error| failed(comparing, error))?;
            let trained =
                train(&settings, &train_table, Some(&validation), &target).map_err(|error| failed(comparing, error))?;
            let matrix = trained
                .schema
                .encode(&test.header, &test.records)
                .map_err(|error| failed(comparing, error))?;
            let probabilities: Vec<f64> = trained
                .network
                .predict(matrix.view())
                .iter()
                .map(|p| f64::from(*p))
                .collect();
            judge(&JudgeInput {
                probabilities: &probabilities,
                outcomes: &test.outcomes,
                subjects: &test.subjects,
                threshold: 0.5,
                subgroups: &[],
                min_cell,
            })
            .map_err(|error| failed(comparing, error))
        })
        .await
        .map_err(|error| failed(comparing, error))??;
        Ok(Some(judged.summary()))
    }

    /// Every gate on a judgement of the test part: those of the pipeline, and the leak test, which always
    /// holds and compares the model's losses before any calibration.
    async fn gates(
        &self,
        context: &StageContext<'_>,
        opened: &Opened,
        model: &ModelAtHome<'_>,
        judgement: &Judgement,
        test: &Scored,
    ) -> Result<(Vec<GateResult>, Membership), StageError> {
        let trained = self.score(context, opened, model.home, Part::Train, &[]).await?;
        let losses = |scored: &Scored| metrics::losses(&scored.probabilities, &scored.outcomes);
        let leak = membership(&losses(&trained), &trained.subjects, &losses(test), &test.subjects)
            .map_err(|error| failed("testing what the model remembers", error))?;
        let mut gates = quality_gates(context, judgement)?;
        gates.extend(leak_gates(context, &leak)?);
        Ok((gates, leak))
    }

    /// Calibration and threshold from the refine part alone, or the identity without `refine:`.
    async fn calibration(
        &self,
        context: &StageContext<'_>,
        opened: &Opened,
        home: &Path,
    ) -> Result<Calibration, StageError> {
        if context.pipeline.refine.is_none() {
            return Ok(Calibration::IDENTITY);
        }
        let scored = self.score(context, opened, home, Part::Refine, &[]).await?;
        fit_platt(&scored.probabilities, &scored.outcomes, &scored.subjects).map_err(|error| {
            StageError::Refused(Refusal {
                rule: "bounded-refine".to_owned(),
                what: "calibrating the model on the refine part".to_owned(),
                why: error.to_string(),
                fix: "give the refine part a larger share under `prepare: split:`, or leave out `refine:`".to_owned(),
            })
        })
    }
}

/// The name of a preparation, wherever it stands.
fn name_of(home: &Path) -> Option<&OsStr> {
    home.parent().and_then(Path::file_name)
}

/// Where a machine leaves what the same training gives on raw columns.
fn raw_file(context: &StageContext<'_>, opened: &Opened) -> Option<PathBuf> {
    let pipeline = context.pipeline;
    let what = (
        "raw",
        &pipeline.train.trainer,
        &pipeline.prepare.target,
        pipeline.release_model.min_cell,
    );
    scores::file(context.folder, &opened.digest, &what)
}

fn hostile(why: String) -> StageError {
    StageError::Refused(Refusal {
        rule: "hostile-model".to_owned(),
        what: "using the model that came home".to_owned(),
        why,
        fix: "let the command write `model.onnx` and `schema.json` as docs/workers.md says".to_owned(),
    })
}

fn judged(scored: &Scored, calibration: &Calibration, min_cell: u32) -> Result<Judgement, StageError> {
    let probabilities: Vec<f64> = scored.probabilities.iter().map(|p| calibration.apply(*p)).collect();
    judge(&JudgeInput {
        probabilities: &probabilities,
        outcomes: &scored.outcomes,
        subjects: &scored.subjects,
        threshold: calibration.threshold,
        subgroups: &scored.subgroups,
        min_cell,
    })
    .map_err(|error| failed("judging the model", error))
}

#[async_trait]
impl HomeStages for Rows {
    async fn analyse(&self, context: &StageContext<'_>) -> Result<(LabelReport, u64), StageError> {
        let (keys, brought) = (keys(context), brought(context).await?);
        tidegate_prepare::analyse(&input(context, &keys, brought.as_ref()))
            .await
            .map_err(stage_error)
    }

    async fn prepare(&self, context: &StageContext<'_>) -> Result<PreparedFiles, StageError> {
        let (keys, brought) = (keys(context), brought(context).await?);
        let prepared = tidegate_prepare::prepare(&input(context, &keys, brought.as_ref()))
            .await
            .map_err(stage_error)?;
        write_once(&prepared.home.join("risk.json"), &prepared.risk)?;
        Ok(PreparedFiles {
            inputs: prepared.inputs,
            columns: prepared.columns,
            labels: prepared.labels,
            risk: prepared.risk,
            step_key: prepared.step_key,
            home: prepared.home,
            reused: prepared.reused,
        })
    }

    async fn pack(&self, context: &StageContext<'_>, work: RowsWork<'_>, into: &Path) -> Result<bool, StageError> {
        away::pack(self, context, work, into).await
    }

    async fn unpack(&self, context: &StageContext<'_>, from: &Path) -> Result<(), StageError> {
        away::unpack(context, from).await
    }

    async fn evaluate(&self, context: &StageContext<'_>, model: &ModelAtHome<'_>) -> Result<Judged, StageError> {
        let opened = self.open(context, model)?;
        let by = &context.pipeline.evaluate.by;
        let scored = self.score(context, &opened, model.home, Part::Test, by).await?;
        let judgement = judged(&scored, &Calibration::IDENTITY, context.pipeline.release_model.min_cell)?;
        let raw = self.raw(context, &opened, model.home).await.unwrap_or_else(|error| {
            // A comparison: a query that computes its target has no raw columns to compare with.
            tracing::warn!(%error, "nothing to compare with on raw columns");
            None
        });
        if let Some(file) = raw_file(context, &opened).filter(|_| self.scores.for_others) {
            scores::write(&file, &raw).map_err(|error| failed("keeping what a model gave", error))?;
        }
        Ok(Judged {
            quality: judgement.summary(),
            raw,
            gates: self.gates(context, &opened, model, &judgement, &scored).await?.0,
        })
    }

    async fn refine(&self, context: &StageContext<'_>, model: &ModelAtHome<'_>) -> Result<Judged, StageError> {
        let opened = self.open(context, model)?;
        let calibration = self.calibration(context, &opened, model.home).await?;
        let by = &context.pipeline.evaluate.by;
        let scored = self.score(context, &opened, model.home, Part::Test, by).await?;
        let judgement = judged(&scored, &calibration, context.pipeline.release_model.min_cell)?;
        Ok(Judged {
            quality: judgement.summary(),
            raw: None,
            gates: self.gates(context, &opened, model, &judgement, &scored).await?.0,
        })
    }

    async fn bundle(
        &self,
        context: &StageContext<'_>,
        model: &ModelAtHome<'_>,
        version: u64,
        provenance: &BTreeMap<String, String>,
        sign: &SignPayload<'_>,
    ) -> Result<Bundled, StageError> {
        let bundling = "making the bundle";
        let opened = self.open(context, model)?;
        let min_cell = context.pipeline.release_model.min_cell;
        let calibration = self.calibration(context, &opened, model.home).await?;
        let by = &context.pipeline.evaluate.by;
        let test = self.score(context, &opened, model.home, Part::Test, by).await?;
        let before = judged(&test, &Calibration::IDENTITY, min_cell)?;
        let after = judged(&test, &calibration, min_cell)?;
        let (gates, leak) = self.gates(context, &opened, model, &after, &test).await?;
        if gates.iter().any(|gate| !gate.passed) {
            return Ok(Bundled { files: None, gates });
        }
        let risk: RiskReport = read_json(&model.home.join("risk.json"))?;
        let recipe = read_recipe(model.home).map_err(stage_error)?;
        let recipe_bytes = serde_json::to_vec_pretty(&recipe).map_err(|error| failed(bundling, error))?;
        let card = card(
            context,
            version,
            &before,
            &after,
            &calibration,
            &risk,
            &recipe.sql,
            leak_line(&leak),
        );
        let created = jiff::Timestamp::from_second(i64::try_from(now()).unwrap_or_default())
            .map_err(|error| failed(bundling, error))?
            .to_string();
        let content = BundleContent {
            name: context.pipeline.name.as_str(),
            version,
            created: &created,
            provenance: provenance
                .iter()
                .filter_map(|(name, text)| Some((name.clone(), text.parse::<Digest>().ok()?)))
                .collect(),
            model: &opened.inspected,
            recipe: &recipe_bytes,
            schema: &opened.schema,
            calibration,
            card: &card.to_markdown(),
            metrics: &serde_json::json!({
                "home": before.summary(),
                "refined": after.summary(),
                "gates": gates,
            }),
        };
        let files =
            bundle::build(&content, |bytes| sign(BUNDLE_PAYLOAD, bytes)).map_err(|error| failed(bundling, error))?;
        // A bundle that an interrupted release left is not signed for anybody yet.
        let folder = context
            .folder
            .join("bundles")
            .join(context.pipeline.name.as_str())
            .join(version.to_string());
        let _ = std::fs::remove_dir_all(&folder);
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent).map_err(|error| failed(bundling, error))?;
        }
        bundle::write_folder(&folder, &files).map_err(|error| failed(bundling, error))?;
        let manifest = std::fs::read(folder.join("bundle.json")).map_err(|error| failed(bundling, error))?;
        let files = BundleFiles {
            folder,
            manifest: sha256(&manifest),
        };
        Ok(Bundled {
            files: Some(files),
            gates,
        })
    }

    async fn scan_code(
        &self,
        context: &StageContext<'_>,
        home: &Path,
        file: &str,
        content: &[u8],
    ) -> Result<(), StageError> {
        tidegate_prepare::scan_code(home, &keys(context), file, content)
            .await
            .map_err(stage_error)
    }
}

fn quality_gates(context: &StageContext<'_>, judgement: &Judgement) -> Result<Vec<GateResult>, StageError> {
    let gates: BTreeMap<String, String> = context
        .pipeline
        .evaluate
        .gates
        .iter()
        .filter(|(metric, _)| !metric.starts_with("membership"))
        .map(|(metric, condition)| (metric.clone(), condition.clone()))
        .collect();
    gates::judge(&gates, &judgement.quality.0).map_err(|error| failed("judging the gates", error))
}

/// The leak test is always a gate, whether the pipeline names one or not.
fn leak_gates(context: &StageContext<'_>, leak: &Membership) -> Result<Vec<GateResult>, StageError> {
    let mut gates = BTreeMap::from([(MEMBERSHIP.to_owned(), MEMBERSHIP_LIMIT.to_owned())]);
    for (metric, condition) in &context.pipeline.evaluate.gates {
        if metric.starts_with("membership") {
            gates.insert(metric.clone(), condition.clone());
        }
    }
    gates::judge(&gates, &leak.figures()).map_err(|error| failed("judging the gates", error))
}

fn keys(context: &StageContext<'_>) -> Keys {
    Keys {
        split: context.keys.split,
        values: context.keys.values,
    }
}

/// The files of the dataset's source, where it lies elsewhere.
async fn brought(context: &StageContext<'_>) -> Result<Option<Brought>, StageError> {
    let (catalog, folder) = (context.catalog, context.folder.join("sources"));
    match catalog.datasets.get(&context.pipeline.prepare.from) {
        Some(dataset) => sources::bring(&dataset.source, catalog, &folder, &stores::environment()).await,
        None => Ok(None),
    }
}

fn input<'a>(context: &'a StageContext<'_>, keys: &'a Keys, brought: Option<&'a Brought>) -> PrepareInput<'a> {
    PrepareInput {
        catalog: context.catalog,
        catalog_folder: context.catalog_folder,
        brought: brought.map(|brought| brought.files.as_slice()),
        pipeline: context.pipeline,
        sql: context.text.sql.as_deref(),
        sample: context.text.sample,
        folder: context.folder,
        keys,
    }
}

/// Rows as the trainer reads them: features and then the target.
fn table(rows: &tidegate_prepare::Rows, target: &str) -> Result<Table, tidegate_learn::LearnError> {
    let mut header = rows.header.clone();
    header.push(target.to_owned());
    let records = rows.records.iter().zip(&rows.outcomes).map(|(record, outcome)| {
        let mut record = record.clone();
        record.push(u8::from(*outcome).to_string());
        record
    });
    Table::new(header, records)
}

fn read(file: &Path, refused: &dyn Fn(String) -> StageError) -> Result<Vec<u8>, StageError> {
    let name = file
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let length = std::fs::symlink_metadata(file)
        .map_err(|_| refused(format!("the command wrote no `{name}`")))?
        .len();
    if length > MODEL_BYTES {
        return Err(refused(format!(
            "`{name}` has {length} bytes, more than the {MODEL_BYTES} that are looked at"
        )));
    }
    std::fs::read(file).map_err(|error| failed("reading the model", error))
}

fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, StageError> {
    let bytes = std::fs::read(file).map_err(|error| failed("reading what was measured", error))?;
    serde_json::from_slice(&bytes).map_err(|error| failed("reading what was measured", error))
}

fn write_once<T: serde::Serialize>(file: &Path, value: &T) -> Result<(), StageError> {
    let keeping = "keeping what was measured";
    if file.exists() {
        return Ok(());
    }
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| failed(keeping, error))?;
    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&temporary, bytes).map_err(|error| failed(keeping, error))?;
    std::fs::rename(&temporary, file).map_err(|error| failed(keeping, error))
}

fn failed(what: &str, why: impl std::fmt::Display) -> StageError {
    StageError::Failed(format!("{what}: {why}"))
}

fn stage_error(error: PrepareError) -> StageError {
    match error {
        PrepareError::Refused(refusal) => StageError::Refused(refusal),
        wrong @ (PrepareError::Input { .. } | PrepareError::Data { .. }) => StageError::Input(wrong.to_string()),
        other => StageError::Failed(other.to_string()),
    }
}
