//! The example scripts inside the sandbox: the numerical libraries must run within it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidegate_worker::sandbox::{Ended, Policy, run};

/// The interpreter that `variable` names, with the folders that it was installed to.
fn interpreter(variable: &str) -> Option<(PathBuf, Vec<PathBuf>)> {
    let Some(program) = std::env::var_os(variable).map(PathBuf::from) else {
        assert!(
            std::env::var_os("TIDEGATE_INTEROP").is_none_or(|value| value != "1"),
            "{variable} is not set"
        );
        println!("skipped: {variable} names no Python with the example's requirements");
        return None;
    };
    let about = Command::new(&program)
        .args(["-c", "import sys; print(sys.prefix); print(sys.base_prefix)"])
        .output();
    let about = String::from_utf8(about.unwrap().stdout).unwrap();
    Some((program, about.lines().map(PathBuf::from).collect()))
}

fn rows(count: u32) -> String {
    let mut text = "age,ward,pressure,died\n".to_owned();
    for row in 0..count {
        let (age, ward) = (20 + row * 7 % 70, ["icu", "surgery", ""][(row % 3) as usize]);
        let pressure = if row % 5 == 0 {
            String::new()
        } else {
            (90 + row * 13 % 60).to_string()
        };
        writeln!(text, "{age},{ward},{pressure},{}", u32::from(age > 60)).unwrap();
    }
    text
}

fn trains(example: &str, variable: &str, settings: &[(&str, &str)]) {
    let Some((program, mut read)) = interpreter(variable) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["train", "validation", "output", "home", "tmp", "metrics"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    std::fs::write(at("train/rows.csv"), rows(400)).unwrap();
    std::fs::write(at("validation/rows.csv"), rows(100)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../examples/{example}/train.py"));
    let script = script.canonicalize().unwrap();
    read.extend([script.clone(), at("train"), at("validation")]);
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let mut environment: BTreeMap<String, String> = [
        ("PATH", "/usr/bin:/bin".to_owned()),
        ("HOME", text(at("home"))),
        ("TMPDIR", text(at("tmp"))),
        ("TIDEGATE_INPUT_TRAIN", text(at("train"))),
        ("TIDEGATE_INPUT_VALIDATION", text(at("validation"))),
        ("TIDEGATE_TARGET", "died".to_owned()),
        ("TIDEGATE_METRICS", text(at("metrics/metrics.jsonl"))),
        ("TIDEGATE_OUTPUT", text(at("output"))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    environment.extend(
        settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    let policy = Policy {
        read,
        write: ["output", "home", "tmp", "metrics"].map(at).into(),
        memory_bytes: 2 << 30,
        seconds: 600,
        processes: 512,
        file_bytes: 1 << 30,
        ..Policy::default()
    };
    let command = [program.into_os_string(), script.into_os_string()];
    let done = run(
        crate::executable(),
        &policy,
        &command,
        &environment,
        folder.path(),
        1 << 20,
    )
    .unwrap();
    assert_eq!(
        done.ended,
        Ended::Exited(0),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let model = std::fs::read(at("output/model.onnx")).unwrap();
    assert!(model.len() > 500, "{} bytes of model", model.len());
    let schema: serde_json::Value = serde_json::from_slice(&std::fs::read(at("output/schema.json")).unwrap()).unwrap();
    assert_eq!(schema["target"], "died");
    assert_eq!(
        schema["features"][1]["kind"]["category"]["levels"],
        serde_json::json!(["icu", "surgery"])
    );
    let metrics = std::fs::read_to_string(at("metrics/metrics.jsonl")).unwrap();
    assert!(metrics.lines().count() >= 2, "{metrics}");
}

#[test]
fn keras_trains_inside_the_sandbox() {
    trains("keras", "TIDEGATE_KERAS_PYTHON", &[("EPOCHS", "2"), ("HIDDEN", "8")]);
}

#[test]
fn xgboost_trains_inside_the_sandbox() {
    trains("xgboost", "TIDEGATE_XGBOOST_PYTHON", &[("TREES", "20")]);
}
