//! Objects that somebody else made, which a dataset is read from.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::str::FromStr;

use bytes::Bytes;
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta};
use percent_encoding::percent_decode_str;
use tidegate_contracts::StoreError;
use tidegate_types::glob;

use crate::address::{Address, AddressError, parts};
use crate::credentials::Environment;
use crate::failure::Failure;
use crate::store::{CloudStore, OpenError, collect};

/// Objects that one source may have.
const MOST_OBJECTS: usize = 10_000;
/// Requests of one listing.
const PAGES: usize = 10_000;
/// What the objects of a folder are named by that are read.
const ENDINGS: [&str; 4] = [".csv", ".tsv", ".txt", ".parquet"];

/// Where the objects of a source are: the address of a store whose path names an object, a folder, or several of
/// them by `*`, which stands for any text between two slashes.
///
/// ```text
/// s3://BUCKET/PATH[?endpoint=URL&region=NAME&certificates=FILE]
/// gs://BUCKET/PATH[?endpoint=URL&certificates=FILE]
/// az://ACCOUNT/CONTAINER/PATH[?endpoint=URL&certificates=FILE]
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceAddress {
    store: Address,
    /// The parts of the path between the slashes.
    pattern: Vec<String>,
}

impl FromStr for SourceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = |why: String| AddressError::new(text, &why);
        let (store, path) = parts(text).map_err(wrong)?;
        if store.role.is_some() {
            return Err(wrong(
                "the option `role` is not known here: no worker reads a source".to_owned(),
            ));
        }
        let signs = path.to_ascii_lowercase();
        if signs.contains("%2a") || signs.contains("%3f") {
            return Err(wrong(
                "names with `*` or `?` in them cannot be told from patterns".to_owned(),
            ));
        }
        let decoded = percent_decode_str(&path).decode_utf8();
        let path = decoded.map_err(|_| wrong("its path is not UTF-8".to_owned()))?;
        let pattern: Vec<String> = path.trim_end_matches('/').split('/').map(str::to_owned).collect();
        if pattern.iter().any(String::is_empty) {
            return Err(wrong(
                "it names no object, as in `s3://bucket/folder/visits-*.csv`".to_owned(),
            ));
        }
        Ok(Self { store, pattern })
    }
}

/// Without its options.
impl fmt::Display for SourceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.store, self.pattern.join("/"))
    }
}

impl SourceAddress {
    /// What the names of all its objects begin with.
    fn beginning(&self) -> String {
        let fixed = self.pattern.iter().take_while(|part| !part.contains('*'));
        let fixed: Vec<&str> = fixed.map(String::as_str).collect();
        let more = fixed.len() < self.pattern.len() && !fixed.is_empty();
        format!("{}{}", fixed.join("/"), if more { "/" } else { "" })
    }

    /// Whether it means the object of this name: itself, or one in a folder that it means.
    fn means(&self, key: &str) -> bool {
        let parts: Vec<&str> = key.split('/').collect();
        let fits = self
            .pattern
            .iter()
            .zip(&parts)
            .all(|(pattern, part)| glob::matches(pattern, part));
        let inner = parts.get(self.pattern.len()).map(|name| name.to_ascii_lowercase());
        match parts.len().checked_sub(self.pattern.len()) {
            Some(0) => fits,
            Some(1) => {
                let named =
                    |name: String| !name.starts_with('.') && ENDINGS.iter().any(|ending| name.ends_with(ending));
                fits && inner.is_some_and(named)
            }
            _ => false,
        }
    }
}

/// One object of a source, as it was when it was listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceObject {
    /// Its name in the bucket.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// What the store tells one content under this name from another by.
    pub version: String,
    etag: Option<String>,
    /// Seconds since 1970.
    time: i64,
}

fn version(meta: &ObjectMeta) -> String {
    format!("{} {}", meta.e_tag.as_deref().unwrap_or_default(), meta.last_modified)
}

/// The objects of a source. Nothing is ever written there.
#[derive(Debug, Clone)]
pub struct Source {
    address: SourceAddress,
    store: CloudStore,
}

impl Source {
    /// The source at `address`, with the credentials that `environment` has for it. Connects to nobody yet.
    ///
    /// # Errors
    /// When certificates cannot be read, or the environment's settings contradict each other.
    pub fn open(address: SourceAddress, environment: &Environment) -> Result<Self, OpenError> {
        let store = CloudStore::open(address.store.clone(), environment)?;
        Ok(Self { address, store })
    }

