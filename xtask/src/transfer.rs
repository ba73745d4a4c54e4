//! `cargo xtask compare transfer`: a folder goes to a store and comes back, by ours and by peers.
//!
//! Each side is a process of its own under GNU `time`, on the same bytes, in turn; SeaweedFS is the store.
//! Figures are megabytes per second of the processor time of that process, which counts its threads and what the
//! kernel does for it, and not the server's. Ours describes, seals, signs and uploads; it downloads, verifies and
//! opens. The peers are `rclone` to the same server, plain and through its `crypt` remote, `age` to a file, `restic` to a
//! folder, and `cp`, which is the limit.

use std::collections::BTreeSet;
use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tidegate_cloud::{Address, CloudStore};
use tidegate_contracts::{ObjectName, Store};
use tidegate_local::FolderStore;
use tidegate_seal::digest::sha256;
use tidegate_seal::dsse::payload_digest;
use tidegate_seal::key::DataKey;
use tidegate_seal::packing::manifest_digest;
use tidegate_seal::permit::sign_permit;
use tidegate_seal::sign::SigningKey;
use tidegate_transfer::{Crossing, Description, Expected, PermitCheck, Permitted, describe, receive, send};
use tidegate_types::ids::{PermitId, Purpose, RunId, SiteName, TaskName};
use tidegate_types::permit::{Evidence, Permit, SiteReference};
use tidegate_types::{ArtifactKind, Digest, Label, Level};

use crate::compare::{Figure, median};

const ORGANISATION: &str = "compare";
const DIGEST_KEY: [u8; 32] = [9; 32];
const BUCKET: &str = "compare";
/// Times that each side is measured; the median counts.
const ROUNDS: usize = 3;
const PIECE: usize = 1 << 20;

/// What one process carries.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Way {
    /// From the folder `source` into the store
    Out,
    /// From the store into the folder `received`
    Home,
}

/// What the far side has to know about a crossing.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    packing_list: String,
    packing_list_digest: Digest,
    permit_digest: Digest,
    bytes: u64,
    plaintext: u64,
}

/// Ours, as the process that is measured: `folder` holds `source`, and takes all else.
pub(crate) fn carry(way: Way, store: &str, folder: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let store: Arc<dyn Store> = match store.strip_prefix("folder:") {
        Some(path) => Arc::new(FolderStore::open(path)?),
        None => {
            let address: Address = store.parse()?;
            Arc::new(CloudStore::open(address, &std::env::vars().collect())?)
        }
    };
    match way {
        Way::Out => runtime.block_on(carry_out(&*store, folder)),
        Way::Home => runtime.block_on(carry_home(&*store, folder)),
    }
}

fn site(name: &str) -> anyhow::Result<SiteReference> {
    Ok(SiteReference {
        site: SiteName::new(name)?,
        definition: sha256(name.as_bytes()),
    })
}

fn permit(now: u64) -> anyhow::Result<Permit> {
    Ok(Permit {
        id: PermitId::new("permit-1")?,
        organisation: ORGANISATION.to_owned(),
        from: site("home")?,
        to: site("cloud")?,
        copied_from: None,
        pipeline: sha256(b"pipeline"),
        policies: sha256(b"policies"),
        code: None,
        worker: None,
        label: Label::of(Level::Internal),
        purpose: Purpose::new("comparison")?,
        run: RunId::new("run-1")?,
        task: TaskName::new("train")?,
        attempts: 1,
        evidence: Evidence {
            sql: None,
            label_report: None,
            k: None,
            l: None,
            suppressed_rows: None,
        },
        waivers: Vec::new(),
        approvals: Vec::new(),
        not_before: now.saturating_sub(10),
        expires: now + 3600,
        byte_limit: 1 << 50,
        revocation_epoch: 1,
        checkpoint: String::new(),
        standing: Vec::new(),
    })
}

fn owner() -> anyhow::Result<(SigningKey, DataKey)> {
    Ok((SigningKey::from_seed(&[3; 32])?, DataKey::from_bytes([5; 32])))
}

