//! What is started, and where, as the sites file says it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidegate_types::files::sites::Machine;
use url::Url;

use crate::compute::{InvalidMachine, refuse, server};

/// What stands between the group and the name of a workspace.
const WORKSPACES: &str = "providers/Microsoft.MachineLearningServices/workspaces";

/// What a container's file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Image {
    /// An environment that somebody registered, by its identifier.
    Environment(String),
    /// An image of a registry, for which an environment is registered.
    Registry(String),
}

/// What is started, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureMlSettings {
    /// `/subscriptions/…/workspaces/NAME`.
    pub(super) workspace: String,
    pub(super) image: Image,
    /// The kind of machine, where no pool says it.
    pub(super) kind: Option<String>,
    /// A cluster of the workspace.
    pub(super) pool: Option<String>,
    /// Who a job is to Microsoft's services, as they are told it.
    pub(super) identity: Value,
    pub(super) endpoint: Option<Url>,
    pub(super) certificates: Option<PathBuf>,
}

impl AzureMlSettings {
    /// As the sites file says it; `folder` is where that file is.
    ///
    /// # Errors
    /// When a value cannot be what it says.
    pub fn new(machine: &Machine, folder: &Path) -> Result<Self, InvalidMachine> {
        let unknown = [
            ("region", Some(&machine.region).filter(|region| !region.is_empty())),
            ("accelerator", machine.accelerator.as_ref()),
            ("datastore", machine.datastore.as_ref()),
            ("folder", machine.folder.as_ref()),
            ("networks", machine.networks.first()),
            ("security_groups", machine.security_groups.first()),
        ];
        refuse("azureml", &unknown)?;
        let named = |text: &String, what: &str| {
            if is_plain(text, "_-") {
                Ok(text.clone())
            } else {
                Err(InvalidMachine::new(text, what))
            }
        };
        let kind = machine.kind.as_ref();
        let kind = kind.map(|kind| named(kind, "is no kind of machine, such as `Standard_DS3_v2`"));
        let pool = machine
            .pool
            .as_ref()
            .map(|pool| named(pool, "is no cluster of the workspace"));
        let workspace = workspace(machine.project.as_deref().unwrap_or_default())?;
        if let (None, None) = (&kind, &pool) {
            return Err(InvalidMachine::new(
                &machine.image,
                "runs nowhere: write `type`, such as `Standard_DS3_v2`, or `pool`, the name of a cluster",
            ));
        }
        Ok(Self {
            image: image(&machine.image, &workspace)?,
            workspace,
            kind: kind.transpose()?,
            pool: pool.transpose()?,
            identity: identity(machine.profile.as_deref())?,
            endpoint: server(machine)?,
            certificates: machine.certificates.as_ref().map(|file| folder.join(file)),
        })
    }

    /// What whoever administers the workspace grants to the credentials of the control plane, and no more, as text for
    /// the cloud's own tools.
    #[must_use]
    pub const fn needed_grant() -> &'static str {
        include_str!("../../../../../examples/sites/azureml-rights.json")
    }

    /// The workspace's own name.
    fn name(&self) -> &str {
        self.workspace.rsplit('/').next().unwrap_or_default()
    }
}

/// Where it is, for messages.
impl fmt::Display for AzureMlSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "azureml in {}", self.name())
    }
}

fn is_plain(text: &str, more: &str) -> bool {
    let plain = |one: char| one.is_ascii_alphanumeric() || more.contains(one);
    !text.is_empty() && text.len() <= 255 && text.chars().all(plain)
}

fn workspace(text: &str) -> Result<String, InvalidMachine> {
    let wrong = || {
        InvalidMachine::new(
            text,
            "is no workspace, such as `/subscriptions/ID/resourceGroups/GROUP/providers/\
             Microsoft.MachineLearningServices/workspaces/NAME`",
        )
    };
    let rest = text.strip_prefix("/subscriptions/").ok_or_else(wrong)?;
    let (subscription, rest) = rest.split_once("/resourceGroups/").ok_or_else(wrong)?;
    let (group, rest) = rest.split_once('/').ok_or_else(wrong)?;
    let name = rest.strip_prefix(WORKSPACES).and_then(|rest| rest.strip_prefix('/'));
    let name = name.ok_or_else(wrong)?;
    if is_plain(subscription, "-") && is_plain(group, "-_.()") && is_plain(name, "-_") {
        Ok(text.to_owned())
    } else {
        Err(wrong())
    }
}

