//! Recipients that also hold against quantum computers: `mlkem768x25519` of age, which is HPKE (RFC 9180) in base mode
//! with the key encapsulation MLKEM768-X25519 (X-Wing, draft-ietf-hpke-pq-03), HKDF-SHA256 and ChaCha20-Poly1305. An
//! envelope stays closed as long as one of ML-KEM-768 and X25519 does.

use std::collections::HashSet;
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use age::{DecryptError, EncryptError};
use age_core::format::{FileKey, Stanza};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Checksum, Hrp};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::XWing;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal};
use zeroize::{Zeroize, Zeroizing};

const TAG: &str = "mlkem768x25519";
const INFO: &[u8] = b"age-encryption.org/mlkem768x25519";
/// Who cannot be fooled by a quantum computer must not share an envelope with who can.
const LABEL: &str = "postquantum";
const RECIPIENT: Hrp = Hrp::parse_unchecked("age1pq");
const IDENTITY: Hrp = Hrp::parse_unchecked("age-secret-key-pq-");
/// How the texts of recipients and identities begin.
pub(super) const RECIPIENT_BEGINNING: &str = "age1pq1";
pub(super) const IDENTITY_BEGINNING: &str = "AGE-SECRET-KEY-PQ-1";
/// A recipient has 1,959 characters, an identity 77.
const MOST_CHARACTERS: usize = 2048;
/// A file key with its tag.
const WRAPPED_BYTES: usize = 32;

/// Whom envelopes are sealed to.
pub(super) struct Recipient(<XWing as Kem>::PublicKey);

/// Who opens them. Wipes itself.
#[derive(Clone)]
pub(super) struct Identity(<XWing as Kem>::PrivateKey);

/// Bech32 (BIP 173) without its limit of length, as age has it.
enum LongBech32 {}

impl Checksum for LongBech32 {
    type MidstateRepr = <Bech32 as Checksum>::MidstateRepr;
    const CODE_LENGTH: usize = usize::MAX;
    const CHECKSUM_LENGTH: usize = Bech32::CHECKSUM_LENGTH;
    const GENERATOR_SH: [Self::MidstateRepr; 5] = Bech32::GENERATOR_SH;
    const TARGET_RESIDUE: Self::MidstateRepr = Bech32::TARGET_RESIDUE;
}

/// The bytes of a Bech32 text with this beginning.
fn bytes_of(text: &str, expected: Hrp) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    if text.len() > MOST_CHARACTERS {
        return Err("it is too long");
    }
    let checked = CheckedHrpstring::new::<LongBech32>(text).map_err(|_| "it is not Bech32")?;
    if checked.hrp() != expected {
        return Err("it is of another kind");
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_CHARACTERS));
    bytes.extend(checked.byte_iter());
    Ok(bytes)
}

#[expect(
    clippy::expect_used,
    reason = "nothing but a length is ever refused, and there is no limit of it"
)]
fn text_of(beginning: Hrp, bytes: &[u8]) -> String {
    bech32::encode_lower::<LongBech32>(beginning, bytes).expect("any bytes have a Bech32 text")
}

impl FromStr for Recipient {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = bytes_of(text, RECIPIENT)?;
        let key = <XWing as Kem>::PublicKey::from_bytes(&bytes).map_err(|_| "it is no key of MLKEM768-X25519")?;
        Ok(Self(key))
    }
}

impl FromStr for Identity {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = bytes_of(text, IDENTITY)?;
        let key = <XWing as Kem>::PrivateKey::from_bytes(&bytes).map_err(|_| "it has another length")?;
        Ok(Self(key))
    }
}

impl Identity {
    pub(super) fn generate() -> Self {
        Self(XWing::gen_keypair().0)
    }

    pub(super) fn secret(&self) -> Zeroizing<String> {
        let mut seed = self.0.to_bytes();
        let lower = Zeroizing::new(text_of(IDENTITY, &seed));
        seed.zeroize();
        Zeroizing::new(lower.to_uppercase())
    }

    pub(super) fn recipient(&self) -> String {
        text_of(RECIPIENT, &XWing::sk_to_pk(&self.0).to_bytes())
    }
}

