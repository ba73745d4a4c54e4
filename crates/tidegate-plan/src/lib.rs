//! Pure planning and placement, and a checker written apart from it.
//!
//! [`plan`] turns the three files, the label report of the query and the answers of policy into a
//! [`Plan`]: which task runs where, what crosses, under which label, and what it is expected to cost.
//! Executing a plan leaves nothing to choose. The [`Report`] beside it says why: which sites could
//! train, why one was chosen and why each other was not; [`Report::render`] is what a person reads
//! before saying yes.
//!
//! A plan depends on its input alone: no clock, no randomness, no run. Equal input gives an equal plan,
//! whose canonical JSON can be digested.
//!
//! [`check`] holds a finished plan against the same input and shares no code with the planner, so that
//! one mistake cannot hide in both. Whoever executes a plan calls it first.
//!
//! Figures for time and bytes are estimates from above: they decide between sites and against budget
//! and deadline, and they never decide whether something may cross.

mod check;
mod choose;
mod cost;
mod model;
mod planner;
mod render;

pub use check::check;
pub use model::{Candidate, Plan, PlanInput, PlannedCrossing, PlannedTask, Report, Step};
pub use planner::plan;
