//! DSSE v1 envelopes: a payload, its media type, and Ed25519 signatures over both.
//!
//! The signature covers the pre-authentication encoding
//! `DSSEv1 SP LEN(type) SP type SP LEN(payload) SP payload`, so a payload of one type can never pass
//! as one of another type.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_types::Digest;
use tidegate_types::permit::{Envelope, EnvelopeSignature};

use crate::canonical;
use crate::digest::sha256;
use crate::error::SealError;
use crate::sign::{SigningKey, VerifyingKey};

/// The most bytes of an envelope's JSON: 32 MiB. A packing list of a whole pebibyte of rows would
/// not fit; one of ten tebibytes does.
pub const MAX_ENVELOPE_BYTES: usize = 32 << 20;

/// The most signatures that are looked at.
const MAX_SIGNATURES: usize = 16;

const WHAT: &str = "a signed envelope";

/// The bytes that are signed (DSSE v1, pre-authentication encoding).
#[must_use]
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// Signs `payload` as a `payload_type`.
#[must_use]
pub fn sign(key: &SigningKey, payload_type: &str, payload: &[u8]) -> Envelope {
    Envelope {
        payload: STANDARD.encode(payload),
        payload_type: payload_type.to_owned(),
        signatures: vec![EnvelopeSignature {
            keyid: key.public().key_id(),
            sig: STANDARD.encode(key.sign(&pre_authentication_encoding(payload_type, payload))),
        }],
    }
}

/// The payload, once a signature by `key` over it and over `payload_type` is found. The key ids in
/// the envelope are not believed.
///
/// # Errors
/// [`SealError::Mismatch`] when the payload is of another type, [`SealError::Signature`] when `key`
/// did not sign, [`SealError::Malformed`] when the base64 is broken or there are too many signatures.
pub fn open(envelope: &Envelope, payload_type: &str, key: &VerifyingKey) -> Result<Vec<u8>, SealError> {
    if envelope.payload_type != payload_type {
        return Err(SealError::mismatch(
            WHAT,
            format!("its payload is not of the type `{payload_type}`"),
        ));
    }
    if envelope.signatures.len() > MAX_SIGNATURES {
        return Err(SealError::malformed(
            WHAT,
            format!("it has more than {MAX_SIGNATURES} signatures"),
        ));
    }
    let payload = peek(envelope)?;
    let signed = pre_authentication_encoding(payload_type, &payload);
    let verified = envelope.signatures.iter().any(|signature| {
        STANDARD
            .decode(&signature.sig)
            .is_ok_and(|bytes| key.verify(&signed, &bytes).is_ok())
    });
    if verified {
        Ok(payload)
    } else {
        Err(SealError::Signature {
            what: format!("the envelope of type `{payload_type}`"),
            key_id: key.key_id(),
        })
    }
}

/// The payload without any check of who signed it: for showing and for finding the key, never for
/// deciding.
///
/// # Errors
/// [`SealError::Malformed`] when the base64 is broken.
pub fn peek(envelope: &Envelope) -> Result<Vec<u8>, SealError> {
    SealError::check_size(WHAT, envelope.payload.len(), MAX_ENVELOPE_BYTES)?;
    STANDARD
        .decode(&envelope.payload)
        .map_err(|_| SealError::malformed(WHAT, "its payload is not standard base64"))
}

/// SHA-256 of the payload's bytes: what names a permit, a message or a hello in other documents.
///
/// # Errors
/// [`SealError::Malformed`] when the base64 is broken.
pub fn payload_digest(envelope: &Envelope) -> Result<Digest, SealError> {
    Ok(sha256(&peek(envelope)?))
}

/// The envelope as canonical JSON, so that the same envelope is always the same object.
///
/// # Errors
/// [`SealError::TooLarge`] above [`MAX_ENVELOPE_BYTES`].
pub fn to_bytes(envelope: &Envelope) -> Result<Vec<u8>, SealError> {
    let bytes = canonical::write(WHAT, envelope)?;
    SealError::check_size(WHAT, bytes.len(), MAX_ENVELOPE_BYTES)?;
    Ok(bytes)
}

