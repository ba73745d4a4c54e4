//! `keys list`, `keys rotate`, `keys backup`, `keys restore`, `keys shred`: what a person on the private site does with its keys.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use tidegate_contracts::journal::Journal;
use tidegate_keeper::{Custodian, KeptArtifact};
use tidegate_local::SqliteJournal;
use tidegate_seal::envelope::Identity;
use tidegate_types::event::{Event, EventType};
use tidegate_types::ids::ArtifactId;
use zeroize::Zeroizing;

use super::run;
use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::keeper_process::try_lock;
use crate::project::{Project, now};
use crate::{show, stores};

/// So many digits of an identity name it well enough.
const FEWEST_DIGITS: usize = 8;

const BACKUPS: &str = "Backups of the site's folder from before open no more: make a new one now.\n";
const BACKUPS_OF_KEYS: &str = "Backups of its keys from before still hold what was destroyed: remove them.\n";

/// Lists what crossed under keys of the private site.
pub(crate) async fn list(project: &Project, format: Format) -> Result<(), Failure> {
    let artifacts = custodian(project).await?.artifacts().while_("listing what crossed")?;
    match format {
        Format::Json => show::json(&artifacts),
        Format::Text if artifacts.is_empty() => show::line("nothing crossed under keys of this site"),
        Format::Text => show::print(&artifacts.iter().map(described).collect::<String>()),
    }
}

/// Renews the wrapping key. With `ledger`, has it recorded at once; with the next run otherwise.
pub(crate) async fn rotate(project: &Project, ledger: bool, format: Format) -> Result<(), Failure> {
    let rotated = {
        let _lock = alone(project)?;
        custodian(project)
            .await?
            .rotate()
            .await
            .while_("renewing the wrapping key")?
    };
    match format {
        Format::Json => show::json(&rotated),
        Format::Text => show::print(&format!(
            "A new key wraps the {} keys of this site; those before it are destroyed.\n{BACKUPS}",
            rotated.wrapped_keys
        )),
    }?;
    recorded(project, ledger, format).await
}

/// Has the ledger hold what was done, if it is on this machine. The answer comes first: it is done, and the ledger
/// holds it with the next run, whatever comes of this.
async fn recorded(project: &Project, ledger: bool, format: Format) -> Result<(), Failure> {
    if ledger {
        run::settle(project, format).await?;
    }
    Ok(())
}

/// Writes the keys of the site and all data keys into a file that one age identity opens.
pub(crate) async fn backup(project: &Project, to: &str, out: &Path, format: Format) -> Result<(), Failure> {
    let backing = "making a backup of the keys";
    if !to.starts_with("age1") {
        return Err(Failure::Usage(format!(
            "`{to}` is no recipient: `age-keygen` prints one, as `age1…`"
        )));
    }
    if out.exists() {
        return Err(Failure::Usage(format!("{} is there already", out.display())));
    }
    let _lock = alone(project)?;
    let backup = custodian(project).await?.backup(to).await.while_(backing)?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .and_then(|mut file| {
            let written = file.write_all(&backup.sealed).and_then(|()| file.sync_all());
            if written.is_err() {
                let _ = std::fs::remove_file(out);
            }
            written
        });
    written.map_err(|error| Failure::failed(backing, format!("{}: {error}", out.display())))?;
    match format {
        Format::Json => show::json(&serde_json::json!({"file": out, "data_keys": backup.data_keys})),
        Format::Text => show::line(&format!(
            "{} holds the keys of the site and {} data keys. Who has the identity of {to} can open everything that crossed.",
            out.display(),
            backup.data_keys
        )),
    }
}

/// Puts back what a backup holds and the site cannot open any more.
pub(crate) async fn restore(project: &Project, backup: &Path, identity: &Path, format: Format) -> Result<(), Failure> {
    let restoring = "restoring the keys of a backup";
    let read = |file: &Path| {
        let bytes = std::fs::read(file).map(Zeroizing::new);
        bytes.map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))
    };
    let (sealed, secret) = (read(backup)?, read(identity)?);
    let wrong = || Failure::Usage(format!("{}: it holds no age identity", identity.display()));
    let secret = std::str::from_utf8(&secret).map_err(|_| wrong())?;
    let secret = secret
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("AGE-SECRET-KEY-"));
    let identity = secret
        .and_then(|secret| Identity::from_secret(secret).ok())
        .ok_or_else(wrong)?;
    let restored = {
        let _lock = alone(project)?;
        let shredded = shredded(project)?;
        let custodian = custodian_that(true, project).await?;
        custodian
            .restore(&sealed, &identity, &shredded)
            .await
            .while_(restoring)?
    };
    match format {
        Format::Json => show::json(&restored),
        Format::Text => show::line(&format!(
            "{}{} data keys were put back; {} permits have none because it was destroyed on purpose, and {} are lost.",
            if restored.site_keys {
                "The site's own keys and "
            } else {
                ""
            },
            restored.data_keys,
            restored.destroyed,
            restored.lost
        )),
    }
}

