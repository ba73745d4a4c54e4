//! `audit show`, `audit verify`, `audit proof`, `audit keys`: the ledger, offline.

use std::path::Path;

use tidegate_contracts::journal::Journal;
use tidegate_engine::{COSIGNED_PATH, ControlKey};
use tidegate_ledger::merkle::leaf_hash;
use tidegate_ledger::{LeafProof, LedgerError, SignedCheckpoint, Tree, TrustedKeys, VerifierKey, verify_tiles};
use tidegate_local::SqliteJournal;
use tidegate_seal::sign::VerifyingKey;
use tidegate_types::event::Event;

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::project::Project;
use crate::show;

const READING: &str = "reading the ledger";

fn journal(project: &Project) -> Result<SqliteJournal, Failure> {
    let file = project.layout.journal();
    if !file.exists() {
        return Err(Failure::Usage(format!(
            "there is no ledger below {}: run the pipeline first",
            project.layout.root().display()
        )));
    }
    SqliteJournal::open(&file).while_(READING)
}

/// The keys that must have signed: the log's own, and the home keeper's once it has cosigned. All of
/// them are public: an auditor opens no secret.
fn trusted(project: &Project, journal: &SqliteJournal) -> Result<TrustedKeys, Failure> {
    let organisation = &project.sites.organisation;
    let key = ControlKey::read_public(&project.layout.control_key())?;
    let log = VerifierKey::new(tidegate_keeper::log_origin(organisation), *key.as_bytes()).while_(READING)?;
    let mut cosigners = Vec::new();
    let home = project.home()?;
    if let Some(bytes) = journal.get("keepers", home.as_str()).while_(READING)? {
        let text: String = serde_json::from_slice(&bytes).while_(READING)?;
        let key = VerifyingKey::from_base64(&text).while_(READING)?;
        cosigners.push(
            VerifierKey::new(tidegate_keeper::cosigner_name(organisation, &home), *key.as_bytes()).while_(READING)?,
        );
    }
    Ok(TrustedKeys { log, cosigners })
}

/// Keys that an auditor brought along: one on a line, as [`keys`] prints them.
fn brought(project: &Project, file: &Path) -> Result<TrustedKeys, Failure> {
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let origin = tidegate_keeper::log_origin(&project.sites.organisation);
    let (mut log, mut cosigners) = (None, Vec::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let key: VerifierKey = line.parse().map_err(|error: LedgerError| wrong(error.to_string()))?;
        if key.name() == origin {
            log = Some(key);
        } else {
            cosigners.push(key);
        }
    }
    let log = log.ok_or_else(|| wrong(format!("no key in it is named `{origin}`, which is the log's name")))?;
    Ok(TrustedKeys { log, cosigners })
}

/// Prints the keys that verify the ledger, as Go's `sumdb/note` reads them.
pub(crate) fn keys(project: &Project, format: Format) -> Result<(), Failure> {
    let keys = trusted(project, &journal(project)?)?;
    let cosigners: Vec<String> = keys.cosigners.iter().map(VerifierKey::to_string).collect();
    match format {
        Format::Json => show::json(&serde_json::json!({"log": keys.log.to_string(), "cosigners": cosigners})),
        Format::Text => show::line(&[vec![keys.log.to_string()], cosigners].concat().join("\n")),
    }
}

/// Prints the entries.
pub(crate) fn show(project: &Project, run: Option<&str>, format: Format) -> Result<(), Failure> {
    let journal = journal(project)?;
    let size = journal.log_size().while_(READING)?;
    for index in 0..size {
        let leaf = journal.log_leaves(index, index + 1).while_(READING)?;
        let leaf = leaf.into_iter().next().unwrap_or_default();
        let event: Event = serde_json::from_slice(&leaf).while_(READING)?;
        if run.is_some_and(|run| event.subject != run) {
            continue;
        }
        match format {
            Format::Json => show::line(&String::from_utf8_lossy(&leaf))?,
            Format::Text => {
                let names: Vec<String> = event
                    .data
                    .names
                    .iter()
                    .map(|(key, name)| format!("{key}={name}"))
                    .collect();
                let numbers: Vec<String> = event
                    .data
                    .numbers
                    .iter()
                    .map(|(key, number)| format!("{key}={number}"))
                    .collect();
                let digests: Vec<String> = event
                    .data
                    .digests
                    .iter()
                    .map(|(key, digest)| format!("{key}={}", digest.short()))
                    .collect();
                let what = event.event_type.trim_start_matches("dev.tidegate.");
                show::line(&format!(
                    "{index:>5}  {}  {:<10} {what:<17} {}  {}",
                    event.time,
                    event.source.trim_start_matches('/'),
                    event.subject,
                    [names, numbers, digests].concat().join(" ")
                ))?;
            }
        }
    }
    Ok(())
}

