//! A dense network with its preprocessing, and how it is written as ONNX.
//!
//! Everything between the raw input matrix and the probability is inside the graph, so whoever runs
//! the file needs nothing but `schema.json`:
//!
//! ```text
//! features [N, F] ─┬─ Gather numeric ─ Where(IsNaN, fill) ─ Sub mean ─ Mul scale ─ Clip ─┐
//!                  ├─ Gather with missing ─ IsNaN ─ Cast ────────────────────────────────┤
//!                  └─ Gather categories ─ Equal level ─ Cast ────────────────────────────┴─ Concat ─┐
//!      probabilities [N] ─ Squeeze ─ Sigmoid ─ Gemm ─ … ─ Relu ─ Gemm ──────────────────────────────┘
//! ```

use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::onnx::GraphBuilder;
use crate::onnx::proto::{AttributeProto, data_type};

/// Name of the model's input.
pub const INPUT_NAME: &str = "features";
/// Name of the model's output.
pub const OUTPUT_NAME: &str = "probabilities";
/// Normalised values are clipped to this many standard deviations, so that no single outlier, now or
/// in a later record, decides alone.
pub const CLIP: f32 = 5.0;

/// What happens to the columns of the input matrix before the first layer. The order of the expanded
/// features is: numeric columns, missing indicators, one-hot levels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Preprocessing {
    /// Numeric columns.
    pub numeric: Vec<NumericColumn>,
    /// Category columns.
    pub categories: Vec<CategoryColumn>,
}

/// How one numeric column is filled and normalised: `clip((fill_if_nan(x) - mean) * scale)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NumericColumn {
    /// Position in the input matrix.
    pub column: usize,
    /// Takes the place of a missing value.
    pub fill: f32,
    /// Subtracted.
    pub mean: f32,
    /// Multiplied: the reciprocal of the standard deviation.
    pub scale: f32,
    /// Whether a further feature says that the value was missing.
    pub indicator: bool,
}

/// One category column, expanded to one feature per level; all zero when missing or unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CategoryColumn {
    /// Position in the input matrix.
    pub column: usize,
    /// Number of levels.
    pub levels: usize,
}

impl Preprocessing {
    /// Number of features after expansion.
    #[must_use]
    pub fn width(&self) -> usize {
        let indicators = self.numeric.iter().filter(|column| column.indicator).count();
        let levels: usize = self.categories.iter().map(|category| category.levels).sum();
        self.numeric.len() + indicators + levels
    }

    /// Expands an input matrix `[N, F]` to `[N, width]`, as the written graph does.
    ///
    /// # Panics
    /// When a column's position is outside the matrix.
    #[must_use]
    pub fn apply(&self, input: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut output = Array2::zeros((input.nrows(), self.width()));
        for (from, mut to) in input.axis_iter(Axis(0)).zip(output.axis_iter_mut(Axis(0))) {
            let mut position = 0;
            let mut push = |value: f32| {
                to[position] = value;
                position += 1;
            };
            for numeric in &self.numeric {
                let value = from[numeric.column];
                let filled = if value.is_nan() { numeric.fill } else { value };
                push(((filled - numeric.mean) * numeric.scale).clamp(-CLIP, CLIP));
            }
            for numeric in self.numeric.iter().filter(|column| column.indicator) {
                push(f32::from(u8::from(from[numeric.column].is_nan())));
            }
            for category in &self.categories {
                for level in 0..category.levels {
                    push(f32::from(u8::from(from[category.column] == level as f32)));
                }
            }
        }
        output
    }
}

/// One layer: `x · weights + bias`.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseLayer {
    /// Shape `[inputs, outputs]`.
    pub weights: Array2<f32>,
    /// Shape `[outputs]`.
    pub bias: Array1<f32>,
}

/// Preprocessing and layers: rectified linear units between layers, a sigmoid after the last one,
/// which has a single output. One layer alone is logistic regression.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseNetwork {
    /// What happens before the first layer.
    pub preprocessing: Preprocessing,
    /// The layers, first to last.
    pub layers: Vec<DenseLayer>,
}

impl DenseNetwork {
    /// The probability of each row of an input matrix `[N, F]`.
    ///
    /// # Panics
    /// When shapes do not fit together.
    #[must_use]
    pub fn predict(&self, input: ArrayView2<'_, f32>) -> Array1<f32> {
        let mut values = self.preprocessing.apply(input);
        for (position, layer) in self.layers.iter().enumerate() {
            values = values.dot(&layer.weights) + &layer.bias;
            if position + 1 < self.layers.len() {
                values.mapv_inplace(|value| value.max(0.0));
            }
        }
        values.index_axis(Axis(1), 0).mapv(|logit| 1.0 / (1.0 + (-logit).exp()))
    }

