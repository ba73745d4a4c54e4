//! `logs`: what a run's command wrote and measured.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_contracts::journal::Journal;
use tidegate_engine::RunStatus;
use tidegate_local::SqliteJournal;
use tidegate_types::ids::{RunId, SiteName};

use super::status::run_named;
use crate::cli::{Format, LogArguments};
use crate::failure::{Failure, While};
use crate::project::State;
use crate::show;

const READING: &str = "reading the logs on the private site";
/// How often it is looked whether more was written.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What is read of one file at once.
const PIECE_BYTES: u64 = 64 << 10;

/// What a run's command wrote, or what it measured. Both carry the label of the data and never left the private site.
pub(crate) fn logs(state: &State, arguments: &LogArguments, format: Format) -> Result<(), Failure> {
    let run = run_named(state, &arguments.run)?;
    let kind = if arguments.metrics { "metrics" } else { "log" };
    let mut shown = Shown::default();
    if format == Format::Json {
        if arguments.follow {
            return Err(Failure::Usage(
                "`--follow` shows text: leave `--format json` out".to_owned(),
            ));
        }
        let mut told = Vec::new();
        for file in files(state, &run.id, kind)? {
            let text = std::fs::read(&file).while_(READING)?;
            told.push(serde_json::json!({"attempt": attempt(&file), kind: String::from_utf8_lossy(&text)}));
        }
        return show::json(&told);
    }
    loop {
        // Before the look: what was written until a run ended is there then.
        let goes_on = arguments.follow && run_named(state, &arguments.run)?.status == RunStatus::Running;
        let files = files(state, &run.id, kind)?;
        shown.show(&files, arguments.follow)?;
        if !goes_on {
            if files.is_empty() {
                show::tell(&format!("The run wrote no {kind}."));
            }
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What was shown of each file.
#[derive(Default)]
struct Shown {
    bytes: BTreeMap<PathBuf, u64>,
    last: Option<PathBuf>,
}

impl Shown {
    /// Shows what is new, under a title where there are several attempts, or may be.
    fn show(&mut self, files: &[PathBuf], several: bool) -> Result<(), Failure> {
        for path in files {
            let from = self.bytes.entry(path.clone()).or_default();
            let file = File::open(path).while_(READING)?;
            // Shorter than what was shown: a keeper that was killed had written what it had not recorded, and writes it again.
            (&file).seek(SeekFrom::Start(*from)).while_(READING)?;
            loop {
                let mut piece = Vec::new();
                (&file).take(PIECE_BYTES).read_to_end(&mut piece).while_(READING)?;
                if piece.is_empty() {
                    break;
                }
                let mut out = std::io::stdout().lock();
                if (several || files.len() > 1) && self.last.as_ref() != Some(path) {
                    show::written(writeln!(out, "--- {}", attempt(path)))?;
                    self.last = Some(path.clone());
                }
                show::written(out.write_all(&piece).and_then(|()| out.flush()))?;
                *from += piece.len() as u64;
            }
        }
        Ok(())
    }
}

/// `train-2`, of a file of that attempt, or `train-2-rank-1`, of another of its machines than the first.
fn attempt(file: &Path) -> String {
    file.file_stem()
        .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// The logs of a run's attempts in their order.
fn files(state: &State, run: &RunId, kind: &str) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    // Of sites whose keeper is known: what another site writes into its folder is nobody's log.
    for site in keepers(state)? {
        files.extend(listed(&state.layout.site(&site).join("logs").join(run.as_str()))?);
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == kind));
    files.sort_by_key(|file| {
        let name = attempt(file);
        let number = |text: &str| text.parse::<u32>().ok();
        let (of, rank) = match name.rsplit_once("-rank-") {
            Some((of, rank)) if number(rank).is_some() => (of, number(rank)),
            _ => (name.as_str(), Some(0)),
        };
        (of.rsplit_once('-').and_then(|(_, attempt)| number(attempt)), rank, name)
    });
    Ok(files)
}

/// The sites whose keepers this control plane has met.
fn keepers(state: &State) -> Result<Vec<SiteName>, Failure> {
    let keepers = SqliteJournal::open(state.layout.journal()).while_(READING)?;
    let keepers = keepers.scan("keepers", "").while_(READING)?.into_iter();
    keepers.map(|(site, _)| SiteName::new(site).while_(READING)).collect()
}

/// What is in a folder, in order; nothing where there is no folder.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(Failure::failed(READING, error)),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}
