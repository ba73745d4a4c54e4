//! `cargo xtask e2e`: the hospital pipeline with training on each kind of machine that a cloud starts.
//!
//! Every kind runs in folders of its own, against software that is started for it and ended after it: the site's store
//! (SeaweedFS, or what the cloud has itself), and whatever starts the machines. `docs/clouds.md` says what each of them is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use tidegate_cloud::Ec2Settings;

use crate::peers::platform::{Platform, azureml_with, vertex_with};
use crate::peers::stores::{WORKER_ACCOUNT, azure_storage, google_storage_for};
use crate::peers::vcenter::vsphere;
use crate::peers::{Machines, Peer, ec2, entra, make_open_bucket, open_seaweed, openstack};

/// What the example's file says of the cloud, and what stands there instead.
const STORE: &str = "store: \"folder:\"\n    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.10 USD/h, spot_price: 0.04 USD/h}";

/// Runs the pipeline with training on machines of each kind.
#[derive(Debug, clap::Args)]
pub(crate) struct EndToEnd {
    /// Kinds of machines; all without one
    kinds: Vec<Kind>,
    /// How to print it
    #[arg(long, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// Amazon's EC2: moto, with what it leaves out
    Ec2,
    /// OpenStack: its own control plane
    Openstack,
    /// VMware vSphere: the simulator of govmomi, with what it leaves out
    Vsphere,
    /// Google's Vertex AI: a server made from its discovery document
    Vertex,
    /// Azure Machine Learning: a server made from the models of Microsoft's client
    Azureml,
    /// Two clouds: EC2 has no room, and the training goes to Vertex AI
    Multi,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What came of one kind.
#[derive(Debug, Serialize)]
struct Report {
    site: Kind,
    /// `done`, or why not.
    status: String,
    /// Seconds of the run.
    seconds: f64,
    /// What of the training took how long.
    phases: Value,
}

impl EndToEnd {
    /// Runs and prints; every kind is tried.
    ///
    /// # Errors
    /// When what is needed is missing, or a run did not end well.
    pub(crate) fn run(&self, root: &Path) -> anyhow::Result<()> {
        let all = [
            Kind::Ec2,
            Kind::Openstack,
            Kind::Vsphere,
            Kind::Vertex,
            Kind::Azureml,
            Kind::Multi,
        ];
        let kinds = if self.kinds.is_empty() { &all[..] } else { &self.kinds };
        let mut build = crate::cargo();
        build.args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--package",
            "tidegate",
            "--package",
            "tidegate-machine",
        ]);
        ensure!(
            build.current_dir(root).status()?.success(),
            "the program does not build"
        );
        let mut failed = false;
        for kind in kinds {
            let began = Instant::now();
            let report = match pipeline(*kind, root) {
                Ok(report) => report,
                Err(error) => Report {
                    site: *kind,
                    status: format!("{error:#}"),
                    seconds: began.elapsed().as_secs_f64(),
                    phases: Value::Array(Vec::new()),
                },
            };
            failed |= report.status != "done";
            self.print(&report)?;
        }
        ensure!(!failed, "not every pipeline is done");
        Ok(())
    }

    fn print(&self, report: &Report) -> anyhow::Result<()> {
        match self.format {
            Format::Json => println!("{}", serde_json::to_string(report)?),
            Format::Text => {
                let site = serde_json::to_value(report.site)?;
                let site = site.as_str().unwrap_or_default();
                println!("{site:<10} {} after {:.1} s", report.status, report.seconds);
                let phases = report.phases.as_array().into_iter().flatten();
                for (phase, seconds) in
                    phases.filter_map(|one| Some((one["phase"].as_str()?, one["seconds"].as_f64()?)))
                {
                    println!("  {phase:<10} {seconds:>7.2} s");
                }
            }
        }
        Ok(())
    }
}

