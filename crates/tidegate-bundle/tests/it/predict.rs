//! Good models give the right numbers.

use ndarray::{Array2, array};
use tidegate_bundle::{PredictError, Predictor, inspect};

use crate::models::{
    TreeNode, boosted_trees, encode, ensemble, exported_dense, floats, integer, integers, mixed_network, mixed_schema,
    model, node, numeric_schema, value,
};

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn close(left: &[f32], right: &[f32]) {
    assert_eq!(left.len(), right.len());
    for (position, (a, b)) in left.iter().zip(right).enumerate() {
        assert!((a - b).abs() < 1e-5, "row {position}: {a} and {b}");
    }
}

#[test]
fn the_written_network_agrees_with_its_numbers_also_when_values_are_missing() {
    let network = mixed_network();
    let inspected = inspect(&network.to_onnx(3), &mixed_schema()).unwrap();
    let predictor = Predictor::load(&inspected).unwrap();
    let special = [f32::NAN, -1e9, 1e9, 0.0, 2.0, 7.0, 0.5];
    // More rows than one batch, and not a multiple of it.
    let matrix = Array2::from_shape_fn((2_500, 3), |(i, j)| special[(i * 5 + j * 3 + i / 7) % special.len()]);
    close(
        &predictor.predict(matrix.view()).unwrap(),
        network.predict(matrix.view()).as_slice().unwrap(),
    );
}

#[test]
fn an_exported_dense_network_with_a_column_of_probabilities_is_taken() {
    let inspected = inspect(&encode(&exported_dense()), &numeric_schema(2)).unwrap();
    let predictor = Predictor::load(&inspected).unwrap();
    let expected = |x: f32, y: f32| {
        let hidden = [(x + 0.5 * y).max(0.0), (-x + 2.0 * y + 0.1).max(0.0)];
        sigmoid(hidden[0] - 2.0 * hidden[1] + 0.3)
    };
    let matrix = array![[1.0, 2.0], [-3.0, 0.25], [0.0, 0.0]];
    let by_hand: Vec<f32> = matrix.rows().into_iter().map(|row| expected(row[0], row[1])).collect();
    close(&predictor.predict(matrix.view()).unwrap(), &by_hand);
}

#[test]
fn a_network_that_pytorch_flattens_is_taken() {
    let flattened = |lengths: &[i64]| {
        let mut exported = exported_dense();
        let graph = exported.graph.as_mut().unwrap();
        graph.initializer.push(integers("lengths", lengths));
        let last = graph.node.last_mut().unwrap();
        *last = node("Reshape", &["s", "lengths"], &["out"], vec![integer("allowzero", 1)]);
        graph.output = vec![value("out", 1, &[None])];
        inspect(&encode(&exported), &numeric_schema(2))
    };
    let matrix = array![[1.0, 2.0], [-3.0, 0.25], [0.0, 0.0]];
    let column = inspect(&encode(&exported_dense()), &numeric_schema(2)).unwrap();
    let predicted = |inspected| Predictor::load(&inspected).unwrap().predict(matrix.view()).unwrap();
    assert_eq!(predicted(flattened(&[-1]).unwrap()), predicted(column));
    // There it is a length, and no row is left.
    let refused = flattened(&[0]).unwrap_err().to_string();
    assert!(refused.contains("a length of 0 leaves no rows"), "{refused}");
}

#[test]
fn boosted_trees_follow_missing_values_and_lose_their_final_map() {
    let inspected = inspect(&encode(&boosted_trees()), &numeric_schema(2)).unwrap();
    assert!(!inspected.operators().contains("ZipMap"));
    let predictor = Predictor::load(&inspected).unwrap();
    let matrix = array![[0.4, -2.0], [0.5, -1.0], [f32::NAN, f32::NAN]];
    let by_hand = [
        sigmoid(0.4 + 0.25 - 0.2),
        sigmoid(-0.3 - 0.1 - 0.2),
        sigmoid(0.4 - 0.1 - 0.2),
    ];
    close(&predictor.predict(matrix.view()).unwrap(), &by_hand);
}

