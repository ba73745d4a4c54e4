//! Task files of SkyPilot, unchanged, in place of a pipeline's training.

use serde_json::Value;

use crate::fixture::{Hospital, files};

const TASK: &str = "\
name: readmission
workdir: .
num_nodes: 1
resources: {infra: cloud, cpus: 2+, memory: 1+, disk_size: 100}
envs: {EPOCHS: 12, SEED: null, RATE: 1.0, LONG: 12345678901234567890, CODE: 007, YES: yes}
file_mounts:
  ~/settings/extra.txt: ../extra.txt
  ~/data: s3://anywhere/admissions
  ~/rest: {source: s3://anywhere/rest, mode: COPY}
setup: |
  test -f train.sh
  echo ready >~/ready
run: |
  set -euo pipefail
  [[ -f ~/ready && $(basename \"$BASH\") == bash ]]
  test \"$(cat ~/settings/extra.txt)\" = extra
  test -f ~/sky_workdir/train.sh
  test -f ~/data/part-00000.csv
  test -f ~/rest/part-00000.csv
  test \"$SKYPILOT_NUM_NODES $SKYPILOT_NODE_RANK $SEED\" = \"1 0 7\"
  test \"$RATE $LONG $CODE $YES\" = \"1.0 12345678901234567890 007 yes\"
  ./train.sh
";
const TRAIN: &str = "echo \"{\\\"model\\\":\\\"logistic\\\",\\\"epochs\\\":$EPOCHS,\\\"batch_size\\\":32,\\\"seed\\\":$SEED}\" >trainer.json
exec \"$TIDEGATE_TRAINER\" trainer
";
const TAKE: [&str; 8] = [
    "--task",
    "job/task.yaml",
    "--input",
    "~/data=admissions",
    "--input",
    "~/rest=admissions:validation",
    "--env",
    "SEED=7",
];

/// A hospital whose owner lets files of tasks be taken for internal ones.
fn hospital() -> Hospital {
    let hospital = Hospital::new();
    hospital.edit("catalog.yaml", "datasets:\n", "task_files: internal\ndatasets:\n");
    hospital.write("job/task.yaml", TASK);
    hospital.write("job/train.sh", TRAIN);
    hospital.write("job/data/big.bin", "left out");
    hospital.write("job/conf/prod.env", "left out");
    hospital.write("job/conf/raw/rows.txt", "left out");
    hospital.write("job/conf/kept/raw.txt", "kept");
    hospital.write("job/.skyignore", "# of this machine\n/data\n*.env\nconf/raw\n.sky*\n");
    let program = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(hospital.path("job/train.sh"), program).unwrap();
    hospital.write("job/.git/config", "left out");
    hospital.write("extra.txt", "extra");
    hospital
}

fn words<'a>(first: &[&'a str]) -> Vec<&'a str> {
    first.iter().chain(&TAKE).copied().collect()
}

/// The last error of a command with a wrong file or wrong words, with its exit code 2.
fn wrong(hospital: &Hospital, arguments: &[&str]) -> String {
    let output = hospital.tidegate(arguments);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    told
}

#[test]
fn a_task_file_trains_as_it_stands() {
    let hospital = hospital();
    let run = || -> Value {
        let told = hospital.succeed(&words(&["run", "--yes", "--format", "json"]));
        serde_json::from_str(&told).unwrap()
    };
    hospital.succeed(&words(&["check"]));
    let summary = run();
    assert_eq!(summary["status"], "done");
    assert!(summary["metrics"]["home"]["roc_auc"].as_f64().unwrap() > 0.55);
    let crossings = summary["crossings"].as_array().unwrap();
    let code = crossings.iter().find(|one| one["artifact"] == "code").unwrap();
    assert_eq!(
        (code["from"].as_str(), code["to"].as_str()),
        (Some("hospital"), Some("cloud"))
    );
    assert_eq!(
        run()["reused"].as_array().unwrap().len(),
        7,
        "the same task needs nothing again"
    );
    // What crossed is what was not left out.
    let home = hospital.state().join("sites/hospital/code");
    let mut sent: Vec<String> = files(&home)
        .iter()
        .map(|file| {
            file.strip_prefix(&home)
                .unwrap()
                .components()
                .skip(1)
                .collect::<std::path::PathBuf>()
        })
        .map(|file| file.display().to_string())
        .collect();
    sent.sort();
    let commands = [".task/run.sh", ".task/setup.sh"];
    assert_eq!(sent[1..3], commands);
    sent.drain(1..3);
    assert_eq!(
        sent,
        [".home/settings/extra.txt", "conf/kept/raw.txt", "task.yaml", "train.sh"]
    );
}

#[test]
fn what_a_task_brings_along_is_restricted_unless_the_catalog_says_otherwise() {
    let hospital = hospital();
    hospital.edit("catalog.yaml", "task_files: internal\n", "");
    let (rule, message) = hospital.refuses(&words(&["plan"]));
    assert_eq!(rule, "label-above-clearance", "{message}");
    assert!(
        message.contains("`code`") && message.contains("task_files: internal"),
        "{message}"
    );
    // Nor does the model that it makes, wherever it is made.
    hospital.edit("job/task.yaml", "infra: cloud", "infra: hospital");
    let (rule, message) = hospital.refuses(&words(&["plan"]));
    assert_eq!(rule, "label-above-clearance", "{message}");
    assert!(message.contains("bundle"), "{message}");
    // At home nothing crosses.
    hospital.edit("tidegate.yaml", "deploy: [hospital, ward]", "deploy: [hospital]");
    let summary = hospital.succeed(&words(&["run", "--yes", "--format", "json"]));
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["status"], "done");
    // A task without files has nothing to hide: its commands cross with each grant anyway.
    hospital.write("job/bare.yaml", "resources: {infra: cloud}\nrun: exit 0\n");
    let plan = hospital.succeed(&["plan", "--task", "job/bare.yaml", "--format", "json"]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let crossings = plan["plan"]["crossings"].as_array().unwrap();
    let code = crossings.iter().find(|one| one["artifact"] == "code").unwrap();
    assert_eq!(code["label"]["level"], "internal");
}

#[test]
fn secrets_reach_the_command_and_nothing_else() {
    const SECRET: &str = "s3cr3t-'quoted'-$HOME";
    let hospital = hospital();
    hospital.edit("job/task.yaml", "infra: cloud", "infra: hospital");
    hospital.edit("job/task.yaml", "envs:", "secrets: {TOKEN: null}\nenvs:");
    hospital.edit(
        "job/task.yaml",
        "  ./train.sh\n",
        "  test \"$TOKEN\" = \"$(cat wanted)\"\n  ./train.sh\n",
    );
    hospital.write("job/wanted", SECRET);
    let told = wrong(&hospital, &words(&["run", "--yes"]));
    assert!(
        told.contains("secrets: TOKEN") && told.contains("set the variable TOKEN"),
        "{told}"
    );
    // What stands in a command everybody on the machine sees, and so does whoever reads a log.
    let mut spoken = words(&["run", "--yes"]);
    spoken.extend(["--secret", "TOKEN=s3cr3t"]);
    let told = wrong(&hospital, &spoken);
    assert!(
        told.contains("name of a variable alone") && !told.contains("s3cr3t"),
        "{told}"
    );
    std::fs::remove_file(hospital.path("job/wanted")).unwrap();
    hospital.edit("job/task.yaml", "$(cat wanted)", "s3cr3t-'quoted'-\\$HOME");
    let output = hospital
        .command(&words(&["run", "--yes", "--format", "json"]))
        .env("TOKEN", SECRET)
        .env("TIDEGATE_LOG", "trace")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    // Outside of the private site's folder it is nowhere, in no spelling.
    let escaped = SECRET.replace('\'', "'\\''");
    let line = format!("export TOKEN='{escaped}'\n");
    let encoded = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(line)
    };
    let holds = |text: &[u8]| {
        [SECRET, &escaped, &encoded]
            .iter()
            .any(|secret| text.windows(secret.len()).any(|window| window == secret.as_bytes()))
    };
    assert!(!holds(log.as_bytes()) && !holds(&output.stdout));
    let private = hospital.state().join("sites/hospital");
    for file in files(&hospital.state()) {
        let known = file.starts_with(&private) || !holds(&std::fs::read(&file).unwrap());
        assert!(known, "{} holds the secret", file.display());
    }
}

