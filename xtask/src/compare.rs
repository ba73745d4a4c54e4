//! `cargo xtask compare seal|open|transfer`: ours and a peer on the same work, in turn, several times.
//!
//! Figures are bytes per second of processor time of one core, so that a busy machine disturbs them
//! little; ours counts user and system time, the peer (`openssl speed`) user time alone. Ours seals and
//! opens whole shards of 64 MiB that lie in memory, as the transfer engine does; the peer the same 16 KiB
//! over and over, which stay in its cache.

use std::hint::black_box;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Serialize;
use tidegate_seal::digest::{Sha256, sha256};
use tidegate_seal::shard::{MAX_PLAINTEXT_BYTES, PlainShard, seal_shard};

use crate::transfer;

/// Times that each side is measured; the median counts.
const ROUNDS: usize = 5;
/// Processor seconds that each measurement of ours takes at the least.
const SECONDS: f64 = 1.0;
const ORGANISATION: &str = "compare";

/// Compares one figure of ours with a peer's.
#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    /// What to compare
    what: What,
    /// How to print it
    #[arg(long, default_value = "text")]
    format: Format,
    /// How many mebibytes `transfer` carries
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    /// Sealing a shard of 64 MiB against `openssl speed -evp aes-256-gcm` at 16 KiB
    Seal,
    /// Opening a shard of 64 MiB against the same with `-decrypt`
    Open,
    /// A folder to a store and back against `rclone`, with and without its `crypt`, and `age`
    Transfer,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// One line of the result.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) ours: f64,
    pub(crate) peer: f64,
    pub(crate) ratio: f64,
    pub(crate) unit: &'static str,
}

impl Compare {
    /// Measures and prints.
    ///
    /// # Errors
    /// When `openssl` is missing or the processor time cannot be read.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let figures = match self.what {
            What::Seal => compare_seal()?,
            What::Open => compare_open()?,
            What::Transfer => transfer::compare(self.mebibytes)?,
        };
        match self.format {
            Format::Json => println!("{}", serde_json::to_string(&figures)?),
            Format::Text => {
                for f in &figures {
                    println!(
                        "{:<34} ours {:.2}  peer {:.2}  ratio {:.2}  {}",
                        f.name, f.ours, f.peer, f.ratio, f.unit
                    );
                }
            }
        }
        Ok(())
    }
}

/// A shard that zstd cannot shrink.
fn incompressible() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAX_PLAINTEXT_BYTES);
    for i in 0..(MAX_PLAINTEXT_BYTES / 32) as u64 {
        bytes.extend_from_slice(sha256(&i.to_be_bytes()).as_bytes());
    }
    bytes
}

fn compare_seal() -> anyhow::Result<Vec<Figure>> {
    let noise = incompressible();
    let mut room = Vec::new();
    let seal = || {
        let shard = PlainShard::new(MAX_PLAINTEXT_BYTES, std::mem::take(&mut room))?;
        let mut rest = noise.as_slice();
        let mut filling = 0.0;
        // What fills a piece would be a read from a file: it is no part of sealing.
        let fill = |piece: &mut [u8]| {
            let (now, later) = rest.split_at(piece.len());
            rest = later;
            filling += timed(|| piece.copy_from_slice(now))?.1;
            anyhow::Ok(())
        };
        let (sealed, seconds) = timed(|| shard.seal_filling(ORGANISATION, fill))?;
        room = sealed??.0;
        Ok(seconds - filling)
    };
    measure("seal", &[], seal)
}

fn compare_open() -> anyhow::Result<Vec<Figure>> {
    let (sealed, key) = seal_shard(&incompressible(), ORGANISATION)?;
    let mut room = Vec::new();
    let open = || {
        room.clear();
        room.extend_from_slice(&sealed);
        let ciphertext = std::mem::take(&mut room);
        let mut digest = Sha256::default();
        let mut digesting = Vec::new();
        // A receiver takes the digest of each piece just before opening it: that is no part of opening.
        let watch = |piece: &[u8]| digesting.push(timed(|| digest.update(piece)));
        let (opened, seconds) = timed(|| PlainShard::open_watching(ciphertext, &key, ORGANISATION, watch))?;
        black_box(digest.finish());
        room = opened?.into_room();
        let digesting: anyhow::Result<f64> = digesting.into_iter().map(|taken| Ok(taken?.1)).sum();
        Ok(seconds - digesting?)
    };
    measure("open", &["-decrypt"], open)
}

/// Measures ours, which gives the seconds of one shard, and the peer, in turn.
fn measure(
    name: &'static str,
    openssl: &[&str],
    mut shard: impl FnMut() -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<Figure>> {
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    shard()?;
    for _ in 0..ROUNDS {
        let (mut bytes, mut seconds) = (0.0, 0.0);
        while seconds < SECONDS {
            seconds += shard()?;
            bytes += MAX_PLAINTEXT_BYTES as f64;
        }
        ours.push(bytes / seconds / 1e9);
        peer.push(openssl_speed(openssl)?);
    }
    let (ours, peer) = (median(&mut ours), median(&mut peer));
    Ok(vec![Figure {
        name,
        ours,
        peer,
        ratio: ours / peer,
        unit: "GB per CPU-second",
    }])
}

/// What `work` gives, and the processor seconds that it took.
fn timed<T>(work: impl FnOnce() -> T) -> anyhow::Result<(T, f64)> {
    let begin = processor_seconds()?;
    let result = black_box(work());
    Ok((result, processor_seconds()? - begin))
}

/// User and system time of this thread, to the nanosecond (the kernel's `sched-stats`).
fn processor_seconds() -> anyhow::Result<f64> {
    let file = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(file).with_context(|| format!("reading processor time from {file}"))?;
    let nanoseconds: f64 = text.split_whitespace().next().context("the file is empty")?.parse()?;
    Ok(nanoseconds / 1e9)
}

/// What `openssl speed` reaches with AES-256-GCM in pieces of 16 KiB.
fn openssl_speed(arguments: &[&str]) -> anyhow::Result<f64> {
    let output = Command::new("openssl")
        .args([
            "speed",
            "-mr",
            "-evp",
            "aes-256-gcm",
            "-bytes",
            "16384",
            "-seconds",
            "3",
        ])
        .args(arguments)
        .output()
        .context("running `openssl`; install the Debian package `openssl`")?;
    ensure!(output.status.success(), "`openssl speed` failed");
    // Its machine-readable result: `+F:25:AES-256-GCM:2754281472.00`, in bytes per second.
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find(|line| line.starts_with("+F:"));
    let rate = line
        .and_then(|line| line.rsplit(':').next())
        .context("`openssl speed` gave no result")?;
    Ok(rate.parse::<f64>()? / 1e9)
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