#[test]
fn a_large_ensemble_takes_as_long_as_its_walks() {
    // A thousand full trees of 64 leaves, each with another value in each node.
    let value = |tree: usize, node: usize| ((tree * 131 + node * 17) % 97) as f32 / 97.0;
    let tree = |tree: usize| {
        let node = |at: usize| {
            let children = [2 * at as i64 + 1, 2 * at as i64 + 2];
            match at {
                0..63 => TreeNode::Branch((at % 2) as i64, value(tree, at), children),
                _ => TreeNode::Leaf((value(tree, at) - 0.5) * 0.01),
            }
        };
        (0..127).map(node).collect::<Vec<_>>()
    };
    let trees: Vec<_> = (0..1000).map(tree).collect();
    let predictor = Predictor::load(&inspect(&encode(&ensemble(&trees)), &numeric_schema(2)).unwrap()).unwrap();
    let matrix = Array2::from_shape_fn((1_000, 2), |(i, j)| match (i + j) % 11 {
        0 => f32::NAN,
        _ => ((i * 29 + j * 41) % 101) as f32 / 101.0,
    });
    let started = std::time::Instant::now();
    let given = predictor.predict(matrix.view()).unwrap();
    assert!(started.elapsed().as_secs() < 5, "took {:?}", started.elapsed());
    let by_hand: Vec<f32> = matrix
        .rows()
        .into_iter()
        .map(|row| {
            let mut score = -0.2;
            for tree in &trees {
                let mut at = 0;
                score += loop {
                    match &tree[at] {
                        TreeNode::Leaf(weight) => break f64::from(*weight),
                        TreeNode::Branch(feature, value, children) => {
                            let given = row[*feature as usize];
                            at = children[usize::from(!given.is_nan() && given >= *value)] as usize;
                        }
                    }
                };
            }
            sigmoid(score as f32)
        })
        .collect();
    close(&given, &by_hand);
}

#[test]
fn rewriting_twice_changes_nothing() {
    for (bytes, features) in [
        (encode(&exported_dense()), 2),
        (encode(&boosted_trees()), 2),
        (mixed_network().to_onnx(3), 3),
    ] {
        let once = inspect(&bytes, &numeric_schema(features)).unwrap();
        let twice = inspect(once.bytes(), &numeric_schema(features)).unwrap();
        assert_eq!(once.bytes(), twice.bytes());
    }
}

#[test]
fn wrong_inputs_and_outputs_are_errors_not_numbers() {
    let inspected = inspect(&encode(&exported_dense()), &numeric_schema(2)).unwrap();
    let predictor = Predictor::load(&inspected).unwrap();
    assert_eq!(
        predictor.predict(array![[1.0]].view()),
        Err(PredictError::Columns { found: 1, expected: 2 })
    );
    assert_eq!(predictor.predict(Array2::zeros((0, 2)).view()), Ok(vec![]));
    assert_eq!(
        predictor.predict(array![[0.0, 0.0], [f32::NAN, 0.0]].view()),
        Err(PredictError::NotProbability(1))
    );
    let mut unbounded = exported_dense();
    unbounded.graph.as_mut().unwrap().node[5].op_type = Some("Identity".into());
    let predictor = Predictor::load(&inspect(&encode(&unbounded), &numeric_schema(2)).unwrap()).unwrap();
    assert_eq!(
        predictor.predict(array![[9.0, 0.0]].view()),
        Err(PredictError::NotProbability(0))
    );
}

#[test]
fn no_operator_makes_a_number_of_a_missing_value() {
    let constants = || {
        vec![
            floats("half", &[], &[0.5]),
            floats("low", &[], &[0.0]),
            floats("high", &[], &[1.0]),
        ]
    };
    let mut tried = 0;
    for (operator, further) in [
        ("Abs", &[][..]),
        ("Add", &["half"]),
        ("Clip", &["low", "high"]),
        ("Div", &["half"]),
        ("Elu", &[]),
        ("Erf", &[]),
        ("Exp", &[]),
        ("HardSigmoid", &[]),
        ("LeakyRelu", &[]),
        ("Log", &[]),
        ("Max", &["half"]),
        ("Min", &["half"]),
        ("Mul", &["low"]),
        ("Neg", &[]),
        ("Pow", &["half"]),
        ("Relu", &[]),
        ("Selu", &[]),
        ("Sigmoid", &[]),
        ("Softmax", &[]),
        ("Softplus", &[]),
        ("Softsign", &[]),
        ("Sqrt", &[]),
        ("Sub", &["half"]),
        ("Tanh", &[]),
    ] {
        let inputs: Vec<&str> = std::iter::once("in").chain(further.iter().copied()).collect();
        let nodes = vec![node(operator, &inputs, &["out"], vec![])];
        let model = model(
            nodes,
            constants(),
            vec![value("in", 1, &[None, Some(2)])],
            vec![value("out", 1, &[None, Some(2)])],
        );
        let inspected = inspect(&encode(&model), &numeric_schema(2)).expect(operator);
        let predictor = Predictor::load(&inspected).expect(operator);
        assert_eq!(
            predictor.predict(array![[f32::NAN, f32::NAN]].view()),
            Err(PredictError::NotProbability(0)),
            "{operator}"
        );
        if operator == "Softmax" {
            assert_eq!(
                predictor.predict(array![[f32::NAN, 0.25]].view()),
                Err(PredictError::NotProbability(0))
            );
            close(&predictor.predict(array![[0.25, 0.25]].view()).unwrap(), &[0.5]);
        }
        tried += 1;
    }
    assert_eq!(tried, 24);
}
