//! What the Open Inference Protocol promises, word for word.

use serde_json::{Value, json};

use crate::client::{get, infer, request};
use crate::fixture::{CALIBRATION, Site, expected};

const ROWS: [[&str; 3]; 4] = [
    ["71", "icu", "2.5"],
    ["", "or", "1.5"],
    ["35.5", "", ""],
    ["90", "hall", "9"],
];

fn by_column() -> Value {
    json!({"id": "q-1", "inputs": [
        {"name": "ward", "datatype": "BYTES", "shape": [4], "data": ["icu", "or", null, "hall"]},
        {"name": "age", "datatype": "FP32", "shape": [4, 1], "data": [[71], [null], [35.5], [90]]},
        {"name": "crea", "datatype": "FP64", "shape": [4], "data": [2.5, 1.5, null, 9]},
    ]})
}

fn numbers(answer: &Value, output: usize) -> Vec<f64> {
    answer["outputs"][output]["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_f64().unwrap())
        .collect()
}

#[tokio::test]
async fn columns_and_matrix_give_what_the_model_gives() {
    let site = Site::with_version(3);
    let server = site.serve().await;
    let probabilities = expected(3, &ROWS);
    let decisions: Vec<f64> = probabilities
        .iter()
        .map(|p| f64::from(u8::from(*p >= CALIBRATION.threshold)))
        .collect();
    assert!(
        decisions.contains(&0.0) && decisions.contains(&1.0),
        "the rows show both decisions"
    );

    let answer = infer(server.address, &by_column()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type").as_deref(), Some("application/json"));
    let body = answer.json();
    assert_eq!(
        (&body["model_name"], &body["model_version"], &body["id"]),
        (&json!("readmission"), &json!("3"), &json!("q-1"))
    );
    let described = |at: usize| {
        (
            body["outputs"][at]["name"].clone(),
            body["outputs"][at]["datatype"].clone(),
            body["outputs"][at]["shape"].clone(),
        )
    };
    assert_eq!(described(0), (json!("probabilities"), json!("FP64"), json!([4])));
    assert_eq!(described(1), (json!("predictions"), json!("INT64"), json!([4])));
    assert_eq!(numbers(&body, 0), probabilities);
    assert_eq!(numbers(&body, 1), decisions);

    // The levels' positions in the schema: icu is 0, or is 1.
    let matrix = json!({"inputs": [{"name": "features", "datatype": "FP32", "shape": [4, 3],
        "data": [[71, 0, 2.5], [null, 1, 1.5], [35.5, null, null], [90, null, 9]]}]});
    let answer = infer(server.address, &matrix).await;
    assert_eq!(numbers(&answer.json(), 0), probabilities);
    assert!(answer.json().get("id").is_none());

    let one = json!({"inputs": matrix["inputs"], "outputs": [{"name": "predictions"}]});
    let body = infer(server.address, &one).await.json();
    assert_eq!(
        (body["outputs"].as_array().unwrap().len(), numbers(&body, 0)),
        (1, decisions)
    );
    let path = "POST /v2/models/readmission/versions/3/infer HTTP/1.1";
    let answer = request(server.address, path, by_column().to_string().as_bytes()).await;
    assert_eq!(numbers(&answer.json(), 0), probabilities);
    server.stop().await;
}

#[tokio::test]
async fn binary_tensors_go_in_and_come_out() {
    let site = Site::with_version(3);
    let server = site.serve().await;
    let head = json!({"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}],
        "outputs": [{"name": "predictions", "parameters": {"binary_data": true}}, {"name": "probabilities", "parameters": {"binary_data": true}}]})
    .to_string();
    let row: Vec<u8> = [71.0_f32, 0.0, f32::NAN]
        .into_iter()
        .flat_map(f32::to_le_bytes)
        .collect();
    let body = [head.as_bytes(), &row].concat();
    let path = format!(
        "POST /v2/models/readmission/infer HTTP/1.1\r\nInference-Header-Content-Length: {}",
        head.len()
    );
    let answer = request(server.address, &path, &body).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let length: usize = answer
        .header("inference-header-content-length")
        .unwrap()
        .parse()
        .unwrap();
    let (text, tail) = answer.body.split_at(length);
    let text: Value = serde_json::from_slice(text).unwrap();
    assert_eq!(text["outputs"][0]["parameters"]["binary_data_size"], 8);
    let probability = expected(3, &[["71", "icu", ""]])[0];
    assert_eq!(tail[..8], 1_i64.to_le_bytes());
    assert_eq!(tail[8..], probability.to_le_bytes());
    server.stop().await;
}

#[tokio::test]
async fn health_and_metadata_say_what_is_there() {
    let site = Site::new();
    let server = site.serve().await;
    assert_eq!(get(server.address, "/v2/health/live").await.status, 200);
    assert_eq!(
        get(server.address, "/v2/health/ready").await.status,
        503,
        "nothing is served yet"
    );
    assert_eq!(get(server.address, "/v2/models/readmission/ready").await.status, 404);
    server.stop().await;

    let site = Site::with_version(12);
    let server = site.serve().await;
    for path in [
        "/v2/health/ready",
        "/v2/models/readmission/ready",
        "/v2/models/readmission/versions/12/ready",
        "/v2/models/readmission/versions/12",
        "/v2/",
    ] {
        assert_eq!(get(server.address, path).await.status, 200, "{path}");
    }
    let metadata = get(server.address, "/v2").await.json();
    assert_eq!(
        (&metadata["name"], &metadata["extensions"]),
        (&json!("tidegate"), &json!(["binary_tensor_data"]))
    );
    let metadata = get(server.address, "/v2/models/readmission").await.json();
    assert_eq!(
        (&metadata["name"], &metadata["versions"]),
        (&json!("readmission"), &json!(["12"]))
    );
    assert_eq!(
        metadata["inputs"],
        json!([
            {"name": "age", "datatype": "FP32", "shape": [-1]},
            {"name": "ward", "datatype": "BYTES", "shape": [-1], "parameters": {"levels": ["icu", "or"]}},
            {"name": "crea", "datatype": "FP32", "shape": [-1]},
        ])
    );
    assert_eq!(metadata["parameters"]["threshold"], 0.3);
    let head = request(server.address, "HEAD /v2/health/live HTTP/1.1", b"").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    server.stop().await;
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong_and_no_value() {
    let site = Site::with_version(3);
    let server = site.serve().await;
    let address = server.address;
    for (path, status) in [
        ("GET /", 404),
        ("GET /v2/models", 404),
        ("GET /v2/models/other", 404),
        ("GET /v2/models/readmission/versions/2", 404),
        ("GET /v2/models/readmission/versions/03/ready", 404),
        ("GET /v2/models/readmission/config", 404),
        ("GET /v2/models/%2e%2e/ready", 404),
        ("GET /v2/models/readmission/infer", 405),
        ("POST /v2/models/readmission", 405),
        ("DELETE /v2", 405),
        ("POST /v2/models/other/infer", 404),
        ("POST /v2/models/readmission/versions/4/infer", 404),
        ("POST /v2/models/readmission/infer", 400),
        (
            "POST /v2/models/readmission/infer HTTP/1.1\r\nContent-Encoding: gzip\r\nX: y",
            415,
        ),
        (
            "POST /v2/models/readmission/infer HTTP/1.1\r\nInference-Header-Content-Length: -1\r\nX: y",
            400,
        ),
        (
            "POST /v2/models/readmission/infer HTTP/1.1\r\nInference-Header-Content-Length: 99\r\nX: y",
            400,
        ),
    ] {
        let head = if path.contains("HTTP/1.1") {
            path.to_owned()
        } else {
            format!("{path} HTTP/1.1")
        };
        let answer = request(address, &head, b"").await;
        assert_eq!(answer.status, status, "{path}");
        assert!(!answer.error().is_empty());
    }

    let change = |path: &str, value: Value| {
        let mut body = by_column();
        *body.pointer_mut(path).unwrap() = value;
        body
    };
    let mut twice = by_column();
    let first = twice["inputs"][0].clone();
    twice["inputs"].as_array_mut().unwrap().push(first);
    let matrix = |shape: Value, data: Value| json!({"inputs": [{"name": "features", "datatype": "FP64", "shape": shape, "data": data}]});
    for (what, body) in [
        ("missing", change("/inputs/0/name", json!("other"))),
        ("twice", twice),
        ("needs numbers", change("/inputs/0/datatype", json!("FP32"))),
        (
            "needs the datatype BYTES",
            change(
                "/inputs/0",
                json!({"name": "ward", "datatype": "FP32", "shape": [4], "data": [4711, 1, 1, 1]}),
            ),
        ),
        (
            "needs the datatype FP32",
            change(
                "/inputs/1",
                json!({"name": "age", "datatype": "BYTES", "shape": [4], "data": ["4711", "", "", ""]}),
            ),
        ),
        ("shape", change("/inputs/2/shape", json!([2, 2]))),
        (
            "number of rows",
            change(
                "/inputs/2",
                json!({"name": "crea", "datatype": "FP32", "shape": [1], "data": [4711]}),
            ),
        ),
        (
            "column `age`, row 1: the value is not a finite number",
            change("/inputs/1/data/1/0", json!(1e39)),
        ),
        (
            "column `crea`, row 1",
            matrix(json!([2, 3]), json!([1, 1, 1, 1, 1, 4711e40])),
        ),
        ("2 columns", matrix(json!([2, 2]), json!([4711, 1, 1, 1]))),
        ("[rows, 3]", matrix(json!([3]), json!([4711, 1, 1]))),
        ("1 to 8192 rows", matrix(json!([0, 3]), json!([]))),
        (
            "no output",
            json!({"inputs": by_column()["inputs"], "outputs": [{"name": "class"}]}),
        ),
        (
            "asked for twice",
            json!({"inputs": by_column()["inputs"], "outputs": [{"name": "predictions"}, {"name": "predictions"}]}),
        ),
        (
            "classification",
            json!({"inputs": by_column()["inputs"], "outputs": [{"name": "predictions", "parameters": {"classification": 2}}]}),
        ),
    ] {
        let answer = infer(address, &body).await;
        assert_eq!(answer.status, 400, "{what}");
        let error = answer.error();
        assert!(error.contains(what), "{what}: {error}");
        assert!(!error.contains("4711") && !error.contains("hall"), "{error}");
    }
    assert_eq!(infer(address, &by_column()).await.status, 200, "the server is well");
    server.stop().await;
}
