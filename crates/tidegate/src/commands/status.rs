//! `status`, `logs`, `models`, `cost`: what the journals say.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use tidegate_contracts::journal::Journal;
use tidegate_engine::{CrossingEntry, RunRecord, RunStatus};
use tidegate_local::SqliteJournal;
use tidegate_types::ids::RunId;

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::project::Project;
use crate::show;

const READING: &str = "reading the journal";

fn entries<T: DeserializeOwned>(project: &Project, table: &str, prefix: &str) -> Result<Vec<T>, Failure> {
    let file = project.layout.journal();
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

fn runs(project: &Project) -> Result<Vec<RunRecord>, Failure> {
    let mut runs: Vec<RunRecord> = entries(project, "runs", "")?;
    runs.sort_by_key(|run| run.started);
    Ok(runs)
}

fn run_named(project: &Project, name: &str) -> Result<RunRecord, Failure> {
    let runs = runs(project)?;
    let found = runs.iter().find(|run| run.id.as_str() == name).cloned();
    found.ok_or_else(|| {
        let known: Vec<&str> = runs.iter().rev().take(5).map(|run| run.id.as_str()).collect();
        Failure::Usage(format!(
            "there is no run `{name}`; the newest are: {}",
            known.join(", ")
        ))
    })
}

/// Runs and where they are.
pub(crate) fn status(project: &Project, format: Format) -> Result<(), Failure> {
    let runs = runs(project)?;
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
pub(crate) fn logs(project: &Project, name: &str) -> Result<(), Failure> {
    let run = run_named(project, name)?;
    let folder = project.layout.site(&project.home()?).join("logs").join(run.id.as_str());
    let mut files: Vec<_> = match std::fs::read_dir(&folder) {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Failure::failed("reading the logs on the private site", error)),
    };
    files.sort();
    let logs: Vec<_> = files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "log"))
        .collect();
    if logs.is_empty() {
        show::tell("The run wrote no log.");
    }
    for file in logs {
        let title = file
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        show::tell(&format!("--- {title}"));
        let mut from = std::fs::File::open(&file).while_("reading a log")?;
        show::written(std::io::copy(&mut from, &mut std::io::stdout().lock()))?;
    }
    Ok(())
}

/// The run of this name, which must not have ended.
pub(crate) fn running(project: &Project, name: &str) -> Result<RunId, Failure> {
    let run = run_named(project, name)?;
    if run.status != RunStatus::Running {
        return Err(Failure::Usage(format!(
            "run `{name}` is {} already",
            run.status.as_str()
        )));
    }
    Ok(run.id)
}

/// Released models and where they are served.
pub(crate) fn models(project: &Project, format: Format) -> Result<(), Failure> {
    let mut models: BTreeMap<(String, u64), serde_json::Value> = BTreeMap::new();
    for run in runs(project)? {
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
pub(crate) fn cost(project: &Project, format: Format) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for run in runs(project)? {
        let crossings: Vec<CrossingEntry> = entries(project, "crossings", &format!("{}/", run.id))?;
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
    for (run, status, crossings, bytes, cost, _) in lines {
        show::line(&format!(
            "{run:<48} {:<10} {crossings:>3} crossings {bytes:>12} bytes  {}",
            status.as_str(),
            cost.unwrap_or_else(|| "not ended".to_owned())
        ))?;
    }
    Ok(())
}
