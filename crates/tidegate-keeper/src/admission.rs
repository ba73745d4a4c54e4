//! Who may have a data key.
//!
//! [`release_key`] takes an [`Admitted`] recipient and nothing else. A [`Worker`] is admitted by [`admit`]
//! when its hello was verified: the ticket's secret, the signature, the program, the sandbox; also after
//! a restart, when the hello is read and verified again. A [`ServingSite`] is admitted by [`admit_site`]
//! when it still has the recipient that it enrolled with.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_seal::envelope::seal_to;
use tidegate_seal::key::DataKey;
use tidegate_seal::sign::VerifyingKey;
use tidegate_transfer::mailbox::HelloOpened;
use tidegate_types::digest::Digest;
use tidegate_types::ids::SiteName;
use tidegate_types::message::{Attempt, SandboxEvidence, WorkerMessage};
use tidegate_types::refusal::Refusal;
use tidegate_types::release::Enrolment;

use crate::error::{KeeperError, While, refuse};

/// What a hello must say.
#[derive(Debug)]
pub struct Requirements<'a> {
    /// The attempt that has a ticket.
    pub attempt: &'a Attempt,
    /// The program that the permit names.
    pub worker: &'a Digest,
    /// The hello that was accepted before, after a restart: the only one that can be accepted again.
    pub accepted: Option<&'a Digest>,
    /// Whether the site can close the network around the command.
    pub network_closed: bool,
    /// Whether the command must be in a network of its own, with the other machines of its job.
    pub apart: bool,
    /// Whether the site must keep the command from other files.
    pub files_closed: bool,
    /// Where machines can prove who they are, the one that the worker was started on.
    pub machine: Option<&'a str>,
}

/// Somebody who may have data keys, and the recipient that they are sealed to.
#[derive(Debug)]
pub struct Admitted<W> {
    recipient: String,
    who: W,
}

/// A worker whose hello was verified.
#[derive(Debug)]
pub struct Worker {
    hello: Digest,
    signing_key: VerifyingKey,
}

/// A site that serves what was released to it.
#[derive(Debug)]
pub struct ServingSite;

impl Admitted<Worker> {
    /// SHA-256 of the hello's payload.
    #[must_use]
    pub const fn hello(&self) -> &Digest {
        &self.who.hello
    }

    /// The key that signs all further messages of this worker.
    #[must_use]
    pub const fn signing_key(&self) -> &VerifyingKey {
        &self.who.signing_key
    }
}

/// Admits a worker by its hello, whose secret and signature [`tidegate_transfer::mailbox::Inbox::hello`] has verified.
///
/// `proven` is the machine that its platform says the hello's statement is from, where it was asked.
///
/// # Errors
/// A refusal that names the rule: another hello than the one accepted, another attempt, another
/// program, another machine, or a sandbox that does not enforce what the site demands.
pub fn admit(
    requirements: &Requirements<'_>,
    hello: &HelloOpened,
    proven: Option<&str>,
) -> Result<Admitted<Worker>, Refusal> {
    let what = admitting(requirements.attempt);
    if requirements
        .accepted
        .is_some_and(|accepted| *accepted != hello.digest())
    {
        return Err(second_hello(requirements.attempt));
    }
    if hello.numbered().attempt != *requirements.attempt {
        return Err(refuse(
            "hello-other-attempt",
            what,
            "the hello is for another attempt",
            AGAIN,
        ));
    }
    let WorkerMessage::Hello {
        recipient,
        worker,
        sandbox,
        ..
    } = &hello.numbered().message
    else {
        return Err(refuse("hello-first", what, "the first message is not a hello", AGAIN));
    };
    if worker != requirements.worker {
        return Err(refuse(
            "worker-digest",
            what,
            format!(
                "the program there is {}, and the permit names {}",
                worker.short(),
                requirements.worker.short()
            ),
            "start the worker program that the permit names, or ask for a permit for the other",
        ));
    }
    // A statement is good for minutes: what was accepted before had one.
    if requirements.accepted.is_none()
        && let Some(machine) = requirements.machine
        && proven != Some(machine)
    {
        let told = proven.unwrap_or("no machine of this site");
        return Err(refuse(
            "hello-other-machine",
            what,
            format!("the worker is on {told}, and the attempt was started on {machine}"),
            AGAIN,
        ));
    }
    enforced(requirements, sandbox, &what)?;
    Ok(Admitted {
        recipient: recipient.clone(),
        who: Worker {
            hello: hello.digest(),
            signing_key: hello.signing_key().clone(),
        },
    })
}

