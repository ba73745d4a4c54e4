//! Who may have a data key.
//!
//! An [`Admitted`] worker is one whose hello was verified: the ticket's secret, the signature, the
//! program, the sandbox. It is made by [`admit`] alone, also after a restart, when the hello is read
//! and verified again. [`release_key`] takes nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_seal::envelope::seal_to;
use tidegate_seal::key::DataKey;
use tidegate_seal::sign::VerifyingKey;
use tidegate_transfer::mailbox::HelloOpened;
use tidegate_types::digest::Digest;
use tidegate_types::message::{Attempt, SandboxEvidence, WorkerMessage};
use tidegate_types::refusal::Refusal;

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
    /// Whether the site must keep the command from other files.
    pub files_closed: bool,
}

/// A worker whose hello was verified.
#[derive(Debug)]
pub struct Admitted {
    hello: Digest,
    recipient: String,
    signing_key: VerifyingKey,
}

impl Admitted {
    /// SHA-256 of the hello's payload.
    #[must_use]
    pub const fn hello(&self) -> &Digest {
        &self.hello
    }

    /// The key that signs all further messages of this worker.
    #[must_use]
    pub const fn signing_key(&self) -> &VerifyingKey {
        &self.signing_key
    }
}

/// Admits a worker by its hello, whose secret and signature [`tidegate_transfer::mailbox::Inbox::hello`] has verified.
///
/// # Errors
/// A refusal that names the rule: another hello than the one accepted, another attempt, another
/// program, or a sandbox that does not enforce what the site demands.
pub fn admit(requirements: &Requirements<'_>, hello: &HelloOpened) -> Result<Admitted, Refusal> {
    let what = format!(
        "admitting the worker of attempt {} of `{}`",
        requirements.attempt.attempt, requirements.attempt.task
    );
    let again = "start another attempt; if this one was yours, look for who else had its ticket";
    if requirements.accepted.is_some_and(|accepted| *accepted != hello.digest) {
        return Err(refuse(
            "second-hello",
            what,
            "another hello was accepted before with the same ticket",
            again,
        ));
    }
    if hello.numbered.attempt != *requirements.attempt {
        return Err(refuse(
            "hello-other-attempt",
            what,
            "the hello is for another attempt",
            again,
        ));
    }
    let WorkerMessage::Hello {
        recipient,
        worker,
        sandbox,
        ..
    } = &hello.numbered.message
    else {
        return Err(refuse("hello-first", what, "the first message is not a hello", again));
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
    enforced(requirements, sandbox, &what)?;
    Ok(Admitted {
        hello: hello.digest,
        recipient: recipient.clone(),
        signing_key: hello.signing_key.clone(),
    })
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

/// Seals a data key to an admitted worker: standard base64 of an age file.
///
/// # Errors
/// When the worker's recipient is malformed.
pub fn release_key(admitted: &Admitted, key: &DataKey) -> Result<String, KeeperError> {
    let sealed = seal_to(&admitted.recipient, key.expose()).while_("sealing a data key to a worker")?;
    Ok(STANDARD.encode(sealed))
}
