use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::fs::OFlags;
use tidegate_contracts::{Custody, CustodyError};
use tidegate_seal::random::random_bytes;
use tidegate_seal::wrap;
use zeroize::{Zeroize, Zeroizing};

use crate::disk;

/// What the key file begins with, so that nothing else is taken for a key.
const HEADER: &str = "tidegate.custody-key.v1 ";
/// Header, 64 hexadecimal digits, end of line.
const FILE_BYTES: usize = HEADER.len() + 64 + 1;

/// Custody in a key file.
///
/// The file holds one line, `tidegate.custody-key.v1` and 32 bytes in hexadecimal, belongs to the user
/// of the process and has mode 0600; a file that anybody else could read is refused, because then
/// nobody knows who has the key. Keys are wrapped by [`tidegate_seal::wrap`].
pub struct FileCustody {
    key: Zeroizing<[u8; 32]>,
    path: PathBuf,
}

impl FileCustody {
    /// Opens the key file at `path`.
    ///
    /// # Errors
    /// [`CustodyError::Unreachable`] when the file is missing, is not a key file, is not the user's own
    /// or may be read by others.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CustodyError> {
        let path = path.as_ref();
        let key = read(path).map_err(|why| unreachable(path, "opening the key file", why))?;
        Ok(Self {
            key,
            path: path.to_owned(),
        })
    }

    /// Makes a new random key and its file.
    ///
    /// # Errors
    /// [`CustodyError::Unreachable`] when something is there already or the folder cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, CustodyError> {
        let path = path.as_ref();
        let failed = |error: io::Error| unreachable(path, "making the key file", error.to_string());
        let random = |error: tidegate_seal::SealError| failed(io::Error::other(error));
        let key: Zeroizing<[u8; 32]> = Zeroizing::new(random_bytes().map_err(random)?);
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES));
        text.push_str(HEADER);
        for byte in key.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        text.push('\n');
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            disk::private_folder(folder).map_err(failed)?;
        }
        disk::create_new(path, text.as_bytes()).map_err(failed)?;
        Self::open(path)
    }

    /// Opens the key file, or makes it where there is none yet. For a site's first start only: where
    /// keys were wrapped before, a missing file is a loss that a new key would hide.
    ///
    /// # Errors
    /// As [`FileCustody::open`] and [`FileCustody::create`].
    pub fn open_or_create(path: impl AsRef<Path>) -> Result<Self, CustodyError> {
        let path = path.as_ref();
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Another process may be making it at this moment; then its key is the one.
                Self::create(path).or_else(|failure| Self::open(path).map_err(|_| failure))
            }
            _ => Self::open(path),
        }
    }
}

fn unreachable(path: &Path, what: &str, why: String) -> CustodyError {
    CustodyError::Unreachable {
        what: format!("{what} `{}`", path.display()),
        why,
    }
}

fn read(path: &Path) -> Result<Zeroizing<[u8; 32]>, String> {
    let mut file: File = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err("it belongs to another user; make a key file of this user's own".to_owned());
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "its mode is {:04o}, so others could read it; if nobody has, set it to 0600, otherwise make a new key",
            metadata.mode() & 0o7777
        ));
    }
    let mut text = Zeroizing::new([0_u8; FILE_BYTES + 1]);
    let mut length = 0;
    while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest).map_err(|error| error.to_string())? {
            0 => break,
            read => length += read,
        }
    }
    let malformed = || format!("it is not a key file: expected one line `{HEADER}` and 64 hexadecimal digits");
    let line = text
        .get(..length)
        .and_then(|line| line.strip_suffix(b"\n"))
        .ok_or_else(malformed)?;
    let digits = line
        .strip_prefix(HEADER.as_bytes())
        .filter(|digits| digits.len() == 64)
        .ok_or_else(malformed)?;
    let mut key = Zeroizing::new([0_u8; 32]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            let digit = char::from(*digit).to_digit(16).ok_or_else(malformed)?;
            value = value << 4 | u8::try_from(digit).map_err(|_| malformed())?;
        }
        *byte = value;
        value.zeroize();
    }
    Ok(key)
}

impl fmt::Debug for FileCustody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileCustody")
            .field("path", &self.path)
            .field("key", &"[secret]")
            .finish()
    }
}

#[async_trait]
impl Custody for FileCustody {
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError> {
        wrap::wrap(&self.key, key, context)
            .map_err(|error| unreachable(&self.path, "wrapping a key with", error.to_string()))
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        wrap::unwrap_key(&self.key, wrapped, context).map_err(|_| CustodyError::WrongKey {
            context: context.to_owned(),
        })
    }
}
