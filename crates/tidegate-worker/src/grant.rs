//! What a worker checks before it believes a grant.
//!
//! The mailbox has already shown that the keeper signed the grant for this attempt and in this place.
//! Here the worker checks that the grant answers its own hello, is in time, and names only artifacts
//! that the owner permitted for this very site, run, task, program and code.

use std::collections::BTreeSet;

use tidegate_seal::permit::{OpenedPermit, open_permit};
use tidegate_seal::sign::VerifyingKey;
use tidegate_types::message::{Grant, GrantedArtifact, Ticket};
use tidegate_types::permit::Envelope;
use tidegate_types::{ArtifactId, Digest};

/// What the worker calls the code.
pub(crate) const CODE: &str = "code";
/// The most artifacts in one grant.
const MOST_ARTIFACTS: usize = 64;

/// Which grant is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The key of the code and nothing else.
    Code,
    /// The keys of the inputs, for the code that was opened before.
    Data {
        /// The code artifact; `None` when the attempt has none.
        code: Option<ArtifactId>,
    },
}

/// What the worker knows by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expectation<'a> {
    pub(crate) ticket: &'a Ticket,
    pub(crate) owner: &'a VerifyingKey,
    pub(crate) hello: &'a Digest,
    /// Unix time.
    pub(crate) now: u64,
    pub(crate) moment: Moment,
}

/// A grant that was checked.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) grant: Grant,
    /// The permit whose standing slots the attempt uses.
    pub(crate) standing: OpenedPermit,
    /// What may be opened, each with its permit.
    pub(crate) artifacts: Vec<(GrantedArtifact, OpenedPermit)>,
}

/// Checks a grant; gives the reason in fixed words when it is not to be believed.
pub(crate) fn check(grant: Grant, expected: &Expectation<'_>) -> Result<Granted, &'static str> {
    if grant.hello != *expected.hello {
        return Err("the grant answers another hello");
    }
    if grant.expires <= expected.now {
        return Err("the grant has expired");
    }
    let standing = check_permit(&grant.permit_envelope, expected)?;
    if standing.permit.id != grant.permit || standing.digest != grant.permit_digest {
        return Err("the grant names another permit than it carries");
    }
    if grant.artifacts.len() > MOST_ARTIFACTS {
        return Err("the grant names more than 64 artifacts");
    }
    let mut names = BTreeSet::new();
    let mut artifacts = Vec::new();
    for granted in &grant.artifacts {
        let opened = check_permit(&granted.permit_envelope, expected)?;
        if opened.artifact != granted.artifact {
            return Err("the grant names an artifact under the permit of another one");
        }
        let named = is_input_name(&granted.input) && names.insert(granted.input.clone());
        match expected.moment {
            _ if !named => return Err("the grant names an input by something that is no name, or twice"),
            Moment::Code if granted.input != CODE => return Err("the code grant names something else than the code"),
            Moment::Data { .. } if granted.input == CODE => return Err("the data grant names the code"),
            Moment::Data { code } if opened.permit.code != code => {
                return Err("the permit of an input is for other code than the code that was opened");
            }
            Moment::Code | Moment::Data { .. } => {}
        }
        artifacts.push((granted.clone(), opened));
    }
    if matches!(expected.moment, Moment::Data { .. }) && artifacts.is_empty() {
        return Err("the data grant names no input");
    }
    Ok(Granted {
        grant,
        standing,
        artifacts,
    })
}

fn check_permit(envelope: &Envelope, expected: &Expectation<'_>) -> Result<OpenedPermit, &'static str> {
    let opened = open_permit(envelope, expected.owner).map_err(|_| "a permit is not signed by the owner's keeper")?;
    let (permit, ticket) = (&opened.permit, expected.ticket);
    if permit.organisation != ticket.organisation {
        return Err("a permit is of another organisation");
    }
    if permit.from.site != ticket.owner {
        return Err("a permit is of another owner site");
    }
    if permit.to.site != ticket.site {
        return Err("a permit is for another site");
    }
    if permit.run != ticket.attempt.run || permit.task != ticket.attempt.task {
        return Err("a permit is for another run or task");
    }
    if permit.attempts < ticket.attempt.attempt {
        return Err("a permit does not allow so many attempts");
    }
    if permit.worker != Some(ticket.worker) {
        return Err("a permit is for another worker program");
    }
    if permit.not_before > expected.now {
        return Err("a permit is not valid yet");
    }
    if permit.expires <= expected.now {
        return Err("a permit has expired");
    }
    Ok(opened)
}

/// A name that is safe as a folder and, in capital letters, as a part of an environment variable.
fn is_input_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && name.starts_with(|first: char| first.is_ascii_lowercase())
}
