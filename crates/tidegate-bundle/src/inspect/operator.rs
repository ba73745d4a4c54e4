//! The operators that a model may use, and the shape that each gives.

use crate::onnx::proto::attribute_type::{FLOAT, FLOATS, INT, INTS, STRING, STRINGS};
use crate::onnx::proto::data_type;

use super::attribute::Attributes;
use super::shape::{Element, Extent, Shape};

/// The domain of classical models: trees and label maps.
pub(super) const ML_DOMAIN: &str = "ai.onnx.ml";

/// What an operator may look like.
pub(super) struct Rule {
    name: &'static str,
    domain: &'static str,
    /// First version of the operator set whose meaning is the one checked here.
    pub(super) since: i64,
    /// Fewest and most inputs.
    pub(super) inputs: (usize, usize),
    pub(super) outputs: usize,
    pub(super) attributes: &'static [(&'static str, i32)],
}

const fn rule(name: &'static str, inputs: (usize, usize), attributes: &'static [(&'static str, i32)]) -> Rule {
    Rule {
        name,
        domain: "",
        since: 7,
        inputs,
        outputs: 1,
        attributes,
    }
}

const fn since(version: i64, rule: Rule) -> Rule {
    Rule { since: version, ..rule }
}

const RULES: &[Rule] = &[
    rule("Abs", (1, 1), &[]),
    rule("Add", (2, 2), &[]),
    rule("And", (2, 2), &[]),
    rule("Cast", (1, 1), &[("to", INT)]),
    since(11, rule("Clip", (1, 3), &[])),
    rule("Concat", (1, 10_000), &[("axis", INT)]),
    rule("Div", (2, 2), &[]),
    rule("Elu", (1, 1), &[("alpha", FLOAT)]),
    rule("Equal", (2, 2), &[]),
    rule("Erf", (1, 1), &[]),
    rule("Exp", (1, 1), &[]),
    rule("Flatten", (1, 1), &[("axis", INT)]),
    rule("Gather", (2, 2), &[("axis", INT)]),
    rule(
        "Gemm",
        (2, 3),
        &[("alpha", FLOAT), ("beta", FLOAT), ("transA", INT), ("transB", INT)],
    ),
    rule("Greater", (2, 2), &[]),
    rule("GreaterOrEqual", (2, 2), &[]),
    rule("HardSigmoid", (1, 1), &[("alpha", FLOAT), ("beta", FLOAT)]),
    rule("Identity", (1, 1), &[]),
    rule("IsNaN", (1, 1), &[]),
    rule("LeakyRelu", (1, 1), &[("alpha", FLOAT)]),
    rule("Less", (2, 2), &[]),
    rule("LessOrEqual", (2, 2), &[]),
    rule("Log", (1, 1), &[]),
    rule("MatMul", (2, 2), &[]),
    rule("Max", (2, 2), &[]),
    rule("Min", (2, 2), &[]),
    rule("Mul", (2, 2), &[]),
    rule("Neg", (1, 1), &[]),
    rule("Not", (1, 1), &[]),
    rule("Or", (2, 2), &[]),
    rule("Pow", (2, 2), &[]),
    rule("Relu", (1, 1), &[]),
    rule("Reshape", (2, 2), &[("allowzero", INT)]),
    rule("Selu", (1, 1), &[("alpha", FLOAT), ("gamma", FLOAT)]),
    rule("Sigmoid", (1, 1), &[]),
    rule("Softmax", (1, 1), &[("axis", INT)]),
    rule("Softplus", (1, 1), &[]),
    rule("Softsign", (1, 1), &[]),
    rule("Sqrt", (1, 1), &[]),
    since(13, rule("Squeeze", (2, 2), &[])),
    rule("Sub", (2, 2), &[]),
    rule("Tanh", (1, 1), &[]),
    since(13, rule("Unsqueeze", (2, 2), &[])),
    rule("Where", (3, 3), &[]),
    Rule {
        name: "TreeEnsembleClassifier",
        domain: ML_DOMAIN,
        since: 1,
        inputs: (1, 1),
        outputs: 2,
        attributes: &[
            ("base_values", FLOATS),
            ("class_ids", INTS),
            ("class_nodeids", INTS),
            ("class_treeids", INTS),
            ("class_weights", FLOATS),
            ("classlabels_int64s", INTS),
            ("classlabels_strings", STRINGS),
            ("nodes_falsenodeids", INTS),
            ("nodes_featureids", INTS),
            ("nodes_hitrates", FLOATS),
            ("nodes_missing_value_tracks_true", INTS),
            ("nodes_modes", STRINGS),
            ("nodes_nodeids", INTS),
            ("nodes_treeids", INTS),
            ("nodes_truenodeids", INTS),
            ("nodes_values", FLOATS),
            ("post_transform", STRING),
        ],
    },
];

/// The rule of an operator, if it is allowed.
pub(super) fn find(name: &str, domain: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name == name && rule.domain == domain)
}

/// What is known of a value before anything runs.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) element: Element,
    pub(super) shape: Shape,
    /// The values of an integer constant.
    pub(super) integers: Option<Vec<i64>>,
    /// Whether it is a constant of the file.
    pub(super) constant: bool,
}

