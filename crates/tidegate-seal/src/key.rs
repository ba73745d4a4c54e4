//! Data keys: one for each sealing of an artifact.

use std::fmt;

use tidegate_types::Digest;
use zeroize::Zeroizing;

use crate::digest::hmac_sha256;
use crate::error::SealError;
use crate::random::random_bytes;

/// What a data key's commitment is the HMAC of.
pub const COMMITMENT_CONTEXT: &[u8] = b"tidegate.data-key.commitment.v1";

/// The key of one sealing's index, and through it of everything in the sealing. Wipes itself.
#[derive(Clone)]
pub struct DataKey(Zeroizing<[u8; 32]>);

impl DataKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`SealError::Random`] when the operating system gives no random bytes.
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self(Zeroizing::new(random_bytes()?)))
    }

    /// A key that was stored or granted.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key itself, for whoever seals it to a grantee or hands it to custody.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key of something that belongs to what this one seals: it goes with this one. HMAC-SHA-256 under the key of
    /// `tidegate.data-key.derived.v1`, a zero byte, the purpose, a zero byte and the salt, as in NIST SP 800-108.
    #[must_use]
    pub fn derived(&self, purpose: &str, salt: &[u8; 32]) -> Self {
        let context = [b"tidegate.data-key.derived.v1", purpose.as_bytes(), salt].join(&0);
        Self::from_bytes(*hmac_sha256(self.0.as_ref(), &context).as_bytes())
    }

    /// What a packing list says about the key: it shows that a key is the right one, and nothing of
    /// the key. HMAC-SHA-256 under the key of [`COMMITMENT_CONTEXT`].
    #[must_use]
    pub fn commitment(&self) -> Digest {
        hmac_sha256(self.0.as_ref(), COMMITMENT_CONTEXT)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey([secret])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_key_is_another_for_each_purpose_and_salt() {
        let key = DataKey::from_bytes([7; 32]);
        let derived = |purpose: &str, salt: u8| *key.derived(purpose, &[salt; 32]).expose();
        let hmac = hmac_sha256(
            &[7; 32],
            &[&b"tidegate.data-key.derived.v1\0setup\0"[..], &[1; 32]].concat(),
        );
        assert_eq!(derived("setup", 1), *hmac.as_bytes());
        let all = [derived("setup", 1), derived("setup", 2), derived("other", 1), [7; 32]];
        let different: std::collections::BTreeSet<_> = all.into_iter().collect();
        assert_eq!(different.len(), 4);
    }

    #[test]
    fn the_commitment_tells_keys_apart_and_shows_none() {
        let (one, other) = (DataKey::generate().unwrap(), DataKey::generate().unwrap());
        assert_eq!(one.commitment(), DataKey::from_bytes(*one.expose()).commitment());
        assert_ne!(one.commitment(), other.commitment());
        assert_ne!(one.commitment().as_bytes(), one.expose());
        let shown = format!("{one:?}");
        assert!(!shown.contains(&hex::encode(one.expose())) && shown.contains("secret"));
    }
}
