//! How fast a full shard is sealed and opened: 64 MiB of rows, which shrink, and of noise, which does not.

#![allow(clippy::unwrap_used)] // A benchmark fails by panicking, as tests do.

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidegate_seal::shard::{PlainShard, open_shard, seal_shard};

/// A shard of an artifact is never larger.
const SHARD: usize = 64 << 20;
const ORGANISATION: &str = "st-mary";

fn rows() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SHARD + 64);
    for at in 0_u64.. {
        if bytes.len() >= SHARD {
            break;
        }
        let line = format!("{at},{},{},{:.2}\n", at % 97, at % 2, (at % 1013) as f64 / 7.0);
        bytes.extend_from_slice(line.as_bytes());
    }
    bytes.truncate(SHARD);
    bytes
}

/// Steele et al., SplitMix64.
fn noise() -> Vec<u8> {
    let mix = |at: u64| {
        let z = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (1..=SHARD as u64 / 8).flat_map(|at| mix(at).to_le_bytes()).collect()
}

fn laid_out(plaintext: &[u8]) -> PlainShard {
    let mut shard = PlainShard::new(plaintext.len(), Vec::new()).unwrap();
    let mut rest = plaintext;
    for piece in shard.pieces_mut() {
        let (now, later) = rest.split_at(piece.len());
        piece.copy_from_slice(now);
        rest = later;
    }
    shard
}

fn shards(criterion: &mut Criterion) {
    for (name, plaintext) in [("rows", rows()), ("noise", noise())] {
        let mut group = criterion.benchmark_group(format!("64 MiB of {name}"));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_secs(1))
            .measurement_time(Duration::from_secs(10))
            .throughput(Throughput::Bytes(SHARD as u64));
        group.bench_function("seal", |bencher| {
            let laid_out = || laid_out(&plaintext);
            bencher.iter_batched(laid_out, |shard| shard.seal(ORGANISATION), BatchSize::PerIteration);
        });
        let (sealed, key) = seal_shard(&plaintext, ORGANISATION).unwrap();
        group.bench_function("open", |bencher| {
            let copy = || sealed.clone();
            bencher.iter_batched(
                copy,
                |sealed| PlainShard::open(sealed, &key, ORGANISATION),
                BatchSize::PerIteration,
            );
        });
        assert_eq!(open_shard(&sealed, &key, ORGANISATION).unwrap(), plaintext);
        group.finish();
    }
}

criterion_group!(benches, shards);
criterion_main!(benches);
