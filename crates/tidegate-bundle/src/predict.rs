//! Inference with tract.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ndarray::{ArrayView2, Axis};
use prost::Message;
use tract_onnx::prelude::{Framework, InferenceModelExt, IntoRunnable, Tensor, TypedRunnableModel, tvec};

use crate::adapt::for_library;
use crate::inspect::InspectedModel;
use crate::trees::library;

/// The most rows that are computed at once.
const MAX_BATCH_ROWS: u64 = 1024;
/// The most numbers that all values of one batch may hold: 64 MiB of float32.
const MAX_BATCH_ELEMENTS: u64 = 1 << 24;
/// How far outside `[0, 1]` a sum of rounded numbers may lie and still count as a probability.
const TOLERANCE: f32 = 1e-5;

/// A prediction that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PredictError {
    /// The inference library does not take the model.
    #[error("the model passed inspection and cannot be loaded: {0}")]
    Load(String),
    /// The matrix has another width than the model.
    #[error("the input has {found} columns, the model has {expected}")]
    Columns {
        /// Columns of the matrix.
        found: usize,
        /// Columns of the model.
        expected: usize,
    },
    /// The inference library failed.
    #[error("the model cannot be run on this input")]
    Run,
    /// The model gave something else than a number from 0 to 1.
    #[error("the model gave no probability for row {0}: its output is not a number from 0 to 1")]
    NotProbability(usize),
}

/// A loaded model. Cheap to share between threads.
pub struct Predictor {
    plan: Arc<TypedRunnableModel>,
    features: usize,
    batch_rows: usize,
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Predictor")
            .field("features", &self.features)
            .finish_non_exhaustive()
    }
}

impl Predictor {
    /// Loads a model that passed inspection.
    ///
    /// # Errors
    /// When the inference library does not take it.
    pub fn load(model: &InspectedModel) -> Result<Self, PredictError> {
        let bytes = for_library(model.model.clone()).encode_to_vec();
        let load = || {
            library()
                .model_for_read(&mut &bytes[..])?
                .into_optimized()?
                .into_runnable()
        };
        // Inspection makes a panic in the library unlikely; this keeps one from ending the server.
        let plan = catch_unwind(AssertUnwindSafe(load))
            .map_err(|_| PredictError::Load("the inference library gave up".to_owned()))?
            .map_err(|error| PredictError::Load(format!("{error:#}").chars().take(300).collect()))?;
        let rows = (MAX_BATCH_ELEMENTS / model.row_elements.max(1)).clamp(1, MAX_BATCH_ROWS);
        Ok(Self {
            plan,
            features: model.features(),
            batch_rows: usize::try_from(rows).unwrap_or(1),
        })
    }

    /// The probability of each row of an input matrix `[N, F]`, in batches of bounded size. NaN stands
    /// for a missing value.
    ///
    /// # Errors
    /// When the width is wrong, the library fails, or an output is no probability.
    pub fn predict(&self, matrix: ArrayView2<'_, f32>) -> Result<Vec<f32>, PredictError> {
        if matrix.ncols() != self.features {
            return Err(PredictError::Columns {
                found: matrix.ncols(),
                expected: self.features,
            });
        }
        let mut probabilities = Vec::with_capacity(matrix.nrows());
        for batch in matrix.axis_chunks_iter(Axis(0), self.batch_rows) {
            let values: Vec<f32> = batch.iter().copied().collect();
            let run = || {
                let input = Tensor::from_shape(&[batch.nrows(), batch.ncols()], &values)?;
                let outputs = self.plan.run(tvec!(input.into()))?;
                let output = outputs
                    .first()
                    .map(|output| output.try_as_plain_ram()?.as_slice::<f32>().map(<[f32]>::to_vec));
                output.transpose()
            };
            let output = catch_unwind(AssertUnwindSafe(run)).map_err(|_| PredictError::Run)?;
            let output = output
                .ok()
                .flatten()
                .filter(|output| output.len() == batch.nrows())
                .ok_or(PredictError::Run)?;
            for value in output {
                if !(-TOLERANCE..=1.0 + TOLERANCE).contains(&value) {
                    return Err(PredictError::NotProbability(probabilities.len()));
                }
                probabilities.push(value.clamp(0.0, 1.0));
            }
        }
        Ok(probabilities)
    }

    /// Number of input columns.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }
}
