//! Digests: SHA-256 (FIPS 180-4), HMAC-SHA-256 (RFC 2104) and, for what only this site checks again, BLAKE3.

use std::io::{self, Read};

use aws_lc_rs::{constant_time, digest, hmac};
use serde::Serialize;
use tidegate_types::{Digest, KeyedDigest};
use zeroize::Zeroize;

use crate::canonical;
use crate::error::SealError;

/// Bytes that a reader is asked for at once.
const READ_BYTES: usize = 128 << 10;

fn as_digest(bytes: &[u8]) -> Digest {
    let mut array = [0; 32];
    array.copy_from_slice(bytes);
    Digest::from_bytes(array)
}

/// SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    as_digest(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// SHA-256 of what comes in pieces.
pub struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Sha256 {
    /// Takes the next piece in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces.
    #[must_use]
    pub fn finish(self) -> Digest {
        as_digest(self.0.finish().as_ref())
    }
}

/// SHA-256 of everything that `reader` gives, and how many bytes that were; memory stays bounded.
///
/// # Errors
/// What the reader fails with.
pub fn sha256_reader(reader: impl Read) -> io::Result<(Digest, u64)> {
    let mut context = digest::Context::new(&digest::SHA256);
    let bytes = feed(reader, |part| context.update(part))?;
    Ok((as_digest(context.finish().as_ref()), bytes))
}

/// HMAC-SHA-256 of `bytes` under `key`.
#[must_use]
pub fn hmac_sha256(key: &[u8], bytes: &[u8]) -> Digest {
    as_digest(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), bytes).as_ref())
}

/// BLAKE3 (<https://github.com/BLAKE3-team/BLAKE3-specs>) in keyed mode, of what comes in pieces: several times as fast as
/// SHA-256, for what is compared at one site alone and no other software has to know. Who lacks the key learns nothing of
/// the bytes, and cannot make the digest of others.
pub struct Keyed(blake3::Hasher);

impl Keyed {
    /// Begins under a key.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(blake3::Hasher::new_keyed(key))
    }

    /// Takes the next piece in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces.
    #[must_use]
    pub fn finish(self) -> KeyedDigest {
        KeyedDigest::from_bytes(*self.0.finalize().as_bytes())
    }
}

impl Drop for Keyed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The keyed digest of everything that `reader` gives, and how many bytes that were; memory stays bounded.
///
/// # Errors
/// What the reader fails with.
pub fn keyed_reader(key: &[u8; 32], reader: impl Read) -> io::Result<(KeyedDigest, u64)> {
    let mut digest = Keyed::new(key);
    let bytes = feed(reader, |part| digest.update(part))?;
    Ok((digest.finish(), bytes))
}

/// SHA-256 of the canonical JSON (RFC 8785) of `value`.
///
/// # Errors
/// When the value has no canonical form: a number that is not finite, a whole number above 2^53, a
/// map whose keys are not text.
pub fn canonical_digest<T: Serialize>(value: &T) -> Result<Digest, SealError> {
    Ok(sha256(&canonical::write("the value to be digested", value)?))
}

/// Whether two texts are equal, in a time that depends on their lengths only.
#[must_use]
pub fn constant_time_eq(left: &[u8], right: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(left, right).is_ok()
}

fn feed(mut reader: impl Read, mut update: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match buffer.get(..count) {
            Some([]) => return Ok(total),
            Some(part) => update(part),
            None => {
                return Err(io::Error::other(
                    "a reader claimed more bytes than it was given room for",
                ));
            }
        }
        total += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn agrees_with_published_vectors() {
        // FIPS 180-4 example, and RFC 4231 test case 2.
        assert_eq!(
            sha256(b"abc").to_hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        // The first two of BLAKE3's own test vectors: no bytes, and one that is zero.
        let key = b"whats the Elvish word for friend";
        for (input, digest) in [
            ("", "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"),
            ("\0", "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b"),
        ] {
            let found = keyed_reader(key, input.as_bytes()).unwrap().0;
            assert_eq!(found.to_string(), format!("blake3:{digest}"));
        }
        assert_eq!(
            hmac_sha256(b"Jefe", b"what do ya want for nothing?").to_hex(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn equal_values_have_equal_digests_however_they_are_ordered() {
        let one = serde_json::json!({"a": 1, "b": [true]});
        let other: serde_json::Value = serde_json::from_str(r#"{ "b": [true], "a": 1.0 }"#).unwrap();
        assert_eq!(canonical_digest(&one), canonical_digest(&other));
        assert_ne!(canonical_digest(&one), canonical_digest(&serde_json::json!({"a": 1})));
    }

    #[test]
    fn a_failing_reader_is_an_error_and_not_a_short_digest() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        assert!(sha256_reader((&b"begin"[..]).chain(Broken)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn readers_agree_with_slices(
            bytes in proptest::collection::vec(any::<u8>(), 0..300_000), key in any::<[u8; 32]>(), cut in 1..200_000_usize
        ) {
            let length = bytes.len() as u64;
            prop_assert_eq!(sha256_reader(&bytes[..]).unwrap(), (sha256(&bytes), length));
            let mut digest = Keyed::new(&key);
            bytes.chunks(cut).for_each(|part| digest.update(part));
            prop_assert_eq!(keyed_reader(&key, &bytes[..]).unwrap(), (digest.finish(), length));
        }

        #[test]
        fn constant_time_equality_is_equality(a in any::<[u8; 4]>(), b in any::<[u8; 4]>()) {
            prop_assert!(constant_time_eq(&a, &a));
            prop_assert_eq!(constant_time_eq(&a, &b), a == b);
            prop_assert!(!constant_time_eq(&a, &a[..3]));
        }
    }
}
