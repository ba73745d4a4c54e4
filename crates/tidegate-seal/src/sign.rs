//! Ed25519 signatures (RFC 8032).

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::digest::sha256;
use crate::error::SealError;
use crate::random::random_bytes;

/// A secret key that signs. Wipes its seed; never shown.
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
    public: VerifyingKey,
}

impl SigningKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`SealError::Random`] when the operating system gives no random bytes.
    pub fn generate() -> Result<Self, SealError> {
        Self::from_seed(&Zeroizing::new(random_bytes()?))
    }

    /// The key of a stored seed (the 32-byte private key of RFC 8032).
    ///
    /// # Errors
    /// [`SealError::Library`] when the library cannot derive the key.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, SealError> {
        let failed = || SealError::Library("deriving an Ed25519 key");
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| failed())?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| failed())?;
        Ok(Self {
            seed: Zeroizing::new(*seed),
            pair,
            public: VerifyingKey(public),
        })
    }

    /// The seed, for whoever stores the key.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        self.seed.clone()
    }

    /// The key that verifies.
    #[must_use]
    pub fn public(&self) -> VerifyingKey {
        self.public.clone()
    }

    /// Signs `message`; the same message always gets the same signature.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// A public key that verifies.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifyingKey([u8; 32]);

impl VerifyingKey {
    /// Wraps the 32 bytes of a public key (RFC 8032).
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads standard base64 of 32 bytes.
    ///
    /// # Errors
    /// [`SealError::Malformed`] for anything else.
    pub fn from_base64(text: &str) -> Result<Self, SealError> {
        STANDARD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| SealError::malformed("an Ed25519 public key", "expected standard base64 of 32 bytes"))
    }

    /// Standard base64 of the 32 bytes.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// SHA-256 of the 32 bytes in hexadecimal: the `keyid` of DSSE signatures. A hint for finding the
    /// key, never a proof.
    #[must_use]
    pub fn key_id(&self) -> String {
        sha256(&self.0).to_hex()
    }

    /// Checks that the holder of the secret key signed `message`.
    ///
    /// # Errors
    /// [`SealError::Signature`] when it did not.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SealError> {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(message, signature)
            .map_err(|_| SealError::Signature {
                what: "the message".to_owned(),
                key_id: self.key_id(),
            })
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.to_base64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unhex<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn agrees_with_rfc_8032() {
        // RFC 8032, section 7.1, test 2.
        let key = SigningKey::from_seed(&unhex(
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        ))
        .unwrap();
        assert_eq!(
            hex::encode(key.public().as_bytes()),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
        assert_eq!(
            hex::encode(key.sign(&[0x72])),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
    }

    #[test]
    fn the_secret_is_not_shown() {
        let key = SigningKey::generate().unwrap();
        let shown = format!("{key:?} {key:#?}");
        assert!(!shown.contains(&hex::encode(*key.seed())));
        assert!(!shown.contains(&STANDARD.encode(*key.seed())));
        assert!(!shown.contains(&format!("{:?}", *key.seed())));
    }

    #[test]
    fn public_keys_have_one_spelling() {
        let key = SigningKey::generate().unwrap().public();
        assert_eq!(VerifyingKey::from_base64(&key.to_base64()), Ok(key.clone()));
        let text = key.to_base64();
        for bad in [
            "",
            "AAAA",
            text.trim_end_matches('='),
            &format!("{text}\n"),
            &format!(" {text}"),
        ] {
            assert!(VerifyingKey::from_base64(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn only_the_same_message_key_and_signature_verify(
            seed in any::<[u8; 32]>(),
            other in any::<[u8; 32]>(),
            message in proptest::collection::vec(any::<u8>(), 1..200),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            prop_assume!(seed != other);
            let key = SigningKey::from_seed(&seed).unwrap();
            let signature = key.sign(&message);
            prop_assert!(key.public().verify(&message, &signature).is_ok());
            prop_assert!(SigningKey::from_seed(&other).unwrap().public().verify(&message, &signature).is_err());
            let mut altered = message.clone();
            altered[at.index(message.len())] ^= 1 << bit;
            prop_assert!(key.public().verify(&altered, &signature).is_err());
            let mut altered = signature;
            altered[at.index(64)] ^= 1 << bit;
            prop_assert!(key.public().verify(&message, &altered).is_err());
            prop_assert!(key.public().verify(&message, &signature[..63]).is_err());
        }
    }
}
