//! The stores of sites, by what stands below `store:` in the sites file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use tidegate_cloud::{
    Address, AddressError, CloudStore, Environment, GoogleKmsAddress, GoogleKmsCustody, KeyVaultAddress,
    KeyVaultCustody, KmsAddress, KmsCustody, SourceAddress, VaultAddress, VaultCustody,
};
use tidegate_contracts::{Custody, ObjectName, Store, StoreAccess, StoreError, WorkerStores};
use tidegate_local::{FileCustody, Pkcs11Address, Pkcs11Custody};
pub(crate) use tidegate_machine::stores::environment;
use tidegate_seal::random::random_bytes;
use tidegate_transfer::patiently;
use tidegate_types::files::sites::{Site, TransferRules};
use tidegate_types::files::{Catalog, FileError, Sites, SourceText};
use zeroize::Zeroizing;

use crate::failure::{Failure, While};
use crate::project::Project;

/// Opens the store at `address`; connects to nobody yet.
pub(crate) fn open(address: &str, environment: &Environment) -> Result<Arc<dyn Store>, Failure> {
    open_paced(address, environment, None)
}

/// As [`open`]; no faster than the site's `transfer:` allows.
pub(crate) fn open_paced(
    address: &str,
    environment: &Environment,
    rules: Option<&TransferRules>,
) -> Result<Arc<dyn Store>, Failure> {
    let bandwidth = rules.and_then(|rules| rules.bandwidth).map(|rate| rate.0.0);
    Ok(tidegate_machine::stores::open(address, environment, bandwidth)?)
}

/// Opens the custody of a private site's keys: a file below `folder`, a token, or a service.
pub(crate) async fn custody(
    site: &Site,
    folder: &Path,
    environment: &Environment,
) -> Result<Arc<dyn Custody>, Failure> {
    // Where something was wrapped already, a new key would only hide that the old one is lost.
    let first = !folder.join("keys").join("site-keys.json").exists();
    custody_that(first, site, folder, environment).await
}

/// As [`custody`]; a wrapping key is made where there is none, if `creates`.
pub(crate) async fn custody_that(
    creates: bool,
    site: &Site,
    folder: &Path,
    environment: &Environment,
) -> Result<Arc<dyn Custody>, Failure> {
    let opening = "opening the custody of the site's keys";
    // Where something was wrapped already, credentials of another account are likelier than a key that is lost, and a
    // new one in a service would make everything look lost.
    let wrapped_before = folder.join("keys").join("site-keys.json").exists();
    match site.custody.as_deref().unwrap_or_default() {
        vault if vault.starts_with("vault:") => {
            let address = vault.parse().while_(opening)?;
            Ok(Arc::new(VaultCustody::open(address, environment).while_(opening)?))
        }
        service if service.starts_with("aws-kms:") => {
            let address: KmsAddress = service.parse().while_(opening)?;
            let custody = KmsCustody::open(address, environment).while_(opening)?;
            if creates && !wrapped_before {
                custody.create().await.while_(opening)?;
            }
            Ok(Arc::new(custody))
        }
        service if service.starts_with("gcp-kms:") => {
            let address = service.parse().while_(opening)?;
            Ok(Arc::new(GoogleKmsCustody::open(address, environment).while_(opening)?))
        }
        service if service.starts_with("key-vault:") => {
            let address: KeyVaultAddress = service.parse().while_(opening)?;
            let custody = KeyVaultCustody::open(address, environment).while_(opening)?;
            if creates && !wrapped_before {
                custody.create().await.while_(opening)?;
            }
            Ok(Arc::new(custody))
        }
        token if token.starts_with("pkcs11:") => {
            let address: Pkcs11Address = token.parse().while_(opening)?;
            let pin = environment.get("TIDEGATE_PKCS11_PIN").filter(|pin| !pin.is_empty());
            let pin = pin.ok_or_else(|| Failure::failed(opening, "set TIDEGATE_PKCS11_PIN"))?;
            let custody = Pkcs11Custody::new(address, pin.clone().into());
            if !custody.takes_pin().await.while_(opening)? {
                // Tokens lock themselves after a few tries: nobody tries again before a person has looked.
                return Err(Failure::Usage(
                    "the token of `custody:` does not take the PIN in TIDEGATE_PKCS11_PIN".to_owned(),
                ));
            }
            if creates {
                custody.create().await.while_(opening)?;
            }
            Ok(Arc::new(custody))
        }
        "file:" => {
            let file = folder.join("keys").join("custody.key");
            let passphrase = environment.get("TIDEGATE_CUSTODY_PASSPHRASE");
            let passphrase = passphrase.filter(|text| !text.is_empty()).cloned().map(Zeroizing::new);
            let custody = if creates {
                FileCustody::open_or_create(file, passphrase)
            } else {
                FileCustody::open(file, passphrase)
            };
            Ok(Arc::new(custody.while_(opening)?))
        }
        other => Err(Failure::Usage(format!("this program opens no custody `{other}`"))),
    }
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
        if Address::is_meant(&address) {
            let parsed = address
                .parse()
                .map_err(|error: AddressError| failed(error.to_string()))?;
            let store = CloudStore::open(parsed, &self.environment).map_err(|error| failed(error.to_string()))?;
            let session = patiently(|| store.for_worker(mailbox, seconds)).await?;
            return Ok(StoreAccess {
                address,
                credentials: session.variables,
                lasts: Some(session.lasts),
            });
        }
        Ok(StoreAccess {
            address,
            ..StoreAccess::default()
        })
    }
}

