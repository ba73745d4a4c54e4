//! Makes what may be asked to cross: executes the query on train and validation, measures, suppresses,
//! looks for identifiers, and writes the rows in a secret order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Write};
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
use crate::home::{Home, HomeColumn, HomeParts, SUPPRESSED, bad_targets, one_outcome};
use crate::ingest::Snapshot;
use crate::metadata;
use crate::prepare::Report;
use crate::recipe::{self, Feature, FeatureType, MOST_LEVELS, Recipe, RecipeColumn, outcome};
use crate::scan::survey::Survey;
use crate::scan::words::{each_chunk, identifier_columns};
use crate::sealed;
use crate::sort::{Bits, Sorted};
use crate::split::{Keys, Part, Prf};
use crate::spool::{Spool, SpoolWriter};

/// The file that holds the rows of an input.
const FILE: &str = "part-00000.csv";

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
struct Rows<'a> {
    spool: Spool,
    measure: Measure<'a>,
}

/// Writes `inputs/`, `home/` and `report.json` into `draft`.
pub(crate) async fn make(making: &Making<'_>, sources: &[Arc<RowSource>; 2], draft: &Path) -> Result<(), PrepareError> {
    let columns = making.planned.columns();
    let mut rows = execute(making, sources).await?;
    let register_key = Prf::derive(&making.keys.values, "releases", b"");
    let releases = making.folder.join("releases");
    let register = Register::open(&releases, making.name, making.step_key, register_key)?;
    let mut verdict = rows.measure.settle(&register, &requirement(making))?;
    if !making.dataset.public && making.pipeline.prepare.disclosure.to < Level::Restricted {
        look_for_identifiers(making, sources, &mut rows.spool, &verdict.alive, &columns)?;
    }
    let (inputs, features) = write_inputs(making, &mut rows.spool, &verdict.alive, &columns, draft)?;
    if !making.dataset.public {
        verdict.record(&register)?;
    }
    write_home(making, features, &mut verdict.suppressed_records, draft)?;
    let report = Report {
        inputs,
        columns,
        labels: making.labels.clone(),
        risk: risk(making, &verdict, register.earlier_count),
        step_key: making.step_key,
    };
    sealed::write(draft, making.keys, &report)
}

async fn execute<'a>(making: &Making<'a>, sources: &[Arc<RowSource>; 2]) -> Result<Rows<'a>, PrepareError> {
    let columns = making.planned.columns();
    let order = Prf::derive(&making.keys.values, "row-order", making.step_key.as_bytes());
    let mut spool = SpoolWriter::new(making.folder, order, columns.len());
    let groups = Prf::derive(&making.keys.values, "groups", making.name.as_str().as_bytes());
    let mut measure = Measure::new(
        making.folder,
        counted(making.labels, Role::QuasiIdentifier),
        counted(making.labels, Role::Sensitive),
        groups,
        making.planned.may_repeat_records(),
    );
    let target = columns
        .iter()
        .position(|column| *column == making.pipeline.prepare.target)
        .unwrap_or(0);
    let (mut rows, mut bad, mut learned) = (0, 0, [0_u64; 2]);
    for (part, source) in Part::CROSSING.into_iter().zip(sources) {
        making
            .planned
            .execute(source, &[], |batch| {
                for row in 0..batch.len() {
                    measure.add(batch, row)?;
                    spool.add(part, batch, row)?;
                    rows += 1;
                    match outcome(batch.field(target, row)) {
                        None => bad += 1,
                        Some(outcome) if part == Part::Train => learned[usize::from(outcome)] += 1,
                        Some(_) => {}
                    }
                }
                Ok(())
            })
            .await?;
    }
    if bad > 0 {
        return Err(bad_targets(&making.pipeline.prepare.target, bad, rows));
    }
    if learned == [0, 0] {
        return Err(PrepareError::input(
            "preparing the training's input",
            "no row of the training part is left",
            "Use a larger source or sample, or a query that keeps more rows",
        ));
    }
    if learned.contains(&0) {
        return Err(one_outcome(&making.pipeline.prepare.target, "the training part"));
    }
    Ok(Rows {
        spool: spool.finish()?,
        measure,
    })
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

fn risk(making: &Making<'_>, verdict: &Verdict, earlier_releases: u64) -> RiskReport {
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
        rows: verdict.rows,
        suppressed_rows: verdict.suppressed,
        subjects: verdict.subjects,
        earlier_releases,
        raw_unique_rows: making.survey.raw_unique.unwrap_or(0),
    }
}

fn look_for_identifiers(
    making: &Making<'_>,
    sources: &[Arc<RowSource>; 2],
    spool: &mut Spool,
    alive: &Bits,
    columns: &[String],
) -> Result<(), PrepareError> {
    let named = identifier_columns(making.dataset, making.survey.header.iter().map(String::as_str));
    each_chunk(sources.iter().map(Arc::as_ref), &named, |identifiers| {
        let mut found = vec![Found::default(); columns.len()];
        spool.each(None, alive, |row| {
            for (found, field) in found.iter_mut().zip(row) {
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
    alive: &Bits,
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
        let path = folder.join(FILE);
        let failed = |source: std::io::Error| PrepareError::file("writing", &path, source);
        fs::create_dir_all(&folder).map_err(failed)?;
        let file = fs::File::create(&path).map_err(failed)?;
        let mut writer = csv::WriterBuilder::new().buffer_capacity(1 << 20).from_writer(file);
        let unwritten = |error: csv::Error| failed(std::io::Error::other(error));
        writer.write_record(columns).map_err(unwritten)?;
        spool.each(Some(part), alive, |row| {
            if part == Part::Train {
                for (index, levels) in &mut levels {
                    if let Some(level) = row.get(*index).filter(|level| !level.is_empty())
                        && levels.len() <= MOST_LEVELS
                        && !levels.contains(*level)
                    {
                        levels.insert((*level).to_owned());
                    }
                }
            }
            writer.write_record(row).map_err(unwritten)
        })?;
        writer.flush().map_err(failed)?;
        metadata::write(&folder, FILE, fields)?;
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
    suppressed: &mut Sorted,
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
    let mut count = 0_u64;
    let path = folder.join(SUPPRESSED);
    let failed = |source| PrepareError::file("writing", &path, source);
    let mut file = BufWriter::new(fs::File::create(&path).map_err(failed)?);
    let mut records = suppressed.read()?;
    while let Some(record) = records.next()? {
        file.write_all(record).map_err(failed)?;
        count += 1;
    }
    file.flush().map_err(failed)?;
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
        suppressed: count,
    })
    .write(&folder)
}
