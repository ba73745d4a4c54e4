//! `audit show`, `audit verify`, `audit checkpoint`, `audit keys`, `audit proof`: the ledger, offline.

use std::path::Path;

use tidegate_contracts::journal::Journal;
use tidegate_engine::{COSIGNED_PATH, ControlKey};
use tidegate_ledger::merkle::leaf_hash;
use tidegate_ledger::{LeafProof, LedgerError, SignedCheckpoint, Tree, TrustedKeys, VerifierKey, verify_tiles};
use tidegate_local::SqliteJournal;
use tidegate_seal::sign::VerifyingKey;
use tidegate_types::event::Event;
use tidegate_types::ids::SiteName;

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::project::State;
use crate::show;

const READING: &str = "reading the ledger";

fn journal(state: &State) -> Result<SqliteJournal, Failure> {
    let file = state.layout.journal();
    if !file.exists() {
        return Err(Failure::Usage(format!(
            "there is no ledger below {}: run the pipeline first",
            state.layout.root().display()
        )));
    }
    SqliteJournal::open(&file).while_(READING)
}

/// The checkpoint that lies in the ledger's folder, as text.
fn checkpoint(state: &State) -> Result<String, Failure> {
    std::fs::read_to_string(state.layout.ledger().join("checkpoint")).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => tampered(&"its checkpoint is missing"),
        _ => Failure::failed("reading the ledger's checkpoint", error),
    })
}

/// The name of the log, which its own checkpoint tells: a signature under another name does not verify.
fn origin(state: &State) -> Result<String, Failure> {
    let origin = checkpoint(state)?.lines().next().unwrap_or_default().to_owned();
    match tidegate_keeper::organisation(&origin) {
        Some(_) => Ok(origin),
        None => Err(tampered(&"its checkpoint does not begin with the name of a log")),
    }
}

/// The keys that must have signed: the log's own, and the home keeper's once it has cosigned. All of
/// them are public: an auditor opens no secret.
fn trusted(state: &State, journal: &SqliteJournal) -> Result<TrustedKeys, Failure> {
    let origin = origin(state)?;
    let organisation = tidegate_keeper::organisation(&origin).unwrap_or_default();
    let key = ControlKey::read_public(&state.layout.control_key())?;
    let log = VerifierKey::new(origin.clone(), *key.as_bytes()).while_(READING)?;
    let mut cosigners = Vec::new();
    let home = state.home();
    for (site, bytes) in journal.scan("keepers", "").while_(READING)? {
        let site = SiteName::new(site).while_(READING)?;
        if home.as_ref().is_some_and(|home| *home != site) {
            continue;
        }
        let text: String = serde_json::from_slice(&bytes).while_(READING)?;
        let key = VerifyingKey::from_base64(&text).while_(READING)?;
        let name = tidegate_keeper::cosigner_name(organisation, &site);
        cosigners.push(VerifierKey::new(name, *key.as_bytes()).while_(READING)?);
    }
    Ok(TrustedKeys { log, cosigners })
}

/// Keys that an auditor brought along: one on a line, as [`keys`] prints them. Which of them is the log's is
/// told by their names alone, and by nothing in the folder that is audited: a keeper's is the log's name and a
/// site.
fn brought(file: &Path) -> Result<TrustedKeys, Failure> {
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Result<Vec<VerifierKey>, LedgerError> = lines.map(str::parse).collect();
    let mut keys = keys.map_err(|error| wrong(error.to_string()))?;
    keys.sort_by_key(|key| key.name().len());
    let mut keys = keys.into_iter();
    let (log, cosigners) = (keys.next(), keys.collect::<Vec<_>>());
    let log = log.ok_or_else(|| wrong("there is no key in it".to_owned()))?;
    let sites = format!("{}/", log.name());
    match cosigners.iter().find(|key| !key.name().starts_with(&sites)) {
        None => Ok(TrustedKeys { log, cosigners }),
        Some(stranger) => Err(wrong(format!(
            "`{}` and `{}` are not keys of one log and its keepers",
            log.name(),
            stranger.name()
        ))),
    }
}

