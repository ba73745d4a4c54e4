//! Fingerprints of bytes, by which one process knows again what it has read before.
//!
//! They are GMAC (NIST SP 800-38D) under a key that is random and never leaves the process, taken of pieces, with
//! SHA-256 over the tags: several times as fast as SHA-256 over the bytes. They name nothing, go nowhere and are
//! compared with each other alone. Two contents of one piece are fingerprinted under one nonce, which GMAC allows
//! only because nobody ever sees a tag.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use tidegate_types::Digest;

use crate::digest::Sha256;
use crate::error::SealError;
use crate::random::random_bytes;

/// Bytes under one tag.
const PIECE: usize = 64 << 10;

/// The key of a process's fingerprints.
#[derive(Debug)]
pub struct FingerprintKey(LessSafeKey);

impl FingerprintKey {
    /// A key that nobody has.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, SealError> {
        let key = zeroize::Zeroizing::new(random_bytes::<32>()?);
        let key = UnboundKey::new(&AES_256_GCM, &*key).map_err(|_| SealError::Library("setting up AES-256-GCM"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Begins the fingerprint of the bytes with this number.
    #[must_use]
    pub fn begin(&self, number: u64) -> Fingerprint<'_> {
        Fingerprint {
            key: self,
            number,
            pieces: 0,
            waiting: Vec::new(),
            tags: Sha256::default(),
            lost: false,
        }
    }
}

/// A fingerprint that is being taken.
pub struct Fingerprint<'a> {
    key: &'a FingerprintKey,
    number: u64,
    pieces: u32,
    /// Less than a piece.
    waiting: Vec<u8>,
    tags: Sha256,
    /// Whether a tag could not be made.
    lost: bool,
}

impl std::fmt::Debug for Fingerprint<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fingerprint")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Fingerprint<'_> {
    /// Takes the next bytes; where they are cut does not matter.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.waiting.len()));
            if now.len() == PIECE {
                self.piece(now);
            } else {
                self.waiting.extend_from_slice(now);
                if self.waiting.len() == PIECE {
                    self.waited();
                }
            }
            bytes = later;
        }
    }

    /// The fingerprint of all that was taken; `None` where one could not be made, which equals nothing.
    #[must_use]
    pub fn finish(mut self) -> Option<Digest> {
        if !self.waiting.is_empty() {
            self.waited();
        }
        (!self.lost).then(|| self.tags.finish())
    }

    fn waited(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.piece(&waiting);
        waiting.clear();
        self.waiting = waiting;
    }

    fn piece(&mut self, bytes: &[u8]) {
        let mut nonce = [0; NONCE_LEN];
        let (number, piece) = nonce.split_at_mut(8);
        number.copy_from_slice(&self.number.to_be_bytes());
        piece.copy_from_slice(&self.pieces.to_be_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        match self.key.0.seal_in_place_separate_tag(nonce, Aad::from(bytes), &mut []) {
            Ok(tag) => self.tags.update(tag.as_ref()),
            Err(_) => self.lost = true,
        }
        match self.pieces.checked_add(1) {
            Some(pieces) => self.pieces = pieces,
            None => self.lost = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(key: &FingerprintKey, number: u64, bytes: &[u8], cut: usize) -> Option<Digest> {
        let mut fingerprint = key.begin(number);
        for part in bytes.chunks(cut) {
            fingerprint.update(part);
        }
        fingerprint.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_fingerprint_depends_on_the_bytes_and_on_nothing_else(
            length in 1..300_000_usize, seed in any::<u8>(), cuts in [1..200_000_usize, 1..200_000], at in any::<usize>()
        ) {
            let key = FingerprintKey::generate().unwrap();
            let bytes: Vec<u8> = (0..length).map(|it| (it % 251) as u8 ^ seed).collect();
            let found = taken(&key, 1, &bytes, cuts[0]);
            prop_assert!(found.is_some());
            prop_assert_eq!(found, taken(&key, 1, &bytes, cuts[1]));
            let mut other = bytes.clone();
            other[at % length] ^= 1;
            prop_assert_ne!(found, taken(&key, 1, &other, cuts[0]));
            prop_assert_ne!(found, taken(&key, 1, &bytes[..length - 1], cuts[0]));
            prop_assert_ne!(found, taken(&key, 2, &bytes, cuts[0]));
            prop_assert_ne!(found, taken(&FingerprintKey::generate().unwrap(), 1, &bytes, cuts[0]));
        }
    }
}