/// The artifacts whose keys were destroyed, as the ledger tells it where it is on this machine.
fn shredded(project: &Project) -> Result<BTreeSet<ArtifactId>, Failure> {
    let reading = "reading the ledger";
    let mut shredded = BTreeSet::new();
    let source = format!("/{}", project.home()?);
    if !project.layout.journal().exists() {
        return Ok(shredded);
    }
    let journal = SqliteJournal::open(project.layout.journal()).while_(reading)?;
    let size = journal.log_size().while_(reading)?;
    for index in 0..size {
        for leaf in journal.log_leaves(index, index + 1).while_(reading)? {
            let event: Event = serde_json::from_slice(&leaf).while_(reading)?;
            if event.event_type == EventType::Shredded.cloud_event_type() && event.source == source {
                shredded.extend(event.data.digests.get("artifact"));
            }
        }
    }
    Ok(shredded)
}

/// Destroys the keys of an artifact. With `ledger`, as [`rotate`].
pub(crate) async fn shred(project: &Project, artifact: &str, ledger: bool, format: Format) -> Result<(), Failure> {
    let shredded = {
        let _lock = alone(project)?;
        let custodian = custodian(project).await?;
        let artifact = named(&custodian, artifact)?;
        custodian
            .shred(&artifact)
            .await
            .while_("destroying the keys of an artifact")?
    };
    match format {
        Format::Json => show::json(&shredded),
        Format::Text => {
            let readers = if shredded.grantees.is_empty() {
                "Nobody was given them: no copy of it can be read any more.\n"
            } else {
                "Those who were given them may have kept them; nobody else can read any copy of it.\n"
            };
            show::print(&format!(
                "The keys of this artifact are destroyed.\n{}{readers}{BACKUPS}{BACKUPS_OF_KEYS}",
                described(&shredded)
            ))
        }
    }?;
    recorded(project, ledger, format).await
}

/// The keys of the project's private site, which must have some.
async fn custodian(project: &Project) -> Result<Custodian, Failure> {
    let site = project.home()?;
    if !project.layout.site(&site).join("keys").join("site-keys.json").exists() {
        return Err(Failure::Usage(format!(
            "site `{site}` has no keys yet; they come with its first run"
        )));
    }
    custodian_that(false, project).await
}

/// The keys of the project's private site; a wrapping key is made where there is none, if `creates`.
async fn custodian_that(creates: bool, project: &Project) -> Result<Custodian, Failure> {
    let opening = "opening the site's keys";
    let site = project.home()?;
    let folder = project.layout.site(&site);
    let definition = project.sites.sites.get(&site);
    let definition = definition.ok_or_else(|| Failure::failed(opening, "the sites file does not have this site"))?;
    let custody = stores::custody_that(creates, definition, &folder, &stores::environment()).await?;
    let journal = SqliteJournal::open(folder.join("journal.sqlite")).while_(opening)?;
    Ok(Custodian::new(site, folder, Arc::new(journal), custody, now))
}

/// Makes sure that no keeper of the site runs.
fn alone(project: &Project) -> Result<std::fs::File, Failure> {
    let site = project.home()?;
    try_lock(&project.layout.site(&site).join("keeper.lock"))?.ok_or_else(|| {
        Failure::failed(
            format!("taking the keys of site `{site}`"),
            "its keeper is running; wait for the run to end, or end the keeper",
        )
    })
}

/// The artifact with this identity, or the only one whose identity begins so.
fn named(custodian: &Custodian, text: &str) -> Result<ArtifactId, Failure> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let artifacts = custodian.artifacts().while_("looking for the artifact")?;
    let mut fitting = artifacts
        .iter()
        .map(|kept| kept.artifact)
        .filter(|artifact| digits.len() >= FEWEST_DIGITS && artifact.to_hex().starts_with(digits));
    match (fitting.next(), fitting.next()) {
        (Some(artifact), None) => Ok(artifact),
        (Some(_), Some(_)) => Err(Failure::Usage(format!(
            "several artifacts begin with `{digits}`; give more digits, as `tidegate keys list` shows them"
        ))),
        (None, _) => Err(Failure::Usage(format!(
            "there is no artifact `{text}` under keys of this site; `tidegate keys list` shows what there is \
             (at least {FEWEST_DIGITS} digits of one name it)"
        ))),
    }
}

fn described(kept: &KeptArtifact) -> String {
    let mut text = format!("{} {}\n", kept.artifact, kept.name);
    let sites: Vec<&str> = kept.sites.iter().map(|site| site.as_str()).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "  in the store of {}, under {} permit{}",
        sites.join(", "),
        kept.permits.len(),
        if kept.permits.len() == 1 { "" } else { "s" }
    );
    for grantee in &kept.grantees {
        let who = match &grantee.task {
            Some(task) => format!("a worker of task {task}"),
            None => "the site that serves it".to_owned(),
        };
        let _ = writeln!(
            text,
            "  keys were given to {who} at {}, run {}",
            grantee.site, grantee.run
        );
    }
    if let Some(at) = kept.shredded {
        let _ = writeln!(text, "  keys destroyed {}", show::time(at));
    }
    text
}
