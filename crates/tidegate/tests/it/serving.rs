//! What was deployed is served where it was deployed, without a connection to anywhere else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Hospital, files};

/// A running `tidegate serve`, ended when it is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(hospital: &Hospital, site: &str) -> Self {
        let mut child = hospital
            .command(&["serve", "--site", site, "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.starts_with("Serving")));
        let line = line.expect("the server says where it listens");
        let address = line
            .split("http://")
            .nth(1)
            .unwrap()
            .split('/')
            .next()
            .unwrap()
            .to_owned();
        // What it logs later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: ward\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// The version that is served, once it is `version`; whatever it is after ten seconds otherwise.
    fn version(&self, version: &str) -> String {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let (_, metadata) = self.ask("GET", "/v2/models/readmission", "");
            let newest = metadata["versions"].as_array().and_then(|all| all.last()).cloned();
            let newest = newest.and_then(|it| it.as_str().map(str::to_owned)).unwrap_or_default();
            if newest == version || Instant::now() > until {
                return newest;
            }
            std::thread::yield_now();
        }
    }
}

fn two_patients(server: &Server) -> String {
    let (_, metadata) = server.ask("GET", "/v2/models/readmission", "");
    let inputs: Vec<Value> = metadata["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| {
            let data = if input["datatype"] == "BYTES" {
                json!(["icu", "ward"])
            } else {
                json!([40.0, 70.0])
            };
            json!({"name": input["name"], "datatype": input["datatype"], "shape": [2], "data": data})
        })
        .collect();
    json!({ "inputs": inputs }).to_string()
}

