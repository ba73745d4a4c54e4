//! Journal, reconcile loop, accounts, catalogue of artifacts.
