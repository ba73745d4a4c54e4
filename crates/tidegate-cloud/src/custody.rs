//! Custody in key services: the key that wraps all others never leaves the service.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use object_store::CredentialProvider;
use object_store::client::HttpRequest;
use serde_json::Value;
use tidegate_contracts::CustodyError;
use tidegate_seal::digest::Sha256;
use url::Url;

use crate::address::{AddressError, secure};
use crate::client::{Server, Settling, Way, bearing};
use crate::store::OpenError;

pub(crate) mod amazon;
pub(crate) mod azure;
pub(crate) mod google;
pub(crate) mod vault;

/// The longest answer that is read.
const ANSWER_BYTES: usize = 1 << 20;
/// What a wrapped key of a numbered key begins with.
const FORMAT: u8 = 1;

/// A key service, by the address that people know it by.
struct Service {
    address: String,
    server: Server,
}

impl Service {
    /// Trusts the certificates in `certificates` besides the system's.
    fn open(address: &impl fmt::Display, certificates: Option<&Path>) -> Result<Self, OpenError> {
        let address = address.to_string();
        let server = Server::open(&address, certificates, Way::Usual)?;
        Ok(Self { address, server })
    }

    fn unreachable(&self, what: &str, why: impl fmt::Display) -> CustodyError {
        CustodyError::Unreachable {
            what: what.to_owned(),
            why: format!("{}: {why}", self.address),
        }
    }

    /// Status and body of the answer to a request, as [`Server::answer`].
    async fn answer(&self, what: &str, request: HttpRequest) -> Result<(u16, Bytes), CustodyError> {
        let answered = self.server.answer(request, ANSWER_BYTES).await;
        let answered = answered.map_err(|why| self.unreachable(what, why))?;
        Ok((answered.status().as_u16(), answered.into_body()))
    }

    /// As [`Server::credentials`].
    async fn credentials<T>(
        &self,
        what: &str,
        provider: &dyn CredentialProvider<Credential = T>,
    ) -> Result<Arc<T>, CustodyError> {
        let given = self.server.credentials(provider).await;
        given.map_err(|why| self.unreachable(what, why))
    }

    /// A request in JSON, for whoever holds `token`.
    fn request(
        &self,
        what: &str,
        method: http::Method,
        url: &str,
        token: &str,
        body: Option<&Value>,
    ) -> Result<HttpRequest, CustodyError> {
        bearing(method, url, token, body).map_err(|why| self.unreachable(what, why))
    }
}

/// The names in an address `SCHEME://…`, which holds nothing besides but options.
fn names_of(text: &str, scheme: &str) -> Result<Url, AddressError> {
    let wrong = |why: &str| AddressError::new(text, why);
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if url.scheme() != scheme {
        return Err(wrong(&format!("it does not begin with `{scheme}:`")));
    }
    if !url.username().is_empty() || url.password().is_some() || url.port().is_some() || url.fragment().is_some() {
        return Err(wrong(
            "it holds more than names; credentials have their places elsewhere",
        ));
    }
    Ok(url)
}

/// The first bytes of a digest, by which a number that was altered is noticed without asking anybody.
fn sum(number: u64, ciphertext: &[u8]) -> [u8; 8] {
    let mut digest = Sha256::default();
    digest.update(&number.to_be_bytes());
    digest.update(ciphertext);
    digest.finish().as_bytes().first_chunk().copied().unwrap_or_default()
}

/// What the key of a number wrapped: one byte of format, the number (eight bytes, big-endian), the first eight bytes of
/// the SHA-256 of number and ciphertext, and the ciphertext.
fn numbered(number: u64, ciphertext: &[u8]) -> Vec<u8> {
    [
        &[FORMAT][..],
        &number.to_be_bytes(),
        &sum(number, ciphertext),
        ciphertext,
    ]
    .concat()
}

fn number_of(wrapped: &[u8]) -> Option<(u64, &[u8])> {
    let (format, rest) = wrapped.split_first()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (found, ciphertext) = rest.split_first_chunk::<8>()?;
    let number = u64::from_be_bytes(*number);
    (*format == FORMAT && !ciphertext.is_empty() && *found == sum(number, ciphertext)).then_some((number, ciphertext))
}

/// A number as it is written here, and in no other way.
fn plain_number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

/// Whether a part of an address is made of letters, digits and `more`.
fn is_plain(part: &str, more: &str) -> bool {
    !part.is_empty()
        && part
            .chars()
            .all(|one| one.is_ascii_alphanumeric() || more.contains(one))
}

/// What may stand behind the `?` of an address: another server, and whom to trust.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Options {
    endpoint: Option<Url>,
    certificates: Option<std::path::PathBuf>,
}

impl Options {
    fn of(text: &str, url: &Url, with_endpoint: bool) -> Result<Self, AddressError> {
        let wrong = |why: &str| AddressError::new(text, why);
        let mut options = Self::default();
        for (key, value) in url.query_pairs() {
            let twice = match key.as_ref() {
                "endpoint" if with_endpoint => {
                    let server = Url::parse(&value).map_err(|error| wrong(&format!("its endpoint: {error}")))?;
                    secure(&server).map_err(|why| wrong(&format!("its endpoint {why}")))?;
                    if server.path() != "/" || server.query().is_some() {
                        return Err(wrong("its endpoint must name a server and nothing else"));
                    }
                    options.endpoint.replace(server).is_some()
                }
                "certificates" => options.certificates.replace(value.as_ref().into()).is_some(),
                _ => true,
            };
            if twice {
                return Err(wrong("it has an option that is not known here, or one twice"));
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_says_which_key_wrapped_it() {
        let wrapped = numbered(7, b"ciphertext");
        assert_eq!(number_of(&wrapped), Some((7, &b"ciphertext"[..])));
        for at in 0..wrapped.len() {
            let mut altered = wrapped.clone();
            altered[at] ^= 1;
            assert_eq!(number_of(&altered), None, "{at}");
            assert_eq!(number_of(&wrapped[..at]), None, "{at}");
        }
    }
}