#[test]
fn an_edge_site_serves_what_was_deployed_and_takes_up_a_new_version() {
    let hospital = Hospital::new();
    hospital.run();
    let server = Server::start(&hospital, "ward");
    assert_eq!(server.ask("GET", "/v2/health/ready", "").0, 200);
    assert_eq!(server.version("1"), "1");
    let body = two_patients(&server);
    let (status, answer) = server.ask("POST", "/v2/models/readmission/infer", &body);
    assert_eq!(status, 200, "{answer}");
    let probabilities: Vec<f64> = answer["outputs"][0]["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    assert_eq!(probabilities.len(), 2, "{answer}");
    assert!(probabilities.iter().all(|it| (0.0..=1.0).contains(it)));

    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 14");
    assert_eq!(hospital.run()["model"]["version"], 2);
    assert_eq!(server.version("2"), "2");
}

/// The recipe that is frozen with a model makes the same features of a raw row as training had.
#[test]
fn a_person_is_predicted_alike_from_raw_values_and_from_features() {
    let hospital = Hospital::new();
    hospital.run();
    let rows = crate::fixture::rows(99);
    let few: Vec<&str> = rows.lines().take(6).collect();
    hospital.write("new.csv", &(few.join("\n") + "\n"));
    let predicted = hospital.succeed(&["predict", "--site", "hospital", "new.csv"]);
    let predicted: Vec<f64> = predicted
        .lines()
        .skip(1)
        .map(|line| line.split(',').nth(1).unwrap().parse().unwrap())
        .collect();
    let column = |name: &str| -> Vec<&str> {
        let at = few[0].split(',').position(|header| header == name).unwrap();
        few[1..]
            .iter()
            .map(|row| row.split(',').nth(at).unwrap().trim())
            .collect()
    };
    let numbers = |name: &str| -> Vec<f64> { column(name).iter().map(|cell| cell.parse().unwrap()).collect() };
    let decades: Vec<f64> = numbers("age").iter().map(|age| (age / 10.0).floor() * 10.0).collect();
    let input = |name: &str, datatype: &str, data: Value| json!({"name": name, "datatype": datatype, "shape": [5], "data": data});
    let body = json!({"inputs": [
        input("age", "FP64", json!(decades)),
        input("lactate", "FP64", json!(numbers("lactate"))),
        input("pressure", "FP64", json!(numbers("pressure"))),
        input("unit", "BYTES", json!(column("unit"))),
    ]});
    let server = Server::start(&hospital, "ward");
    assert_eq!(server.version("1"), "1");
    let (status, answer) = server.ask("POST", "/v2/models/readmission/infer", &body.to_string());
    assert_eq!(status, 200, "{answer}");
    let served: Vec<f64> = answer["outputs"][0]["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    assert_eq!((predicted.len(), served.len()), (5, 5));
    for (raw, features) in predicted.iter().zip(&served) {
        assert!((raw - features).abs() < 1e-5, "{predicted:?} {served:?}");
    }
}

#[test]
fn an_edge_site_serves_when_nothing_else_is_left() {
    let hospital = Hospital::new();
    hospital.run();
    for gone in ["control", "sites/hospital", "sites/cloud"] {
        std::fs::remove_dir_all(hospital.state().join(gone)).unwrap();
    }
    std::fs::remove_file(hospital.path("admissions.csv")).unwrap();
    let server = Server::start(&hospital, "ward");
    assert_eq!(server.version("1"), "1");
    let body = two_patients(&server);
    assert_eq!(server.ask("POST", "/v2/models/readmission/infer", &body).0, 200);
}

#[test]
fn an_altered_or_unsigned_release_is_not_served() {
    let hospital = Hospital::new();
    hospital.run();
    let releases = hospital.state().join("sites/ward/store/releases");
    let release = files(&releases).pop().unwrap();
    let text = std::fs::read_to_string(&release).unwrap();
    // Another payload under the same signature.
    let mut envelope: Value = serde_json::from_str(&text).unwrap();
    envelope["payload"] = json!("e30=");
    std::fs::remove_file(&release).unwrap();
    std::fs::write(&release, envelope.to_string()).unwrap();
    let server = Server::start(&hospital, "ward");
    let (status, _) = server.ask("GET", "/v2/models/readmission/ready", "");
    assert_ne!(status, 200);
    assert!(!hospital.state().join("sites/ward/serve/models/readmission/1").exists());
}

#[test]
fn the_private_site_serves_too_and_a_changed_bundle_is_refused() {
    let hospital = Hospital::new();
    hospital.run();
    {
        let server = Server::start(&hospital, "hospital");
        assert_eq!(server.version("1"), "1");
    }
    let bundle = hospital
        .state()
        .join("sites/hospital/serve/models/readmission/1/calibration.json");
    let text = std::fs::read_to_string(&bundle).unwrap();
    let mut permissions = bundle.metadata().unwrap().permissions();
    #[allow(clippy::permissions_set_readonly_false)]
    permissions.set_readonly(false);
    std::fs::set_permissions(&bundle, permissions).unwrap();
    std::fs::write(&bundle, text.replacen('0', "1", 1)).unwrap();
    let server = Server::start(&hospital, "hospital");
    let (status, _) = server.ask("GET", "/v2/models/readmission/ready", "");
    assert_ne!(status, 200);
}

/// The same with another private site, which is home of nothing.
fn with_clinic() -> Hospital {
    let hospital = Hospital::new();
    hospital.edit(
        "sites.yaml",
        "  ward:\n",
        "  clinic:\n    kind: private\n    jurisdiction: US\n    clearance: {level: restricted, tags: [phi]}\n    \
         store: \"folder:\"\n    custody: \"file:\"\n  ward:\n",
    );
    hospital.edit("tidegate.yaml", "deploy: [hospital, ward]", "deploy: [clinic]");
    hospital
}

#[test]
fn another_private_site_serves_what_was_sealed_to_it() {
    let hospital = with_clinic();
    let summary = hospital.run();
    assert_eq!(summary["deployed"], json!(["clinic"]));
    let server = Server::start(&hospital, "clinic");
    assert_eq!(server.version("1"), "1");
    let body = two_patients(&server);
    assert_eq!(server.ask("POST", "/v2/models/readmission/infer", &body).0, 200);
    // The recipe's keys never left the home site, so raw rows are not predicted there.
    hospital.write("new.csv", &crate::fixture::rows(5));
    let (rule, message) = hospital.refuses(&["predict", "--site", "clinic", "new.csv"]);
    assert_eq!(rule, "raw-rows-stay-home", "{message}");
    assert!(message.contains("`hospital`"), "{message}");
}

#[test]
fn the_private_site_serves_without_its_keepers_secrets() {
    let hospital = Hospital::new();
    hospital.run();
    let keys = hospital.state().join("sites/hospital/keys");
    for secret in ["custody.key", "site-keys.json"] {
        std::fs::remove_file(keys.join(secret)).unwrap();
    }
    let server = Server::start(&hospital, "hospital");
    assert_eq!(server.version("1"), "1");
    assert!(!keys.join("custody.key").exists());
}

#[test]
fn a_site_that_nothing_was_deployed_to_says_so() {
    let hospital = Hospital::new();
    for site in ["hospital", "ward"] {
        let output = hospital.tidegate(&["serve", "--site", site, "--listen", "127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(2));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains("nothing was deployed"), "{message}");
    }
}
