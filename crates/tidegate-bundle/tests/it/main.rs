//! Behaviour of bundles and models as their users see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bundle;
mod card;
mod exported;
mod hostile;
mod models;
mod predict;