async fn carry_out(store: &dyn Store, folder: &Path) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let (signer, data_key) = owner()?;
    let permit = permit(now)?;
    let source = folder.join("source");
    let description = Description {
        kind: ArtifactKind::Dataset,
        name: "compare/train".to_owned(),
        organisation: ORGANISATION.to_owned(),
        owner: permit.from.site.clone(),
        label: Label::of(Level::Internal),
        lowered_from: None,
        columns: Vec::new(),
        lineage: BTreeSet::new(),
        task: TaskName::new("prepare")?,
        step_key: sha256(b"step"),
    };
    let manifest = describe(&source, description, &DIGEST_KEY)?;
    let plaintext = manifest.total_bytes();
    let envelope = sign_permit(&signer, &permit, &manifest_digest(&manifest)?, &manifest.name)?;
    let public = signer.public();
    let check = PermitCheck {
        owner: &public,
        organisation: ORGANISATION,
        from: &permit.from,
        to: &permit.to,
        run: &permit.run,
        now,
        revocation_epoch: 1,
    };
    let permitted = Permitted::verify(&check, &envelope, manifest)?;
    let sent = send(
        &permitted,
        &Crossing {
            source: &source,
            store,
            signer: &signer,
            data_key: &data_key,
            digest_key: &DIGEST_KEY,
            known: tidegate_transfer::KnownShards::NONE,
            state: &folder.join("state"),
            shards_in_flight: 2,
            progress: &|_| {},
            gate: &|| tidegate_transfer::Gate::Open,
        },
    )
    .await?;
    let told = Told {
        packing_list: sent.packing_list.to_string(),
        packing_list_digest: sent.packing_list_digest,
        permit_digest: payload_digest(&envelope)?,
        bytes: sent.bytes,
        plaintext,
    };
    fs::write(folder.join("told.json"), serde_json::to_vec(&told)?)?;
    Ok(())
}

async fn carry_home(store: &dyn Store, folder: &Path) -> anyhow::Result<()> {
    let told: Told = serde_json::from_slice(&fs::read(folder.join("told.json"))?)?;
    let (signer, data_key) = owner()?;
    let permit = permit(0)?;
    let (public, commitment) = (signer.public(), data_key.commitment());
    let expected = Expected {
        packing_list: &ObjectName::new(told.packing_list)?,
        packing_list_digest: &told.packing_list_digest,
        sender: &public,
        organisation: ORGANISATION,
        artifact: None,
        permit: &permit.id,
        permit_digest: &told.permit_digest,
        to: &permit.to.site,
        key_commitment: Some(&commitment),
        byte_limit: told.bytes,
        plaintext_limit: told.plaintext,
        ceiling: None,
    };
    receive(&expected, store, &data_key, &folder.join("received")).await?;
    Ok(())
}

/// What a process took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    processor_seconds: f64,
    resident_bytes: f64,
}

/// Takes memory from the system and gives it back, touched.
///
/// A virtual machine hands what it does not use back to its host, and getting it again costs many times what copying it
/// does. Whoever came first to it would pay for all.
fn warm(bytes: usize) {
    black_box(vec![1_u8; bytes]);
}

/// Runs a command to its end under GNU `time`.
fn measured(folder: &Path, command: &Command) -> anyhow::Result<Cost> {
    let figures = folder.join("time");
    let mut timed = Command::new("/usr/bin/time");
    timed.args(["-f", "%U %S %M", "-o"]).arg(&figures);
    timed.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => timed.env(name, value),
            None => timed.env_remove(name),
        };
    }
    let output = timed.stdin(Stdio::null()).output();
    let output = output.context("running `/usr/bin/time`; install the Debian package `time`")?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = fs::read_to_string(&figures)?;
    let words: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [user, system, kibibytes] = words.as_slice() else {
        bail!("`time` wrote `{text}`");
    };
    Ok(Cost {
        processor_seconds: user + system,
        resident_bytes: kibibytes * 1024.0,
    })
}

/// What is compared, with everything that it needs.
struct Field {
    folder: PathBuf,
    bytes: f64,
    store: String,
    credentials: [(&'static str, &'static str); 2],
    recipient: String,
}

impl Field {
    /// Ours in a folder of its own, which holds the same source.
    fn ours(&self, way: Way, store: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        let way = match way {
            Way::Out => "out",
            Way::Home => "home",
        };
        command.args(["carry", way, store]).arg(&self.folder);
        command.envs(self.credentials);
        Ok(command)
    }

    fn rclone(&self, from: &str, to: &str) -> Command {
        let mut command = rclone(&self.folder);
        command.args(["copy", from, to]);
        command
    }

    fn source(&self) -> String {
        self.folder.join("source").display().to_string()
    }
}

