//! Custody in a hardware security module, or anything else that speaks PKCS#11.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use tidegate_contracts::{Custody, CustodyError};
use tidegate_seal::random::random_bytes;
use zeroize::Zeroizing;

mod address;

pub use address::{InvalidPkcs11Address, Pkcs11Address};

/// What a wrapped key of this custody begins with.
const FORMAT: u8 = 1;
const IV_BYTES: usize = 12;
const TAG_BITS: u64 = 128;
/// Encrypted key and tag.
const SEALED_BYTES: usize = 32 + 16;
/// The longest identifier of a key object that is taken for a number.
const ID_BYTES: usize = 8;
/// In front of the context: what is authenticated is never empty, and nothing else that the key may be used for.
const PURPOSE: &str = "tidegate.wrapped-key.v1\n";

/// Custody in a token that speaks PKCS#11 (2.40 or later): the key that wraps all others is made in it and can
/// never be taken out of it.
///
/// Keys are AES-256 objects with the label of the address; the one whose identifier (`CKA_ID`, up to eight bytes,
/// big-endian) is the greatest wraps, by AES-GCM with the context as associated data. A wrapped key is one byte of
/// format, the identifier in eight bytes, 12 random bytes of nonce, the encrypted key and the tag.
pub struct Pkcs11Custody(Arc<Inner>);

struct Inner {
    address: Pkcs11Address,
    pin: AuthPin,
    session: Mutex<Option<Session>>,
    /// The token refused the PIN once: tokens lock themselves after a few tries.
    refused: AtomicBool,
}

impl fmt::Debug for Pkcs11Custody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pkcs11Custody")
            .field(&self.0.address.to_string())
            .finish()
    }
}

/// The modules of this process: a module is initialised once in a process.
static MODULES: Mutex<BTreeMap<PathBuf, Pkcs11>> = Mutex::new(BTreeMap::new());

/// Whether nobody but root and this user can change a module, which is code of this process once it is loaded.
fn is_trusted(path: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    std::fs::metadata(path).is_ok_and(|file| {
        let owned = file.uid() == 0 || file.uid() == user;
        file.is_file() && owned && file.mode() & 0o022 == 0
    })
}

fn module(path: &Path) -> Result<Pkcs11, Trouble> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    if !is_trusted(path) {
        return Err(Trouble::Missing(
            "its module is no file that only root or this user can change",
        ));
    }
    let module = Pkcs11::new(path)?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(error.into()),
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

/// Why something could not be done with the token.
enum Trouble {
    Token(Error),
    Missing(&'static str),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Token(error)
    }
}

impl Trouble {
    /// Whether a new session may help: the token was taken out and put in again.
    const fn of_session(&self) -> bool {
        matches!(
            self,
            Self::Token(Error::Pkcs11(
                RvError::SessionHandleInvalid
                    | RvError::SessionClosed
                    | RvError::DeviceRemoved
                    | RvError::UserNotLoggedIn
                    | RvError::TokenNotPresent,
                _
            ))
        )
    }

    fn told(&self) -> String {
        match self {
            Self::Token(Error::LibraryLoading(_)) => "its module cannot be loaded".to_owned(),
            Self::Token(Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _)) => {
                "it does not take the PIN".to_owned()
            }
            Self::Token(Error::Pkcs11(RvError::PinLocked, _)) => "its PIN is locked".to_owned(),
            Self::Token(Error::Pkcs11(why, function)) => format!("{function:?} ended with {why:?}"),
            Self::Token(_) => "its module does not keep to PKCS#11".to_owned(),
            Self::Missing(what) => (*what).to_owned(),
        }
    }
}

/// A key object and its number.
#[derive(Debug, Clone, Copy)]
struct Key {
    number: u64,
    handle: ObjectHandle,
}

