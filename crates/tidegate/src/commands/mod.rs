//! The commands.

pub(crate) mod audit;
pub(crate) mod data;
pub(crate) mod files;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod predict;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod transfers;
