//! Models that other programs exported, as files: `tests/data` holds them with the scripts that made
//! them and the probabilities that ONNX Runtime gave.

use ndarray::Array2;
use tidegate_bundle::{Predictor, inspect};

use crate::models::numeric_schema;

/// Rows of four features, NaN where missing, and the probability of each.
fn rows(csv: &str) -> (Array2<f32>, Vec<f32>) {
    let rows: Vec<Vec<f32>> = csv
        .lines()
        .map(|line| line.split(',').map(|text| text.parse().unwrap()).collect())
        .collect();
    let features = rows.iter().flat_map(|row| row[..4].to_vec()).collect();
    (
        Array2::from_shape_vec((rows.len(), 4), features).unwrap(),
        rows.iter().map(|row| row[4]).collect(),
    )
}

fn agrees(model: &[u8], csv: &str) {
    let inspected = inspect(model, &numeric_schema(4)).unwrap();
    let predictor = Predictor::load(&inspected).unwrap();
    let (matrix, expected) = rows(csv);
    assert!(matrix.iter().any(|value| value.is_nan()) && expected.len() == 40);
    for (ours, theirs) in predictor.predict(matrix.view()).unwrap().iter().zip(expected) {
        assert!((ours - theirs).abs() < 1e-5, "{ours} and {theirs}");
    }
}

#[test]
fn a_network_exported_by_keras_is_taken() {
    agrees(include_bytes!("../data/keras.onnx"), include_str!("../data/keras.csv"));
}

#[test]
fn trees_exported_from_xgboost_are_taken() {
    agrees(
        include_bytes!("../data/xgboost.onnx"),
        include_str!("../data/xgboost.csv"),
    );
}
