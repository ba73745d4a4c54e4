//! Training by commands of the engineer's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use prost::Message as _;
use tidegate_bundle::onnx::proto::{GraphProto, ModelProto};

use crate::fixture::Hospital;

#[test]
fn listed_code_crosses_and_nothing_else_of_the_folder() {
    let hospital = Hospital::new();
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
        "  code: [settings/trainer.json]\n  run: cp settings/trainer.json . && \"$TIDEGATE_TRAINER\" trainer\n",
    );
    hospital.write(
        "settings/trainer.json",
        r#"{"model": "logistic", "epochs": 12, "batch_size": 32, "seed": 1}"#,
    );
    hospital.write("beside.txt", "nobody listed this");
    let summary = hospital.run();
    assert_eq!(summary["status"], "done");
    assert!(
        summary["metrics"]["home"]["roc_auc"].as_f64().unwrap() > 0.6,
        "{summary}"
    );
    assert!(summary["metrics"]["raw"].is_null() || summary["metrics"]["raw"] == serde_json::json!({}));
}

#[test]
fn code_that_holds_an_identifier_does_not_cross() {
    let hospital = Hospital::new();
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
        "  code: [train.sh]\n  run: sh train.sh\n",
    );
    hospital.write("train.sh", "# without MRN4100021\nexit 1\n");
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "identifier-in-code", "{message}");
    assert!(
        message.contains("train.sh") && !message.contains("MRN4100021"),
        "{message}"
    );
}

#[test]
fn a_command_that_fails_says_how_and_its_log_is_at_home() {
    let hospital = Hospital::new();
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
        "  code: [train.sh]\n  run: sh train.sh\n",
    );
    hospital.write("train.sh", "echo nothing to do; exit 7\n");
    let output = hospital.tidegate(&["run", "--yes"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("exit code 7"), "{message}");
    let run = message
        .split("tidegate logs ")
        .nth(1)
        .unwrap()
        .split('`')
        .next()
        .unwrap();
    // The hint is a command to type as it is.
    let mut words = vec!["logs"];
    words.extend(run.split(' '));
    assert!(words.contains(&"--pipeline"), "{run}");
    assert!(hospital.succeed(&words).contains("nothing to do"));
}

#[test]
fn a_hostile_model_is_refused_at_home() {
    let hospital = Hospital::new();
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
        "  code: [train.sh]\n  run: sh train.sh\n",
    );
    hospital.write(
        "train.sh",
        "head -c 4096 /dev/urandom > $TIDEGATE_OUTPUT/model.onnx; echo '{}' > $TIDEGATE_OUTPUT/schema.json\n",
    );
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "hostile-model", "{message}");
    assert!(!hospital.state().join("sites/hospital/serve/models").exists());
}

/// Models that a runtime would load, and that reach for more than a model may.
#[test]
fn a_well_formed_hostile_model_is_refused_at_home() {
    let trained = Hospital::new();
    trained.run();
    let bundle = trained.state().join("sites/hospital/serve/models/readmission/1");
    let model = ModelProto::decode(std::fs::read(bundle.join("model.onnx")).unwrap().as_slice()).unwrap();
    type Change = fn(&mut GraphProto);
    let brought = |change: Change| {
        let mut changed = model.clone();
        change(changed.graph.as_mut().unwrap());
        let hospital = Hospital::new();
        hospital.edit(
            "tidegate.yaml",
            "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
            "  code: [train.sh, model.bin, schema.json]\n  run: sh train.sh\n",
        );
        hospital.write(
            "train.sh",
            "cp model.bin \"$TIDEGATE_OUTPUT/model.onnx\"\ncp schema.json \"$TIDEGATE_OUTPUT/\"\n",
        );
        std::fs::write(hospital.path("model.bin"), changed.encode_to_vec()).unwrap();
        std::fs::copy(bundle.join("schema.json"), hospital.path("schema.json")).unwrap();
        hospital
    };
    assert_eq!(brought(|_| ()).run()["status"], "done");
    let changes: [(&str, Change); 4] = [
        // No attack, and what somebody does who exports a network without its last step.
        ("a Sigmoid or a Softmax", |graph| {
            let last = graph
                .node
                .iter_mut()
                .find(|node| node.op_type.as_deref() == Some("Sigmoid"));
            last.unwrap().op_type = Some("Identity".to_owned());
        }),
        ("Loop", |graph| graph.node[0].op_type = Some("Loop".to_owned())),
        ("outside", |graph| graph.initializer[0].data_location = Some(1)),
        ("finite", |graph| {
            let weights = graph
                .initializer
                .iter_mut()
                .find(|tensor| tensor.data_type == Some(1))
                .unwrap();
            let values = weights
                .float_data
                .len()
                .max(weights.raw_data.as_ref().map_or(0, |raw| raw.len() / 4));
            weights.raw_data = None;
            weights.float_data = vec![f32::NAN; values];
        }),
    ];
    for (word, change) in changes {
        let hospital = brought(change);
        let (rule, message) = hospital.refused();
        assert_eq!(rule, "hostile-model", "{word}: {message}");
        assert!(message.contains(word), "{word}: {message}");
        assert!(!hospital.state().join("sites/hospital/serve/models").exists());
    }
}

/// Runs an example of the repository with a Python that has its packages, on the hospital's records.
fn example(name: &str, variable: &str) {
    let Some(python) = std::env::var_os(variable).map(PathBuf::from) else {
        let demanded = std::env::var_os("TIDEGATE_INTEROP").is_some_and(|value| value == "1");
        assert!(!demanded, "{variable} is not set");
        println!("skipped: {variable} names no Python with the example's requirements");
        return;
    };
    let state = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut path = python.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["run", "--yes", "--format", "json"])
        .arg(root.join("examples").join(name).join("tidegate.yaml"))
        .env("TIDEGATE_HOME", state.path())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{}{message}",
        String::from_utf8_lossy(&output.stdout)
    );
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["status"], "done");
    let figure = |part: &str| summary["metrics"][part]["roc_auc"].as_f64().unwrap();
    assert!(figure("home") >= 0.78 && figure("refined") >= 0.78, "{summary}");
    assert_eq!(summary["deployed"].as_array().unwrap().len(), 3);
}

#[test]
fn keras_trains_on_the_sealed_records_and_its_model_is_released() {
    example("keras", "TIDEGATE_KERAS_PYTHON");
}

#[test]
fn xgboost_trains_on_the_sealed_records_and_its_model_is_released() {
    example("xgboost", "TIDEGATE_XGBOOST_PYTHON");
}