    /// The ONNX file of this network over `features` input columns.
    #[must_use]
    pub fn to_onnx(&self, features: usize) -> Vec<u8> {
        let mut graph = GraphBuilder::new();
        let mut value = write_preprocessing(&mut graph, &self.preprocessing);
        for (position, layer) in self.layers.iter().enumerate() {
            let [inputs, outputs] = [layer.weights.nrows(), layer.weights.ncols()];
            let weights = graph.floats(
                &format!("weights_{position}"),
                &[inputs, outputs],
                layer.weights.iter().copied(),
            );
            let bias = graph.floats(&format!("bias_{position}"), &[outputs], layer.bias.iter().copied());
            value = graph.node("Gemm", &format!("layer_{position}"), &[&value, &weights, &bias], vec![]);
            if position + 1 < self.layers.len() {
                value = graph.node("Relu", &format!("hidden_{position}"), &[&value], vec![]);
            }
        }
        let column = graph.node("Sigmoid", "probability_column", &[&value], vec![]);
        let axes = graph.integers("column_axis", &[1]);
        let output = graph.node("Squeeze", OUTPUT_NAME, &[&column, &axes], vec![]);
        graph.finish("dense_network", INPUT_NAME, features, &output)
    }
}

fn write_preprocessing(graph: &mut GraphBuilder, steps: &Preprocessing) -> String {
    let mut parts = Vec::new();
    let gather = |graph: &mut GraphBuilder, name: &str, columns: Vec<usize>| {
        let columns: Vec<i64> = columns.into_iter().map(|column| column as i64).collect();
        let indices = graph.integers(&format!("{name}_columns"), &columns);
        graph.node(
            "Gather",
            name,
            &[INPUT_NAME, &indices],
            vec![AttributeProto::integer("axis", 1)],
        )
    };
    let to_float = || vec![AttributeProto::integer("to", i64::from(data_type::FLOAT))];

    if !steps.numeric.is_empty() {
        let width = [1, steps.numeric.len()];
        let raw = gather(
            graph,
            "numeric",
            steps.numeric.iter().map(|column| column.column).collect(),
        );
        let missing = graph.node("IsNaN", "numeric_missing", &[&raw], vec![]);
        let fill = graph.floats("fill", &width, steps.numeric.iter().map(|column| column.fill));
        let mean = graph.floats("mean", &width, steps.numeric.iter().map(|column| column.mean));
        let scale = graph.floats("scale", &width, steps.numeric.iter().map(|column| column.scale));
        let low = graph.floats("clip_low", &[], [-CLIP]);
        let high = graph.floats("clip_high", &[], [CLIP]);
        let filled = graph.node("Where", "numeric_filled", &[&missing, &fill, &raw], vec![]);
        let centred = graph.node("Sub", "numeric_centred", &[&filled, &mean], vec![]);
        let scaled = graph.node("Mul", "numeric_scaled", &[&centred, &scale], vec![]);
        parts.push(graph.node("Clip", "numeric_clipped", &[&scaled, &low, &high], vec![]));
    }
    let with_indicator: Vec<_> = steps
        .numeric
        .iter()
        .filter(|column| column.indicator)
        .map(|column| column.column)
        .collect();
    if !with_indicator.is_empty() {
        let raw = gather(graph, "indicator_source", with_indicator);
        let missing = graph.node("IsNaN", "indicator_missing", &[&raw], vec![]);
        parts.push(graph.node("Cast", "indicator", &[&missing], to_float()));
    }
    if !steps.categories.is_empty() {
        let repeated = steps
            .categories
            .iter()
            .flat_map(|category| std::iter::repeat_n(category.column, category.levels));
        let codes = gather(graph, "category_code", repeated.collect());
        let levels: Vec<f32> = steps
            .categories
            .iter()
            .flat_map(|category| (0..category.levels).map(|level| level as f32))
            .collect();
        let levels = graph.floats("category_levels", &[1, levels.len()], levels.iter().copied());
        let equal = graph.node("Equal", "category_equal", &[&codes, &levels], vec![]);
        parts.push(graph.node("Cast", "category", &[&equal], to_float()));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    graph.node("Concat", "expanded", &parts, vec![AttributeProto::integer("axis", 1)])
}
