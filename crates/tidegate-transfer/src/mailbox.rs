//! Mailboxes: signed, numbered, chained messages between keeper and worker over a store.
//!
//! A mailbox is a prefix of a site's store ([`Attempt::mailbox`]). The keeper writes `in/000001.json`,
//! `in/000002.json` and so on, the worker the same below `out/`; every object is created once and is a
//! DSSE envelope over the canonical JSON of [`Numbered`]. Each message carries the digest of the one
//! before, so that whoever runs the store can withhold messages, and do nothing else to them.
//!
//! [`Outbox::seal`] and [`Outbox::deliver`] are apart so that a sender that must survive a crash writes
//! the [`Letter`] into its journal between the two, and after a restart delivers the very same bytes.
//! A worker that would lose everything in a crash anyway calls [`Outbox::post`].
//!
//! A reader trusts a worker's key from its hello on: [`Inbox::hello`] believes the key inside a hello
//! because its HMAC can only be made with the ticket's secret, and that secret was never in the store.
//!
//! A worker that finds the place of the hello taken by another one puts its own hello below
//! `out/contested/` ([`contest`]). Nobody but a holder of the secret can make one, so that a keeper that
//! finds it there ([`is_contested`]) knows that the ticket is in two hands; whoever runs the store can
//! withhold it, and do nothing else.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_contracts::{ObjectName, Store, StoreError, StoreExt};
use tidegate_seal::digest::{constant_time_eq, hmac_sha256, sha256};
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_seal::{SealError, dsse};
use tidegate_types::message::{Attempt, MESSAGE_PAYLOAD, Numbered, WorkerMessage};
use tidegate_types::{Digest, to_canonical_json};

/// The most bytes of one message as it lies in the store.
pub const MESSAGE_BYTES: u64 = 4 << 20;
/// The highest number that a message may have: six digits in its name.
pub const LAST_NUMBER: u64 = 999_999;
/// The most bytes of a contesting hello.
const CONTEST_BYTES: u64 = 64 << 10;
/// How many objects are looked at for a contesting hello: whoever writes more of them delays only.
const CONTESTS: usize = 64;

/// Who is talking or listening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The owner site's keeper: writes `in/`, reads `out/`.
    Keeper,
    /// The worker: writes `out/`, reads `in/`.
    Worker,
}

impl Side {
    const fn writes(self) -> &'static str {
        match self {
            Self::Keeper => "in",
            Self::Worker => "out",
        }
    }

    const fn reads(self) -> &'static str {
        match self {
            Self::Keeper => "out",
            Self::Worker => "in",
        }
    }
}

/// What can go wrong with a mailbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MailboxError {
    /// The store failed.
    #[error("mailbox: {0}")]
    Store(#[from] StoreError),
    /// Another message already has the name of this one: somebody else writes in our place.
    #[error("message `{object}` is in the mailbox with another content; another process speaks for the same side")]
    Taken {
        /// Which message.
        object: ObjectName,
    },
    /// The signature or the envelope is wrong.
    #[error("message `{object}` cannot be believed: {source}")]
    Sealed {
        /// Which message.
        object: ObjectName,
        /// What is wrong.
        source: SealError,
    },
    /// It is genuine, or at least readable, but not the message that has its place here.
    #[error("message `{object}` cannot be believed: {why}")]
    Misplaced {
        /// Which message.
        object: ObjectName,
        /// What is wrong.
        why: &'static str,
    },
    /// The message cannot be written down.
    #[error("writing a message for the mailbox: {0}")]
    Unwritable(&'static str),
}

impl MailboxError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

fn object_name(attempt: &Attempt, folder: &str, number: u64) -> Result<ObjectName, MailboxError> {
    if number > LAST_NUMBER {
        return Err(MailboxError::Unwritable(
            "the mailbox is full: it holds 999,999 messages of each side",
        ));
    }
    name(format!("{}{folder}/{number:06}.json", attempt.mailbox()))
}

fn contests(attempt: &Attempt) -> String {
    format!("{}{}/contested/", attempt.mailbox(), Side::Worker.writes())
}

fn name(text: String) -> Result<ObjectName, MailboxError> {
    ObjectName::new(text).map_err(|_| MailboxError::Unwritable("the attempt's names do not fit into an object's name"))
}

/// A sealed message that is not necessarily in the store yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The object's name.
    pub object: ObjectName,
    /// The object's content.
    pub body: Bytes,
    /// The message's number.
    pub number: u64,
    /// SHA-256 of the payload: what the next message calls `previous`.
    pub digest: Digest,
}

