//! What is started, and where, as the sites file says it.

use std::fmt;
use std::path::{Path, PathBuf};

use tidegate_types::files::sites::Machine;
use url::Url;

use crate::compute::{InvalidMachine, refuse, server};

/// What is started, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ec2Settings {
    pub(super) region: String,
    pub(super) image: String,
    pub(super) kind: String,
    pub(super) networks: Vec<String>,
    pub(super) security_groups: Vec<String>,
    pub(super) profile: Option<String>,
    pub(super) endpoint: Option<Url>,
    pub(super) certificates: Option<PathBuf>,
}

impl Ec2Settings {
    /// As the sites file says it; `folder` is where that file is.
    ///
    /// # Errors
    /// When a value cannot be what it says.
    pub fn new(machine: &Machine, folder: &Path) -> Result<Self, InvalidMachine> {
        let named = |text: &str, beginning: &str, what: &str| {
            let rest = text.strip_prefix(beginning).unwrap_or_default();
            let plain = |one: char| one.is_ascii_alphanumeric() || "-.".contains(one);
            if !rest.is_empty() && text.len() <= 100 && text.chars().all(plain) {
                Ok(text.to_owned())
            } else {
                Err(InvalidMachine::new(text, what))
            }
        };
        let all = |texts: &[String], beginning: &str, what: &str| -> Result<Vec<String>, InvalidMachine> {
            texts.iter().map(|text| named(text, beginning, what)).collect()
        };
        let unknown = [
            ("project", machine.project.as_ref()),
            ("accelerator", machine.accelerator.as_ref()),
            ("pool", machine.pool.as_ref()),
            ("datastore", machine.datastore.as_ref()),
            ("folder", machine.folder.as_ref()),
        ];
        refuse("ec2", &unknown)?;
        if let Some(profile) = machine.profile.as_deref()
            && (profile.is_empty() || profile.len() > 256 || profile.contains(char::is_whitespace))
        {
            return Err(InvalidMachine::new(profile, "is no name of an instance profile"));
        }
        Ok(Self {
            region: named(&machine.region, "", "is no region, such as `eu-central-1`")?,
            image: named(&machine.image, "ami-", "is no image, such as `ami-0123456789abcdef0`")?,
            kind: named(
                machine.kind.as_deref().unwrap_or_default(),
                "",
                "is no kind of machine, such as `m7i.xlarge`",
            )?,
            networks: all(
                &machine.networks,
                "subnet-",
                "is no network, such as `subnet-0123456789abcdef0`",
            )?,
            security_groups: all(
                &machine.security_groups,
                "sg-",
                "is no security group, such as `sg-0123456789abcdef0`",
            )?,
            profile: machine.profile.clone(),
            endpoint: server(machine)?,
            certificates: machine.certificates.as_ref().map(|file| folder.join(file)),
        })
    }

    /// What whoever administers the account grants to the credentials of the control plane, and no more, as text for
    /// the cloud's own tools.
    #[must_use]
    pub const fn needed_grant() -> &'static str {
        include_str!("../../../../../examples/sites/ec2-rights.json")
    }

    /// What is granted besides where machines have an instance profile; whoever knows its role and its name writes them in
    /// place of the `*`.
    #[must_use]
    pub const fn profile_grant() -> &'static str {
        include_str!("../../../../../examples/sites/ec2-profile-rights.json")
    }
}

/// Where it is, for messages.
impl fmt::Display for Ec2Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ec2 in {}", self.region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            region: "eu-central-1".to_owned(),
            image: "ami-0123456789abcdef0".to_owned(),
            kind: Some("m7i.xlarge".to_owned()),
            ..Machine::default()
        }
    }

    #[test]
    fn what_cannot_be_a_machine_is_told() {
        let settings = |machine: &Machine| Ec2Settings::new(machine, Path::new("/etc/tidegate"));
        assert!(settings(&machine()).is_ok());
        type Change = fn(&mut Machine);
        let changes: [(Change, &str); 9] = [
            (
                |one| one.pool = Some("gpu".to_owned()),
                "means nothing to the driver `ec2`",
            ),
            (|one| one.region = "eu central".to_owned(), "is no region"),
            (|one| one.image = "debian-13".to_owned(), "is no image"),
            (|one| one.kind = None, "is no kind of machine"),
            (|one| one.networks = vec!["vpc-1".to_owned()], "is no network"),
            (
                |one| one.security_groups = vec!["default".to_owned()],
                "is no security group",
            ),
            (
                |one| one.profile = Some("a b".to_owned()),
                "is no name of an instance profile",
            ),
            (
                |one| one.endpoint = Some("http://ec2.example.org".to_owned()),
                "must begin with `https:`",
            ),
            (
                |one| one.folder = Some("training".to_owned()),
                "is `folder`, which means nothing to",
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
