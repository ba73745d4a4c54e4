//! The trainer as a command: the contract that the worker relies on.

use std::path::Path;
use std::process::{Command, Output};

use tidegate_bundle::{FeatureSchema, inspect};
use tidegate_learn::{Epoch, Table, train};
use tidegate_types::files::pipeline::TrainerModel;

use crate::patients::{csv, settings, table};

fn prepare(folder: &Path) {
    for (part, name, rows, seed) in [
        ("train", "a.csv", 300, 1),
        ("train", "b.csv", 200, 2),
        ("validation", "a.csv", 80, 3),
    ] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        std::fs::write(folder.join(part).join(name), csv(rows, seed)).unwrap();
    }
    std::fs::write(
        folder.join("trainer.json"),
        serde_json::to_vec(&settings(TrainerModel::Mlp)).unwrap(),
    )
    .unwrap();
}

fn run(folder: &Path, change: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-learn"));
    command.current_dir(folder).env_clear();
    for (name, value) in [
        ("INPUT_TRAIN", "train"),
        ("INPUT_VALIDATION", "validation"),
        ("OUTPUT", "out/model"),
        ("METRICS", "metrics.jsonl"),
    ] {
        command.env(format!("TIDEGATE_{name}"), folder.join(value));
    }
    command.env("TIDEGATE_TARGET", "died");
    change(&mut command);
    command.output().unwrap()
}

#[test]
fn reads_its_environment_and_leaves_model_schema_and_metrics() {
    let home = tempfile::tempdir().unwrap();
    prepare(home.path());
    let output = run(home.path(), |_| ());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        text.contains("500 training rows, 80 validation rows") && text.contains("epoch 15 of 15"),
        "{text}"
    );

    let mut names: Vec<_> = std::fs::read_dir(home.path().join("out/model"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["model.onnx", "schema.json"], "and nothing half-written");
    let schema = FeatureSchema::from_json(&std::fs::read(home.path().join("out/model/schema.json")).unwrap()).unwrap();
    let model = std::fs::read(home.path().join("out/model/model.onnx")).unwrap();
    inspect(&model, &schema).unwrap();

    let train_table = Table::read_folder(&home.path().join("train")).unwrap();
    let trained = train(&settings(TrainerModel::Mlp), &train_table, Some(&table(80, 3)), "died").unwrap();
    assert_eq!(
        (trained.model, trained.schema),
        (model, schema),
        "the command is the function"
    );
    let lines = std::fs::read_to_string(home.path().join("metrics.jsonl")).unwrap();
    let epochs: Vec<Epoch> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(epochs, trained.history);
    assert!(lines.starts_with(r#"{"epoch":1,"loss":"#) && lines.contains(r#","validation_loss":"#));

    run(home.path(), |_| ());
    let again = std::fs::read_to_string(home.path().join("metrics.jsonl")).unwrap();
    assert_eq!(again, lines.repeat(2), "metrics are appended");
}

#[test]
fn validation_and_metrics_may_be_absent() {
    let home = tempfile::tempdir().unwrap();
    prepare(home.path());
    let output = run(home.path(), |command| {
        command
            .env_remove("TIDEGATE_INPUT_VALIDATION")
            .env("TIDEGATE_METRICS", "");
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8(output.stdout).unwrap().contains("validation loss"));
    assert!(!home.path().join("metrics.jsonl").exists());
}

#[test]
fn failures_are_one_line_without_values_and_leave_no_model() {
    let home = tempfile::tempdir().unwrap();
    prepare(home.path());
    let fails = |change: &dyn Fn(&mut Command), needle: &str| {
        let output = run(home.path(), |command| change(command));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{needle}");
        assert!(text.contains(needle) && text.lines().count() == 1, "{text}");
        assert!(!text.contains("secret") && !String::from_utf8(output.stdout).unwrap().contains("secret"));
        assert!(!home.path().join("out").exists());
    };
    fails(
        &|command| {
            command.env_remove("TIDEGATE_TARGET");
        },
        "TIDEGATE_TARGET",
    );
    fails(
        &|command| {
            command.env("TIDEGATE_INPUT_TRAIN", home.path().join("nowhere"));
        },
        "nowhere",
    );
    std::fs::write(
        home.path().join("train/c.csv"),
        "id,age,lab,ward,empty,died\n1,50,1,icu,,secret\n",
    )
    .unwrap();
    fails(&|_| (), "record 501");
    std::fs::remove_file(home.path().join("train/c.csv")).unwrap();
    std::fs::write(home.path().join("trainer.json"), r#"{"model":"mlp","layers":3}"#).unwrap();
    fails(&|_| (), "trainer.json");
}
