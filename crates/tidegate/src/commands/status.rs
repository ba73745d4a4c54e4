//! `status`, `models`, `cost`: what the journals say.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_contracts::journal::Journal;
use tidegate_engine::{CrossingEntry, MachineTime, RunRecord, RunStatus, Spending, machine_times, spending};
use tidegate_local::SqliteJournal;
use tidegate_types::ids::RunId;

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::project::{State, now};
use crate::show;

const READING: &str = "reading the journal";

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

/// A run, and while it goes on what it costs so far and what runs for it.
#[derive(Serialize)]
struct RunStanding {
    #[serde(flatten)]
    run: RunRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    spending: Option<Spending>,
}

fn standing(state: &State) -> Result<Vec<RunStanding>, Failure> {
    let now = now();
    let standing = |run: RunRecord| {
        let spending = if run.status == RunStatus::Running {
            let journal = SqliteJournal::open(state.layout.journal()).while_(READING)?;
            Some(spending(&journal, &run, now).while_(READING)?)
        } else {
            None
        };
        Ok(RunStanding { run, spending })
    };
    runs(state)?.into_iter().map(standing).collect()
}

/// One line for each machine.
fn show_machines(machines: &[MachineTime]) -> Result<(), Failure> {
    let several = machines.iter().any(|one| one.rank > 0);
    for one in machines {
        let rank = if several {
            format!(", rank {}", one.rank)
        } else {
            String::new()
        };
        show::line(&format!(
            "    {}, attempt {}{rank}, at site {} for {} s: {}",
            one.task,
            one.attempt,
            one.site,
            one.seconds,
            one.cost.map_or_else(|| "unpriced".to_owned(), |cost| cost.to_string())
        ))?;
    }
    Ok(())
}

/// Runs and where they are.
pub(crate) fn status(state: &State, format: Format) -> Result<(), Failure> {
    let runs = standing(state)?;
    if format == Format::Json {
        return show::json(&runs);
    }
    if runs.is_empty() {
        show::line("No run yet.")?;
    }
    for RunStanding { run, spending } in runs {
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
        if let Some(spending) = spending {
            show_machines(&spending.jobs)?;
            show::line(&format!("    {spending} so far"))?;
            show::line("    if it was interrupted, the same `tidegate run` goes on with it")?;
        }
    }
    Ok(())
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
        let journal = SqliteJournal::open(state.layout.journal()).while_(READING)?;
        let machines = machine_times(&journal, &run.id, now()).while_(READING)?;
        lines.push((run, bytes, crossings, machines));
    }
    if format == Format::Json {
        let runs: Vec<_> = lines
            .iter()
            .map(|(run, bytes, crossings, machines)| {
                serde_json::json!({
                    "run": run.id, "status": run.status, "bytes": bytes, "cost": run.cost, "crossings": crossings,
                    "machines": machines
                })
            })
            .collect();
        return show::json(&runs);
    }
    if lines.is_empty() {
        show::line("No run yet: nothing was spent, and nothing left.")?;
    }
    for (run, bytes, crossings, machines) in lines {
        show::line(&format!(
            "{:<48} {:<10} {:>3} crossings {bytes:>12} bytes  {}",
            run.id,
            run.status.as_str(),
            crossings.len(),
            run.cost.unwrap_or_else(|| "not ended".to_owned())
        ))?;
        show_machines(&machines)?;
    }
    Ok(())
}
