//! Fakes that pass the conformance suites, for tests of what uses a trait.
