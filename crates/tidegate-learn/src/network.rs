//! Forward pass, backward pass and Adam, in plain loops.
//!
//! The loops run in one fixed order, so a training gives the same bits each time. Matrices are
//! row-major vectors. Inputs that are zero are skipped: of a one-hot category that is all but one.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::RngCore;

/// Decay of the first moment of Adam (Kingma and Ba, 2015).
const BETA_1: f32 = 0.9;
/// Decay of the second moment.
const BETA_2: f32 = 0.999;
/// Keeps Adam's division finite; the value that Keras uses.
const EPSILON: f32 = 1e-7;

/// A uniform number in `[0, 1)` of 24 bits.
fn uniform(random: &mut ChaCha12Rng) -> f32 {
    (random.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

/// A random order of `0..count` (Fisher and Yates), written out so that a library's next version
/// cannot change it.
pub(crate) fn shuffled(count: usize, random: &mut ChaCha12Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        let bound = last as u128 + 1;
        // The product's high half is uniform below the bound, up to a bias of 2^-64 times the bound.
        let chosen = ((u128::from(random.next_u64()) * bound) >> 64) as usize;
        order.swap(last, chosen);
    }
    order
}

/// Numbers that are learned, with their gradient and Adam's moments.
#[derive(Debug, Clone)]
struct Parameters {
    values: Vec<f32>,
    gradient: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Parameters {
    fn new(values: Vec<f32>) -> Self {
        let zeros = vec![0.0; values.len()];
        Self {
            values,
            gradient: zeros.clone(),
            first: zeros.clone(),
            second: zeros,
        }
    }

    fn is_finite(&self) -> bool {
        let numbers = self.values.iter().chain(&self.first);
        numbers.copied().all(f32::is_finite) && self.second.iter().all(|number| (0.0..f32::INFINITY).contains(number))
    }

    /// Values and moments, which are all there is between two steps.
    fn save(&self, to: &mut Vec<u8>) {
        for numbers in [&self.values, &self.first, &self.second] {
            to.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
    }

    fn restore(&mut self, from: &mut &[u8]) -> Option<()> {
        for numbers in [&mut self.values, &mut self.first, &mut self.second] {
            let (mine, rest) = from.split_at_checked(4 * numbers.len())?;
            for (number, bytes) in numbers.iter_mut().zip(mine.as_chunks::<4>().0) {
                *number = f32::from_le_bytes(*bytes);
            }
            *from = rest;
        }
        Some(())
    }

    fn step(&mut self, rate: f32) {
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, gradient), (first, second)) in self.values.iter_mut().zip(&mut self.gradient).zip(moments) {
            *first += (*gradient - *first) * (1.0 - BETA_1);
            *second += (*gradient * *gradient - *second) * (1.0 - BETA_2);
            *value -= rate * *first / (second.sqrt() + EPSILON);
            *gradient = 0.0;
        }
    }
}

/// One dense layer: `x · weights + bias`.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    inputs: usize,
    outputs: usize,
    /// Shape `[inputs, outputs]`.
    weights: Parameters,
    bias: Parameters,
}

impl Layer {
    /// Weights drawn evenly from a range that keeps the size of signals (Glorot and Bengio, 2010).
    fn random(inputs: usize, outputs: usize, random: &mut ChaCha12Rng) -> Self {
        let limit = (6.0 / (inputs + outputs) as f32).sqrt();
        let weights = (0..inputs * outputs)
            .map(|_| (2.0 * uniform(random) - 1.0) * limit)
            .collect();
        Self {
            inputs,
            outputs,
            weights: Parameters::new(weights),
            bias: Parameters::new(vec![0.0; outputs]),
        }
    }

    fn zero(inputs: usize, outputs: usize) -> Self {
        let weights = Parameters::new(vec![0.0; inputs * outputs]);
        Self {
            inputs,
            outputs,
            weights,
            bias: Parameters::new(vec![0.0; outputs]),
        }
    }

