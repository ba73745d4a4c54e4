//! Makes what may be asked to cross: executes the query on train and validation, measures, suppresses,
//! looks for identifiers, and writes the rows in a secret order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use tidegate_types::files::Pipeline;
use tidegate_types::files::catalog::Dataset;
use tidegate_types::files::pipeline::OnViolation;
use tidegate_types::ids::DatasetName;
use tidegate_types::label::Level;
use tidegate_types::report::{LabelReport, RiskReport};
use tidegate_types::{Digest, Role};

use crate::disclosure::identifiers::Found;
use crate::disclosure::register::Register;
use crate::disclosure::{Counted, Measure, Requirement, Verdict};
use crate::error::PrepareError;
use crate::execute::{Planned, RowSource};
use crate::home::{Home, HomeColumn, HomeParts, bad_targets};
use crate::ingest::Snapshot;
use crate::prepare::Report;
use crate::recipe::{self, Feature, FeatureType, MOST_LEVELS, Recipe, RecipeColumn, outcome};
use crate::scan::survey::Survey;
use crate::scan::words::{each_chunk, identifier_columns};
use crate::split::{Keys, Part, Prf};
use crate::spool::{Spool, SpoolWriter};

/// What a release is made from.
pub(crate) struct Making<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) keys: &'a Keys,
    pub(crate) name: &'a DatasetName,
    pub(crate) dataset: &'a Dataset,
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) sample: Option<u64>,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) survey: &'a Survey,
    pub(crate) planned: &'a Planned,
    pub(crate) labels: &'a LabelReport,
    pub(crate) step_key: Digest,
}

/// Rows that were executed and not yet let go.
struct Rows {
    spool: Spool,
    measure: Measure,
    /// The source record of each row.
    records: Vec<u64>,
}

/// Writes `inputs/`, `home/` and `report.json` into `draft`.
pub(crate) async fn make(making: &Making<'_>, sources: &[Arc<RowSource>; 2], draft: &Path) -> Result<(), PrepareError> {
    let columns = making.planned.columns();
    let mut rows = execute(making, sources).await?;
    let count = rows.records.len() as u64;
    let register = Register::open(&making.folder.join("releases"), making.name, making.step_key)?;
    let verdict = rows.measure.settle(&register.earlier, &requirement(making))?;
    if !making.dataset.public && making.pipeline.prepare.disclosure.to < Level::Restricted {
        look_for_identifiers(making, sources, &mut rows.spool, &verdict.alive, &columns)?;
    }
    let (inputs, features) = write_inputs(making, &mut rows.spool, &verdict.alive, &columns, draft)?;
    if !making.dataset.public {
        register.record(&verdict.members)?;
    }
    let suppressed = rows.records.iter().zip(&verdict.alive).filter(|(_, alive)| !**alive);
    let suppressed: BTreeSet<u64> = suppressed.map(|(record, _)| *record).collect();
    write_home(making, features, suppressed, draft)?;
    let report = Report {
        inputs,
        columns,
        labels: making.labels.clone(),
        risk: risk(making, &verdict, count, register.earlier_count),
        step_key: making.step_key,
    };
    let path = draft.join("report.json");
    let bytes = serde_json::to_vec_pretty(&report)
        .map_err(|error| PrepareError::failed("writing the report", error.to_string(), "Report this"))?;
    fs::write(&path, bytes).map_err(|source| PrepareError::file("writing", &path, source))
}