/// One side's sequence of messages.
#[derive(Debug, Clone)]
pub struct Outbox {
    attempt: Attempt,
    side: Side,
    number: u64,
    previous: Option<Digest>,
}

impl Outbox {
    /// An outbox that nothing was written to.
    #[must_use]
    pub const fn new(attempt: Attempt, side: Side) -> Self {
        Self {
            attempt,
            side,
            number: 0,
            previous: None,
        }
    }

    /// An outbox whose last delivered message had this number, and this digest of its payload.
    #[must_use]
    pub const fn resume(attempt: Attempt, side: Side, number: u64, previous: Option<Digest>) -> Self {
        Self {
            attempt,
            side,
            number,
            previous,
        }
    }

    /// Signs the next message. Nothing is written; calling it again gives a letter with the same name.
    ///
    /// # Errors
    /// When the message has no canonical form, is too long, or the mailbox is full.
    pub fn seal<M: Serialize>(&self, signer: &SigningKey, message: M) -> Result<Letter, MailboxError> {
        let number = self.number.saturating_add(1);
        let object = object_name(&self.attempt, self.side.writes(), number)?;
        let numbered = Numbered {
            attempt: self.attempt.clone(),
            number,
            previous: self.previous,
            message,
        };
        let payload = to_canonical_json(&numbered)
            .map_err(|_| MailboxError::Unwritable("the message has no canonical JSON form"))?;
        let body =
            dsse::to_bytes(&dsse::sign(signer, MESSAGE_PAYLOAD, &payload)).map_err(|source| MailboxError::Sealed {
                object: object.clone(),
                source,
            })?;
        if body.len() as u64 > MESSAGE_BYTES {
            return Err(MailboxError::Unwritable("the message is longer than 4 MiB"));
        }
        Ok(Letter {
            object,
            body: body.into(),
            number,
            digest: sha256(&payload),
        })
    }

    /// Puts a letter into the store and goes on to the next number. A letter that is there already
    /// with the same bytes counts as delivered, so a caller may try again.
    ///
    /// # Errors
    /// [`MailboxError::Taken`] when another message has its name; [`MailboxError::Store`] when the
    /// store fails; [`MailboxError::Misplaced`] when the letter is not the next one.
    pub async fn deliver(&mut self, store: &dyn Store, letter: &Letter) -> Result<(), MailboxError> {
        if letter.number != self.number.saturating_add(1)
            || letter.object != object_name(&self.attempt, self.side.writes(), letter.number)?
        {
            let why = "it is not the next message of this outbox";
            return Err(MailboxError::Misplaced {
                object: letter.object.clone(),
                why,
            });
        }
        match store.put_same(&letter.object, letter.body.clone()).await {
            Ok(()) => {}
            Err(StoreError::AlreadyExists(object)) => return Err(MailboxError::Taken { object }),
            Err(error) => return Err(error.into()),
        }
        self.number = letter.number;
        self.previous = Some(letter.digest);
        Ok(())
    }

    /// Signs and delivers the next message.
    ///
    /// # Errors
    /// As [`Outbox::seal`] and [`Outbox::deliver`].
    pub async fn post<M: Serialize>(
        &mut self,
        store: &dyn Store,
        signer: &SigningKey,
        message: M,
    ) -> Result<Letter, MailboxError> {
        let letter = self.seal(signer, message)?;
        self.deliver(store, &letter).await?;
        Ok(letter)
    }

    /// The number of the last delivered message; 0 before the first.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The digest of the last delivered message's payload.
    #[must_use]
    pub const fn previous(&self) -> Option<Digest> {
        self.previous
    }
}

/// A message that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened<M> {
    /// The message with its place in the sequence.
    pub numbered: Numbered<M>,
    /// SHA-256 of its payload.
    pub digest: Digest,
}

/// A hello whose secret and signature were verified: made by [`Inbox::hello`] and nothing else. Whether
/// its worker is the right program and its sandbox good enough is for the keeper to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloOpened {
    numbered: Numbered<WorkerMessage>,
    digest: Digest,
    signing_key: VerifyingKey,
    nonce: Digest,
}

impl HelloOpened {
    /// The hello with its place in the sequence.
    #[must_use]
    pub const fn numbered(&self) -> &Numbered<WorkerMessage> {
        &self.numbered
    }

    /// SHA-256 of its payload: what grants bind.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The key of all further messages.
    #[must_use]
    pub const fn signing_key(&self) -> &VerifyingKey {
        &self.signing_key
    }

