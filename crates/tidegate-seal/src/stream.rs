//! Tink's streaming AEAD with the parameters of its template `AES256_GCM_HKDF_1MB`.
//!
//! ```text
//! ciphertext = header, segment 0, segment 1, …, last segment
//! header     = 40 (one byte: its own length), salt (32 bytes), nonce prefix (7 bytes)
//! segment i  = AES-256-GCM(derived key, nonce prefix ‖ i as u32 big-endian ‖ last? 1 : 0)
//! derived    = HKDF-SHA-256(key, salt, info = associated data)
//! ```
//! Header and segment 0 fill 1 MiB together; every other segment but the last fills 1 MiB. Nothing is
//! copied: each segment goes from the caller's bytes straight into its place in the output.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};

use crate::error::SealError;
use crate::random::random_bytes;

/// Bytes of a full segment, tag included; of the first one with the header.
pub(crate) const SEGMENT_BYTES: usize = 1 << 20;
/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 1 + SALT_BYTES + PREFIX_BYTES;
/// Bytes of a segment's tag.
pub(crate) const TAG_BYTES: usize = 16;
const SALT_BYTES: usize = 32;
const PREFIX_BYTES: usize = 7;

/// Why a stream does not open. The caller knows what it is and which key it tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// Too short to be one, or its header is not 40 bytes long.
    NotAStream,
    /// The first segment does not authenticate.
    First,
    /// A later segment does not authenticate.
    Segment(u32),
    /// Everything authenticates but the end, which is not there.
    Truncated,
    /// The library failed.
    Library,
}

/// How long the ciphertext of `plaintext` bytes is.
pub(crate) const fn sealed_bytes(plaintext: usize) -> usize {
    let with_header = HEADER_BYTES + plaintext;
    with_header + with_header.div_ceil(SEGMENT_BYTES - TAG_BYTES) * TAG_BYTES
}

/// How long the plaintext of `ciphertext` bytes is; none when no plaintext has such a ciphertext (an
/// empty last segment behind a full one is such a case: nobody writes it).
pub(crate) fn opened_bytes(ciphertext: usize) -> Option<usize> {
    let tags = ciphertext.div_ceil(SEGMENT_BYTES) * TAG_BYTES;
    let plaintext = ciphertext.checked_sub(HEADER_BYTES)?.checked_sub(tags)?;
    (sealed_bytes(plaintext) == ciphertext).then_some(plaintext)
}

struct Segments {
    cipher: LessSafeKey,
    prefix: [u8; PREFIX_BYTES],
}

impl Segments {
    fn new(key: &[u8; 32], aad: &[u8], salt: &[u8], prefix: [u8; PREFIX_BYTES]) -> Option<Self> {
        let derived = Salt::new(HKDF_SHA256, salt).extract(key);
        let info = [aad];
        let okm = derived.expand(&info, &AES_256_GCM).ok()?;
        Some(Self {
            cipher: LessSafeKey::new(UnboundKey::from(okm)),
            prefix,
        })
    }

    fn nonce(&self, number: u32, last: bool) -> Nonce {
        let mut nonce = [0; PREFIX_BYTES + 5];
        let (prefix, rest) = nonce.split_at_mut(PREFIX_BYTES);
        prefix.copy_from_slice(&self.prefix);
        let (counter, flag) = rest.split_at_mut(4);
        counter.copy_from_slice(&number.to_be_bytes());
        flag.fill(u8::from(last));
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&self, number: u32, last: bool, plaintext: &[u8], segment: &mut [u8]) -> Result<(), StreamError> {
        let (text, tag) = segment
            .split_at_mut_checked(plaintext.len())
            .ok_or(StreamError::Library)?;
        self.cipher
            .seal_out_of_place_scatter(self.nonce(number, last), Aad::empty(), plaintext, text, &[], tag)
            .map_err(|_| StreamError::Library)
    }

    fn open(&self, number: u32, last: bool, segment: &[u8], plaintext: &mut [u8]) -> bool {
        segment.split_last_chunk::<TAG_BYTES>().is_some_and(|(text, tag)| {
            self.cipher
                .open_separate_gather(self.nonce(number, last), Aad::empty(), text, tag, plaintext)
                .is_ok()
        })
    }
}

/// Seals `plaintext` into `out`, whose former content is overwritten and whose room is used again.
pub(crate) fn seal(key: &[u8; 32], aad: &[u8], plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
    seal_with(key, aad, plaintext, out, random_bytes()?, random_bytes()?)
        .map_err(|_| SealError::Library("sealing a stream"))
}