impl Value {
    fn made(element: Element, shape: Shape) -> Self {
        Self {
            element,
            shape,
            integers: None,
            constant: false,
        }
    }
}

/// Element type and shape of an operator's outputs, and how many multiplications each output element
/// costs; or the reason why it is refused. `inputs` hold `None` for an optional input left out.
pub(super) fn infer(
    name: &str,
    inputs: &[Option<&Value>],
    attributes: &Attributes,
) -> Result<(Vec<Value>, u64), &'static str> {
    let value = |position: usize| inputs.get(position).copied().flatten().ok_or("an input is missing");
    let floats =
        |count: usize| match (0..count).all(|position| value(position).is_ok_and(|v| v.element == Element::Float)) {
            true => Ok(()),
            false => Err("an input is not float32"),
        };
    let broadcast = |first: usize, second: usize| {
        value(first)?
            .shape
            .broadcast(&value(second)?.shape)
            .ok_or("the shapes of its inputs cannot be combined row by row")
    };
    let integers = |position: usize| {
        value(position)?
            .integers
            .as_deref()
            .ok_or("an index or shape is not a constant")
    };
    let one = |element, shape| Ok((vec![Value::made(element, shape)], 1));

    match name {
        "Abs" | "Elu" | "Erf" | "Exp" | "HardSigmoid" | "LeakyRelu" | "Log" | "Neg" | "Relu" | "Selu" | "Sigmoid"
        | "Softplus" | "Softsign" | "Sqrt" | "Tanh" => {
            floats(1)?;
            one(Element::Float, value(0)?.shape.clone())
        }
        "Identity" => one(value(0)?.element, value(0)?.shape.clone()),
        "IsNaN" => {
            floats(1)?;
            one(Element::Bool, value(0)?.shape.clone())
        }
        "Not" if value(0)?.element == Element::Bool => one(Element::Bool, value(0)?.shape.clone()),
        "Cast" => {
            let to = match attributes.integer("to").and_then(|to| i32::try_from(to).ok()) {
                Some(data_type::FLOAT) => Element::Float,
                Some(data_type::BOOL) => Element::Bool,
                Some(data_type::INT32) => Element::Int32,
                _ => return Err("it casts to another type than float32, int32 or bool"),
            };
            // A missing value would become whatever integer the program that runs the model makes of it.
            let allowed = match value(0)?.element {
                Element::Bool | Element::Int32 => true,
                Element::Float => to == Element::Float,
                Element::Int64 | Element::Label => false,
            };
            if !allowed {
                return Err("it casts float32 to an integer, or from a type other than float32, int32 or bool");
            }
            one(to, value(0)?.shape.clone())
        }
        "Clip" => {
            floats(1)?;
            for position in 1..inputs.len() {
                let Some(bound) = inputs.get(position).copied().flatten() else {
                    continue;
                };
                if bound.element != Element::Float || !bound.constant || bound.shape.rank() != 0 {
                    return Err("a bound is not a constant number");
                }
            }
            one(Element::Float, value(0)?.shape.clone())
        }
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" => {
            floats(2)?;
            one(Element::Float, broadcast(0, 1)?)
        }
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
            let (first, second) = (value(0)?.element, value(1)?.element);
            if first != second || !matches!(first, Element::Float | Element::Int32) {
                return Err("its inputs are not both float32 or both int32");
            }
            one(Element::Bool, broadcast(0, 1)?)
        }
        "And" | "Or" if value(0)?.element == Element::Bool && value(1)?.element == Element::Bool => {
            one(Element::Bool, broadcast(0, 1)?)
        }
        "Where" => {
            let elements = (value(0)?.element, value(1)?.element, value(2)?.element);
            if elements != (Element::Bool, Element::Float, Element::Float) {
                return Err("its inputs are not a condition and two float32");
            }
            let shape = broadcast(1, 2)?.broadcast(&value(0)?.shape);
            one(
                Element::Float,
                shape.ok_or("the shapes of its inputs cannot be combined row by row")?,
            )
        }
        "MatMul" | "Gemm" => matrix_product(name, inputs, attributes),
        "Concat" => concatenate(inputs, attributes),
        "Flatten" => {
            floats(1)?;
            let shape = &value(0)?.shape;
            if attributes.integer("axis").unwrap_or(1) != 1 || !shape.has_rows() {
                return Err("only rows may be kept apart");
            }
            one(Element::Float, shape.reshape(&[0, -1]).ok_or("the shape is too large")?)
        }
        "Gather" => {
            floats(1)?;
            let (data, indices) = (value(0)?, value(1)?);
            let axis = Shape::axis(attributes.integer("axis").unwrap_or(0), data.shape.rank())
                .ok_or("there is no such axis")?;
            let Some(Extent::Fixed(extent)) = data.shape.extents().get(axis).copied() else {
                return Err("it selects rows");
            };
            if integers(1)?
                .iter()
                .any(|&index| usize::try_from(index).map_or(true, |index| index >= extent))
            {
                return Err("an index is outside its axis");
            }
            let (before, after) = data.shape.extents().split_at(axis);
            let extents = [before, indices.shape.extents(), after.get(1..).unwrap_or_default()].concat();
            one(
                Element::Float,
                Shape::new(extents).ok_or("the result has too many axes")?,
            )
        }
        "Reshape" => {
            floats(1)?;
            // What it is about: with it, 0 is a length. PyTorch writes it also where no length is 0.
            if attributes.integer("allowzero").unwrap_or(0) != 0 && integers(1)?.contains(&0) {
                return Err("a length of 0 leaves no rows");
            }
            let shape = value(0)?.shape.reshape(integers(1)?);
            one(
                Element::Float,
                shape.ok_or("the shapes do not fit, or rows would not stay apart")?,
            )
        }
        "Softmax" => {
            floats(1)?;
            let shape = &value(0)?.shape;
            let axis = attributes.integer("axis").unwrap_or(-1);
            if shape.rank() != 2 || !shape.has_rows() || !matches!(axis, -1 | 1) {
                return Err("it must work on the columns of `[N, columns]`");
            }
            one(Element::Float, shape.clone())
        }
        "Squeeze" | "Unsqueeze" => {
            floats(1)?;
            let shape = &value(0)?.shape;
            let mut extents = shape.extents().to_vec();
            let [axis] = integers(1)? else {
                return Err("it must name one axis");
            };
            if name == "Squeeze" {
                let axis = Shape::axis(*axis, extents.len()).ok_or("there is no such axis")?;
                if extents.get(axis) != Some(&Extent::Fixed(1)) {
                    return Err("the axis is not 1 long");
                }
                extents.remove(axis);
            } else {
                let axis = Shape::axis(*axis, extents.len() + 1).ok_or("there is no such axis")?;
                extents.insert(axis, Extent::Fixed(1));
            }
            one(
                Element::Float,
                Shape::new(extents).ok_or("rows must stay on the first axis")?,
            )
        }
        _ => Err("its inputs have the wrong type"),
    }
}