    /// What its machine's statement about itself has to be about: see [`identity_nonce`].
    #[must_use]
    pub const fn nonce(&self) -> &Digest {
        &self.nonce
    }
}

/// The other side's sequence of messages, read in order.
#[derive(Debug, Clone)]
pub struct Inbox {
    attempt: Attempt,
    side: Side,
    number: u64,
    previous: Option<Digest>,
}

impl Inbox {
    /// An inbox that nothing was read from. `side` is the reader.
    #[must_use]
    pub const fn new(attempt: Attempt, side: Side) -> Self {
        Self {
            attempt,
            side,
            number: 0,
            previous: None,
        }
    }

    /// An inbox whose last read message had this number, and this digest of its payload.
    #[must_use]
    pub const fn resume(attempt: Attempt, side: Side, number: u64, previous: Option<Digest>) -> Self {
        Self {
            attempt,
            side,
            number,
            previous,
        }
    }

    /// The number of the last message read; 0 before the first.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The digest of the last read message's payload.
    #[must_use]
    pub const fn previous(&self) -> Option<Digest> {
        self.previous
    }

    /// The next message, or `None` when it is not there yet. After an error the inbox has not moved.
    ///
    /// # Errors
    /// [`MailboxError::Sealed`] when `sender` did not sign it; [`MailboxError::Misplaced`] when it
    /// belongs to another attempt or another place, or does not follow the message read before;
    /// [`MailboxError::Store`] when the store fails.
    pub async fn next<M: DeserializeOwned>(
        &mut self,
        store: &dyn Store,
        sender: &VerifyingKey,
    ) -> Result<Option<Opened<M>>, MailboxError> {
        let Some((object, body)) = self.fetch(store).await? else {
            return Ok(None);
        };
        let sealed = |source| MailboxError::Sealed {
            object: object.clone(),
            source,
        };
        let envelope = dsse::from_bytes(&body).map_err(sealed)?;
        let payload = dsse::open(&envelope, MESSAGE_PAYLOAD, sender).map_err(sealed)?;
        let numbered = self.read(&object, &payload)?;
        Ok(Some(self.accept(numbered, &payload)))
    }

    /// The hello, or `None` when it is not there yet: verifies its HMAC by the ticket's secret and its
    /// signature by the key that it brings. After an error the inbox has not moved.
    ///
    /// # Errors
    /// As [`Inbox::next`], and [`MailboxError::Misplaced`] when it is no hello or was made without the
    /// secret.
    pub async fn hello(&mut self, store: &dyn Store, secret: &[u8; 32]) -> Result<Option<HelloOpened>, MailboxError> {
        let Some((object, body)) = self.fetch(store).await? else {
            return Ok(None);
        };
        let hello = self.verify_hello(&object, &body, secret)?;
        self.number = hello.numbered.number;
        self.previous = Some(hello.digest);
        Ok(Some(hello))
    }

    fn verify_hello(&self, object: &ObjectName, body: &[u8], secret: &[u8; 32]) -> Result<HelloOpened, MailboxError> {
        let sealed = |source| MailboxError::Sealed {
            object: object.clone(),
            source,
        };
        let misplaced = |why| MailboxError::Misplaced {
            object: object.clone(),
            why,
        };
        let envelope = dsse::from_bytes(body).map_err(sealed)?;
        let numbered: Numbered<WorkerMessage> = self.read(object, &dsse::peek(&envelope).map_err(sealed)?)?;
        let WorkerMessage::Hello {
            recipient,
            mac,
            signing_key,
            ..
        } = &numbered.message
        else {
            return Err(misplaced("it is not a hello"));
        };
        let nonce = identity_nonce(secret, &numbered.attempt, recipient, signing_key)?;
        let expected = hello_mac(secret, &numbered)?;
        if !constant_time_eq(expected.as_bytes(), mac.as_bytes()) {
            return Err(misplaced("it was made without the ticket's secret, or altered"));
        }
        let signing_key = VerifyingKey::from_base64(signing_key).map_err(sealed)?;
        let payload = dsse::open(&envelope, MESSAGE_PAYLOAD, &signing_key).map_err(sealed)?;
        Ok(HelloOpened {
            numbered,
            digest: sha256(&payload),
            signing_key,
            nonce,
        })
    }

