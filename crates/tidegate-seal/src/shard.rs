//! Shards: pieces of at most 64 MiB of an artifact, each sealed under its own random key.
//!
//! The ciphertext is Tink's streaming AEAD `AES256_GCM_HKDF_1MB`. Its associated data is canonical JSON
//! of a type, the organisation and the shard's id, so that a shard opens as itself and as nothing else.
//! Where the first 128 KiB shrink by a tenth, the plaintext is one zstd frame (level 1).

use std::convert::Infallible;
use std::io::{self, BufRead, BufReader, Read, Write};

use serde::Serialize;
use tidegate_types::artifact::{SHARD_PLAINTEXT_BYTES, ShardKey};
use zeroize::Zeroizing;

use crate::canonical;
use crate::error::SealError;
use crate::random::random_bytes;
use crate::stream::{self, Plain, StreamError};

/// The most plaintext in one shard: 64 MiB.
pub const MAX_PLAINTEXT_BYTES: usize = SHARD_PLAINTEXT_BYTES as usize;
/// The most bytes of one sealed shard.
pub const MAX_SEALED_BYTES: usize = stream::sealed_bytes(MAX_PLAINTEXT_BYTES);

/// How much of a shard is tried before the whole is compressed: trying a MiB takes as long as sealing ten.
const PROBE_BYTES: usize = 128 << 10;
/// Below this, compression saves nothing worth a frame.
const MIN_COMPRESSED_BYTES: usize = 4 << 10;
const ZSTD_LEVEL: i32 = 1;
/// The largest window that a frame may ask for: no shard is longer.
const MAX_WINDOW_LOG: u32 = 26;

const WHAT: &str = "a sealed shard";

#[derive(Serialize)]
struct AssociatedData<'a> {
    organisation: &'a str,
    shard: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
}

fn associated_data(organisation: &str, shard: &str) -> Result<Vec<u8>, SealError> {
    canonical::write(
        "the associated data of a shard",
        &AssociatedData {
            organisation,
            shard,
            kind: "tidegate.shard.v1",
        },
    )
}

/// The plaintext of one shard, laid out as the shard that it becomes, or was: sealing and opening happen
/// where the bytes lie, and no second buffer is needed.
pub struct PlainShard {
    plain: Plain,
    bytes: usize,
}

