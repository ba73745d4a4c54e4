//! Keys wrapped under a key: what file custody keeps.
//!
//! Tink's `AES256_GCM` in its raw form: 12 random bytes of nonce, 32 bytes of encrypted key, 16 bytes
//! of tag. The associated data is canonical JSON of a type and the caller's context, so that a wrapped
//! key opens for the purpose it was wrapped for and for no other. Nonces are random, so one
//! key-encryption key should wrap fewer than 2^32 keys (NIST SP 800-38D, section 8.3).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::canonical;
use crate::error::SealError;
use crate::random::random_bytes;

/// The length of every wrapped key.
pub const WRAPPED_BYTES: usize = NONCE_LEN + 32 + 16;

const WHAT: &str = "a wrapped key";

#[derive(Serialize)]
struct AssociatedData<'a> {
    context: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
}

/// The associated data of a wrapped key.
fn associated_data(context: &str) -> Result<Vec<u8>, SealError> {
    canonical::write(
        "the context of a wrapped key",
        &AssociatedData {
            context,
            kind: "tidegate.wrapped-key.v1",
        },
    )
}

fn cipher(kek: &[u8; 32]) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&AES_256_GCM, kek)
        .map(LessSafeKey::new)
        .map_err(|_| SealError::Library("setting up AES-256-GCM"))
}

/// Wraps `key` under `kek` for `context`.
///
/// # Errors
/// [`SealError::Random`] when the operating system gives no random bytes.
pub fn wrap(kek: &[u8; 32], key: &[u8; 32], context: &str) -> Result<Vec<u8>, SealError> {
    seal(kek, key, context, random_bytes()?)
}

pub(crate) fn seal(
    kek: &[u8; 32],
    key: &[u8; 32],
    context: &str,
    nonce: [u8; NONCE_LEN],
) -> Result<Vec<u8>, SealError> {
    let mut wrapped = vec![0; WRAPPED_BYTES];
    let (head, body) = wrapped.split_at_mut(NONCE_LEN);
    let (text, tag) = body.split_at_mut(32);
    head.copy_from_slice(&nonce);
    cipher(kek)?
        .seal_out_of_place_scatter(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(associated_data(context)?),
            key,
            text,
            &[],
            tag,
        )
        .map_err(|_| SealError::Library("wrapping a key"))?;
    Ok(wrapped)
}

/// Opens a wrapped key.
///
/// # Errors
/// [`SealError::WrongKey`] when another key or context wrapped it or it was altered;
/// [`SealError::Malformed`] when it is not [`WRAPPED_BYTES`] long.
pub fn unwrap_key(kek: &[u8; 32], wrapped: &[u8], context: &str) -> Result<[u8; 32], SealError> {
    let parts = (wrapped.len() == WRAPPED_BYTES)
        .then(|| wrapped.split_first_chunk::<NONCE_LEN>())
        .flatten()
        .and_then(|(nonce, body)| Some((nonce, body.split_last_chunk::<16>()?)));
    let Some((nonce, (text, tag))) = parts else {
        return Err(SealError::malformed(
            WHAT,
            format!("it is not {WRAPPED_BYTES} bytes long"),
        ));
    };
    let mut key = Zeroizing::new([0; 32]);
    cipher(kek)?
        .open_separate_gather(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(associated_data(context)?),
            text,
            tag,
            key.as_mut(),
        )
        .map_err(|_| SealError::WrongKey {
            what: WHAT,
            fix: "use the key-encryption key and the context that it was wrapped with",
        })?;
    Ok(*key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_key_is_wrapped_differently_each_time() {
        assert_ne!(
            wrap(&[1; 32], &[2; 32], "c").unwrap(),
            wrap(&[1; 32], &[2; 32], "c").unwrap()
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn opens_only_with_the_same_key_and_context(
            kek in any::<[u8; 32]>(),
            key in any::<[u8; 32]>(),
            context in ".{0,40}",
            at in 0..WRAPPED_BYTES,
            bit in 0..8_u8,
        ) {
            let wrapped = wrap(&kek, &key, &context).unwrap();
            prop_assert_eq!(wrapped.len(), WRAPPED_BYTES);
            prop_assert_eq!(unwrap_key(&kek, &wrapped, &context), Ok(key));
            let mut other = kek;
            other[at % 32] ^= 1 << bit;
            let wrong_key = matches!(unwrap_key(&other, &wrapped, &context), Err(SealError::WrongKey { .. }));
            prop_assert!(wrong_key);
            let longer = format!("{context}x");
            prop_assert!(unwrap_key(&kek, &wrapped, &longer).is_err());
            let mut altered = wrapped.clone();
            altered[at] ^= 1 << bit;
            prop_assert!(unwrap_key(&kek, &altered, &context).is_err());
            let malformed = matches!(unwrap_key(&kek, &wrapped[..at], &context), Err(SealError::Malformed { .. }));
            prop_assert!(malformed);
        }
    }
}