/// The keeper reads the pipeline too, and its training is not what is trained.
#[test]
fn files_of_the_training_that_a_task_takes_the_place_of_need_not_be_there() {
    let hospital = hospital();
    hospital.edit(
        "tidegate.yaml",
        "trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}",
        "code: [missing.py]\n  run: python3 missing.py",
    );
    hospital.write("job/task.yaml", TASK);
    hospital.succeed(&words(&["plan"]));
    let without = hospital.tidegate(&["plan"]);
    let told = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(!without.status.success() && told.contains("missing.py"), "{told}");
}

#[test]
fn what_a_task_cannot_have_here_is_told_with_what_to_do() {
    let hospital = hospital();
    for (from, to, told) in [
        ("num_nodes: 1", "num_nodes: 65", "from 1 to 64"),
        ("num_nodes: 1", "num_node: 1", "unknown key `num_node`"),
        ("disk_size: 100", "ports: 8080", "unknown key `ports`"),
        (
            "infra: cloud",
            "infra: azure/westeurope",
            "neither a site nor a cloud or region of one",
        ),
        (
            "infra: cloud",
            "infra: aws/us-east-1/us-east-1a",
            "a zone cannot be chosen",
        ),
        ("infra: cloud", "region: us-east-1", "`us-east-1` is neither"),
        ("cpus: 2+", "cpus: 2x", "`resources: cpus`"),
        ("cpus: 2+", "cpus: 2x", "task.yaml:LINE:"),
        ("num_nodes: 1", "num_nodes: 0", "task.yaml:LINE:12"),
        ("EPOCHS: 12", "SM_EPOCHS: 12", "task.yaml:LINE:"),
        ("../extra.txt", "../missing.txt", "task.yaml:LINE:"),
        ("~/settings/extra.txt", "/etc/extra.txt", "task.yaml:LINE:"),
        ("../extra.txt", "{source: s3://b, modee: COPY}", "unknown key `modee`"),
        ("../extra.txt", "[a]", "a path or a bucket"),
        ("EPOCHS: 12", "SM_EPOCHS: 12", "`envs: SM_EPOCHS`"),
        ("~/settings/extra.txt", "~/data/extra.txt", "an input stands there"),
        ("~/settings/extra.txt", "/etc/extra.txt", "write `~/NAME`"),
        ("../extra.txt", "../missing.txt", "missing.txt"),
        ("run: |", "other: |", "unknown key `other`"),
        ("memory: 1+", "memory: lots", "whole number of GB"),
        ("memory: 1+", "accelerators: {T4: 1, A100: 1}", "name one kind"),
    ] {
        hospital.write("job/task.yaml", &TASK.replace(from, to));
        let shown = wrong(&hospital, &words(&["plan"]));
        let written = TASK.replace(from, to);
        let line = written
            .lines()
            .position(|line| line.contains(to))
            .map_or(0, |line| line + 1);
        let told = told.replace("LINE", &line.to_string());
        assert!(shown.contains(&told), "{to}: {shown}");
    }
    hospital.write("job/task.yaml", TASK);
    for (from, to, told) in [
        ("~/data=admissions", "~/data=others", "prepares `admissions`"),
        ("~/data=admissions", "~/data=admissions:test", "stay at home"),
        ("~/data=admissions", "~/elsewhere=admissions", "--input ~/data=DATASET"),
        ("SEED=7", "OTHER=7", "--env SEED=VALUE"),
        ("SEED=7", "SEED", "write `NAME=VALUE`"),
    ] {
        let arguments = words(&["plan"]);
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|word| if *word == from { to } else { *word })
            .collect();
        let shown = wrong(&hospital, &arguments);
        assert!(shown.contains(told), "{to}: {shown}");
    }
    // Without a task there is nothing that these could be of.
    let shown = wrong(&hospital, &["plan", "--env", "A=B"]);
    assert!(shown.contains("--task"), "{shown}");
}