impl std::fmt::Debug for PlainShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainShard")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl PlainShard {
    /// Room for `bytes` of plaintext, in `room` if that is large enough: whoever seals or opens many
    /// shards in turn uses one buffer for all. The caller fills [`Self::pieces_mut`].
    ///
    /// # Errors
    /// [`SealError::TooLarge`] above 64 MiB.
    pub fn new(bytes: usize, room: Vec<u8>) -> Result<Self, SealError> {
        SealError::check_size("the plaintext of a shard", bytes, MAX_PLAINTEXT_BYTES)?;
        let plain = Plain::new(bytes, room);
        Ok(Self { plain, bytes })
    }

    /// How many bytes of plaintext there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The plaintext, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.plain.pieces()
    }

    /// The plaintext, in order, to be written.
    pub fn pieces_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.plain.pieces_mut()
    }

    /// The buffer, to be used again; the plaintext is still in it.
    #[must_use]
    pub fn into_room(self) -> Vec<u8> {
        self.plain.into_room()
    }

    /// Seals the shard under a new random key and id.
    ///
    /// # Errors
    /// [`SealError::Random`] without random bytes.
    pub fn seal(self, organisation: &str) -> Result<(Vec<u8>, ShardKey), SealError> {
        let Ok(sealed) = self.seal_filling(organisation, |_| Ok::<_, Infallible>(()))?;
        Ok(sealed)
    }

    /// As [`Self::seal`], with the pieces filled by `fill`, in order and each once, before they are
    /// sealed: a piece that was just filled is still near to the processor, and sealing it then takes half
    /// as long. What `fill` fails with ends the sealing, and is given back inside.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn seal_filling<E>(
        mut self,
        organisation: &str,
        mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Result<(Vec<u8>, ShardKey), E>, SealError> {
        let id = hex::encode(random_bytes::<16>()?);
        let key = Zeroizing::new(random_bytes::<32>()?);
        let aad = associated_data(organisation, &id)?;
        if let Some(Err(error)) = self.plain.pieces_mut().next().map(&mut fill) {
            return Ok(Err(error));
        }
        let mut frame = None;
        let shrinks = self.shrinks()?;
        if shrinks {
            if let Err(error) = self.plain.pieces_mut().skip(1).try_for_each(&mut fill) {
                return Ok(Err(error));
            }
            frame = frame_of(self.pieces(), self.bytes)?;
        }
        let shard_key = ShardKey {
            id,
            plaintext_bytes: self.bytes as u64,
            zstd: frame.is_some(),
            key: hex::encode(*key),
        };
        let sealed = match frame {
            Some(frame) => Ok(Plain::copy_of(&frame, self.plain.into_room()).seal(&key, &aad)?),
            None => self.plain.seal_filling(&key, &aad, |number, piece| match number {
                // The first was filled to be tried, and all of them to be compressed.
                0 => Ok(()),
                _ if shrinks => Ok(()),
                _ => fill(piece),
            })?,
        };
        Ok(sealed.map(|sealed| (sealed, shard_key)))
    }

    /// Whether compressing is worth a try, by the first piece.
    fn shrinks(&self) -> Result<bool, SealError> {
        if self.bytes < MIN_COMPRESSED_BYTES {
            return Ok(false);
        }
        let first = self.pieces().next().unwrap_or_default();
        let probe = first.get(..PROBE_BYTES).unwrap_or(first);
        let tried = zstd::bulk::compress(probe, ZSTD_LEVEL).map_err(|_| SealError::Library("compressing a shard"))?;
        Ok(Zeroizing::new(tried).len() <= probe.len() / 10 * 9)
    }

    /// Opens one shard where it lies. After an error what had been opened is wiped.
    ///
    /// # Errors
    /// As [`open_shard`].
    pub fn open(sealed: Vec<u8>, key: &ShardKey, organisation: &str) -> Result<Self, SealError> {
        Self::open_watching(sealed, key, organisation, |_| ())
    }

    /// As [`Self::open`], with `watch` shown every byte of the sealed shard, in order and in pieces, each
    /// just before it is opened: whoever takes a digest of the shard so reads it once for both. It is shown
    /// all of it also when the shard does not open, unless it, or its key, is no shard's at all.
    ///
    /// # Errors
    /// As [`open_shard`].
    pub fn open_watching(
        sealed: Vec<u8>,
        key: &ShardKey,
        organisation: &str,
        watch: impl FnMut(&[u8]),
    ) -> Result<Self, SealError> {
        SealError::check_size(WHAT, sealed.len(), MAX_SEALED_BYTES)?;
        let bytes = usize::try_from(key.plaintext_bytes).unwrap_or(usize::MAX);
        SealError::check_size("the plaintext of a shard", bytes, MAX_PLAINTEXT_BYTES)?;
        let aad = associated_data(organisation, &key.id)?;
        let length = sealed.len();
        let plain =
            Plain::open_watching(sealed, &*secret_of(key)?, &aad, watch).map_err(|error| explain(error, length))?;
        if key.zstd {
            let opened = decompress(&plain, bytes);
            plain.wipe();
            return Ok(Self { plain: opened?, bytes });
        }
        if plain.pieces().map(<[u8]>::len).sum::<usize>() != bytes {
            plain.wipe();
            return Err(wrong_length(bytes));
        }
        Ok(Self { plain, bytes })
    }
}

/// As [`PlainShard::seal`], of a copy.
///
/// # Errors
/// [`SealError::TooLarge`] above 64 MiB, [`SealError::Random`] without random bytes.
pub fn seal_shard(plaintext: &[u8], organisation: &str) -> Result<(Vec<u8>, ShardKey), SealError> {
    let bytes = plaintext.len();
    SealError::check_size("the plaintext of a shard", bytes, MAX_PLAINTEXT_BYTES)?;
    let plain = Plain::copy_of(plaintext, Vec::new());
    PlainShard { plain, bytes }.seal(organisation)
}

/// As [`PlainShard::open`], into one piece.
///
/// # Errors
/// [`SealError::WrongKey`] for another key, id or organisation (no plaintext is given);
/// [`SealError::Altered`] and [`SealError::Truncated`] for what happened to it on the way;
/// [`SealError::Mismatch`] when it does not hold as many bytes as its key says.
pub fn open_shard(ciphertext: &[u8], key: &ShardKey, organisation: &str) -> Result<Vec<u8>, SealError> {
    let shard = PlainShard::open(ciphertext.to_vec(), key, organisation)?;
    let plaintext = shard.plain.to_vec();
    shard.plain.wipe();
    Ok(plaintext)
}