const AGAIN: &str = "start another attempt; if this one was yours, look for who else had its ticket";

fn admitting(attempt: &Attempt) -> String {
    format!(
        "admitting the worker of attempt {} of `{}`",
        attempt.attempt, attempt.task
    )
}

/// The refusal of a worker whose machine was not believed.
pub(crate) fn unproven(attempt: &Attempt, why: impl Into<String>) -> Refusal {
    refuse("hello-other-machine", admitting(attempt), why, AGAIN)
}

/// The refusal that burns an attempt whose ticket is in two hands.
pub(crate) fn second_hello(attempt: &Attempt) -> Refusal {
    refuse(
        "second-hello",
        admitting(attempt),
        "two workers have said hello with the same ticket, and the attempt is burned",
        AGAIN,
    )
}

/// Admits a site that serves by its enrolment. `pinned` is the recipient that was seen first; without
/// one this is the first, and for the caller to pin before it releases a key.
///
/// # Errors
/// A refusal when the enrolment is another site's, or names another recipient than the pinned one.
pub fn admit_site(
    site: &SiteName,
    pinned: Option<&str>,
    enrolment: &Enrolment,
) -> Result<Admitted<ServingSite>, Refusal> {
    let why = if enrolment.site != *site {
        "what stands in the site's store is the enrolment of another site"
    } else if pinned.is_some_and(|pinned| pinned != enrolment.recipient) {
        "the site publishes another recipient than the one that was seen first"
    } else {
        return Ok(Admitted {
            recipient: enrolment.recipient.clone(),
            who: ServingSite,
        });
    };
    Err(refuse(
        "recipient-changed",
        format!("sealing a key to site `{site}`"),
        why,
        "restore the site's keys, or give the rebuilt site a new name in sites.yaml",
    ))
}

/// Whether a sandbox enforces what the site demands.
fn enforced(requirements: &Requirements<'_>, sandbox: &SandboxEvidence, what: &str) -> Result<(), Refusal> {
    if requirements.network_closed && sandbox.network.is_empty() {
        return Err(refuse(
            "sandbox-network",
            what,
            "the network cannot be closed around the command there",
            "run the worker on a kernel with seccomp or network namespaces, or allow the network under `network: run:` of the site",
        ));
    }
    if requirements.apart && !sandbox.network.starts_with("network-namespace") {
        return Err(refuse(
            "sandbox-network",
            what,
            "the command would not be in a network of its own there, with the other machines of its job alone",
            "run the workers as the root user or on machines with user namespaces, or leave `num_nodes` out",
        ));
    }
    if requirements.files_closed && sandbox.files.is_empty() {
        return Err(refuse(
            "sandbox-files",
            what,
            "the command cannot be kept from other files there",
            "run the worker on a kernel with Landlock (Linux 5.13 or newer)",
        ));
    }
    Ok(())
}

/// Checks what a worker says is enforced once its setup is done.
///
/// # Errors
/// As [`admit`].
pub fn still_enforced(requirements: &Requirements<'_>, sandbox: &SandboxEvidence) -> Result<(), Refusal> {
    enforced(requirements, sandbox, "granting data keys")
}

/// Seals what opens a store to a worker that was admitted there: standard base64 of an age file.
///
/// # Errors
/// When the recipient is malformed.
pub(crate) fn seal_access(admitted: &Admitted<Worker>, credentials: &[u8]) -> Result<String, KeeperError> {
    let sealed = seal_to(&admitted.recipient, credentials).while_("sealing credentials")?;
    Ok(STANDARD.encode(sealed))
}

/// Seals a data key to somebody admitted: standard base64 of an age file.
///
/// # Errors
/// When the recipient is malformed.
pub fn release_key<W>(admitted: &Admitted<W>, key: &DataKey) -> Result<String, KeeperError> {
    let sealed = seal_to(&admitted.recipient, key.expose()).while_("sealing a data key")?;
    Ok(STANDARD.encode(sealed))
}
