//! Shards: pieces of at most 64 MiB of an artifact, each sealed under its own random key.
//!
//! The ciphertext is Tink's streaming AEAD `AES256_GCM_HKDF_1MB`. Its associated data is canonical JSON
//! of a type, the organisation and the shard's id, so that a shard opens as itself and as nothing else.
//! Where the first MiB shrinks by a tenth, the plaintext is one zstd frame (level 1).

use serde::Serialize;
use tidegate_types::artifact::{SHARD_PLAINTEXT_BYTES, ShardKey};
use zeroize::{Zeroize, Zeroizing};

use crate::canonical;
use crate::error::SealError;
use crate::random::random_bytes;
use crate::stream::{self, StreamError};

/// The most plaintext in one shard: 64 MiB.
pub const MAX_PLAINTEXT_BYTES: usize = SHARD_PLAINTEXT_BYTES as usize;
/// The most bytes of one sealed shard.
pub const MAX_SEALED_BYTES: usize = stream::sealed_bytes(MAX_PLAINTEXT_BYTES);

/// How much of a shard is tried before the whole is compressed.
const PROBE_BYTES: usize = 1 << 20;
/// Below this, compression saves nothing worth a frame.
const MIN_COMPRESSED_BYTES: usize = 4 << 10;
const ZSTD_LEVEL: i32 = 1;

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

/// Seals one shard under a new random key and id.
///
/// # Errors
/// [`SealError::TooLarge`] above 64 MiB, [`SealError::Random`] without random bytes.
pub fn seal_shard(plaintext: &[u8], organisation: &str) -> Result<(Vec<u8>, ShardKey), SealError> {
    let mut sealed = Vec::new();
    let key = seal_shard_into(plaintext, organisation, &mut sealed)?;
    Ok((sealed, key))
}

/// As [`seal_shard`], into a vector whose room is used again: for whoever seals many shards in turn.
///
/// # Errors
/// As [`seal_shard`].
pub fn seal_shard_into(plaintext: &[u8], organisation: &str, sealed: &mut Vec<u8>) -> Result<ShardKey, SealError> {
    SealError::check_size("the plaintext of a shard", plaintext.len(), MAX_PLAINTEXT_BYTES)?;
    let id = hex::encode(random_bytes::<16>()?);
    let key = Zeroizing::new(random_bytes::<32>()?);
    let compressed = compress(plaintext)?.map(Zeroizing::new);
    let inner = compressed.as_ref().map_or(plaintext, |bytes| bytes.as_slice());
    stream::seal(&key, &associated_data(organisation, &id)?, inner, sealed)?;
    Ok(ShardKey {
        id,
        key: hex::encode(*key),
        plaintext_bytes: plaintext.len() as u64,
        zstd: compressed.is_some(),
    })
}

/// Opens one shard.
///
/// # Errors
/// [`SealError::WrongKey`] for another key, id or organisation (no plaintext is given);
/// [`SealError::Altered`] and [`SealError::Truncated`] for what happened to it on the way;
/// [`SealError::Mismatch`] when it does not hold as many bytes as its key says.
pub fn open_shard(ciphertext: &[u8], key: &ShardKey, organisation: &str) -> Result<Vec<u8>, SealError> {
    let mut plaintext = Vec::new();
    open_shard_into(ciphertext, key, organisation, &mut plaintext)?;
    Ok(plaintext)
}

/// As [`open_shard`], into a vector whose room is used again. It is empty after an error.
///
/// # Errors
/// As [`open_shard`].
pub fn open_shard_into(
    ciphertext: &[u8],
    key: &ShardKey,
    organisation: &str,
    plaintext: &mut Vec<u8>,
) -> Result<(), SealError> {
    let result = open_checked(ciphertext, key, organisation, plaintext);
    if result.is_err() {
        plaintext.zeroize();
    }
    result
}

fn open_checked(
    ciphertext: &[u8],
    key: &ShardKey,
    organisation: &str,
    plaintext: &mut Vec<u8>,
) -> Result<(), SealError> {
    SealError::check_size(WHAT, ciphertext.len(), MAX_SEALED_BYTES)?;
    let expected = usize::try_from(key.plaintext_bytes).unwrap_or(usize::MAX);
    SealError::check_size("the plaintext of a shard", expected, MAX_PLAINTEXT_BYTES)?;
    let aad = associated_data(organisation, &key.id)?;
    let secret = secret_of(key)?;
    if key.zstd {
        let mut compressed = Zeroizing::new(Vec::new());
        stream::open(&secret, &aad, ciphertext, &mut compressed).map_err(|error| explain(error, ciphertext))?;
        decompress(&compressed, expected, plaintext)
    } else {
        stream::open(&secret, &aad, ciphertext, plaintext).map_err(|error| explain(error, ciphertext))?;
        if plaintext.len() == expected {
            Ok(())
        } else {
            Err(wrong_length(expected))
        }
    }
}

fn secret_of(key: &ShardKey) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut secret = Zeroizing::new([0; 32]);
    hex::decode_to_slice(&key.key, secret.as_mut())
        .map_err(|_| SealError::malformed("a shard's key", "expected 32 bytes in hexadecimal"))?;
    Ok(secret)
}

fn explain(error: StreamError, ciphertext: &[u8]) -> SealError {
    stream_error(
        error,
        WHAT,
        "use the key, the shard id and the organisation of its sealed index",
        ciphertext.len(),
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

/// The zstd frame of `plaintext`, where that is worth it.
fn compress(plaintext: &[u8]) -> Result<Option<Vec<u8>>, SealError> {
    if plaintext.len() < MIN_COMPRESSED_BYTES {
        return Ok(None);
    }
    let failed = |_| SealError::Library("compressing a shard");
    let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(failed)?;
    let probe = plaintext.get(..PROBE_BYTES).unwrap_or(plaintext);
    let probed = Zeroizing::new(compressor.compress(probe).map_err(failed)?);
    if probed.len() > probe.len() - probe.len() / 10 {
        return Ok(None);
    }
    if probe.len() == plaintext.len() {
        return Ok(Some(probed.to_vec()));
    }
    let whole = compressor.compress(plaintext).map_err(failed)?;
    // What follows a well-behaved first MiB may still grow.
    Ok((whole.len() < plaintext.len()).then_some(whole))
}

/// Decompresses exactly one frame of exactly `expected` bytes, whatever a hostile frame claims.
fn decompress(compressed: &[u8], expected: usize, plaintext: &mut Vec<u8>) -> Result<(), SealError> {
    if plaintext.capacity() < expected {
        *plaintext = Vec::with_capacity(expected);
    }
    plaintext.clear();
    let wrong = || wrong_length(expected);
    // The library would take no frame for an empty one, and several for one.
    if !zstd::zstd_safe::find_frame_compressed_size(compressed).is_ok_and(|length| length == compressed.len()) {
        return Err(SealError::malformed(WHAT, "what is in it is not one zstd frame"));
    }
    let mut decompressor = zstd::bulk::Decompressor::new().map_err(|_| SealError::Library("decompressing a shard"))?;
    plaintext.resize(expected, 0);
    let written = decompressor
        .decompress_to_buffer(compressed, plaintext.as_mut_slice())
        .map_err(|_| wrong())?;
    if written == expected { Ok(()) } else { Err(wrong()) }
}
