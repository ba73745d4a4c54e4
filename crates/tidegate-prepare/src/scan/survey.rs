//! One pass over the source before any query: types, contradictions, and a digest of what may leave.
//! Everything it finds depends on the records of train and validation alone.

use std::collections::BTreeMap;
use std::path::Path;

use tidegate_types::Role;
use tidegate_types::files::catalog::{CsvOptions, Dataset, ValueType};
use tidegate_types::ids::DatasetName;

use super::assign::Assigner;
use super::look::Look;
use crate::error::PrepareError;
use crate::ingest::{InputFile, RecordReader, Records};
use crate::sort::Sorter;
use crate::split::{Keys, Prf};

/// What the survey found.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) header: Vec<String>,
    pub(crate) types: Vec<ValueType>,
    /// Different values of each text column, at most one more than 256.
    pub(crate) levels: Vec<Option<u64>>,
    /// A keyed digest of the header and every record that may leave, in order.
    pub(crate) crossing: [u8; 32],
    /// Records that no other subject's record equals on the raw quasi-identifiers, where they were
    /// counted.
    pub(crate) raw_unique: Option<u64>,
    /// Columns that look like more than the catalog says, with the reason.
    pub(crate) doubts: BTreeMap<String, String>,
}

/// The header alone, checked against the catalog.
pub(crate) fn header(
    files: &[InputFile],
    csv: &CsvOptions,
    name: &DatasetName,
    dataset: &Dataset,
) -> Result<RecordReader, PrepareError> {
    let reader = RecordReader::open(files.to_vec(), csv)?;
    for column in dataset.columns.keys() {
        if column != "*" && !reader.header.contains(column) {
            return Err(PrepareError::input(
                format!("reading dataset `{name}`"),
                format!("the catalog describes column `{column}`, which the source does not have"),
                "Correct the column's name in the catalog: a column that is not described there may be taken for \
                 something harmless",
            ));
        }
    }
    Ok(reader)
}

/// Reads the source once. Records that are unique are counted where there is a folder to sort them in.
pub(crate) fn survey(
    files: &[InputFile],
    name: &DatasetName,
    dataset: &Dataset,
    assigner: &Assigner,
    keys: &Keys,
    aside: Option<&Path>,
) -> Result<Survey, PrepareError> {
    let mut reader = header(files, &dataset.csv, name, dataset)?;
    let header = reader.header.clone();
    let mut assigner = assigner.clone();
    let mut looks: Vec<Look> = header.iter().map(|_| Look::new()).collect();
    let mut crossing = Prf::derive(&keys.values, "crossing-records", b"").running();
    let quasi_prf = Prf::derive(&keys.values, "raw-quasi-identifiers", b"");
    for column in &header {
        crossing.field(Some(column));
    }
    let quasi: Vec<usize> = header
        .iter()
        .enumerate()
        .filter(|(_, column)| {
            dataset
                .column(column)
                .is_some_and(|facts| facts.role == Role::QuasiIdentifier)
        })
        .map(|(index, _)| index)
        .collect();
    let mut combinations = aside.map(Sorter::new);
    let mut records = Records::default();
    while reader.next(&mut records)? {
        for record in 0..records.len() {
            if !assigner
                .assign(&records, record)?
                .part
                .is_some_and(crate::split::Part::crosses)
            {
                continue;
            }
            for (index, look) in looks.iter_mut().enumerate() {
                let field = records.get(record, index);
                crossing.field(field);
                look.see(field, &records.file, records.line(record));
            }
            if let (Some(combinations), false) = (&mut combinations, quasi.is_empty()) {
                let mut digest = quasi_prf.running();
                for index in &quasi {
                    digest.field(records.get(record, *index));
                }
                combinations.push(&[&digest.finish()])?;
            }
        }
        if assigner.is_full() {
            break;
        }
    }
    let mut types = Vec::with_capacity(header.len());
    let mut doubts = BTreeMap::new();
    for ((column, look), declared) in header.iter().zip(&looks).zip(&reader.declared) {
        let facts = dataset.column(column);
        let value_type = match (facts.and_then(|facts| facts.value_type), declared) {
            (Some(written), _) => written,
            (None, Some(declared)) => *declared,
            (None, None) => look.guess.settle(column, facts)?,
        };
        if let Some(facts) = facts.filter(|_| !dataset.public) {
            let by_default = !dataset.columns.contains_key(column);
            if let Some(refusal) = look.contradicts(column, facts, by_default, value_type) {
                return Err(refusal.into());
            }
            if let Some(why) = look.doubts(column, facts, value_type) {
                let why = format!("the catalog says {}, {why}", facts.role);
                doubts.insert(column.clone(), why);
            }
        }
        types.push(value_type);
    }
    Ok(Survey {
        header,
        levels: types
            .iter()
            .zip(&looks)
            .map(|(value_type, look)| (*value_type == ValueType::Text).then(|| look.distinct().0.min(257)))
            .collect(),
        types,
        crossing: crossing.finish(),
        doubts,
        raw_unique: combinations.map(alone).transpose()?,
    })
}

/// How many records equal no other.
fn alone(records: Sorter) -> Result<u64, PrepareError> {
    let mut sorted = records.finish()?;
    let mut reader = sorted.read()?;
    let (mut last, mut times, mut alone) = (Vec::new(), 0_u64, 0);
    while let Some(record) = reader.next()? {
        if last != record {
            alone += u64::from(times == 1);
            last.clear();
            last.extend_from_slice(record);
            times = 0;
        }
        times += 1;
    }
    Ok(alone + u64::from(times == 1))
}
