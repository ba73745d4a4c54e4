//! `schema.json`: what the columns of the model's input mean, and how a record becomes a row of it.

use ndarray::Array2;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most features a model may have.
pub const MAX_FEATURES: usize = 10_000;
/// The most levels a category may have.
pub const MAX_LEVELS: usize = 256;

/// The ordered features of a model: column `i` of its input matrix is `features[i]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FeatureSchema {
    /// Columns of the input matrix, in order.
    pub features: Vec<Feature>,
    /// Name of the column that the model predicts.
    pub target: String,
}

/// One column of the input matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Name of the column in the records.
    pub name: String,
    /// How its values become numbers.
    pub kind: FeatureKind,
}

/// How a text value becomes a 32-bit float. A missing value is NaN in either case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum FeatureKind {
    /// The number itself.
    Numeric,
    /// The position of the level in `levels`, counted from 0; an unknown level counts as missing.
    Category {
        /// The levels in order, each once.
        levels: Vec<String>,
    },
}

/// A schema that no model can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchema {
    /// The JSON is not a schema.
    #[error("reading the feature schema: {0}")]
    Json(String),
    /// No feature, or too many.
    #[error("the feature schema names {0} features; it must name 1 to {MAX_FEATURES}")]
    FeatureCount(usize),
    /// A name that is empty or stands twice.
    #[error("the feature schema names column `{0}` twice, or a name is empty, or the target is a feature")]
    Name(String),
    /// No level, too many, or one twice.
    #[error("the levels of column `{0}` must be 1 to {MAX_LEVELS} different, non-empty texts")]
    Levels(String),
}

/// A record that does not fit the schema. Names columns, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A feature's column is not in the header.
    #[error("column `{0}` is needed by the model and is missing in the records")]
    MissingColumn(String),
    /// A numeric column holds something else.
    #[error("column `{column}`, record {record}: the value is not a finite number")]
    NotNumeric {
        /// The column.
        column: String,
        /// Position of the record, counted from 1.
        record: usize,
    },
    /// A record is shorter or longer than the header.
    #[error("record {record} has {found} fields, the header has {expected}")]
    Width {
        /// Position of the record, counted from 1.
        record: usize,
        /// Fields found.
        found: usize,
        /// Fields of the header.
        expected: usize,
    },
}

impl FeatureSchema {
    /// Reads and checks `schema.json`.
    ///
    /// # Errors
    /// When the JSON is not a schema, or the schema contradicts itself.
    pub fn from_json(bytes: &[u8]) -> Result<Self, InvalidSchema> {
        let schema: Self = serde_json::from_slice(bytes).map_err(|error| InvalidSchema::Json(error.to_string()))?;
        schema.check()?;
        Ok(schema)
    }

    /// Checks what the types cannot say: names and levels are there and differ.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn check(&self) -> Result<(), InvalidSchema> {
        if self.features.is_empty() || self.features.len() > MAX_FEATURES {
            return Err(InvalidSchema::FeatureCount(self.features.len()));
        }
        let mut names = std::collections::BTreeSet::from([self.target.as_str()]);
        for feature in &self.features {
            if feature.name.is_empty() || !names.insert(&feature.name) {
                return Err(InvalidSchema::Name(feature.name.clone()));
            }
            if let FeatureKind::Category { levels } = &feature.kind {
                let distinct: std::collections::BTreeSet<_> = levels.iter().filter(|level| !level.is_empty()).collect();
                if levels.is_empty() || levels.len() > MAX_LEVELS || distinct.len() != levels.len() {
                    return Err(InvalidSchema::Levels(feature.name.clone()));
                }
            }
        }
        Ok(())
    }

    /// Encodes text records into the model's input matrix `[records, features]`.
    ///
    /// Columns are found by their name in `header`; others are ignored. An empty field is missing.
    ///
    /// # Errors
    /// When a feature's column is missing, a record has another width than the header, or a numeric
    /// column holds a text that is not a finite number.
    pub fn encode<R, S>(&self, header: &[S], records: impl IntoIterator<Item = R>) -> Result<Array2<f32>, EncodeError>
    where
        R: AsRef<[S]>,
        S: AsRef<str>,
    {
        let positions = self.positions(header)?;
        let mut values = Vec::new();
        let mut count = 0;
        for record in records {
            let fields = record.as_ref();
            count += 1;
            if fields.len() != header.len() {
                return Err(EncodeError::Width {
                    record: count,
                    found: fields.len(),
                    expected: header.len(),
                });
            }
            for (feature, &position) in self.features.iter().zip(&positions) {
                let text = fields.get(position).map_or("", AsRef::as_ref);
                let value = feature.encode(text);
                values.push(value.ok_or_else(|| EncodeError::NotNumeric {
                    column: feature.name.clone(),
                    record: count,
                })?);
            }
        }
        // The vector holds `features` values for each record, so the shape always fits.
        Ok(Array2::from_shape_vec((count, self.features.len()), values).unwrap_or_default())
    }

    fn positions<S: AsRef<str>>(&self, header: &[S]) -> Result<Vec<usize>, EncodeError> {
        let find = |feature: &Feature| {
            let position = header.iter().position(|name| name.as_ref() == feature.name);
            position.ok_or_else(|| EncodeError::MissingColumn(feature.name.clone()))
        };
        self.features.iter().map(find).collect()
    }
}

