//! Envelopes for one reader: age v1 files (<https://c2sp.org/age>) to ML-KEM-768 and X25519 together, to X25519 alone,
//! or under a passphrase.
//!
//! A grant, a log, an output's key: small things that one machine alone may open. The recipient's text is public
//! (`age1pq1…`, or `age1…` of X25519 alone); whoever has `age` can make and open such files. Identities that are made
//! here are hybrid: what is sealed today stays closed to a quantum computer of tomorrow. A passphrase, stretched by
//! scrypt (RFC 7914), is for what a person keeps.

use std::fmt;
use std::io::{Read, Write};

use age::DecryptError;
use age::secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::error::SealError;

mod hybrid;

/// The most plaintext in one envelope: 16 MiB.
pub const MAX_PLAINTEXT_BYTES: usize = 16 << 20;

/// The most bytes of an envelope's file: the plaintext, its tags, and a header of at most 64 KiB.
const MAX_FILE_BYTES: usize = MAX_PLAINTEXT_BYTES + (MAX_PLAINTEXT_BYTES >> 16) * 16 + (64 << 10);

const WHAT: &str = "an age envelope";

/// What every age file begins with.
pub const BEGINNING: &[u8] = b"age-encryption.org/v1\n";

/// The logarithm of scrypt's N: 128 MiB, and a fraction of a second.
const WORK_FACTOR: u8 = 17;
/// The most that is tried: what `age -p` takes, and a little more.
const MOST_WORK: u8 = 20;

/// A secret key that opens envelopes. Wipes itself; never shown.
#[derive(Clone)]
pub struct Identity(Kind);

#[derive(Clone)]
enum Kind {
    /// ML-KEM-768 and X25519.
    Hybrid(Box<hybrid::Identity>),
    /// X25519.
    Classic(age::x25519::Identity),
}

impl Identity {
    /// A new random identity of ML-KEM-768 and X25519.
    ///
    /// # Panics
    /// When the operating system has no randomness.
    #[must_use]
    pub fn generate() -> Self {
        Self(Kind::Hybrid(Box::new(hybrid::Identity::generate())))
    }

    /// A new random identity of X25519 alone, for envelopes that programs without ML-KEM shall open and make.
    ///
    /// # Panics
    /// When the operating system has no randomness.
    #[must_use]
    pub fn generate_classic() -> Self {
        Self(Kind::Classic(age::x25519::Identity::generate()))
    }

    /// Reads `AGE-SECRET-KEY-PQ-1…` or `AGE-SECRET-KEY-1…`.
    ///
    /// # Errors
    /// [`SealError::Malformed`] for anything else; the text is not quoted.
    pub fn from_secret(text: &str) -> Result<Self, SealError> {
        let kind = if text.starts_with(hybrid::IDENTITY_BEGINNING) {
            text.parse().map(Box::new).map(Kind::Hybrid)
        } else {
            text.parse().map(Kind::Classic)
        };
        kind.map(Self)
            .map_err(|why: &str| SealError::malformed("an age identity", why))
    }

    /// `AGE-SECRET-KEY-PQ-1…` or `AGE-SECRET-KEY-1…`, for whoever stores the identity.
    #[must_use]
    pub fn secret(&self) -> Zeroizing<String> {
        match &self.0 {
            Kind::Hybrid(identity) => identity.secret(),
            Kind::Classic(identity) => Zeroizing::new(identity.to_string().expose_secret().to_owned()),
        }
    }

