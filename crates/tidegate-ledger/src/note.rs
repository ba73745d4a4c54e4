//! Signed notes (C2SP `signed-note`): a text and one line for each signature, all of it readable.
//! Only Ed25519 (signature type 1) is made and believed.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::LedgerError;

/// Signs bytes with an Ed25519 private key that stays with whoever made the closure.
pub type SignFn<'a> = &'a dyn Fn(&[u8]) -> [u8; 64];

/// The signature type of plain Ed25519 notes.
const TYPE_ED25519: u8 = 1;
/// More signature lines than this are refused.
const MAX_SIGNATURES: usize = 100;
/// What a signature line begins with: an em dash and a space.
const LINE_PREFIX: &str = "\u{2014} ";

/// A public key with a name, written `NAME+HASH+BASE64` (Go's `note` package): `HASH` is the key id in
/// eight hexadecimal digits, and `BASE64` is the byte 1 and the 32 bytes of the Ed25519 key.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: u32,
    public: [u8; 32],
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("the name is empty")
    } else if name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+') {
        Err("a name has no spaces, control characters or `+`")
    } else {
        Ok(())
    }
}

impl VerifierKey {
    /// Names the public key of an Ed25519 key pair. A log's key is named as the log, a keeper's
    /// `ORGANISATION/SITE`.
    ///
    /// # Errors
    /// When the name is empty or holds white space, a control character or `+`.
    pub fn new(name: impl Into<String>, public: [u8; 32]) -> Result<Self, LedgerError> {
        let name = name.into();
        check_name(&name).map_err(|reason| LedgerError::BadKey {
            text: shorten(&name),
            reason,
        })?;
        let hash = digest(&SHA256, &[name.as_bytes(), b"\n", &[TYPE_ED25519], &public].concat());
        let id = hash
            .as_ref()
            .iter()
            .take(4)
            .fold(0, |id, byte| id << 8 | u32::from(*byte));
        Ok(Self { name, id, public })
    }

    /// The key's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key's id: the first four bytes of SHA-256 over name, newline, type and public key.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The Ed25519 public key.
    #[must_use]
    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.public)
            .verify(text, signature)
            .is_ok()
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = [&[TYPE_ED25519][..], &self.public].concat();
        write!(f, "{}+{:08x}+{}", self.name, self.id, BASE64.encode(data))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

impl FromStr for VerifierKey {
    type Err = LedgerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |reason| LedgerError::BadKey {
            text: shorten(text),
            reason,
        };
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad("there are not three parts"));
        };
        let data = BASE64.decode(data).map_err(|_| bad("the third part is not base64"))?;
        let Some((&TYPE_ED25519, public)) = data.split_first() else {
            return Err(bad("it is not an Ed25519 key of signature type 1"));
        };
        let public = public.try_into().map_err(|_| bad("an Ed25519 key has 32 bytes"))?;
        let key = Self::new(name, public)?;
        if id == format!("{:08x}", key.id) {
            Ok(key)
        } else {
            Err(bad("the hash does not fit the name and the key"))
        }
    }
}

/// One signature line: who claims to have signed, and the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    name: String,
    id: u32,
    bytes: Vec<u8>,
}

/// A text with signatures, none of which is believed before [`Note::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

fn has_control(text: &str) -> bool {
    text.chars().any(|c| c < ' ' && c != '\n')
}

impl Note {
    /// A text without signatures yet.
    ///
    /// # Errors
    /// When the text does not end with a newline, or holds another control character.
    pub fn new(text: impl Into<String>) -> Result<Self, LedgerError> {
        let text = text.into();
        if !text.ends_with('\n') || has_control(&text) {
            return Err(LedgerError::BadNote(
                "the text must end with a newline and hold no other control character",
            ));
        }
        Ok(Self {
            text,
            signatures: Vec::new(),
        })
    }

    /// The text, its last newline included: what the signatures are over.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Adds a signature, or replaces the one by the same key. The result is verified at once, so that
    /// a closure over another key cannot make a note that nobody accepts.
    ///
    /// # Errors
    /// [`LedgerError::WrongSigner`] when the signature does not verify under `key`.
    pub fn sign(&mut self, key: &VerifierKey, sign: SignFn<'_>) -> Result<(), LedgerError> {
        let bytes = sign(self.text.as_bytes()).to_vec();
        if !key.verifies(self.text.as_bytes(), &bytes) {
            return Err(LedgerError::WrongSigner { name: key.name.clone() });
        }
        self.signatures.retain(|old| (&old.name, old.id) != (&key.name, key.id));
        self.signatures.push(Signature {
            name: key.name.clone(),
            id: key.id,
            bytes,
        });
        Ok(())
    }

