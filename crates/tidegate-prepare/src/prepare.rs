//! From a pipeline's `prepare:` to inputs of a training that may be asked to cross.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_types::files::catalog::Dataset;
use tidegate_types::files::pipeline::Prepare;
use tidegate_types::files::{Catalog, Pipeline};
use tidegate_types::ids::{DatasetName, SiteName};
use tidegate_types::report::{LabelReport, RiskReport};
use tidegate_types::{Digest, Refusal, to_canonical_json};

use crate::error::PrepareError;
use crate::execute::{Chosen, Planned, RowSource, SourceColumn};
use crate::ingest::durable::{self, Draft};
use crate::ingest::{InputFile, Snapshot, SourceFile, source};
use crate::labels::{self, Facts};
use crate::profile;
use crate::recipe::token_keys;
use crate::release::{self, Making};
use crate::scan::assign::Assigner;
use crate::scan::survey::{self, Survey};
use crate::sealed;
use crate::session;
use crate::split::{Keys, Part, Prf};

/// Changes whenever the same step would give other bytes.
const CODE_VERSION: u32 = 3;

/// What a preparation is made from.
#[derive(Debug, Clone, Copy)]
pub struct PrepareInput<'a> {
    /// The owner's catalog.
    pub catalog: &'a Catalog,
    /// The folder that the catalog's sources are relative to.
    pub catalog_folder: &'a Path,
    /// The files of the dataset's source, where it lies elsewhere and was brought here.
    pub brought: Option<&'a [SourceFile]>,
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The text of the pipeline's `sql_file`; goes before `sql` of the pipeline itself.
    pub sql: Option<&'a str>,
    /// Records to use at the most, for a trial.
    pub sample: Option<u64>,
    /// The stage's own folder on the private site, kept between calls. Holds `snapshots/`,
    /// `prepared/` and `releases/`.
    pub folder: &'a Path,
    /// The site's keys.
    pub keys: &'a Keys,
}

/// What a preparation made.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Folders with `part-00000.csv`, by input name: `train`, and `validation` where the split has one.
    pub inputs: BTreeMap<String, PathBuf>,
    /// Columns of the inputs in order, the target among them.
    pub columns: Vec<String>,
    /// The label flow.
    pub labels: LabelReport,
    /// What was measured.
    pub risk: RiskReport,
    /// A keyed digest of everything that the inputs depend on: of the source, the records of train and
    /// validation alone. It travels with the inputs and says nothing without the key.
    pub step_key: Digest,
    /// Where the recipe and the way to the home rows are.
    pub home: PathBuf,
    /// Whether all of it was there already.
    pub reused: bool,
}

/// `report.json`: what [`Prepared`] says besides paths.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) inputs: BTreeSet<String>,
    pub(crate) columns: Vec<String>,
    pub(crate) labels: LabelReport,
    pub(crate) risk: RiskReport,
    pub(crate) step_key: Digest,
}

/// Everything but rows that a step's result depends on.
#[derive(Serialize)]
struct Step<'a> {
    code: u32,
    name: &'a DatasetName,
    dataset: &'a Dataset,
    prepare: &'a Prepare,
    sql: Option<&'a str>,
    sample: Option<u64>,
    audience: BTreeSet<&'a SiteName>,
    split_key: Digest,
    rows: String,
}

impl<'a> PrepareInput<'a> {
    pub(crate) fn dataset(&self) -> Result<(&'a DatasetName, &'a Dataset), PrepareError> {
        let name = &self.pipeline.prepare.from;
        let dataset = self.catalog.datasets.get(name).ok_or_else(|| {
            PrepareError::input(
                format!("preparing dataset `{name}`"),
                "the catalog does not have it",
                "Correct `prepare.from` in the pipeline",
            )
        })?;
        if !dataset.purposes.contains(&self.pipeline.purpose) {
            return Err(PrepareError::Refused(Refusal {
                rule: "purpose-not-in-catalog".to_owned(),
                what: format!("using dataset `{name}` for `{}`", self.pipeline.purpose),
                why: "its owner allows other purposes only".to_owned(),
                fix: "use it for a purpose that the catalog lists, or ask the owner to add this one".to_owned(),
            }));
        }
        Ok((name, dataset))
    }

    pub(crate) fn sources(&self, dataset: &Dataset) -> Result<Vec<InputFile>, PrepareError> {
        match self.brought {
            Some(files) => source::brought(&dataset.source, files),
            None => source::find(self.catalog_folder, &dataset.source),
        }
    }

