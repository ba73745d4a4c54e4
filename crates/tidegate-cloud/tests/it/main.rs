//! The stores of clouds against servers that others wrote, on loopback: SeaweedFS for S3, moto for S3 with
//! Amazon's own checks of credentials, Azurite for Azure.
//!
//! Where a server is not installed its tests say so and pass; `tests/run --all` installs all of them and
//! sets `TIDEGATE_INTEROP`, with which a missing server is a failure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, as tests do"
)]

mod azureml;
mod conformance;
mod jobs;
mod lent;
mod machines;
mod narrowed;
mod openstack;
mod others;
#[allow(dead_code, reason = "some of it serves the tests of the program alone")]
mod peers;
mod stalls;
mod vertex;
mod vsphere;
