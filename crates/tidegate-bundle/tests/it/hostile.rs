//! A model is hostile input: everything that is not understood is refused, and nothing panics.

use ndarray::Array2;
use proptest::prelude::*;
use tidegate_bundle::onnx::proto::*;
use tidegate_bundle::{ModelRefusal, Predictor, inspect};

use crate::models::{
    boosted_trees, chain, encode, exported_dense, floats, integers, mixed_network, model, node, numeric_schema, value,
};

fn refused(change: impl FnOnce(&mut ModelProto)) -> ModelRefusal {
    let mut hostile = exported_dense();
    change(&mut hostile);
    inspect(&encode(&hostile), &numeric_schema(2)).expect_err("the model must be refused")
}

fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

#[test]
fn refusals_say_what_is_wrong() {
    let attribute = |change: fn(&mut AttributeProto)| {
        move |model: &mut ModelProto| {
            let mut attribute = AttributeProto {
                name: Some("body".into()),
                r#type: Some(5),
                ..Default::default()
            };
            change(&mut attribute);
            graph(model).node[2].attribute.push(attribute);
        }
    };
    let listed = [
        refused(|model| model.functions.push(vec![])),
        refused(|model| model.training_info.push(vec![])),
        refused(|model| model.ir_version = Some(99)),
        refused(|model| model.opset_import[0].version = Some(99)),
        refused(|model| graph(model).sparse_initializer.push(vec![])),
        refused(attribute(|attribute| attribute.g = Some(vec![]))),
        refused(attribute(|attribute| attribute.graphs = vec![vec![]])),
        refused(attribute(|attribute| attribute.ref_attr_name = Some("x".into()))),
        refused(attribute(|attribute| attribute.f = Some(f32::INFINITY))),
        refused(|model| graph(model).initializer[0].data_location = Some(1)),
        refused(|model| graph(model).initializer[0].external_data.push(vec![])),
        refused(|model| graph(model).initializer[0].float_data[1] = f32::NAN),
        refused(|model| graph(model).initializer[0].dims = vec![1 << 40, 1 << 40]),
        refused(|model| graph(model).initializer[0].dims = vec![-2, -2]),
        refused(|model| graph(model).initializer[0].data_type = Some(11)),
        refused(|model| graph(model).node[2].op_type = Some("Loop".into())),
        refused(|model| graph(model).node[2].op_type = Some("Evil`\u{1b}[31m\n".into())),
        refused(|model| graph(model).node[2].domain = Some("com.example".into())),
        refused(|model| graph(model).node[2].input[0] = "h".into()),
        refused(|model| graph(model).node[3].output[0] = "h".into()),
        refused(|model| graph(model).input.push(value("second", 1, &[None, Some(2)]))),
        refused(|model| graph(model).input[0] = value("in", 11, &[None, Some(2)])),
        refused(|model| graph(model).input[0] = value("in", 1, &[None, Some(3)])),
        refused(|model| graph(model).input[0] = value("in", 1, &[Some(1), Some(2)])),
        refused(|model| graph(model).output[0].name = Some("w0".into())),
        refused(|model| graph(model).output.push(value("s", 1, &[None, Some(1)]))),
        refused(|model| graph(model).output.clear()),
    ];
    let text: Vec<String> = listed.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn trees_with_numbers_that_lead_elsewhere_are_refused() {
    let change = |name: &str, change: &dyn Fn(&mut AttributeProto)| {
        let mut hostile = boosted_trees();
        let attributes = &mut graph(&mut hostile).node[0].attribute;
        change(
            attributes
                .iter_mut()
                .find(|attribute| attribute.name.as_deref() == Some(name))
                .unwrap(),
        );
        inspect(&encode(&hostile), &numeric_schema(2)).expect_err(name)
    };
    let integer =
        |name: &str, position: usize, number: i64| change(name, &|attribute| attribute.ints[position] = number);
    let text = [
        integer("nodes_truenodeids", 0, 0),
        integer("nodes_truenodeids", 3, 3),
        integer("nodes_falsenodeids", 0, -1),
        integer("nodes_featureids", 0, 2),
        integer("nodes_featureids", 3, i64::MIN),
        integer("nodes_nodeids", 2, 7),
        integer("nodes_treeids", 3, 5),
        integer("class_ids", 1, 2),
        integer("class_ids", 1, 1),
        integer("class_nodeids", 1, 0),
        integer("class_treeids", 3, 9),
        change("nodes_modes", &|attribute| {
            attribute.strings[0] = b"BRANCH_GTE".to_vec()
        }),
        change("nodes_values", &|attribute| attribute.floats[0] = f32::NEG_INFINITY),
        change("class_weights", &|attribute| attribute.floats.truncate(3)),
        change("base_values", &|attribute| attribute.floats = vec![0.0; 3]),
        change("classlabels_int64s", &|attribute| attribute.ints = vec![0, 1, 2]),
        change("nodes_hitrates", &|attribute| {
            attribute.name = Some("nodes_hitrates_as_tensor".into())
        }),
    ];
    insta::assert_snapshot!(text.map(|refusal| refusal.to_string()).join("\n"));
}

#[test]
fn what_would_need_much_memory_is_refused_before_it_is_read() {
    // Two bytes each for nodes that would need hundreds in memory.
    let nodes = [0x0a, 0x00].repeat(200_000);
    let mut bytes = vec![0x3a];
    prost::encoding::encode_varint(nodes.len() as u64, &mut bytes);
    bytes.extend(nodes);
    assert_eq!(
        inspect(&bytes, &numeric_schema(2)).unwrap_err().to_string(),
        "the model has too much: more than 100000 messages"
    );

    // Joining a value to itself forty times would need a trillion columns.
    let axis = || vec![AttributeProto::integer("axis", 1)];
    let mut nodes = vec![node("Concat", &["in", "in"], &["v0"], axis())];
    for step in 1..40 {
        let before = format!("v{}", step - 1);
        nodes.push(node("Concat", &[&before, &before], &[&format!("v{step}")], axis()));
    }
    let hostile = model(
        nodes,
        vec![],
        vec![value("in", 1, &[None, Some(2)])],
        vec![value("v39", 1, &[None, Some(2)])],
    );
    assert!(matches!(
        inspect(&encode(&hostile), &numeric_schema(2)),
        Err(ModelRefusal::TooMuch { .. })
    ));
}

#[test]
fn small_integers_are_counted_before_they_grow_eightfold() {
    // A tensor of 11 million one-byte integers, as data of each kind and as extents.
    for field in [1, 5, 7] {
        let mut tensor = Vec::new();
        nested(field, &vec![0; 11_000_000], &mut tensor);
        let (mut graph, mut bytes) = (Vec::new(), Vec::new());
        nested(5, &tensor, &mut graph);
        nested(7, &graph, &mut bytes);
        assert_eq!(
            inspect(&bytes, &numeric_schema(2)).unwrap_err().to_string(),
            "the model has too much: more than 10000000 integers"
        );
    }
    let hostile = refused(|model| {
        graph(model).initializer.push(integers("many", &[0; (1 << 20) + 1]));
    });
    assert!(hostile.to_string().contains("more integers than"), "{hostile}");
}

/// A field that holds bytes.
fn nested(field: u32, body: &[u8], bytes: &mut Vec<u8>) {
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, bytes);
    prost::encoding::encode_varint(body.len() as u64, bytes);
    bytes.extend(body);
}

