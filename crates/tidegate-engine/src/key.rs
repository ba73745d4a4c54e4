//! The control plane's one key. It signs requests and the ledger's checkpoints, and opens nothing.

use std::path::Path;

use tidegate_seal::random::random_bytes;
use tidegate_seal::sign::{SigningKey, VerifyingKey};

use crate::error::{EngineError, While};
use crate::ledger::write_file;

/// An Ed25519 key in a file of its own (mode 0600, 32 bytes in hexadecimal), with the public key in
/// another beside it (`.pub`, standard base64).
#[derive(Debug)]
pub struct ControlKey(SigningKey);

impl ControlKey {
    /// Opens the key in `file`, or makes one when there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no key.
    pub fn open(file: &Path) -> Result<Self, EngineError> {
        let opening = "opening the control plane's key";
        if !file.exists() {
            create(file).while_(opening)?;
        }
        let text = std::fs::read_to_string(file).while_(opening)?;
        let mut seed = [0; 32];
        hex::decode_to_slice(text.trim(), &mut seed).while_(opening)?;
        let key = Self(SigningKey::from_seed(&seed).while_(opening)?);
        let public = key.public().to_base64();
        let beside = file.with_extension("pub");
        if !std::fs::read(&beside).is_ok_and(|there| there == public.as_bytes()) {
            write_file(&beside, public.as_bytes()).while_("writing the control plane's public key")?;
        }
        Ok(key)
    }

    /// The public key beside the key in `file`: for those who only verify.
    ///
    /// # Errors
    /// When there is none, or it is no key.
    pub fn read_public(file: &Path) -> Result<VerifyingKey, EngineError> {
        let reading = "reading the control plane's public key";
        let text = std::fs::read_to_string(file.with_extension("pub")).while_(reading)?;
        VerifyingKey::from_base64(text.trim()).while_(reading)
    }

    /// The key that signs.
    #[must_use]
    pub const fn signing(&self) -> &SigningKey {
        &self.0
    }

    /// The key that others verify with.
    #[must_use]
    pub fn public(&self) -> VerifyingKey {
        self.0.public()
    }
}

fn create(file: &Path) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let seed: [u8; 32] = random_bytes().map_err(std::io::Error::other)?;
    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    out.write_all(hex::encode(seed).as_bytes())?;
    out.sync_all()?;
    let linked = std::fs::hard_link(&temporary, file);
    std::fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => std::fs::File::open(folder)?.sync_all(),
    }
}
