//! What is released: a model in ONNX with everything that is needed to use it, and how it is read.
//!
//! ```text
//!  bytes of a model ──inspect──▶ InspectedModel ──Predictor::load──▶ Predictor ──▶ probabilities [N]
//!                                     │                                   ▲
//!                                     ▼                                   │ matrix [N, F]
//!  recipe, schema, calibration, ──build──▶ files ──open──▶ Bundle ── FeatureSchema::encode
//!  card, metrics                            (signed)
//! ```
//!
//! A model is hostile input wherever it comes from: [`mod@inspect`] is the only way to an
//! [`InspectedModel`], and only that can be loaded, built into a bundle or served. A bundle is a
//! folder of fixed files under one signature; opening it checks every byte and inspects the model
//! again.
//!
//! [`DenseNetwork`] is the built-in network as numbers; training it belongs to `tidegate-learn`.
//! There is no key, clock or network in this crate: signer and verifier are handed in.

#[cfg(feature = "inference")]
mod adapt;
pub mod bundle;
pub mod calibration;
pub mod card;
pub mod dense;
pub mod inspect;
pub mod onnx;
#[cfg(feature = "inference")]
pub mod predict;
pub mod quality;
pub mod schema;
#[cfg(feature = "inference")]
mod trees;

pub use bundle::{Bundle, BundleContent, BundleError, BundleManifest, Files};
pub use calibration::Calibration;
pub use card::ModelCard;
pub use dense::DenseNetwork;
pub use inspect::{InspectedModel, ModelRefusal, inspect};
#[cfg(feature = "inference")]
pub use predict::{PredictError, Predictor};
pub use quality::{Interval, Quality, Subgroup};
pub use schema::{Feature, FeatureKind, FeatureSchema};
