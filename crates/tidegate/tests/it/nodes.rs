//! A training on several machines, by software that knows nothing of Tidegate.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate_cloud::Ec2Settings;

use crate::clouds::ADMIN;
use crate::fixture::{Hospital, nobody_works, processes};
use crate::kills::kill;
use crate::machines::{hospital_with, trained};
use crate::peers::{ec2, open_seaweed};
use crate::spot::has_checkpoint;

/// The search path that begins with the Python that a variable names; nothing where none does.
fn path_of(variable: &str) -> Option<OsString> {
    let Some(python) = std::env::var_os(variable).map(PathBuf::from) else {
        let demanded = std::env::var_os("TIDEGATE_INTEROP").is_some_and(|value| value == "1");
        assert!(!demanded, "{variable} is not set");
        return None;
    };
    let mut path = python.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    Some(path)
}

/// A hospital whose pipeline trains on two machines by this command, and the search path for it; nothing where the example's
/// packages are not there.
fn hospital(run: &str) -> Option<(Hospital, OsString)> {
    let path = path_of("TIDEGATE_XGBOOST_PYTHON")?;
    let hospital = Hospital::new();
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/xgboost/train.py");
    hospital.write("train.py", &std::fs::read_to_string(example).unwrap());
    hospital.edit(
        "tidegate.yaml",
        "trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}",
        &format!("num_nodes: 2\n  code: [train.py]\n  run: '{run}'\n  envs: {{TREES: \"20\"}}"),
    );
    Some((hospital, path))
}

/// Lets the machines of the cloud reach one another.
fn join(hospital: &Hospital) {
    let before = "price: 0.10 USD/h, spot_price: 0.04 USD/h}\n";
    hospital.edit(
        "sites.yaml",
        before,
        &format!("{before}    network: {{nodes: allow}}\n"),
    );
}

/// How many attempts of machines ended so, by the ledger.
fn ended(hospital: &Hospital, outcome: &str) -> usize {
    let ledger = hospital.succeed(&["audit", "show", "--format", "json"]);
    ledger.matches(&format!("\"outcome\":\"{outcome}\"")).count()
}

#[test]
fn xgboost_trains_on_two_machines_that_reach_one_another_alone() {
    let Some((hospital, path)) = hospital("python3 train.py") else {
        return;
    };
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "nodes-not-allowed", "{message}");
    join(&hospital);
    let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
    let output = command.env("PATH", path).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let logs = hospital.logs();
    assert!(output.status.success(), "{message}{logs}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["status"], "done");
    assert!(!summary["training"].as_array().unwrap().is_empty(), "{summary}");
    let trees = summary["metrics"]["home"]["roc_auc"].as_f64().unwrap();
    assert!(trees > 0.6, "{summary}");
    // Each had its share of the same rows, and both are in the accounts of the run.
    let rows = |machine: &str| {
        let line = logs.lines().find(|line| line.starts_with(machine)).unwrap();
        line.split(' ').nth(4).unwrap().parse::<i64>().unwrap()
    };
    let (first, second) = (rows("machine 1 of 2: "), rows("machine 2 of 2: "));
    assert!(first > 100 && (first - second).abs() <= 1, "{logs}");
    assert!(
        logs.contains("--- train-1\n") && logs.contains("--- train-1-rank-1\n"),
        "{logs}"
    );
    assert_eq!((ended(&hospital, "accepted"), ended(&hospital, "worked")), (1, 1));
    // Each machine was paid for its time.
    let costs: Value = serde_json::from_str(&hospital.succeed(&["cost", "--format", "json"])).unwrap();
    let machines = costs[0]["machines"].as_array().unwrap();
    let ranks: Vec<_> = machines.iter().map(|one| one["rank"].as_u64().unwrap()).collect();
    assert_eq!(ranks, [0, 1]);
    assert!(
        machines
            .iter()
            .all(|one| one["cost"].as_str().unwrap().ends_with("USD")),
        "{costs}"
    );
    assert!(
        hospital
            .succeed(&["cost"])
            .contains("train, attempt 1, rank 1, at site cloud for")
    );
    assert!(nobody_works(&hospital));
}

/// Each replica gives its rank and one; what comes back is the sum of all.
const REPLICAS: &str = "
import os, subprocess
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
@tf.function
def step():
    own = tf.constant(float(os.environ['RANK']) + 1.0)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)
print('sum over', strategy.num_replicas_in_sync, 'replicas:', float(strategy.run(step)), flush=True)
if os.environ['RANK'] == '0':
    with open('trainer.json', 'w') as settings:
        settings.write('{\"model\": \"logistic\", \"epochs\": 12, \"batch_size\": 32, \"seed\": 1}')
    subprocess.run([os.environ['TIDEGATE_TRAINER'], 'trainer'], check=True)
