//! What is started, and where, as the sites file and the environment of VMware's own tools say it.

use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use tidegate_types::files::sites::{ComputeOffer, Machine};
use url::Url;
use zeroize::Zeroizing;

use crate::address::secure;
use crate::compute::{InvalidMachine, refuse};
use crate::credentials::Environment;

/// What is started, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsphereSettings {
    /// By its name or the end of its inventory path, as all below.
    pub(super) datacenter: String,
    /// The template, or a machine that is off.
    pub(super) template: String,
    /// None for the only one.
    pub(super) pool: Option<String>,
    /// None for that of the template.
    pub(super) datastore: Option<String>,
    /// None for that of the template.
    pub(super) folder: Option<String>,
    /// Of the machine's network cards, in their order; none for those of the template.
    pub(super) networks: Vec<String>,
    /// Processors and mebibytes of a machine.
    pub(super) cpus: u64,
    pub(super) mebibytes: u64,
    pub(super) vcenter: Option<Url>,
    pub(super) certificates: Option<PathBuf>,
}

impl VsphereSettings {
    /// As the sites file says it; `folder` is where that file is.
    ///
    /// # Errors
    /// When a value cannot be what it says.
    pub fn new(offer: &ComputeOffer, folder: &Path) -> Result<Self, InvalidMachine> {
        let nothing = Machine::default();
        let machine = offer.machine.as_ref().unwrap_or(&nothing);
        let named = |text: &String, what: &str| {
            let name = text.trim_matches('/');
            if name.is_empty() || name.len() > 1000 || name.chars().any(char::is_control) {
                return Err(InvalidMachine::new(text, what));
            }
            Ok(name.to_owned())
        };
        let perhaps = |text: &Option<String>, what: &str| text.as_ref().map(|text| named(text, what)).transpose();
        // It has as much as `cpus` and `memory` say.
        let unknown = [
            ("type", machine.kind.as_ref()),
            ("profile", machine.profile.as_ref()),
            ("project", machine.project.as_ref()),
            ("accelerator", machine.accelerator.as_ref()),
            ("security_groups", machine.security_groups.first()),
        ];
        refuse("vsphere", &unknown)?;
        let networks = machine.networks.iter();
        let networks: Result<_, _> = networks.map(|text| named(text, "is no network")).collect();
        Ok(Self {
            datacenter: named(&machine.region, "is no datacenter, such as `DC1`")?,
            template: named(&machine.image, "is no template, such as `debian-13`")?,
            pool: perhaps(&machine.pool, "is no resource pool, such as `training`")?,
            datastore: perhaps(&machine.datastore, "is no datastore, such as `ssd-1`")?,
            folder: perhaps(&machine.folder, "is no folder of machines, such as `tidegate`")?,
            networks: networks?,
            cpus: offer.cpus.into(),
            // vSphere wants a multiple of four.
            mebibytes: offer.memory.0.div_ceil(4 << 20) * 4,
            vcenter: machine.endpoint.as_deref().map(vcenter).transpose()?,
            certificates: machine.certificates.as_ref().map(|file| folder.join(file)),
        })
    }

    /// What whoever administers the vCenter grants to the credentials of the control plane, and no more, as text for
    /// VMware's own tools.
    #[must_use]
    pub const fn needed_grant() -> &'static str {
        "govc role.create tidegate Datastore.AllocateSpace Network.Assign Resource.AssignVMToPool \
         VirtualMachine.Config.AddExistingDisk VirtualMachine.Config.AddNewDisk VirtualMachine.Config.AdvancedConfig \
         VirtualMachine.Config.Annotation VirtualMachine.Config.CPUCount VirtualMachine.Config.EditDevice \
         VirtualMachine.Config.Memory VirtualMachine.Interact.PowerOff VirtualMachine.Interact.PowerOn \
         VirtualMachine.Inventory.CreateFromExisting VirtualMachine.Inventory.Delete \
         VirtualMachine.Provisioning.Clone VirtualMachine.Provisioning.DeployTemplate\n\
         govc permissions.set -principal USER -role tidegate -propagate=true /DATACENTER"
    }
}

/// Where it is, for messages.
impl fmt::Display for VsphereSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vsphere in {}", self.datacenter)
    }
}

/// The address of a vCenter's web service, however its own tools write it.
fn vcenter(text: &str) -> Result<Url, InvalidMachine> {
    let wrong = |why: &str| InvalidMachine::new(text, why);
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let mut url = Url::parse(&whole).map_err(|_| wrong("is no address of a vCenter"))?;
    secure(&url).map_err(wrong)?;
    url.set_path("/sdk");
    url.set_query(None);
    Ok(url)
}

/// Who logs in, and where, by the variables of VMware's own tools.
pub(super) struct Login {
    pub(super) url: Url,
    pub(super) user: String,
    pub(super) password: Zeroizing<String>,
}