#[test]
fn a_walk_that_takes_long_is_refused() {
    // Each branch leads to a leaf and to the next branch.
    assert!(inspect(&encode(&chain(1_000)), &numeric_schema(2)).is_ok());
    assert_eq!(
        inspect(&encode(&chain(140_000)), &numeric_schema(2))
            .unwrap_err()
            .to_string(),
        "the model has too much: more than 268435456 multiplications for each row"
    );
}

#[test]
fn rows_cannot_see_each_other() {
    let attempts = [
        ("Reshape", vec!["in", "flat"]),
        ("Gather", vec!["in", "index"]),
        ("MatMul", vec!["in", "in"]),
        ("Unsqueeze", vec!["in", "axis"]),
        ("Add", vec!["in", "tall"]),
    ];
    for (operator, inputs) in attempts {
        let constants = vec![
            integers("flat", &[1, -1]),
            integers("index", &[0]),
            integers("axis", &[0]),
            floats("tall", &[3, 2], &[0.0; 6]),
        ];
        let nodes = vec![node(operator, &inputs, &["out"], vec![])];
        let hostile = model(
            nodes,
            constants,
            vec![value("in", 1, &[None, Some(2)])],
            vec![value("out", 1, &[None, Some(1)])],
        );
        assert!(
            matches!(
                inspect(&encode(&hostile), &numeric_schema(2)),
                Err(ModelRefusal::Node { .. })
            ),
            "{operator}"
        );
    }
}

fn try_to_use(bytes: &[u8], features: usize) {
    let Ok(inspected) = inspect(bytes, &numeric_schema(features)) else {
        return;
    };
    if let Ok(predictor) = Predictor::load(&inspected) {
        let matrix = Array2::from_shape_fn(
            (3, features),
            |(i, j)| if i == 0 { f32::NAN } else { (i * j) as f32 - 1.0 },
        );
        // Either probabilities or an error; both are fine.
        let _ = predictor.predict(matrix.view());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        try_to_use(&bytes, 2);
    }

    #[test]
    fn mutated_models_never_panic(
        which in 0..3usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (mut bytes, features) = match which {
            0 => (encode(&exported_dense()), 2),
            1 => (encode(&boosted_trees()), 2),
            _ => (mixed_network().to_onnx(3), 3),
        };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        try_to_use(&bytes, features);
    }
}
