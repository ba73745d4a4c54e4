use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use rustix::fs::OFlags;
use tidegate_contracts::{Custody, CustodyError};
use tidegate_seal::digest::sha256;
use tidegate_seal::envelope::{BEGINNING, open_under, seal_under};
use tidegate_seal::random::random_bytes;
use tidegate_seal::wrap;
use zeroize::Zeroizing;

use crate::disk;

/// What the key file begins with, so that nothing else is taken for a key.
const HEADER: &str = "tidegate.custody-key.v1 ";
/// Header, 64 hexadecimal digits, end of line.
const LINE_BYTES: usize = HEADER.len() + 64 + 1;
/// The most keys in a file: the newest, and those before it that are not destroyed yet.
const MOST_KEYS: usize = 16;
/// The longest key file: all of these lines, and what age adds to them.
const FILE_BYTES: usize = LINE_BYTES * MOST_KEYS + 1024;

type Key = Zeroizing<[u8; 32]>;

/// Custody in a key file.
///
/// The file holds a line for each key, the newest first: `tidegate.custody-key.v1` and 32 bytes in
/// hexadecimal; with a passphrase, these lines are the content of an age file under it. It belongs to the user of the process and has mode 0600; a file that anybody else could read
/// is refused, because then nobody knows who has the key. Keys are wrapped by [`tidegate_seal::wrap`].
///
/// A destroyed key is overwritten where it lay. Copies that others made of the file, and what a disk keeps of
/// blocks that were overwritten, are beyond its reach.
pub struct FileCustody {
    keys: Mutex<Vec<Key>>,
    path: PathBuf,
    passphrase: Passphrase,
}

/// What a key file is sealed under, where it is.
pub type Passphrase = Option<Zeroizing<String>>;

impl FileCustody {
    /// Opens the key file at `path`.
    ///
    /// # Errors
    /// [`CustodyError::Unreachable`] when the file is missing, is not a key file, is not the user's own
    /// or may be read by others, or is sealed under another passphrase. One that is not sealed opens with any: it
    /// is sealed when its keys are renewed.
    pub fn open(path: impl AsRef<Path>, passphrase: Passphrase) -> Result<Self, CustodyError> {
        let path = path.as_ref();
        let keys = read(path, &passphrase).map_err(|why| unreachable(path, "opening the key file", why))?;
        Ok(Self {
            keys: Mutex::new(keys),
            path: path.to_owned(),
            passphrase,
        })
    }

    /// Makes a new random key and its file.
    ///
    /// # Errors
    /// [`CustodyError::Unreachable`] when something is there already or the folder cannot be written.
    pub fn create(path: impl AsRef<Path>, passphrase: Passphrase) -> Result<Self, CustodyError> {
        let path = path.as_ref();
        let failed = |error: io::Error| unreachable(path, "making the key file", error.to_string());
        let content = content_of(&[new_key().map_err(failed)?], &passphrase).map_err(failed)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            disk::private_folder(folder).map_err(failed)?;
        }
        disk::create_new(path, &content).map_err(failed)?;
        Self::open(path, passphrase)
    }

    /// Opens the key file, or makes it where there is none yet. For a site's first start only: where
    /// keys were wrapped before, a missing file is a loss that a new key would hide.
    ///
    /// # Errors
    /// As [`FileCustody::open`] and [`FileCustody::create`].
    pub fn open_or_create(path: impl AsRef<Path>, passphrase: Passphrase) -> Result<Self, CustodyError> {
        let path = path.as_ref();
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Another process may be making it at this moment; then its key is the one.
                let created = Self::create(path, passphrase.clone());
                created.or_else(|failure| Self::open(path, passphrase).map_err(|_| failure))
            }
            _ => Self::open(path, passphrase),
        }
    }
}

fn unreachable(path: &Path, what: &str, why: String) -> CustodyError {
    CustodyError::Unreachable {
        what: format!("{what} `{}`", path.display()),
        why,
    }
}

fn new_key() -> io::Result<Key> {
    Ok(Zeroizing::new(random_bytes().map_err(io::Error::other)?))
}

/// The key file's content.
fn text_of(keys: &[Key]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(keys.len() * LINE_BYTES));
    for key in keys {
        text.push_str(HEADER);
        for byte in key.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        text.push('\n');
    }
    text
}

/// The same, sealed where there is a passphrase.
fn content_of(keys: &[Key], passphrase: &Passphrase) -> io::Result<Zeroizing<Vec<u8>>> {
    let text = text_of(keys);
    let content = match passphrase {
        Some(passphrase) => seal_under(passphrase, text.as_bytes()).map_err(io::Error::other)?,
        None => text.as_bytes().to_vec(),
    };
    Ok(Zeroizing::new(content))
}

