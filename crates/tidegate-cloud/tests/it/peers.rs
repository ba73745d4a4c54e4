//! Starts servers that others wrote, each with its state in a folder of its own, and ends them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Python packages of the peers, where `tests/run --all` put them.
fn peers() -> Option<PathBuf> {
    let folder = std::env::var_os("TIDEGATE_PEERS")
        .map(PathBuf::from)
        .filter(|folder| folder.is_dir());
    assert!(
        folder.is_some() || std::env::var_os("TIDEGATE_INTEROP").is_none(),
        "TIDEGATE_PEERS must name the environment with the peers; `tests/run --all` makes it"
    );
    folder
}

/// A port that nobody listens on, with the one 10,000 above it free too: SeaweedFS takes both.
fn free_port() -> u16 {
    for _ in 0..1000 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
    panic!("no free ports");
}

/// A server, ended with this value.
pub(crate) struct Peer {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    fn start(mut command: Command, folder: tempfile::TempDir, port: u16) -> Self {
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn().unwrap();
        let mut peer = Self { child, folder, port };
        let until = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = peer.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "the peer did not start: {}",
                std::fs::read_to_string(peer.folder.path().join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        peer
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// A certificate authority of the test's own and a certificate for this machine: `ca.pem`, `server.pem`,
/// `server.key`.
fn certificates(folder: &Path) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n";
    std::fs::write(folder.join("names"), names).unwrap();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let mut authority = vec!["req", "-x509", "-days", "2", "-subj", "/CN=test authority"];
    authority.extend(key);
    authority.extend(["-keyout", "ca.key", "-out", "ca.pem"]);
    openssl(&authority);
    let mut request = vec!["req", "-subj", "/CN=localhost"];
    request.extend(key);
    request.extend(["-keyout", "server.key", "-out", "server.csr"]);
    openssl(&request);
    let sign = [
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "names",
        "-out",
        "server.pem",
    ];
    openssl(&sign);
}

/// SeaweedFS as S3 over TLS, with signatures checked; none where it is not installed.
pub(crate) fn seaweed() -> Option<Peer> {
    let program = peers()?.join("bin/weed");
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let identities = r#"{"identities": [
        {"name": "admin", "credentials": [{"accessKey": "AKADMIN", "secretKey": "SKADMIN"}],
         "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
        {"name": "reader", "credentials": [{"accessKey": "AKREADER", "secretKey": "SKREADER"}],
         "actions": ["Read", "List"]}]}"#;
    std::fs::write(folder.path().join("s3.json"), identities).unwrap();
    let roles = r#"{"sts": {"tokenDuration": "1h", "maxSessionLength": "12h", "issuer": "peer",
         "signingKey": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="},
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "policies": [{"name": "AllS3", "document": {"Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]}]}}],
        "roles": [{"roleName": "worker", "roleArn": "arn:aws:iam::role/worker", "attachedPolicies": ["AllS3"],
            "trustPolicy": {"Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Principal": "*", "Action": ["sts:AssumeRole"]}]}}]}"#;
    std::fs::write(folder.path().join("iam.json"), roles).unwrap();
    let port = free_port();
    let mut command = Command::new(program);
    command
        .arg("server")
        .args([
            "-master.telemetry=false",
            "-dir=data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
        ])
        .args(["-volume.max=20", "-master.volumeSizeLimitMB=256", "-filer", "-s3"])
        // Fixed ports of these would clash with a second server.
        .args([
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.config=s3.json",
            "-s3.iam.config=iam.json",
        ])
        .args(["-s3.cert.file=server.pem", "-s3.key.file=server.key"])
        .arg(format!("-master.port={}", free_port()))
        .arg(format!("-volume.port={}", free_port()))
        .arg(format!("-filer.port={}", free_port()))
        .arg(format!("-s3.port={port}"));
    Some(Peer::start(command, folder, port))
}

impl Peer {
    /// The role that workers are given.
    pub(crate) const ROLE: &str = "arn:aws:iam::role/worker";

    /// The address of a store in bucket `bucket` of a server that speaks S3 over TLS.
    pub(crate) fn s3(&self, bucket: &str, prefix: &str) -> String {
        let certificates = self.folder().join("ca.pem");
        let (port, certificates) = (self.port, certificates.display());
        format!("s3://{bucket}/{prefix}?endpoint=https://127.0.0.1:{port}&region=us-east-1&certificates={certificates}")
    }
}

/// Makes a bucket with the vendor's own client.
pub(crate) fn make_bucket(peer: &Peer, bucket: &str) {
    let script = format!(
        "import boto3\nboto3.client('s3', endpoint_url='https://127.0.0.1:{}', verify='{}', region_name='us-east-1', \
         aws_access_key_id='AKADMIN', aws_secret_access_key='SKADMIN').create_bucket(Bucket='{bucket}')",
        peer.port,
        peer.folder().join("ca.pem").display(),
    );
    let python = peers().unwrap().join("bin/python");
    let output = Command::new(python).args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