#[test]
fn clouds_of_a_task_are_sites_with_their_drivers() {
    let hospital = hospital();
    hospital.edit(
        "sites.yaml",
        "compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.10 USD/h, spot_price: 0.04 USD/h}",
        "compute: {driver: ec2, cpus: 2, memory: 2 GiB, accelerators: \"T4:2\", price: 0.10 USD/h, machine: {region: us-east-1, \
         image: ami-1, type: g4dn.xlarge}}",
    );
    let sites = std::fs::read_to_string(hospital.path("sites.yaml")).unwrap();
    let (before, after) = sites.split_once("  cloud:").unwrap();
    let after = after.replacen(
        "store: \"folder:\"",
        "store: \"s3://mary/cloud?role=arn:aws:iam::1:role/worker\"",
        1,
    );
    hospital.write("sites.yaml", &format!("{before}  cloud:{after}"));
    for infra in [
        "infra: aws",
        "infra: aws/us-east-1",
        "cloud: AWS",
        "region: us-east-1",
        "cloud: aws, any_of: [{region: us-east-1}]",
    ] {
        let task = TASK.replace("infra: cloud", &format!("{infra}, accelerators: {{T4: 1}}"));
        hospital.write("job/task.yaml", &task);
        let plan = hospital.succeed(&words(&["plan", "--format", "json"]));
        let plan: Value = serde_json::from_str(&plan).unwrap();
        let tasks = plan["plan"]["tasks"].as_array().unwrap();
        let training = tasks.iter().find(|one| one["kind"] == "train").unwrap();
        assert_eq!(training["site"], "cloud", "{infra}");
    }
    hospital.write(
        "job/task.yaml",
        &TASK.replace("infra: cloud", "infra: aws/eu-central-1"),
    );
    let shown = wrong(&hospital, &words(&["plan"]));
    assert!(shown.contains("neither a site nor a cloud or region of one"), "{shown}");
}

