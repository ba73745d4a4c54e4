//! What is started, and where, as the sites file says it.

use std::fmt;
use std::path::{Path, PathBuf};

use tidegate_types::files::sites::Machine;
use url::Url;

use crate::compute::{InvalidMachine, refuse, server};

/// What is started, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VertexSettings {
    pub(super) project: String,
    pub(super) region: String,
    pub(super) image: String,
    pub(super) kind: String,
    /// Kind and number.
    pub(super) accelerator: Option<(String, u32)>,
    /// The service account that a job is.
    pub(super) account: Option<String>,
    /// `projects/NUMBER/global/networks/NAME`.
    pub(super) network: Option<String>,
    pub(super) endpoint: Option<Url>,
    pub(super) certificates: Option<PathBuf>,
}

impl VertexSettings {
    /// As the sites file says it; `folder` is where that file is.
    ///
    /// # Errors
    /// When a value cannot be what it says.
    pub fn new(machine: &Machine, folder: &Path) -> Result<Self, InvalidMachine> {
        let named = |text: &str, more: &str, what: &str| {
            let plain = |one: char| one.is_ascii_alphanumeric() || more.contains(one);
            if !text.is_empty() && text.len() <= 255 && text.chars().all(plain) {
                Ok(text.to_owned())
            } else {
                Err(InvalidMachine::new(text, what))
            }
        };
        let unknown = [
            ("pool", machine.pool.as_ref()),
            ("datastore", machine.datastore.as_ref()),
            ("folder", machine.folder.as_ref()),
            ("security_groups", machine.security_groups.first()),
        ];
        refuse("vertex", &unknown)?;
        if let Some(second) = machine.networks.get(1) {
            return Err(InvalidMachine::new(second, "is one network too many: a job is in one"));
        }
        let network = machine.networks.first();
        let network =
            network.map(|network| named(network, "-/", "is no network, such as `projects/1/global/networks/a`"));
        let account = machine.profile.as_ref().map(|account| {
            let what = "is no service account, such as `worker@st-mary-ml.iam.gserviceaccount.com`";
            named(account, "-.@", what)
        });
        let accelerator = machine.accelerator.as_ref().map(|text| {
            let wrong = || InvalidMachine::new(text, "is no accelerator, such as `NVIDIA_TESLA_T4:1`");
            let (kind, count) = text.split_once(':').ok_or_else(wrong)?;
            let count = count.parse().ok().filter(|count| (1..=64).contains(count));
            Ok((
                named(kind, "_", "is no accelerator").map_err(|_| wrong())?,
                count.ok_or_else(wrong)?,
            ))
        });
        Ok(Self {
            project: named(
                machine.project.as_deref().unwrap_or_default(),
                "-.:",
                "is no project, such as `st-mary-ml`",
            )?,
            region: named(&machine.region, "-", "is no region, such as `europe-west4`")?,
            image: named(
                &machine.image,
                "-._/:@",
                "is no image, such as `europe-west4-docker.pkg.dev/st-mary-ml/tidegate/trainer:1`",
            )?,
            kind: named(
                machine.kind.as_deref().unwrap_or_default(),
                "-",
                "is no kind of machine, such as `n1-standard-8`",
            )?,
            accelerator: accelerator.transpose()?,
            account: account.transpose()?,
            network: network.transpose()?,
            endpoint: server(machine)?,
            certificates: machine.certificates.as_ref().map(|file| folder.join(file)),
        })
    }

    /// What whoever administers the project grants to the credentials of the control plane, and no more, as text for
    /// the cloud's own tools.
    #[must_use]
    pub const fn needed_grant() -> &'static str {
        include_str!("../../../../../examples/sites/vertex-rights.json")
    }

    /// The resource below which jobs are.
    pub(super) fn parent(&self) -> String {
        format!("projects/{}/locations/{}", self.project, self.region)
    }
}

/// Where it is, for messages.
impl fmt::Display for VertexSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vertex in {} of {}", self.region, self.project)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            project: Some("st-mary-ml".to_owned()),
            region: "europe-west4".to_owned(),
            image: "europe-west4-docker.pkg.dev/st-mary-ml/tidegate/trainer@sha256:0123".to_owned(),
            kind: Some("n1-standard-8".to_owned()),
            accelerator: Some("NVIDIA_TESLA_T4:2".to_owned()),
            profile: Some("worker@st-mary-ml.iam.gserviceaccount.com".to_owned()),
            networks: vec!["projects/1/global/networks/inside".to_owned()],
            ..Machine::default()
        }
    }

    #[test]
    fn what_cannot_be_a_job_is_told() {
        let settings = |machine: &Machine| VertexSettings::new(machine, Path::new("/etc/tidegate"));
        let good = settings(&machine()).unwrap();
        assert_eq!(good.accelerator, Some(("NVIDIA_TESLA_T4".to_owned(), 2)));
        type Change = fn(&mut Machine);
        let changes: [(Change, &str); 11] = [
            (|one| one.project = None, "is no project"),
            (|one| one.region = "europe west".to_owned(), "is no region"),
            (|one| one.image = "a b".to_owned(), "is no image"),
            (|one| one.kind = None, "is no kind of machine"),
            (|one| one.accelerator = Some("T4".to_owned()), "is no accelerator"),
            (|one| one.accelerator = Some("T4:0".to_owned()), "is no accelerator"),
            (|one| one.profile = Some("a b".to_owned()), "is no service account"),
            (|one| one.networks.push("b".to_owned()), "one network too many"),
            (
                |one| one.pool = Some("b".to_owned()),
                "means nothing to the driver `vertex`",
            ),
            (
                |one| one.security_groups = vec!["b".to_owned()],
                "means nothing to the driver `vertex`",
            ),
            (
                |one| one.endpoint = Some("http://vertex.example.org".to_owned()),
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