fn said(command: &mut Command, package: &str) -> anyhow::Result<String> {
    let output = command.output();
    let output = output.with_context(|| format!("running {command:?}; install the Debian package `{package}`"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {told}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// `rclone` with the settings in `folder` and none of the surroundings.
fn rclone(folder: &Path) -> Command {
    let mut command = Command::new("rclone");
    command.arg("--config").arg(folder.join("rclone.conf"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
}

/// Bytes that nobody can shrink.
fn write_noise(folder: &Path, mebibytes: u64) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = fs::File::create(folder.join("noise.bin"))?;
    let mut piece = vec![0; PIECE];
    for number in 0..mebibytes {
        let mut state = sha256(&number.to_be_bytes());
        for part in piece.chunks_mut(32) {
            state = sha256(state.as_bytes());
            part.copy_from_slice(state.as_bytes());
        }
        file.write_all(&piece)?;
    }
    Ok(())
}

/// Compares, with so many mebibytes.
///
/// Every round has a server and folders of its own, and what it leaves is removed: the next one then works on memory
/// that the system has already. The first round only warms up and does not count.
pub(crate) fn compare(mebibytes: u64) -> anyhow::Result<Vec<Figure>> {
    let mut measured = Measured::default();
    for round in 0..=ROUNDS {
        let server = Seaweed::start()?;
        let field = Field::lay_out(&server, mebibytes)?;
        if round == 0 {
            field.measure(&mut Measured::default())?;
        } else {
            field.measure(&mut measured)?;
        }
    }
    eprintln!(
        "ours held at most {:.0} MiB",
        measured.resident_bytes / f64::from(1 << 20)
    );
    Ok(measured.figures())
}

/// What was measured in all rounds that count.
#[derive(Debug, Default)]
struct Measured {
    /// Name of the figure, rates of ours, rates of the peer.
    rates: Vec<(&'static str, Vec<f64>, Vec<f64>)>,
    /// The most that one of our processes held.
    resident_bytes: f64,
}

impl Measured {
    fn add(&mut self, name: &'static str, ours: f64, peer: f64) {
        if let Some((_, all, peers)) = self.rates.iter_mut().find(|(known, ..)| *known == name) {
            all.push(ours);
            peers.push(peer);
        } else {
            self.rates.push((name, vec![ours], vec![peer]));
        }
    }

    fn figures(self) -> Vec<Figure> {
        let figure = |(name, mut ours, mut peer): (&'static str, Vec<f64>, Vec<f64>)| {
            let (ours, peer) = (median(&mut ours), median(&mut peer));
            Figure {
                name,
                ours,
                peer,
                ratio: ours / peer,
                unit: "MB per CPU-second",
            }
        };
        self.rates.into_iter().map(figure).collect()
    }
}

impl Field {
    fn lay_out(server: &Seaweed, mebibytes: u64) -> anyhow::Result<Self> {
        let folder = server.folder.join("field");
        write_noise(&folder.join("source"), mebibytes)?;
        let password = said(Command::new("rclone").args(["obscure", "compare"]), "rclone")?;
        let s3 = format!(
            "type = s3\nprovider = Other\naccess_key_id = AKADMIN\nsecret_access_key = SKADMIN\nregion = us-east-1\n\
             endpoint = http://127.0.0.1:{}\n",
            server.port
        );
        fs::write(
            folder.join("rclone.conf"),
            format!(
                "[sea]\n{s3}\n[plain]\ntype = alias\nremote = sea:{BUCKET}/plain\n\n\
                 [crypt]\ntype = crypt\nremote = sea:{BUCKET}/crypt\npassword = {password}\n"
            ),
        )?;
        let key = folder.join("age.key");
        said(Command::new("age-keygen").arg("-o").arg(&key), "age")?;
        let field = Self {
            bytes: (mebibytes << 20) as f64,
            store: format!(
                "s3://{BUCKET}/ours?endpoint=http://127.0.0.1:{}&region=us-east-1",
                server.port
            ),
            credentials: [("AWS_ACCESS_KEY_ID", "AKADMIN"), ("AWS_SECRET_ACCESS_KEY", "SKADMIN")],
            recipient: said(Command::new("age-keygen").arg("-y").arg(&key), "age")?,
            folder,
        };
        let bucket = format!("sea:{BUCKET}");
        said(rclone(&field.folder).args(["mkdir", &bucket]), "rclone")?;
        said(&mut field.restic("init"), "restic")?;
        Ok(field)
    }

    fn restic(&self, action: &str) -> Command {
        let mut command = Command::new("restic");
        command
            .args(["--quiet", "--no-cache", "--repo"])
            .arg(self.folder.join("restic"));
        command.env("RESTIC_PASSWORD", "compare").arg(action);
        command
    }

    /// Each side once.
    fn measure(&self, into: &mut Measured) -> anyhow::Result<()> {
        let rate = |cost: Cost| self.bytes / cost.processor_seconds / 1e6;
        let mut resident = 0.0_f64;
        // What the process writes, what the server does, and as much again.
        let room = self.bytes as usize * 4;
        let mut ours = |way, store: &str| -> anyhow::Result<f64> {
            warm(room);
            let cost = measured(&self.folder, &self.ours(way, store)?)?;
            resident = resident.max(cost.resident_bytes);
            Ok(rate(cost))
        };
        let peer = |command: &Command| -> anyhow::Result<f64> {
            warm(room);
            Ok(rate(measured(&self.folder, command)?))
        };
        let home = |name: &str| self.folder.join(name).display().to_string();
        let noise = self.folder.join("source/noise.bin");

        let upload = ours(Way::Out, &self.store)?;
        into.add(
            "upload (rclone crypt)",
            upload,
            peer(&self.rclone(&self.source(), "crypt:"))?,
        );
        into.add(
            "upload (rclone plain)",
            upload,
            peer(&self.rclone(&self.source(), "plain:"))?,
        );

        let download = ours(Way::Home, &self.store)?;
        let crypt = peer(&self.rclone("crypt:", &home("crypt-home")))?;
        into.add("download (rclone crypt)", download, crypt);
        let plain = peer(&self.rclone("plain:", &home("plain-home")))?;
        into.add("download (rclone plain)", download, plain);

        fs::remove_dir_all(self.folder.join("state"))?;
        let folder = ours(Way::Out, &format!("folder:{}", home("sealed")))?;
        let mut age = Command::new("age");
        age.args(["-r", &self.recipient, "-o", &home("aged")]).arg(&noise);
        into.add("folder (age)", folder, peer(&age)?);
        into.add(
            "folder (restic)",
            folder,
            peer(self.restic("backup").arg(self.source()))?,
        );
        // The limit: nobody writes a folder in less time than copying it takes.
        into.add(
            "folder (cp)",
            folder,
            peer(Command::new("cp").arg(&noise).arg(home("copied")))?,
        );
        into.resident_bytes = into.resident_bytes.max(resident);
        Ok(())
    }
}

/// SeaweedFS as S3, ended and removed with this value.
struct Seaweed {
    child: std::process::Child,
    folder: PathBuf,
    port: u16,
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Seaweed {
    fn start() -> anyhow::Result<Self> {
        let peers = std::env::var_os("TIDEGATE_PEERS")
            .context("TIDEGATE_PEERS must name the environment with the peers; `tests/run --all` makes it")?;
        let folder = std::env::temp_dir().join(format!("tidegate-compare-{}", std::process::id()));
        fs::create_dir_all(folder.join("data"))?;
        fs::write(
            folder.join("s3.json"),
            r#"{"identities": [{"name": "admin", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                "credentials": [{"accessKey": "AKADMIN", "secretKey": "SKADMIN"}]}]}"#,
        )?;
        let log = fs::File::create(folder.join("log"))?;
        let port = free_port()?;
        let child = Command::new(Path::new(&peers).join("bin/weed"))
            .args(["server", "-master.telemetry=false", "-dir=data"])
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=40"])
            .args(["-master.volumeSizeLimitMB=1024", "-filer", "-s3", "-s3.config=s3.json"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-master.port={}", free_port()?))
            .arg(format!("-volume.port={}", free_port()?))
            .arg(format!("-filer.port={}", free_port()?))
            .arg(format!("-s3.port={port}"))
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting SeaweedFS")?;
        let mut server = Self { child, folder, port };
        let began = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(
                server.child.try_wait()?.is_none() && began.elapsed().as_secs() < 60,
                "SeaweedFS did not start: {}",
                fs::read_to_string(server.folder.join("log")).unwrap_or_default()
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(server)
    }
}

/// A port that nobody listens on, with the one 10,000 above it free too: SeaweedFS takes both.
fn free_port() -> anyhow::Result<u16> {
    for _ in 0..1000 {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if port < 55_000 && std::net::TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free ports")
}
