//! What is started, and where, as the sites file and the environment of OpenStack's own tools say it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidegate_types::files::sites::{ComputeOffer, Machine};
use url::Url;
use zeroize::Zeroizing;

use crate::address::secure;
use crate::compute::{InvalidMachine, refuse};
use crate::credentials::Environment;

/// What is started, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenStackSettings {
    pub(super) region: String,
    /// By name or identifier, as all below.
    pub(super) image: String,
    /// None for the smallest that fits.
    pub(super) flavor: Option<String>,
    pub(super) networks: Vec<String>,
    pub(super) security_groups: Vec<String>,
    /// Processors and mebibytes that a machine needs.
    pub(super) cpus: u64,
    pub(super) mebibytes: u64,
    pub(super) keystone: Option<Url>,
    pub(super) certificates: Option<PathBuf>,
}

impl OpenStackSettings {
    /// As the sites file says it; `folder` is where that file is.
    ///
    /// # Errors
    /// When a value cannot be what it says.
    pub fn new(offer: &ComputeOffer, folder: &Path) -> Result<Self, InvalidMachine> {
        let nothing = Machine::default();
        let machine = offer.machine.as_ref().unwrap_or(&nothing);
        let named = |text: &String, what: &str| {
            if text.is_empty() || text.len() > 255 || text.chars().any(char::is_control) {
                return Err(InvalidMachine::new(text, what));
            }
            Ok(text.clone())
        };
        let all = |texts: &[String], what: &str| -> Result<Vec<String>, InvalidMachine> {
            texts.iter().map(|text| named(text, what)).collect()
        };
        let unknown = [
            ("profile", machine.profile.as_ref()),
            ("project", machine.project.as_ref()),
            ("accelerator", machine.accelerator.as_ref()),
            ("pool", machine.pool.as_ref()),
            ("datastore", machine.datastore.as_ref()),
            ("folder", machine.folder.as_ref()),
        ];
        refuse("openstack", &unknown)?;
        let kind = machine
            .kind
            .as_ref()
            .map(|kind| named(kind, "is no flavor, such as `m1.large`"));
        let keystone = machine.endpoint.as_deref().map(keystone);
        Ok(Self {
            region: named(&machine.region, "is no region, such as `RegionOne`")?,
            image: named(&machine.image, "is no image, such as `debian-13`")?,
            flavor: kind.transpose()?,
            networks: all(&machine.networks, "is no network")?,
            security_groups: all(&machine.security_groups, "is no security group")?,
            cpus: offer.cpus.into(),
            mebibytes: offer.memory.0.div_ceil(1 << 20),
            keystone: keystone.transpose()?,
            certificates: machine.certificates.as_ref().map(|file| folder.join(file)),
        })
    }

    /// What whoever administers the cloud grants to the credentials of the control plane, and no more, as text for the
    /// cloud's own tools.
    #[must_use]
    pub const fn needed_grant() -> &'static str {
        "openstack role add --user USER --project PROJECT member"
    }
}

/// Where it is, for messages.
impl fmt::Display for OpenStackSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "openstack in {}", self.region)
    }
}

/// The address of keystone, version 3, ending without a slash.
fn keystone(text: &str) -> Result<Url, InvalidMachine> {
    let wrong = |why: &str| InvalidMachine::new(text, why);
    let trimmed = text.trim_end_matches('/');
    let url = Url::parse(trimmed.trim_end_matches("/v3")).map_err(|_| wrong("is no address of keystone"))?;
    secure(&url).map_err(wrong)?;
    let path = format!("{}/v3", url.path().trim_end_matches('/'));
    let mut url = url;
    url.set_path(&path);
    Ok(url)
}

/// Who logs in, and where, by the variables of OpenStack's own tools.
pub(super) struct Login {
    pub(super) keystone: Url,
    /// Which of the addresses of a service: `public` mostly.
    pub(super) interface: String,
    /// The request for a token: it holds a secret.
    pub(super) request: Zeroizing<String>,
}

