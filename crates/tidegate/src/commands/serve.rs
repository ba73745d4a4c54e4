//! `serve` and `enrol`: a site that uses models. Everything it needs lies in its own folder and store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_bundle::bundle;
use tidegate_contracts::store::{ObjectName, Store, StoreExt};
use tidegate_keeper::keys::create_private_file;
use tidegate_seal::digest::canonical_digest;
use tidegate_seal::envelope::{self, Identity};
use tidegate_seal::key::DataKey;
use tidegate_seal::sign::VerifyingKey;
use tidegate_seal::{dsse, permit};
use tidegate_serve::{ReleaseSource, ServeOptions};
use tidegate_transfer::{Expected, patiently, receive};
use tidegate_types::ids::SiteName;
use tidegate_types::release::{ENROLMENT_OBJECT, Enrolment, RELEASE_FORMAT, RELEASE_PAYLOAD, ReleaseRecord};
use zeroize::Zeroizing;

use crate::cli::Format;
use crate::commands::predict::verify;
use crate::failure::{Failure, While};
use crate::keeper_process::public_key_file;
use crate::project::Project;
use crate::{show, stores};

/// How often the site's store is looked at for new releases.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The largest bundle that is taken.
const BUNDLE_BYTES: u64 = 256 << 20;
const READING_KEY: &str = "reading the owner's key";

/// What a serving site trusts: pinned when it enrolled.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trust {
    owner: String,
}

fn identity_file(folder: &Path) -> PathBuf {
    folder.join("keys").join("identity.age")
}

fn trust_file(folder: &Path) -> PathBuf {
    folder.join("keys").join("owner.json")
}

/// Makes the site's identity if it has none, pins the owner's key, and publishes the recipient.
pub(crate) async fn enrol(project: &Project, site: &str, owner: &str) -> Result<(), Failure> {
    let enrolling = "enrolling a serving site";
    let site = project.site(site)?;
    let folder = project.layout.site(&site);
    VerifyingKey::from_base64(owner).while_(enrolling)?;
    let trust = serde_json::to_vec(&Trust {
        owner: owner.to_owned(),
    })
    .while_(enrolling)?;
    create_private_file(&trust_file(&folder), &trust).while_(enrolling)?;
    if pinned_owner(&folder)?.is_none_or(|pinned| pinned.to_base64() != owner) {
        return Err(Failure::failed(enrolling, "the site trusts the key of another owner"));
    }
    if !identity_file(&folder).exists() {
        let identity = Identity::generate();
        create_private_file(&identity_file(&folder), identity.secret().as_bytes()).while_(enrolling)?;
    }
    let enrolment = Enrolment {
        site: site.clone(),
        recipient: identity(&folder)?.recipient(),
    };
    let store = stores::open(&project.store_address(&site), &stores::environment())?;
    let object = ObjectName::new(ENROLMENT_OBJECT).while_(enrolling)?;
    let body = Bytes::from(serde_json::to_vec(&enrolment).while_(enrolling)?);
    patiently(|| store.put_same(&object, body.clone()))
        .await
        .while_(enrolling)
}

fn identity(folder: &Path) -> Result<Identity, Failure> {
    let text = Zeroizing::new(std::fs::read_to_string(identity_file(folder)).while_("reading the site's identity")?);
    Identity::from_secret(text.trim()).while_("reading the site's identity")
}

/// A small file, if it is there.
fn read(file: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::failed(READING_KEY, error)),
    }
}

/// The key of the owner that this site enrolled with, if it has.
fn pinned_owner(folder: &Path) -> Result<Option<VerifyingKey>, Failure> {
    let Some(bytes) = read(&trust_file(folder))? else {
        return Ok(None);
    };
    let trust: Trust = serde_json::from_slice(&bytes).while_(READING_KEY)?;
    VerifyingKey::from_base64(&trust.owner).while_(READING_KEY).map(Some)
}

/// The public key of this site's own keeper, if it ever ran. Serving needs none of its secrets.
fn own_key(folder: &Path) -> Result<Option<VerifyingKey>, Failure> {
    let Some(bytes) = read(&public_key_file(folder))? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).while_(READING_KEY)?;
    VerifyingKey::from_base64(text.trim()).while_(READING_KEY).map(Some)
}

