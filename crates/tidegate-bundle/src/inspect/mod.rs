//! Inspection of a model as hostile input.
//!
//! A model that comes home was made by a command that nobody checked. [`inspect`] reads it with
//! bounded memory, refuses whatever is not on a short list, computes the shape of every value, and
//! writes the part that leads to the probabilities again. What is served is the rewritten file, so
//! nothing that inspection did not understand is ever loaded.
//!
//! What holds for an [`InspectedModel`]:
//! - one float32 input `features` of shape `[N, F]`, one float32 output `probabilities` of shape `[N]`;
//! - each row is computed alone: no value has rows on another axis than the first;
//! - only operators of the list, no sub-graph, function, training step or file beside it;
//! - finite weights, and a known bound of memory and work for each row.

mod attribute;
mod constant;
mod graph;
mod operator;
mod shape;
pub(crate) mod tree;
mod wire;

use std::collections::BTreeSet;

use prost::Message;

use crate::onnx::proto::ModelProto;
use crate::schema::FeatureSchema;

/// The largest model file that is read.
pub const MAX_MODEL_BYTES: usize = 64 << 20;
/// The most nodes of a graph.
pub const MAX_NODES: usize = 2_000;
/// The most numbers that all values together hold for one row.
pub const MAX_ROW_ELEMENTS: u64 = 1 << 22;
/// The most multiplications for one row.
pub const MAX_ROW_WORK: u64 = 1 << 28;

/// Why a model is refused. Texts from the model are shortened and stripped of control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelRefusal {
    /// The file is larger than [`MAX_MODEL_BYTES`].
    #[error("the model has {0} bytes; at most {MAX_MODEL_BYTES} are read")]
    TooLarge(usize),
    /// The bytes are no ONNX protobuf.
    #[error("the model is not an ONNX file: its protobuf cannot be read")]
    NotOnnx,
    /// More of something than is read.
    #[error("the model has too much: more than {limit} {what}")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// Something that no served model may have.
    #[error("the model uses {0}, which are refused; export it as one plain graph of float32 operators")]
    Forbidden(&'static str),
    /// A version that is not known.
    #[error("the model uses version {version} of {what}; versions {from} to {to} are read")]
    Version {
        /// Format or operator set.
        what: &'static str,
        /// What the file says.
        version: i64,
        /// Oldest version read.
        from: i64,
        /// Newest version read.
        to: i64,
    },
    /// An operator that is not on the list.
    #[error("the model uses operator `{0}`, which is not on the list of allowed operators")]
    Operator(String),
    /// A node that is not as its operator needs it.
    #[error("node {position} (`{operator}`) is refused: {reason}")]
    Node {
        /// Position in the graph, counted from 0.
        position: usize,
        /// Operator.
        operator: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A constant that is refused.
    #[error("constant `{name}` is refused: {reason}")]
    Constant {
        /// Name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The input is not `[N, F]` of float32.
    #[error("the model's input is refused: {0}")]
    Input(String),
    /// The output is no probability for each row.
    #[error("the model's output is refused: {0}; expected float32 probabilities `[N]`, `[N, 1]` or `[N, 2]`")]
    Output(&'static str),
}

/// A model that passed inspection, in the rewritten form.
#[derive(Debug, Clone)]
pub struct InspectedModel {
    pub(crate) model: ModelProto,
    bytes: Vec<u8>,
    features: usize,
    pub(crate) row_elements: u64,
    operators: BTreeSet<String>,
}

impl InspectedModel {
    /// The rewritten file: what is stored, served and shown to others.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of input columns.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// The operators in use.
    #[must_use]
    pub fn operators(&self) -> &BTreeSet<String> {
        &self.operators
    }
}

/// Inspects a model file that is meant for `schema`.
///
/// # Errors
/// The first reason to refuse it. Never panics, whatever the bytes.
pub fn inspect(bytes: &[u8], schema: &FeatureSchema) -> Result<InspectedModel, ModelRefusal> {
    if bytes.len() > MAX_MODEL_BYTES {
        return Err(ModelRefusal::TooLarge(bytes.len()));
    }
    wire::check(bytes)?;
    let model = ModelProto::decode(bytes).map_err(|_| ModelRefusal::NotOnnx)?;
    let features = schema.features.len();
    let (model, row_elements) = graph::rewrite(model, features)?;
    let bytes = model.encode_to_vec();
    let nodes = model.graph.iter().flat_map(|graph| &graph.node);
    let operators = nodes.filter_map(|node| node.op_type.clone()).collect();
    Ok(InspectedModel {
        model,
        bytes,
        features,
        row_elements,
        operators,
    })
}

/// A text from the model, safe to print.
fn printable(text: &str) -> String {
    text.chars()
        .take(60)
        .map(|c| if c.is_control() || c == '`' { '?' } else { c })
        .collect()
}
