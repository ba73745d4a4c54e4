//! PyPI's `tritonclient` as the client (`tests/interop/triton_client.py`). With `TIDEGATE_INTEROP=1` it
//! must be there.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::fixture::{CALIBRATION, MODEL, Site, expected};

fn python() -> String {
    std::env::var("TIDEGATE_INTEROP_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

async fn there() -> bool {
    let import = Command::new(python())
        .args(["-c", "import tritonclient.http, numpy"])
        .output()
        .await;
    let there = import.is_ok_and(|output| output.status.success());
    let required = std::env::var("TIDEGATE_INTEROP").is_ok_and(|value| value == "1");
    assert!(
        there || !required,
        "TIDEGATE_INTEROP=1 needs the Python packages of tests/interop/requirements.txt"
    );
    if !there {
        println!("not run: this needs the Python packages tritonclient[http] and numpy");
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tritonclient_gets_what_the_model_gives() {
    if !there().await {
        return;
    }
    let site = Site::with_version(7);
    let server = site.serve().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop/triton_client.py");
    let mut client = Command::new(python())
        .arg(script)
        .args([server.address.to_string(), MODEL.to_owned()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // As text, since the order of the columns counts.
    let columns = r#"{"age": [71, null, 35.5, 20], "ward": ["icu", "or", null, "or"], "crea": [2.5, 1.5, null, 0.25]}"#;
    client
        .stdin
        .take()
        .unwrap()
        .write_all(columns.as_bytes())
        .await
        .unwrap();
    let output = client.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["server"], &said["version"]), (&json!("tidegate"), &json!("7")));

    let rows = [
        ["71", "icu", "2.5"],
        ["", "or", "1.5"],
        ["35.5", "", ""],
        ["20", "or", "0.25"],
    ];
    let probabilities = expected(7, &rows);
    let decide = |probability: &f64| i64::from(*probability >= CALIBRATION.threshold);
    let predictions: Vec<i64> = probabilities.iter().map(decide).collect();
    let wanted = json!({"probabilities": probabilities, "predictions": predictions});
    for way in ["binary", "json_out", "json_in", "matrix", "parallel"] {
        assert_eq!(said[way], wanted, "{way}");
    }
    assert!(
        said["error"].as_str().unwrap().contains("input `age` is missing"),
        "{}",
        said["error"]
    );
    server.stop().await;
}