/// Reads an envelope's JSON, ours or another signer's. Nothing is verified yet.
///
/// # Errors
/// [`SealError::TooLarge`] above [`MAX_ENVELOPE_BYTES`], [`SealError::Malformed`] when it is not the
/// JSON of an envelope.
pub fn from_bytes(bytes: &[u8]) -> Result<Envelope, SealError> {
    SealError::check_size(WHAT, bytes.len(), MAX_ENVELOPE_BYTES)?;
    serde_json::from_slice(bytes).map_err(|error| SealError::malformed(WHAT, canonical::position(&error)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    #[test]
    fn the_encoding_is_the_published_one() {
        // The example of the DSSE v1 protocol document.
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn another_type_key_or_payload_does_not_open() {
        let envelope = sign(&key(1), "text/a", b"payload");
        assert_eq!(open(&envelope, "text/a", &key(1).public()), Ok(b"payload".to_vec()));
        assert!(matches!(
            open(&envelope, "text/b", &key(1).public()),
            Err(SealError::Mismatch { .. })
        ));
        assert!(matches!(
            open(&envelope, "text/a", &key(2).public()),
            Err(SealError::Signature { .. })
        ));
        let mut renamed = envelope.clone();
        renamed.payload_type = "text/b".to_owned();
        assert!(open(&renamed, "text/b", &key(1).public()).is_err());
        let mut replaced = envelope.clone();
        replaced.payload = STANDARD.encode("other");
        assert!(open(&replaced, "text/a", &key(1).public()).is_err());
        let mut unsigned = envelope;
        unsigned.signatures.clear();
        assert!(open(&unsigned, "text/a", &key(1).public()).is_err());
    }

    #[test]
    fn the_key_id_is_no_proof_and_one_good_signature_is_enough() {
        let mut envelope = sign(&key(1), "text/a", b"payload");
        envelope.signatures[0].keyid = key(2).public().key_id();
        assert!(open(&envelope, "text/a", &key(2).public()).is_err());
        assert!(open(&envelope, "text/a", &key(1).public()).is_ok());
        let second = sign(&key(3), "text/a", b"payload").signatures;
        envelope.signatures.extend(second);
        assert!(open(&envelope, "text/a", &key(3).public()).is_ok());
        while envelope.signatures.len() <= MAX_SIGNATURES {
            let first = envelope.signatures[0].clone();
            envelope.signatures.push(first);
        }
        assert!(open(&envelope, "text/a", &key(3).public()).is_err());
    }

    #[test]
    fn reads_what_others_write_and_refuses_what_it_does_not_know() {
        let envelope = sign(&key(1), "text/a", b"payload");
        assert_eq!(from_bytes(&to_bytes(&envelope).unwrap()), Ok(envelope.clone()));
        assert_eq!(from_bytes(&serde_json::to_vec_pretty(&envelope).unwrap()), Ok(envelope));
        for bad in [
            "",
            "[]",
            r#"{"payload":"","payloadType":"a"}"#,
            r#"{"payload":"","payloadType":"a","signatures":[],"extra":1}"#,
            r#"{"payload":"","payload":"","payloadType":"a","signatures":[]}"#,
        ] {
            assert!(
                matches!(from_bytes(bad.as_bytes()), Err(SealError::Malformed { .. })),
                "{bad}"
            );
        }
        let huge = vec![b' '; MAX_ENVELOPE_BYTES + 1];
        assert!(matches!(from_bytes(&huge), Err(SealError::TooLarge { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn no_flipped_bit_opens_to_something_else(
            payload in proptest::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let envelope = sign(&key(1), "text/a", &payload);
            let mut bytes = to_bytes(&envelope).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(altered) = from_bytes(&bytes) {
                // A changed key id is the one change that does no harm.
                if let Ok(opened) = open(&altered, "text/a", &key(1).public()) {
                    prop_assert_eq!(opened, payload);
                }
            }
        }
    }
}
