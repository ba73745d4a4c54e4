//! The transfer engine over a store.

pub mod mailbox;