impl Feature {
    /// The number that stands for a text: NaN for an empty one and for an unknown level, `None` for
    /// a text in a numeric column that is no finite number (also none as a 32-bit float).
    #[must_use]
    pub fn encode(&self, text: &str) -> Option<f32> {
        if text.is_empty() {
            return Some(f32::NAN);
        }
        match &self.kind {
            FeatureKind::Numeric => {
                let value = text.parse::<f64>().ok()? as f32;
                value.is_finite().then_some(value)
            }
            FeatureKind::Category { levels } => Some(
                levels
                    .iter()
                    .position(|level| level == text)
                    .map_or(f32::NAN, |position| position as f32),
            ),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn schema() -> FeatureSchema {
        FeatureSchema {
            features: vec![
                Feature {
                    name: "age".into(),
                    kind: FeatureKind::Numeric,
                },
                Feature {
                    name: "ward".into(),
                    kind: FeatureKind::Category {
                        levels: vec!["icu".into(), "or".into()],
                    },
                },
            ],
            target: "died".into(),
        }
    }

    #[test]
    fn finds_columns_by_name_and_marks_what_is_missing() {
        let records = [["or", "x", "61.5"], ["", "x", ""], ["elsewhere", "x", "-2"]];
        let matrix = schema().encode(&["ward", "other", "age"], records).unwrap();
        assert_eq!(matrix.shape(), [3, 2]);
        assert_eq!((matrix[[0, 0]], matrix[[0, 1]], matrix[[2, 0]]), (61.5, 1.0, -2.0));
        assert!(matrix[[1, 0]].is_nan() && matrix[[1, 1]].is_nan() && matrix[[2, 1]].is_nan());
    }

    #[test]
    fn errors_name_the_column_and_never_the_value() {
        let none: [[&str; 1]; 0] = [];
        assert_eq!(
            schema().encode(&["age"], none),
            Err(EncodeError::MissingColumn("ward".into()))
        );
        for secret in ["4711-secret", "inf", "NaN", "1e39"] {
            let error = schema()
                .encode(&["age", "ward"], [["1", "or"], [secret, "or"]])
                .unwrap_err();
            assert_eq!(
                error.to_string(),
                "column `age`, record 2: the value is not a finite number"
            );
        }
    }

    #[test]
    fn json_is_strict_and_checked() {
        let text = serde_json::to_string(&schema()).unwrap();
        assert_eq!(
            text,
            r#"{"features":[{"name":"age","kind":"numeric"},{"name":"ward","kind":{"category":{"levels":["icu","or"]}}}],"target":"died"}"#
        );
        assert_eq!(FeatureSchema::from_json(text.as_bytes()), Ok(schema()));
        for (from, to) in [
            ("\"target\"", "\"extra\":1,\"target\""),
            ("\"ward\"", "\"age\""),
            ("\"or\"", "\"icu\""),
            ("died", "age"),
        ] {
            assert!(
                FeatureSchema::from_json(text.replace(from, to).as_bytes()).is_err(),
                "{from} -> {to}"
            );
        }
    }
}