/// Prints the keys that verify the ledger, as Go's `sumdb/note` reads them.
pub(crate) fn keys(state: &State, format: Format) -> Result<(), Failure> {
    let keys = trusted(state, &journal(state)?)?;
    let cosigners: Vec<String> = keys.cosigners.iter().map(VerifierKey::to_string).collect();
    match format {
        Format::Json => show::json(&serde_json::json!({"log": keys.log.to_string(), "cosigners": cosigners})),
        Format::Text => show::line(&[vec![keys.log.to_string()], cosigners].concat().join("\n")),
    }
}

/// Prints the entries, all or those about one run.
pub(crate) fn show(state: &State, run: Option<&str>, format: Format) -> Result<(), Failure> {
    let journal = journal(state)?;
    if let Some(run) = run {
        super::status::run_named(state, run)?;
    }
    let size = journal.log_size().while_(READING)?;
    for index in 0..size {
        let leaf = journal.log_leaves(index, index + 1).while_(READING)?;
        let leaf = leaf.into_iter().next().unwrap_or_default();
        let event: Event = serde_json::from_slice(&leaf).while_(READING)?;
        if run.is_some_and(|run| event.subject != run) {
            continue;
        }
        match format {
            // The event exactly as it was hashed.
            Format::Json => show::line(&format!(
                "{{\"entry\":{index},\"event\":{}}}",
                String::from_utf8_lossy(&leaf)
            ))?,
            Format::Text => show::line(&told(index, &event))?,
        }
    }
    Ok(())
}

/// An entry in one line, for people.
fn told(index: u64, event: &Event) -> String {
    let names = event.data.names.iter().map(|(key, name)| format!("{key}={name}"));
    let numbers = event.data.numbers.iter().map(|(key, number)| format!("{key}={number}"));
    let digests = event.data.digests.iter();
    let digests = digests.map(|(key, digest)| format!("{key}={}", digest.short()));
    let data: Vec<String> = names.chain(numbers).chain(digests).collect();
    format!(
        "{index:>5}  {}  {:<10} {:<17} {}  {}",
        event.time,
        event.source.trim_start_matches('/'),
        event.subject,
        event.event_type.trim_start_matches("dev.tidegate."),
        data.join(" ")
    )
}

fn only_log(keys: &TrustedKeys) -> TrustedKeys {
    TrustedKeys {
        log: keys.log.clone(),
        cosigners: Vec::new(),
    }
}

fn tampered(error: &dyn std::fmt::Display) -> Failure {
    Failure::Refused(tidegate_types::Refusal {
        rule: "ledger-tampered".to_owned(),
        what: "verifying the ledger".to_owned(),
        why: error.to_string(),
        fix: "restore the ledger from a copy that verifies, and find out who changed it".to_owned(),
    })
}

/// Verifies everything that lies in the ledger's folder.
pub(crate) fn verify(state: &State, since: Option<&Path>, keys: Option<&Path>, format: Format) -> Result<(), Failure> {
    let mut keys = match keys {
        Some(file) => brought(file)?,
        None => trusted(state, &journal(state)?)?,
    };
    let folder = state.layout.ledger();
    let read = |path: &str| match std::fs::read(folder.join(path)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let since = since.map(earlier).transpose()?;
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

/// A checkpoint that an auditor kept. A file that is none says nothing about the ledger.
fn earlier(file: &Path) -> Result<String, Failure> {
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    match SignedCheckpoint::parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(wrong(format!(
            "is not a checkpoint, as `tidegate audit checkpoint` prints it: {error}"
        ))),
    }
}

/// Prints the checkpoint, for somebody to keep and to hold later ledgers against.
pub(crate) fn print_checkpoint(state: &State, format: Format) -> Result<(), Failure> {
    journal(state)?;
    let text = checkpoint(state)?;
    if format == Format::Text {
        return show::print(&text);
    }
    let signed = SignedCheckpoint::parse(&text).while_("reading the ledger's checkpoint")?;
    let head = signed.checkpoint();
    show::json(&serde_json::json!({"size": head.size, "root": head.root.to_hex(), "checkpoint": text}))
}

/// Prints a proof that the ledger holds one entry.
pub(crate) fn proof(state: &State, entry: u64, format: Format) -> Result<(), Failure> {
    let journal = journal(state)?;
    let signed = SignedCheckpoint::parse(&checkpoint(state)?).while_("reading the ledger's checkpoint")?;
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
    match format {
        Format::Text => show::print(&proof.to_string()),
        Format::Json => show::json(&serde_json::json!({"entry": entry, "size": size, "proof": proof.to_string()})),
    }
}
