//! The embedded edges: what a site needs when it is a folder and some processes on one machine.
//!
//! | trait | here | kept where |
//! |---|---|---|
//! | `Store` | [`FolderStore`] | objects as files, named like the objects |
//! | `Journal` | [`SqliteJournal`] | one SQLite file in WAL mode |
//! | `Custody` | [`FileCustody`] | one key file that only its owner can read |
//! | | [`Pkcs11Custody`] | a token of this machine, such as a hardware security module |
//! | `Compute` | [`ProcessDriver`] | a folder for each job; jobs outlive the process that started them |
//!
//! Everything here survives `kill -9` at any instruction: files appear by a rename after they were
//! written to disk, the journal's commits are SQLite transactions with full synchronisation, and a job
//! is started under a lock that the job itself inherits, so that whoever comes next can tell a job that
//! runs from one that never began. Several processes may use the same folder at once.

mod custody;
mod disk;
mod journal;
mod pkcs11;
mod process;
mod program;
mod store;

pub use custody::{FileCustody, Passphrase};
pub use journal::SqliteJournal;
pub use pkcs11::{InvalidPkcs11Address, Pkcs11Address, Pkcs11Custody};
pub use process::ProcessDriver;
pub use program::program_digest;
pub use store::FolderStore;
