//! The stores of sites, by what stands below `store:` in the sites file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tidegate_cloud::{Address, AddressError, CloudStore, Environment};
use tidegate_contracts::{Store, StoreAccess, StoreError, WorkerStores};
use tidegate_local::FolderStore;
use tidegate_types::files::{FileError, Sites, SourceText};

use crate::failure::{Failure, While};
use crate::project::Project;

/// Opens the store at `address`, which is `folder:` with a path, or that of a cloud's store; connects to
/// nobody yet.
pub(crate) fn open(address: &str, environment: &Environment) -> Result<Arc<dyn Store>, Failure> {
    let opening = "opening a site's store";
    if Address::is_meant(address) {
        let address = address.parse().while_(opening)?;
        let store = CloudStore::open(address, environment).while_(opening)?;
        return Ok(Arc::new(store));
    }
    let folder = address.strip_prefix("folder:").filter(|folder| !folder.is_empty());
    let folder = folder.ok_or_else(|| Failure::Usage(format!("this program opens no store `{address}`")))?;
    Ok(Arc::new(FolderStore::open(PathBuf::from(folder)).while_(opening)?))
}

/// The variables of this process; those that are not UTF-8 are nobody's credentials.
pub(crate) fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The stores of a project's sites, for workers.
pub(crate) struct SiteStores {
    addresses: BTreeMap<String, String>,
    environment: Environment,
}

impl SiteStores {
    pub(crate) fn of(project: &Project) -> Self {
        let sites = project.sites.sites.keys();
        Self {
            addresses: sites
                .map(|site| (site.to_string(), project.store_address(site)))
                .collect(),
            environment: environment(),
        }
    }
}

#[async_trait]
impl WorkerStores for SiteStores {
    async fn access(&self, site: &str, mailbox: &str, seconds: u64) -> Result<StoreAccess, StoreError> {
        let failed = |why: String| StoreError::Permanent {
            what: format!("letting a worker into the store of site `{site}`"),
            source: std::io::Error::other(why),
        };
        let address = self.addresses.get(site);
        let address = address
            .ok_or_else(|| failed("the sites file does not have it".to_owned()))?
            .clone();
        let credentials = if Address::is_meant(&address) {
            let parsed = address
                .parse()
                .map_err(|error: AddressError| failed(error.to_string()))?;
            let store = CloudStore::open(parsed, &self.environment).map_err(|error| failed(error.to_string()))?;
            store.for_worker(mailbox, seconds).await?
        } else {
            BTreeMap::new()
        };
        Ok(StoreAccess { address, credentials })
    }
}

/// What is wrong with the addresses of clouds' stores, at its place.
pub(crate) fn faults(sites: &Sites, source: &SourceText<'_>) -> Vec<FileError> {
    let clouds = sites.sites.iter().filter(|(_, site)| Address::is_meant(&site.store));
    let faults = clouds.filter_map(|(name, site)| {
        let error = site.store.parse::<Address>().err()?;
        let found = source.text.lines().enumerate().find_map(|(number, line)| {
            let column = line.find(&site.store)?;
            Some((number, line.get(..column)?.chars().count(), line))
        });
        let (line, column, offending) = found.unwrap_or_default();
        Some(FileError {
            file: source.file.to_owned(),
            line: line as u64 + 1,
            column: column as u64 + 1,
            offending: offending.to_owned(),
            message: format!("the store of site `{name}`: {}", error.why()),
            help: Some(
                "write `s3://bucket/prefix`, `gs://bucket/prefix` or `az://account/container/prefix`".to_owned(),
            ),
        })
    });
    faults.collect()
}
