//! A site's store, by what stands below `store:` in the sites file.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use tidegate_cloud::{Address, CloudStore, Environment, LentStore};
use tidegate_contracts::Store;
use tidegate_local::FolderStore;

use crate::{MachineError, While};

/// Opens the store at `address`, which is `folder:` with a path, or that of a cloud's store, no faster than `bandwidth` in
/// bytes per second; connects to nobody yet.
///
/// # Errors
/// When the address is none, or `environment` holds settings that cannot be.
pub fn open(address: &str, environment: &Environment, bandwidth: Option<u64>) -> Result<Arc<dyn Store>, MachineError> {
    let opening = "opening a site's store";
    if Address::is_meant(address) {
        let address = address.parse().while_(opening)?;
        let store = CloudStore::open_paced(address, environment, bandwidth).while_(opening)?;
        return Ok(Arc::new(store));
    }
    let folder = address.strip_prefix("folder:").filter(|folder| !folder.is_empty());
    let folder =
        folder.ok_or_else(|| MachineError::new(opening, format!("this program opens no store `{address}`")))?;
    Ok(Arc::new(FolderStore::open(PathBuf::from(folder)).while_(opening)?))
}

/// Opens what a keeper lends of another site's store.
pub(crate) fn borrow(lent: &str) -> Result<Arc<dyn Store>, String> {
    let store = LentStore::open(lent).map_err(|error| error.to_string())?;
    Ok(Arc::new(store))
}

/// Something in the network through which machines reach each other that all reach the store at `address`: its server,
/// where it is not a cloud's. A folder is reached by one machine alone.
pub(crate) async fn towards(address: &str) -> Option<IpAddr> {
    if !Address::is_meant(address) {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    let endpoint = address.parse::<Address>().ok()?.endpoint?;
    let port = endpoint.port_or_known_default()?;
    let host = endpoint.host_str()?.trim_matches(['[', ']']).to_owned();
    let mut found = tokio::net::lookup_host((host, port)).await.ok()?;
    found.next().map(|address| address.ip())
}

/// The variables of this process; those that are not UTF-8 are nobody's credentials.
#[must_use]
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
