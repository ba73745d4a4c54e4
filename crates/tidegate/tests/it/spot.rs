//! Machines that a cloud takes back again and again: what a job had done is not done again, and changes nothing.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate_cloud::Ec2Settings;
use tidegate_contracts::journal::Journal;
use tidegate_local::SqliteJournal;

use crate::clouds::ADMIN;
use crate::fixture::{Hospital, files, processes};
use crate::machines::{Running, google_beside, hospital_with, programs, second_site, trained};
use crate::peers::platform::vertex_with;
use crate::peers::{Machines, ec2, open_seaweed};

/// How often the machine is taken back.
const TIMES: usize = 10;

/// Work whose every step depends on all steps before it, and a model that depends on the last one.
const TRAIN: &str = "
    state=\"$TIDEGATE_CHECKPOINT/state\"
    step=0 chain=beginning
    if [ -f \"$state\" ]; then read -r step chain <\"$state\"; fi
    echo \"begins after step $step\"
    while [ \"$step\" -lt 100 ]; do
        step=$((step + 1))
        chain=$( (echo \"$chain $step\"; cat \"$TIDEGATE_INPUT_TRAIN\"/*.csv) | sha256sum | cut -c1-64)
        echo \"$step $chain\" >\"$state.tmp\" && mv \"$state.tmp\" \"$state\"
        echo \"{\\\"step\\\": $step}\" >>\"$TIDEGATE_METRICS\"
        sleep \"$PAUSE\"
    done
    seed=$((0x$(echo \"$chain\" | cut -c1-8)))
    echo \"{\\\"model\\\": \\\"logistic\\\", \\\"epochs\\\": 12, \\\"batch_size\\\": 32, \\\"seed\\\": $seed}\" >trainer.json
    \"$TIDEGATE_TRAINER\" trainer
";

/// The model file of the newest accepted attempt.
fn model(hospital: &Hospital, run: &str) -> Vec<u8> {
    let models = hospital.state().join("sites/hospital/models");
    let found = files(&models)
        .into_iter()
        .filter(|file| file.ends_with("model.onnx") && file.to_string_lossy().contains(&format!("{run}.train.")));
    let found: Vec<PathBuf> = found.collect();
    let [file] = &found[..] else {
        panic!("one model of {run}: {found:?}")
    };
    std::fs::read(file).unwrap()
}

/// Milliseconds below `most`, another number each time.
fn some(most: u64) -> Duration {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    Duration::from_millis(random % most)
}

/// Whether an attempt of the newest run has unfinished work that its keeper knows of.
pub(crate) fn has_checkpoint(hospital: &Hospital, attempt: u32) -> bool {
    let Ok(journal) = SqliteJournal::open(hospital.state().join("sites/hospital/journal.sqlite")) else {
        return false;
    };
    let attempts = journal.scan("attempts", "").unwrap_or_default();
    let records = attempts
        .iter()
        .map(|(_, bytes)| serde_json::from_slice::<Value>(bytes).unwrap());
    let mut of_it = records.filter(|one| one["attempt"]["attempt"] == attempt);
    of_it.any(|one| one["checkpoint"].is_object())
}

fn alive(machines: &Machines) -> Option<String> {
    let there = trained(machines).into_iter();
    let mut alive = there.filter(|one| one["state"] == "running");
    alive.next().map(|one| one["id"].as_str().unwrap().to_owned())
}

#[test]
fn what_a_job_had_done_survives_ten_machines_that_the_cloud_takes_back() {
    let (Some(store), Some(machines)) = (open_seaweed(), ec2(Ec2Settings::needed_grant())) else {
        return;
    };
    let hospital = hospital_with(&store, &machines);
    hospital.write("train.sh", TRAIN);
    let trainer = "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n";
    let code = "  code: [train.sh]\n  run: sh train.sh\n  envs: {PAUSE: \"0\"}\n";
    hospital.edit("tidegate.yaml", trainer, code);
    let tidegate = |arguments: &[&str]| {
        let mut command = hospital.command(arguments);
        command.envs(ADMIN).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    };
    let told = |mut running: Running| {
        let (mut out, mut err) = (String::new(), String::new());
        running.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        running.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert!(running.0.wait().unwrap().success(), "{out}{err}");
        (out, err)
    };
    let summary = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let undisturbed = summary(&told(tidegate(&["run", "--yes", "--format", "json"])).0);

    hospital.edit("tidegate.yaml", "{PAUSE: \"0\"}", "{PAUSE: \"0.2\"}\n  retries: 14");
    hospital.edit("tidegate.yaml", "{infra: cloud}", "{infra: cloud, use_spot: true}");
    let run = tidegate(&["run", "--yes", "--format", "json"]);
    let mut log = None;
    let mut taken: Vec<String> = Vec::new();
    let until = Instant::now() + Duration::from_secs(300);
    while taken.len() < TIMES {
        assert!(Instant::now() < until, "{} machines were taken back", taken.len());
        let Some(machine) = alive(&machines).filter(|machine| !taken.contains(machine)) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        if log.is_none() {
            let status = summary(&told(tidegate(&["status", "--format", "json"])).0);
            let running = status.as_array().unwrap().iter().find(|run| run["status"] == "running");
            let running = running.unwrap();
            let job = &running["spending"]["jobs"][0];
            assert_eq!(
                (&job["site"], &job["attempt"]),
                (&"cloud".into(), &1.into()),
                "{status}"
            );
            assert!(job["cost"].as_str().unwrap().ends_with("USD"), "{status}");
            log = Some(tidegate(&["logs", "-f", running["id"].as_str().unwrap()]));
        }
        // Any moment counts: before the worker says hello, while it works, while it sends. Now and then something is to be
        // kept for certain.
        let attempt = u32::try_from(taken.len() + 1).unwrap();
        if attempt % 3 == 0 {
            while !has_checkpoint(&hospital, attempt) {
                assert!(Instant::now() < until, "nothing of attempt {attempt} is kept");
                std::thread::sleep(Duration::from_millis(50));
            }
        } else {
            std::thread::sleep(some(3500));
        }
        machines.tell(&format!("interrupt?machine={machine}"));
        taken.push(machine);
    }
    let (out, err) = told(run);
    let disturbed = summary(&out);
    assert_eq!(err.matches("the cloud took the spot machine").count(), TIMES, "{err}");
    let name = disturbed["run"].as_str().unwrap();
    assert_eq!(
        model(&hospital, name),
        model(&hospital, undisturbed["run"].as_str().unwrap())
    );
    let (log, _) = told(log.unwrap());
    // The attempts whose work was kept for certain, and those after them.
    for attempt in [3, 6, 9] {
        assert!(log.contains(&format!("--- train-{attempt}\n")), "{log}");
    }
    let went_on = log.matches("it goes on from the checkpoint of attempt").count();
    assert!(went_on > 0, "{log}");
    // No step was done again that an attempt found done, and every one was measured.
    let (metrics, _) = told(tidegate(&["logs", "--metrics", name]));
    for step in 1..=100 {
        let line = format!("{{\"step\": {step}}}");
        assert!(metrics.lines().any(|one| one == line), "{step}: {metrics}");
    }
    let states = trained(&machines);
    assert!(states.iter().all(|one| one["state"] == "terminated"), "{states:?}");
}

/// Does nothing but wait until it hears that its machine ends, and saves then; goes on where that was saved.
const WAITING: &str = "
    if [ ! -f \"$TIDEGATE_CHECKPOINT/saved\" ]; then
        echo 'waits'
        until [ -f \"$TIDEGATE_NOTICE\" ]; do sleep 0.1; done
        echo saved >\"$TIDEGATE_CHECKPOINT/.saved\" && mv \"$TIDEGATE_CHECKPOINT/.saved\" \"$TIDEGATE_CHECKPOINT/saved\"
        sleep 600
    fi
    echo '{\"model\": \"logistic\", \"epochs\": 12, \"batch_size\": 32, \"seed\": 1}' >trainer.json
    \"$TIDEGATE_TRAINER\" trainer
";

/// Begins a run whose training waits to hear of its machine's end; until it waits.
fn waiting(hospital: &Hospital) -> Running {
    hospital.write("train.sh", WAITING);
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
        "  code: [train.sh]\n  run: sh train.sh\n",
    );
    let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
    command.envs(ADMIN).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = Running(command.spawn().unwrap());
    let until = Instant::now() + Duration::from_secs(120);
    while !hospital.logs().contains("waits") {
        assert!(Instant::now() < until, "its training does not begin");
        std::thread::sleep(Duration::from_millis(50));
    }
    run
}

/// The end of a run whose first machine sent its work home before its own end.
fn handed_over(hospital: &Hospital, mut run: Running, why: &str) {
    let (mut out, mut err) = (String::new(), String::new());
    let until = Instant::now() + Duration::from_secs(180);
    while run.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "it does not end: {}", hospital.logs());
        std::thread::sleep(Duration::from_millis(100));
    }
    run.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    run.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(run.0.wait().unwrap().success(), "{out}{err}");
    assert!(err.contains(&format!("machine: its machine {why}")), "{err}");
    let logs = hospital.logs();
    for line in [
        format!("[tidegate: this machine {why}, and the command is stopped in "),
        "[tidegate: it goes on from the checkpoint of attempt 1]".to_owned(),
    ] {
        assert!(logs.contains(&line), "{line}: {logs}");
    }
    assert_eq!(logs.matches("waits").count(), 1, "{logs}");
}

#[test]
fn a_spot_machine_that_hears_of_its_end_sends_its_work_home_before() {
    let (Some(store), Some(machines)) = (open_seaweed(), ec2(Ec2Settings::needed_grant())) else {
        return;
    };
    let hospital = hospital_with(&store, &machines);
    hospital.edit("tidegate.yaml", "{infra: cloud}", "{infra: cloud, use_spot: true}");
    let run = waiting(&hospital);
    let machine = alive(&machines).unwrap();
    machines.tell(&format!("likely?machine={machine}"));
    let until = Instant::now() + Duration::from_secs(60);
    while !has_checkpoint(&hospital, 1) {
        assert!(Instant::now() < until, "nothing is kept: {}", hospital.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
    let likely = "[tidegate: this machine may soon be taken back by the cloud: it is a spot machine: unfinished work is sent now]";
    assert!(hospital.logs().contains(likely), "{}", hospital.logs());
    machines.tell(&format!("notice?machine={machine}&seconds=20"));
    handed_over(&hospital, run, "is taken back by the cloud: it is a spot machine");
    let states = trained(&machines);
    assert_eq!(states.len(), 2, "{states:?}");
    assert!(states.iter().all(|one| one["state"] == "terminated"), "{states:?}");
}

#[test]
fn a_worker_that_is_told_to_end_sends_its_work_home_before() {
    let hospital = Hospital::new();
    let run = waiting(&hospital);
    let worker = processes(&hospital, "worker").into_iter().next().unwrap();
    let told = std::process::Command::new("kill")
        .args(["-TERM", &worker.to_string()])
        .status();
    assert!(told.unwrap().success());
    handed_over(&hospital, run, "was told to end (SIGTERM)");
}

#[test]
fn what_a_job_had_done_goes_with_it_to_another_cloud() {
    let (Some(store), Some(machines), Some(other)) = (
        open_seaweed(),
        ec2(Ec2Settings::needed_grant()),
        vertex_with(programs()),
    ) else {
        return;
    };
    let hospital = hospital_with(&store, &machines);
    hospital.write("train.sh", TRAIN);
    let trainer = "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n";
    let code = "  code: [train.sh]\n  run: sh train.sh\n  envs: {PAUSE: \"0.2\"}\n";
    hospital.edit("tidegate.yaml", trainer, code);
    let google = google_beside(&other, &[]).unwrap();
    let second = second_site(&google, &other);
    let copies = second.replace("  ward:\n", "    transfer: {copy_from: [cloud]}\n  ward:\n");
    hospital.edit("sites.yaml", "  ward:\n", &copies);
    hospital.edit(
        "tidegate.yaml",
        "{infra: cloud}",
        "{any_of: [{infra: cloud}, {infra: second}], use_spot: true}",
    );
    let planned = hospital.command(&["plan"]).envs(ADMIN).output().unwrap();
    let planned = String::from_utf8(planned.stdout).unwrap();
    assert!(planned.contains("hospital (or cloud) -> second"), "{planned}");
    let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
    command.envs(ADMIN).envs([other.service_account()]);
    let mut run = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let until = Instant::now() + Duration::from_secs(120);
    // Two machines are taken back: the first once something of it is kept, the second at once.
    let mut taken: Vec<String> = Vec::new();
    while taken.len() < 2 {
        assert!(Instant::now() < until && run.0.try_wait().unwrap().is_none());
        match alive(&machines).filter(|machine| !taken.contains(machine)) {
            Some(machine) if !taken.is_empty() || has_checkpoint(&hospital, 1) => {
                machines.tell(&format!("interrupt?machine={machine}"));
                taken.push(machine);
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    let (mut out, mut err) = (String::new(), String::new());
    run.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    run.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(run.0.wait().unwrap().success(), "{out}{err}");
    let summary: Value = serde_json::from_str(&out).unwrap();
    let log = hospital.succeed(&["logs", summary["run"].as_str().unwrap()]);
    let third = log.split("--- train-3\n").nth(1).unwrap();
    assert!(
        third.contains("it goes on from the checkpoint of an attempt at another site"),
        "{log}"
    );
    assert!(!third.contains("begins after step 0\n"), "{log}");
    // It came home and went out again, each under a permit, and stands in the account.
    let crossings = summary["crossings"].as_array().unwrap();
    for (from, to) in [("cloud", "hospital"), ("hospital", "second")] {
        let there = crossings.iter().any(|one| {
            one["from"] == from && one["to"] == to && one["artifact"].as_str().unwrap().starts_with("checkpoint-")
        });
        assert!(there, "{from} to {to}: {crossings:?}");
    }
    // What stood in the first cloud came from there, sealed as it was: home sent no more than names and keys of it.
    for input in ["code", "train", "validation"] {
        let sum = |from: &str, to: &str| -> u64 {
            let lines = crossings.iter().filter(|one| one["artifact"] == input);
            let lines = lines.filter(|one| one["from"] == from && one["to"] == to);
            lines.map(|one| one["bytes"].as_u64().unwrap()).sum()
        };
        let (there, named, copied) = (
            sum("hospital", "cloud"),
            sum("hospital", "second"),
            sum("cloud", "second"),
        );
        assert!(named > 0 && copied > 0, "{input}: {crossings:?}");
        assert!(
            there.abs_diff(named + copied) < 200,
            "{input}: {there}, {named} and {copied}"
        );
    }
    hospital.succeed(&["audit", "verify"]);
}
