//! Planning by value: what runs where, what crosses, what is refused, and what the checker finds.

mod checker;
mod placement;
mod properties;
mod report;
mod world;
