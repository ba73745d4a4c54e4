//! What `setup` leaves, kept for later attempts: sealed into the site's store after it ran, and opened in place of running it
//! again where everything that it depends on is the same.
//!
//! It is packed and unpacked by the machine's `tar`, inside the sandbox: whoever wrote it may be hostile. It counts only where
//! commands see their folders in a room whose name is the same everywhere, because what a setup leaves is full of paths.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use tidegate_contracts::ObjectName;
use tidegate_seal::digest::canonical_digest;
use tidegate_seal::key::DataKey;
use tidegate_seal::random::random_bytes;
use tidegate_seal::sign::VerifyingKey;
use tidegate_transfer::{Expected, receive};
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::message::{GrantedSetup, WorkerMessage};
use tidegate_types::{ArtifactId, Digest, Label};

use super::Attempt;
use crate::command::{self, Ran, Task};
use crate::environment::Surroundings;
use crate::error::{Failure, Stage};
use crate::grant::Granted;
use crate::outgoing::{Before, Outgoing, Parcel};
use crate::sandbox::{self, Policy, ROOM};
use crate::scratch::wipe;

/// The standing slot under which it is sent.
const SETUP_SLOT: &str = "setup";
/// The archive's name.
const ARCHIVE: &str = "setup.tar";
/// Where it is unpacked, below the temporary folder.
const UNPACKED: &str = "setup";
/// What it holds: the folders that a setup may write to and that stay.
const HELD: [&str; 2] = ["code", "home"];

impl Attempt {
    /// Runs the job's setup, or takes what it left before.
    pub(super) async fn set_up(&mut self, granted: &Granted, code: Option<(ArtifactId, Label)>) -> Result<(), Failure> {
        let job = &granted.grant.job;
        if job.setup.trim().is_empty() {
            return Ok(());
        }
        // What several machines set up may differ by rank.
        let Some((code, label)) = code.filter(|_| job.others == 0) else {
            return self.run_setup(granted, &job.setup, Vec::new()).await.map(drop);
        };
        let machine = self.machine(granted, &code)?;
        let same = granted.grant.setup.as_ref().filter(|setup| setup.machine == machine);
        if let Some(setup) = same
            && self.take(granted, setup, &label).await?
        {
            return Ok(());
        }
        let ran = self.run_setup(granted, &job.setup, Vec::new()).await?;
        if ran.in_room {
            self.keep(granted, machine, code, label).await?;
        }
        Ok(())
    }

    /// A command before any data is there, with what a setup may.
    async fn run_setup(&mut self, granted: &Granted, text: &str, notes: Vec<String>) -> Result<Ran, Failure> {
        let around = self.around(granted);
        let policy = around.setup_policy();
        self.before_data(granted, text, policy, notes).await
    }

    async fn before_data(
        &mut self,
        granted: &Granted,
        text: &str,
        policy: Policy,
        notes: Vec<String>,
    ) -> Result<Ran, Failure> {
        let task = Task {
            stage: Stage::Setup,
            executable: &self.executable,
            policy,
            text,
            environment: self.around(granted).environment(&[]),
            folder: self.scratch.code(),
            recipient: &granted.grant.output_recipient,
            metrics: None,
            notice: self.scratch.notice(),
            limits: Vec::new(),
            notes,
        };
        command::run(&task, &mut self.mail, None, None).await
    }

    fn around<'a>(&'a self, granted: &'a Granted) -> Surroundings<'a> {
        Surroundings::new(
            &granted.grant.job,
            &self.scratch,
            &self.executable,
            &self.accelerators,
            self.ticket.attempt.rank,
            &self.evidence,
        )
    }

    /// The digest of everything that a setup depends on, as far as it can be known.
    fn machine(&self, granted: &Granted, code: &ArtifactId) -> Result<Digest, Failure> {
        let job = &granted.grant.job;
        let around = self.around(granted);
        // As the setup sees it.
        let mut environment = around.environment(&[]);
        sandbox::renamed(self.scratch.root(), &mut environment);
        let path = around.path;
        let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let programs: Vec<_> = std::env::split_paths(OsStr::new(&path))
            .map(|folder| listing(&folder))
            .collect();
        let all = (
            ("tidegate.setup.v1", ROOM, std::env::consts::ARCH, system),
            (&job.setup, environment, job.setup_network, code),
            (path, programs),
        );
        canonical_digest(&all).map_err(|error| Failure::new(Stage::Setup, error.to_string()))
    }

    /// Opens what the same setup left before, where that can be used; false where it cannot.
    async fn take(&mut self, granted: &Granted, setup: &GrantedSetup, label: &Label) -> Result<bool, Failure> {
        let of = "what the setup left before";
        let failed = |why: &str| Failure::new(Stage::Input, format!("{of}: {why}"));
        let key = self.data_key(of, &setup.sealed.sealed_key)?;
        let packing_list = ObjectName::new(setup.sealed.packing_list.as_str())
            .map_err(|_| failed("its packing list has a name that is none"))?;
        let sender = VerifyingKey::from_base64(&setup.sealed.signing_key)
            .map_err(|_| failed("its worker's key is not an Ed25519 key in base64"))?;
        let Some(limit) = slot_bytes(granted) else {
            return Ok(false);
        };
        let organisation = self.ticket.organisation.clone();
        let expected = Expected {
            packing_list: &packing_list,
            packing_list_digest: &setup.sealed.packing_list_digest,
            sender: &sender,
            organisation: &organisation,
            artifact: None,
            permit: &setup.permit,
            permit_digest: &setup.permit_digest,
            to: &granted.standing.permit.from.site,
            key_commitment: None,
            byte_limit: limit,
            plaintext_limit: limit,
            ceiling: Some(label),
        };
        let archive = self.scratch.state().join("setup-before");
        let unpacked = self.scratch.temporary().join(UNPACKED);
        let taken = self.unpacked(granted, &expected, &key, (&archive, &unpacked)).await;
        // Whatever is left of it is in nobody's way.
        wiped(&archive);
        wiped(&unpacked);
        taken
    }