    /// Reads a signed note. At least one signature line must be there; none is checked.
    ///
    /// # Errors
    /// [`LedgerError::BadNote`] when it is malformed.
    pub fn parse(text: &str) -> Result<Self, LedgerError> {
        let bad = LedgerError::BadNote;
        if has_control(text) {
            return Err(bad("it holds a control character"));
        }
        let split = text.rfind("\n\n").ok_or(bad("no empty line before the signatures"))?;
        let (body, lines) = (
            text.get(..=split).unwrap_or_default(),
            text.get(split + 2..).unwrap_or_default(),
        );
        let lines = lines
            .strip_suffix('\n')
            .ok_or(bad("it does not end with a signature line and a newline"))?;
        let mut signatures = Vec::new();
        for line in lines.split('\n') {
            if signatures.len() == MAX_SIGNATURES {
                return Err(bad("it has more than 100 signatures"));
            }
            let parts = line.strip_prefix(LINE_PREFIX).and_then(|line| line.split_once(' '));
            let (name, data) = parts.ok_or(bad("a signature line is not an em dash, a name and base64"))?;
            check_name(name).map_err(bad)?;
            let data = BASE64.decode(data).map_err(|_| bad("a signature is not base64"))?;
            let Some((id, bytes)) = data.split_first_chunk::<4>().filter(|(_, bytes)| !bytes.is_empty()) else {
                return Err(bad("a signature is shorter than five bytes"));
            };
            signatures.push(Signature {
                name: name.to_owned(),
                id: u32::from_be_bytes(*id),
                bytes: bytes.to_vec(),
            });
        }
        Ok(Self {
            text: body.to_owned(),
            signatures,
        })
    }

    /// Checks that every one of `keys` has signed. Signatures by other keys are ignored.
    ///
    /// # Errors
    /// [`LedgerError::NotSigned`] when a key has not signed, [`LedgerError::BadSignature`] when a
    /// line says it has and does not verify.
    pub fn verify<'k>(&self, keys: impl IntoIterator<Item = &'k VerifierKey>) -> Result<(), LedgerError> {
        for key in keys {
            let (name, id) = (key.name.clone(), key.id);
            let mut by_key = self
                .signatures
                .iter()
                .filter(|s| s.name == key.name && s.id == key.id)
                .peekable();
            if by_key.peek().is_none() {
                return Err(LedgerError::NotSigned { name, id });
            }
            if !by_key.all(|s| key.verifies(self.text.as_bytes(), &s.bytes)) {
                return Err(LedgerError::BadSignature { name, id });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for signature in &self.signatures {
            let data = [&signature.id.to_be_bytes()[..], &signature.bytes].concat();
            writeln!(f, "{LINE_PREFIX}{} {}", signature.name, BASE64.encode(data))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    /// The example in the documentation of Go's `golang.org/x/mod/sumdb/note`.
    const GO_KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const GO_NOTE: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n\
        \n\
        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    fn signer(name: &str, seed: u8) -> (VerifierKey, Ed25519KeyPair) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        (
            VerifierKey::new(name, pair.public_key().as_ref().try_into().unwrap()).unwrap(),
            pair,
        )
    }

    fn sign_with(pair: &Ed25519KeyPair) -> impl Fn(&[u8]) -> [u8; 64] + '_ {
        |bytes| pair.sign(bytes).as_ref().try_into().unwrap()
    }

    #[test]
    fn opens_the_example_of_gos_note_package() {
        let key: VerifierKey = GO_KEY.parse().unwrap();
        assert_eq!(key.to_string(), GO_KEY);
        let note = Note::parse(GO_NOTE).unwrap();
        note.verify([&key]).unwrap();
        assert_eq!(note.to_string(), GO_NOTE);
        let altered = Note::parse(&GO_NOTE.replace("answer", "Answer")).unwrap();
        assert!(matches!(altered.verify([&key]), Err(LedgerError::BadSignature { .. })));
    }

    #[test]
    fn all_keys_must_have_signed() {
        let ((log, log_pair), (keeper, keeper_pair)) = (signer("log", 1), signer("st-mary/hospital", 2));
        let mut note = Note::new("hello\n").unwrap();
        note.sign(&log, &sign_with(&log_pair)).unwrap();
        assert!(matches!(
            note.verify([&log, &keeper]),
            Err(LedgerError::NotSigned { .. })
        ));
        note.sign(&keeper, &sign_with(&keeper_pair)).unwrap();
        note.sign(&keeper, &sign_with(&keeper_pair)).unwrap();
        assert_eq!(note.to_string().lines().count(), 4, "signing twice leaves one line");
        note.verify([&log, &keeper]).unwrap();
        assert!(matches!(
            note.sign(&log, &sign_with(&keeper_pair)),
            Err(LedgerError::WrongSigner { .. })
        ));
        let (namesake, _) = signer("log", 3);
        assert!(matches!(note.verify([&namesake]), Err(LedgerError::NotSigned { .. })));
    }

    #[test]
    fn malformed_notes_and_keys_are_refused() {
        for bad in [
            "",
            "text\n",
            "text\n\n",
            "text\n\n\u{2014} name AAAA\n",
            "text\n\n- name AAAAAAAA\n",
            "text\n\n\u{2014} na+me AAAAAAAA\n",
            "text\n\n\u{2014} name AAAAAAAA",
            "te\rxt\n\n\u{2014} name AAAAAAAA\n",
            "text\n\n\u{2014} name AAAAAAA!\n",
        ] {
            assert!(Note::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Note::new("no newline").is_err());
        for bad in [
            "",
            "a+b",
            "a+00000000+AA==",
            &GO_KEY.replace("c74f20a3", "c74f20a4"),
            &GO_KEY.replace("Peter", "P eter"),
        ] {
            assert!(bad.parse::<VerifierKey>().is_err(), "{bad:?}");
        }
        assert!(VerifierKey::new("with space", [0; 32]).is_err());
    }
}
