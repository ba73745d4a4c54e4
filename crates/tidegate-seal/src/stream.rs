//! Tink's streaming AEAD with the parameters of its template `AES256_GCM_HKDF_1MB`.
//!
//! ```text
//! ciphertext = header, segment 0, segment 1, …, last segment
//! header     = 40 (one byte: its own length), salt (32 bytes), nonce prefix (7 bytes)
//! segment i  = AES-256-GCM(derived key, nonce prefix ‖ i as u32 big-endian ‖ last? 1 : 0)
//! derived    = HKDF-SHA-256(key, salt, info = associated data)
//! ```
//! Header and segment 0 fill 1 MiB together; every other segment but the last fills 1 MiB.
//!
//! Both ways work where the bytes lie. Ciphering is several times as fast as memory, so that a second
//! buffer would cost more than the cipher: [`Plain`] is plaintext with the gaps that header and tags
//! need, to be filled straight from a file.

use std::convert::Infallible;

use aws_lc_rs::aead::AES_256_GCM;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::{Zeroize, Zeroizing};

use crate::cipher::{Cipher, NONCE_BYTES};
use crate::error::SealError;
use crate::random::random_bytes;

/// Bytes of a full segment, tag included; of the first one with the header.
pub(crate) const SEGMENT_BYTES: usize = 1 << 20;
/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 1 + SALT_BYTES + PREFIX_BYTES;
pub(crate) use crate::cipher::TAG_BYTES;

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
    cipher: Cipher,
    prefix: [u8; PREFIX_BYTES],
}

impl Segments {
    fn new(key: &[u8; 32], aad: &[u8], salt: &[u8], prefix: [u8; PREFIX_BYTES]) -> Option<Self> {
        let derived = Salt::new(HKDF_SHA256, salt).extract(key);
        let info = [aad];
        let mut key = Zeroizing::new([0; 32]);
        derived.expand(&info, &AES_256_GCM).ok()?.fill(&mut *key).ok()?;
        Some(Self {
            cipher: Cipher::new(&key).ok()?,
            prefix,
        })
    }

    fn nonce(&self, number: u32, last: bool) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        let (prefix, rest) = nonce.split_at_mut(PREFIX_BYTES);
        prefix.copy_from_slice(&self.prefix);
        let (counter, flag) = rest.split_at_mut(4);
        counter.copy_from_slice(&number.to_be_bytes());
        flag.fill(u8::from(last));
        nonce
    }

    /// Seals one segment, whose last 16 bytes are room for the tag.
    fn seal(&self, number: u32, last: bool, segment: &mut [u8]) -> Result<(), StreamError> {
        let (text, room) = segment.split_last_chunk_mut().ok_or(StreamError::Library)?;
        let tag = self
            .cipher
            .seal(self.nonce(number, last), text)
            .ok_or(StreamError::Library)?;
        let room: &mut [u8; TAG_BYTES] = room;
        *room = tag;
        Ok(())
    }

    /// Opens one segment. When it does not authenticate, it is wiped.
    fn open(&self, number: u32, last: bool, segment: &mut [u8]) -> bool {
        self.cipher.open(self.nonce(number, last), segment)
    }
}

/// The segments of a stream without the header, with their numbers.
fn segments(stream: &mut [u8]) -> impl Iterator<Item = Result<(u32, &mut [u8]), StreamError>> {
    let pieces = stream.chunks_mut(SEGMENT_BYTES).enumerate();
    pieces.map(|(number, piece)| segment_of(number, piece))
}

/// A piece of a stream without the header, and its number as ciphers count.
fn segment_of(number: usize, piece: &mut [u8]) -> Result<(u32, &mut [u8]), StreamError> {
    let piece = match number {
        0 => piece.get_mut(HEADER_BYTES..),
        _ => Some(piece),
    };
    let number = u32::try_from(number).map_err(|_| StreamError::NotAStream)?;
    Ok((number, piece.ok_or(StreamError::NotAStream)?))
}

/// Plaintext laid out as the stream that it becomes, or was: in pieces, with room for header and tags
/// between them.
pub(crate) struct Plain {
    stream: Vec<u8>,
}

impl Plain {
    /// Room for `bytes` of plaintext, in `room` if that is large enough. What is in the pieces is
    /// whatever was in `room`.
    pub(crate) fn new(bytes: usize, room: Vec<u8>) -> Self {
        let mut stream = room;
        let length = sealed_bytes(bytes);
        if stream.capacity() < length {
            // It comes from the allocator zeroed, which for large ones costs nothing; growing one would
            // write every byte twice.
            stream = vec![0; length];
        } else {
            stream.resize(length, 0);
        }
        Self { stream }
    }

