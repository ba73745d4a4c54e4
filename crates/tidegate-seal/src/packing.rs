//! Packing lists and sealed indexes: what one sealing of an artifact holds, for everybody and for its
//! receiver.

use std::collections::BTreeSet;

use serde::Serialize;
use tidegate_types::artifact::{
    MANIFEST_FORMAT, PACKING_LIST_FORMAT, SEALED_INDEX_FORMAT, SHARD_PLAINTEXT_BYTES, SealedIndex, SealedObject,
};
use tidegate_types::message::PACKING_LIST_PAYLOAD;
use tidegate_types::{ArtifactId, Digest, Manifest, PackingList};
use zeroize::Zeroizing;

use crate::canonical;
use crate::digest::sha256;
use crate::dsse;
use crate::error::SealError;
use crate::key::DataKey;
use crate::shard::{MAX_SEALED_BYTES, stream_error};
use crate::sign::{SigningKey, VerifyingKey};
use crate::stream::{self, Plain};

/// The most bytes of a sealed index: 64 MiB.
pub const MAX_INDEX_BYTES: usize = 64 << 20;

const LIST: &str = "a packing list";
const INDEX: &str = "a sealed index";
const MANIFEST: &str = "a manifest";

/// Signs a packing list; gives the object that is put into the store, byte for byte.
///
/// # Errors
/// [`SealError::Mismatch`] when the list contradicts itself, [`SealError::TooLarge`] when it does not
/// fit into an envelope.
pub fn sign_packing_list(key: &SigningKey, list: &PackingList) -> Result<Vec<u8>, SealError> {
    check_list(list)?;
    let payload = canonical::write(LIST, list)?;
    dsse::to_bytes(&dsse::sign(key, PACKING_LIST_PAYLOAD, &payload))
}

/// Opens a packing list that the owner of `key` signed. Whether it belongs to the permit and crossing
/// at hand is for the caller to compare.
///
/// # Errors
/// [`SealError::Signature`] when somebody else or nobody signed it; [`SealError::Malformed`] and
/// [`SealError::Mismatch`] when it is not a packing list or contradicts itself.
pub fn open_packing_list(bytes: &[u8], key: &VerifyingKey) -> Result<PackingList, SealError> {
    let payload = dsse::open(&dsse::from_bytes(bytes)?, PACKING_LIST_PAYLOAD, key)?;
    let list: PackingList = canonical::read(LIST, &payload)?;
    check_list(&list)?;
    Ok(list)
}

fn check_list(list: &PackingList) -> Result<(), SealError> {
    check_format(LIST, &list.format, PACKING_LIST_FORMAT)?;
    let objects = || list.shards.iter().chain([&list.index]);
    let digests: BTreeSet<&Digest> = objects().map(|object| &object.digest).collect();
    if digests.len() != list.shards.len() + 1 {
        return Err(SealError::mismatch(LIST, "it names the same object twice"));
    }
    let too_large = |object: &&SealedObject| object.bytes > MAX_SEALED_BYTES as u64;
    if let Some(object) = objects().find(too_large) {
        return Err(SealError::TooLarge {
            what: "an object of a packing list",
            bytes: object.bytes,
            limit: MAX_SEALED_BYTES as u64,
        });
    }
    Ok(())
}

fn check_format(what: &'static str, found: &str, expected: &str) -> Result<(), SealError> {
    if found == expected {
        Ok(())
    } else {
        Err(SealError::mismatch(what, format!("its format is not `{expected}`")))
    }
}

#[derive(Serialize)]
struct AssociatedData<'a> {
    artifact: &'a ArtifactId,
    organisation: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
}

fn associated_data(organisation: &str, artifact: &ArtifactId) -> Result<Vec<u8>, SealError> {
    canonical::write(
        "the associated data of a sealed index",
        &AssociatedData {
            artifact,
            organisation,
            kind: SEALED_INDEX_FORMAT,
        },
    )
}

/// The digest of the manifest's canonical JSON: the artifact's name.
///
/// # Errors
/// [`SealError::NotCanonical`] when a length in it is above 2^53, [`SealError::Mismatch`] when its
/// format is unknown.
pub fn manifest_digest(manifest: &Manifest) -> Result<ArtifactId, SealError> {
    check_format(MANIFEST, &manifest.format, MANIFEST_FORMAT)?;
    Ok(sha256(&canonical::write(MANIFEST, manifest)?))
}