impl Login {
    /// # Errors
    /// What is missing.
    pub(super) fn of(settings: &OpenStackSettings, environment: &Environment) -> Result<Self, String> {
        let value = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        let needed = |name: &str| value(name).ok_or_else(|| format!("set {name}"));
        let keystone = match &settings.keystone {
            Some(keystone) => keystone.clone(),
            None => {
                let text = value("OS_AUTH_URL").ok_or("write `endpoint:` below `machine`, or set OS_AUTH_URL")?;
                keystone(text).map_err(|error| error.to_string())?
            }
        };
        let interface = value("OS_INTERFACE").map_or("public", String::as_str);
        let interface = interface.trim_end_matches("URL").to_owned();
        let auth = if let Some(id) = value("OS_APPLICATION_CREDENTIAL_ID") {
            let secret = needed("OS_APPLICATION_CREDENTIAL_SECRET")?;
            json!({"identity": {"methods": ["application_credential"],
                "application_credential": {"id": id, "secret": secret}}})
        } else {
            let named = |id: &str, name: &str| -> Option<Value> {
                let id = value(id).map(|id| json!({ "id": id }));
                id.or_else(|| value(name).map(|name| json!({ "name": name })))
            };
            let domain = |id: &str, name: &str| named(id, name).unwrap_or_else(|| json!({"id": "default"}));
            let mut user =
                named("OS_USER_ID", "OS_USERNAME").ok_or("set OS_APPLICATION_CREDENTIAL_ID, or OS_USERNAME")?;
            user["password"] = needed("OS_PASSWORD")?.clone().into();
            if user["id"].is_null() {
                user["domain"] = domain("OS_USER_DOMAIN_ID", "OS_USER_DOMAIN_NAME");
            }
            let mut project = named("OS_PROJECT_ID", "OS_PROJECT_NAME").ok_or("set OS_PROJECT_NAME")?;
            if project["id"].is_null() {
                project["domain"] = domain("OS_PROJECT_DOMAIN_ID", "OS_PROJECT_DOMAIN_NAME");
            }
            json!({"identity": {"methods": ["password"], "password": {"user": user}}, "scope": {"project": project}})
        };
        Ok(Self {
            keystone,
            interface,
            request: Zeroizing::new(json!({ "auth": auth }).to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use tidegate_types::quantity::ByteSize;

    use super::*;

    fn offer(change: impl Fn(&mut Machine)) -> ComputeOffer {
        let mut machine = Machine {
            region: "RegionOne".to_owned(),
            image: "debian-13".to_owned(),
            ..Machine::default()
        };
        change(&mut machine);
        ComputeOffer {
            driver: "openstack".to_owned(),
            hosts: Vec::new(),
            ssh_config: None,
            folder: None,
            machine: Some(machine),
            cpus: 2,
            memory: ByteSize((1 << 30) + 1),
            accelerators: None,
            rows: false,
            price: None,
            spot_price: None,
        }
    }

    fn settings(change: impl Fn(&mut Machine)) -> Result<OpenStackSettings, InvalidMachine> {
        OpenStackSettings::new(&offer(change), Path::new("/etc/tidegate"))
    }

    #[test]
    fn what_cannot_be_a_machine_is_told() {
        assert_eq!(settings(|_| {}).unwrap().mebibytes, 1025);
        let far = "http://keystone.example.org:5000/v3";
        for (error, why) in [
            (settings(|one| one.image = String::new()), "is no image"),
            (settings(|one| one.region = "a\nb".to_owned()), "is no region"),
            (settings(|one| one.kind = Some(String::new())), "is no flavor"),
            (
                settings(|one| one.folder = Some("x".to_owned())),
                "is `folder`, which means nothing to the driver `openstack`",
            ),
            (
                settings(|one| one.profile = Some("x".to_owned())),
                "is `profile`, which means nothing to the driver `openstack`",
            ),
            (
                settings(|one| one.endpoint = Some(far.to_owned())),
                "must begin with `https:`",
            ),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn who_logs_in_is_found_as_openstacks_own_tools_find_it() {
        let login = |variables: &[(&str, &str)]| {
            let environment = variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Login::of(&settings(|_| {}).unwrap(), &environment.collect())
        };
        let url = ("OS_AUTH_URL", "https://cloud.example.org:5000/identity/v3/");
        let by_application = login(&[
            url,
            ("OS_APPLICATION_CREDENTIAL_ID", "app"),
            ("OS_APPLICATION_CREDENTIAL_SECRET", "hush"),
        ]);
        let by_application = by_application.unwrap();
        assert_eq!(
            by_application.keystone.as_str(),
            "https://cloud.example.org:5000/identity/v3"
        );
        assert!(
            !by_application.request.contains("scope"),
            "an application credential has its project"
        );
        let by_password = login(&[
            ("OS_AUTH_URL", "https://cloud.example.org:5000"),
            ("OS_USERNAME", "trainer"),
            ("OS_PASSWORD", "hush"),
            ("OS_PROJECT_NAME", "st-mary"),
            ("OS_INTERFACE", "internalURL"),
        ]);
        let by_password = by_password.unwrap();
        assert_eq!(by_password.keystone.as_str(), "https://cloud.example.org:5000/v3");
        assert_eq!(by_password.interface, "internal");
        let request: Value = serde_json::from_str(&by_password.request).unwrap();
        let scope = json!({"project": {"name": "st-mary", "domain": {"id": "default"}}});
        assert_eq!(request["auth"]["scope"], scope);
        for (variables, missing) in [
            (&[][..], "OS_AUTH_URL"),
            (&[url][..], "OS_USERNAME"),
            (
                &[url, ("OS_APPLICATION_CREDENTIAL_ID", "app")][..],
                "OS_APPLICATION_CREDENTIAL_SECRET",
            ),
            (
                &[url, ("OS_USERNAME", "a"), ("OS_PASSWORD", "hush")][..],
                "OS_PROJECT_NAME",
            ),
        ] {
            let why = login(variables).err().unwrap();
            assert!(why.contains(missing) && !why.contains("hush"), "{why}");
        }
    }
}