fn matrix_product(
    name: &str,
    inputs: &[Option<&Value>],
    attributes: &Attributes,
) -> Result<(Vec<Value>, u64), &'static str> {
    let [Some(left), Some(right), rest @ ..] = inputs else {
        return Err("an input is missing");
    };
    if left.element != Element::Float || right.element != Element::Float {
        return Err("an input is not float32");
    }
    if attributes.integer("transA").unwrap_or(0) != 0 {
        return Err("`transA` would mix rows");
    }
    let transposed = attributes.integer("transB").unwrap_or(0);
    let (&[rows, inner], &[first, second]) = (left.shape.extents(), right.shape.extents()) else {
        return Err("its inputs are not matrices");
    };
    let (expected, columns) = if name == "Gemm" && transposed != 0 {
        (second, first)
    } else {
        (first, second)
    };
    let (Extent::Fixed(depth), true, Extent::Fixed(_)) = (inner, inner == expected, columns) else {
        return Err("the shapes of its matrices do not fit");
    };
    let product = Shape::new(vec![rows, columns]).ok_or("rows must stay on the first axis")?;
    if let Some(Some(addend)) = rest.first() {
        let sum = product.broadcast(&addend.shape);
        if addend.element != Element::Float || sum.as_ref() != Some(&product) {
            return Err("its addend does not fit");
        }
    }
    Ok((vec![Value::made(Element::Float, product)], depth as u64))
}

