//! A vCenter, whose virtual machines are processes here.

use std::path::PathBuf;
use std::process::Command;

use super::{Peer, certificates, free_port};

/// A vCenter, whose machines are processes; where it is. None where it is not installed.
pub(crate) struct Vsphere {
    pub(crate) peer: Peer,
    /// Where its web service is.
    pub(crate) endpoint: String,
}

/// Starts a vCenter.
pub(crate) fn vsphere() -> Option<Vsphere> {
    let program = std::env::var_os("TIDEGATE_VSPHERE").map(|folder| PathBuf::from(folder).join("bin/vcenter"));
    let Some(program) = program.filter(|program| program.is_file()) else {
        assert!(
            std::env::var_os("TIDEGATE_INTEROP").is_none(),
            "TIDEGATE_VSPHERE must name the environment with `vcenter`; `tests/run --all` makes it"
        );
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let port = free_port();
    // Its machines end with it.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(program).arg(port.to_string()).arg(folder.path());
    command.args([Vsphere::USER, Vsphere::PASSWORD]);
    let peer = Peer::start(command, folder, port);
    let endpoint = format!("https://127.0.0.1:{port}");
    Some(Vsphere { peer, endpoint })
}

impl Vsphere {
    const USER: &str = "trainer@vsphere.local";
    pub(crate) const PASSWORD: &str = "hush & <hush>";

    /// What somebody has to log in with.
    pub(crate) fn login(&self) -> [(&'static str, String); 2] {
        [
            ("VSPHERE_USER", Self::USER.to_owned()),
            ("VSPHERE_PASSWORD", Self::PASSWORD.to_owned()),
        ]
    }

    /// A machine of its template, as a sites file says it.
    pub(crate) fn machine(&self) -> String {
        format!(
            "{{region: DC0, image: debian-13, pool: DC0_C0, folder: vm/tidegate, endpoint: \"{}\", certificates: \"{}\"}}",
            self.endpoint,
            self.authority().display()
        )
    }

    /// Whom it is vouched for by.
    pub(crate) fn authority(&self) -> PathBuf {
        self.peer.folder().join("ca.pem")
    }

    /// What its test's own face answers.
    pub(crate) fn tell(&self, what: &str) -> serde_json::Value {
        let script = format!(
            "import ssl, sys, urllib.request\ncontext = ssl.create_default_context(cafile='{}')\n\
             print(urllib.request.urlopen('{}/peer/{what}', context=context).read().decode())",
            self.authority().display(),
            self.endpoint
        );
        serde_json::from_str(&Self::python(&script)).unwrap()
    }

    /// Does something with the vendor's own client, in Python, which has the vCenter as `content`; gives what it printed.
    pub(crate) fn client(&self, script: &str) -> String {
        let beginning = format!(
            "from pyVim.connect import SmartConnect, Disconnect\nfrom pyVim.task import WaitForTask\n\
             from pyVmomi import vim\nimport json, ssl\ncontext = ssl.create_default_context(cafile='{}')\n\
             vcenter = SmartConnect(host='127.0.0.1', port={}, user='{}', pwd='{}', sslContext=context)\n\
             content = vcenter.content\n\
             def all(kind):\n    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)\n    \
             return list(view.view)\n\
             def settings(machine):\n    return {{one.key: one.value for one in machine.config.extraConfig}}\n",
            self.authority().display(),
            self.peer.port(),
            Self::USER,
            Self::PASSWORD
        );
        Self::python(&format!("{beginning}{script}\nDisconnect(vcenter)\n"))
    }

    fn python(script: &str) -> String {
        let folder = PathBuf::from(std::env::var_os("TIDEGATE_VSPHERE").unwrap());
        let output = Command::new(folder.join("bin/python"))
            .args(["-c", script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
