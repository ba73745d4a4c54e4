//! Tests of the worker as a keeper, a driver and a hostile command see it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod accelerators;
mod access;
mod attempts;
mod checkpoints;
mod crossing;
mod examples;
mod grants;
mod keeper;
mod killed;
mod local;
mod nodes;
mod sandbox;
mod setups;
mod shared_memory;

/// The sandbox program.
fn executable() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_BIN_EXE_tidegate-worker"))
}

/// A worker in this process, whose program is the sandbox program.
fn options(work: std::path::PathBuf) -> tidegate_worker::Options {
    let digest = tidegate_local::program_digest(executable(), None).map_err(|error| error.to_string());
    tidegate_worker::Options {
        work,
        executable: executable().to_owned(),
        digest: digest.into(),
        machine: "/".into(),
        towards: Some(std::net::Ipv4Addr::LOCALHOST.into()),
        notices: tidegate_worker::Notices::default(),
        borrow: |_| Err("nothing is lent here".to_owned()),
        prover: None,
    }
}
