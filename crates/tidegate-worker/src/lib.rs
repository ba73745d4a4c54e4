//! The process beside the user's command, wherever a driver started it.
//!
//! [`run`] works through one attempt with nothing but a ticket and what opens a store:
//!
//! 1. It compares its own program with the ticket, tries what the sandbox enforces here, makes keys
//!    that live in memory only, and says *hello*.
//! 2. It takes the *code grant*, opens the code, and runs the job's `setup` in the sandbox, with
//!    network where that is granted. No data key is on the machine yet.
//! 3. It says that setup is done, takes the *data grant*, and opens the inputs.
//! 4. It runs the command in the sandbox. What the command prints and measures is sealed to the
//!    keeper; the lease is watched all the time. Its unfinished work is sealed and sent too, whenever
//!    that stands still, and what a lost attempt had sent is there before the command starts.
//!    Where the machine will be taken away and somebody says so before, that work is sent at once.
//! 5. It describes the output, seals it under a key of its own and sends it into the site's store, and
//!    tells the keeper the key, sealed.
//!
//! The worker believes nobody: it verifies the signature, the sequence, the permit and the key
//! commitment of everything that it is granted (`grant.rs`), and takes the command for hostile
//! ([`sandbox`]). Whatever happens, nothing of the attempt stays behind but ciphertext in the store.
//! A killed worker leaves its folder to the driver, which removes it with the job; keys were never in
//! it, but the keys of the output's own shards, which open nothing but the output beside them.
//!
//! `docs/workers.md` tells users what a command sees and what it may do.

mod accelerators;
mod access;
mod attempt;
mod checkpoint;
mod command;
mod environment;
mod error;
mod grant;
mod mail;
mod nodes;
mod notice;
mod outgoing;
pub mod sandbox;
mod scratch;

pub use access::{Borrow, Opener};
pub use attempt::{Options, own_executable, run};
pub use error::{Stage, WorkerError};
pub use notice::{Notice, Notices};
