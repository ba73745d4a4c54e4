//! Jobs on machines that are reached by ssh: OpenSSH's server on this one, under two names.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tidegate_contracts::conformance::{self, ComputeSubject};
use tidegate_contracts::journal::Journal;
use tidegate_contracts::{Compute, ComputeError, Handle, JobState};
use tidegate_local::{SqliteJournal, program_digest};
use tidegate_ssh::{Hosts, SshDriver};

use crate::clouds::{ADMIN, hospital_at, hospital_over};
use crate::fixture::{Hospital, worker_program};
use crate::nodes::TOGETHER;
use crate::peers::{Peer, free_port, seaweed};

const SERVER: &str = "/usr/sbin/sshd";

fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A server that lets this user in by a key, and how `ssh` finds it as `gpu-1` and `gpu-2`: `config` of its folder.
/// None where there is no server.
fn machines() -> Option<Peer> {
    if !Path::new(SERVER).exists() {
        assert!(
            std::env::var_os("TIDEGATE_INTEROP").is_none(),
            "OpenSSH's server is missing; `tests/run --all` installs it"
        );
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    for key in ["host", "user"] {
        let file = folder.path().join(key);
        done(
            Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(file),
        );
    }
    let public = |name: &str| std::fs::read_to_string(folder.path().join(format!("{name}.pub"))).unwrap();
    let port = free_port();
    let user = done(Command::new("id").arg("-un"));
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("authorized", public("user"));
    write("known", format!("[127.0.0.1]:{port} {}", public("host")));
    write(
        "server",
        format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nPidFile none\n\
             UsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\n"
        ),
    );
    write(
        "config",
        format!(
            "Host gpu-1 gpu-2\n  HostName 127.0.0.1\n  Port {port}\nHost *\n  User {user}  IdentityFile {at}/user\n  \
             IdentitiesOnly yes\n  UserKnownHostsFile {at}/known\n  GlobalKnownHostsFile none\n"
        ),
    );
    // Where the server, run by root, gives up its rights before it listens to anybody.
    let _ = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create("/run/sshd");
    let mut server = Command::new(SERVER);
    server.args(["-D", "-e", "-f", "server"]);
    Some(Peer::start(server, folder, port))
}

