//! The keys of a private site. They are made once, kept in one file that only custody can open, and
//! never leave the site.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_contracts::custody::{Custody, CustodyError};
use tidegate_contracts::stage::StageKeys;
use tidegate_seal::digest::sha256;
use tidegate_seal::envelope::Identity;
use tidegate_seal::random::random_bytes;
use tidegate_seal::shard::{open_shard, seal_shard};
use tidegate_seal::sign::SigningKey;
use tidegate_types::artifact::ShardKey;
use tidegate_types::ids::SiteName;
use zeroize::{Zeroize, Zeroizing};

use crate::error::{KeeperError, While};

/// Everything that a keeper signs, opens and decides with.
pub struct SiteKeys {
    /// Signs permits, grants, packing lists, bundles, replies and cosigns checkpoints.
    pub signing: SigningKey,
    /// Opens what workers send home.
    pub identity: Identity,
    /// Keys the digests of file contents in manifests.
    pub digest: [u8; 32],
    /// What the stages decide with.
    pub stages: StageKeys,
}

impl std::fmt::Debug for SiteKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SiteKeys([secret])")
    }
}

/// The keys as they stand inside the sealed file.
#[derive(Serialize, Deserialize)]
struct Plain {
    signing: [u8; 32],
    identity: String,
    digest: [u8; 32],
    split: [u8; 32],
    values: [u8; 32],
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.signing.zeroize();
        self.identity.zeroize();
        self.digest.zeroize();
        self.split.zeroize();
        self.values.zeroize();
    }
}

/// The file: a shard whose key is wrapped by custody.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    format: String,
    shard: String,
    plaintext_bytes: u64,
    wrapped_key: String,
    sealed: String,
}

const FORMAT: &str = "tidegate.site-keys.v1";

impl SiteKeys {
    /// Opens the site's keys in `file`, or makes them when there is no such file yet.
    ///
    /// # Errors
    /// When custody is out of reach or has another key, or the file cannot be read or written. A
    /// file that cannot be opened is never replaced.
    pub async fn open(file: &Path, custody: &dyn Custody, site: &SiteName) -> Result<Self, KeeperError> {
        let context = context(site);
        match tokio::fs::read(file).await {
            Ok(bytes) => Self::read(&bytes, custody, &context).await,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let bytes = Self::create(custody, &context).await?;
                create_private_file(file, &bytes).while_("writing the site's keys")?;
                let bytes = tokio::fs::read(file).await.while_("reading the site's keys")?;
                Self::read(&bytes, custody, &context).await
            }
            Err(error) => Err(KeeperError::failed("reading the site's keys", error)),
        }
    }

    async fn create(custody: &dyn Custody, context: &str) -> Result<Vec<u8>, KeeperError> {
        let making = "making the site's keys";
        let plain = Plain {
            signing: random_bytes().while_(making)?,
            identity: Identity::generate().secret().to_string(),
            digest: random_bytes().while_(making)?,
            split: random_bytes().while_(making)?,
            values: random_bytes().while_(making)?,
        };
        let text = Zeroizing::new(serde_json::to_vec(&plain).while_(making)?);
        sealed(&text, custody, context).await
    }

    async fn read(bytes: &[u8], custody: &dyn Custody, context: &str) -> Result<Self, KeeperError> {
        Self::of(&opened(bytes, custody, context).await?)
    }

    /// The keys of a text that [`export`] gave.
    fn of(text: &[u8]) -> Result<Self, KeeperError> {
        let opening = "opening the site's keys";
        let plain: Plain = serde_json::from_slice(text).while_(opening)?;
        Ok(Self {
            signing: SigningKey::from_seed(&plain.signing).while_(opening)?,
            identity: Identity::from_secret(&plain.identity).while_(opening)?,
            digest: plain.digest,
            stages: StageKeys {
                split: plain.split,
                values: plain.values,
            },
        })
    }
}

/// The file for a text of keys.
async fn sealed(text: &[u8], custody: &dyn Custody, context: &str) -> Result<Vec<u8>, KeeperError> {
    let making = "making the site's keys";
    let (sealed, key) = seal_shard(text, context).while_(making)?;
    let mut raw = Zeroizing::new([0_u8; 32]);
    hex::decode_to_slice(&key.key, raw.as_mut()).while_(making)?;
    let file = KeyFile {
        format: FORMAT.to_owned(),
        shard: key.id.clone(),
        plaintext_bytes: key.plaintext_bytes,
        wrapped_key: hex::encode(custody.wrap(&raw, context).await.while_(making)?),
        sealed: hex::encode(sealed),
    };
    serde_json::to_vec_pretty(&file).while_(making)
}

/// The text of keys in a file.
async fn opened(bytes: &[u8], custody: &dyn Custody, context: &str) -> Result<Zeroizing<Vec<u8>>, KeeperError> {
    let opening = "opening the site's keys";
    let file: KeyFile = serde_json::from_slice(bytes).while_(opening)?;
    if file.format != FORMAT {
        return Err(KeeperError::failed(opening, "the file has an unknown format"));
    }
    let wrapped = hex::decode(&file.wrapped_key).while_(opening)?;
    let raw = Zeroizing::new(custody.unwrap_key(&wrapped, context).await.while_(opening)?);
    let key = ShardKey {
        id: file.shard,
        key: hex::encode(*raw),
        plaintext_bytes: file.plaintext_bytes,
        zstd: false,
    };
    let sealed = hex::decode(&file.sealed).while_(opening)?;
    Ok(Zeroizing::new(open_shard(&sealed, &key, context).while_(opening)?))
}