fn secret_of(key: &ShardKey) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut secret = Zeroizing::new([0; 32]);
    hex::decode_to_slice(&key.key, secret.as_mut())
        .map_err(|_| SealError::malformed("a shard's key", "expected 32 bytes in hexadecimal"))?;
    Ok(secret)
}

fn explain(error: StreamError, bytes: usize) -> SealError {
    stream_error(
        error,
        WHAT,
        "use the key, the shard id and the organisation of its sealed index",
        bytes,
    )
}

/// Says for people what [`StreamError`] says for code.
pub(crate) fn stream_error(error: StreamError, what: &'static str, fix: &'static str, bytes: usize) -> SealError {
    match error {
        StreamError::NotAStream => SealError::malformed(what, "it is not Tink's AES256_GCM_HKDF_1MB"),
        StreamError::First => SealError::WrongKey { what, fix },
        StreamError::Segment(number) => SealError::Altered {
            what,
            part: format!("segment {number}"),
        },
        StreamError::Truncated => SealError::Truncated {
            what,
            bytes: bytes as u64,
        },
        StreamError::Library => SealError::Library("opening a stream"),
    }
}

fn wrong_length(expected: usize) -> SealError {
    SealError::mismatch(
        WHAT,
        format!("it does not hold the {expected} bytes that its key names"),
    )
}

/// One zstd frame of `bytes` bytes in pieces; none if it would be no shorter than they are.
fn frame_of<'a>(pieces: impl Iterator<Item = &'a [u8]>, bytes: usize) -> Result<Option<Zeroizing<Vec<u8>>>, SealError> {
    let failed = |_| SealError::Library("compressing a shard");
    let room = Zeroizing::new(Vec::with_capacity(zstd::zstd_safe::compress_bound(bytes)));
    let mut encoder = zstd::Encoder::new(Wiped(room), ZSTD_LEVEL).map_err(failed)?;
    encoder.set_pledged_src_size(Some(bytes as u64)).map_err(failed)?;
    for piece in pieces {
        encoder.write_all(piece).map_err(failed)?;
    }
    let Wiped(frame) = encoder.finish().map_err(failed)?;
    Ok((frame.len() < bytes).then_some(frame))
}

/// A vector that is wiped also when an encoder is dropped with it.
struct Wiped(Zeroizing<Vec<u8>>);

impl Write for Wiped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads pieces as if they were one.
struct Joined<'a, I>(I, &'a [u8]);

impl<'a, I: Iterator<Item = &'a [u8]>> Read for Joined<'a, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.1.is_empty() {
            let Some(next) = self.0.next() else { return Ok(0) };
            self.1 = next;
        }
        self.1.read(buffer)
    }
}

/// How a frame is not what was promised.
enum Fault {
    Short,
    Long,
    Broken,
}

/// Decompresses exactly one frame of exactly `expected` bytes, whatever a hostile frame claims.
fn decompress(compressed: &Plain, expected: usize) -> Result<Plain, SealError> {
    let source = BufReader::new(Joined(compressed.pieces(), &[]));
    let failed = |_| SealError::Library("decompressing a shard");
    let mut decoder = zstd::Decoder::with_buffer(source).map_err(failed)?.single_frame();
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(failed)?;
    let mut plain = Plain::new(expected, Vec::new());
    let read = plain
        .pieces_mut()
        .try_for_each(|piece| fill(&mut decoder, piece))
        .and_then(|()| match decoder.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Fault::Long),
            Err(_) => Err(Fault::Broken),
        });
    let ended = decoder.finish().fill_buf().is_ok_and(<[u8]>::is_empty);
    // The library would take no frame for an empty one.
    let empty = compressed.pieces().all(<[u8]>::is_empty);
    let error = match read {
        Ok(()) if ended && !empty => return Ok(plain),
        Err(Fault::Long) => wrong_length(expected),
        Err(Fault::Short) if ended => wrong_length(expected),
        _ => SealError::malformed(WHAT, "what is in it is not one zstd frame"),
    };
    plain.wipe();
    Err(error)
}

fn fill(decoder: &mut impl Read, piece: &mut [u8]) -> Result<(), Fault> {
    let mut room = piece;
    while !room.is_empty() {
        match decoder.read(room) {
            Ok(0) => return Err(Fault::Short),
            Ok(read) => room = room.get_mut(read..).unwrap_or_default(),
            Err(_) => return Err(Fault::Broken),
        }
    }
    Ok(())
}
