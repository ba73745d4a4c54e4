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
    if expected.moment == Moment::Code && grant.checkpoint.is_some() {
        return Err("the code grant names something else than the code");
    }
    if expected.moment != Moment::Code && grant.setup.is_some() {
        return Err("the data grant names what a setup left");
    }
    let mut names = BTreeSet::new();
    let mut artifacts = Vec::new();
    for granted in &grant.artifacts {
        let opened = check_permit(&granted.permit_envelope, expected)?;
        if opened.artifact != granted.artifact {
            return Err("the grant names an artifact under the permit of another one");
        }
        if granted.lent.is_some() && opened.permit.copied_from.is_none() {
            return Err("the grant lends what is copied, and its permit lets nothing be copied");
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

#[cfg(test)]
mod tests {
    use tidegate_seal::digest::sha256;
    use tidegate_seal::dsse::payload_digest;
    use tidegate_seal::permit::sign_permit;
    use tidegate_seal::sign::SigningKey;
    use tidegate_types::ids::{PermitId, Purpose};
    use tidegate_types::message::{Attempt, Job};
    use tidegate_types::permit::{Evidence, Permit, SiteReference};
    use tidegate_types::{Label, Level, RunId, SiteName, TaskName};

    use super::*;

    const NOW: u64 = 1_000_000;

    fn site(name: &str) -> SiteReference {
        SiteReference {
            site: SiteName::new(name).unwrap(),
            definition: sha256(name.as_bytes()),
        }
    }

    fn ticket(owner: &SigningKey) -> Ticket {
        Ticket {
            attempt: Attempt {
                run: RunId::new("r1").unwrap(),
                task: TaskName::new("train").unwrap(),
                attempt: 2,
                rank: 0,
            },
            site: SiteName::new("cloud").unwrap(),
            store: "folder:".to_owned(),
            credentials: std::collections::BTreeMap::new(),
            organisation: "st-mary".to_owned(),
            secret: String::new(),
            worker: sha256(b"worker"),
            owner: SiteName::new("hospital").unwrap(),
            owner_key: owner.public().to_base64(),
            expires: NOW + 60,
        }
    }

    fn permit() -> Permit {
        Permit {
            id: PermitId::new("p1").unwrap(),
            organisation: "st-mary".to_owned(),
            from: site("hospital"),
            to: site("cloud"),
            copied_from: None,
            pipeline: sha256(b"pipeline"),
            policies: sha256(b"policies"),
            code: Some(sha256(b"code")),
            worker: Some(sha256(b"worker")),
            label: Label::of(Level::Internal),
            purpose: Purpose::new("quality-of-care").unwrap(),
            run: RunId::new("r1").unwrap(),
            task: TaskName::new("train").unwrap(),
            attempts: 2,
            evidence: Evidence {
                sql: None,
                label_report: None,
                k: None,
                l: None,
                suppressed_rows: None,
            },
            waivers: Vec::new(),
            approvals: Vec::new(),
            not_before: NOW,
            expires: NOW + 1,
            byte_limit: 1,
            revocation_epoch: 1,
            checkpoint: String::new(),
            standing: Vec::new(),
        }
    }

    /// A data grant of `train` under `permit`, signed by `signer`.
    fn grant(signer: &SigningKey, permit: &Permit) -> Grant {
        let envelope = sign_permit(signer, permit, &sha256(b"train"), "train").unwrap();
        Grant {
            hello: sha256(b"hello"),
            permit: permit.id.clone(),
            permit_digest: payload_digest(&envelope).unwrap(),
            artifacts: vec![GrantedArtifact {
                input: "train".to_owned(),
                artifact: sha256(b"train"),
                packing_list: "packing/r1/p1.json".to_owned(),
                packing_list_digest: sha256(b"list"),
                key_commitment: sha256(b"key"),
                sealed_key: String::new(),
                lent: None,
                permit_envelope: envelope.clone(),
            }],
            checkpoint: None,
            setup: None,
            nodes: Vec::new(),
            output_recipient: String::new(),
            job: Job::default(),
            permit_envelope: envelope,
            expires: NOW + 1,
            lease: NOW + 1,
        }
    }

    fn check_data(owner: &SigningKey, grant: Grant) -> Result<Granted, &'static str> {
        let moment = Moment::Data {
            code: Some(sha256(b"code")),
        };
        let (ticket, hello, owner) = (ticket(owner), sha256(b"hello"), owner.public());
        check(
            grant,
            &Expectation {
                ticket: &ticket,
                owner: &owner,
                hello: &hello,
                now: NOW,
                moment,
            },
        )
    }

    #[test]
    fn every_field_of_a_permit_counts() {
        type Spoil = fn(&mut Permit);
        let owner = SigningKey::generate().unwrap();
        assert!(check_data(&owner, grant(&owner, &permit())).is_ok());
        let cases: [(&str, Spoil); 12] = [
            ("organisation", |permit| permit.organisation = "elsewhere".to_owned()),
            ("owner site", |permit| permit.from = site("clinic")),
            ("another site", |permit| permit.to = site("ward")),
            ("run or task", |permit| permit.run = RunId::new("r2").unwrap()),
            ("run or task", |permit| permit.task = TaskName::new("other").unwrap()),
            ("attempts", |permit| permit.attempts = 1),
            ("worker program", |permit| permit.worker = Some(sha256(b"other"))),
            ("worker program", |permit| permit.worker = None),
            ("other code", |permit| permit.code = Some(sha256(b"other"))),
            ("other code", |permit| permit.code = None),
            ("not valid yet", |permit| permit.not_before = NOW + 1),
            ("expired", |permit| permit.expires = NOW),
        ];
        for (why, spoil) in cases {
            let mut permit = permit();
            spoil(&mut permit);
            let told = check_data(&owner, grant(&owner, &permit)).unwrap_err();
            assert!(told.contains(why), "{why}: {told}");
        }
        let stranger = SigningKey::generate().unwrap();
        assert!(check_data(&owner, grant(&stranger, &permit())).is_err_and(|why| why.contains("not signed")));
    }

    #[test]
    fn every_input_needs_its_own_permit_and_a_name_of_its_own() {
        let owner = SigningKey::generate().unwrap();
        let good = grant(&owner, &permit());
        let with = |change: fn(&mut Grant)| {
            let mut grant = good.clone();
            change(&mut grant);
            check_data(&owner, grant).map(|_| ())
        };
        let twice: fn(&mut Grant) = |grant| grant.artifacts.push(grant.artifacts[0].clone());
        assert!(with(twice).is_err());
        for name in ["", "..", "a/b", "Train", "a-b", "1a", &"a".repeat(64)] {
            let mut grant = good.clone();
            grant.artifacts[0].input = name.to_owned();
            assert!(check_data(&owner, grant).is_err(), "{name}");
        }
        assert!(with(|grant| grant.artifacts.clear()).is_err());
        assert!(with(|grant| grant.artifacts[0].artifact = sha256(b"other")).is_err());
        assert!(with(|grant| grant.permit_digest = sha256(b"other")).is_err());
        let second: fn(&mut Grant) = |grant| {
            let mut other = grant.artifacts[0].clone();
            other.input = "validation".to_owned();
            grant.artifacts.push(other);
        };
        assert_eq!(with(second), Ok(()));
        assert!(with(|grant| grant.artifacts[0].lent = Some(String::new())).is_err());
    }
}