impl Login {
    /// # Errors
    /// What is missing.
    pub(super) fn of(settings: &VsphereSettings, environment: &Environment) -> Result<Self, String> {
        let value = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        // An address for `govc` may hold who logs in.
        let (mut govc, mut within) = (value("GOVC_URL").cloned(), None);
        if let Some((before, rest)) = govc.as_ref().and_then(|text| text.rsplit_once('@')) {
            let (scheme, who) = before.split_once("://").unwrap_or(("https", before));
            let (user, password) = who.split_once(':').unwrap_or((who, ""));
            let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            within = Some((decoded(user), decoded(password)));
            govc = Some(format!("{scheme}://{rest}"));
        }
        let url = match &settings.vcenter {
            Some(url) => url.clone(),
            None => {
                let text = value("VSPHERE_SERVER").cloned().or(govc);
                let text = text.ok_or("write `endpoint:` below `machine`, or set VSPHERE_SERVER")?;
                vcenter(&text).map_err(|error| error.to_string())?
            }
        };
        let pair =
            |user: &str, password: &str| Some((value(user)?.clone(), value(password).cloned().unwrap_or_default()));
        let found = pair("VSPHERE_USER", "VSPHERE_PASSWORD").or_else(|| pair("GOVC_USERNAME", "GOVC_PASSWORD"));
        let (user, password) = found.or(within).ok_or("set VSPHERE_USER and VSPHERE_PASSWORD")?;
        if password.is_empty() {
            return Err("set VSPHERE_PASSWORD, or GOVC_PASSWORD beside GOVC_USERNAME".to_owned());
        }
        Ok(Self {
            url,
            user,
            password: Zeroizing::new(password),
        })
    }
}

#[cfg(test)]
mod tests {
    use tidegate_types::quantity::ByteSize;

    use super::*;

    fn settings(change: impl Fn(&mut Machine)) -> Result<VsphereSettings, InvalidMachine> {
        let mut machine = Machine {
            region: "DC1".to_owned(),
            image: "/DC1/vm/templates/debian-13".to_owned(),
            ..Machine::default()
        };
        change(&mut machine);
        let offer = ComputeOffer {
            driver: "vsphere".to_owned(),
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
        };
        VsphereSettings::new(&offer, Path::new("/etc/tidegate"))
    }

    #[test]
    fn what_cannot_be_a_machine_is_told() {
        let good = settings(|_| {}).unwrap();
        assert_eq!(
            (good.mebibytes, good.template.as_str()),
            (1028, "DC1/vm/templates/debian-13")
        );
        let text = |text: &str| Some(text.to_owned());
        for (error, why) in [
            (settings(|one| one.image = "/".to_owned()), "is no template"),
            (settings(|one| one.region = "a\nb".to_owned()), "is no datacenter"),
            (settings(|one| one.pool = text("")), "is no resource pool"),
            (settings(|one| one.datastore = text("")), "is no datastore"),
            (settings(|one| one.folder = text("")), "is no folder"),
            (
                settings(|one| one.kind = text("x")),
                "is `type`, which means nothing to",
            ),
            (settings(|one| one.profile = text("x")), "is `profile`, which means"),
            (
                settings(|one| one.security_groups = vec!["x".to_owned()]),
                "is `security_groups`, which means",
            ),
            (
                settings(|one| one.endpoint = text("http://vcenter.example")),
                "must begin with `https:`",
            ),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn who_logs_in_is_found_as_vmwares_own_tools_find_it() {
        let login = |variables: &[(&str, &str)]| {
            let environment = variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Login::of(&settings(|_| {}).unwrap(), &environment.collect())
        };
        let url = "https://vcenter.st-mary.example/sdk";
        for variables in [
            &[
                ("VSPHERE_SERVER", "vcenter.st-mary.example"),
                ("VSPHERE_USER", "trainer@vsphere.local"),
                ("VSPHERE_PASSWORD", "h@sh"),
                ("GOVC_USERNAME", "somebody"),
            ][..],
            &[
                ("GOVC_URL", "https://vcenter.st-mary.example/sdk"),
                ("GOVC_USERNAME", "trainer@vsphere.local"),
                ("GOVC_PASSWORD", "h@sh"),
            ][..],
            &[("GOVC_URL", "trainer%40vsphere.local:h%40sh@vcenter.st-mary.example")][..],
        ] {
            let found = login(variables).unwrap();
            assert_eq!(
                (found.url.as_str(), found.user.as_str(), found.password.as_str()),
                (url, "trainer@vsphere.local", "h@sh")
            );
        }
        let server = ("VSPHERE_SERVER", "vcenter.st-mary.example");
        for (variables, missing) in [
            (&[][..], "VSPHERE_SERVER"),
            (&[server][..], "VSPHERE_USER"),
            (&[server, ("VSPHERE_USER", "hush")][..], "VSPHERE_PASSWORD"),
            (&[("GOVC_URL", "http://hush:hush@vcenter.example")][..], "https:"),
        ] {
            let why = login(variables).err().unwrap();
            assert!(why.contains(missing) && !why.contains("hush"), "{why}");
        }
    }
}