    /// A copy of `plaintext`.
    pub(crate) fn copy_of(plaintext: &[u8], room: Vec<u8>) -> Self {
        let mut plain = Self::new(plaintext.len(), room);
        let mut rest = plaintext;
        for piece in plain.pieces_mut() {
            let (now, later) = rest.split_at(piece.len().min(rest.len()));
            piece.copy_from_slice(now);
            rest = later;
        }
        plain
    }

    /// The plaintext, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.stream.chunks(SEGMENT_BYTES).enumerate().map(|(number, piece)| {
            let from = if number == 0 { HEADER_BYTES } else { 0 };
            piece.get(from..piece.len() - TAG_BYTES).unwrap_or_default()
        })
    }

    /// The plaintext, in order, to be written.
    pub(crate) fn pieces_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.stream
            .chunks_mut(SEGMENT_BYTES)
            .enumerate()
            .map(|(number, piece)| {
                let from = if number == 0 { HEADER_BYTES } else { 0 };
                let to = piece.len() - TAG_BYTES;
                piece.get_mut(from..to).unwrap_or_default()
            })
    }

    /// The plaintext in one piece.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.stream.len());
        self.pieces().for_each(|piece| bytes.extend_from_slice(piece));
        bytes
    }

    /// The buffer, to be used again; the plaintext is still in it.
    pub(crate) fn into_room(self) -> Vec<u8> {
        self.stream
    }

    /// Overwrites the plaintext.
    pub(crate) fn wipe(self) {
        let mut stream = self.stream;
        stream.zeroize();
    }

    /// Seals the plaintext where it lies.
    pub(crate) fn seal(self, key: &[u8; 32], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        let Ok(sealed) = self.seal_filling(key, aad, |_, _| Ok::<_, Infallible>(()))?;
        Ok(sealed)
    }

    /// As [`Self::seal`], with each piece filled just before it is sealed, while it is near to the
    /// processor. `fill` gets the number of the piece with it; what it fails with ends the sealing.
    pub(crate) fn seal_filling<E>(
        self,
        key: &[u8; 32],
        aad: &[u8],
        fill: impl FnMut(u32, &mut [u8]) -> Result<(), E>,
    ) -> Result<Result<Vec<u8>, E>, SealError> {
        self.seal_with(key, aad, random_bytes()?, random_bytes()?, fill)
            .map_err(|_| SealError::Library("sealing a stream"))
    }

    /// As [`Self::seal_filling`], with the salt and nonce prefix given: otherwise for test vectors only.
    pub(crate) fn seal_with<E>(
        self,
        key: &[u8; 32],
        aad: &[u8],
        salt: [u8; SALT_BYTES],
        prefix: [u8; PREFIX_BYTES],
        mut fill: impl FnMut(u32, &mut [u8]) -> Result<(), E>,
    ) -> Result<Result<Vec<u8>, E>, StreamError> {
        let mut stream = self.stream;
        let cipher = Segments::new(key, aad, &salt, prefix).ok_or(StreamError::Library)?;
        let (header, _) = stream
            .split_first_chunk_mut::<HEADER_BYTES>()
            .ok_or(StreamError::Library)?;
        header[0] = HEADER_BYTES as u8;
        header[1..=SALT_BYTES].copy_from_slice(&salt);
        header[1 + SALT_BYTES..].copy_from_slice(&prefix);
        let count = stream.len().div_ceil(SEGMENT_BYTES);
        for segment in segments(&mut stream) {
            let (number, segment) = segment?;
            let (text, _) = segment
                .split_last_chunk_mut::<TAG_BYTES>()
                .ok_or(StreamError::Library)?;
            if let Err(error) = fill(number, text) {
                text.zeroize();
                return Ok(Err(error));
            }
            cipher.seal(number, number as usize + 1 == count, segment)?;
        }
        Ok(Ok(stream))
    }

    /// Opens a ciphertext where it lies. On failure everything that had been opened is wiped.
    pub(crate) fn open(ciphertext: Vec<u8>, key: &[u8; 32], aad: &[u8]) -> Result<Self, StreamError> {
        Self::open_watching(ciphertext, key, aad, |_| ())
    }

    /// As [`Self::open`], with `watch` shown the whole ciphertext, in order and in pieces, each just before
    /// it is opened, while it is near to the processor; also what is not opened any more because something
    /// before it failed.
    pub(crate) fn open_watching(
        ciphertext: Vec<u8>,
        key: &[u8; 32],
        aad: &[u8],
        watch: impl FnMut(&[u8]),
    ) -> Result<Self, StreamError> {
        let mut plain = Self { stream: ciphertext };
        match open_segments(&mut plain.stream, key, aad, watch) {
            Ok(()) => Ok(plain),
            Err(error) => {
                plain.wipe();
                Err(error)
            }
        }
    }
}