async fn execute(making: &Making<'_>, sources: &[Arc<RowSource>; 2]) -> Result<Rows, PrepareError> {
    let columns = making.planned.columns();
    let order = Prf::derive(&making.keys.values, "row-order", making.step_key.as_bytes());
    let mut spool = SpoolWriter::new(making.folder, order, columns.len())?;
    let groups = Prf::derive(&making.keys.values, "groups", making.name.as_str().as_bytes());
    let mut measure = Measure::new(
        counted(making.labels, Role::QuasiIdentifier),
        counted(making.labels, Role::Sensitive),
        groups,
    );
    let target = columns
        .iter()
        .position(|column| *column == making.pipeline.prepare.target)
        .unwrap_or(0);
    let (mut records, mut bad, mut learned) = (Vec::new(), 0, false);
    for (part, source) in Part::CROSSING.into_iter().zip(sources) {
        let digests = record_digests(making, source)?;
        making
            .planned
            .execute(source, &[], |batch| {
                for row in 0..batch.len() {
                    let record = batch.records.value(row);
                    let Some(digest) = digests.get(&record) else {
                        return Err(PrepareError::failed(
                            "executing the query",
                            "an output row has lost its record",
                            "Report this query",
                        ));
                    };
                    measure.add(batch, row, *digest)?;
                    spool.add(part, batch, row)?;
                    records.push(record);
                    bad += u64::from(outcome(batch.field(target, row)).is_none());
                    learned |= part == Part::Train;
                }
                Ok(())
            })
            .await?;
    }
    if bad > 0 {
        return Err(bad_targets(&making.pipeline.prepare.target, bad, records.len() as u64));
    }
    if !learned {
        return Err(PrepareError::failed(
            "preparing the training's input",
            "no row of the training part is left",
            "Use a larger source or sample, or a query that keeps more rows",
        ));
    }
    Ok(Rows {
        spool: spool.finish()?,
        measure,
        records,
    })
}

/// A keyed digest of each record of one part, by its number.
fn record_digests(making: &Making<'_>, source: &RowSource) -> Result<HashMap<u64, u64>, PrepareError> {
    let prf = Prf::derive(&making.keys.values, "released-records", making.name.as_str().as_bytes());
    let mut digests = HashMap::new();
    source.read(|records, rows, _| {
        for &row in rows {
            let mut digest = prf.running();
            for column in 0..making.survey.header.len() {
                digest.field(records.get(row, column));
            }
            let [a, b, c, d, e, f, g, h, ..] = digest.finish();
            digests.insert(
                records.first.saturating_add(row as u64),
                u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            );
        }
        Ok(true)
    })?;
    Ok(digests)
}

/// The output columns with a role, and what they mean over all releases.
fn counted(labels: &LabelReport, role: Role) -> Vec<Counted> {
    let columns = labels.columns.iter().enumerate();
    columns
        .filter(|(_, column)| column.role == role)
        .map(|(index, column)| Counted {
            index,
            name: column.name.clone(),
            meaning: column.function.clone().unwrap_or_else(|| column.reads.join(", ")),
        })
        .collect()
}

fn requirement(making: &Making<'_>) -> Requirement {
    let disclosure = &making.pipeline.prepare.disclosure;
    // Where nothing is lowered nothing must be met: a restricted output stays as well guarded.
    let free = making.dataset.public || disclosure.to == Level::Restricted;
    let at_least = |asked: Option<u32>, least: u32| {
        if free {
            0
        } else {
            u64::from(asked.unwrap_or(0).max(least))
        }
    };
    Requirement {
        k: at_least(disclosure.k, making.dataset.least_k),
        l: at_least(disclosure.l, making.dataset.least_l),
        suppress: disclosure.on_violation == OnViolation::Suppress,
        max_suppressed: disclosure.max_suppressed,
    }
}

fn risk(making: &Making<'_>, verdict: &Verdict, rows: u64, earlier_releases: u64) -> RiskReport {
    let names = |role| {
        counted(making.labels, role)
            .into_iter()
            .map(|column| column.name)
            .collect()
    };
    RiskReport {
        quasi_identifiers: names(Role::QuasiIdentifier),
        sensitive: names(Role::Sensitive),
        k: verdict.k,
        k_before: verdict.k_before,
        l: verdict.l,
        groups: verdict.groups,
        rows,
        suppressed_rows: verdict.suppressed,
        subjects: verdict.subjects,
        earlier_releases,
        raw_unique_rows: making.survey.raw_unique,
    }
}

fn look_for_identifiers(
    making: &Making<'_>,
    sources: &[Arc<RowSource>; 2],
    spool: &mut Spool,
    alive: &[bool],
    columns: &[String],
) -> Result<(), PrepareError> {
    let named = identifier_columns(making.dataset, making.survey.header.iter().map(String::as_str));
    each_chunk(sources.iter().map(Arc::as_ref), &named, |identifiers| {
        let mut found = vec![Found::default(); columns.len()];
        spool.each(alive, |_, row| {
            for (found, field) in found.iter_mut().zip(&row.fields) {
                found.look(field, identifiers);
            }
            Ok(())
        })?;
        for (found, column) in found.iter().zip(columns) {
            if let Some(refusal) = found.refusal(column, &making.survey.header) {
                return Err(refusal.into());
            }
        }
        Ok(())
    })
}

