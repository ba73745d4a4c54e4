use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use tidegate_contracts::{ObjectName, Store, StoreError};
use tidegate_seal::digest::sha256;
use tidegate_seal::key::DataKey;
use tidegate_seal::packing::{seal_index, sign_packing_list};
use tidegate_seal::sign::SigningKey;
use tidegate_types::artifact::{
    PACKING_LIST_FORMAT, SEALED_INDEX_FORMAT, SHARD_PLAINTEXT_BYTES, SealedIndex, SealedObject, ShardKey,
};
use tidegate_types::ids::PermitId;
use tidegate_types::permit::SiteReference;
use tidegate_types::{ArtifactId, Digest, KeyedDigest, Manifest, PackingList, RunId};

use crate::copy::SentShards;
use crate::error::TransferError;
use crate::known::KnownShards;
use crate::permitted::Permitted;
use crate::resume::{Head, Resume};
use crate::retry::{self, TRIES, Window};
use crate::source::Source;

/// The most shards that are ever under way at once, whatever is asked for: 2 GiB of memory.
const MOST_IN_FLIGHT: usize = 16;
/// How much of a stored object is compared at once.
const COMPARED_BYTES: u64 = 8 << 20;

/// How often somebody who holds a crossing back is asked again.
const ASKED_AGAIN: Duration = Duration::from_millis(200);

/// Whether a crossing may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Open,
    /// Not now: nothing more is sealed or put until it is open again.
    Held,
    /// Not any more, for this reason: the call ends. Another one goes on where it was.
    Shut(&'static str),
}

/// With what, from where and into which store something crosses.
pub struct Crossing<'a> {
    /// The folder that was described.
    pub source: &'a Path,
    /// The destination's store.
    pub store: &'a dyn Store,
    /// The sender's key, which signs the packing list.
    pub signer: &'a SigningKey,
    /// The artifact's data key for this crossing.
    pub data_key: &'a DataKey,
    /// The key of the manifest's file digests.
    pub digest_key: &'a [u8; 32],
    /// What an earlier crossing with the same digest key has put into this very store.
    pub known: &'a KnownShards,
    /// A folder of the sending site alone, for the resume file. It holds shard keys: a secret.
    pub state: &'a Path,
    /// Shards sealed and put at once, from 1 to 16. Each takes 64 MiB of memory, and up to 64 MiB more
    /// while it is compressed.
    pub shards_in_flight: usize,
    /// Told how many bytes of plaintext stand in the store: rises from 0 to the manifest's total.
    pub progress: &'a (dyn Fn(u64) + Send + Sync),
    /// Asked before each shard is sealed and before each object is put. What is under way is finished.
    pub gate: &'a (dyn Fn() -> Gate + Send + Sync),
}

/// A complete crossing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The signed packing list.
    pub packing_list: ObjectName,
    /// SHA-256 of that object.
    pub packing_list_digest: Digest,
    /// Everything that stands in the store for this crossing: shards in order, index, packing list.
    pub objects: Vec<SealedObject>,
    /// The sum of the lengths of those that were put.
    pub bytes: u64,
    /// Whether its shards stand at another site, and whoever opens it brings them over.
    pub copied: bool,
    /// How many of these bytes stood there for an earlier crossing.
    pub known_bytes: u64,
    /// Its shards, for a later crossing; none where all of it was there before the call.
    pub shards: KnownShards,
    /// Whether all of it was there before the call.
    pub already: bool,
}

/// The name of a shard or an index: the digest of its ciphertext.
pub(crate) fn sealed_name(digest: &Digest) -> ObjectName {
    literal(format!("sealed/{}", digest.to_hex()))
}

/// The name of the packing list of one artifact under one permit.
#[must_use]
pub fn packing_list_name(run: &RunId, permit: &PermitId, artifact: &ArtifactId) -> ObjectName {
    literal(format!("packing/{run}/{permit}-{}.json", artifact.short()))
}

#[expect(
    clippy::expect_used,
    reason = "names and digests consist of characters that object names allow"
)]
fn literal(name: String) -> ObjectName {
    ObjectName::new(name).expect("names and digests make good object names")
}

