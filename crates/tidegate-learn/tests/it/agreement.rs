//! Our models give the same probabilities in ONNX Runtime, which is not ours.

use std::path::Path;
use std::process::Command;

use tidegate_bundle::{FeatureSchema, Predictor, inspect};
use tidegate_learn::{Table, train};
use tidegate_types::files::pipeline::{Trainer, TrainerModel};

use crate::patients::{HEADER, records, settings, table};

/// The interpreter with ONNX Runtime, or `None` (with the reason printed) where it is missing and may
/// be: with `TIDEGATE_INTEROP=1` it may not.
fn python() -> Option<String> {
    let python = std::env::var("TIDEGATE_INTEROP_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(&python).args(["-c", "import numpy, onnxruntime"]).output();
    let reason = match output {
        Ok(output) if output.status.success() => return Some(python),
        Ok(_) => "it has no numpy and onnxruntime",
        Err(_) => "it cannot be started",
    };
    let needed = std::env::var("TIDEGATE_INTEROP").is_ok_and(|value| value == "1");
    assert!(!needed, "`{python}`: {reason}; see tests/interop/requirements.txt");
    eprintln!("skipped: `{python}`: {reason}");
    None
}

/// Runs the model in ONNX Runtime on the records and compares; returns what the script printed.
fn compare(
    python: &str,
    folder: &Path,
    model: &[u8],
    schema: &FeatureSchema,
    rows: &[Vec<String>],
    ours: &[f32],
) -> String {
    let path = |name: &str| folder.join(name);
    let lines = std::iter::once(HEADER.join(",")).chain(rows.iter().map(|record| record.join(",")));
    std::fs::write(path("model.onnx"), model).unwrap();
    std::fs::write(path("schema.json"), serde_json::to_vec(schema).unwrap()).unwrap();
    std::fs::write(path("rows.csv"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    std::fs::write(
        path("expected.csv"),
        ours.iter().map(|p| format!("{p}\n")).collect::<String>(),
    )
    .unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop/onnx_agreement.py");
    let output = Command::new(python)
        .arg(script)
        .args(["model.onnx", "schema.json", "rows.csv", "expected.csv"].map(path))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn onnx_runtime_agrees_also_on_missing_and_unknown_values() {
    let Some(python) = python() else { return };
    let mut rows = records(600, 42);
    for (position, row) in rows.iter_mut().enumerate() {
        match position % 7 {
            0 => row[3] = "ward that was not there".to_owned(),
            1 => row[1] = String::new(),
            2 => row[2] = "-123456789".to_owned(),
            _ => {}
        }
    }
    let records = Table::new(HEADER.map(str::to_owned).to_vec(), rows.clone()).unwrap();
    let deep = Trainer {
        hidden: vec![32, 8],
        ..settings(TrainerModel::Mlp)
    };
    for settings in [settings(TrainerModel::Logistic), settings(TrainerModel::Mlp), deep] {
        let trained = train(&settings, &table(800, 1), None, "died").unwrap();
        let matrix = records.encode(&trained.schema).unwrap();
        let inspected = inspect(&trained.model, &trained.schema).unwrap();
        let served = Predictor::load(&inspected).unwrap().predict(matrix.view()).unwrap();
        let trainer = trained.network.predict(matrix.view());
        let folder = tempfile::tempdir().unwrap();
        // The file as it was trained, and as inspection wrote it again.
        for model in [trained.model.as_slice(), inspected.bytes()] {
            for ours in [served.as_slice(), trainer.as_slice().unwrap()] {
                let text = compare(&python, folder.path(), model, &trained.schema, &rows, ours);
                assert!(text.contains("\"rows\": 600"), "{text}");
            }
        }
    }
}

#[test]
fn the_comparison_can_fail() {
    let Some(python) = python() else { return };
    let trained = train(&settings(TrainerModel::Logistic), &table(200, 1), None, "died").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let wrong = vec![0.5f32; 20];
    let compared = std::panic::catch_unwind(|| {
        compare(
            &python,
            folder.path(),
            &trained.model,
            &trained.schema,
            &records(20, 3),
            &wrong,
        )
    });
    assert!(compared.is_err());
}
