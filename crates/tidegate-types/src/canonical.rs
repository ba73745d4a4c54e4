//! Canonical JSON, so that a signature or a digest means the same bytes to everybody.

use serde::Serialize;

/// A value that has no canonical JSON form (a map with keys that are not text, or a number that is
/// not finite).
#[derive(Debug, thiserror::Error)]
#[error("this value has no canonical JSON form: {0}")]
pub struct NotCanonical(String);

/// The canonical JSON of `value` (RFC 8785, JCS): sorted keys, no spaces, shortest numbers.
///
/// # Errors
/// When the value cannot be written as JSON.
pub fn to_canonical_json<T: Serialize>(value: &T) -> Result<Vec<u8>, NotCanonical> {
    serde_json_canonicalizer::to_vec(value).map_err(|error| NotCanonical(error.to_string()))
}