impl age::Recipient for Recipient {
    fn wrap_file_key(&self, file_key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let (encapsulated, body) = single_shot_seal::<ChaCha20Poly1305, HkdfSha256, XWing>(
            &OpModeS::Base,
            &self.0,
            INFO,
            file_key.expose_secret(),
            b"",
        )
        .map_err(|_| EncryptError::Io(std::io::Error::other("a file key could not be wrapped")))?;
        let stanza = Stanza {
            tag: TAG.to_owned(),
            args: vec![STANDARD_NO_PAD.encode(encapsulated.to_bytes())],
            body,
        };
        Ok((vec![stanza], HashSet::from([LABEL.to_owned()])))
    }
}

impl age::Identity for Identity {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        if stanza.tag != TAG {
            return None;
        }
        // A stanza of this kind that is none ends the attempt, as the specification wants it.
        let encapsulated = match &stanza.args[..] {
            [argument] => STANDARD_NO_PAD.decode(argument).ok(),
            _ => None,
        };
        let encapsulated = encapsulated.and_then(|bytes| <XWing as Kem>::EncappedKey::from_bytes(&bytes).ok());
        let (Some(encapsulated), WRAPPED_BYTES) = (encapsulated, stanza.body.len()) else {
            return Some(Err(DecryptError::InvalidHeader));
        };
        // Which of several stanzas is for whom is found by trying.
        let opened = single_shot_open::<ChaCha20Poly1305, HkdfSha256, XWing>(
            &OpModeR::Base,
            &self.0,
            &encapsulated,
            INFO,
            &stanza.body,
            b"",
        );
        let opened = Zeroizing::new(opened.ok()?);
        let file_key = FileKey::try_init_with_mut(|key| {
            if opened.len() != key.len() {
                return Err(DecryptError::InvalidHeader);
            }
            key.copy_from_slice(&opened);
            Ok(())
        });
        Some(file_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_lengths_of_the_specification_and_read_back() {
        let identity = Identity::generate();
        let (secret, recipient) = (identity.secret(), identity.recipient());
        assert_eq!((secret.len(), recipient.len()), (77, 1959));
        assert!(secret.starts_with(IDENTITY_BEGINNING) && recipient.starts_with(RECIPIENT_BEGINNING));
        let again: Identity = secret.parse().unwrap();
        assert_eq!(again.recipient(), recipient);
        assert!(recipient.parse::<Recipient>().is_ok());
        let mut altered = recipient.clone().into_bytes();
        altered[1000] = if altered[1000] == b'q' { b'p' } else { b'q' };
        for bad in [
            "",
            "age1pq1",
            &secret,
            &recipient[..1000],
            &"age1pq1".repeat(1000),
            std::str::from_utf8(&altered).unwrap(),
        ] {
            assert!(bad.parse::<Recipient>().is_err(), "{bad}");
        }
        assert!(recipient.parse::<Identity>().is_err());
    }

    #[test]
    fn a_stanza_that_is_none_of_this_kind_is_an_error_and_one_for_others_is_passed_over() {
        use age::{Identity as _, Recipient as _};

        let identity = Identity::generate();
        let recipient: Recipient = identity.recipient().parse().unwrap();
        let key = FileKey::new(Box::new([7; 16]));
        let (stanzas, labels) = recipient.wrap_file_key(&key).unwrap();
        assert!(labels.contains("postquantum"));
        let [stanza] = &stanzas[..] else { panic!() };
        let opened = identity.unwrap_stanza(stanza).unwrap().unwrap();
        assert_eq!(opened.expose_secret(), &[7; 16]);
        assert!(Identity::generate().unwrap_stanza(stanza).is_none());
        let with = |args: Vec<String>, body: Vec<u8>| Stanza {
            tag: TAG.to_owned(),
            args,
            body,
        };
        let (args, body) = (stanza.args.clone(), stanza.body.clone());
        for broken in [
            with(Vec::new(), body.clone()),
            with([args.clone(), args.clone()].concat(), body.clone()),
            with(vec![args[0][1..].to_owned()], body.clone()),
            with(vec![format!("{}=", args[0])], body.clone()),
            with(args.clone(), body[1..].to_vec()),
        ] {
            let error = identity.unwrap_stanza(&broken).unwrap();
            assert!(matches!(error, Err(DecryptError::InvalidHeader)));
        }
        let other = Stanza {
            tag: "X25519".to_owned(),
            args: args.clone(),
            body,
        };
        assert!(identity.unwrap_stanza(&other).is_none());
    }
}