fn image(text: &str, workspace: &str) -> Result<Image, InvalidMachine> {
    let wrong = || {
        InvalidMachine::new(
            text,
            "is no image, such as `stmary.azurecr.io/trainer:1`, or `azureml:ENVIRONMENT:VERSION`",
        )
    };
    match text.strip_prefix("azureml:") {
        // Of a registry that several workspaces share.
        Some(rest) if rest.starts_with("//registries/") && is_plain(rest, "/-._") => {
            Ok(Image::Environment(text.to_owned()))
        }
        Some(rest) => match rest.split_once(':') {
            Some((name, version)) if is_plain(name, "-._") && is_plain(version, "-._") => Ok(Image::Environment(
                format!("{workspace}/environments/{name}/versions/{version}"),
            )),
            _ => Err(wrong()),
        },
        None if is_plain(text, "-._/:@") => Ok(Image::Registry(text.to_owned())),
        None => Err(wrong()),
    }
}

/// Who a job is: nobody but the workspace's own token without a profile, the cluster's identity, or one that is named
/// by its client or its resource.
fn identity(profile: Option<&str>) -> Result<Value, InvalidMachine> {
    Ok(match profile {
        None => json!({"identityType": "AMLToken"}),
        Some("managed") => json!({"identityType": "Managed"}),
        Some(resource) if resource.starts_with("/subscriptions/") && is_plain(resource, "/-_.()") => {
            json!({"identityType": "Managed", "resourceId": resource})
        }
        Some(client) if client.len() == 36 && is_plain(client, "-") => {
            json!({"identityType": "Managed", "clientId": client})
        }
        Some(other) => {
            let what = "is no identity: write `managed`, the client of a managed identity, or its resource";
            return Err(InvalidMachine::new(other, what));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKSPACE: &str = "/subscriptions/00000000-1111-2222-3333-444444444444/resourceGroups/ml/providers/\
                             Microsoft.MachineLearningServices/workspaces/st-mary";

    fn machine() -> Machine {
        Machine {
            project: Some(WORKSPACE.to_owned()),
            image: "stmary.azurecr.io/trainer:1".to_owned(),
            kind: Some("Standard_DS3_v2".to_owned()),
            ..Machine::default()
        }
    }

    #[test]
    fn an_image_is_one_of_a_registry_or_an_environment() {
        let of = |text: &str| {
            let mut machine = machine();
            text.clone_into(&mut machine.image);
            AzureMlSettings::new(&machine, Path::new("/etc/tidegate"))
                .unwrap()
                .image
        };
        assert_eq!(of("a.io/b:1"), Image::Registry("a.io/b:1".to_owned()));
        let own = format!("{WORKSPACE}/environments/trainer/versions/3");
        assert_eq!(of("azureml:trainer:3"), Image::Environment(own));
        let shared = "azureml://registries/azureml/environments/trainer/versions/3";
        assert_eq!(of(shared), Image::Environment(shared.to_owned()));
    }

    #[test]
    fn what_cannot_be_a_job_is_told() {
        let settings = |machine: &Machine| AzureMlSettings::new(machine, Path::new("/etc/tidegate"));
        assert_eq!(settings(&machine()).unwrap().to_string(), "azureml in st-mary");
        type Change = fn(&mut Machine);
        let changes: [(Change, &str); 10] = [
            (|one| one.project = Some("st-mary".to_owned()), "is no workspace"),
            (|one| one.project = Some(format!("{WORKSPACE}/x")), "is no workspace"),
            (|one| one.image = "a b".to_owned(), "is no image"),
            (|one| one.image = "azureml:trainer".to_owned(), "is no image"),
            (|one| one.kind = None, "runs nowhere"),
            (|one| one.pool = Some("a/b".to_owned()), "is no cluster"),
            (|one| one.profile = Some("somebody".to_owned()), "is no identity"),
            (
                |one| one.region = "westeurope".to_owned(),
                "is `region`, which means nothing",
            ),
            (
                |one| one.networks = vec!["a".to_owned()],
                "is `networks`, which means nothing",
            ),
            (
                |one| one.endpoint = Some("http://azure.example.org".to_owned()),
                "must begin with `https:`",
            ),
        ];
        for (change, why) in changes {
            let mut machine = machine();
            change(&mut machine);
            let error = settings(&machine).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