    fn key(&self, name: &DatasetName, dataset: &Dataset, purpose: &str, rows: &Digest) -> Result<Digest, PrepareError> {
        let pipeline = self.pipeline;
        let step = Step {
            code: CODE_VERSION,
            name,
            dataset,
            prepare: &pipeline.prepare,
            sql: self.sql,
            sample: self.sample,
            audience: pipeline.deploy.iter().chain(&pipeline.train.resources.infra).collect(),
            split_key: Digest::from_bytes(Prf::derive(&self.keys.split, "key-name", b"").digest(b"")),
            rows: rows.to_string(),
        };
        let bytes = to_canonical_json(&step)
            .map_err(|error| PrepareError::failed("naming the step", error.to_string(), "Report this"))?;
        Ok(Digest::from_bytes(
            Prf::derive(&self.keys.values, purpose, b"").digest(&bytes),
        ))
    }

    /// Where what is prepared from a snapshot stands.
    pub(crate) fn target(
        &self,
        name: &DatasetName,
        dataset: &Dataset,
        snapshot: &Digest,
    ) -> Result<PathBuf, PrepareError> {
        let key = self.key(name, dataset, "prepared", snapshot)?;
        Ok(self.folder.join("prepared").join(key.to_hex()))
    }

    pub(crate) fn survey(
        &self,
        files: &[InputFile],
        name: &DatasetName,
        dataset: &Dataset,
        aside: Option<&Path>,
    ) -> Result<(Survey, Assigner), PrepareError> {
        let header = survey::header(files, &dataset.csv, name, dataset)?.header;
        let split = &self.pipeline.prepare.split;
        let assigner = Assigner::new(name, dataset, &header, self.keys, split, self.sample)?;
        let survey = survey::survey(files, name, dataset, &assigner, self.keys, aside)?;
        Ok((survey, assigner))
    }

    /// Plans the query, or the one that the profile writes, and follows its labels.
    pub(crate) async fn query(
        &self,
        name: &DatasetName,
        dataset: &Dataset,
        survey: &Survey,
        source: &Arc<RowSource>,
        release: Option<&Digest>,
    ) -> Result<(Planned, LabelReport), PrepareError> {
        let prepare = &self.pipeline.prepare;
        let facts = Facts {
            dataset: name,
            facts: dataset,
            columns: source.columns.iter().map(|column| column.name.clone()).collect(),
            profile: prepare.profile,
            to: prepare.disclosure.to,
            target: &prepare.target,
            subject: dataset.subject.as_deref(),
        };
        let sql = match self.sql.or(prepare.sql.as_deref()) {
            Some(sql) => sql.to_owned(),
            None if facts.columns.contains(&prepare.target) => profile::write_sql(&facts, &prepare.drop),
            None => {
                return Err(PrepareError::input(
                    "writing the query",
                    format!(
                        "dataset `{name}` has no column `{}`, which is the target",
                        prepare.target
                    ),
                    "Correct `prepare.target`, or write a query that computes it",
                ));
            }
        };
        let keys = release.map(|release| token_keys(self.keys, release));
        let planned = Planned::new(session::session(keys.as_ref()), name, source, &sql)
            .await
            .map_err(|error| match (error, &prepare.sql_file) {
                (PrepareError::Input { why, fix, .. }, Some(file)) => {
                    PrepareError::input(format!("planning the query in `{file}`"), why, fix)
                }
                (error, _) => error,
            })?;
        let columns = planned.columns();
        if !columns.contains(&prepare.target) {
            return Err(PrepareError::input(
                "planning the query",
                format!("it does not give the target `{}`", prepare.target),
                "Select the target, under that name",
            ));
        }
        let distinct: BTreeSet<&String> = columns.iter().collect();
        if distinct.len() < columns.len() || columns.len() < 2 {
            return Err(PrepareError::input(
                "planning the query",
                "it must give the target and at least one feature, each under a name of its own",
                "Name the columns with AS",
            ));
        }
        let mut labels = labels::analyse(&planned.plan, &facts, &sql);
        labels.warnings = warnings(name, survey, &labels);
        // What cannot be executed row by row must not be called clean before.
        match planned.traced(source, &[]) {
            Ok(_) => {}
            Err(PrepareError::Refused(refusal)) => labels.refusals.push(refusal),
            Err(error) if labels.is_clean() => return Err(error),
            Err(_) => {}
        }
        Ok((planned, labels))
    }
}

/// What leaves as it is though it looks like more than the catalog says.
fn warnings(name: &DatasetName, survey: &Survey, labels: &LabelReport) -> Vec<String> {
    let leaves_whole = |column: &String| {
        let read = format!("{name}.{column}");
        let mut readers = labels.columns.iter();
        readers.any(|output| output.function.is_none() && output.reads.contains(&read))
    };
    let doubtful = survey.doubts.iter().filter(|(column, _)| leaves_whole(column));
    doubtful
        .map(|(column, why)| {
            format!(
                "`{column}` leaves as it is: {why}. Correct its role and kind in the catalog, or leave it out under \
                 `prepare: drop:`."
            )
        })
        .collect()
}

