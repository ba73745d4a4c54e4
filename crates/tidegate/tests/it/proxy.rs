//! A network that breaks: a proxy between a client and a server of HTTP/1.1, which harms some of the requests
//! that pass through it, always the same ones.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is done to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Answered with 503 without being passed on.
    Busy,
    /// The same, with the wish to be left alone for a second.
    BusyForAWhile,
    /// Answered with 500 without being passed on.
    Broken,
    /// Cut off in the middle of its body.
    CutRequest,
    /// Passed on; of the answer only a half comes back.
    CutAnswer,
    /// Passed on; no answer comes back.
    NoAnswer,
    /// Answered well, with an error in the body, without being passed on.
    ErrorInBody,
}

const FAULTS: [Fault; 7] = [
    Fault::Busy,
    Fault::BusyForAWhile,
    Fault::Broken,
    Fault::CutRequest,
    Fault::CutAnswer,
    Fault::NoAnswer,
    Fault::ErrorInBody,
];

/// A proxy; it ends with this value.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    harmed: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Proxy {
    /// Harms one request of `every` on the way to `server`, in turn in every way.
    pub(crate) fn before(server: u16, every: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            harmed: Arc::default(),
            passed: Arc::default(),
            ended: Arc::default(),
        };
        let (harmed, passed, ended) = (
            Arc::clone(&proxy.harmed),
            Arc::clone(&proxy.passed),
            Arc::clone(&proxy.ended),
        );
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let number = passed.fetch_add(1, Ordering::SeqCst);
                let fault = (number % every == every - 1)
                    .then(|| FAULTS[harmed.fetch_add(1, Ordering::SeqCst) as usize % FAULTS.len()]);
                // A client that goes away is no matter of the proxy's.
                std::thread::spawn(move || drop(pass(client, server, fault)));
            }
        });
        proxy
    }

    /// How many requests were harmed.
    pub(crate) fn harmed(&self) -> u64 {
        self.harmed.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Passes one request on; the connection ends with it.
fn pass(mut client: TcpStream, server: u16, fault: Option<Fault>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (String::new(), 0_usize);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line == "\r\n" {
            break;
        }
        head += &line;
    }
    if fault == Some(Fault::CutRequest) {
        let mut half = vec![0; length / 2];
        reader.read_exact(&mut half)?;
        return client.shutdown(Shutdown::Both);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let answer = |status: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    match fault {
        Some(Fault::Busy) => return client.write_all(answer("503 Slow Down", "").as_bytes()),
        Some(Fault::BusyForAWhile) => {
            return client.write_all(answer("503 Slow Down\r\nretry-after: 1", "").as_bytes());
        }
        Some(Fault::Broken) => return client.write_all(answer("500 Internal Server Error", "").as_bytes()),
        // Only of what writes: whoever reads notices by the signature or the digest, and takes it for tampering.
        Some(Fault::ErrorInBody) if head.starts_with("PUT") => {
            let error = "<Error><Code>InternalError</Code></Error>";
            return client.write_all(answer("200 OK", error).as_bytes());
        }
        _ => {}
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", server))?;
    upstream.write_all(head.as_bytes())?;
    upstream.write_all(b"connection: close\r\n\r\n")?;
    upstream.write_all(&body)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    match fault {
        Some(Fault::NoAnswer) => {}
        Some(Fault::CutAnswer) => client.write_all(answer.get(..answer.len() / 2).unwrap_or_default())?,
        _ => client.write_all(&answer)?,
    }
    client.shutdown(Shutdown::Both)
}