";

/// It finds the other machine by `TF_CONFIG`, and its own processes share memory by name.
#[test]
fn tensorflows_replicas_on_two_machines_work_in_step() {
    let Some(path) = path_of("TIDEGATE_KERAS_PYTHON") else {
        return;
    };
    let hospital = Hospital::new();
    hospital.write("train.py", REPLICAS);
    hospital.edit(
        "tidegate.yaml",
        "trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}",
        "num_nodes: 2\n  code: [train.py]\n  run: python3 train.py",
    );
    join(&hospital);
    let before = "memory: 2 GiB, price: 0.10 USD/h, spot_price";
    hospital.edit("sites.yaml", before, &before.replace("2 GiB", "6 GiB"));
    let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
    let output = command.env("PATH", path).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let logs = hospital.logs();
    assert!(output.status.success(), "{message}{logs}");
    assert_eq!(logs.matches("sum over 2 replicas: 3.0\n").count(), 2, "{logs}");
    assert!(nobody_works(&hospital));
}

/// The worker of the machine of this rank in an attempt.
fn worker(hospital: &Hospital, attempt: u32, rank: u32) -> Option<u32> {
    let job = format!("-train-{attempt}-{rank}/work");
    let of = |pid: &u32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.to_string_lossy().ends_with(&job))
    };
    processes(hospital, "worker").into_iter().find(of)
}

#[test]
fn a_machine_that_is_lost_takes_the_others_with_it_and_all_go_on_from_the_checkpoint() {
    let run = "if [ ! -e $TIDEGATE_CHECKPOINT/state ]; then echo half > $TIDEGATE_CHECKPOINT/state; exec sleep 600; fi; \
               echo rank $RANK goes on from $(cat $TIDEGATE_CHECKPOINT/state); exec python3 train.py";
    let Some((hospital, path)) = hospital(run) else { return };
    join(&hospital);
    let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
    command.env("PATH", path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = command.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    while !has_checkpoint(&hospital, 1) {
        assert!(Instant::now() < until, "no checkpoint");
        std::thread::yield_now();
    }
    kill(worker(&hospital, 1, 1).unwrap());
    let output = running.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let logs = hospital.logs();
    assert!(output.status.success(), "{message}{logs}");
    for rank in [0, 1] {
        assert!(logs.contains(&format!("rank {rank} goes on from half\n")), "{logs}");
    }
    assert_eq!(
        (
            ended(&hospital, "accepted"),
            ended(&hospital, "worked"),
            ended(&hospital, "fenced")
        ),
        (1, 1, 2)
    );
    assert!(nobody_works(&hospital));
}

/// The second machine tells the first one a number, which that one needs to begin with.
pub(crate) const TOGETHER: &str = "
import os, socket, subprocess, time
own = os.environ['SKYPILOT_NODE_IPS'].split('\\n')[int(os.environ['RANK'])]
port = int(os.environ['MASTER_PORT'])
if os.environ['RANK'] == '1':
    while True:
        try:
            first = socket.create_connection((os.environ['MASTER_ADDR'], port))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    first.sendall(b'1')
else:
    second, _ = socket.create_server((own, port)).accept()
    seed = int(second.makefile().read())
    with open('trainer.json', 'w') as settings:
        settings.write('{\"model\": \"logistic\", \"epochs\": 12, \"batch_size\": 32, \"seed\": %d}' % seed)
    subprocess.run([os.environ['TIDEGATE_TRAINER'], 'trainer'], check=True)
";

#[test]
fn two_machines_of_a_cloud_train_together_and_are_removed_together() {
    let (Some(store), Some(machines)) = (open_seaweed(), ec2(Ec2Settings::needed_grant())) else {
        return;
    };
    let hospital = hospital_with(&store, &machines);
    hospital.write("train.py", TOGETHER);
    hospital.edit(
        "tidegate.yaml",
        "trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}",
        "num_nodes: 2\n  code: [train.py]\n  run: python3 train.py",
    );
    hospital.edit(
        "sites.yaml",
        "    compute:\n      driver: ec2",
        "    network: {nodes: allow}\n    compute:\n      driver: ec2",
    );
    let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
    let output = command.envs(ADMIN).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{message}{}", hospital.logs());
    let states = trained(&machines);
    assert_eq!(states.len(), 2, "{states:?}");
    assert!(states.iter().all(|one| one["state"] == "terminated"), "{states:?}");
    assert_eq!((ended(&hospital, "accepted"), ended(&hospital, "worked")), (1, 1));
}
