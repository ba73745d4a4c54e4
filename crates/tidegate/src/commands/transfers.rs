//! `transfers list`, `pause`, `resume`, `sweep`: what a person on the private site sees of what it sends, holds back, and
//! removes where nobody needs it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use indicatif::{HumanBytes, HumanDuration};
use tidegate_contracts::Store;
use tidegate_keeper::{KeeperError, Needless, Removal, Sweep, Transfer, TransferState, Transfers};
use tidegate_local::SqliteJournal;
use tidegate_types::ids::{PermitId, SiteName};

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::project::{Project, now};
use crate::{screen, show, stores};

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
        || "Artifacts that leave this site are".to_owned(),
        |permit| format!("The artifact that crosses under permit {permit} is"),
    );
    let text = format!(
        "{what} held back. An object that is under way is finished; nothing more follows it.\n\
         Keys of what has crossed are still given to those who may have them; `tidegate keys shred` ends that."
    );
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

/// Finds what nobody needs in the stores of all sites, and removes it as far as that is wanted.
pub(crate) async fn sweep(project: &Project, removal: Removal, format: Format) -> Result<(), Failure> {
    let sweeping = "looking for what nobody needs";
    let transfers = known(project)?;
    let environment = stores::environment();
    let mut opened: BTreeMap<SiteName, Arc<dyn Store>> = BTreeMap::new();
    for name in project.sites.sites.keys() {
        opened.insert(name.clone(), stores::open(&project.store_address(name), &environment)?);
    }
    let sweep = transfers.sweep(&opened, removal).await.while_(sweeping)?;
    if !sweep.failed.is_empty() {
        let failed = sweep.failed.iter().map(|(site, why)| format!("site `{site}`: {why}"));
        return Err(Failure::failed(sweeping, failed.collect::<Vec<_>>().join("; ")));
    }
    if format == Format::Json {
        let removed = removal != Removal::Nothing;
        return show::json(&serde_json::json!({"removed": removed, "sweep": sweep}));
    }
    show::print(&swept(&sweep, removal))
}

fn swept(sweep: &Sweep, removal: Removal) -> String {
    let mut text = String::new();
    let mut sums: BTreeMap<(&SiteName, Needless), (u64, u64)> = BTreeMap::new();
    for object in &sweep.needless {
        let sum = sums.entry((&object.site, object.why)).or_default();
        *sum = (sum.0 + 1, sum.1 + object.bytes);
    }
    for ((site, why), (objects, bytes)) in &sums {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{site}: {objects} objects, {}: {}",
            HumanBytes(*bytes),
            why_needless(*why)
        );
    }
    for site in &sweep.unclear {
        let _ = writeln!(
            text,
            "{site}: a worker is at work, or a packing list of others cannot be read; what no list names was left alone"
        );
    }
    if sweep.waiting > 0 {
        let _ = writeln!(
            text,
            "{} objects that no packing list names were left alone: they may be on their way. After a day, look again.",
            sweep.waiting
        );
    }
    let unnamed = sums.keys().any(|(_, why)| *why == Needless::Unnamed);
    let known = sums.keys().any(|(_, why)| *why != Needless::Unnamed);
    text.push_str(match removal {
        _ if sums.is_empty() => "There is nothing else that nobody needs.\n",
        Removal::Nothing => "Nothing was removed; `--yes` does.\n",
        Removal::Known if !known => "Nothing was removed.\n",
        Removal::Known | Removal::Unnamed => "Removed.\n",
    });
    if unnamed && removal != Removal::Unnamed {
        text.push_str("What nothing names goes with `--yes --unnamed`, if nobody else sends into these stores.\n");
    }
    text
}

fn why_needless(why: Needless) -> &'static str {
    match why {
        Needless::PermitEnded => "sent to workers under permits that have ended",
        Needless::Shredded => "of artifacts whose keys were destroyed",
        Needless::AttemptEnded => "outputs of attempts that have ended; what counts is at home",
        Needless::NeverSent => "of crossings that were never finished, and whose permits have ended",
        Needless::Unnamed => "named by nothing for a day: left by senders that were killed, or never received",
    }
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
