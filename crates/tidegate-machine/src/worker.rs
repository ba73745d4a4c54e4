//! The commands: a worker, and jobs that are kept for a driver elsewhere.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_cloud::{Ec2Prover, Environment};
use tidegate_contracts::identity::Prover;
use tidegate_contracts::later::Later;
use tidegate_local::ProcessDriver;
use tidegate_types::message::Ticket;
use zeroize::Zeroizing;

use crate::{MachineError, While, notices, stores, this_program};

/// A ticket is at most this long.
const TICKET_BYTES: u64 = 64 << 10;
/// The longest request of a driver.
const MAX_REQUEST: u64 = 4 << 20;

/// `worker`: the ticket comes on standard input.
pub(crate) async fn worker(work: Option<PathBuf>, memory: Option<PathBuf>) -> Result<(), MachineError> {
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
        move |credentials: &Environment| stores::open(&address, credentials, None).map_err(|error| error.to_string());
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
fn prover() -> Result<Option<Arc<dyn Prover>>, MachineError> {
    let Ok(base) = std::env::var(Ec2Prover::VARIABLE) else {
        return Ok(None);
    };
    let prover = Ec2Prover::open(&base).while_("asking who this machine is")?;
    Ok(Some(Arc::new(prover)))
}

/// `worker --ticket-from VARIABLE`: takes the place of this process by a worker whose ticket comes on standard
/// input. What a process was started with can be read for as long as it runs, whatever it removes from its environment.
pub(crate) fn worker_again(variable: &str, work: Option<&Path>, memory: Option<&Path>) -> Result<(), MachineError> {
    let reading = "reading the ticket";
    let ticket = std::env::var_os(variable).and_then(|ticket| ticket.into_string().ok());
    let ticket = Zeroizing::new(ticket.ok_or_else(|| MachineError::new(reading, format!("{variable} holds none")))?);
    // A pipe holds as many bytes before anybody reads them.
    if ticket.len() as u64 >= TICKET_BYTES {
        return Err(MachineError::new(reading, "it is too long"));
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

/// `jobs`: does one call of a driver elsewhere, whose jobs are kept in `folder`: a request on standard input, an answer on
/// standard output.
pub(crate) async fn jobs(folder: &Path) -> Result<(), MachineError> {
    let keeping = "keeping jobs";
    let mut request = Vec::new();
    let read = std::io::stdin().lock().take(MAX_REQUEST).read_to_end(&mut request);
    read.while_(keeping)?;
    let program = std::env::current_exe().while_(keeping)?.display().to_string();
    let driver = ProcessDriver::open(folder).while_(keeping)?;
    let answer = tidegate_ssh::serve(&driver, &request, &program).await.while_(keeping)?;
    println!("{answer}");
    Ok(())
}