    async fn fetch(&self, store: &dyn Store) -> Result<Option<(ObjectName, Bytes)>, MailboxError> {
        let object = object_name(&self.attempt, self.side.reads(), self.number.saturating_add(1))?;
        match store.get(&object, MESSAGE_BYTES).await {
            Ok(body) => Ok(Some((object, body))),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a payload and checks that it has its place here.
    fn read<M: DeserializeOwned>(&self, object: &ObjectName, payload: &[u8]) -> Result<Numbered<M>, MailboxError> {
        let misplaced = |why| MailboxError::Misplaced {
            object: object.clone(),
            why,
        };
        let numbered: Numbered<M> =
            serde_json::from_slice(payload).map_err(|_| misplaced("its payload is not a message of this kind"))?;
        if numbered.attempt != self.attempt {
            return Err(misplaced("it belongs to another attempt"));
        }
        if numbered.number != self.number.saturating_add(1) {
            return Err(misplaced("its number is not the number of its place"));
        }
        if numbered.previous != self.previous {
            return Err(misplaced("it does not follow the message that was read before it"));
        }
        Ok(numbered)
    }

    fn accept<M>(&mut self, numbered: Numbered<M>, payload: &[u8]) -> Opened<M> {
        let digest = sha256(payload);
        self.number = numbered.number;
        self.previous = Some(digest);
        Opened { numbered, digest }
    }
}

/// Tells the keeper that the ticket is in two hands: puts a hello whose place in the mailbox is taken
/// beside it. Telling the same again changes nothing.
///
/// # Errors
/// [`MailboxError::Store`] when the store fails.
pub async fn contest(attempt: &Attempt, store: &dyn Store, hello: &Letter) -> Result<(), MailboxError> {
    let object = name(format!("{}{}.json", contests(attempt), hello.digest.to_hex()))?;
    Ok(store.put_same(&object, hello.body.clone()).await?)
}

/// Whether somebody who knows the ticket's secret has said another hello than `accepted`. What was made
/// without the secret, or repeats the accepted hello, does not count.
///
/// # Errors
/// [`MailboxError::Store`] when the store fails; [`MailboxError::Misplaced`] when so much lies there that
/// not everything can be looked at.
pub async fn is_contested(
    attempt: &Attempt,
    store: &dyn Store,
    secret: &[u8; 32],
    accepted: &Digest,
) -> Result<bool, MailboxError> {
    let inbox = Inbox::new(attempt.clone(), Side::Keeper);
    let objects = store.list_all(&contests(attempt), CONTESTS + 1).await?;
    // A real one may lie behind what is not looked at.
    if let Some(more) = objects.get(CONTESTS) {
        return Err(MailboxError::Misplaced {
            object: more.name.clone(),
            why: "more lies beside it than can be looked through",
        });
    }
    for object in objects {
        let body = match store.get(&object.name, CONTEST_BYTES).await {
            Ok(body) => body,
            Err(StoreError::NotFound(_) | StoreError::TooLarge { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let hello = inbox.verify_hello(&object.name, &body, secret);
        if hello.is_ok_and(|hello| hello.digest != *accepted) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The HMAC of a hello: HMAC-SHA-256, by the ticket's secret, of the canonical JSON of the numbered
/// message with `mac` set to the empty text; in hexadecimal.
///
/// # Errors
/// When the message is not a hello.
pub fn hello_mac(secret: &[u8; 32], numbered: &Numbered<WorkerMessage>) -> Result<String, MailboxError> {
    let mut numbered = numbered.clone();
    let WorkerMessage::Hello { mac, .. } = &mut numbered.message else {
        return Err(MailboxError::Unwritable(
            "only a hello carries a proof of the ticket's secret",
        ));
    };
    mac.clear();
    let bytes =
        to_canonical_json(&numbered).map_err(|_| MailboxError::Unwritable("the hello has no canonical JSON form"))?;
    Ok(hmac_sha256(secret, &bytes).to_hex())
}

/// What a machine states of itself is about this: HMAC-SHA-256, by the ticket's secret, of the canonical JSON of an object with
/// `attempt` and the hello's two keys, `recipient` and `signing_key`. Nobody knows it before the ticket, and it is another
/// one for any other keys.
///
/// # Errors
/// When the attempt's names have no canonical form.
pub fn identity_nonce(
    secret: &[u8; 32],
    attempt: &Attempt,
    recipient: &str,
    signing_key: &str,
) -> Result<Digest, MailboxError> {
    #[derive(Serialize)]
    struct About<'a> {
        attempt: &'a Attempt,
        recipient: &'a str,
        signing_key: &'a str,
    }
    let about = About {
        attempt,
        recipient,
        signing_key,
    };
    let bytes =
        to_canonical_json(&about).map_err(|_| MailboxError::Unwritable("the attempt has no canonical JSON form"))?;
    Ok(hmac_sha256(secret, &bytes))
}

#[cfg(test)]
mod tests;