/// What came of trying a store.
#[derive(Debug, Serialize)]
pub(crate) struct Trial {
    pub(crate) site: String,
    /// Its address without options.
    pub(crate) store: String,
    /// What does not work, with the reason.
    pub(crate) faults: Vec<String>,
    /// What would make it work, as text for the cloud's own tools.
    pub(crate) grant: Option<String>,
}

/// Tries on every store that is not below the state folder what a run does there.
pub(crate) async fn try_all(project: &Project) -> Result<Vec<Trial>, Failure> {
    let environment = environment();
    let workers = SiteStores::of(project);
    let mut trials = Vec::new();
    for (name, site) in &project.sites.sites {
        if site.store == "folder:" {
            continue;
        }
        let address = project.store_address(name);
        let store = open(&address, &environment)?;
        let mut faults = try_out(&*store).await?;
        let cloud = if Address::is_meant(&address) {
            Some(address.parse::<Address>().while_("reading an address")?)
        } else {
            None
        };
        if site.compute.is_some() && faults.is_empty() {
            faults.extend(try_worker(&workers, name.as_str(), &*store).await?);
        }
        trials.push(Trial {
            site: name.to_string(),
            store: cloud.as_ref().map_or_else(|| address.clone(), ToString::to_string),
            grant: cloud.filter(|_| !faults.is_empty()).map(|cloud| cloud.needed_grant()),
            faults,
        });
    }
    Ok(trials)
}

/// What came of trying the custody of a private site's keys.
#[derive(Debug, Serialize)]
pub(crate) struct CustodyTrial {
    pub(crate) site: String,
    /// Its address in the sites file.
    pub(crate) custody: String,
    /// What does not work, with the reason.
    pub(crate) fault: Option<String>,
}

/// Tries to wrap and open a key by the custody of a private site, where it is a token or a service. None where it
/// is a file, or where its first key comes with the first run.
pub(crate) async fn try_custody(project: &Project) -> Result<Option<CustodyTrial>, Failure> {
    let name = project.home()?;
    let Some(site) = project.sites.sites.get(&name) else {
        return Ok(None);
    };
    let address = site.custody.clone().unwrap_or_default();
    let folder = project.layout.site(&name);
    let makes_keys = ["pkcs11:", "aws-kms:", "key-vault:"]
        .iter()
        .any(|kind| address.starts_with(kind));
    let made_by_first_run = makes_keys && !folder.join("keys").join("site-keys.json").exists();
    if address == "file:" || made_by_first_run {
        return Ok(None);
    }
    let tried = async {
        let context = "tidegate check";
        let key = Zeroizing::new(random_bytes::<32>().while_("making a key to try with")?);
        let custody = custody_that(false, site, &folder, &environment()).await?;
        let wrapped = custody.wrap(&key, context).await.while_("wrapping a key")?;
        let opened = custody.unwrap_key(&wrapped, context).await;
        if Zeroizing::new(opened.while_("opening a wrapped key")?) == key {
            Ok(())
        } else {
            Err(Failure::failed("opening a wrapped key", "another key came back"))
        }
    };
    let fault = tried.await.err().map(|failure| failure.to_string());
    Ok(Some(CustodyTrial {
        site: name.to_string(),
        custody: address,
        fault,
    }))
}

/// What a run needs of a store and cannot do there.
async fn try_out(store: &dyn Store) -> Result<Vec<String>, Failure> {
    let trying = "naming an object to try with";
    let random = u64::from_be_bytes(random_bytes().while_(trying)?);
    let name = ObjectName::new(format!("probe/{random:016x}")).while_(trying)?;
    let body = Bytes::from_static(b"tidegate check");
    let mut faults = Vec::new();
    if let Err(error) = store.put_new(&name, body.clone()).await {
        faults.push(format!("creating an object: {error}"));
        if let Err(error) = store.list("probe/", None).await {
            faults.push(format!("listing objects: {error}"));
        }
        return Ok(faults);
    }
    match store.put_new(&name, Bytes::from_static(b"another")).await {
        Err(StoreError::AlreadyExists(_)) => {}
        Err(error) => faults.push(format!("creating an object a second time: {error}")),
        Ok(()) => faults.push("creating an object a second time: the store changed what was there".to_owned()),
    }
    match store.get(&name, 100).await {
        Ok(there) if there == body => {}
        Ok(_) => faults.push("reading an object: other bytes came back".to_owned()),
        Err(error) => faults.push(format!("reading an object: {error}")),
    }
    match store.list("probe/", None).await {
        Ok(listed) if listed.iter().any(|info| info.name == name) => {}
        Ok(_) => faults.push("listing objects: what was created is not listed".to_owned()),
        Err(error) => faults.push(format!("listing objects: {error}")),
    }
    if let Err(error) = store.delete(&name).await {
        faults.push(format!("removing an object: {error}"));
    }
    Ok(faults)
}

