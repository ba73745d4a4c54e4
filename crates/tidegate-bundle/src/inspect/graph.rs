//! The graph: read node by node, checked, cut to what leads to the probabilities, written again.

use std::collections::{BTreeMap, BTreeSet};

use crate::dense::{INPUT_NAME, OUTPUT_NAME};
use crate::onnx::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    attribute_type, data_type,
};
use crate::onnx::{BATCH_DIMENSION, IR_VERSION, OPSET_VERSION, PRODUCER, write};

use super::attribute::Attributes;
use super::constant::Constant;
use super::operator::{self, ML_DOMAIN, Value};
use super::shape::{Element, Shape};
use super::tree::Ensemble;
use super::{MAX_NODES, MAX_ROW_ELEMENTS, MAX_ROW_WORK, ModelRefusal, printable};

/// The most numbers of all values that do not depend on the input.
const MAX_CONSTANT_ELEMENTS: u64 = 1 << 25;

/// What a step down a tree counts for, in multiplications. Steps wait for memory and for each other;
/// with this, as many rows as one request has take seconds at the bound, not minutes.
const TREE_STEP_WORK: u64 = 1 << 11;

/// A node that passed.
struct CheckedNode {
    operator: String,
    domain: &'static str,
    inputs: Vec<String>,
    outputs: Vec<String>,
    attributes: Vec<AttributeProto>,
}

#[derive(Default)]
struct Checked {
    constants: BTreeMap<String, Constant>,
    values: BTreeMap<String, Value>,
    nodes: Vec<CheckedNode>,
    /// Outputs of a final `ZipMap`, each with the value it wraps.
    maps: BTreeMap<String, String>,
    row_elements: u64,
    constant_elements: u64,
    row_work: u64,
}

/// Checks a model and writes it again. Returns it with the numbers that its values hold per row.
pub(super) fn rewrite(model: ModelProto, features: usize) -> Result<(ModelProto, u64), ModelRefusal> {
    if !model.functions.is_empty() {
        return Err(ModelRefusal::Forbidden("functions"));
    }
    if !model.training_info.is_empty() {
        return Err(ModelRefusal::Forbidden("training steps"));
    }
    version("the ONNX format", model.ir_version.unwrap_or_default(), 3, 13)?;
    let [standard, classical] = operator_sets(&model.opset_import)?;
    let graph = model.graph.ok_or(ModelRefusal::NotOnnx)?;
    if !graph.sparse_initializer.is_empty() {
        return Err(ModelRefusal::Forbidden("sparse tensors"));
    }
    if graph.node.len() > MAX_NODES {
        return Err(ModelRefusal::TooMuch {
            what: "nodes",
            limit: MAX_NODES as u64,
        });
    }

    let mut checked = Checked::default();
    for tensor in graph.initializer {
        checked.add_constant(tensor)?;
    }
    let input = find_input(graph.input, &checked.constants, features)?;
    let shape = Shape::rows(features);
    checked.add_value(
        input.clone(),
        Value {
            element: Element::Float,
            shape,
            integers: None,
            constant: false,
        },
    )?;
    for (position, node) in graph.node.into_iter().enumerate() {
        checked.add_node(position, node, standard, classical, features)?;
    }
    let output = checked.find_output(&graph.output)?;
    let row_elements = checked.row_elements;
    let graph = checked.write(&input, &output, features)?;

    let set = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    let mut opset_import = vec![set("", standard.unwrap_or(OPSET_VERSION))];
    if graph.node.iter().any(|node| node.domain.is_some()) {
        opset_import.extend(classical.map(|version| set(ML_DOMAIN, version)));
    }
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some(PRODUCER.to_owned()),
        graph: Some(graph),
        opset_import,
        training_info: vec![],
        functions: vec![],
    };
    Ok((model, row_elements))
}

fn version(what: &'static str, version: i64, from: i64, to: i64) -> Result<(), ModelRefusal> {
    if (from..=to).contains(&version) {
        Ok(())
    } else {
        Err(ModelRefusal::Version {
            what,
            version,
            from,
            to,
        })
    }
}

