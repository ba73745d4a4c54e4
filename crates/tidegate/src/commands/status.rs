//! `status`, `logs`, `models`, `cost`: what the journals say.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tidegate_contracts::journal::Journal;
use tidegate_engine::{CrossingEntry, RunRecord, RunStatus};
use tidegate_local::SqliteJournal;
use tidegate_types::ids::{RunId, SiteName};

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::project::State;
use crate::show;

const READING: &str = "reading the journal";
const READING_LOG: &str = "reading the logs on the private site";

fn entries<T: DeserializeOwned>(state: &State, table: &str, prefix: &str) -> Result<Vec<T>, Failure> {
    let file = state.layout.journal();
    if !file.exists() {
        return Ok(Vec::new());
    }
    SqliteJournal::open(&file)
        .while_(READING)?
        .scan(table, prefix)
        .while_(READING)?
        .iter()
        .map(|(_, bytes)| serde_json::from_slice(bytes).while_(READING))
        .collect()
}

fn runs(state: &State) -> Result<Vec<RunRecord>, Failure> {
    let mut runs: Vec<RunRecord> = entries(state, "runs", "")?;
    runs.sort_by_key(|run| run.started);
    Ok(runs)
}

pub(crate) fn run_named(state: &State, name: &str) -> Result<RunRecord, Failure> {
    let runs = runs(state)?;
    let found = runs.iter().find(|run| run.id.as_str() == name).cloned();
    found.ok_or_else(|| {
        if runs.is_empty() {
            return Failure::Usage(format!(
                "there is no run `{name}`: nothing ran yet below {}",
                state.layout.root().display()
            ));
        }
        let known: Vec<&str> = runs.iter().rev().take(5).map(|run| run.id.as_str()).collect();
        Failure::Usage(format!(
            "there is no run `{name}`; the newest are: {}",
            known.join(", ")
        ))
    })
}

/// Runs and where they are.
pub(crate) fn status(state: &State, format: Format) -> Result<(), Failure> {
    let runs = runs(state)?;
    if format == Format::Json {
        return show::json(&runs);
    }
    if runs.is_empty() {
        show::line("No run yet.")?;
    }
    for run in runs {
        let done: Vec<&str> = run.tasks.keys().map(tidegate_types::TaskName::as_str).collect();
        show::line(&format!(
            "{:<48} {:<10} {}",
            run.id,
            run.status.as_str(),
            done.join(" ")
        ))?;
        if !run.why.is_empty() {
            show::line(&format!("    {}", run.why))?;
        }
        if run.status == RunStatus::Running {
            show::line("    if it was interrupted, the same `tidegate run` goes on with it")?;
        }
    }
    Ok(())
}

/// What a run's command wrote. The logs carry the label of the data and never left the private site.
pub(crate) fn logs(state: &State, name: &str, format: Format) -> Result<(), Failure> {
    let run = run_named(state, name)?;
    let mut files = Vec::new();
    // Of sites whose keeper is known: what another site writes into its folder is nobody's log.
    for site in keepers(state)? {
        files.extend(listed(&state.layout.site(&site).join("logs").join(run.id.as_str()))?);
    }
    let logs: Vec<_> = files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "log"))
        .collect();
    let attempt = |file: &Path| {
        file.file_stem()
            .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
    };
    if format == Format::Json {
        let mut told = Vec::new();
        for file in &logs {
            let bytes = std::fs::read(file).while_(READING_LOG)?;
            told.push(serde_json::json!({"attempt": attempt(file), "log": String::from_utf8_lossy(&bytes)}));
        }
        return show::json(&told);
    }
    if logs.is_empty() {
        show::tell("The run wrote no log.");
    }
    for file in &logs {
        if logs.len() > 1 {
            show::line(&format!("--- {}", attempt(file)))?;
        }
        let mut from = std::fs::File::open(file).while_(READING_LOG)?;
        show::written(std::io::copy(&mut from, &mut std::io::stdout().lock()))?;
    }
    Ok(())
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
        Err(error) => return Err(Failure::failed(READING_LOG, error)),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// The run of this name, which must not have ended.
pub(crate) fn running(state: &State, name: &str) -> Result<RunId, Failure> {
    let run = run_named(state, name)?;
    if run.status != RunStatus::Running {
        return Err(Failure::Usage(format!(
            "run `{name}` is {} already",
            run.status.as_str()
        )));
    }
    Ok(run.id)
}

/// Released models and where they are served.
pub(crate) fn models(state: &State, format: Format) -> Result<(), Failure> {
    let mut models: BTreeMap<(String, u64), serde_json::Value> = BTreeMap::new();
    for run in runs(state)? {
        let Some(summary) = run.summary else { continue };
        let Some(model) = summary.model else { continue };
        models.insert(
            (model.name.clone(), model.version),
            serde_json::json!({
                "name": model.name,
                "version": model.version,
                "digest": model.digest,
                "run": summary.run,
                "roc_auc": summary.metrics.refined.get("roc_auc").or(summary.metrics.home.get("roc_auc")),
                "sites": summary.deployed,
            }),
        );
    }
    let models: Vec<_> = models.into_values().collect();
    if format == Format::Json {
        return show::json(&models);
    }
    if models.is_empty() {
        show::line("No model was released yet.")?;
    }
    for model in models {
        let sites: Vec<&str> = model["sites"]
            .as_array()
            .map(|sites| sites.iter().filter_map(serde_json::Value::as_str).collect())
            .unwrap_or_default();
        show::line(&format!(
            "{} version {}  ROC-AUC {}  on {}  ({})",
            model["name"].as_str().unwrap_or_default(),
            model["version"],
            model["roc_auc"],
            sites.join(", "),
            model["digest"].as_str().unwrap_or_default(),
        ))?;
    }
    Ok(())
}

/// What runs cost and what left.
pub(crate) fn cost(state: &State, format: Format) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for run in runs(state)? {
        let crossings: Vec<CrossingEntry> = entries(state, "crossings", &format!("{}/", run.id))?;
        let bytes: u64 = crossings.iter().map(|entry| entry.bytes).sum();
        let cost = run.cost.clone();
        lines.push((run.id.to_string(), run.status, crossings.len(), bytes, cost, crossings));
    }
    if format == Format::Json {
        let runs: Vec<_> = lines
            .iter()
            .map(|(run, status, _, bytes, cost, crossings)| {
                serde_json::json!({"run": run, "status": status, "bytes": bytes, "cost": cost, "crossings": crossings})
            })
            .collect();
        return show::json(&runs);
    }
    if lines.is_empty() {
        show::line("No run yet: nothing was spent, and nothing left.")?;
    }
    for (run, status, crossings, bytes, cost, _) in lines {
        show::line(&format!(
            "{run:<48} {:<10} {crossings:>3} crossings {bytes:>12} bytes  {}",
            status.as_str(),
            cost.unwrap_or_else(|| "not ended".to_owned())
        ))?;
    }
    Ok(())
}