/// The keys in a file, the newest first.
fn read(path: &Path, passphrase: &Passphrase) -> Result<Vec<Key>, String> {
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
    let malformed = || format!("it is not a key file: expected lines of `{HEADER}` and 64 hexadecimal digits");
    let content = text.get(..length).ok_or_else(malformed)?;
    let opened = match (content.starts_with(BEGINNING), passphrase) {
        (false, _) => None,
        (true, None) => return Err("it is sealed under a passphrase; set TIDEGATE_CUSTODY_PASSPHRASE".to_owned()),
        (true, Some(passphrase)) => Some(open_under(passphrase, content).map_err(|error| error.to_string())?),
    };
    let lines = opened.as_ref().map_or(content, |opened| opened.as_slice());
    let lines = lines.chunks(LINE_BYTES);
    if !(1..=MOST_KEYS).contains(&lines.len()) {
        return Err(malformed());
    }
    lines.map(|line| key_of(line).ok_or_else(malformed)).collect()
}

fn key_of(line: &[u8]) -> Option<Key> {
    let digits = line.strip_suffix(b"\n")?.strip_prefix(HEADER.as_bytes())?;
    let mut key = Zeroizing::new([0_u8; 32]);
    if digits.len() != 2 * key.len() {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            *byte = *byte << 4 | u8::try_from(char::from(*digit).to_digit(16)?).ok()?;
        }
    }
    Some(key)
}

/// What is in a key file before it is destroyed, under a name that outlives a crash.
const OLD: &str = "custody.key.old";
/// What files begin with that were written and not put in place when a process was killed.
const UNFINISHED: &str = ".new-";

/// Overwrites a file that may hold keys, and removes it.
fn destroy(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or_default();
    file.write_all(&vec![b'0'; length.min(FILE_BYTES)])?;
    file.sync_all()?;
    std::fs::remove_file(path)
}

/// Destroys what killed processes left of key files in a folder.
fn tidy(folder: &Path, current: &Path) -> io::Result<()> {
    let old = folder.join(OLD);
    // Killed between the two names and the replacement: then both are the file that is in use.
    let same = |one: &Path, other: &Path| {
        let identity = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
        Ok::<_, io::Error>(identity(one)? == identity(other)?)
    };
    if old.exists() && same(&old, current)? {
        std::fs::remove_file(&old)?;
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == OLD || name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            destroy(&entry.path())?;
        }
    }
    Ok(())
}

/// How a key is told from others without showing it.
fn number_of(key: &Key) -> u64 {
    let digest = sha256(&**key);
    digest
        .as_bytes()
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl FileCustody {
    /// Changes the keys of the file as it is now, and then those that are held; gives the newest one's number.
    /// What the file held before is overwritten. Where a process is killed on the way, the next one does that.
    fn change(&self, what: &str, change: impl FnOnce(&mut Vec<Key>) -> io::Result<()>) -> Result<u64, CustodyError> {
        let failed = |why: String| unreachable(&self.path, what, why);
        let mut held = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = read(&self.path, &self.passphrase).map_err(failed)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let old = folder.join(OLD);
        let changed = tidy(folder, &self.path).and_then(|()| {
            change(&mut keys)?;
            std::fs::hard_link(&self.path, &old)?;
            disk::replace(&self.path, &content_of(&keys, &self.passphrase)?)?;
            destroy(&old)?;
            disk::sync_folder(folder)
        });
        changed.map_err(|error| failed(error.to_string()))?;
        let newest = keys.first().map_or(0, number_of);
        *held = keys;
        Ok(newest)
    }
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
        let failed = |why: String| unreachable(&self.path, "wrapping a key with", why);
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = keys.first().ok_or_else(|| failed("it holds no key".to_owned()))?;
        wrap::wrap(newest, key, context).map_err(|error| failed(error.to_string()))
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = keys.iter().find_map(|key| wrap::unwrap_key(key, wrapped, context).ok());
        opened.ok_or_else(|| CustodyError::WrongKey {
            context: context.to_owned(),
        })
    }

    async fn rotate(&self) -> Result<u64, CustodyError> {
        self.change("adding a key to", |keys| {
            // As many tries broke off before what was before them was destroyed: the newest of them will do.
            if keys.len() < MOST_KEYS {
                keys.insert(0, new_key()?);
            }
            Ok(())
        })
    }

    async fn retire(&self, before: u64) -> Result<(), CustodyError> {
        self.change("destroying old keys of", |keys| {
            let kept = keys.iter().position(|key| number_of(key) == before);
            keys.truncate(kept.ok_or_else(|| io::Error::other("it does not hold the key that is to be kept"))? + 1);
            Ok(())
        })
        .map(|_| ())
    }
}