/// Versions of the standard and of the classical operator set; other sets are of no use.
fn operator_sets(imports: &[OperatorSetIdProto]) -> Result<[Option<i64>; 2], ModelRefusal> {
    let mut sets = [None, None];
    for import in imports {
        let number = import.version.unwrap_or_default();
        let (set, what, to) = match import.domain.as_deref().unwrap_or_default() {
            "" | "ai.onnx" => (0, "the ONNX operator set", 21),
            ML_DOMAIN => (1, "the operator set `ai.onnx.ml`", 4),
            _ => continue,
        };
        version(what, number, if set == 0 { 7 } else { 1 }, to)?;
        if sets.get_mut(set).and_then(|known| known.replace(number)).is_some() {
            return Err(ModelRefusal::Forbidden("operator sets that stand twice"));
        }
    }
    Ok(sets)
}

fn find_input(
    inputs: Vec<ValueInfoProto>,
    constants: &BTreeMap<String, Constant>,
    features: usize,
) -> Result<String, ModelRefusal> {
    let named = inputs
        .into_iter()
        .map(|input| (input.name.unwrap_or_default(), input.r#type));
    let mut free: Vec<_> = named.filter(|(name, _)| !constants.contains_key(name)).collect();
    let refuse = |text: String| Err(ModelRefusal::Input(text));
    let (Some((name, kind)), true) = (free.pop(), free.is_empty()) else {
        return refuse(format!(
            "it has {} inputs; export it with a single float32 input `[N, {features}]` in the order of the schema",
            free.len() + usize::from(!free.is_empty())
        ));
    };
    let tensor = kind.and_then(|kind| kind.tensor_type);
    if tensor.as_ref().and_then(|tensor| tensor.elem_type) != Some(data_type::FLOAT) {
        return refuse("it is not a float32 tensor".to_owned());
    }
    let dims = tensor
        .and_then(|tensor| tensor.shape)
        .map(|shape| shape.dim)
        .unwrap_or_default();
    match &dims[..] {
        [rows, columns]
            if rows.dim_value.is_none_or(|extent| extent <= 0) && columns.dim_value == Some(features as i64) =>
        {
            Ok(name)
        }
        [rows, _] if rows.dim_value.is_some_and(|extent| extent > 0) => {
            refuse("its number of rows is fixed; export it with a free batch dimension".to_owned())
        }
        [_, columns] => refuse(format!(
            "it has {} columns, the schema has {features} features",
            columns
                .dim_value
                .map_or_else(|| "any number of".to_owned(), |extent| extent.to_string())
        )),
        _ => refuse(format!("it has {} axes; expected `[N, {features}]`", dims.len())),
    }
}

impl Checked {
    fn add_constant(&mut self, mut tensor: TensorProto) -> Result<(), ModelRefusal> {
        let name = tensor.name.take().unwrap_or_default();
        tensor.name = Some(name.clone());
        let mut constant = Constant::read(tensor)?;
        let value = Value {
            element: constant.element,
            shape: Shape::fixed(&constant.dims).ok_or(ModelRefusal::NotOnnx)?,
            integers: matches!(constant.element, Element::Int64 | Element::Int32)
                .then(|| std::mem::take(&mut constant.integers)),
            constant: true,
        };
        self.add_value(name.clone(), value)?;
        self.constants.insert(name, constant);
        Ok(())
    }

    fn add_value(&mut self, name: String, value: Value) -> Result<(), ModelRefusal> {
        let too_much = |what, limit| ModelRefusal::TooMuch { what, limit };
        let (total, limit, what) = if value.shape.has_rows() {
            (&mut self.row_elements, MAX_ROW_ELEMENTS, "numbers for each row")
        } else {
            (&mut self.constant_elements, MAX_CONSTANT_ELEMENTS, "constant numbers")
        };
        let elements = value.shape.elements().ok_or_else(|| too_much(what, limit))?;
        *total = total.saturating_add(elements.max(1));
        if *total > limit {
            return Err(too_much(what, limit));
        }
        if name.is_empty() || self.maps.contains_key(&name) || self.values.insert(name, value).is_some() {
            return Err(ModelRefusal::Forbidden("values without a name or with the same name"));
        }
        Ok(())
    }

    fn add_node(
        &mut self,
        position: usize,
        node: NodeProto,
        standard: Option<i64>,
        classical: Option<i64>,
        features: usize,
    ) -> Result<(), ModelRefusal> {
        let name = node.op_type.unwrap_or_default();
        let domain = match node.domain.as_deref().unwrap_or_default() {
            "" | "ai.onnx" => "",
            ML_DOMAIN => ML_DOMAIN,
            other => return Err(ModelRefusal::Operator(printable(&format!("{other}.{name}")))),
        };
        let operator = printable(&name);
        let refuse = |reason| ModelRefusal::Node {
            position,
            operator: operator.clone(),
            reason,
        };
        let mut attributes = Attributes::read(node.attribute)?;

        if (name.as_str(), domain) == ("Constant", "") {
            let (Some(mut tensor), [output]) = (attributes.take_tensor("value"), &node.output[..]) else {
                return Err(refuse("it must have one tensor"));
            };
            tensor.name = Some(output.clone());
            return self.add_constant(tensor);
        }
        if (name.as_str(), domain) == ("ZipMap", ML_DOMAIN) {
            let ([input], [output]) = (&node.input[..], &node.output[..]) else {
                return Err(refuse("it must have one input and one output"));
            };
            let probabilities = self
                .values
                .get(input)
                .is_some_and(|value| value.shape == Shape::rows(2));
            if !probabilities
                || self.values.contains_key(output)
                || self.maps.insert(output.clone(), input.clone()).is_some()
            {
                return Err(refuse("it must wrap probabilities `[N, 2]`"));
            }
            return Ok(());
        }

        let rule = operator::find(&name, domain).ok_or_else(|| ModelRefusal::Operator(operator.clone()))?;
        let set = if domain.is_empty() { standard } else { classical };
        if set.is_none_or(|version| version < rule.since) {
            return Err(refuse("its operator set is too old or not named"));
        }
        if !(rule.inputs.0..=rule.inputs.1).contains(&node.input.len()) || node.output.len() != rule.outputs {
            return Err(refuse("it has the wrong number of inputs or outputs"));
        }
        if !attributes.all_in(rule.attributes) {
            return Err(refuse("it has an attribute that is not known"));
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        for input in &node.input {
            let value = self.values.get(input);
            if value.is_none() && !input.is_empty() {
                return Err(refuse("it reads a value that no earlier node makes"));
            }
            inputs.push(value);
        }

        let (outputs, attributes, work) = if domain == ML_DOMAIN {
            let rows = inputs
                .first()
                .copied()
                .flatten()
                .filter(|value| value.element == Element::Float && value.shape == Shape::rows(features));
            rows.ok_or_else(|| refuse("its input is not `[N, F]` of float32"))?;
            let ensemble = Ensemble::read(&attributes, features).map_err(refuse)?;
            let walk = ensemble.row_steps().saturating_mul(TREE_STEP_WORK);
            self.row_work = self.row_work.saturating_add(walk);
            (operator::tree_outputs(), ensemble.into_attributes(), 1)
        } else {
            let (outputs, work) = operator::infer(&name, &inputs, &attributes).map_err(refuse)?;
            (outputs, attributes.into_protos(), work)
        };
        for (name, value) in node.output.iter().zip(outputs) {
            self.row_work = self
                .row_work
                .saturating_add(value.shape.elements().unwrap_or(u64::MAX).saturating_mul(work));
            self.add_value(name.clone(), value)?;
        }
        if self.row_work > MAX_ROW_WORK {
            return Err(ModelRefusal::TooMuch {
                what: "multiplications for each row",
                limit: MAX_ROW_WORK,
            });
        }
        self.nodes.push(CheckedNode {
            operator: name,
            domain,
            inputs: node.input,
            outputs: node.output,
            attributes,
        });
        Ok(())
    }

    /// The one output that can be probabilities; class labels beside it are cut off.
    fn find_output(&self, outputs: &[ValueInfoProto]) -> Result<String, ModelRefusal> {
        let mut found = None;
        for output in outputs {
            let name = output.name.as_deref().unwrap_or_default();
            let name = self.maps.get(name).map_or(name, String::as_str);
            let value = self
                .values
                .get(name)
                .ok_or(ModelRefusal::Output("it names a value that no node makes"))?;
            let fits = [Shape::vector(), Shape::rows(1), Shape::rows(2)].contains(&value.shape);
            match value.element {
                Element::Float if fits && found.is_none() => found = Some(name.to_owned()),
                Element::Float if fits => return Err(ModelRefusal::Output("there are several")),
                Element::Float => return Err(ModelRefusal::Output("its shape is another")),
                _ => {}
            }
        }
        found.ok_or(ModelRefusal::Output("there is none of float32"))
    }

    /// Writes what leads to `output`, under names of our own.
    fn write(mut self, input: &str, output: &str, features: usize) -> Result<GraphProto, ModelRefusal> {
        let column = match self.values.get(output).map(|value| &value.shape) {
            Some(shape) if *shape == Shape::rows(2) => Some(1),
            Some(shape) if *shape == Shape::rows(1) => Some(0),
            _ => None,
        };
        let mut needed = BTreeSet::from([output.to_owned()]);
        let mut kept = Vec::new();
        for node in self.nodes.into_iter().rev() {
            if node.outputs.iter().any(|name| needed.contains(name)) {
                needed.extend(node.inputs.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();

        let mut names = BTreeMap::from([
            (input.to_owned(), INPUT_NAME.to_owned()),
            (String::new(), String::new()),
        ]);
        if column.is_none() {
            names.insert(output.to_owned(), OUTPUT_NAME.to_owned());
        }
        let (mut node, mut initializer, mut values) = (Vec::new(), Vec::new(), 0);
        for kept in kept {
            for name in &kept.inputs {
                if !names.contains_key(name)
                    && let Some(constant) = self.constants.remove(name)
                {
                    let renamed = format!("c{}", initializer.len());
                    initializer.push(constant.into_tensor(renamed.clone()));
                    names.insert(name.clone(), renamed);
                }
            }
            for name in &kept.outputs {
                names.entry(name.clone()).or_insert_with(|| {
                    values += 1;
                    format!("v{}", values - 1)
                });
            }
            let rename = |list: Vec<String>| {
                list.iter()
                    .filter_map(|name| names.get(name).cloned())
                    .collect::<Vec<_>>()
            };
            node.push(NodeProto {
                input: rename(kept.inputs),
                output: rename(kept.outputs),
                name: None,
                op_type: Some(kept.operator),
                attribute: kept.attributes,
                domain: (!kept.domain.is_empty()).then(|| kept.domain.to_owned()),
            });
        }
        if let Some(column) = column {
            let source = names
                .get(output)
                .cloned()
                .ok_or(ModelRefusal::Output("it names a value that no node makes"))?;
            let index = format!("c{}", initializer.len());
            initializer.push(TensorProto {
                data_type: Some(data_type::INT64),
                name: Some(index.clone()),
                raw_data: Some(i64::to_le_bytes(column).to_vec()),
                ..TensorProto::default()
            });
            let axis = AttributeProto {
                i: Some(1),
                r#type: Some(attribute_type::INT),
                name: Some("axis".to_owned()),
                ..AttributeProto::default()
            };
            node.push(NodeProto {
                input: vec![source, index],
                output: vec![OUTPUT_NAME.to_owned()],
                op_type: Some("Gather".to_owned()),
                attribute: vec![axis],
                ..NodeProto::default()
            });
        }
        let rows = || DimensionProto {
            dim_value: None,
            dim_param: Some(BATCH_DIMENSION.to_owned()),
        };
        let columns = DimensionProto {
            dim_value: Some(features as i64),
            dim_param: None,
        };
        Ok(GraphProto {
            node,
            name: Some("model".to_owned()),
            initializer,
            input: vec![write::float_value(INPUT_NAME, vec![rows(), columns])],
            output: vec![write::float_value(OUTPUT_NAME, vec![rows()])],
            sparse_initializer: vec![],
        })
    }
}