/// Serves until the process is ended.
pub(crate) async fn serve(
    project: &Project,
    site: &str,
    listen: std::net::SocketAddr,
    format: Format,
) -> Result<(), Failure> {
    let site = project.site(site)?;
    let folder = project.layout.site(&site);
    // The home site serves what its keeper put there; every other one, private or not, opens what was
    // sealed to it.
    let home = project.home()? == site;
    let owner = if home {
        own_key(&folder)?
    } else {
        pinned_owner(&folder)?
    }
    .ok_or_else(|| {
        Failure::Usage(format!(
            "nothing was deployed to site `{site}` yet: name it under `deploy:` and run the pipeline"
        ))
    })?;
    let serving = folder.join("serve");
    std::fs::create_dir_all(serving.join("models")).while_("serving")?;
    if !home {
        let inbox = Inbox {
            site: site.clone(),
            organisation: project.sites.organisation.clone(),
            store: stores::open(&project.store_address(&site), &stores::environment())?,
            identity: identity(&folder)?,
            owner: owner.clone(),
            models: serving.join("models"),
        };
        inbox.look().await;
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                inbox.look().await;
            }
        });
    }
    let mut options = ServeOptions::new(
        ReleaseSource {
            folder: serving.clone(),
        },
        move |files| bundle::open(files.clone(), |signature| verify(signature, &owner)),
    );
    options.address = listen;
    options.state = Some(serving.join("versions.json"));
    let server = tidegate_serve::Server::bind(options).await.while_("serving")?;
    let address = server.local_addr();
    show::tell(&match format {
        Format::Text => {
            format!("Serving the models of site `{site}` on http://{address}/v2 (Open Inference Protocol v2).")
        }
        Format::Json => serde_json::json!({
            "event": "serving",
            "site": site,
            "url": format!("http://{address}/v2"),
        })
        .to_string(),
    });
    server.run(interrupted()).await.while_("serving")
}

/// Ready when somebody ends the program.
async fn interrupted() {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Opens releases that stand sealed in the site's store.
struct Inbox {
    site: SiteName,
    organisation: String,
    store: Arc<dyn Store>,
    identity: Identity,
    owner: VerifyingKey,
    models: PathBuf,
}

impl Inbox {
    /// Opens every release that is not there yet. What does not verify is logged and left alone.
    async fn look(&self) {
        let listed = match self.store.list_all("releases/", 10_000).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(site = %self.site, %error, "releases not listed");
                return;
            }
        };
        for object in listed {
            if let Err(error) = self.open(&object.name).await {
                tracing::error!(site = %self.site, object = %object.name, error = %error, "release refused");
            }
        }
    }

    async fn open(&self, object: &ObjectName) -> Result<(), Failure> {
        let opening = "opening a release";
        let bytes = self.store.get(object, 1 << 20).await.while_(opening)?;
        let envelope = dsse::from_bytes(&bytes).while_(opening)?;
        let payload = dsse::open(&envelope, RELEASE_PAYLOAD, &self.owner).while_(opening)?;
        let record: ReleaseRecord = serde_json::from_slice(&payload).while_(opening)?;
        let permit = permit::open_permit(&record.permit, &self.owner).while_(opening)?;
        let fits = record.format == RELEASE_FORMAT
            && record.site == self.site
            && record.organisation == self.organisation
            && object.as_str() == ReleaseRecord::object(&record.model, record.version)
            && permit.artifact == record.bundle
            && permit.permit.to.site == self.site;
        if !fits {
            return Err(Failure::failed(opening, "it is for another site, model or version"));
        }
        let target = self.models.join(record.model.as_str()).join(record.version.to_string());
        if target.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(self.models.join(record.model.as_str())).while_(opening)?;
        let sealed = STANDARD.decode(&record.sealed_key).while_(opening)?;
        let raw = envelope::open(&self.identity, &sealed).while_(opening)?;
        let raw: [u8; 32] = raw
            .as_slice()
            .try_into()
            .map_err(|_| Failure::failed(opening, "the data key has a wrong length"))?;
        let packing_list = ObjectName::new(record.packing_list.clone()).while_(opening)?;
        let received = receive(
            &Expected {
                packing_list: &packing_list,
                packing_list_digest: &record.packing_list_digest,
                sender: &self.owner,
                organisation: &self.organisation,
                artifact: Some(&record.bundle),
                permit: &permit.permit.id,
                permit_digest: &permit.digest,
                to: &self.site,
                key_commitment: Some(&record.key_commitment),
                byte_limit: BUNDLE_BYTES,
                plaintext_limit: BUNDLE_BYTES,
                ceiling: None,
            },
            &*self.store,
            &DataKey::from_bytes(raw),
            &target,
        )
        .await
        .while_(opening)?;
        let digest = canonical_digest(&received.manifest).while_(opening)?;
        tracing::info!(site = %self.site, model = %record.model, version = record.version, %digest, "release opened");
        Ok(())
    }
}