/// One run, with everything that it needs.
fn pipeline(kind: Kind, root: &Path) -> anyhow::Result<Report> {
    let store = open_seaweed().context("TIDEGATE_PEERS must name the environment with the peers")?;
    make_open_bucket(&store, "tidegate");
    let s3 = |machine: String| {
        let at = format!(
            "s3://tidegate/cloud?endpoint=http://127.0.0.1:{}&region=us-east-1",
            store.port()
        );
        (machine, format!("{at}&role={}", Peer::ROLE))
    };
    let google = |cloud: &Platform| {
        let store = google_storage_for(&cloud.peer.folder().join("known.json"), &[]);
        store.context("the peers have no Google Cloud Storage")
    };
    let on_google = |cloud: &Platform, store: &Peer| {
        let at = format!("{}&role={WORKER_ACCOUNT}", store.google("cloud"));
        (on_vertex(cloud), at)
    };
    match kind {
        Kind::Ec2 => {
            let cloud = ec2(Ec2Settings::needed_grant()).context("the peers have no moto")?;
            run(kind, root, &[s3(on_ec2(&cloud))], &[])
        }
        Kind::Openstack => {
            let cloud = openstack().context("TIDEGATE_OPENSTACK must name the environment with OpenStack")?;
            let machine = format!(
                "driver: openstack, machine: {{region: RegionOne, image: debian-13, networks: [inside], endpoint: \"{}\"}}",
                cloud.keystone
            );
            run(kind, root, &[s3(machine)], &cloud.login())
        }
        Kind::Vsphere => {
            let cloud = vsphere().context("TIDEGATE_VSPHERE must name the environment with `vcenter`")?;
            let machine = format!("driver: vsphere, machine: {}", cloud.machine());
            run(kind, root, &[s3(machine)], &cloud.login())
        }
        Kind::Vertex => {
            let cloud = vertex_with(&programs()?).context("the peers have no discovery document")?;
            let store = google(&cloud)?;
            run(kind, root, &[on_google(&cloud, &store)], &[cloud.service_account()])
        }
        Kind::Multi => {
            let full = ec2(Ec2Settings::needed_grant()).context("the peers have no moto")?;
            for network in &full.networks {
                full.tell(&format!("full?subnet={network}"));
            }
            let other = vertex_with(&programs()?).context("the peers have no discovery document")?;
            let store = google(&other)?;
            let places = [s3(on_ec2(&full)), on_google(&other, &store)];
            run(kind, root, &places, &[other.service_account()])
        }
        Kind::Azureml => {
            let cloud = azureml_with(&programs()?).context("the peers have no models of Azure Machine Learning")?;
            let machine = format!(
                "driver: azureml, machine: {{project: \"{}\", image: trainer, type: Standard_DS3_v2, \
                 endpoint: \"{}\"}}",
                Platform::WORKSPACE,
                cloud.endpoint()
            );
            let store = azure_storage(&[]).context("the peers have no Azurite")?;
            run(
                kind,
                root,
                &[(machine, store.azure("cloud"))],
                &entra(&cloud.peer, "SKEEPER"),
            )
        }
    }
}

fn on_ec2(cloud: &Machines) -> String {
    format!(
        "driver: ec2, machine: {{region: eu-central-1, image: {}, type: m7i.large, networks: [{}], endpoint: \"{}\"}}",
        cloud.image,
        cloud.networks.join(", "),
        cloud.endpoint()
    )
}

fn on_vertex(cloud: &Platform) -> String {
    format!(
        "driver: vertex, machine: {{project: st-mary-ml, region: europe-west4, image: trainer, type: n1-standard-8, \
         endpoint: \"{}\"}}",
        cloud.endpoint()
    )
}

/// Where an image has the program.
fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("this program is in no folder")?.to_owned())
}

/// The run where the example's cloud has the first of some machines with their stores; each other one is at a dearer site of
/// its own, and the training may be at any of them.
fn run(kind: Kind, root: &Path, places: &[(String, String)], login: &[(&str, String)]) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir()?;
    for entry in std::fs::read_dir(root.join("examples/hospital"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.path().join(entry.file_name()))?;
    }
    let change = |file: &str, from: &str, to: &str| -> anyhow::Result<()> {
        let text = std::fs::read_to_string(folder.path().join(file))?;
        ensure!(text.contains(from), "the example's {file} is not what it was");
        Ok(std::fs::write(folder.path().join(file), text.replacen(from, to, 1))?)
    };
    let mut names = vec!["cloud".to_owned()];
    for (number, (machine, at)) in places.iter().enumerate() {
        let name = if number == 0 {
            "cloud".to_owned()
        } else {
            format!("cloud-{number}")
        };
        let price = number + 1;
        let offer = format!(
            "store: \"{at}\"\n    compute: {{{machine}, cpus: 2, memory: 2 GiB, price: 0.{price}0 USD/h, \
             spot_price: 0.0{price} USD/h}}"
        );
        if number == 0 {
            change("sites.yaml", STORE, &offer)?;
        } else {
            let rest = "egress: {\"*\": 0.09 USD/GiB}\n    network: {setup: allow, run: deny}";
            let site = format!(
                "  {name}:\n    kind: public\n    jurisdiction: US\n    clearance: {{level: internal}}\n    {offer}\n    {rest}\n"
            );
            change("sites.yaml", "  ward:\n", &format!("{site}  ward:\n"))?;
            names.push(name);
        }
    }
    if names.len() > 1 {
        let any: Vec<String> = names.iter().map(|name| format!("{{infra: {name}}}")).collect();
        change(
            "tidegate.yaml",
            "infra: cloud",
            &format!("any_of: [{}]", any.join(", ")),
        )?;
    }
    let program = std::env::current_exe()?.with_file_name("tidegate");
    let began = Instant::now();
    let output = Command::new(program)
        .args(["run", "tidegate.yaml", "--yes", "--format", "json"])
        .current_dir(folder.path())
        .env("TIDEGATE_HOME", folder.path().join("state"))
        .envs([("AWS_ACCESS_KEY_ID", "AKADMIN"), ("AWS_SECRET_ACCESS_KEY", "SKADMIN")])
        .envs(login.iter().cloned())
        .stdin(Stdio::null())
        .output()?;
    let seconds = began.elapsed().as_secs_f64();
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("{}", told.lines().last().unwrap_or("it said nothing"));
    }
    let mut summary: Value = serde_json::from_slice(&output.stdout)?;
    Ok(Report {
        site: kind,
        status: summary["status"].as_str().unwrap_or("unknown").to_owned(),
        seconds,
        phases: summary["training"].take(),
    })
}
