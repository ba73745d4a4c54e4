//! Reading and writing ONNX: the published protobuf as structs, and a small builder of graphs.

pub mod proto;
pub(crate) mod write;

pub use write::{BATCH_DIMENSION, GraphBuilder, IR_VERSION, OPSET_VERSION, PRODUCER};
