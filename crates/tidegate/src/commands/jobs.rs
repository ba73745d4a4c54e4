//! `jobs`: what a driver elsewhere asks of this machine.

use std::io::Read;
use std::path::Path;

use tidegate_local::ProcessDriver;

use crate::failure::{Failure, While};

/// The longest request of a driver.
const MAX_REQUEST: u64 = 4 << 20;

/// Does one call of a driver elsewhere, whose jobs are kept in `folder`: a request on standard input, an answer on
/// standard output.
pub(crate) async fn jobs(folder: &Path) -> Result<(), Failure> {
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