/// The site's keys as a text, for a backup.
///
/// # Errors
/// As [`SiteKeys::open`].
pub(crate) async fn export(
    file: &Path,
    custody: &dyn Custody,
    site: &SiteName,
) -> Result<Zeroizing<Vec<u8>>, KeeperError> {
    let bytes = tokio::fs::read(file).await.while_("reading the site's keys")?;
    opened(&bytes, custody, &context(site)).await
}

/// Puts the keys of a backup in place, where there are none that open. Gives whether it did.
///
/// # Errors
/// When the keys that open are others than those of the backup, or the file cannot be written.
pub(crate) async fn import(
    file: &Path,
    custody: &dyn Custody,
    site: &SiteName,
    text: &[u8],
) -> Result<bool, KeeperError> {
    let importing = "restoring the site's keys";
    let restored = SiteKeys::of(text)?;
    match tokio::fs::read(file).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(KeeperError::failed(importing, error)),
        Ok(bytes) => {
            if let Some(present) = openable(&bytes, custody, &context(site)).await? {
                return if SiteKeys::of(&present)?.signing.public() == restored.signing.public() {
                    Ok(false)
                } else {
                    Err(KeeperError::failed(
                        importing,
                        "this site has keys that open, and they are others than those of the backup",
                    ))
                };
            }
            // Whatever it is: somebody may still find the key that opens it.
            let digest = sha256(&bytes).to_hex();
            let aside = file.with_extension(format!("lost-{}", digest.get(..16).unwrap_or_default()));
            create_private_file(&aside, &bytes).while_(importing)?;
        }
    }
    let bytes = sealed(text, custody, &context(site)).await?;
    replace(file, &bytes).while_(importing)?;
    Ok(true)
}

/// The text of keys in a file; nothing where another key wrapped it, or none that is known any more.
async fn openable(
    bytes: &[u8],
    custody: &dyn Custody,
    context: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, KeeperError> {
    let opening = "opening the site's keys";
    let wrapped = serde_json::from_slice::<KeyFile>(bytes).ok();
    let wrapped = wrapped.and_then(|file| hex::decode(file.wrapped_key).ok());
    let Some(wrapped) = wrapped else { return Ok(None) };
    match custody.unwrap_key(&wrapped, context).await.map(Zeroizing::new) {
        Ok(_) => opened(bytes, custody, context).await.map(Some),
        Err(CustodyError::WrongKey { .. }) => Ok(None),
        Err(error) => Err(KeeperError::failed(opening, error)),
    }
}

/// Replaces the key file.
fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(file.parent().unwrap_or_else(|| Path::new(".")))?;
    std::fs::rename(write_beside(file, bytes)?, file)?;
    sync_folder_of(file)
}

/// Wraps the site's keys in `file` by custody's newest key.
///
/// # Errors
/// When custody is out of reach or has another key, or the file cannot be read or written; it is as it was then.
pub(crate) async fn rewrap(file: &Path, custody: &dyn Custody, site: &SiteName) -> Result<(), KeeperError> {
    let wrapping = "wrapping the site's keys anew";
    let bytes = tokio::fs::read(file).await.while_(wrapping)?;
    let mut keys: KeyFile = serde_json::from_slice(&bytes).while_(wrapping)?;
    keys.wrapped_key = wrap_anew(custody, &keys.wrapped_key, &context(site)).await?;
    let bytes = serde_json::to_vec_pretty(&keys).while_(wrapping)?;
    replace(file, &bytes).while_(wrapping)
}

/// Wraps a wrapped key by custody's newest, and opens what came of it: those before are destroyed next, and an answer that
/// was damaged on its way would be the end of the key.
pub(crate) async fn wrap_anew(custody: &dyn Custody, wrapped: &str, context: &str) -> Result<String, KeeperError> {
    let wrapping = "wrapping a key anew";
    let wrapped = hex::decode(wrapped).while_(wrapping)?;
    let key = Zeroizing::new(custody.unwrap_key(&wrapped, context).await.while_(wrapping)?);
    let new = custody.wrap(&key, context).await.while_(wrapping)?;
    let opened = Zeroizing::new(custody.unwrap_key(&new, context).await.while_(wrapping)?);
    if opened == key {
        Ok(hex::encode(new))
    } else {
        let why = "what custody gave opens as another key; nothing was destroyed, and the same again goes on";
        Err(KeeperError::failed(wrapping, why))
    }
}

/// The context of the wrap of a site's own keys.
fn context(site: &SiteName) -> String {
    format!("tidegate site keys of {site}")
}

/// Writes a file that only its owner reads beside `file`, and gives its path.
fn write_beside(file: &Path, bytes: &[u8]) -> std::io::Result<PathBuf> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    let mut out = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    Ok(temporary)
}

fn sync_folder_of(file: &Path) -> std::io::Result<()> {
    std::fs::File::open(file.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// Creates a file that only its owner reads, whole or not at all, with its folder; a file that is there
/// already wins.
///
/// # Errors
/// When file or folder cannot be written.
pub fn create_private_file(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(file.parent().unwrap_or_else(|| Path::new(".")))?;
    let temporary = write_beside(file, bytes)?;
    let linked = std::fs::hard_link(&temporary, file);
    std::fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_folder_of(file)
}
