//! The trainer and its measures as their users see them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agreement;
mod command;
mod judging;
mod patients;
mod support2;
mod training;