fn only_log(keys: &TrustedKeys) -> TrustedKeys {
    TrustedKeys {
        log: keys.log.clone(),
        cosigners: Vec::new(),
    }
}

fn tampered(error: &LedgerError) -> Failure {
    Failure::Refused(tidegate_types::Refusal {
        rule: "ledger-tampered".to_owned(),
        what: "verifying the ledger".to_owned(),
        why: error.to_string(),
        fix: "restore the ledger from a copy that verifies, and find out who changed it".to_owned(),
    })
}

/// Verifies everything that lies in the ledger's folder.
pub(crate) fn verify(
    project: &Project,
    since: Option<&Path>,
    keys: Option<&Path>,
    format: Format,
) -> Result<(), Failure> {
    let mut keys = match keys {
        Some(file) => brought(project, file)?,
        None => trusted(project, &journal(project)?)?,
    };
    let folder = project.layout.ledger();
    let read = |path: &str| match std::fs::read(folder.join(path)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let since = match since {
        Some(file) => Some(
            std::fs::read_to_string(file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?,
        ),
        None => None,
    };
    let checkpoint = read("checkpoint")
        .while_("reading the ledger's checkpoint")?
        .unwrap_or_default();
    // A process that was killed leaves entries that the keeper has not seen yet. What it has cosigned
    // must be continued all the same.
    let cosigned = SignedCheckpoint::open(&String::from_utf8_lossy(&checkpoint), &keys).is_ok();
    if !cosigned {
        if let Some(last) = read(COSIGNED_PATH).while_("reading the ledger's checkpoint")? {
            let text = String::from_utf8_lossy(&last).into_owned();
            SignedCheckpoint::open(&text, &keys).map_err(|error| tampered(&error))?;
            verify_tiles(&read, &only_log(&keys), Some(&text)).map_err(|error| tampered(&error))?;
        }
        keys.cosigners.clear();
    }
    let report = verify_tiles(&read, &keys, since.as_deref()).map_err(|error| tampered(&error))?;
    if format == Format::Json {
        return show::json(&report);
    }
    let mut text = format!(
        "Ledger {} verifies: {} entries, root {}.\nSigned by {}.\n",
        report.origin,
        report.size,
        report.root.to_hex(),
        report.signed_by.join(" and ")
    );
    if let Some(size) = report.continues {
        text.push_str(&format!(
            "It continues the checkpoint of {size} entries: nothing before was changed or cut.\n"
        ));
    }
    for sentence in &report.not_proven {
        text.push_str(&format!("Not proven: {sentence}\n"));
    }
    show::print(&text)
}

/// Prints a proof that the ledger holds one entry.
pub(crate) fn proof(project: &Project, entry: u64) -> Result<(), Failure> {
    let journal = journal(project)?;
    let checkpoint = std::fs::read_to_string(project.layout.ledger().join("checkpoint"))
        .while_("reading the ledger's checkpoint")?;
    let signed = SignedCheckpoint::parse(&checkpoint).while_("reading the ledger's checkpoint")?;
    let size = signed.checkpoint().size;
    if entry >= size {
        return Err(Failure::Usage(format!(
            "the ledger has {size} entries, counted from 0; there is no entry {entry}"
        )));
    }
    let mut tree = Tree::default();
    for from in (0..size).step_by(1024) {
        for leaf in journal.log_leaves(from, size.min(from + 1024)).while_(READING)? {
            tree.append(leaf_hash(&leaf));
        }
    }
    let proof = LeafProof::new(&tree, entry, signed).while_("making a proof")?;
    show::print(&proof.to_string())
}