fn concatenate(inputs: &[Option<&Value>], attributes: &Attributes) -> Result<(Vec<Value>, u64), &'static str> {
    let inputs = inputs
        .iter()
        .copied()
        .collect::<Option<Vec<_>>>()
        .ok_or("an input is missing")?;
    let first = inputs.first().ok_or("an input is missing")?;
    if inputs.iter().any(|input| input.element != Element::Float) {
        return Err("an input is not float32");
    }
    let rank = first.shape.rank();
    let axis = attributes
        .integer("axis")
        .and_then(|axis| Shape::axis(axis, rank))
        .ok_or("there is no such axis")?;
    let mut total = 0usize;
    for input in &inputs {
        let others = |shape: &Shape| {
            shape
                .extents()
                .iter()
                .copied()
                .enumerate()
                .filter(|(at, _)| *at != axis)
                .collect::<Vec<_>>()
        };
        if input.shape.rank() != rank || others(&input.shape) != others(&first.shape) {
            return Err("the shapes of its inputs do not fit");
        }
        let Some(Extent::Fixed(extent)) = input.shape.extents().get(axis) else {
            return Err("it would append rows");
        };
        total = total.checked_add(*extent).ok_or("the result is too large")?;
    }
    let mut extents = first.shape.extents().to_vec();
    if let Some(extent) = extents.get_mut(axis) {
        *extent = Extent::Fixed(total);
    }
    Ok((
        vec![Value::made(
            Element::Float,
            Shape::new(extents).ok_or("rows must stay on the first axis")?,
        )],
        1,
    ))
}

/// The outputs of a tree ensemble: labels `[N]` and probabilities `[N, 2]`.
pub(super) fn tree_outputs() -> Vec<Value> {
    vec![
        Value::made(Element::Label, Shape::vector()),
        Value::made(Element::Float, Shape::rows(2)),
    ]
}
