//! Models and schemas for the tests, built by hand as exporters build them.

use ndarray::{Array1, Array2};
use prost::Message;
use tidegate_bundle::dense::{CategoryColumn, DenseLayer, DenseNetwork, NumericColumn, Preprocessing};
use tidegate_bundle::onnx::proto::*;
use tidegate_bundle::{Feature, FeatureKind, FeatureSchema};

/// A schema of `count` numeric columns.
pub(crate) fn numeric_schema(count: usize) -> FeatureSchema {
    let feature = |i| Feature {
        name: format!("x{i}"),
        kind: FeatureKind::Numeric,
    };
    FeatureSchema {
        features: (0..count).map(feature).collect(),
        target: "y".into(),
    }
}

/// Two numeric columns around a category of three levels.
pub(crate) fn mixed_schema() -> FeatureSchema {
    let mut schema = numeric_schema(3);
    schema.features[1].kind = FeatureKind::Category {
        levels: vec!["a".into(), "b".into(), "c".into()],
    };
    schema
}

/// A network over [`mixed_schema`] with a hidden layer.
pub(crate) fn mixed_network() -> DenseNetwork {
    let numeric = |column, indicator| NumericColumn {
        column,
        fill: 0.5,
        mean: 1.0,
        scale: 0.25,
        indicator,
    };
    let preprocessing = Preprocessing {
        numeric: vec![numeric(0, true), numeric(2, false)],
        categories: vec![CategoryColumn { column: 1, levels: 3 }],
    };
    let wave = |i: usize, j: usize| ((i * 7 + j * 3) as f32).sin();
    let hidden = DenseLayer {
        weights: Array2::from_shape_fn((6, 4), |(i, j)| wave(i, j)),
        bias: Array1::from_elem(4, 0.1),
    };
    let last = DenseLayer {
        weights: Array2::from_shape_fn((4, 1), |(i, j)| wave(i + 2, j)),
        bias: Array1::from_elem(1, -0.2),
    };
    DenseNetwork {
        preprocessing,
        layers: vec![hidden, last],
    }
}

pub(crate) fn value(name: &str, element: i32, dims: &[Option<i64>]) -> ValueInfoProto {
    let dim = dims.iter().map(|&dim_value| DimensionProto {
        dim_value,
        dim_param: dim_value.is_none().then(|| "unk__7".into()),
    });
    let tensor_type = TensorTypeProto {
        elem_type: Some(element),
        shape: Some(TensorShapeProto { dim: dim.collect() }),
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor_type),
        }),
    }
}

pub(crate) fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        dims: dims.to_vec(),
        data_type: Some(1),
        float_data: values.to_vec(),
        name: Some(name.into()),
        ..Default::default()
    }
}

pub(crate) fn integers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        dims: vec![values.len() as i64],
        data_type: Some(7),
        int64_data: values.to_vec(),
        name: Some(name.into()),
        ..Default::default()
    }
}

pub(crate) fn node(operator: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    NodeProto {
        input: list(inputs),
        output: list(outputs),
        op_type: Some(operator.into()),
        attribute,
        ..Default::default()
    }
}

pub(crate) fn model(
    node: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
) -> ModelProto {
    let set = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    };
    ModelProto {
        ir_version: Some(8),
        graph: Some(GraphProto {
            node,
            name: Some("g".into()),
            initializer,
            input,
            output,
            ..Default::default()
        }),
        opset_import: vec![set("", 15), set("ai.onnx.ml", 3), set("com.microsoft", 1)],
        ..Default::default()
    }
}

/// Two inputs, `MatMul`, `Add`, `Relu`, and a sigmoid of shape `[N, 1]`: what exporters of dense
/// networks write.
pub(crate) fn exported_dense() -> ModelProto {
    model(
        vec![
            node("MatMul", &["in", "w0"], &["m0"], vec![]),
            node("Add", &["m0", "b0"], &["a0"], vec![]),
            node("Relu", &["a0"], &["h"], vec![]),
            node("MatMul", &["h", "w1"], &["m1"], vec![]),
            node("Add", &["m1", "b1"], &["a1"], vec![]),
            node("Sigmoid", &["a1"], &["s"], vec![]),
            node("Identity", &["s"], &["out"], vec![]),
        ],
        vec![
            floats("w0", &[2, 2], &[1.0, -1.0, 0.5, 2.0]),
            floats("b0", &[2], &[0.0, 0.1]),
            floats("w1", &[2, 1], &[1.0, -2.0]),
            floats("b1", &[1], &[0.3]),
        ],
        vec![value("in", 1, &[None, Some(2)])],
        vec![value("out", 1, &[None, Some(1)])],
    )
}

pub(crate) fn integer(name: &str, number: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        i: Some(number),
        r#type: Some(attribute_type::INT),
        ..Default::default()
    }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        ints: ints.to_vec(),
        r#type: Some(attribute_type::INTS),
        ..Default::default()
    }
}

fn attribute_floats(name: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        floats: floats.to_vec(),
        r#type: Some(attribute_type::FLOATS),
        ..Default::default()
    }
}

/// A tree as [`ensemble`] takes it: nodes in order, children after their parent.
pub(crate) enum TreeNode {
    /// Less than the value: to the first child, also when missing; else to the second.
    Branch(i64, f32, [i64; 2]),
    /// Adds to the score.
    Leaf(f32),
}

