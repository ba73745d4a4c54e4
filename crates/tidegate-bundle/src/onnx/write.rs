//! A builder of ONNX graphs with one input and one output.

use prost::Message;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type, data_type,
};

/// Version of the ONNX file format that is written: old enough for every reader in use.
pub const IR_VERSION: i64 = 8;
/// Version of the operator set that is written; ONNX Runtime and tract both test against it.
pub const OPSET_VERSION: i64 = 17;
/// The name of the writing program in the file.
pub const PRODUCER: &str = "tidegate";
/// The name of the extent that counts rows.
pub const BATCH_DIMENSION: &str = "N";

/// Collects nodes and constants in order; each method returns the name of the value it made.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl GraphBuilder {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A constant of 32-bit floats; `dims` must multiply to the number of `values`.
    pub fn floats(&mut self, name: &str, dims: &[usize], values: impl IntoIterator<Item = f32>) -> String {
        let raw = values.into_iter().flat_map(f32::to_le_bytes).collect();
        self.constant(name, data_type::FLOAT, dims, raw)
    }

    /// A constant of 64-bit integers with one axis.
    pub fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let raw = values.iter().copied().flat_map(i64::to_le_bytes).collect();
        self.constant(name, data_type::INT64, &[values.len()], raw)
    }

    fn constant(&mut self, name: &str, element: i32, dims: &[usize], raw: Vec<u8>) -> String {
        self.constants.push(TensorProto {
            dims: dims.iter().map(|&extent| extent as i64).collect(),
            data_type: Some(element),
            name: Some(name.to_owned()),
            raw_data: Some(raw),
            ..TensorProto::default()
        });
        name.to_owned()
    }

    /// A node of the standard operator set with one output called `name`.
    pub fn node(&mut self, operator: &str, name: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.to_owned()],
            name: Some(format!("{operator}_{name}")),
            op_type: Some(operator.to_owned()),
            attribute: attributes,
            domain: None,
        });
        name.to_owned()
    }

    /// The model file: input `input` of shape `[N, features]`, output `output` of shape `[N]`, both
    /// of 32-bit floats.
    #[must_use]
    pub fn finish(self, graph: &str, input: &str, features: usize, output: &str) -> Vec<u8> {
        let rows = || DimensionProto {
            dim_value: None,
            dim_param: Some(BATCH_DIMENSION.to_owned()),
        };
        let columns = DimensionProto {
            dim_value: Some(features as i64),
            dim_param: None,
        };
        ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some(PRODUCER.to_owned()),
            graph: Some(GraphProto {
                node: self.nodes,
                name: Some(graph.to_owned()),
                initializer: self.constants,
                input: vec![float_value(input, vec![rows(), columns])],
                output: vec![float_value(output, vec![rows()])],
                sparse_initializer: vec![],
            }),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(OPSET_VERSION),
            }],
            training_info: vec![],
            functions: vec![],
        }
        .encode_to_vec()
    }
}

/// Name and type of a value of 32-bit floats.
pub(crate) fn float_value(name: &str, dim: Vec<DimensionProto>) -> ValueInfoProto {
    let shape = Some(TensorShapeProto { dim });
    let tensor_type = Some(TensorTypeProto {
        elem_type: Some(data_type::FLOAT),
        shape,
    });
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { tensor_type }),
    }
}

impl AttributeProto {
    /// An integer attribute.
    #[must_use]
    pub fn integer(name: &str, value: i64) -> Self {
        Self {
            name: Some(name.to_owned()),
            i: Some(value),
            r#type: Some(attribute_type::INT),
            ..Self::default()
        }
    }
}