/// Seals an index under the artifact's data key, in the format of shards.
///
/// # Errors
/// [`SealError::Mismatch`] when the index contradicts itself, [`SealError::TooLarge`] above
/// [`MAX_INDEX_BYTES`].
pub fn seal_index(index: &SealedIndex, key: &DataKey) -> Result<Vec<u8>, SealError> {
    check_index(index)?;
    let artifact = manifest_digest(&index.manifest)?;
    let text = Zeroizing::new(canonical::write(INDEX, index)?);
    SealError::check_size(INDEX, text.len(), MAX_INDEX_BYTES)?;
    let aad = associated_data(&index.manifest.organisation, &artifact)?;
    Plain::copy_of(&text, Vec::new()).seal(key.expose(), &aad)
}

/// Opens an index and checks that it is the one of `artifact`.
///
/// # Errors
/// [`SealError::WrongKey`] for another key, organisation or artifact; [`SealError::Altered`] and
/// [`SealError::Truncated`] for what happened to it on the way; [`SealError::Mismatch`] when its
/// manifest is not `artifact` or it contradicts itself.
pub fn open_index(
    sealed: &[u8],
    key: &DataKey,
    organisation: &str,
    artifact: &ArtifactId,
) -> Result<SealedIndex, SealError> {
    SealError::check_size(INDEX, sealed.len(), stream::sealed_bytes(MAX_INDEX_BYTES))?;
    let aad = associated_data(organisation, artifact)?;
    let plain = Plain::open(sealed.to_vec(), key.expose(), &aad).map_err(|error| {
        let fix = "use the data key, the organisation and the artifact of its packing list";
        stream_error(error, INDEX, fix, sealed.len())
    })?;
    let text = Zeroizing::new(plain.to_vec());
    plain.wipe();
    let index: SealedIndex = canonical::read(INDEX, &text)?;
    check_index(&index)?;
    if manifest_digest(&index.manifest)? != *artifact {
        return Err(SealError::mismatch(INDEX, format!("its manifest is not `{artifact}`")));
    }
    if index.manifest.organisation != organisation {
        return Err(SealError::mismatch(
            INDEX,
            "its manifest belongs to another organisation",
        ));
    }
    Ok(index)
}

/// An index comes from whoever sealed it, which may be a lying worker.
fn check_index(index: &SealedIndex) -> Result<(), SealError> {
    check_format(INDEX, &index.format, SEALED_INDEX_FORMAT)?;
    check_format(MANIFEST, &index.manifest.format, MANIFEST_FORMAT)?;
    let ids: BTreeSet<&str> = index.shards.iter().map(|shard| shard.id.as_str()).collect();
    if ids.len() != index.shards.len() {
        return Err(SealError::mismatch(INDEX, "it names the same shard twice"));
    }
    if index.shards.iter().any(|s| s.plaintext_bytes > SHARD_PLAINTEXT_BYTES) {
        return Err(SealError::mismatch(INDEX, "it has a shard of more than 64 MiB"));
    }
    let files = sum(index.manifest.files.iter().map(|file| file.bytes));
    let shards = sum(index.shards.iter().map(|shard| shard.plaintext_bytes));
    if files.is_none() || files != shards {
        return Err(SealError::mismatch(
            INDEX,
            "its shards do not hold as many bytes as its files have",
        ));
    }
    let paths: BTreeSet<&str> = index.manifest.files.iter().map(|file| file.path.as_str()).collect();
    if paths.len() != index.manifest.files.len() || !paths.iter().all(|path| is_safe_path(path)) {
        return Err(SealError::mismatch(
            INDEX,
            "a path in it is written twice, absolute, or holds an empty, `.` or `..` component",
        ));
    }
    Ok(())
}

fn sum(mut lengths: impl Iterator<Item = u64>) -> Option<u64> {
    lengths.try_fold(0, u64::checked_add)
}

fn is_safe_path(path: &str) -> bool {
    let component_ok = |c: &str| !matches!(c, "" | "." | "..") && !c.contains(['\0', '\\']);
    path.split('/').all(component_ok)
}