    /// Its objects in the order of their names.
    ///
    /// # Errors
    /// When the store cannot be listed, or there are more than 10,000.
    pub async fn objects(&self) -> Result<Vec<SourceObject>, StoreError> {
        let what = || format!("listing the source `{}`", self.address);
        let permanent = |why: &str| StoreError::Permanent {
            what: what(),
            source: io::Error::other(why.to_owned()),
        };
        let mut beginning = self.address.beginning();
        if self.store.leaves_out_prefix() {
            beginning.pop();
        }
        let mut found = BTreeMap::new();
        let mut token = None;
        for _ in 0..PAGES {
            let options = PaginatedListOptions {
                page_token: token.take(),
                ..PaginatedListOptions::default()
            };
            let wanted = Some(beginning.as_str()).filter(|beginning| !beginning.is_empty());
            let page = self.store.pages.list_paginated(wanted, options);
            let page = self
                .store
                .call(&what, 0, page)
                .await
                .map_err(|failure| failure.or(&what))?;
            for meta in page.result.objects {
                let key = meta.location.to_string();
                // Nothing is in them: some are the marks that tools make for folders, with names like those of files.
                if meta.size > 0 && self.address.means(&key) {
                    let version = version(&meta);
                    found.insert(key, (meta.size, version, meta.e_tag, meta.last_modified.timestamp()));
                }
            }
            if found.len() > MOST_OBJECTS {
                return Err(permanent("there are more than 10,000 objects; name fewer"));
            }
            token = page.page_token;
            if token.is_none() {
                let objects = found
                    .into_iter()
                    .map(|(key, (bytes, version, etag, time))| SourceObject {
                        key,
                        bytes,
                        version,
                        etag,
                        time,
                    });
                return Ok(objects.collect());
            }
        }
        Err(permanent("too many objects of others stand between"))
    }

    /// Reads a part of an object, in one request.
    ///
    /// # Errors
    /// When the object is gone or another one since it was listed, or the store fails.
    pub async fn read(&self, object: &SourceObject, range: Range<u64>) -> Result<Bytes, StoreError> {
        let what = || format!("reading `{}` of the source `{}`", object.key, self.address);
        let permanent = |why: String| StoreError::Permanent {
            what: what(),
            source: io::Error::other(why),
        };
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let path = Path::parse(&object.key).map_err(|error| permanent(error.to_string()))?;
        let wanted = range.end - range.start;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: object.etag.clone(),
            ..GetOptions::default()
        };
        let changed = || permanent("it changed while it was read; run again when nothing writes to it".to_owned());
        let result = match self
            .store
            .call(&what, 0, self.store.objects.get_opts(&path, options))
            .await
        {
            Ok(result) => result,
            Err(Failure::NotFound | Failure::Exists | Failure::Behind) => return Err(changed()),
            Err(failure) => return Err(failure.or(&what)),
        };
        let given = result.range.end.saturating_sub(result.range.start);
        // Also where a server does not look at the condition. The time of a listing is finer than that of an answer.
        let same = object.etag.is_none() || result.meta.e_tag.is_none() || result.meta.e_tag == object.etag;
        if given != wanted
            || result.meta.size != object.bytes
            || !same
            || object.time != result.meta.last_modified.timestamp()
        {
            return Err(changed());
        }
        Ok(collect(result, wanted, Vec::new(), &self.store.pace, &what)
            .await?
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SourceAddress {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_source_means_an_object_a_folder_or_a_pattern() {
        for (text, beginning, meant, others) in [
            (
                "s3://data/raw/visits.csv",
                "raw/visits.csv",
                &["raw/visits.csv"][..],
                &["raw/visits.csv2", "visits.csv", "x/raw/visits.csv"][..],
            ),
            (
                "gs://data/raw/",
                "raw",
                &["raw/a.csv", "raw/b.PARQUET"],
                &["raw2/a.csv", "raw/deep/a.csv", "raw/.a.csv", "raw/readme.md"],
            ),
            (
                "az://mary/data/20*/visits-*.csv?endpoint=https://blobs.example.org",
                "",
                &["2026/visits-1.csv", "20/visits-.csv"],
                &["2026/deep/visits-1.csv", "1999/visits-1.csv", "2026/visits-1.tsv"],
            ),
            (
                "s3://data/raw/*/a.csv",
                "raw/",
                &["raw/x/a.csv"],
                &["raw/a.csv", "raw/x/y/a.csv"],
            ),
            (
                "s3://data/all%20raw/a.csv",
                "all raw/a.csv",
                &["all raw/a.csv"],
                &["all%20raw/a.csv"],
            ),
        ] {
            let source = address(text);
            assert_eq!(source.beginning(), beginning, "{text}");
            for key in meant {
                assert!(source.means(key), "{text} {key}");
            }
            for key in others {
                assert!(!source.means(key), "{text} {key}");
            }
        }
        assert_eq!(
            address("s3://data/raw/a.csv?region=eu-central-1").to_string(),
            "s3://data/raw/a.csv"
        );
    }

    #[test]
    fn what_names_no_object_is_told_with_its_reason() {
        for (text, reason) in [
            ("s3://data", "names no object"),
            ("s3://data/", "names no object"),
            ("s3://data/a//b.csv", "names no object"),
            ("s3://data/a.csv?role=arn:aws:iam::1:role/worker", "role"),
            ("s3://key:secret@data/a.csv", "credentials"),
            ("s3://data/%ff.csv", "UTF-8"),
            ("s3://data/what%3F.csv", "patterns"),
            ("s3://data/all%2A.csv", "patterns"),
            ("https://example.org/a.csv", "none of"),
        ] {
            let error = text.parse::<SourceAddress>().unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