/// Seals what is permitted and puts it into the destination's store; the packing list last.
///
/// Called again after any interruption with the same permit, key and state folder, it goes on where it
/// was and ends with the same packing list. Before every put it checks that the permit has not expired
/// and that its byte limit, which counts every try, is not passed.
///
/// # Errors
/// [`TransferError::Refused`] by rule `permit-expired` or `permit-byte-limit`;
/// [`TransferError::Changed`] when the files are not what the manifest says: nothing of them was put;
/// [`TransferError::Occupied`] when other bytes stand under a name; [`TransferError::Store`] when the
/// store fails for good, or is busy for longer than eight tries with growing pauses;
/// [`TransferError::Shut`] when the gate is shut; [`TransferError::Resume`] when another process sends the same, or another data key is given.
pub async fn send(permitted: &Permitted<Manifest>, crossing: &Crossing<'_>) -> Result<Sent, TransferError> {
    let sender = Sender::begin(permitted, crossing).await?;
    if sender.is_complete().await? {
        return sender.sent(true, &[]);
    }
    let contents = sender.shards().await?;
    sender.publish().await?;
    sender.sent(false, &contents)
}

/// As [`send`], of an artifact whose `shards` stand in the store of site `from`: only a new index and packing list are put,
/// which name them. Whoever opens it brings them over; nothing is read from [`Crossing::source`]. [`Sent::objects`] are all
/// of them, [`Sent::bytes`] is what was put.
///
/// # Errors
/// As [`send`]; [`TransferError::Refused`] by rule `permit-other-site` where the permit does not name `from` as where it may
/// be copied from.
pub async fn send_copied(
    permitted: &Permitted<Manifest>,
    crossing: &Crossing<'_>,
    from: &SiteReference,
    shards: &SentShards,
) -> Result<Sent, TransferError> {
    if permitted.permit().copied_from.as_ref() != Some(from) {
        return Err(permitted.not_copied_from(&from.site).into());
    }
    let sender = Sender::begin(permitted, crossing).await?;
    let already = sender.is_complete().await?;
    if !already {
        sender.name_shards(shards).await?;
        sender.publish().await?;
    }
    sender.sent(already, &[])
}

/// One call of [`send`].
struct Sender<'a> {
    permitted: &'a Permitted<Manifest>,
    crossing: &'a Crossing<'a>,
    resume: Arc<Resume>,
    packing_list: ObjectName,
    window: Window,
    /// Buffers of shards that were put, for those that follow: memory that is new to the process is
    /// several times as slow as the cipher. Never more than shards in flight.
    rooms: Mutex<Vec<Vec<u8>>>,
    /// What is left of the shards that an earlier crossing has put.
    known: Mutex<KnownShards>,
    known_bytes: AtomicU64,
}

impl<'a> Sender<'a> {
    async fn begin(permitted: &'a Permitted<Manifest>, crossing: &'a Crossing<'a>) -> Result<Self, TransferError> {
        permitted.still_valid()?;
        let permit = permitted.permit();
        let packing_list = packing_list_name(&permit.run, &permit.id, &permitted.artifact());
        let head = Head::new(
            &permit.id,
            permitted.permit_digest(),
            permitted.artifact(),
            crossing.data_key.commitment(),
            &packing_list,
        );
        let state = crossing.state.to_owned();
        let resume = Arc::new(blocking(move || Resume::open(&state, head)).await?);
        Ok(Self {
            permitted,
            crossing,
            resume,
            packing_list,
            window: Window::new(crossing.shards_in_flight.clamp(1, MOST_IN_FLIGHT)),
            rooms: Mutex::default(),
            known: Mutex::new(crossing.known.clone()),
            known_bytes: AtomicU64::new(0),
        })
    }

    /// Once all shards are noted: index and packing list.
    async fn publish(&self) -> Result<(), TransferError> {
        let index = self.index().await?;
        self.list(index).await?;
        self.remove_abandoned().await;
        Ok(())
    }

