//! How long a request takes from a client on the same machine: a batch of one row, and of a thousand.

#![allow(clippy::unwrap_used, clippy::panic)] // A benchmark fails by panicking, as tests do.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;

#[allow(dead_code, unreachable_pub)]
#[path = "../tests/it/fixture.rs"]
mod fixture;

use fixture::{Running, Site};

const PATH: &str = "/v2/models/readmission/infer";

/// One request on an open connection; the whole answer, which must be a success.
fn ask(stream: &mut TcpStream, request: &[u8], answer: &mut Vec<u8>) {
    stream.write_all(request).unwrap();
    answer.clear();
    let mut part = [0; 1 << 16];
    loop {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "the server ended the connection");
        answer.extend_from_slice(&part[..count]);
        let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let text = std::str::from_utf8(&answer[..head]).unwrap().to_ascii_lowercase();
        assert!(text.starts_with("http/1.1 200"), "{text}");
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        if answer.len() == head + 4 + length.parse::<usize>().unwrap() {
            return;
        }
    }
}

fn request(rows: usize) -> Vec<u8> {
    let data: Vec<f64> = (0..rows * 3)
        .map(|at| if at % 3 == 1 { (at % 2) as f64 } else { at as f64 / 7.0 })
        .collect();
    let body = json!({"inputs": [{"name": "features", "datatype": "FP32", "shape": [rows, 3], "data": data}]});
    let body = body.to_string();
    format!(
        "POST {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn serving(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let site = Site::with_version(1);
    let server = runtime.block_on(Running::start(site.options()));
    let mut group = criterion.benchmark_group("infer over HTTP");
    group.sample_size(20).measurement_time(Duration::from_secs(5));
    for rows in [1, 1_000] {
        let (mut stream, mut answer) = (connect(server.address), Vec::new());
        let request = request(rows);
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("{rows} rows"), |bencher| {
            bencher.iter(|| ask(&mut stream, &request, &mut answer));
        });
    }
    group.finish();
    runtime.block_on(server.stop());
}

criterion_group!(benches, serving);
criterion_main!(benches);
