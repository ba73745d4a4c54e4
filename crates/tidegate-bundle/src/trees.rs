//! Tree ensembles, evaluated from the form that inspection has checked.
//!
//! The inference library finds a leaf by counting through all leaves before it, which makes the work of
//! a row grow with the square of an ensemble. Here a row walks down each tree once, and that walk is
//! what inspection charges. The library keeps the rest of the graph and calls this as an operator.

use std::sync::Arc;

use prost::Message as _;
use tract_onnx::model::{Onnx, ParsingContext};
use tract_onnx::pb;
use tract_onnx::prelude::tvec;
use tract_onnx::tract_hir::internal::*;

use crate::inspect::tree::{Ensemble, Test, Transform, TreeNode};
use crate::onnx::proto::NodeProto;

/// The operator's name; no model that was inspected has it.
pub(crate) const OPERATOR: &str = "TidegateTrees";

/// The inference library with the operator.
pub(crate) fn library() -> Onnx {
    let mut library = tract_onnx::onnx();
    library.op_register.insert(OPERATOR, build);
    library
}

fn build(_: &ParsingContext<'_>, node: &pb::NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    // Both sides describe the same message; a round through its bytes is the way from one to the other.
    let node = NodeProto::decode(&node.encode_to_vec()[..])?;
    let ensemble = Ensemble::of(node).map_err(|reason| format_err!("{reason}"))?;
    Ok((expand(Trees(Arc::new(Flat::new(&ensemble)))), vec![]))
}

/// One step of a walk; numbers are positions in [`Flat`].
#[derive(Debug)]
enum Step {
    Branch {
        feature: usize,
        test: Test,
        value: f32,
        missing_is_true: bool,
        yes: usize,
        no: usize,
    },
    /// The weights that the leaf adds, from the first to before the second.
    Leaf(usize, usize),
}

/// The trees behind each other.
#[derive(Debug)]
struct Flat {
    roots: Vec<usize>,
    steps: Vec<Step>,
    weights: Vec<(usize, f32)>,
    base: [f64; 2],
    transform: Transform,
}

impl Flat {
    fn new(ensemble: &Ensemble) -> Self {
        let mut flat = Self {
            roots: vec![],
            steps: vec![],
            weights: vec![],
            base: [0, 1].map(|class| f64::from(ensemble.base.get(class).copied().unwrap_or_default())),
            transform: ensemble.transform,
        };
        for tree in &ensemble.trees {
            let root = flat.steps.len();
            flat.roots.push(root);
            for node in tree {
                let step = flat.step(root, node);
                flat.steps.push(step);
            }
        }
        flat
    }

    fn step(&mut self, root: usize, node: &TreeNode) -> Step {
        let child = |number: i64| root.saturating_add(usize::try_from(number).unwrap_or(usize::MAX));
        match node.test {
            Some(test) => Step::Branch {
                feature: usize::try_from(node.feature).unwrap_or(usize::MAX),
                test,
                value: node.value,
                missing_is_true: node.missing_is_true != 0,
                yes: child(node.true_child),
                no: child(node.false_child),
            },
            None => {
                let first = self.weights.len();
                let weight = |&(class, weight): &(i64, f32)| (usize::from(class != 0), weight);
                self.weights.extend(node.leaves.iter().map(weight));
                Step::Leaf(first, self.weights.len())
            }
        }
    }

    /// Probabilities of both classes; nothing when a number leads nowhere, which inspection excludes.
    fn row(&self, row: &[f32]) -> Option<[f32; 2]> {
        let mut sums = self.base;
        for &root in &self.roots {
            let mut at = root;
            let (first, last) = loop {
                match *self.steps.get(at)? {
                    Step::Leaf(first, last) => break (first, last),
                    Step::Branch {
                        feature,
                        test,
                        value,
                        missing_is_true,
                        yes,
                        no,
                    } => {
                        let given = *row.get(feature)?;
                        let holds = if given.is_nan() {
                            missing_is_true
                        } else {
                            test.holds(given, value)
                        };
                        let next = if holds { yes } else { no };
                        // Only forward, so every walk ends.
                        if next <= at {
                            return None;
                        }
                        at = next;
                    }
                }
            };
            for &(class, weight) in self.weights.get(first..last)? {
                *sums.get_mut(class)? += f64::from(weight);
            }
        }
        let logistic = |score: f64| 1.0 / (1.0 + (-score).exp());
        let [first, second] = sums;
        let second = match self.transform {
            Transform::None => return Some(sums.map(|sum| sum as f32)),
            Transform::Logistic => logistic(first),
            // Of two classes, the softmax is the logistic curve of their difference.
            Transform::Softmax => logistic(second - first),
        };
        Some([(1.0 - second) as f32, second as f32])
    }

    fn rows(&self, input: &Tensor) -> TractResult<Tensor> {
        let &[rows, columns] = input.shape() else {
            bail!("the input is no matrix");
        };
        let values = input.try_as_plain_ram()?.as_slice::<f32>()?;
        let mut output = Vec::with_capacity(rows.saturating_mul(2));
        for row in values.chunks_exact(columns.max(1)) {
            output.extend(self.row(row).ok_or_else(|| format_err!("a tree leads nowhere"))?);
        }
        Tensor::from_shape(&[rows, 2], &output)
    }
}

/// The operator: `[N, F]` to `[N, 2]`.
#[derive(Debug, Clone)]
struct Trees(Arc<Flat>);

impl PartialEq for Trees {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Trees {}

impl Op for Trees {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    op_as_typed_op!();
}

impl EvalOp for Trees {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [input] = &inputs[..] else {
            bail!("it has one input");
        };
        Ok(tvec!(self.0.rows(input)?.into_tvalue()))
    }
}

impl TypedOp for Trees {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let rows = inputs.first().and_then(|input| input.shape.dims().first());
        let rows = rows.ok_or_else(|| format_err!("the input is no matrix"))?;
        Ok(tvec!(f32::fact([rows.clone(), 2.to_dim()])))
    }

    as_op!();
}

impl Expansion for Trees {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let ([input], [output]) = (inputs, outputs) else {
            bail!("it has one input and one output");
        };
        solver.equals(&input.datum_type, f32::datum_type())?;
        solver.equals(&output.datum_type, f32::datum_type())?;
        solver.equals(&input.rank, 2)?;
        solver.equals(&output.rank, 2)?;
        solver.equals(&output.shape[0], &input.shape[0])?;
        solver.equals(&output.shape[1], 2.to_dim())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}