    /// Notes shards that stand elsewhere as those of this crossing.
    async fn name_shards(&self, shards: &SentShards) -> Result<(), TransferError> {
        let (resume, shards) = (Arc::clone(&self.resume), shards.clone());
        blocking(move || {
            for (number, (key, object)) in (0..).zip(shards.0) {
                // What was noted before a restart is the same, and an index may name it.
                if resume.read(|notes| {
                    !notes.copied.contains(&number) || notes.shards.get(&number) != Some(&(key.clone(), object.clone()))
                }) {
                    resume.copied(number, key, object)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Whether the crossing was completed before and its packing list is still in the store.
    async fn is_complete(&self) -> Result<bool, TransferError> {
        match self.resume.read(|notes| notes.list.clone().filter(|_| notes.complete)) {
            Some(list) => self.stands(&self.packing_list, list.bytes).await,
            None => Ok(false),
        }
    }

    /// Whether an object that was noted before it was put is in the store.
    async fn stands(&self, name: &ObjectName, bytes: u64) -> Result<bool, TransferError> {
        self.window.may_ask().await;
        match retry::patiently(|| self.crossing.store.head(name)).await {
            Ok(info) if info.bytes == bytes => Ok(true),
            Ok(_) => Err(TransferError::Occupied(name.clone())),
            Err(StoreError::NotFound(_)) => Ok(false),
            Err(error) => Err(TransferError::store("asking for a stored object")(error)),
        }
    }

    /// Returns once the store may be asked, the permit is good and the gate is open.
    async fn may_go_on(&self) -> Result<(), TransferError> {
        self.window.may_ask().await;
        loop {
            self.permitted.still_valid()?;
            match (self.crossing.gate)() {
                Gate::Open => return Ok(()),
                Gate::Held => tokio::time::sleep(ASKED_AGAIN).await,
                Gate::Shut(why) => return Err(TransferError::Shut(why)),
            }
        }
    }

    /// Gets all shards into the store; gives the digest of what is in each.
    async fn shards(&self) -> Result<Vec<KeyedDigest>, TransferError> {
        let folder = self.crossing.source.to_owned();
        let files = self.permitted.manifest().files.clone();
        let digest_key = *self.crossing.digest_key;
        let source = Arc::new(blocking(move || Source::verify(&folder, files, &digest_key)).await?);
        let total = self.permitted.manifest().total_bytes();
        let mut stored = 0;
        let mut running = FuturesUnordered::new();
        let mut waiting = 0..source.shards();
        loop {
            while running.len() < self.window.size() {
                let Some(number) = waiting.next() else { break };
                running.push(self.shard(Arc::clone(&source), number));
            }
            let Some(number) = running.next().await else { break };
            let start = SHARD_PLAINTEXT_BYTES.saturating_mul(number? as u64);
            stored += total.saturating_sub(start).min(SHARD_PLAINTEXT_BYTES);
            (self.crossing.progress)(stored);
        }
        Ok(source.contents().to_vec())
    }

    /// Names a shard that an earlier crossing has put, where one holds the same.
    async fn is_known(&self, content: &KeyedDigest, number: u64) -> Result<bool, TransferError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).take(content);
        let Some((key, object)) = known else { return Ok(false) };
        // Somebody may have removed it.
        if !self.stands(&sealed_name(&object.digest), object.bytes).await? {
            return Ok(false);
        }
        self.is_there(number, key, object).await?;
        Ok(true)
    }

    /// Notes a shard that stands in the store for another crossing as one of this one.
    async fn is_there(&self, number: u64, key: ShardKey, object: SealedObject) -> Result<(), TransferError> {
        self.known_bytes.fetch_add(object.bytes, Ordering::Relaxed);
        let resume = Arc::clone(&self.resume);
        blocking(move || resume.shard(number, key, object)).await
    }

    /// Gets one shard into the store, unless it is there; gives its number back.
    async fn shard(&self, source: Arc<Source>, number: usize) -> Result<usize, TransferError> {
        let at = number as u64;
        let noted = self.resume.read(|notes| notes.shards.get(&at).cloned());
        if let Some((key, object)) = noted
            && self.stands(&sealed_name(&object.digest), object.bytes).await?
        {
            if self.resume.read(|notes| notes.copied.contains(&at)) {
                // Nobody has to bring it over any more.
                self.is_there(at, key, object).await?;
            }
            return Ok(number);
        }
        if let Some(content) = source.contents().get(number)
            && self.is_known(content, at).await?
        {
            return Ok(number);
        }
        self.may_go_on().await?;
        let resume = Arc::clone(&self.resume);
        let organisation = self.permitted.manifest().organisation.clone();
        let digest_key = *self.crossing.digest_key;
        let room = self.rooms.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (name, body) = blocking(move || {
            let (sealed, key) = source.seal(number, &organisation, &digest_key, room.unwrap_or_default())?;
            let object = object_of(&sealed);
            let name = sealed_name(&object.digest);
            resume.shard(at, key, object)?;
            Ok((name, Bytes::from(sealed)))
        })
        .await?;
        self.put(&name, body.clone()).await?;
        // Where the store still holds the bytes, this would be a copy.
        if body.is_unique() {
            let room = Vec::from(body);
            self.rooms.lock().unwrap_or_else(PoisonError::into_inner).push(room);
        }
        Ok(number)
    }

    /// Gets the sealed index into the store, unless it is there.
    async fn index(&self) -> Result<SealedObject, TransferError> {
        if let Some(object) = self.resume.read(|notes| notes.index.clone())
            && self.stands(&sealed_name(&object.digest), object.bytes).await?
        {
            return Ok(object);
        }
        let resume = Arc::clone(&self.resume);
        let manifest = self.permitted.manifest().clone();
        let data_key = self.crossing.data_key.clone();
        let (object, body) = blocking(move || {
            let index = SealedIndex {
                format: SEALED_INDEX_FORMAT.to_owned(),
                manifest,
                shards: resume.read(|notes| notes.shards.values().map(|(key, _)| key.clone()).collect()),
            };
            let sealed = seal_index(&index, &data_key).map_err(TransferError::seal("sealing the index"))?;
            let object = object_of(&sealed);
            resume.index(object.clone())?;
            Ok((object, Bytes::from(sealed)))
        })
        .await?;
        self.put(&sealed_name(&object.digest), body).await?;
        Ok(object)
    }

    /// Signs the packing list and publishes it.
    async fn list(&self, index: SealedObject) -> Result<(), TransferError> {
        let permit = self.permitted.permit();
        let list = PackingList {
            format: PACKING_LIST_FORMAT.to_owned(),
            organisation: self.permitted.manifest().organisation.clone(),
            from: self.permitted.from().clone(),
            to: self.permitted.to().clone(),
            run: permit.run.clone(),
            artifact: self.permitted.artifact(),
            permit: permit.id.clone(),
            permit_digest: self.permitted.permit_digest(),
            key_commitment: self.crossing.data_key.commitment(),
            shards: self
                .resume
                .read(|notes| notes.shards.values().map(|(_, object)| object.clone()).collect()),
            index,
        };
        // Signatures are deterministic: the same notes give the same bytes after a restart.
        let signed =
            sign_packing_list(self.crossing.signer, &list).map_err(TransferError::seal("signing the packing list"))?;
        let object = object_of(&signed);
        let resume = Arc::clone(&self.resume);
        let noted = object.clone();
        blocking(move || match resume.read(|notes| notes.list.clone()) {
            Some(list) if list == noted => Ok(()),
            Some(_) => Err(resume.unusable("the packing list was signed by another key; give the same one again")),
            None => resume.list(noted),
        })
        .await?;
        if !self.stands(&self.packing_list, object.bytes).await? {
            self.put(&self.packing_list, Bytes::from(signed)).await?;
        } else if !self.holds(&self.packing_list, &signed).await? {
            return Err(TransferError::Occupied(self.packing_list.clone()));
        }
        let resume = Arc::clone(&self.resume);
        blocking(move || resume.complete()).await
    }

    /// Puts one object, trying again while the store asks for patience. A try whose answer was lost may
    /// have had its effect: what then stands there is compared byte for byte.
    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<(), TransferError> {
        let bytes = body.len() as u64;
        let mut tried = 0;
        loop {
            self.may_go_on().await?;
            let (resume, limit) = (Arc::clone(&self.resume), self.permitted.byte_limit());
            if let Err(sum) = blocking(move || resume.reserve(bytes, limit)).await? {
                return Err(self.permitted.too_many_bytes(sum).into());
            }
            tried += 1;
            let failure = match self.crossing.store.put_new(name, body.clone()).await {
                Ok(()) => {
                    self.window.stored();
                    return Ok(());
                }
                Err(StoreError::AlreadyExists(_)) if self.holds(name, &body).await? => return Ok(()),
                Err(StoreError::AlreadyExists(name)) => return Err(TransferError::Occupied(name)),
                Err(failure) => failure,
            };
            if let StoreError::Busy { after, .. } = failure {
                self.window.throttled(after);
            }
            if !failure.is_transient() || tried == TRIES {
                return Err(TransferError::store("putting an object")(failure));
            }
            tracing::debug!(object = %name, tried, "the store will be tried again");
            retry::pause(tried, &failure).await;
            // Asking costs nothing of the byte limit; putting again does.
            if self.stands(name, bytes).await? {
                return match self.holds(name, &body).await? {
                    true => Ok(()),
                    false => Err(TransferError::Occupied(name.clone())),
                };
            }
        }
    }

    /// Whether exactly these bytes stand under a name.
    async fn holds(&self, name: &ObjectName, body: &[u8]) -> Result<bool, TransferError> {
        let mut from = 0;
        loop {
            self.window.may_ask().await;
            let to = from + COMPARED_BYTES;
            let part = retry::patiently(|| self.crossing.store.get_range(name, from..to))
                .await
                .map_err(TransferError::store("reading a stored object back"))?;
            let expected = usize::try_from(from)
                .ok()
                .and_then(|from| body.get(from..))
                .unwrap_or_default();
            let expected = expected.get(..COMPARED_BYTES as usize).unwrap_or(expected);
            if part != expected {
                return Ok(false);
            }
            // A whole part may be followed by more; a shorter one is the end of both.
            if part.len() as u64 != COMPARED_BYTES {
                return Ok(true);
            }
            from = to;
        }
    }

    /// Removes what earlier calls that broke off were about to put and nothing names now, where that is allowed: the
    /// crossing is complete without it. A store that finishes one of them later leaves it to a sweep.
    async fn remove_abandoned(&self) {
        for name in self.resume.read(|notes| notes.abandoned.clone()) {
            if let Err(error) = self.crossing.store.delete(&name).await {
                tracing::debug!(object = %name, %error, "what nothing names was not removed");
            }
        }
    }

    fn sent(&self, already: bool, contents: &[KeyedDigest]) -> Result<Sent, TransferError> {
        let mut shards = KnownShards::default();
        self.resume.read(|notes| {
            for (content, (key, object)) in contents.iter().zip(notes.shards.values()) {
                shards.add(*content, key.clone(), object.clone());
            }
        });
        let (objects, list) = self.resume.read(|notes| {
            let shards = notes.shards.values().map(|(_, object)| object.clone());
            let objects: Vec<_> = shards.chain(notes.index.clone()).chain(notes.list.clone()).collect();
            (objects, notes.list.clone())
        });
        let list = list.ok_or_else(|| self.resume.unusable("it lacks its packing list"))?;
        let elsewhere: u64 = self.resume.read(|notes| {
            let copied = notes.copied.iter().filter_map(|number| notes.shards.get(number));
            copied.map(|(_, object)| object.bytes).sum()
        });
        if already {
            (self.crossing.progress)(self.permitted.manifest().total_bytes());
        }
        Ok(Sent {
            packing_list: self.packing_list.clone(),
            packing_list_digest: list.digest,
            bytes: objects.iter().map(|object| object.bytes).sum::<u64>() - elsewhere,
            copied: elsewhere > 0,
            objects,
            known_bytes: self.known_bytes.load(Ordering::Relaxed),
            shards,
            already,
        })
    }
}

fn object_of(sealed: &[u8]) -> SealedObject {
    SealedObject {
        digest: sha256(sealed),
        bytes: sealed.len() as u64,
    }
}

/// Runs what blocks or computes for long where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, TransferError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(TransferError::local("running a step")(std::io::Error::other(
            "the step was stopped",
        ))),
    }
}