    /// Number of inputs and outputs.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.inputs, self.outputs)
    }

    /// Weights, row-major `[inputs, outputs]`, and bias.
    pub(crate) fn values(&self) -> (&[f32], &[f32]) {
        (&self.weights.values, &self.bias.values)
    }

    fn forward(&self, input: &[f32], output: &mut Vec<f32>) {
        output.clear();
        for row in input.chunks_exact(self.inputs) {
            let start = output.len();
            output.extend_from_slice(&self.bias.values);
            let to = &mut output[start..];
            for (&x, weights) in row.iter().zip(self.weights.values.chunks_exact(self.outputs)) {
                if x != 0.0 {
                    add_scaled(to, x, weights);
                }
            }
        }
    }

    /// Adds to the gradients what `delta`, the gradient of this layer's output, says.
    fn backward(&mut self, input: &[f32], delta: &[f32]) {
        for (row, delta) in input.chunks_exact(self.inputs).zip(delta.chunks_exact(self.outputs)) {
            add_scaled(&mut self.bias.gradient, 1.0, delta);
            for (&x, gradient) in row.iter().zip(self.weights.gradient.chunks_exact_mut(self.outputs)) {
                if x != 0.0 {
                    add_scaled(gradient, x, delta);
                }
            }
        }
    }

    /// The gradient of the input, where the input is above zero: through the rectifier before it.
    fn input_gradient(&self, input: &[f32], delta: &[f32], gradient: &mut Vec<f32>) {
        gradient.clear();
        for (row, delta) in input.chunks_exact(self.inputs).zip(delta.chunks_exact(self.outputs)) {
            let through = row.iter().zip(self.weights.values.chunks_exact(self.outputs));
            gradient.extend(through.map(|(&x, weights)| if x > 0.0 { dot(weights, delta) } else { 0.0 }));
        }
    }
}

fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// The scalar product in eight sums, which the compiler can keep in one register.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (left, left_rest) = left.as_chunks::<8>();
    let (right, right_rest) = right.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (left, right) in left.iter().zip(right) {
        for ((sum, x), y) in sums.iter_mut().zip(left).zip(right) {
            *sum += x * y;
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

/// Rows with what is to be learned from them.
pub(crate) struct Batch<'a> {
    /// Row-major `[rows, inputs]`.
    pub(crate) inputs: &'a [f32],
    /// 0 or 1 for each row.
    pub(crate) targets: &'a [f32],
    /// How much each row counts.
    pub(crate) weights: &'a [f32],
}

/// A dense network with rectified linear units between its layers and one output, the log odds.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    layers: Vec<Layer>,
    steps: i32,
    /// Output of each layer, kept from the forward pass for the backward pass.
    outputs: Vec<Vec<f32>>,
    deltas: [Vec<f32>; 2],
}

