//! Bundles of a small model, and a server over a folder of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ndarray::{arr2, array};
use tidegate_bundle::bundle::{self, sha256, write_folder};
use tidegate_bundle::dense::{CategoryColumn, DenseLayer, NumericColumn, Preprocessing};
use tidegate_bundle::{
    BundleContent, BundleError, Calibration, DenseNetwork, Feature, FeatureKind, FeatureSchema, Files, Predictor,
    inspect,
};
use tidegate_serve::{ReleaseSource, ServeError, ServeOptions, Server};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const MODEL: &str = "readmission";
pub(crate) const CALIBRATION: Calibration = Calibration {
    a: 1.25,
    b: -0.5,
    threshold: 0.3,
};

/// Two numbers and a category.
pub(crate) fn schema() -> FeatureSchema {
    let feature = |name: &str, kind| Feature {
        name: name.to_owned(),
        kind,
    };
    let levels = vec!["icu".to_owned(), "or".to_owned()];
    FeatureSchema {
        features: vec![
            feature("age", FeatureKind::Numeric),
            feature("ward", FeatureKind::Category { levels }),
            feature("crea", FeatureKind::Numeric),
        ],
        target: "died".to_owned(),
    }
}

fn network(version: u64) -> DenseNetwork {
    let numeric = |column, mean, indicator| NumericColumn {
        column,
        fill: mean,
        mean,
        scale: 0.1,
        indicator,
    };
    DenseNetwork {
        preprocessing: Preprocessing {
            numeric: vec![numeric(0, 60.0, false), numeric(2, 1.5, true)],
            categories: vec![CategoryColumn { column: 1, levels: 2 }],
        },
        layers: vec![DenseLayer {
            weights: arr2(&[[0.7], [2.0], [0.4], [1.1], [-0.8]]),
            bias: array![version as f32 * 0.01],
        }],
    }
}

/// A stand-in for a signature that tests can make and check: a digest before the payload.
fn sign(payload: &[u8]) -> Result<Vec<u8>, String> {
    Ok([sha256(payload).as_bytes(), payload].concat())
}

fn check(envelope: &[u8]) -> Result<Vec<u8>, String> {
    let (tag, payload) = envelope.split_at_checked(32).ok_or("too short")?;
    if sha256(payload).as_bytes() == tag {
        Ok(payload.to_vec())
    } else {
        Err("not signed by an accepted key".into())
    }
}

pub(crate) fn verify(files: &Files) -> Result<tidegate_bundle::Bundle, BundleError> {
    bundle::open(files.clone(), check)
}

pub(crate) fn files(name: &str, version: u64, note: &str) -> Files {
    let schema = schema();
    let model = inspect(&network(version).to_onnx(3), &schema).unwrap();
    let content = BundleContent {
        name,
        version,
        created: "2026-01-02T03:04:05Z",
        provenance: BTreeMap::from([("run".to_owned(), sha256(note.as_bytes()))]),
        model: &model,
        recipe: b"{}",
        schema: &schema,
        calibration: CALIBRATION,
        card: "# card\n",
        metrics: &serde_json::json!({}),
    };
    bundle::build(&content, sign).unwrap()
}

/// What the model says about raw rows, without any server.
pub(crate) fn expected(version: u64, rows: &[[&str; 3]]) -> Vec<f64> {
    let schema = schema();
    let matrix = schema.encode(&["age", "ward", "crea"], rows.iter().copied()).unwrap();
    let predictor = Predictor::load(&inspect(&network(version).to_onnx(3), &schema).unwrap()).unwrap();
    let scores = predictor.predict(matrix.view()).unwrap();
    scores
        .into_iter()
        .map(|score| CALIBRATION.apply(f64::from(score)))
        .collect()
}

/// A site's folder.
pub(crate) struct Site(pub(crate) tempfile::TempDir);

impl Site {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn with_version(version: u64) -> Self {
        let site = Self::new();
        site.release(version);
        site
    }

    pub(crate) fn path(&self, version: u64) -> PathBuf {
        self.0.path().join("models").join(MODEL).join(version.to_string())
    }

    pub(crate) fn release(&self, version: u64) {
        self.put(version, &files(MODEL, version, "run-1"));
    }

    pub(crate) fn put(&self, version: u64, files: &Files) {
        let folder = self.path(version);
        std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
        write_folder(&folder, files).unwrap();
    }

    pub(crate) fn options(&self) -> ServeOptions {
        let source = ReleaseSource {
            folder: self.0.path().to_owned(),
        };
        let mut options = ServeOptions::new(source, verify);
        options.address = SocketAddr::from(([127, 0, 0, 1], 0));
        options.poll = Duration::from_millis(20);
        options
    }

    pub(crate) async fn serve(&self) -> Running {
        Running::start(self.options()).await
    }
}

/// A server in the background.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(crate) async fn start(options: ServeOptions) -> Self {
        let server = Server::bind(options).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(async move {
            let _ = stopped.await;
        }));
        Self { address, stop, task }
    }

    pub(crate) async fn stop(self) {
        let Self { stop, task, .. } = self;
        let _ = stop.send(());
        task.await.unwrap().unwrap();
    }
}

pub(crate) fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
