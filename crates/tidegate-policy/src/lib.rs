//! Who may receive what: Cedar policies, asked before anything moves.
//!
//! The same question is asked at three moments: when a plan is made, when a keeper signs a permit,
//! and when it releases a key. A [`Question`] says what would go where and why; [`PolicySet::decide`]
//! answers yes or with a [`Refusal`](tidegate_types::Refusal) that names the rule, the reason and the
//! way out.
//!
//! ```text
//!  guardrails.cedar  (locked)  ─┐
//!  tidegate.cedarschema        ─┼─▶ PolicySet::load ──▶ PolicySet ──decide(Question)──▶ Ok | Refusal
//!  policy/*.cedar (your own)   ─┘   strict: what could      │
//!                                   fail later is refused   └─ digest: goes into every permit
//! ```
//!
//! Three things hold whatever an organisation writes:
//!
//! 1. *Guardrails are locked.* They are `forbid` policies, and in Cedar a `forbid` wins over every
//!    `permit`. Own policies can only take away.
//! 2. *No surprise at run time.* A policy that could raise an error when it is asked (an optional
//!    attribute read without `has`, arithmetic that may overflow, an attribute of an entity that may
//!    not exist) is refused when it is loaded, with file and line.
//! 3. *Doubt is a no.* A question that does not fit the schema, or any error while answering, is a
//!    refusal.
//!
//! The crate reads no file and no clock: texts come in, decisions go out. How to write policies is
//! in `docs/policy.md`; what they may ask about is in `src/cedar/tidegate.cedarschema`.

mod error;
mod question;
mod set;
mod source;

pub use error::PolicyError;
pub use question::{Moment, Question};
pub use set::PolicySet;