/// As [`seal`], with the salt and nonce prefix given: for test vectors, and for nothing else.
pub(crate) fn seal_with(
    key: &[u8; 32],
    aad: &[u8],
    plaintext: &[u8],
    out: &mut Vec<u8>,
    salt: [u8; SALT_BYTES],
    prefix: [u8; PREFIX_BYTES],
) -> Result<(), StreamError> {
    let segments = Segments::new(key, aad, &salt, prefix).ok_or(StreamError::Library)?;
    resize(out, sealed_bytes(plaintext.len()));
    let (header, _) = out
        .split_first_chunk_mut::<HEADER_BYTES>()
        .ok_or(StreamError::Library)?;
    header[0] = HEADER_BYTES as u8;
    header[1..=SALT_BYTES].copy_from_slice(&salt);
    header[1 + SALT_BYTES..].copy_from_slice(&prefix);

    let mut rest = plaintext;
    for (number, piece) in out.chunks_mut(SEGMENT_BYTES).enumerate() {
        let piece = if number == 0 {
            piece.get_mut(HEADER_BYTES..)
        } else {
            Some(piece)
        };
        let piece = piece.ok_or(StreamError::Library)?;
        let room = piece.len().checked_sub(TAG_BYTES).ok_or(StreamError::Library)?;
        let (now, later) = rest.split_at_checked(room).ok_or(StreamError::Library)?;
        rest = later;
        let number = u32::try_from(number).map_err(|_| StreamError::Library)?;
        segments.seal(number, rest.is_empty(), now, piece)?;
    }
    Ok(())
}

/// Opens `ciphertext` into `out`, whose former content is overwritten and whose room is used again.
/// On failure `out` is empty and what had been opened is wiped.
pub(crate) fn open(key: &[u8; 32], aad: &[u8], ciphertext: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
    let result = open_segments(key, aad, ciphertext, out);
    if result.is_err() {
        zeroize::Zeroize::zeroize(out);
    }
    result
}

fn open_segments(key: &[u8; 32], aad: &[u8], ciphertext: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
    let (header, _) = ciphertext
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(StreamError::NotAStream)?;
    let (length, rest) = header.split_first().ok_or(StreamError::NotAStream)?;
    let (salt, prefix) = rest.split_at_checked(SALT_BYTES).ok_or(StreamError::NotAStream)?;
    let prefix = prefix.try_into().map_err(|_| StreamError::NotAStream)?;
    if usize::from(*length) != HEADER_BYTES {
        return Err(StreamError::NotAStream);
    }
    let Some(plaintext_bytes) = opened_bytes(ciphertext.len()) else {
        // No whole stream has this length: it was cut inside a tag, or never was one.
        return Err(if ciphertext.len() < HEADER_BYTES + TAG_BYTES {
            StreamError::NotAStream
        } else {
            StreamError::Truncated
        });
    };
    let segments = Segments::new(key, aad, salt, prefix).ok_or(StreamError::Library)?;
    resize(out, plaintext_bytes);

    let count = ciphertext.len().div_ceil(SEGMENT_BYTES);
    let mut room = out.as_mut_slice();
    for (number, piece) in ciphertext.chunks(SEGMENT_BYTES).enumerate() {
        let piece = if number == 0 {
            piece.get(HEADER_BYTES..)
        } else {
            Some(piece)
        };
        let piece = piece.ok_or(StreamError::NotAStream)?;
        let (now, later) = piece
            .len()
            .checked_sub(TAG_BYTES)
            .and_then(|length| room.split_at_mut_checked(length))
            .ok_or(StreamError::NotAStream)?;
        let last = number + 1 == count;
        let index = u32::try_from(number).map_err(|_| StreamError::NotAStream)?;
        if !segments.open(index, last, piece, now) {
            return Err(if last && segments.open(index, false, piece, now) {
                StreamError::Truncated
            } else if number == 0 {
                StreamError::First
            } else {
                StreamError::Segment(index)
            });
        }
        room = later;
    }
    Ok(())
}

