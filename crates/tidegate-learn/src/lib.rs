//! Built-in trainer, metrics, calibration, leak test.
