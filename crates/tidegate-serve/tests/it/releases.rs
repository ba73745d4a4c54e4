//! New releases are picked up; older, unsigned and altered ones are not.

use std::net::SocketAddr;
use std::time::Duration;

use tidegate_bundle::bundle::write_folder;

use crate::client::get;
use crate::fixture::{MODEL, Running, Site, files, flip};

async fn version(address: SocketAddr) -> Option<String> {
    let answer = get(address, "/v2/models/readmission").await;
    (answer.status == 200).then(|| answer.json()["versions"][0].as_str().unwrap().to_owned())
}

/// Asks until the version is served. Fails loudly instead of waiting for ever.
async fn until(address: SocketAddr, wanted: u64) {
    let asking = async {
        while version(address).await.as_deref() != Some(&wanted.to_string()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asking)
        .await
        .unwrap_or_else(|_| panic!("version {wanted} never came"));
}

/// Waits until the server has looked at everything that was put before. Models are looked at in the
/// order of their names, so a later name that is served shows that all before it were looked at.
async fn looked(site: &Site, address: SocketAddr, version: u64) {
    let folder = site.0.path().join("models/z-last").join(version.to_string());
    std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
    write_folder(&folder, &files("z-last", version, "run-1")).unwrap();
    let path = format!("/v2/models/z-last/versions/{version}/ready");
    let asking = async {
        while get(address, &path).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asking)
        .await
        .expect("the server looks at its folder");
}

#[tokio::test]
async fn the_newest_release_is_served_and_a_newer_one_takes_its_place() {
    let site = Site::with_version(2);
    site.release(10);
    let server = site.serve().await;
    assert_eq!(
        version(server.address).await.as_deref(),
        Some("10"),
        "versions are numbers, not texts"
    );
    site.release(11);
    until(server.address, 11).await;
    server.stop().await;
}

#[tokio::test]
async fn requests_are_answered_while_models_are_exchanged() {
    let site = Site::with_version(1);
    let server = site.serve().await;
    let address = server.address;
    let asking = tokio::spawn(async move {
        let body = serde_json::json!({"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 0, 1]}]});
        let mut answered = 0;
        loop {
            let answer = crate::client::infer(address, &body).await;
            assert_eq!(answer.status, 200);
            answered += 1;
            if answer.json()["model_version"] == "5" {
                return answered;
            }
        }
    });
    for next in 2..=5 {
        site.release(next);
        until(address, next).await;
    }
    assert!(asking.await.unwrap() > 0);
    server.stop().await;
}

#[tokio::test]
async fn a_release_that_does_not_verify_changes_nothing() {
    let site = Site::with_version(3);
    let server = site.serve().await;
    // Altered in each of its files.
    for (number, name) in files(MODEL, 4, "").keys().enumerate() {
        let next = 10 + number as u64;
        let mut altered = files(MODEL, next, "run-1");
        let bytes = altered.get_mut(name).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        site.put(next, &altered);
    }
    // Unsigned, incomplete, of another model, of another version, not a folder, a link.
    let mut unsigned = files(MODEL, 30, "run-1");
    unsigned.insert("bundle.sig".to_owned(), vec![0; 100]);
    site.put(30, &unsigned);
    let mut incomplete = files(MODEL, 31, "run-1");
    incomplete.remove("bundle.sig");
    site.put(31, &incomplete);
    site.put(32, &files("other", 32, "run-1"));
    site.put(33, &files(MODEL, 34, "run-1"));
    std::fs::write(site.path(35), "").unwrap();
    std::os::unix::fs::symlink(site.path(3), site.path(36)).unwrap();
    std::fs::create_dir(site.path(37).with_extension("partial")).unwrap();
    looked(&site, server.address, 1).await;
    assert_eq!(version(server.address).await.as_deref(), Some("3"));
    // What is good is found behind everything that is not.
    site.release(4);
    until(server.address, 4).await;
    server.stop().await;
}

#[tokio::test]
async fn what_was_refused_is_tried_again_when_it_changes() {
    let site = Site::with_version(3);
    site.release(4);
    let model = site.path(4).join("model.onnx");
    flip(&model);
    let server = site.serve().await;
    assert_eq!(
        version(server.address).await.as_deref(),
        Some("3"),
        "an altered release gives way to the one before"
    );
    flip(&model);
    // The same length within one tick of the clock would look like the same file.
    std::fs::File::open(&model)
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    until(server.address, 4).await;
    server.stop().await;
}

#[tokio::test]
async fn a_server_never_goes_back() {
    let site = Site::with_version(3);
    let server = site.serve().await;
    std::fs::remove_dir_all(site.path(3)).unwrap();
    site.release(2);
    looked(&site, server.address, 1).await;
    assert_eq!(version(server.address).await.as_deref(), Some("3"));
    site.release(4);
    until(server.address, 4).await;
    server.stop().await;
}

#[tokio::test]
async fn a_remembering_server_never_goes_back_over_a_restart() {
    let site = Site::with_version(3);
    let options = || {
        let mut options = site.options();
        options.state = Some(site.0.path().join("state/served.json"));
        options
    };
    let server = Running::start(options()).await;
    assert_eq!(version(server.address).await.as_deref(), Some("3"));
    server.stop().await;

    let newest = site.0.path().join("moved");
    std::fs::rename(site.path(3), &newest).unwrap();
    site.release(2);
    let server = Running::start(options()).await;
    assert_eq!(
        version(server.address).await,
        None,
        "the newest release is gone, and an older one does not do"
    );
    server.stop().await;

    site.put(3, &files(MODEL, 3, "another run"));
    let server = Running::start(options()).await;
    assert_eq!(
        version(server.address).await,
        None,
        "the same version with other content"
    );
    std::fs::remove_dir_all(site.path(3)).unwrap();
    std::fs::rename(&newest, site.path(3)).unwrap();
    until(server.address, 3).await;
    server.stop().await;
}
