//! From a table to features: which column is what, and how numbers are filled and normalised.

use std::collections::BTreeSet;

use ndarray::{ArrayView1, ArrayView2};
use tidegate_bundle::dense::{CategoryColumn, NumericColumn, Preprocessing};
use tidegate_bundle::schema::MAX_LEVELS;
use tidegate_bundle::{Feature, FeatureKind, FeatureSchema};

use crate::error::LearnError;
use crate::table::{ColumnType, Table};

/// A column says by a feature of its own that a value is missing from so many missing values on; the
/// weight of a feature that is hardly ever there is little more than chance.
const MIN_MISSING_FOR_INDICATOR: usize = 10;

/// The schema of a training table. A column is numeric or a category as its table says; where that says
/// nothing, a column of which every value is a finite number is numeric. A category has its texts in order
/// as levels. Columns without a value are left out.
pub(crate) fn infer_schema(table: &Table, target: &str) -> Result<FeatureSchema, LearnError> {
    let mut features = Vec::new();
    for name in table.header().iter().filter(|name| *name != target) {
        let mut feature = Feature {
            name: name.clone(),
            kind: FeatureKind::Numeric,
        };
        let (mut values, mut numbers) = (0u64, 0u64);
        let mut levels = BTreeSet::new();
        for text in table.column(name).into_iter().flatten().filter(|text| !text.is_empty()) {
            values += 1;
            numbers += u64::from(feature.encode(text).is_some());
            if levels.len() <= MAX_LEVELS && !levels.contains(text) {
                levels.insert(text.to_owned());
            }
        }
        if values == 0 {
            continue;
        }
        let numeric = match table.column_type(name) {
            Some(column_type) => column_type == ColumnType::Number,
            None => numbers == values,
        };
        if !numeric {
            if levels.len() > MAX_LEVELS {
                let numbers = u32::try_from(numbers * 100 / values).unwrap_or(100);
                return Err(LearnError::TooManyLevels {
                    column: name.clone(),
                    numbers,
                });
            }
            feature.kind = FeatureKind::Category {
                levels: levels.into_iter().collect(),
            };
        }
        features.push(feature);
    }
    if features.is_empty() {
        return Err(LearnError::NoFeature);
    }
    let schema = FeatureSchema {
        features,
        target: target.to_owned(),
    };
    schema.check()?;
    Ok(schema)
}

/// The outcome of each record.
pub(crate) fn outcomes(table: &Table, target: &str, part: &'static str) -> Result<Vec<bool>, LearnError> {
    let fields = table
        .column(target)
        .ok_or_else(|| LearnError::NoTarget(target.to_owned(), part))?;
    let read = |(position, text): (usize, &str)| {
        parse_outcome(text).ok_or_else(|| LearnError::Target {
            column: target.to_owned(),
            record: position + 1,
            part,
        })
    };
    fields.enumerate().map(read).collect()
}

/// 0 and 1, also as `0.0` and `1.0`, or a boolean.
fn parse_outcome(text: &str) -> Option<bool> {
    match text {
        "1" | "true" | "True" | "TRUE" => Some(true),
        "0" | "false" | "False" | "FALSE" => Some(false),
        _ => match text.parse::<f64>() {
            Ok(1.0) => Some(true),
            Ok(0.0) => Some(false),
            _ => None,
        },
    }
}

/// Fits filling and normalisation on the training matrix alone: a missing number becomes the mean,
/// and numbers get mean 0 and standard deviation 1.
pub(crate) fn fit_preprocessing(schema: &FeatureSchema, matrix: ArrayView2<'_, f32>) -> Preprocessing {
    let mut steps = Preprocessing::default();
    for (column, feature) in schema.features.iter().enumerate() {
        match &feature.kind {
            FeatureKind::Numeric => steps.numeric.push(fit_numeric(column, matrix.column(column))),
            FeatureKind::Category { levels } => steps.categories.push(CategoryColumn {
                column,
                levels: levels.len(),
            }),
        }
    }
    steps
}

