//! AES-256-GCM (NIST SP 800-38D) by the library whose code is the faster one on this processor.
//!
//! Both libraries compute the same function. aws-lc is the fastest where there is AVX-512, and elsewhere does
//! without the instructions that work on several blocks at once; ring has code for them on AVX2, about twice as
//! fast there. Which one it is shows in nothing that is written.

use std::sync::LazyLock;

use zeroize::Zeroize;

use crate::error::SealError;

/// Bytes of a nonce.
pub(crate) const NONCE_BYTES: usize = 12;
/// Bytes of a tag.
pub(crate) const TAG_BYTES: usize = 16;

/// A key that seals and opens pieces, without associated data.
pub(crate) enum Cipher {
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    Ring(Box<ring::aead::LessSafeKey>),
}

/// Whether ring is the faster one here.
static RING: LazyLock<bool> = LazyLock::new(ring_is_faster);

#[cfg(target_arch = "x86_64")]
fn ring_is_faster() -> bool {
    let wide =
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("vaes") && is_x86_feature_detected!("vpclmulqdq");
    let wider = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    wide && !wider
}

#[cfg(not(target_arch = "x86_64"))]
fn ring_is_faster() -> bool {
    false
}

impl Cipher {
    pub(crate) fn new(key: &[u8; 32]) -> Result<Self, SealError> {
        if *RING { Self::ring(key) } else { Self::aws_lc(key) }
    }

    fn aws_lc(key: &[u8; 32]) -> Result<Self, SealError> {
        use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Library("setting up AES-256-GCM"))?;
        Ok(Self::AwsLc(LessSafeKey::new(key)))
    }

    fn ring(key: &[u8; 32]) -> Result<Self, SealError> {
        use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Library("setting up AES-256-GCM"))?;
        Ok(Self::Ring(Box::new(LessSafeKey::new(key))))
    }

    /// Seals `text` where it lies; gives its tag. The nonce must be used once.
    pub(crate) fn seal(&self, nonce: [u8; NONCE_BYTES], text: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        match self {
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), text).ok()?;
                tag.as_ref().try_into().ok()
            }
            Self::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), text).ok()?;
                tag.as_ref().try_into().ok()
            }
        }
    }

    /// Opens what ends with its tag, where it lies. When it does not authenticate, what is in it is wiped.
    pub(crate) fn open(&self, nonce: [u8; NONCE_BYTES], sealed: &mut [u8]) -> bool {
        let opened = match self {
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::empty(), sealed).is_ok()
            }
            Self::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::empty(), sealed).is_ok()
            }
        };
        if !opened {
            sealed.zeroize();
        }
        opened
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both(key: &[u8; 32]) -> [Cipher; 2] {
        [Cipher::aws_lc(key).unwrap(), Cipher::ring(key).unwrap()]
    }

    proptest! {
        #[test]
        fn both_libraries_write_the_same_and_open_each_other(
            key: [u8; 32],
            nonce: [u8; NONCE_BYTES],
            text in proptest::collection::vec(any::<u8>(), 0..5000),
            flip: proptest::sample::Index,
        ) {
            let [one, other] = both(&key).map(|cipher| {
                let mut sealed = text.clone();
                let tag = cipher.seal(nonce, &mut sealed).unwrap();
                sealed.extend_from_slice(&tag);
                sealed
            });
            prop_assert_eq!(&one, &other);
            for cipher in both(&key) {
                let mut opened = one.clone();
                prop_assert!(cipher.open(nonce, &mut opened));
                prop_assert_eq!(&opened[..text.len()], &text[..]);
                let mut broken = one.clone();
                let at = flip.index(broken.len());
                broken[at] ^= 1;
                prop_assert!(!cipher.open(nonce, &mut broken));
                prop_assert!(broken.iter().all(|byte| *byte == 0), "what does not open is wiped");
            }
        }
    }

    /// Case 15 of the specification of GCM by McGrew and Viega: four blocks under a 256-bit key.
    #[test]
    fn both_libraries_give_the_published_answer() {
        let hex = |text: &str| hex::decode(text).unwrap();
        let key = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
        let text = hex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
             1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255");
        let sealed = hex("522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad");
        let nonce = hex("cafebabefacedbaddecaf888").try_into().unwrap();
        for cipher in both(&key.try_into().unwrap()) {
            let mut piece = text.clone();
            let tag = cipher.seal(nonce, &mut piece).unwrap();
            assert_eq!(
                (&piece, tag.as_slice()),
                (&sealed, &hex("b094dac5d93471bdec1a502270e3cc6c")[..])
            );
        }
    }
}
