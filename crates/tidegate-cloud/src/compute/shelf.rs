//! The program of a site's machines, in the site's own store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tidegate_contracts::later::Later;
use tidegate_contracts::{ObjectName, Store, StoreError};
use tidegate_seal::digest::sha256;
use tidegate_types::Digest;
use url::Url;

use crate::store::CloudStore;

/// How long a machine may take from its start until it has begun to fetch the program.
const VALID: Duration = Duration::from_secs(3600);

/// Where machines of one site find the program that runs their jobs: in the site's store, under its digest.
#[derive(Debug, Clone)]
pub struct ProgramShelf {
    store: CloudStore,
    program: PathBuf,
    digest: Later<Result<Digest, String>>,
}

/// The program, as a machine is told of it.
#[derive(Debug, Clone)]
pub(crate) struct Offered {
    /// Reads it and nothing else, for an hour.
    pub(crate) url: Url,
    pub(crate) digest: Digest,
    /// Certificate authorities that the store may be vouched for by.
    pub(crate) certificates: Option<PathBuf>,
}

impl ProgramShelf {
    /// The shelf of `program`, with this digest, in `store`.
    #[must_use]
    pub fn new(store: CloudStore, program: PathBuf, digest: Later<Result<Digest, String>>) -> Self {
        Self { store, program, digest }
    }

    /// The program here.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Brings the program into the store, unless it is there, and lets it be read for an hour.
    pub(crate) async fn offer(&self) -> Result<Offered, String> {
        let digest = *self.digest.get().as_ref().map_err(Clone::clone)?;
        let name = ObjectName::new(format!("programs/{}", digest.to_hex())).map_err(|error| error.to_string())?;
        match self.store.head(&name).await {
            Ok(_) => {}
            Err(StoreError::NotFound(_)) => {
                tracing::info!(%digest, "bringing the program into the store");
                let bytes = read(&self.program, digest).await?;
                match self.store.put_new(&name, Bytes::from(bytes)).await {
                    Ok(()) | Err(StoreError::AlreadyExists(_)) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            Err(error) => return Err(error.to_string()),
        }
        let url = self
            .store
            .readable(&name, VALID)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Offered {
            url,
            digest,
            certificates: self.store.address().certificates.clone(),
        })
    }
}

/// The program's bytes, unless they are not those any more that permits and tickets name: under a digest they would stay in
/// the store for good.
async fn read(program: &Path, digest: Digest) -> Result<Vec<u8>, String> {
    let named = program.display();
    let bytes = tokio::fs::read(program).await;
    let bytes = bytes.map_err(|error| format!("reading {named}: {error}"))?;
    if sha256(&bytes) == digest {
        Ok(bytes)
    } else {
        Err(format!("{named} was changed meanwhile: start the same command again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_was_replaced_is_not_brought_under_the_digest_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tidegate-machine");
        std::fs::write(&program, "one").unwrap();
        assert_eq!(read(&program, sha256(b"one")).await.unwrap(), b"one");
        std::fs::write(&program, "two").unwrap();
        let told = read(&program, sha256(b"one")).await.unwrap_err();
        assert!(told.contains("start the same command again"), "{told}");
    }
}