impl Network {
    /// A network over `inputs` features. Without a hidden layer it is logistic regression, whose loss
    /// has one minimum, and starts from zero.
    pub(crate) fn new(inputs: usize, hidden: &[usize], random: &mut ChaCha12Rng) -> Self {
        let mut layers = Vec::new();
        let mut width = inputs;
        for &next in hidden {
            layers.push(Layer::random(width, next, random));
            width = next;
        }
        layers.push(if hidden.is_empty() {
            Layer::zero(width, 1)
        } else {
            Layer::random(width, 1, random)
        });
        let outputs = vec![vec![]; layers.len()];
        Self {
            layers,
            steps: 0,
            outputs,
            deltas: [vec![], vec![]],
        }
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Whether training can go on from here.
    pub(crate) fn is_finite(&self) -> bool {
        let parameters = self.layers.iter().flat_map(|layer| [&layer.weights, &layer.bias]);
        parameters.into_iter().all(Parameters::is_finite)
    }

    /// Everything that the next step depends on, behind what is there.
    pub(crate) fn save(&self, to: &mut Vec<u8>) {
        to.extend(self.steps.to_le_bytes());
        for layer in &self.layers {
            layer.weights.save(to);
            layer.bias.save(to);
        }
    }

    /// Becomes the network of the same shape that was saved; takes its bytes from the beginning of `from`. Nothing when
    /// they are too few: then this one is of no use any more.
    pub(crate) fn restore(&mut self, from: &mut &[u8]) -> Option<()> {
        let (steps, rest) = from.split_first_chunk()?;
        (self.steps, *from) = (i32::from_le_bytes(*steps), rest);
        for layer in &mut self.layers {
            layer.weights.restore(from)?;
            layer.bias.restore(from)?;
        }
        Some(())
    }

    /// The log odds of each row.
    fn forward(&mut self, inputs: &[f32]) -> &[f32] {
        let last = self.layers.len() - 1;
        for (position, layer) in self.layers.iter().enumerate() {
            let (before, rest) = self.outputs.split_at_mut(position);
            let Some(output) = rest.first_mut() else { continue };
            layer.forward(before.last().map_or(inputs, Vec::as_slice), output);
            if position < last {
                output.iter_mut().for_each(|value| *value = value.max(0.0));
            }
        }
        self.outputs.last().map_or(&[], Vec::as_slice)
    }

    /// The sum of the weighted losses of the rows.
    pub(crate) fn loss(&mut self, batch: &Batch<'_>) -> f64 {
        let logits = self.forward(batch.inputs);
        weighted_loss(logits, batch)
    }

    /// One step of Adam down the mean loss of a batch plus `l2` times the squared weights. Returns the
    /// sum of the weighted losses before the step, without the penalty.
    pub(crate) fn learn(&mut self, batch: &Batch<'_>, rate: f32, l2: f32) -> f64 {
        let [mut delta, mut next] = std::mem::take(&mut self.deltas);
        let logits = self.forward(batch.inputs);
        let loss = weighted_loss(logits, batch);
        let count = batch.targets.len() as f32;
        delta.clear();
        let rows = logits.iter().zip(batch.targets).zip(batch.weights);
        delta.extend(rows.map(|((&logit, &target), &weight)| weight * (sigmoid(logit) - target) / count));
        for (position, layer) in self.layers.iter_mut().enumerate().rev() {
            let input = position.checked_sub(1).and_then(|before| self.outputs.get(before));
            layer.backward(input.map_or(batch.inputs, Vec::as_slice), &delta);
            if l2 > 0.0 {
                add_scaled(&mut layer.weights.gradient, 2.0 * l2, &layer.weights.values);
            }
            if let Some(input) = input {
                layer.input_gradient(input, &delta, &mut next);
                std::mem::swap(&mut delta, &mut next);
            }
        }
        self.deltas = [delta, next];

        self.steps = self.steps.saturating_add(1);
        let correction = (1.0 - BETA_2.powi(self.steps)).sqrt() / (1.0 - BETA_1.powi(self.steps));
        for layer in &mut self.layers {
            layer.weights.step(rate * correction);
            layer.bias.step(rate * correction);
        }
        loss
    }
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// Binary cross-entropy, computed from the log odds so that it is finite for any finite ones.
fn weighted_loss(logits: &[f32], batch: &Batch<'_>) -> f64 {
    let rows = logits.iter().zip(batch.targets).zip(batch.weights);
    rows.map(|((&z, &y), &weight)| f64::from(weight) * f64::from(z.max(0.0) - z * y + (-z.abs()).exp().ln_1p()))
        .sum()
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn random() -> ChaCha12Rng {
        ChaCha12Rng::seed_from_u64(3)
    }

    fn objective(network: &mut Network, batch: &Batch<'_>, l2: f32) -> f64 {
        let penalty: f32 = network
            .layers
            .iter()
            .flat_map(|layer| &layer.weights.values)
            .map(|weight| weight * weight)
            .sum();
        network.loss(batch) / batch.targets.len() as f64 + f64::from(l2 * penalty)
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        // Numbers at which no rectifier switches between the two points of a slope.
        let mut random = ChaCha12Rng::seed_from_u64(5);
        let l2 = 0.01;
        let network = Network::new(11, &[9, 10], &mut random);
        let inputs: Vec<f32> = (0..5 * 11).map(|_| uniform(&mut random) * 2.0 - 1.0).collect();
        let batch = Batch {
            inputs: &inputs,
            targets: &[1.0, 0.0, 0.0, 1.0, 1.0],
            weights: &[1.0, 2.0, 1.0, 0.5, 1.0],
        };
        // The first step of Adam from zero moments moves each number against the sign of its gradient.
        let mut moved = network.clone();
        moved.learn(&batch, 1e-6, l2);
        let (mut checked, mut agreed) = (0, 0);
        for position in 0..3 {
            for weight in 0..network.layers[position].weights.values.len() {
                let at = |step: f32| {
                    let mut changed = network.clone();
                    changed.layers[position].weights.values[weight] += step;
                    objective(&mut changed, &batch, l2)
                };
                let slope = (at(2e-3) - at(-2e-3)) / 4e-3;
                let gradient = f64::from(moved.layers[position].weights.first[weight]) / f64::from(1.0 - BETA_1);
                checked += 1;
                agreed += usize::from((slope - gradient).abs() < 2e-3 + 0.02 * slope.abs());
            }
        }
        assert_eq!((agreed, checked), (199, 199));
    }

    #[test]
    fn a_hidden_layer_learns_what_a_line_cannot() {
        let inputs = [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0];
        let batch = Batch {
            inputs: &inputs,
            targets: &[0.0, 1.0, 1.0, 0.0],
            weights: &[1.0; 4],
        };
        let train = |hidden: &[usize]| {
            let mut network = Network::new(2, hidden, &mut random());
            for _ in 0..2_000 {
                network.learn(&batch, 0.01, 0.0);
            }
            network.loss(&batch) / 4.0
        };
        assert!(train(&[16]) < 0.05);
        assert!(train(&[]) > 0.69, "no line divides exclusive or");
    }

    #[test]
    fn an_order_holds_each_row_once() {
        let mut order = shuffled(1_000, &mut random());
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..1_000));
        assert!(shuffled(0, &mut random()).is_empty());
    }
}
