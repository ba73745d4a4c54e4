//! Reads, scans, label flow through SQL, de-identifies, measures risk, freezes the feature recipe.
