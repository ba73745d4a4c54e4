//! The hidden commands that run inside a sandbox or beside a user's command: worker, trainer, and
//! inference on a model that may be hostile.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};
use tidegate_bundle::{FeatureSchema, PredictError, Predictor, inspect};
use tidegate_cloud::{Ec2Prover, Environment};
use tidegate_contracts::identity::Prover;
use tidegate_contracts::later::Later;
use tidegate_types::message::Ticket;
use tidegate_types::refusal::ExitCode;
use tidegate_worker::sandbox::{self, Ended, Policy};
use zeroize::Zeroizing;

use crate::failure::{Failure, While};
use crate::keeper_process::this_program;
use crate::{notices, stores};

/// A ticket is at most this long.
const TICKET_BYTES: u64 = 64 << 10;
/// What inference on a hostile model may use.
const INFER_MEMORY: u64 = 1 << 30;
const INFER_SECONDS: u64 = 120;
const INFER_PROCESSES: u64 = 16;

/// `tidegate worker`: the ticket comes on standard input.
pub(crate) async fn worker(work: Option<PathBuf>, memory: Option<PathBuf>) -> Result<(), Failure> {
    let digest = Later::begin(move || this_program(memory.as_deref()).map_err(|error| error.to_string()));
    let reading = "reading the ticket";
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(TICKET_BYTES)
        .read_to_string(&mut text)
        .while_(reading)?;
    let ticket: Ticket = serde_json::from_str(&text).while_(reading)?;
    let address = ticket.store.clone();
    let opener =
        move |credentials: &Environment| stores::open(&address, credentials).map_err(|error| error.to_string());
    let attempt = &ticket.attempt;
    let own = format!("{}-{}-{}-{}", attempt.run, attempt.task, attempt.attempt, attempt.rank);
    // Below the folder that the driver gave to the job: it goes with the job, whatever happens to this
    // process.
    let work = work.unwrap_or_else(|| PathBuf::from(own));
    let work = std::path::absolute(work).while_("finding the worker's folder")?;
    let options = tidegate_worker::Options {
        work,
        executable: std::env::current_exe().while_("finding this program")?,
        digest,
        machine: PathBuf::from("/"),
        towards: stores::towards(&ticket.store).await,
        notices: notices::listen(),
        borrow: stores::borrow,
        prover: prover()?,
    };
    tidegate_worker::run(ticket, Box::new(opener), options)
        .await
        .while_("working")
}

/// What proves who this machine is, where whoever started it said that something does.
fn prover() -> Result<Option<Arc<dyn Prover>>, Failure> {
    let Ok(base) = std::env::var(Ec2Prover::VARIABLE) else {
        return Ok(None);
    };
    let prover = Ec2Prover::open(&base).while_("asking who this machine is")?;
    Ok(Some(Arc::new(prover)))
}

/// `tidegate worker --ticket-from VARIABLE`: takes the place of this process by a worker whose ticket comes on standard
/// input. What a process was started with can be read for as long as it runs, whatever it removes from its environment.
pub(crate) fn worker_again(variable: &str, work: Option<&Path>, memory: Option<&Path>) -> Result<(), Failure> {
    let reading = "reading the ticket";
    let ticket = std::env::var_os(variable).and_then(|ticket| ticket.into_string().ok());
    let ticket = Zeroizing::new(ticket.ok_or_else(|| Failure::failed(reading, format!("{variable} holds none")))?);
    // A pipe holds as many bytes before anybody reads them.
    if ticket.len() as u64 >= TICKET_BYTES {
        return Err(Failure::failed(reading, "it is too long"));
    }
    let (reader, mut writer) = std::io::pipe().while_(reading)?;
    writer.write_all(ticket.as_bytes()).while_(reading)?;
    drop(writer);
    let mut again = std::process::Command::new(std::env::current_exe().while_("finding this program")?);
    again.arg("worker");
    for (name, path) in [("--work", work), ("--memory", memory)] {
        again.args(
            path.map(|path| [OsStr::new(name), path.as_os_str()])
                .into_iter()
                .flatten(),
        );
    }
    // It comes back only where it fails.
    let failed = again.env_remove(variable).stdin(reader).exec();
    Err(failed).while_("starting the worker")
}

/// `tidegate trainer`: the built-in trainer under the worker's contract.
pub(crate) fn trainer() -> Result<(), Failure> {
    tidegate_learn::train_from_environment().while_("training")
}

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
