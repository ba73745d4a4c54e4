//! How much is taken, and what happens above that.

use std::time::Duration;

use serde_json::json;
use tidegate_serve::{ServeError, Server};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::client::{get, infer, read, request};
use crate::fixture::{Running, Site};

fn rows(count: usize) -> serde_json::Value {
    json!({"inputs": [{"name": "features", "datatype": "FP32", "shape": [count, 3], "data": vec![1; count * 3]}]})
}

#[tokio::test]
async fn long_bodies_and_many_rows_are_refused() {
    let site = Site::with_version(1);
    let mut options = site.options();
    options.limits.rows = 10;
    options.limits.body_bytes = 1000;
    let server = Running::start(options).await;
    assert_eq!(infer(server.address, &rows(10)).await.status, 200);
    let answer = infer(server.address, &rows(11)).await;
    assert!(answer.status == 400 && answer.error().contains("1 to 10 rows"));

    let long = request(
        server.address,
        "POST /v2/models/readmission/infer HTTP/1.1",
        &[b' '; 1001],
    )
    .await;
    assert!(long.status == 413 && long.error().contains("1000 bytes"));
    // Also when nobody says beforehand how long it will be.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /v2/models/readmission/infer HTTP/1.1\r\nHost: test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("3e9\r\n{}\r\n0\r\n\r\n", " ".repeat(1001));
    stream.write_all(chunk.as_bytes()).await.unwrap();
    assert_eq!(read(stream).await.status, 413);
    server.stop().await;
}

#[tokio::test]
async fn who_sends_slowly_holds_no_slot_for_ever() {
    let site = Site::with_version(1);
    let mut options = site.options();
    options.limits.parallel = 1;
    options.limits.request = Duration::from_millis(300);
    let server = Running::start(options).await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let head =
        "POST /v2/models/readmission/infer HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    let answer = read(slow).await;
    assert!(answer.status == 504 && answer.error().contains("0.3 s"));
    assert_eq!(
        infer(server.address, &rows(1)).await.status,
        200,
        "the slot is free again"
    );
    server.stop().await;
}

#[tokio::test]
async fn no_more_connections_than_allowed_are_answered() {
    let site = Site::with_version(1);
    let mut options = site.options();
    options.limits.connections = 1;
    let server = Running::start(options).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first
        .write_all(b"GET /v2 HTTP/1.1\r\nHost: test\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0; 1];
    tokio::io::AsyncReadExt::read_exact(&mut first, &mut byte)
        .await
        .unwrap();
    let second = tokio::spawn(get(server.address, "/v2/health/live"));
    let early = tokio::time::timeout(Duration::from_millis(200), second);
    let early = early.await;
    assert!(early.is_err(), "the second connection waits while the first is open");
    drop(first);
    assert_eq!(get(server.address, "/v2/health/live").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn who_is_silent_or_drips_holds_no_connection_for_ever() {
    let site = Site::with_version(1);
    let mut options = site.options();
    options.limits.connections = 2;
    options.limits.request = Duration::from_millis(400);
    options.limits.idle = Duration::from_millis(200);
    let server = Running::start(options).await;
    // One has had an answer and says nothing more, the other never finishes its head.
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    silent
        .write_all(b"GET /v2 HTTP/1.1\r\nHost: test\r\n\r\n")
        .await
        .unwrap();
    let mut dripping = TcpStream::connect(server.address).await.unwrap();
    let drips = tokio::spawn(async move {
        dripping.write_all(b"GET /v2 HTTP/1.1\r\nX: ").await.unwrap();
        while dripping.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let answers = async {
        for _ in 0..2 {
            assert_eq!(get(server.address, "/v2/health/live").await.status, 200);
        }
        drips.await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut rest).await;
        assert!(
            rest.starts_with(b"HTTP/1.1 200"),
            "the connection ends after its answer"
        );
    };
    tokio::time::timeout(Duration::from_secs(20), answers)
        .await
        .expect("both connections end");
    server.stop().await;
}

#[tokio::test]
async fn ending_lets_running_requests_finish_and_waits_for_nobody_else() {
    let site = Site::with_version(1);
    let mut options = site.options();
    options.limits.request = Duration::from_secs(2);
    let server = Running::start(options).await;
    let address = server.address;
    let body = rows(1).to_string();
    let mut running = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v2/models/readmission/infer HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    running.write_all(head.as_bytes()).await.unwrap();
    // The server asks for the body, so the request is running.
    let mut line = [0; 25];
    tokio::io::AsyncReadExt::read_exact(&mut running, &mut line)
        .await
        .unwrap();
    assert!(line.starts_with(b"HTTP/1.1 100 Continue"));
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(b"GET /v2").await.unwrap();

    let stopping = tokio::spawn(server.stop());
    running.write_all(body.as_bytes()).await.unwrap();
    assert_eq!(read(running).await.status, 200);
    stopping.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_server_that_could_not_work_does_not_start() {
    let site = Site::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = site.options();
    options.address = taken.local_addr().unwrap();
    assert!(matches!(Server::bind(options).await, Err(ServeError::Bind { .. })));
    let mut options = site.options();
    options.limits.parallel = 0;
    assert!(matches!(
        Server::bind(options).await,
        Err(ServeError::Limit("parallel"))
    ));
    let mut options = site.options();
    let state = site.0.path().join("served.json");
    std::fs::write(&state, "{").unwrap();
    options.state = Some(state);
    assert!(matches!(Server::bind(options).await, Err(ServeError::State { .. })));
}
