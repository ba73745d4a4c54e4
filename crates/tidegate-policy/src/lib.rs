//! Cedar schema, locked guardrails, the organisation's policies, decisions.
