//! The three files that people write, each with its own owner: [`catalog`] (the data owner),
//! [`sites`] (the platform) and [`pipeline`] (the engineer).

pub mod catalog;
pub mod pipeline;
pub mod sites;

pub use catalog::Catalog;
pub use pipeline::Pipeline;
pub use sites::Sites;