    /// `age1pq1…` or `age1…`: what others seal to.
    #[must_use]
    pub fn recipient(&self) -> String {
        match &self.0 {
            Kind::Hybrid(identity) => identity.recipient(),
            Kind::Classic(identity) => identity.to_public().to_string(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("recipient", &self.recipient())
            .finish_non_exhaustive()
    }
}

/// Seals `plaintext` to one recipient (`age1pq1…` or `age1…`).
///
/// # Errors
/// [`SealError::Malformed`] when the recipient is none, [`SealError::TooLarge`] above
/// [`MAX_PLAINTEXT_BYTES`].
pub fn seal_to(recipient: &str, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
    SealError::check_size("the plaintext of an age envelope", plaintext.len(), MAX_PLAINTEXT_BYTES)?;
    let none = |why: &str| SealError::malformed("an age recipient", why);
    if recipient.starts_with(hybrid::RECIPIENT_BEGINNING) {
        let recipient: hybrid::Recipient = recipient.parse().map_err(none)?;
        seal(&recipient, plaintext)
    } else {
        let recipient: age::x25519::Recipient = recipient.parse().map_err(none)?;
        seal(&recipient, plaintext)
    }
}

/// Seals `plaintext` under a passphrase.
///
/// # Errors
/// [`SealError::TooLarge`] above [`MAX_PLAINTEXT_BYTES`].
pub fn seal_under(passphrase: &str, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
    SealError::check_size("the plaintext of an age envelope", plaintext.len(), MAX_PLAINTEXT_BYTES)?;
    let mut recipient = age::scrypt::Recipient::new(SecretString::from(passphrase));
    recipient.set_work_factor(WORK_FACTOR);
    seal(&recipient, plaintext)
}

fn seal(recipient: &dyn age::Recipient, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
    let sealing = |_| SealError::Library("sealing an age envelope");
    let encryptor = age::Encryptor::with_recipients(std::iter::once(recipient))
        .map_err(|_| SealError::Library("sealing an age envelope"))?;
    let mut sealed = Vec::with_capacity(plaintext.len() + 1024);
    let mut writer = encryptor.wrap_output(&mut sealed).map_err(sealing)?;
    writer.write_all(plaintext).map_err(sealing)?;
    writer.finish().map_err(sealing)?;
    Ok(sealed)
}

/// Opens an envelope. Nothing of the plaintext is given unless all of it authenticates.
///
/// # Errors
/// [`SealError::WrongKey`] when it is sealed to others, [`SealError::Altered`] when its body was
/// altered or cut, [`SealError::Malformed`] when it is no age file, [`SealError::TooLarge`] when it
/// holds more than [`MAX_PLAINTEXT_BYTES`].
pub fn open(identity: &Identity, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let identity: &dyn age::Identity = match &identity.0 {
        Kind::Hybrid(identity) => &**identity,
        Kind::Classic(identity) => identity,
    };
    open_as(identity, "ask its sender to seal it to this recipient", sealed)
}

/// Opens an envelope that was sealed under a passphrase, by [`seal_under`] or `age -p`.
///
/// # Errors
/// As [`open`]; [`SealError::WrongKey`] for another passphrase, and where more work would be needed to try it
/// than a second or two.
pub fn open_under(passphrase: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let mut identity = age::scrypt::Identity::new(SecretString::from(passphrase));
    identity.set_max_work_factor(MOST_WORK);
    open_as(&identity, "try the passphrase that it was sealed under", sealed)
}

fn open_as(identity: &dyn age::Identity, fix: &'static str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    SealError::check_size(WHAT, sealed.len(), MAX_FILE_BYTES)?;
    let reader = age::Decryptor::new_buffered(sealed)
        .and_then(|decryptor| decryptor.decrypt(std::iter::once(identity)))
        .map_err(|error| match error {
            DecryptError::NoMatchingKeys
            | DecryptError::DecryptionFailed
            | DecryptError::KeyDecryptionFailed
            | DecryptError::ExcessiveWork { .. } => SealError::WrongKey { what: WHAT, fix },
            DecryptError::InvalidMac => SealError::Altered {
                what: WHAT,
                part: "its header".to_owned(),
            },
            _ => SealError::malformed(WHAT, "it is not an age v1 file in binary form"),
        })?;
    // All room is reserved before the first byte of plaintext arrives: a growing vector would leave
    // copies behind that nobody wipes.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(sealed.len()));
    reader
        .take(MAX_PLAINTEXT_BYTES as u64 + 1)
        .read_to_end(&mut plaintext)
        .map_err(|_| SealError::Altered {
            what: WHAT,
            part: "its body".to_owned(),
        })?;
    SealError::check_size("the plaintext of an age envelope", plaintext.len(), MAX_PLAINTEXT_BYTES)?;
    Ok(plaintext)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identities_round_trip_and_are_not_shown() {
        for (identity, beginning) in [
            (Identity::generate(), "AGE-SECRET-KEY-PQ-1"),
            (Identity::generate_classic(), "AGE-SECRET-KEY-1"),
        ] {
            let again = Identity::from_secret(&identity.secret()).unwrap();
            assert_eq!(again.recipient(), identity.recipient());
            let shown = format!("{identity:?}").to_uppercase();
            assert!(!shown.contains("SECRET") && !shown.contains(&identity.secret()[beginning.len()..]));
            let error = Identity::from_secret(&format!("{beginning}QQQQ")).unwrap_err();
            assert!(!error.to_string().contains("QQQQ"), "{error}");
        }
    }

    #[test]
    fn a_passphrase_opens_what_it_sealed() {
        let sealed = seal_under("correct horse", b"a key").unwrap();
        assert!(sealed.starts_with(BEGINNING));
        assert_eq!(*open_under("correct horse", &sealed).unwrap(), b"a key");
        for wrong in ["correct hors", "", "correct horse "] {
            let error = open_under(wrong, &sealed).unwrap_err();
            assert!(matches!(error, SealError::WrongKey { .. }), "{error}");
        }
        assert!(open(&Identity::generate(), &sealed).is_err());
        let to_somebody = seal_to(&Identity::generate().recipient(), b"a key").unwrap();
        assert!(open_under("correct horse", &to_somebody).is_err());
    }

    #[test]
    fn opens_for_its_reader_only() {
        let readers = [Identity::generate(), Identity::generate_classic(), Identity::generate()];
        for (number, reader) in readers.iter().enumerate() {
            let sealed = seal_to(&reader.recipient(), b"a data key").unwrap();
            assert_eq!(*open(reader, &sealed).unwrap(), b"a data key");
            for (_, other) in readers.iter().enumerate().filter(|(other, _)| *other != number) {
                assert!(matches!(open(other, &sealed), Err(SealError::WrongKey { .. })));
            }
            for bad in ["", "age1", "age1pq1", &reader.secret(), &reader.recipient()[..20]] {
                assert!(seal_to(bad, b"").is_err());
            }
        }
    }

    #[test]
    fn sizes_are_bounded_on_both_sides() {
        let classic = age::x25519::Identity::generate();
        let reader = Identity(Kind::Classic(classic.clone()));
        let most = vec![7; MAX_PLAINTEXT_BYTES];
        let sealed = seal_to(&reader.recipient(), &most).unwrap();
        assert!(*open(&reader, &sealed).unwrap() == most);
        let more = vec![7; MAX_PLAINTEXT_BYTES + 1];
        assert!(matches!(
            seal_to(&reader.recipient(), &more),
            Err(SealError::TooLarge { .. })
        ));
        let theirs = age::encrypt(&classic.to_public(), &more).unwrap();
        assert!(matches!(open(&reader, &theirs), Err(SealError::TooLarge { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn nothing_altered_or_cut_opens(
            plaintext in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
            classic in any::<bool>(),
        ) {
            let reader = if classic { Identity::generate_classic() } else { Identity::generate() };
            let sealed = seal_to(&reader.recipient(), &plaintext).unwrap();
            let at = at.index(sealed.len());
            prop_assert!(open(&reader, &sealed[..at]).is_err());
            let mut altered = sealed.clone();
            altered[at] ^= 1 << bit;
            prop_assert!(open(&reader, &altered).is_err());
            let mut longer = sealed.clone();
            longer.push(0);
            prop_assert!(open(&reader, &longer).is_err());
            prop_assert_eq!(&*open(&reader, &sealed).unwrap(), &plaintext);
        }
    }
}