/// Writes the CSV files and finds the levels of categories in the training rows.
fn write_inputs(
    making: &Making<'_>,
    spool: &mut Spool,
    alive: &[bool],
    columns: &[String],
    draft: &Path,
) -> Result<(BTreeSet<String>, Vec<Feature>), PrepareError> {
    let fields = making.planned.plan.schema().fields();
    let mut levels: BTreeMap<usize, BTreeSet<String>> = fields
        .iter()
        .enumerate()
        .filter(|(_, field)| is_text(field.data_type()))
        .map(|(index, _)| (index, BTreeSet::new()))
        .collect();
    let mut inputs = BTreeSet::new();
    for part in Part::CROSSING {
        if part == Part::Validation && making.pipeline.prepare.split.validation <= 0.0 {
            continue;
        }
        let folder = draft.join("inputs").join(part.as_str());
        let path = folder.join("part-00000.csv");
        let failed = |source: std::io::Error| PrepareError::file("writing", &path, source);
        fs::create_dir_all(&folder).map_err(failed)?;
        let file = fs::File::create(&path).map_err(failed)?;
        let mut writer = csv::WriterBuilder::new().buffer_capacity(1 << 20).from_writer(file);
        let unwritten = |error: csv::Error| failed(std::io::Error::other(error));
        writer.write_record(columns).map_err(unwritten)?;
        spool.shuffled(part, alive, |row| {
            if part == Part::Train {
                for (index, levels) in &mut levels {
                    if let Some(level) = row.fields.get(*index).filter(|level| !level.is_empty())
                        && levels.len() <= MOST_LEVELS
                        && !levels.contains(level)
                    {
                        levels.insert(level.clone());
                    }
                }
            }
            writer.write_record(&row.fields).map_err(unwritten)
        })?;
        writer.flush().map_err(failed)?;
        inputs.insert(part.as_str().to_owned());
    }
    let mut features = Vec::new();
    for (index, column) in columns.iter().enumerate() {
        if *column != making.pipeline.prepare.target {
            features.push(Feature {
                name: column.clone(),
                feature_type: match levels.remove(&index) {
                    None => FeatureType::Number,
                    Some(levels) if levels.len() <= MOST_LEVELS => FeatureType::Category {
                        levels: levels.into_iter().collect(),
                    },
                    Some(_) => FeatureType::Text,
                },
            });
        }
    }
    Ok((inputs, features))
}

/// Whether a column is written as words rather than numbers.
fn is_text(data_type: &DataType) -> bool {
    !(data_type.is_numeric() || matches!(data_type, DataType::Boolean | DataType::Null))
}

fn write_home(
    making: &Making<'_>,
    features: Vec<Feature>,
    suppressed: BTreeSet<u64>,
    draft: &Path,
) -> Result<(), PrepareError> {
    let folder = draft.join("home");
    fs::create_dir_all(&folder).map_err(|source| PrepareError::file("creating", &folder, source))?;
    let prepare = &making.pipeline.prepare;
    let survey = making.survey;
    let types = || survey.header.iter().zip(&survey.types);
    Recipe {
        format: Recipe::format(),
        dataset: making.name.clone(),
        sql: making.labels.sql.clone(),
        profile: prepare.profile,
        source: types()
            .map(|(name, value_type)| RecipeColumn {
                name: name.clone(),
                value_type: *value_type,
            })
            .collect(),
        csv: making.dataset.csv.clone(),
        needs: recipe::needs(making.planned, &prepare.target)?,
        features,
        target: prepare.target.clone(),
        release: making.step_key,
    }
    .write(&folder)?;
    Home::new(HomeParts {
        snapshot: making.snapshot.digest,
        name: making.name,
        dataset: making.dataset,
        columns: types()
            .zip(&survey.levels)
            .map(|((name, value_type), levels)| HomeColumn {
                name: name.clone(),
                value_type: *value_type,
                levels: *levels,
            })
            .collect(),
        split: prepare.split,
        sample: making.sample,
        drop: prepare.drop.iter().cloned().collect(),
        suppressed: suppressed.into_iter().collect(),
    })
    .write(&folder)
}
