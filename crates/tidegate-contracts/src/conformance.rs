//! Public conformance suites: one for each trait.