fn fit_numeric(column: usize, values: ArrayView1<'_, f32>) -> NumericColumn {
    let present = || {
        values
            .iter()
            .filter(|value| !value.is_nan())
            .map(|&value| f64::from(value))
    };
    let count = present().count();
    let mean = present().sum::<f64>() / count.max(1) as f64;
    let variance = present().map(|value| (value - mean).powi(2)).sum::<f64>() / count.max(1) as f64;
    // A constant gets the smallest scale there is and not 0: infinity times 0 would be no number.
    let scale = Some((1.0 / variance.sqrt()) as f32)
        .filter(|scale| scale.is_normal())
        .unwrap_or(f32::MIN_POSITIVE);
    let mean = mean as f32;
    NumericColumn {
        column,
        fill: mean,
        mean,
        scale,
        indicator: values.len() - count >= MIN_MISSING_FOR_INDICATOR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(header: &[&str], records: &[&[&str]]) -> Table {
        Table::new(
            header.iter().map(|&name| name.to_owned()).collect(),
            records.iter().map(|record| record.to_vec()),
        )
        .unwrap()
    }

    #[test]
    fn columns_are_told_apart_by_their_values() {
        let table = table(
            &["n", "c", "y", "none"],
            &[&["1", "b", "1", ""], &["", "", "0", ""], &["-2.5e3", "a", "true", ""]],
        );
        let schema = infer_schema(&table, "y").unwrap();
        let levels = vec!["a".to_owned(), "b".to_owned()];
        let expected = [("n", FeatureKind::Numeric), ("c", FeatureKind::Category { levels })];
        assert_eq!(
            schema.features,
            expected.map(|(name, kind)| Feature {
                name: name.to_owned(),
                kind
            })
        );
        assert_eq!(outcomes(&table, "y", "training").unwrap(), [true, false, true]);
        assert!(matches!(
            outcomes(&table, "n", "training"),
            Err(LearnError::Target { record: 2, .. })
        ));
        assert!(matches!(
            outcomes(&table, "z", "training"),
            Err(LearnError::NoTarget(..))
        ));
    }

    #[test]
    fn a_column_is_what_its_table_says_and_not_what_its_values_look_like() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("1.csv", "code,amount,guessed,none,y\n021,3,1,,1\n902,4,2,,0\n,,3,,0\n");
        let read = || Table::read_folder(folder.path()).unwrap();
        let kinds = |table: &Table| {
            infer_schema(table, "y")
                .unwrap()
                .features
                .into_iter()
                .map(|it| it.kind)
                .collect()
        };
        let guessed: Vec<FeatureKind> = kinds(&read());
        assert_eq!(
            guessed,
            [FeatureKind::Numeric, FeatureKind::Numeric, FeatureKind::Numeric]
        );
        let says = |amount: &str| {
            format!(
                r#"{{"tableSchema": {{"columns": [{{"name": "code", "datatype": "string"}},
                    {{"name": "amount", "datatype": "{amount}"}}, {{"name": "none", "datatype": "string"}}]}}}}"#
            )
        };
        write("csv-metadata.json", &says("integer"));
        let levels = vec!["021".to_owned(), "902".to_owned()];
        let told: Vec<FeatureKind> = kinds(&read());
        assert_eq!(
            told,
            [
                FeatureKind::Category { levels },
                FeatureKind::Numeric,
                FeatureKind::Numeric
            ]
        );
        // A number that is none is an error where it is encoded, and makes no category of the column.
        write("1.csv", "code,amount,guessed,none,y\n021,n/a,1,,1\n");
        let table = read();
        let schema = infer_schema(&table, "y").unwrap();
        assert_eq!(schema.features[1].kind, FeatureKind::Numeric);
        assert!(table.encode(&schema).unwrap_err().to_string().contains("amount"));
    }

    #[test]
    fn a_column_of_many_texts_is_refused_with_a_way_out() {
        let records = (0..400).map(|row| {
            vec![
                if row == 7 { "n/a".to_owned() } else { row.to_string() },
                "1".to_owned(),
            ]
        });
        let table = Table::new(vec!["almost_number".into(), "y".into()], records).unwrap();
        let text = infer_schema(&table, "y").unwrap_err().to_string();
        assert!(
            text.contains("`almost_number`") && text.contains("99 %") && !text.contains("n/a"),
            "{text}"
        );
    }

    #[test]
    fn constants_and_huge_numbers_stay_finite() {
        let table = table(
            &["constant", "huge", "y"],
            &[&["7", "3e38", "1"], &["7", "-3e38", "0"], &["7", "", "0"]],
        );
        let schema = infer_schema(&table, "y").unwrap();
        let matrix = table.encode(&schema).unwrap();
        let steps = fit_preprocessing(&schema, matrix.view());
        let expanded = steps.apply(matrix.view());
        assert!(expanded.iter().all(|value| value.is_finite()), "{expanded}");
        let later = ndarray::array![[-3e38f32, 3e38]];
        assert!(steps.apply(later.view()).iter().all(|value| value.is_finite()));
    }
}
