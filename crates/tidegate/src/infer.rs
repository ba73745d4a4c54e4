//! Inference on a model that may be hostile, in a sandbox.

use std::ffi::OsString;
use std::path::Path;

use ndarray::{Array2, ArrayView2};
use tidegate_bundle::{FeatureSchema, PredictError, Predictor, inspect};
use tidegate_types::refusal::ExitCode;
use tidegate_worker::sandbox::{self, Ended, Policy};

use crate::failure::{Failure, While};

/// What inference on a hostile model may use.
const INFER_MEMORY: u64 = 1 << 30;
const INFER_SECONDS: u64 = 120;
const INFER_PROCESSES: u64 = 16;

/// `tidegate infer`: reads a model folder and a matrix, writes probabilities.
pub(crate) fn infer(model: &Path, matrix: &Path, out: &Path) -> Result<(), Failure> {
    let inferring = "running a model";
    let schema =
        FeatureSchema::from_json(&std::fs::read(model.join("schema.json")).while_(inferring)?).while_(inferring)?;
    let inspected = inspect(&std::fs::read(model.join("model.onnx")).while_(inferring)?, &schema).while_(inferring)?;
    let predictor = Predictor::load(&inspected).while_(inferring)?;
    let input = read_matrix(&std::fs::read(matrix).while_(inferring)?)?;
    let mut bytes = Vec::with_capacity(input.nrows() * 4);
    let predicted = predictor.predict(input.view()).map_err(|error| match error {
        // Told apart by its exit code: what a sandboxed process writes is not believed.
        PredictError::NotProbability(_) => Failure::Usage(error.to_string()),
        error => Failure::failed(inferring, error),
    });
    for probability in predicted? {
        bytes.extend_from_slice(&probability.to_le_bytes());
    }
    std::fs::write(out, bytes).while_(inferring)
}

fn read_matrix(bytes: &[u8]) -> Result<Array2<f32>, Failure> {
    let malformed = || Failure::failed("reading a matrix", "it is malformed");
    let (head, values) = bytes.split_at_checked(8).ok_or_else(malformed)?;
    let head: [u8; 8] = head.try_into().map_err(|_| malformed())?;
    let columns = usize::try_from(u64::from_le_bytes(head)).map_err(|_| malformed())?;
    let (chunks, rest) = values.as_chunks::<4>();
    if !rest.is_empty() || columns == 0 {
        return Err(malformed());
    }
    let values: Vec<f32> = chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
    Array2::from_shape_vec((values.len() / columns, columns), values).map_err(|_| malformed())
}

/// Runs a model that may be hostile on a matrix, inside the sandbox: no network, no files but its
/// own, bounded memory and time. `folder` holds `model.onnx` and `schema.json`; `scratch` is emptied
/// and used.
pub(crate) fn predict_in_sandbox(
    executable: &Path,
    folder: &Path,
    matrix: ArrayView2<'_, f32>,
    scratch: &Path,
) -> Result<Vec<f64>, Failure> {
    let running = "running the model in the sandbox";
    let _ = std::fs::remove_dir_all(scratch);
    std::fs::create_dir_all(scratch).while_(running)?;
    let (input, output) = (scratch.join("matrix"), scratch.join("probabilities"));
    let mut bytes = Vec::with_capacity(8 + matrix.len() * 4);
    bytes.extend_from_slice(&(matrix.ncols() as u64).to_le_bytes());
    for value in matrix {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    std::fs::write(&input, bytes).while_(running)?;
    let policy = Policy {
        read: vec![executable.to_path_buf(), folder.to_path_buf()],
        write: vec![scratch.to_path_buf()],
        memory_bytes: INFER_MEMORY,
        seconds: INFER_SECONDS,
        processes: INFER_PROCESSES,
        file_bytes: 1 << 30,
        ..Policy::default()
    };
    let command: Vec<OsString> = vec![
        executable.into(),
        "infer".into(),
        folder.into(),
        input.into(),
        output.clone().into(),
    ];
    let completed = sandbox::run(
        executable,
        &policy,
        &command,
        &std::collections::BTreeMap::new(),
        scratch,
        4096,
    )
    .while_(running)?;
    if completed.ended == Ended::Exited(i32::from(ExitCode::Usage as u8)) {
        return Err(Failure::failed(
            running,
            "its output is not a number from 0 to 1 for every row; end it with a Sigmoid or a Softmax",
        ));
    }
    if completed.ended != Ended::Exited(0) {
        return Err(Failure::failed(
            running,
            format!("it ended badly: {:?}", completed.ended),
        ));
    }
    let bytes = std::fs::read(&output).while_(running)?;
    let _ = std::fs::remove_dir_all(scratch);
    let (chunks, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || chunks.len() != matrix.nrows() {
        return Err(Failure::failed(
            running,
            "it gave another number of probabilities than rows",
        ));
    }
    let probabilities: Vec<f64> = chunks
        .iter()
        .map(|chunk| f64::from(f32::from_le_bytes(*chunk)))
        .collect();
    if probabilities
        .iter()
        .all(|probability| (0.0..=1.0).contains(probability))
    {
        Ok(probabilities)
    } else {
        Err(Failure::failed(running, "it gave something else than probabilities"))
    }
}