/// The rows of one part, or none to plan with.
pub(crate) fn row_source(
    keys: &Keys,
    files: &[InputFile],
    name: &DatasetName,
    dataset: &Dataset,
    survey: &Survey,
    chosen: Chosen,
) -> Arc<RowSource> {
    let columns = survey.header.iter().zip(&survey.types).enumerate();
    Arc::new(RowSource {
        files: files.to_vec(),
        csv: dataset.csv.clone(),
        columns: columns
            .map(|(index, (name, value_type))| SourceColumn {
                name: name.clone(),
                value_type: *value_type,
                at: Some(index),
            })
            .collect(),
        chosen,
        subjects: Prf::derive(&keys.values, "subjects", b""),
        digests: Some(Prf::derive(&keys.values, "released-records", name.as_str().as_bytes())),
        without: None,
    })
}

/// What the query would let out, and the bytes of the source. Nothing is written. The types of CSV
/// columns are not in the file, so the records are read for them; the labels follow from the columns
/// and their types alone.
///
/// # Errors
/// When the source cannot be read, its values contradict the catalog, or the query cannot be planned.
/// What must not leave is no error but a refusal in the report.
pub async fn analyse(input: &PrepareInput<'_>) -> Result<(LabelReport, u64), PrepareError> {
    let (name, dataset) = input.dataset()?;
    let files = input.sources(dataset)?;
    let mut bytes = 0_u64;
    for file in &files {
        let found = fs::metadata(&file.path).map_err(|source| PrepareError::file("reading", &file.path, source))?;
        bytes = bytes.saturating_add(found.len());
    }
    let (survey, _) = input.survey(&files, name, dataset, None)?;
    let source = row_source(input.keys, &files, name, dataset, &survey, Chosen::Nothing);
    let (_, labels) = input.query(name, dataset, &survey, &source, None).await?;
    Ok((labels, bytes))
}

/// Snapshot, split, query, measurement, and the inputs of the training. The same input gives the same
/// bytes, and a call after a kill at any instruction ends as if nothing had happened.
///
/// # Errors
/// A refusal when a label, k, l or the scan for identifiers forbids the release; an error when the
/// source or the query is wrong.
pub async fn prepare(input: &PrepareInput<'_>) -> Result<Prepared, PrepareError> {
    let (name, dataset) = input.dataset()?;
    let _lock = lock(input.folder).await?;
    let snapshot = Snapshot::take(&input.sources(dataset)?, &input.folder.join("snapshots"))?;
    let prepared = input.folder.join("prepared");
    let target = input.target(name, dataset, &snapshot.digest)?;
    if let Some(reused) = open(&target, input.keys)? {
        return Ok(reused);
    }
    // What is not whole, or not as it was written, would keep a whole one from being published.
    durable::sweep(&prepared)?;
    durable::set_aside(&target)?;

    let (survey, assigner) = input.survey(&snapshot.files, name, dataset, Some(input.folder))?;
    let step_key = input.key(name, dataset, "step", &Digest::from_bytes(survey.crossing))?;
    let planning = row_source(input.keys, &snapshot.files, name, dataset, &survey, Chosen::Nothing);
    let (planned, labels) = input.query(name, dataset, &survey, &planning, Some(&step_key)).await?;
    if let Some(refusal) = labels.refusals.first() {
        return Err(PrepareError::Refused(refusal.clone()));
    }
    let draft = Draft::new(&target)?;
    let sources = Part::CROSSING.map(|part| {
        let chosen = Chosen::Part(part, Box::new(assigner.clone()));
        row_source(input.keys, &snapshot.files, name, dataset, &survey, chosen)
    });
    let making = Making {
        folder: input.folder,
        keys: input.keys,
        name,
        dataset,
        pipeline: input.pipeline,
        sample: input.sample,
        snapshot: &snapshot,
        survey: &survey,
        planned: &planned,
        labels: &labels,
        step_key,
    };
    release::make(&making, &sources, draft.path()).await?;
    draft.publish()?;
    let mut made = open(&target, input.keys)?.ok_or_else(|| {
        PrepareError::failed(
            "opening what was prepared",
            "it is not there",
            "Check the disk, and run again",
        )
    })?;
    made.reused = false;
    Ok(made)
}

/// One preparation at a time in one folder; the lock ends with the process.
pub(crate) async fn lock(folder: &Path) -> Result<File, PrepareError> {
    let path = folder.join("lock");
    let failed = |source| PrepareError::file("locking", &path, source);
    fs::create_dir_all(folder).map_err(failed)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

/// What was prepared before, where it is whole and as it was written.
pub(crate) fn open(target: &Path, keys: &Keys) -> Result<Option<Prepared>, PrepareError> {
    let Some(report) = sealed::open(target, keys)? else {
        return Ok(None);
    };
    let inputs = report
        .inputs
        .into_iter()
        .map(|name| (name.clone(), target.join("inputs").join(name)))
        .collect();
    Ok(Some(Prepared {
        inputs,
        columns: report.columns,
        labels: report.labels,
        risk: report.risk,
        step_key: report.step_key,
        home: target.join("home"),
        reused: true,
    }))
}