impl Pkcs11Custody {
    /// The custody at `address`, for the user with this PIN. Connects to nothing yet.
    #[must_use]
    pub fn new(address: Pkcs11Address, pin: Zeroizing<String>) -> Self {
        Self(Arc::new(Inner {
            address,
            pin: AuthPin::new(pin.as_str().into()),
            session: Mutex::new(None),
            refused: AtomicBool::new(false),
        }))
    }

    /// Whether the token takes the PIN. It is not tried again in this process once it was refused.
    ///
    /// # Errors
    /// When the token is out of reach.
    pub async fn takes_pin(&self) -> Result<bool, CustodyError> {
        match self.with("logging in", |_, _| Ok(())).await {
            Err(_) if self.0.refused.load(Ordering::Acquire) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Makes the first key, where the token has none of this name. For a site's first start only: where keys were
    /// wrapped before, a missing one is a loss that a new one would hide.
    ///
    /// # Errors
    /// When the token is out of reach, or does not make keys.
    pub async fn create(&self) -> Result<(), CustodyError> {
        self.with("making the first key", |session, inner| {
            if inner.keys(session)?.is_empty() {
                inner.make(session, 1)?;
            }
            Ok(())
        })
        .await
    }

    /// Does something in a session; once more in a new one if the old one had ended. Tokens are slow, so this is
    /// done beside the runtime.
    async fn with<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl Fn(&Session, &Inner) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, CustodyError> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let mut held = inner.session.lock().unwrap_or_else(PoisonError::into_inner);
            let mut again = held.is_some();
            loop {
                let session = match held.take() {
                    Some(session) => session,
                    None => inner.session()?,
                };
                match work(&session, &inner) {
                    Err(trouble) if again && trouble.of_session() => again = false,
                    done => {
                        *held = Some(session);
                        return done;
                    }
                }
            }
        });
        let unreachable = |why: String| CustodyError::Unreachable {
            what: what.to_owned(),
            why: format!("{}: {why}", self.0.address),
        };
        let done = done.await.map_err(|_| unreachable("the work broke off".to_owned()))?;
        done.map_err(|trouble| unreachable(trouble.told()))
    }
}

impl Inner {
    fn session(&self) -> Result<Session, Trouble> {
        if self.refused.load(Ordering::Acquire) {
            return Err(Trouble::Missing("it does not take the PIN"));
        }
        let module = module(&self.address.module)?;
        for slot in module.get_slots_with_initialized_token()? {
            if module.get_token_info(slot)?.label() != self.address.token {
                continue;
            }
            let session = module.open_rw_session(slot)?;
            // Whoever logged in first in this process did it for all its sessions.
            return match session.login(UserType::User, Some(&self.pin)) {
                Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
                Err(error) => {
                    let refused = matches!(
                        error,
                        Error::Pkcs11(
                            RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange | RvError::PinLocked,
                            _
                        )
                    );
                    self.refused.store(refused, Ordering::Release);
                    Err(error.into())
                }
            };
        }
        Err(Trouble::Missing("there is no token of this name"))
    }

    /// The keys of this name, the newest last.
    fn keys(&self, session: &Session) -> Result<Vec<Key>, Trouble> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Label(self.address.object.as_bytes().to_vec()),
        ];
        let mut keys = Vec::new();
        for handle in session.find_objects(&template)? {
            let attributes = session.get_attributes(handle, &[AttributeType::Id])?;
            let number = attributes.iter().find_map(|attribute| match attribute {
                Attribute::Id(id) if id.len() <= ID_BYTES => {
                    Some(id.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte)))
                }
                _ => None,
            });
            let number = number.ok_or(Trouble::Missing(
                "a key of this name has an identifier that is no number",
            ))?;
            keys.push(Key { number, handle });
        }
        keys.sort_by_key(|key| key.number);
        if keys
            .windows(2)
            .any(|pair| matches!(pair, [one, other] if one.number == other.number))
        {
            return Err(Trouble::Missing("two keys of this name have one identifier"));
        }
        Ok(keys)
    }

    fn make(&self, session: &Session, number: u64) -> Result<(), Trouble> {
        let template = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::ValueLen(32.into()),
            Attribute::Label(self.address.object.as_bytes().to_vec()),
            Attribute::Id(number.to_be_bytes().to_vec()),
        ];
        session.generate_key(&Mechanism::AesKeyGen, &template)?;
        Ok(())
    }

    fn newest(&self, session: &Session) -> Result<Key, Trouble> {
        let keys = self.keys(session)?;
        keys.last()
            .copied()
            .ok_or(Trouble::Missing("it has no key of this name"))
    }
}