/// Gives `out` exactly `length` bytes. A new vector comes from the allocator already zeroed, which for
/// large ones costs nothing; growing one would write every byte twice.
fn resize(out: &mut Vec<u8>, length: usize) {
    if out.capacity() < length {
        *out = vec![0; length];
    } else {
        out.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [9; 32];
    /// Plaintext in the first segment and in every other full one.
    const FIRST: usize = SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES;
    const NEXT: usize = SEGMENT_BYTES - TAG_BYTES;

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    fn sealed(plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        seal(&KEY, b"aad", plaintext, &mut out).unwrap();
        out
    }

    fn opened(ciphertext: &[u8]) -> Result<Vec<u8>, StreamError> {
        let mut out = vec![1; 5];
        let result = open(&KEY, b"aad", ciphertext, &mut out);
        assert!(result.is_ok() || out.is_empty(), "a failure leaves no plaintext");
        result.map(|()| out)
    }

    #[test]
    fn opens_at_every_edge_of_a_segment() {
        for edge in [0, FIRST, FIRST + NEXT, FIRST + 2 * NEXT] {
            for length in edge.saturating_sub(2)..edge + 3 {
                let plaintext = text(length);
                let ciphertext = sealed(&plaintext);
                assert_eq!(ciphertext.len(), sealed_bytes(length));
                assert!(opened(&ciphertext) == Ok(plaintext), "{length}");
            }
        }
    }

    #[test]
    fn a_missing_end_is_called_that() {
        let ciphertext = sealed(&text(FIRST + 2 * NEXT + 100));
        for end in [SEGMENT_BYTES, 2 * SEGMENT_BYTES, 3 * SEGMENT_BYTES] {
            assert_eq!(opened(&ciphertext[..end]), Err(StreamError::Truncated), "{end}");
        }
        for end in [SEGMENT_BYTES + 1, SEGMENT_BYTES + TAG_BYTES, ciphertext.len() - 1] {
            assert!(opened(&ciphertext[..end]).is_err(), "{end}");
        }
        for end in [0, 1, HEADER_BYTES, HEADER_BYTES + TAG_BYTES - 1] {
            assert_eq!(opened(&ciphertext[..end]), Err(StreamError::NotAStream), "{end}");
        }
        let mut longer = ciphertext;
        longer.push(0);
        assert!(opened(&longer).is_err());
    }

    #[test]
    fn segments_have_their_places() {
        let ciphertext = sealed(&text(FIRST + 3 * NEXT));
        let part = |i: usize| &ciphertext[i * SEGMENT_BYTES..(i + 1) * SEGMENT_BYTES];
        let swapped = [part(0), part(2), part(1), part(3)].concat();
        assert_eq!(opened(&swapped), Err(StreamError::Segment(1)));
        let doubled = [part(0), part(1), part(1), part(2), part(3)].concat();
        assert_eq!(opened(&doubled), Err(StreamError::Segment(2)));
        let missing = [part(0), part(2), part(3)].concat();
        assert_eq!(opened(&missing), Err(StreamError::Segment(1)));
        let other = sealed(&text(FIRST + 3 * NEXT));
        let mixed = [part(0), &other[SEGMENT_BYTES..]].concat();
        assert_eq!(opened(&mixed), Err(StreamError::Segment(1)));
    }

    #[test]
    fn another_key_or_context_is_its_own_error() {
        let ciphertext = sealed(&text(100));
        let mut out = Vec::new();
        assert_eq!(open(&[8; 32], b"aad", &ciphertext, &mut out), Err(StreamError::First));
        assert_eq!(open(&KEY, b"aae", &ciphertext, &mut out), Err(StreamError::First));
    }

    #[test]
    fn room_is_used_again_and_what_was_there_is_gone() {
        let mut out = vec![0xee; 3 << 20];
        let room = out.as_ptr();
        seal(&KEY, b"aad", &text(1000), &mut out).unwrap();
        assert_eq!((out.as_ptr(), out.len()), (room, sealed_bytes(1000)));
        assert_eq!(opened(&out), Ok(text(1000)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_flipped_bit_is_found_wherever_it_is(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let mut ciphertext = sealed(&text(FIRST + NEXT + 1000));
            let at = at.index(ciphertext.len());
            ciphertext[at] ^= 1 << bit;
            let expected = match at {
                0 => StreamError::NotAStream,
                _ if at < SEGMENT_BYTES => StreamError::First,
                _ => StreamError::Segment((at / SEGMENT_BYTES) as u32),
            };
            prop_assert_eq!(opened(&ciphertext), Err(expected));
        }

        #[test]
        fn lengths_agree_both_ways(length in 0..usize::MAX / 2) {
            prop_assert_eq!(opened_bytes(sealed_bytes(length)), Some(length));
        }

        #[test]
        fn no_other_length_is_a_stream(length in 0..5 * SEGMENT_BYTES) {
            if let Some(plaintext) = opened_bytes(length) {
                prop_assert_eq!(sealed_bytes(plaintext), length);
            }
        }
    }
}