#[test]
fn a_task_beside_the_pipeline_brings_no_state_along() {
    let hospital = hospital();
    let task = TASK
        .replace("../extra.txt", "extra.txt")
        .replace("infra: cloud", "infra: hospital");
    hospital.write("task.yaml", &task);
    hospital.write("train.sh", TRAIN);
    let program = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(hospital.path("train.sh"), program).unwrap();
    hospital.write(".skyignore", "*.csv\njob\n");
    hospital.edit("tidegate.yaml", "deploy: [hospital, ward]", "deploy: [hospital]");
    let arguments = words(&["run", "--yes", "--format", "json"]);
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|word| if *word == "job/task.yaml" { "task.yaml" } else { word })
        .collect();
    let run = |state: Option<&str>| -> Value {
        let mut command = hospital.command(&arguments);
        if let Some(state) = state {
            command.env("TIDEGATE_HOME", hospital.path(state));
        }
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // Nor by name, or by a link.
    std::os::unix::fs::symlink(hospital.state().join("control"), hospital.path("linked")).unwrap();
    std::fs::create_dir_all(hospital.state().join("control")).unwrap();
    for workdir in [".tidegate/control", "linked", ".tidegate"] {
        hospital.write("task.yaml", &task.replace("workdir: .", &format!("workdir: {workdir}")));
        let told = wrong(&hospital, &arguments);
        assert!(told.contains("nobody's code"), "{workdir}: {told}");
    }
    hospital.write("task.yaml", &task);
    std::fs::remove_file(hospital.path("linked")).unwrap();
    // Wherever the state is; with what is in it the code would be another one each time.
    for state in [None, Some("elsewhere")] {
        assert_eq!(run(state)["status"], "done");
        let again = run(state);
        assert!(
            again["reused"].as_array().unwrap().iter().any(|task| task == "train"),
            "{again}"
        );
    }
}