fn associated_data(context: &str) -> Vec<u8> {
    [PURPOSE.as_bytes(), context.as_bytes()].concat()
}

#[async_trait]
impl Custody for Pkcs11Custody {
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError> {
        let (text, associated) = (Zeroizing::new(*key), associated_data(context));
        self.with("wrapping a key", move |session, inner| {
            let newest = inner.newest(session)?;
            let mut nonce: [u8; IV_BYTES] =
                random_bytes().map_err(|_| Trouble::Missing("the system gives no random bytes"))?;
            let mut wrapped = vec![FORMAT];
            wrapped.extend(newest.number.to_be_bytes());
            wrapped.extend(nonce);
            let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, &associated, TAG_BITS.into())?);
            wrapped.extend(session.encrypt(&mechanism, newest.handle, &*text)?);
            Ok(wrapped)
        })
        .await
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        let wrong = || CustodyError::WrongKey {
            context: context.to_owned(),
        };
        let parts = || {
            let (format, rest) = wrapped.split_first()?;
            let (number, rest) = rest.split_first_chunk::<ID_BYTES>()?;
            let (nonce, sealed) = rest.split_first_chunk::<IV_BYTES>()?;
            (*format == FORMAT && sealed.len() == SEALED_BYTES)
                .then(|| (u64::from_be_bytes(*number), *nonce, sealed.to_vec()))
        };
        let (number, nonce, sealed) = parts().ok_or_else(wrong)?;
        let associated = associated_data(context);
        let opened = self
            .with("opening a wrapped key", move |session, inner| {
                let keys = inner.keys(session)?;
                let Some(key) = keys.iter().find(|key| key.number == number) else {
                    return Ok(None);
                };
                let mut nonce = nonce;
                let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, &associated, TAG_BITS.into())?);
                match session.decrypt(&mechanism, key.handle, &sealed).map(Zeroizing::new) {
                    Ok(opened) => Ok(<[u8; 32]>::try_from(opened.as_slice()).ok().map(Zeroizing::new)),
                    // Tokens differ in what they say of a tag that is wrong.
                    Err(Error::Pkcs11(
                        RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange | RvError::GeneralError,
                        _,
                    )) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            })
            .await?;
        opened.map(|key| *key).ok_or_else(wrong)
    }

    async fn rotate(&self) -> Result<u64, CustodyError> {
        self.with("making a new key", |session, inner| {
            let number = inner.newest(session)?.number.checked_add(1);
            let number = number.ok_or(Trouble::Missing("its newest key has the greatest identifier"))?;
            inner.make(session, number)?;
            Ok(number)
        })
        .await
    }

    async fn retire(&self, before: u64) -> Result<(), CustodyError> {
        self.with("destroying old keys", move |session, inner| {
            for key in inner.keys(session)? {
                if key.number < before {
                    session.destroy_object(key.handle)?;
                }
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_module_that_is_none_is_out_of_reach() {
        let address = "pkcs11:token=a;object=b?module-path=/does/not/exist.so"
            .parse()
            .unwrap();
        let custody = Pkcs11Custody::new(address, Zeroizing::new("1234".to_owned()));
        let error = custody.wrap(&[7; 32], "context").await.unwrap_err().to_string();
        assert!(
            error.contains("module is no file") && !error.contains("1234"),
            "{error}"
        );
    }
}