/// A boosted model with a single score.
pub(crate) fn ensemble(trees: &[Vec<TreeNode>]) -> ModelProto {
    let nodes = || {
        trees.iter().enumerate().flat_map(|(tree, nodes)| {
            nodes
                .iter()
                .enumerate()
                .map(move |(at, node)| (tree as i64, at as i64, node))
        })
    };
    let integer = |name, of: fn((i64, i64, &TreeNode)) -> i64| ints(name, &nodes().map(of).collect::<Vec<_>>());
    let leaves = || {
        nodes().filter_map(|(tree, at, node)| match node {
            TreeNode::Leaf(weight) => Some((tree, at, *weight)),
            TreeNode::Branch(..) => None,
        })
    };
    let child = |name, which: usize| {
        let of = |(.., node): (i64, i64, &TreeNode)| match node {
            TreeNode::Branch(.., children) => children[which],
            TreeNode::Leaf(_) => 0,
        };
        ints(name, &nodes().map(of).collect::<Vec<_>>())
    };
    let values = nodes().map(|(.., node)| match node {
        TreeNode::Branch(_, value, _) => *value,
        TreeNode::Leaf(_) => 0.0,
    });
    let modes = nodes().map(|(.., node)| match node {
        TreeNode::Branch(..) => b"BRANCH_LT".to_vec(),
        TreeNode::Leaf(_) => b"LEAF".to_vec(),
    });
    boosted(vec![
        integer("nodes_treeids", |(tree, ..)| tree),
        integer("nodes_nodeids", |(_, at, _)| at),
        integer("nodes_featureids", |(.., node)| match node {
            TreeNode::Branch(feature, ..) => *feature,
            TreeNode::Leaf(_) => 0,
        }),
        child("nodes_truenodeids", 0),
        child("nodes_falsenodeids", 1),
        integer("nodes_missing_value_tracks_true", |_| 1),
        attribute_floats("nodes_values", &values.collect::<Vec<_>>()),
        AttributeProto {
            name: Some("nodes_modes".into()),
            strings: modes.collect(),
            r#type: Some(attribute_type::STRINGS),
            ..Default::default()
        },
        ints("class_treeids", &leaves().map(|(tree, ..)| tree).collect::<Vec<_>>()),
        ints("class_nodeids", &leaves().map(|(_, at, _)| at).collect::<Vec<_>>()),
        ints("class_ids", &leaves().map(|_| 0).collect::<Vec<_>>()),
        attribute_floats(
            "class_weights",
            &leaves().map(|(.., weight)| weight).collect::<Vec<_>>(),
        ),
    ])
}

/// One tree in which each branch leads to a leaf and to the next branch.
pub(crate) fn chain(branches: i64) -> ModelProto {
    let mut nodes: Vec<TreeNode> = (0..branches)
        .flat_map(|at| [TreeNode::Branch(0, 0.5, [2 * at + 1, 2 * at + 2]), TreeNode::Leaf(0.1)])
        .collect();
    nodes.push(TreeNode::Leaf(0.2));
    ensemble(&[nodes])
}

/// A boosted model of two trees with a base value, class labels and a final `ZipMap`, as converters
/// of boosted trees write it.
pub(crate) fn boosted_trees() -> ModelProto {
    let modes = ["BRANCH_LT", "LEAF", "LEAF", "BRANCH_LT", "LEAF", "LEAF"];
    let attributes = vec![
        ints("nodes_treeids", &[0, 0, 0, 1, 1, 1]),
        ints("nodes_nodeids", &[0, 1, 2, 0, 1, 2]),
        ints("nodes_featureids", &[0, 0, 0, 1, 0, 0]),
        ints("nodes_truenodeids", &[1, 0, 0, 1, 0, 0]),
        ints("nodes_falsenodeids", &[2, 0, 0, 2, 0, 0]),
        ints("nodes_missing_value_tracks_true", &[1, 0, 0, 0, 0, 0]),
        attribute_floats("nodes_values", &[0.5, 0.0, 0.0, -1.0, 0.0, 0.0]),
        attribute_floats("nodes_hitrates", &[1.0; 6]),
        AttributeProto {
            name: Some("nodes_modes".into()),
            strings: modes.map(|mode| mode.as_bytes().to_vec()).to_vec(),
            r#type: Some(attribute_type::STRINGS),
            ..Default::default()
        },
        ints("class_treeids", &[0, 0, 1, 1]),
        ints("class_nodeids", &[1, 2, 1, 2]),
        ints("class_ids", &[0, 0, 0, 0]),
        attribute_floats("class_weights", &[0.4, -0.3, 0.25, -0.1]),
    ];
    boosted(attributes)
}

/// An ensemble with a base value, class labels and a final `ZipMap`.
fn boosted(mut attributes: Vec<AttributeProto>) -> ModelProto {
    attributes.extend([
        ints("classlabels_int64s", &[0, 1]),
        attribute_floats("base_values", &[-0.2]),
        AttributeProto {
            name: Some("post_transform".into()),
            s: Some(b"LOGISTIC".to_vec()),
            r#type: Some(attribute_type::STRING),
            ..Default::default()
        },
    ]);
    let classical = |node: NodeProto| NodeProto {
        domain: Some("ai.onnx.ml".into()),
        ..node
    };
    model(
        vec![
            classical(node(
                "TreeEnsembleClassifier",
                &["in"],
                &["label", "scores"],
                attributes,
            )),
            classical(node(
                "ZipMap",
                &["scores"],
                &["map"],
                vec![ints("classlabels_int64s", &[0, 1])],
            )),
        ],
        vec![],
        vec![value("in", 1, &[None, Some(2)])],
        vec![
            value("label", 7, &[None]),
            ValueInfoProto {
                name: Some("map".into()),
                r#type: Some(TypeProto { tensor_type: None }),
            },
        ],
    )
}

pub(crate) fn encode(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}
