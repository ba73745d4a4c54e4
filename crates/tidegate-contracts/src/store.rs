//! Object stores.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

/// The name of an object: 1 to 1,024 bytes, components of `A-Z a-z 0-9 . _ -` between single `/`,
/// none of them `.` or `..`. Names with other characters do not travel well between stores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

/// A text that cannot name an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot name an object: use `A-Z a-z 0-9 . _ -` between single slashes, at most 1,024 bytes, and no `.` or `..` alone"
)]
pub struct InvalidObjectName(String);

impl ObjectName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// When the name is empty, too long, or holds a component that is not allowed.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidObjectName> {
        let name = name.into();
        let component_ok = |c: &str| {
            !c.is_empty()
                && c != "."
                && c != ".."
                && c.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if name.len() <= 1024 && name.split('/').all(component_ok) {
            Ok(Self(name))
        } else {
            Err(InvalidObjectName(name.chars().take(80).collect()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ObjectName {
    type Err = InvalidObjectName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

/// What a store says about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub name: ObjectName,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Why a store refuses most of what it refuses.
pub const NOT_ALLOWED: &str = "the credentials do not allow it";

/// What can go wrong with a store. `what` says what was being done to which object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The object is not there.
    #[error("object `{0}` is not in the store")]
    NotFound(ObjectName),
    /// An object of that name is already there; nothing was changed.
    #[error("object `{0}` is already in the store; it was not changed")]
    AlreadyExists(ObjectName),
    /// The object is longer than the caller accepts.
    #[error("object `{name}` has {bytes} bytes, more than the {limit} that are accepted")]
    TooLarge {
        /// Which object.
        name: ObjectName,
        /// Its length.
        bytes: u64,
        /// The most that the caller accepts.
        limit: u64,
    },
    /// The store asks for less: try again later.
    #[error("the store is busy while {what}")]
    Busy {
        /// What was being done to which object.
        what: String,
        /// How long to wait before the next try, where the store says it.
        after: Option<Duration>,
    },
    /// The store refused it.
    #[error("the store refused {what}: {why}")]
    Denied {
        /// What was being done to which object.
        what: String,
        /// Why, as far as that is known: [`NOT_ALLOWED`], or what can be done about it.
        why: String,
    },
    /// Something that may pass: a reset connection, a stalled answer.
    #[error("the store failed while {what}: {source}")]
    Transient {
        /// What was being done to which object.
        what: String,
        /// What happened.
        source: std::io::Error,
    },
    /// Something that will not pass by itself: a full disk, a broken folder.
    #[error("the store failed while {what}: {source}")]
    Permanent {
        /// What was being done to which object.
        what: String,
        /// What happened.
        source: std::io::Error,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Transient { .. })
    }
}

/// A place for immutable objects.
///
/// # Contract
/// - An object is never changed: [`Store::put_new`] creates it whole or not at all. Of several
///   concurrent callers with the same name exactly one succeeds and all others see
///   [`StoreError::AlreadyExists`]. Once it returned, the object survives a crash of the store.
/// - A reader sees a whole object or none, never a part, and sees it as soon as `put_new` returned.
/// - [`Store::delete`] of what is gone succeeds.
/// - [`Store::list`] is sorted by name bytewise and complete for objects that were there before the
///   call; it is for mailboxes and for garbage collection, never for deciding what was sent.
/// - A call that returns an error other than `AlreadyExists` may or may not have had its effect, and
///   can be repeated.
/// - Dropping a call's future at any point leaves no part of an object under its name.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Creates an object that must not be there yet.
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError>;

    /// Reads a whole object of at most `limit` bytes.
    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError>;

    /// As [`Store::get`], into `room`, whose content is lost: whoever reads many objects in turn uses one buffer for all,
    /// where the store can.
    async fn get_in(&self, name: &ObjectName, limit: u64, room: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        drop(room);
        Ok(self.get(name, limit).await?.into())
    }

    /// Reads a part of an object; a range that ends behind the object ends with it, one that begins
    /// behind it is empty.
    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Says whether an object is there and how long it is.
    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError>;

    /// At most 1,000 objects whose names begin with `prefix` (any text, not only whole components) and
    /// are greater than `after`.
    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError>;

    /// Removes an object.
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;

    /// A text by which whoever has it reads these objects whole, and does nothing else, for as long as `time`: a secret. None
    /// where the store lends nothing.
    async fn lend(&self, names: &[ObjectName], time: Duration) -> Result<Option<String>, StoreError> {
        let _ = (names, time);
        Ok(None)
    }

    /// How often those who wait for an object may look.
    fn pace(&self) -> Pace {
        Pace::FAR
    }
}

/// Convenience over [`Store`], so that implementations stay small.
#[async_trait]
pub trait StoreExt: Store {
    /// All objects under a prefix, at most `limit` of them.
    async fn list_all(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut all: Vec<ObjectInfo> = Vec::new();
        loop {
            let page = self.list(prefix, all.last().map(|info| &info.name)).await?;
            let full = page.len() >= 1000;
            all.extend(page);
            if !full || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
        }
    }

    /// Creates an object, or finds that exactly the same bytes are already there.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] when other bytes are there under that name.
    async fn put_same(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        match self.put_new(name, body.clone()).await {
            Err(StoreError::AlreadyExists(existing)) => {
                let there = self.get_range(name, 0..body.len() as u64 + 1).await?;
                if there == body {
                    Ok(())
                } else {
                    Err(StoreError::AlreadyExists(existing))
                }
            }
            other => other,
        }
    }
}

impl<S: Store + ?Sized> StoreExt for S {}

/// A store as a worker finds it.
#[derive(Clone, Default)]
pub struct StoreAccess {
    /// Its address, as the worker's site sees it.
    pub address: String,
    /// Variables with the credentials that open it, and nothing that does not concern the worker's attempt.
    pub credentials: BTreeMap<String, String>,
    /// For how long they open it; none where they do not end.
    pub lasts: Option<Duration>,
}

/// Without the credentials.
impl fmt::Debug for StoreAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreAccess")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Lets workers into the stores of their sites.
#[async_trait]
pub trait WorkerStores: Send + Sync {
    /// Access to the store of `site` for the worker whose mailbox is below `mailbox`, for about `seconds`:
    /// [`StoreAccess::lasts`] says for how long.
    ///
    /// # Errors
    /// When the site has no store here, or nobody gives credentials that are narrow enough: a worker is
    /// never given more.
    async fn access(&self, site: &str, mailbox: &str, seconds: u64) -> Result<StoreAccess, StoreError>;
}

/// How often it is reasonable to look whether something has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    least: Duration,
    most: Duration,
}

impl Pace {
    /// On this machine, where a look costs next to nothing.
    pub const NEAR: Self = Self {
        least: Duration::from_millis(1),
        most: Duration::from_millis(25),
    };
    /// Across a network, where every look is a request that is paid for.
    pub const FAR: Self = Self {
        least: Duration::from_millis(20),
        most: Duration::from_secs(1),
    };

    /// The longest pause between two looks.
    #[must_use]
    pub const fn most(self) -> Duration {
        self.most
    }
}

/// How long somebody who waits pauses between two looks: an eighth of the time that was waited already, so
/// that waiting adds an eighth at the most to what is short, and what takes long costs few requests.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pace: Pace,
    since: Instant,
}

impl Patience {
    /// Begins to wait.
    #[must_use]
    pub fn begin(pace: Pace) -> Self {
        Self {
            pace,
            since: Instant::now(),
        }
    }

    /// How long to pause before the next look.
    #[must_use]
    pub fn pause(&self) -> Duration {
        self.after(self.since.elapsed())
    }

    fn after(self, waited: Duration) -> Duration {
        (waited / 8).clamp(self.pace.least, self.pace.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_the_wait_and_have_bounds() {
        let after = |pace, milliseconds| {
            Patience::begin(pace)
                .after(Duration::from_millis(milliseconds))
                .as_millis()
        };
        assert_eq!(
            [0, 16, 80, 400, 60_000].map(|waited| after(Pace::NEAR, waited)),
            [1, 2, 10, 25, 25]
        );
        assert_eq!([0, 400, 60_000].map(|waited| after(Pace::FAR, waited)), [20, 50, 1000]);
    }
}