fn driver(names: &[&str], peer: &Peer, folder: &Path) -> SshDriver {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let hosts = Hosts::new(&names, Some(peer.folder().join("config")), folder.to_str()).unwrap();
    let digest = program_digest(&worker_program(), None).map_err(|error| error.to_string());
    SshDriver::new(hosts, worker_program(), digest.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_reached_by_ssh_are_a_compute() {
    let Some(peer) = machines() else { return };
    let folder = tempfile::tempdir().unwrap();
    let common = folder.path().join("common");
    std::fs::create_dir(&common).unwrap();
    let verdict = conformance::compute(&ComputeSubject {
        open: &|name| -> Arc<dyn Compute> {
            let folder = folder.path().join(name);
            if std::fs::create_dir(&folder).is_ok() {
                // The program comes once, and not for every part of the suite.
                std::os::unix::fs::symlink(&common, folder.join("bin")).unwrap();
            }
            Arc::new(driver(&["gpu-1"], &peer, &folder))
        },
        ends: &|code, ticket| {
            let script =
                format!("test \"$(cat)\" = '{ticket}' && test \"$SUITE\" = conformance && exit {code}; exit 99");
            ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
        },
        runs: ["/bin/sh", "-c", "sleep 1000 & wait"].map(str::to_owned).to_vec(),
        patience: Duration::from_secs(60),
        knows_exit_codes: true,
    })
    .await;
    assert_eq!(verdict, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_not_known_or_out_of_reach_is_told_and_never_taken_for_gone() {
    let Some(mut peer) = machines() else { return };
    let folder = tempfile::tempdir().unwrap();
    let handle = |host: &str| Handle {
        id: "job".to_owned(),
        platform: format!("ssh:{host}"),
    };
    let why = async |driver: &SshDriver, host: &str| match driver.observe(&handle(host)).await {
        Err(ComputeError::Transient { what, source }) => format!("{what}: {source}"),
        other => panic!("{other:?}"),
    };
    let one = driver(&["gpu-1"], &peer, folder.path());
    assert_eq!(one.observe(&handle("gpu-1")).await.unwrap(), JobState::Gone);
    // Somebody else answers there.
    let known = peer.folder().join("known");
    let text = std::fs::read_to_string(&known).unwrap();
    let other = std::fs::read_to_string(peer.folder().join("user.pub")).unwrap();
    let place = text.split(' ').next().unwrap();
    std::fs::write(&known, format!("{place} {other}")).unwrap();
    let told = why(&one, "gpu-1").await;
    assert!(told.contains("observing job `job` on host `gpu-1`"), "{told}");
    assert!(told.contains("Host key verification failed"), "{told}");
    std::fs::write(&known, text).unwrap();
    // The program is not there any more, and is brought again.
    let digest = program_digest(&worker_program(), None).unwrap().to_hex();
    let there = folder.path().join("bin").join(digest).join("tidegate");
    std::fs::remove_file(&there).unwrap();
    assert_eq!(one.observe(&handle("gpu-1")).await.unwrap(), JobState::Gone);
    assert_eq!(
        program_digest(&there, None).unwrap(),
        program_digest(&worker_program(), None).unwrap()
    );
    let left: Vec<_> = std::fs::read_dir(there.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "something half-brought is left: {left:?}");
    peer.stop();
    let told = why(&one, "gpu-1").await;
    assert!(told.contains("Connection refused"), "{told}");
}

#[test]
fn what_a_shell_would_read_otherwise_is_told_at_its_place() {
    let hospital = hospital_at("s3://tidegate/cloud?region=us-east-1", "folder:");
    hospital.edit(
        "sites.yaml",
        "compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.10 USD/h, spot_price: 0.04 USD/h}",
        "compute: {driver: ssh, hosts: [gpu-1, \"gpu-2;id\"], folder: \"~/x\", cpus: 2, memory: 2 GiB, price: 0.10 USD/h}",
    );
    let output = hospital.tidegate(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("the compute of site `cloud`: `gpu-2;id` is no host"),
        "{told}"
    );
    assert!(
        told.contains("the compute of site `cloud`: `~/x` is no folder here"),
        "{told}"
    );
    assert_eq!(told.matches("sites.yaml:15:").count(), 2, "{told}");
}

/// A hospital whose cloud has two machines that are reached by ssh.
fn hospital_with_hosts(store: &Peer, machines: &Peer, folder: &Path) -> Hospital {
    let hospital = hospital_over(store);
    hospital.edit(
        "sites.yaml",
        "compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.10 USD/h, spot_price: 0.04 USD/h}",
        &format!(
            "compute: {{driver: ssh, hosts: [gpu-1, gpu-2], ssh_config: {}/config, folder: {}, cpus: 2, memory: 2 GiB, \
             price: 0.10 USD/h}}",
            machines.folder().display(),
            folder.display()
        ),
    );
    hospital
}

#[test]
fn a_pipeline_trains_on_machines_that_are_reached_by_ssh() {
    let (Some(peer), Some(machines)) = (seaweed(), machines()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let hospital = hospital_with_hosts(&peer, &machines, folder.path());
    let run = || {
        let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
        let output = command.envs(ADMIN).env("TIDEGATE_LOG", "trace").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let summary = run();
    assert_eq!(summary["status"], "done");
    assert!(summary["metrics"]["home"]["roc_auc"].as_f64().unwrap() > 0.55);
    // The job was there, by a program with the digest of this one, and what it left is removed.
    let digest = program_digest(&worker_program(), None).unwrap().to_hex();
    assert!(folder.path().join("bin").join(digest).join("tidegate").exists());
    let jobs = folder.path().join("jobs");
    let removed = std::fs::read_dir(&jobs).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(removed.filter(|path| path.is_dir()).count(), 1);
    // Nothing ran beside the state of the site here.
    assert!(!hospital.state().join("sites/cloud/compute").exists());
    assert_eq!(run()["reused"].as_array().unwrap().len(), 7);
}

#[test]
fn machines_that_are_reached_by_ssh_train_together_each_on_a_host_of_its_own() {
    let (Some(peer), Some(machines)) = (seaweed(), machines()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let hospital = hospital_with_hosts(&peer, &machines, folder.path());
    hospital.write("train.py", TOGETHER);
    hospital.edit(
        "sites.yaml",
        "    compute: {driver: ssh",
        "    network: {nodes: allow}\n    compute: {driver: ssh",
    );
    let trainer = "trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}";
    let command = "num_nodes: 3\n  code: [train.py]\n  run: python3 train.py";
    hospital.edit("tidegate.yaml", trainer, command);
    let run = || {
        let mut command = hospital.command(&["run", "--yes"]);
        command.envs(ADMIN).output().unwrap()
    };
    let few = run();
    let told = String::from_utf8_lossy(&few.stderr).into_owned();
    assert_eq!(few.status.code(), Some(3), "{told}");
    assert!(told.contains("3 machines are asked for, and the site has 2"), "{told}");

    hospital.edit("tidegate.yaml", "num_nodes: 3", "num_nodes: 2");
    let output = run();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let journal = SqliteJournal::open(hospital.state().join("control/journal.sqlite")).unwrap();
    let jobs = journal.scan("jobs", "").unwrap().into_iter();
    let jobs = jobs.map(|(_, job)| serde_json::from_slice::<Value>(&job).unwrap());
    let hosts: Vec<String> = jobs
        .map(|job| job["handle"]["platform"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(hosts.len(), 2, "{hosts:?}");
    assert_ne!(hosts[0], hosts[1]);
}
