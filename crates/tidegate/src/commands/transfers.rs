//! `transfers list`, `transfers pause`, `transfers resume`: what a person on the private site sees of what it sends, and
//! holds back.

use std::fmt::Write as _;
use std::sync::Arc;

use indicatif::{HumanBytes, HumanDuration};
use tidegate_keeper::{KeeperError, Transfer, TransferState, Transfers};
use tidegate_local::SqliteJournal;
use tidegate_types::ids::PermitId;

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::project::{Project, now};
use crate::{screen, show};

/// Lists what the private site sends or has sent.
pub(crate) fn list(project: &Project, format: Format) -> Result<(), Failure> {
    let listing = "listing what this site sends";
    let (all, paused) = match transfers(project)? {
        Some(transfers) => (transfers.all().while_(listing)?, transfers.paused().while_(listing)?),
        None => (Vec::new(), None),
    };
    if format == Format::Json {
        return show::json(&serde_json::json!({"paused": paused, "transfers": all}));
    }
    let mut text = String::new();
    if let Some(since) = paused {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "All transfers are paused since {}; `tidegate transfers resume` lets them go on.",
            show::time(since)
        );
    }
    if all.is_empty() {
        text.push_str("No permit was signed yet: nothing left this site.\n");
    }
    text.extend(all.iter().map(described));
    show::print(&text)
}

/// Holds back one crossing, or all.
pub(crate) fn pause(project: &Project, permit: Option<&str>, format: Format) -> Result<(), Failure> {
    let permit = permit.map(permit_named).transpose()?;
    let pausing = "pausing what this site sends";
    known(project)?
        .pause(permit.as_ref())
        .map_err(|error| failed(pausing, error))?;
    let what = permit.as_ref().map_or_else(
        || "Everything that this site sends is".to_owned(),
        |permit| format!("What crosses under permit {permit} is"),
    );
    let text = format!("{what} paused. An object that is under way is finished; nothing more follows it.");
    answer(permit.as_ref(), true, &text, format)
}

/// Lets one crossing, or all, go on.
pub(crate) fn resume(project: &Project, permit: Option<&str>, format: Format) -> Result<(), Failure> {
    let permit = permit.map(permit_named).transpose()?;
    let resuming = "letting what this site sends go on";
    known(project)?
        .resume(permit.as_ref())
        .map_err(|error| failed(resuming, error))?;
    let text = "It goes on, if a run waits for it; otherwise, with the same `tidegate run`.";
    answer(permit.as_ref(), false, text, format)
}

/// A refusal stays one.
fn failed(what: &str, error: KeeperError) -> Failure {
    match error {
        KeeperError::Refused(refusal) => Failure::Refused(refusal),
        error => Failure::failed(what, error),
    }
}

fn answer(permit: Option<&PermitId>, paused: bool, text: &str, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => show::json(&serde_json::json!({"permit": permit, "paused": paused})),
        Format::Text => show::line(text),
    }
}

fn permit_named(text: &str) -> Result<PermitId, Failure> {
    PermitId::new(text).map_err(|_| {
        Failure::Usage(format!(
            "`{}` is no permit; `tidegate transfers list` shows what there is",
            text.escape_debug()
        ))
    })
}

fn known(project: &Project) -> Result<Transfers, Failure> {
    let site = project.home()?;
    transfers(project)?.ok_or_else(|| {
        Failure::Usage(format!(
            "the folder of site `{site}` is not on this machine, or nothing ran there yet"
        ))
    })
}

/// The crossings of the project's private site; none where it has no folder here.
fn transfers(project: &Project) -> Result<Option<Transfers>, Failure> {
    let site = project.home()?;
    let folder = project.layout.site(&site);
    let journal = folder.join("journal.sqlite");
    if !journal.exists() {
        return Ok(None);
    }
    let journal = SqliteJournal::open(journal).while_("reading the journal")?;
    Ok(Some(Transfers::new(
        site,
        project.sites.clone(),
        folder,
        Arc::new(journal),
        now,
    )))
}

fn described(transfer: &Transfer) -> String {
    let bytes = HumanBytes(transfer.bytes);
    let state = match &transfer.state {
        TransferState::Sent { sealed, objects, at } => {
            let objects = if *objects == 1 {
                "1 object".to_owned()
            } else {
                format!("{objects} objects")
            };
            let at = if *at == 0 {
                String::new()
            } else {
                format!(" {}", show::time(*at))
            };
            format!("sent{at}: {} sealed in {objects}", HumanBytes(*sealed))
        }
        TransferState::Sending {
            stored,
            per_second,
            seconds_left,
        } => {
            let rate = per_second.map_or_else(String::new, |rate| format!(", {}/s", HumanBytes(rate)));
            let left = seconds_left.map_or_else(String::new, |seconds| {
                format!(", {} left", HumanDuration(std::time::Duration::from_secs(seconds)))
            });
            format!("sending: {} of {bytes}{rate}{left}", HumanBytes(*stored))
        }
        TransferState::Held { stored, by } => {
            format!("held at {} of {bytes}: {}", HumanBytes(*stored), screen::reason(*by))
        }
        TransferState::Waiting { stored } => {
            format!(
                "not sent now, {} of {bytes} are there: the same `tidegate run` goes on with it",
                HumanBytes(*stored)
            )
        }
        TransferState::Expired { stored } => {
            format!(
                "its permit ended before it was sent, {} of {bytes} are there; a new run asks for a new one",
                HumanBytes(*stored)
            )
        }
    };
    let k = transfer.k.map_or_else(String::new, |k| format!(", k = {k}"));
    format!(
        "{}  {} to {}\n  {state}\n  it may, as `{}` for {}{k}, for task {} of run {}, until {}\n",
        transfer.permit,
        transfer.name,
        transfer.to,
        transfer.label,
        transfer.purpose,
        transfer.task,
        transfer.run,
        show::time(transfer.expires),
    )
}