    /// Whether it was opened and stands in the place of what the setup makes.
    async fn unpacked(
        &mut self,
        granted: &Granted,
        expected: &Expected<'_>,
        key: &DataKey,
        (archive, unpacked): (&Path, &Path),
    ) -> Result<bool, Failure> {
        let store = self.mail.store();
        let work = receive(expected, &*store, key, archive);
        if let Err(error) = self.mail.while_leased(work).await? {
            tracing::warn!(%error, "what a setup left before cannot be used");
            return Ok(false);
        }
        // It was set up from the same code, so nothing is asked of anybody outside.
        let mut policy = self.around(granted).setup_policy();
        policy.network = false;
        policy.read.push(archive.to_owned());
        let text = format!(
            "mkdir {0} && cd {0} && tar --extract --no-same-owner --file {1}",
            quoted(unpacked),
            quoted(&archive.join(ARCHIVE))
        );
        let notes = vec!["setup is not run again: what it left before is taken".to_owned()];
        let ran = match self.before_data(granted, &text, policy, notes).await {
            Ok(ran) => ran,
            Err(failure) if failure.stage == Stage::Setup => return Ok(false),
            Err(failure) => return Err(failure),
        };
        let whole = HELD.iter().all(|name| is_folder(&unpacked.join(name)));
        if !(ran.in_room && whole) {
            return Ok(false);
        }
        let moved = replace(&unpacked.join("code"), &self.scratch.code())
            .and_then(|()| replace(&unpacked.join("home"), &self.scratch.home()));
        moved.map_err(|error| Failure::new(Stage::Input, format!("what the setup left before: {error}")))?;
        Ok(true)
    }

    /// Seals what the setup left, and tells where it stands. That it cannot be kept is no reason to end the work.
    async fn keep(
        &mut self,
        granted: &Granted,
        machine: Digest,
        code: ArtifactId,
        label: Label,
    ) -> Result<(), Failure> {
        let Some(limit) = slot_bytes(granted) else {
            return Ok(());
        };
        let packed = self.scratch.temporary().join(ARCHIVE);
        let mut policy = self.around(granted).setup_policy();
        policy.network = false;
        let text = format!(
            "cd {} && tar --create --file {} {}",
            quoted(self.scratch.root()),
            quoted(&packed),
            HELD.join(" ")
        );
        match self.before_data(granted, &text, policy, Vec::new()).await {
            Ok(_) => {}
            Err(failure) if [Stage::Setup, Stage::Output].contains(&failure.stage) => {
                tracing::warn!(why = failure.reason, "what the setup left is not kept");
                let _ = fs::remove_file(&packed);
                return Ok(());
            }
            Err(failure) => return Err(failure),
        }
        let (Some((code_granted, _)), Ok(salt)) = (granted.artifacts.first(), random_bytes::<32>()) else {
            return Ok(());
        };
        let data_key = self
            .data_key("the code", &code_granted.sealed_key)?
            .derived(SETUP_SLOT, &salt);
        let folder = self.scratch.state().join("setup");
        let moved = fs::create_dir(&folder).and_then(|()| fs::rename(&packed, folder.join(ARCHIVE)));
        moved.map_err(|error| Failure::new(Stage::Setup, error.to_string()))?;
        let permitted = (&granted.grant, &granted.standing.permit);
        let outgoing = Outgoing::new(&self.ticket, &self.owner, &self.mail, permitted, Some(code), label)?;
        let parcel = Parcel {
            slot: SETUP_SLOT,
            kind: ArtifactKind::Code,
            folder: folder.clone(),
            state: self.scratch.state(),
            limit,
            before: Before::nothing()?,
            data_key: Some(data_key),
        };
        let sent = self.mail.while_leased(outgoing.send(parcel)).await?;
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(%error, "an archive of a setup could not be removed; it goes with the attempt");
        }
        match sent {
            Ok(sealed) => {
                let message = WorkerMessage::Setup {
                    machine,
                    packing_list: sealed.packing_list,
                    packing_list_digest: sealed.packing_list_digest,
                    salt: hex::encode(salt),
                };
                self.mail.tell(message).await
            }
            Err(failure) => {
                tracing::warn!(why = failure.reason, "what the setup left is not kept");
                Ok(())
            }
        }
    }
}

/// The most bytes that are kept, where the permit has a slot for them.
fn slot_bytes(granted: &Granted) -> Option<u64> {
    let mut slots = granted.standing.permit.standing.iter();
    slots.find(|slot| slot.slot == SETUP_SLOT).map(|slot| slot.byte_limit)
}

/// Names, lengths and times of the files in a folder: another program there is another machine.
fn listing(folder: &Path) -> Vec<(String, u64, u64)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|entry| {
            let about = entry.metadata().ok()?;
            let modified = about.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let name = entry.file_name().to_string_lossy().into_owned();
            Some((name, about.size(), modified.as_secs()))
        })
        .collect();
    all.sort();
    all
}

/// A folder itself: behind a link there may be anything.
fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.is_dir())
}

/// Also what whoever packed it took the rights to.
fn wiped(path: &Path) {
    if let Err(error) = wipe(path) {
        tracing::warn!(%error, "what a setup left before is not removed; it goes with the attempt");
    }
}

fn replace(by: &Path, folder: &Path) -> std::io::Result<()> {
    fs::remove_dir_all(folder)?;
    fs::rename(by, folder)
}

/// One word for a shell, whatever it holds.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}
