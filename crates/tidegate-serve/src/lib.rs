//! A server for released models: the Open Inference Protocol, version 2, over HTTP.
//!
//! ```text
//!  models/NAME/VERSION/  ──every second──▶ ReleaseSource ──verify, inspect, load──▶ newest release
//!                                                                                        │ swap
//!  POST /v2/models/NAME/infer ─▶ tensors ─▶ matrix [N, F] ─▶ Predictor ─▶ calibration ─▶ answer
//! ```
//!
//! It serves what lies in a folder and needs no network beyond its own port, so an edge site without a
//! connection serves as well as any other. Three things hold:
//!
//! 1. *Only what verifies is served.* Every release goes through the caller's verification (signature
//!    over every byte) and model inspection. A release that fails is logged and left alone; what was
//!    served before is served on.
//! 2. *Never back.* A model's version only grows, also over a restart when
//!    [`ServeOptions::state`] names a file; and one version is one content.
//! 3. *Bounded.* Connections, body size, rows, time and parallel work have limits, and every error is
//!    `{"error": "…"}` with names of columns and never a value.
//!
//! ```no_run
//! # async fn example() -> Result<(), tidegate_serve::ServeError> {
//! use tidegate_bundle::{Files, bundle};
//! use tidegate_serve::{ReleaseSource, ServeOptions, serve};
//!
//! let source = ReleaseSource { folder: "site".into() };
//! let verify = |files: &Files| bundle::open(files.clone(), |signature| check_signature(signature));
//! serve(ServeOptions::new(source, verify)).await
//! # }
//! # fn check_signature(_: &[u8]) -> Result<Vec<u8>, String> { Err("no key".into()) }
//! ```
//!
//! The protocol as spoken here is described in `docs/serving.md`.

mod connection;
mod error;
mod http;
mod infer;
mod options;
mod releases;
mod server;
mod tensor;

pub use error::ServeError;
pub use options::{Limits, ServeOptions, VerifyBundle};
pub use releases::ReleaseSource;
pub use server::{Server, serve};
