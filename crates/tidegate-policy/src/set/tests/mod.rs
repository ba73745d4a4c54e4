//! The rules as a user meets them.

mod documented;
mod fixture;
mod guardrails;
mod loading;
mod properties;
