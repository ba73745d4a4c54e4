//! `cargo xtask compare seal|open`: ours and a peer on the same work, in turn, several times.
//!
//! Figures are bytes per second of processor time of one core, so that a busy machine disturbs them
//! little; ours counts user and system time, the peer (`openssl speed`) user time alone.

use std::hint::black_box;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Serialize;
use tidegate_seal::digest::sha256;
use tidegate_seal::shard::{MAX_PLAINTEXT_BYTES, open_shard, open_shard_into, seal_shard, seal_shard_into};

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
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    /// Sealing a shard of 64 MiB against `openssl speed -evp aes-256-gcm` at 16 KiB
    Seal,
    /// Opening a shard of 64 MiB against the same with `-decrypt`
    Open,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    ours: f64,
    peer: f64,
    ratio: f64,
    unit: &'static str,
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
    let plaintext = incompressible();
    let mut room = Vec::new();
    measure(
        &[],
        "seal",
        || {
            black_box(seal_shard(&plaintext, ORGANISATION)?);
            Ok(())
        },
        "seal, room used again",
        || {
            black_box(seal_shard_into(&plaintext, ORGANISATION, &mut room)?);
            Ok(())
        },
    )
}

fn compare_open() -> anyhow::Result<Vec<Figure>> {
    let (sealed, key) = seal_shard(&incompressible(), ORGANISATION)?;
    let mut room = Vec::new();
    measure(
        &["-decrypt"],
        "open",
        || {
            black_box(open_shard(&sealed, &key, ORGANISATION)?);
            Ok(())
        },
        "open, room used again",
        || Ok(open_shard_into(&sealed, &key, ORGANISATION, &mut room)?),
    )
}

/// Measures two ways of doing ours, and the peer, in turn.
fn measure(
    openssl: &[&str],
    fresh_name: &'static str,
    mut fresh: impl FnMut() -> anyhow::Result<()>,
    again_name: &'static str,
    mut again: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Figure>> {
    let (mut ours, mut ours_again, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(gigabytes_per_second(&mut fresh)?);
        peer.push(openssl_speed(openssl)?);
        ours_again.push(gigabytes_per_second(&mut again)?);
    }
    let peer = median(&mut peer);
    let figure = |name, ours: f64| Figure {
        name,
        ours,
        peer,
        ratio: ours / peer,
        unit: "GB per CPU-second",
    };
    Ok(vec![
        figure(fresh_name, median(&mut ours)),
        figure(again_name, median(&mut ours_again)),
    ])
}

fn gigabytes_per_second(work: &mut impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    work()?;
    let begin = processor_seconds()?;
    let mut bytes = 0.0;
    loop {
        work()?;
        bytes += MAX_PLAINTEXT_BYTES as f64;
        let seconds = processor_seconds()? - begin;
        if seconds >= SECONDS {
            return Ok(bytes / seconds / 1e9);
        }
    }
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

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
