//! Embedded edges: process driver, folder store, key file, SQLite journal.
