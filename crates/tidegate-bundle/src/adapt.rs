//! An inspected model as the inference library must read it to give what the format says.
//!
//! Two things differ. Some kernels of the library turn what is not a number into one (its sigmoid
//! gives 0.0000005), so a model that cannot handle a missing value would answer with a made-up
//! probability instead of none. And tree ensembles become an operator of our own: see [`crate::trees`].

use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, data_type};
use crate::trees;

/// Operators through which a value that is not a number must come as it is, with how many of their
/// inputs that holds for.
const GUARDED: &[(&str, usize)] = &[
    ("Clip", 1),
    ("Elu", 1),
    ("Erf", 1),
    ("Exp", 1),
    ("HardSigmoid", 1),
    ("LeakyRelu", 1),
    ("Max", 2),
    ("Min", 2),
    // The library takes a product with a constant zero for zero.
    ("Mul", 2),
    ("Relu", 1),
    ("Selu", 1),
    ("Sigmoid", 1),
    ("Softplus", 1),
    ("Softsign", 1),
    ("Tanh", 1),
];
/// A constant that [`guard_softmax`] adds.
const COLUMNS: &str = "softmax_columns";

/// The model for the library. Inspection named all values, so names with an ending of ours are free.
pub(crate) fn for_library(mut model: ModelProto) -> ModelProto {
    if let Some(graph) = &mut model.graph {
        let mut nodes = Vec::new();
        for mut node in std::mem::take(&mut graph.node) {
            let operator = node.op_type.clone().unwrap_or_default();
            if operator == "TreeEnsembleClassifier" {
                // Its labels are read by nobody.
                node.output = node.output.into_iter().skip(1).collect();
                node.op_type = Some(trees::OPERATOR.to_owned());
                node.domain = None;
                nodes.push(node);
            } else if operator == "Softmax" {
                guard_softmax(graph, node, &mut nodes);
            } else if let Some((_, inputs)) = GUARDED.iter().find(|(name, _)| *name == operator) {
                guard(node, *inputs, &mut nodes);
            } else {
                nodes.push(node);
            }
        }
        graph.node = nodes;
    }
    model
}

fn node(operator: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: vec![output.to_owned()],
        op_type: Some(operator.to_owned()),
        attribute,
        ..NodeProto::default()
    }
}

/// `output = Where(IsNaN(input), input, operator(input))`, for each of the first `inputs` inputs.
fn guard(mut guarded: NodeProto, inputs: usize, nodes: &mut Vec<NodeProto>) {
    let output = guarded.output.first().cloned().unwrap_or_default();
    let sources: Vec<String> = guarded.input.iter().take(inputs).cloned().collect();
    let mut value = format!("{output}_unguarded");
    guarded.output = vec![value.clone()];
    nodes.push(guarded);
    for (position, source) in sources.iter().enumerate() {
        let missing = format!("{output}_missing{position}");
        let next = if position + 1 == sources.len() {
            output.clone()
        } else {
            format!("{output}_guarded{position}")
        };
        nodes.push(node("IsNaN", &[source], &missing, vec![]));
        nodes.push(node("Where", &[&missing, source, &value], &next, vec![]));
        value = next;
    }
}

/// What is not a number in one column makes every column so: the sum of the columns times zero is
/// added to each.
fn guard_softmax(graph: &mut GraphProto, softmax: NodeProto, nodes: &mut Vec<NodeProto>) {
    let (Some(source), Some(output)) = (softmax.input.first().cloned(), softmax.output.first().cloned()) else {
        return;
    };
    if !graph
        .initializer
        .iter()
        .any(|constant| constant.name.as_deref() == Some(COLUMNS))
    {
        graph.initializer.push(TensorProto {
            dims: vec![1],
            data_type: Some(data_type::INT64),
            name: Some(COLUMNS.to_owned()),
            raw_data: Some(1i64.to_le_bytes().to_vec()),
            ..TensorProto::default()
        });
    }
    let [zero, sum, marked] = ["zero", "sum", "marked"].map(|ending| format!("{output}_{ending}"));
    nodes.push(node("Sub", &[&source, &source], &zero, vec![]));
    nodes.push(node(
        "ReduceSum",
        &[&zero, COLUMNS],
        &sum,
        vec![AttributeProto::integer("keepdims", 1)],
    ));
    nodes.push(node("Add", &[&source, &sum], &marked, vec![]));
    guard(
        NodeProto {
            input: vec![marked],
            ..softmax
        },
        1,
        nodes,
    );
}
