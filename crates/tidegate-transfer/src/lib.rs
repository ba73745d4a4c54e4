//! The transfer engine over a store.
