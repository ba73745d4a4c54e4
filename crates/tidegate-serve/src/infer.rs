//! From tensors to a model's input matrix, and from its probabilities to outputs.

use std::collections::BTreeMap;

use ndarray::Array2;
use tidegate_bundle::{Bundle, Feature, FeatureKind, PredictError, Predictor};

use crate::tensor::{BadRequest, Datatype, Elements, InferRequest, Output, Tensor, Wanted, shown};

/// The input that holds all columns at once.
pub(crate) const FEATURES: &str = "features";
/// The output with a calibrated probability for each row.
pub(crate) const PROBABILITIES: &str = "probabilities";
/// The output with a decision for each row.
pub(crate) const PREDICTIONS: &str = "predictions";

/// A model that is served.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) bundle: Bundle,
    predictor: Predictor,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InferError {
    #[error(transparent)]
    Request(#[from] BadRequest),
    #[error(transparent)]
    Model(#[from] PredictError),
}

/// Outputs by name, each with whether it is wanted in binary.
pub(crate) type Outputs = Vec<(&'static str, bool, Output)>;

impl Model {
    pub(crate) fn load(bundle: Bundle) -> Result<Self, PredictError> {
        let predictor = Predictor::load(&bundle.model)?;
        Ok(Self { bundle, predictor })
    }

    pub(crate) fn infer(&self, request: &InferRequest, rows: usize) -> Result<Outputs, InferError> {
        let wanted = wanted(request)?;
        let matrix = matrix(&self.bundle.schema.features, &request.inputs, rows)?;
        let calibration = &self.bundle.calibration;
        let scores = self.predictor.predict(matrix.view())?;
        let probabilities: Vec<f64> = scores
            .into_iter()
            .map(|score| calibration.apply(f64::from(score)))
            .collect();
        Ok(wanted
            .into_iter()
            .map(|(name, binary)| {
                let output = if name == PREDICTIONS {
                    let decide = |probability: &f64| i64::from(*probability >= calibration.threshold);
                    Output::Int64(probabilities.iter().map(decide).collect())
                } else {
                    Output::Fp64(probabilities.clone())
                };
                (name, binary, output)
            })
            .collect())
    }
}

fn wanted(request: &InferRequest) -> Result<Vec<(&'static str, bool)>, BadRequest> {
    if request.outputs.is_empty() {
        return Ok(vec![(PROBABILITIES, request.binary), (PREDICTIONS, request.binary)]);
    }
    let find = |output: &Wanted| {
        let name = [PROBABILITIES, PREDICTIONS]
            .into_iter()
            .find(|name| *name == output.name);
        name.map(|name| (name, output.binary)).ok_or_else(|| {
            BadRequest(format!(
                "there is no output `{}`: there are `{PROBABILITIES}` and `{PREDICTIONS}`",
                shown(&output.name)
            ))
        })
    };
    let wanted: Vec<_> = request.outputs.iter().map(find).collect::<Result<_, _>>()?;
    let twice = wanted
        .iter()
        .enumerate()
        .any(|(at, (name, _))| wanted.iter().skip(at + 1).any(|(other, _)| other == name));
    if twice {
        return Err(BadRequest("an output is asked for twice".to_owned()));
    }
    Ok(wanted)
}

fn check_rows(found: usize, limit: usize) -> Result<(), BadRequest> {
    if (1..=limit).contains(&found) {
        Ok(())
    } else {
        Err(BadRequest(format!(
            "a request has 1 to {limit} rows, this one has {found}: send several requests"
        )))
    }
}

fn matrix(features: &[Feature], inputs: &[Tensor], limit: usize) -> Result<Array2<f32>, BadRequest> {
    let own_name = features.iter().any(|feature| feature.name == FEATURES);
    match inputs {
        [input] if input.name == FEATURES && !own_name => whole(features, input, limit),
        _ => by_column(features, inputs, limit),
    }
}

/// One input `[N, F]`, its columns in the order of the schema, categories as positions of levels.
fn whole(features: &[Feature], input: &Tensor, limit: usize) -> Result<Array2<f32>, BadRequest> {
    let (&[rows, columns], Elements::Numbers(numbers)) = (input.shape.as_slice(), &input.elements) else {
        return Err(BadRequest(format!(
            "input `{FEATURES}` is a matrix of numbers of shape [rows, {}]",
            features.len()
        )));
    };
    if columns != features.len() {
        return Err(BadRequest(format!(
            "input `{FEATURES}` has {columns} columns, the model has {}",
            features.len()
        )));
    }
    check_rows(rows, limit)?;
    let names = features.iter().map(|feature| feature.name.as_str()).cycle();
    let values = numbers
        .iter()
        .zip(names)
        .enumerate()
        .map(|(at, (number, name))| to_f32(*number, name, at / columns.max(1)))
        .collect::<Result<Vec<f32>, _>>()?;
    shaped(rows, columns, values)
}

/// One input for each column, `[N]` or `[N, 1]`, categories as the texts of their levels.
fn by_column(features: &[Feature], inputs: &[Tensor], limit: usize) -> Result<Array2<f32>, BadRequest> {
    let mut by_name = BTreeMap::new();
    for input in inputs {
        if by_name.insert(input.name.as_str(), input).is_some() {
            return Err(BadRequest(format!("input `{}` is there twice", shown(&input.name))));
        }
    }
    let mut columns = Vec::with_capacity(features.len());
    for feature in features {
        let name = &feature.name;
        let input = by_name.remove(name.as_str()).ok_or_else(|| {
            BadRequest(format!(
                "input `{name}` is missing: the model needs every column of its schema"
            ))
        })?;
        let rows = match input.shape.as_slice() {
            [rows] | [rows, 1] => *rows,
            _ => {
                return Err(BadRequest(format!(
                    "input `{name}` is a column: its shape is [rows] or [rows, 1]"
                )));
            }
        };
        check_rows(rows, limit)?;
        let column = column(feature, input)?;
        if columns
            .first()
            .is_some_and(|first: &Vec<f32>| first.len() != column.len())
        {
            return Err(BadRequest(format!(
                "input `{name}` has another number of rows than the ones before it"
            )));
        }
        columns.push(column);
    }
    if let Some(name) = by_name.keys().next() {
        return Err(BadRequest(format!("the model has no input `{}`", shown(name))));
    }
    let rows = columns.first().map_or(0, Vec::len);
    let values = (0..rows)
        .flat_map(|row| columns.iter().filter_map(move |column| column.get(row).copied()))
        .collect();
    shaped(rows, features.len(), values)
}

fn column(feature: &Feature, input: &Tensor) -> Result<Vec<f32>, BadRequest> {
    match (&feature.kind, &input.elements) {
        (FeatureKind::Numeric, Elements::Numbers(numbers)) => {
            let convert = |(row, number): (usize, &f64)| to_f32(*number, &feature.name, row);
            numbers.iter().enumerate().map(convert).collect()
        }
        // A level that the model does not know counts as missing, as it does in training.
        (FeatureKind::Category { .. }, Elements::Texts(texts)) => {
            let encode =
                |text: &Option<String>| feature.encode(text.as_deref().unwrap_or_default()).unwrap_or(f32::NAN);
            Ok(texts.iter().map(encode).collect())
        }
        _ => Err(BadRequest(format!(
            "input `{}` needs the datatype {}",
            feature.name,
            datatype(feature).as_str()
        ))),
    }
}

/// The datatype in which a column is best given.
pub(crate) fn datatype(feature: &Feature) -> Datatype {
    match feature.kind {
        FeatureKind::Numeric => Datatype::Fp32,
        FeatureKind::Category { .. } => Datatype::Bytes,
    }
}

/// Infinite numbers are refused, also those that only become infinite as 32-bit floats; NaN means
/// missing.
fn to_f32(number: f64, column: &str, row: usize) -> Result<f32, BadRequest> {
    let value = number as f32;
    if value.is_infinite() {
        return Err(BadRequest(format!(
            "column `{column}`, row {row}: the value is not a finite number"
        )));
    }
    Ok(value)
}

fn shaped(rows: usize, columns: usize, values: Vec<f32>) -> Result<Array2<f32>, BadRequest> {
    Array2::from_shape_vec((rows, columns), values)
        .map_err(|_| BadRequest("the inputs have another number of elements than rows and columns".to_owned()))
}