fn open_segments(
    stream: &mut [u8],
    key: &[u8; 32],
    aad: &[u8],
    mut watch: impl FnMut(&[u8]),
) -> Result<(), StreamError> {
    let cipher = cipher_of(stream, key, aad);
    let count = stream.len().div_ceil(SEGMENT_BYTES);
    let mut result = cipher.as_ref().map(|_| ()).map_err(|error| *error);
    for (number, piece) in stream.chunks_mut(SEGMENT_BYTES).enumerate() {
        watch(piece);
        if let (Ok(cipher), Ok(())) = (&cipher, &result) {
            result = open_segment(cipher, number, number + 1 == count, piece);
        }
    }
    result
}

/// The cipher of a stream, once its header and its length are those of one.
fn cipher_of(stream: &[u8], key: &[u8; 32], aad: &[u8]) -> Result<Segments, StreamError> {
    let (header, _) = stream
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(StreamError::NotAStream)?;
    let (length, rest) = header.split_first().ok_or(StreamError::NotAStream)?;
    let (salt, prefix) = rest.split_at_checked(SALT_BYTES).ok_or(StreamError::NotAStream)?;
    let prefix = prefix.try_into().map_err(|_| StreamError::NotAStream)?;
    if usize::from(*length) != HEADER_BYTES {
        return Err(StreamError::NotAStream);
    }
    if opened_bytes(stream.len()).is_none() {
        // No whole stream has this length: it was cut inside a tag, or never was one.
        return Err(if stream.len() < HEADER_BYTES + TAG_BYTES {
            StreamError::NotAStream
        } else {
            StreamError::Truncated
        });
    }
    Segments::new(key, aad, salt, prefix).ok_or(StreamError::Library)
}

fn open_segment(cipher: &Segments, number: usize, last: bool, piece: &mut [u8]) -> Result<(), StreamError> {
    let (number, segment) = segment_of(number, piece)?;
    // A failed try destroys a segment, and the last one may be tried twice.
    let mut again = if last { segment.to_vec() } else { Vec::new() };
    if cipher.open(number, last, segment) {
        return Ok(());
    }
    let truncated = last && cipher.open(number, false, &mut again);
    again.zeroize();
    Err(match number {
        _ if truncated => StreamError::Truncated,
        0 => StreamError::First,
        number => StreamError::Segment(number),
    })
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
        Plain::copy_of(plaintext, Vec::new()).seal(&KEY, b"aad").unwrap()
    }

    fn opened(ciphertext: &[u8]) -> Result<Vec<u8>, StreamError> {
        let mut watched = Vec::new();
        let opened = Plain::open_watching(ciphertext.to_vec(), &KEY, b"aad", |piece| {
            watched.extend_from_slice(piece)
        });
        assert!(watched == ciphertext, "the ciphertext was not shown as it was");
        opened.map(|plain| plain.to_vec())
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
        let open = |key: [u8; 32], aad: &[u8]| Plain::open(ciphertext.clone(), &key, aad).err();
        assert_eq!(open([8; 32], b"aad"), Some(StreamError::First));
        assert_eq!(open(KEY, b"aae"), Some(StreamError::First));
        assert_eq!(open(KEY, b"aad"), None);
    }

    #[test]
    fn room_is_used_again_and_what_was_there_is_gone() {
        let room = vec![0xee; 3 << 20];
        let place = room.as_ptr();
        let sealed = Plain::copy_of(&text(1000), room).seal(&KEY, b"aad").unwrap();
        assert_eq!((sealed.as_ptr(), sealed.len()), (place, sealed_bytes(1000)));
        let plain = Plain::open(sealed, &KEY, b"aad").unwrap();
        assert_eq!(plain.to_vec(), text(1000));
        let room = plain.into_room();
        assert_eq!(room.as_ptr(), place);
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