/// Whether a worker gets into the store of its site.
async fn try_worker(stores: &SiteStores, site: &str, owner: &dyn Store) -> Result<Vec<String>, Failure> {
    let trying = "naming an object to try with";
    let mailbox = "mailbox/check/check/1-0/";
    let access = match stores.access(site, mailbox, 900).await {
        Ok(access) => access,
        Err(error) => return Ok(vec![format!("letting a worker in: {error}")]),
    };
    let store = open(&access.address, &access.credentials)?;
    let name = ObjectName::new(format!("{mailbox}in/000001.json")).while_(trying)?;
    let mut faults = Vec::new();
    match store.get(&name, 100).await {
        Ok(_) | Err(StoreError::NotFound(_)) => {}
        Err(error) => faults.push(format!("letting a worker read: {error}")),
    }
    let random = u64::from_be_bytes(random_bytes().while_(trying)?);
    let name = ObjectName::new(format!("{mailbox}out/{random:016x}")).while_(trying)?;
    match store.put_new(&name, Bytes::from_static(b"tidegate check")).await {
        Ok(()) => {
            if let Err(error) = owner.delete(&name).await {
                faults.push(format!("removing what a worker created: {error}"));
            }
        }
        Err(error) => faults.push(format!("letting a worker create: {error}")),
    }
    Ok(faults)
}

/// What is wrong with the addresses of clouds' stores and of key services, at its place.
pub(crate) fn faults(sites: &Sites, source: &SourceText<'_>) -> Vec<FileError> {
    let mut faults = Vec::new();
    for (name, site) in &sites.sites {
        if Address::is_meant(&site.store)
            && let Err(error) = site.store.parse::<Address>()
        {
            let help = "write `s3://bucket/prefix`, `gs://bucket/prefix` or `az://account/container/prefix`";
            faults.push(fault(
                source,
                &site.store,
                format!("the store of site `{name}`: {}", error.why()),
                help,
            ));
        }
        let custody = site.custody.as_deref().unwrap_or_default();
        let wrong = match custody.split_once(':') {
            Some(("vault", _)) => custody
                .parse::<VaultAddress>()
                .err()
                .map(|error| (error.why().to_owned(), "write `vault:https://host:8200/mount/key`")),
            Some(("aws-kms", _)) => custody.parse::<KmsAddress>().err().map(|error| {
                let help = "write `aws-kms://REGION/NAME`";
                (error.why().to_owned(), help)
            }),
            Some(("gcp-kms", _)) => custody.parse::<GoogleKmsAddress>().err().map(|error| {
                let help = "write `gcp-kms://PROJECT/LOCATION/KEYRING/KEY`";
                (error.why().to_owned(), help)
            }),
            Some(("key-vault", _)) => custody.parse::<KeyVaultAddress>().err().map(|error| {
                let help = "write `key-vault:https://VAULT.vault.azure.net/NAME`";
                (error.why().to_owned(), help)
            }),
            Some(("pkcs11", _)) => custody.parse::<Pkcs11Address>().err().map(|error| {
                let help = "write `pkcs11:token=LABEL;object=NAME?module-path=FILE`";
                (error.why().to_owned(), help)
            }),
            _ => None,
        };
        if let Some((why, help)) = wrong {
            let message = format!("the custody of site `{name}`: {why}");
            faults.push(fault(source, custody, message, help));
        }
    }
    faults
}

/// What is wrong with the addresses of sources in stores of clouds, at its place.
pub(crate) fn source_faults(catalog: &Catalog, text: &SourceText<'_>) -> Vec<FileError> {
    let mut faults = Vec::new();
    for (name, dataset) in &catalog.datasets {
        if Address::is_meant(&dataset.source)
            && let Err(error) = dataset.source.parse::<SourceAddress>()
        {
            let message = format!("the source of dataset `{name}`: {}", error.why());
            let help = "write `s3://bucket/path`, `gs://bucket/path` or `az://account/container/path`";
            faults.push(fault(text, &dataset.source, message, help));
        }
    }
    faults
}

/// An error where `text` stands in the file.
pub(crate) fn fault(source: &SourceText<'_>, text: &str, message: String, help: &str) -> FileError {
    let found = source.text.lines().enumerate().find_map(|(number, line)| {
        let column = line.find(text)?;
        Some((number, line.get(..column)?.chars().count(), line))
    });
    let (line, column, offending) = found.unwrap_or_default();
    FileError {
        file: source.file.to_owned(),
        line: line as u64 + 1,
        column: column as u64 + 1,
        // Somebody may have written a password into it.
        offending: offending.replace(text, &format!("{}:…", text.split(':').next().unwrap_or_default())),
        message,
        help: Some(help.to_owned()),
    }
}
