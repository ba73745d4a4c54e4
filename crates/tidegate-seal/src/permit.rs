//! Permits as signed statements: in-toto Statement v1 inside DSSE.

use std::collections::BTreeMap;

use tidegate_types::permit::{
    Envelope, IN_TOTO_PAYLOAD, IN_TOTO_STATEMENT, PERMIT_PREDICATE, Permit, Statement, Subject,
};
use tidegate_types::{ArtifactId, Digest};

use crate::canonical;
use crate::digest::sha256;
use crate::dsse;
use crate::error::SealError;
use crate::sign::{SigningKey, VerifyingKey};

const WHAT: &str = "a permit";

/// A permit whose signature was checked. Whether it is in time and for this crossing is for the
/// caller to decide: that needs a clock and a purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedPermit {
    /// What is permitted.
    pub permit: Permit,
    /// What may cross.
    pub artifact: ArtifactId,
    /// SHA-256 of the signed payload: how grants and packing lists name this permit.
    pub digest: Digest,
}

/// Signs a permit for the artifact with this manifest digest; `name` is for people.
///
/// # Errors
/// [`SealError::NotCanonical`] when a number in the permit is above 2^53.
pub fn sign_permit(
    key: &SigningKey,
    permit: &Permit,
    artifact: &ArtifactId,
    name: &str,
) -> Result<Envelope, SealError> {
    let statement = Statement {
        statement_type: IN_TOTO_STATEMENT.to_owned(),
        subject: vec![Subject {
            name: name.to_owned(),
            digest: BTreeMap::from([("sha256".to_owned(), artifact.to_hex())]),
        }],
        predicate_type: PERMIT_PREDICATE.to_owned(),
        predicate: permit,
    };
    let payload = canonical::write(WHAT, &statement)?;
    Ok(dsse::sign(key, IN_TOTO_PAYLOAD, &payload))
}

/// Opens a permit that the owner of `key` signed.
///
/// # Errors
/// [`SealError::Signature`] when somebody else or nobody signed it; [`SealError::Mismatch`] when it is
/// another kind of statement or names anything but exactly one artifact; [`SealError::Malformed`] when
/// it is not canonical JSON of a permit.
pub fn open_permit(envelope: &Envelope, key: &VerifyingKey) -> Result<OpenedPermit, SealError> {
    let payload = dsse::open(envelope, IN_TOTO_PAYLOAD, key)?;
    // The kind is read first, so that another kind of statement is called that and not broken.
    let kind: Kind =
        serde_json::from_slice(&payload).map_err(|error| SealError::malformed(WHAT, canonical::position(&error)))?;
    if kind.statement_type != IN_TOTO_STATEMENT || kind.predicate_type != PERMIT_PREDICATE {
        return Err(SealError::mismatch(
            WHAT,
            format!("it is not an in-toto v1 statement with the predicate `{PERMIT_PREDICATE}`"),
        ));
    }
    let statement: Statement<Permit> = canonical::read(WHAT, &payload)?;
    let artifact = only_subject(&statement.subject)
        .ok_or_else(|| SealError::mismatch(WHAT, "it does not name exactly one artifact by its SHA-256"))?;
    Ok(OpenedPermit {
        permit: statement.predicate,
        artifact,
        digest: sha256(&payload),
    })
}

#[derive(serde::Deserialize)]
struct Kind {
    #[serde(rename = "_type")]
    statement_type: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}

fn only_subject(subjects: &[Subject]) -> Option<ArtifactId> {
    let [subject] = subjects else { return None };
    if subject.digest.len() != 1 {
        return None;
    }
    format!("sha256:{}", subject.digest.get("sha256")?).parse().ok()
}
