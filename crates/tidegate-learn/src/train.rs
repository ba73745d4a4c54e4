//! The training itself: settings checked, features fitted, epochs run, the model written.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use tidegate_bundle::dense::{DenseLayer, DenseNetwork, Preprocessing};
use tidegate_bundle::{FeatureSchema, inspect};
use tidegate_types::files::pipeline::{Schedule, Trainer, TrainerModel};
use tidegate_types::files::trainer_faults;

use crate::checkpoint::State;
use crate::error::LearnError;
use crate::features::{fit_preprocessing, infer_schema, outcomes};
use crate::network::{Batch, Network, shuffled};
use crate::table::Table;

/// The most weights of a network: half of the largest model file that is inspected.
const MAX_WEIGHTS: usize = 8 << 20;
/// Rows that are expanded at once where nothing is learned from them.
const LOSS_ROWS: usize = 1_024;

/// One pass over the training rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Counted from 1.
    pub epoch: u32,
    /// Mean binary cross-entropy of the training rows, each as it was met, without the penalty on
    /// weights; both outcomes weigh alike where the settings say so.
    pub loss: f64,
    /// The same of the validation rows after the pass; absent without validation rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

/// A trained model.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The ONNX file: input `features` `[N, F]` in the order of `schema`, output `probabilities` `[N]`.
    pub model: Vec<u8>,
    /// What the input's columns mean.
    pub schema: FeatureSchema,
    /// The same model as numbers.
    pub network: DenseNetwork,
    /// Every epoch that was run; the model may be that of an earlier one, see [`train`].
    pub history: Vec<Epoch>,
}

/// Trains on `train` to predict the column `target`, which holds 0 and 1 or a boolean.
///
/// A column of numbers is filled with its mean and normalised, any other becomes one feature for each
/// of its texts; all of this is fitted on the training rows and becomes part of the model. With
/// `early_stopping` the model is that of the epoch with the lowest validation loss, otherwise that of
/// the last epoch. The same rows, settings and program give the same bytes.
///
/// # Errors
/// When a setting is out of bounds, the data cannot be learned from, or the loss stops being finite.
pub fn train(
    settings: &Trainer,
    train: &Table,
    validation: Option<&Table>,
    target: &str,
) -> Result<Trained, LearnError> {
    struct Nobody;
    impl Observer for Nobody {}
    train_observed(settings, train, validation, target, &mut Nobody)
}

/// Who is told how a training goes on.
pub trait Observer {
    /// After each epoch that was run.
    ///
    /// # Errors
    /// What ends the training.
    fn epoch(&mut self, _epoch: &Epoch) -> Result<(), LearnError> {
        Ok(())
    }

    /// After each epoch: a file with which a training of the same settings and rows goes on here, to the very model that
    /// this one will give.
    ///
    /// # Errors
    /// What ends the training.
    fn unfinished(&mut self, _file: &dyn Fn() -> Result<Vec<u8>, LearnError>) -> Result<(), LearnError> {
        Ok(())
    }

    /// Before the first epoch: the newest such file, where there is one. One of another training is passed over.
    ///
    /// # Errors
    /// What ends the training.
    fn begun(&mut self) -> Result<Option<Vec<u8>>, LearnError> {
        Ok(None)
    }

    /// After that: how many epochs need not be run.
    fn goes_on(&mut self, _epochs: usize) {}
}

/// As [`train`], and tells `observer` how it goes on.
///
/// # Errors
/// As [`train`], and whatever `observer` returns.
pub fn train_observed(
    settings: &Trainer,
    train: &Table,
    validation: Option<&Table>,
    target: &str,
    observer: &mut dyn Observer,
) -> Result<Trained, LearnError> {
    check_settings(settings)?;
    let validation = validation.filter(|table| table.rows() > 0);
    if settings.early_stopping.is_some() && validation.is_none() {
        return Err(LearnError::NoValidation);
    }
    let class = outcomes(train, target, "training")?;
    let positives = class.iter().filter(|&&outcome| outcome).count();
    if positives == 0 || positives == class.len() {
        return Err(LearnError::OneOutcome {
            column: target.to_owned(),
            rows: class.len(),
        });
    }
    let schema = infer_schema(train, target)?;
    let class_weights = match settings.balanced {
        true => [class.len() - positives, positives].map(|count| class.len() as f32 / (2 * count) as f32),
        false => [1.0, 1.0],
    };
    let rows = Rows::new(train, &class, &schema, class_weights, "training")?;
    let validation = match validation {
        Some(table) => {
            let class = outcomes(table, target, "validation")?;
            Some(Rows::new(table, &class, &schema, class_weights, "validation")?)
        }
        None => None,
    };

    let preprocessing = fit_preprocessing(&schema, rows.matrix.view());
    let hidden: Vec<usize> = match settings.model {
        TrainerModel::Mlp => settings.hidden.iter().map(|&width| width as usize).collect(),
        TrainerModel::Logistic => vec![],
    };
    let mut widths = vec![preprocessing.width()];
    widths.extend(&hidden);
    if widths
        .windows(2)
        .map(|pair| pair.iter().product::<usize>())
        .sum::<usize>()
        > MAX_WEIGHTS
    {
        return Err(LearnError::Setting {
            setting: "hidden",
            reason: "the network would have more than 8,388,608 weights",
        });
    }
    let (network, history) = run_epochs(settings, &hidden, &preprocessing, &rows, validation.as_ref(), observer)?;
    let layer = |layer: &crate::network::Layer| {
        let (weights, bias) = layer.values();
        let weights = Array2::from_shape_vec(layer.shape(), weights.to_vec()).unwrap_or_default();
        DenseLayer {
            weights,
            bias: Array1::from(bias.to_vec()),
        }
    };
    let network = DenseNetwork {
        layers: network.layers().iter().map(layer).collect(),
        preprocessing,
    };
    let model = network.to_onnx(schema.features.len());
    // A model that its home would refuse must not leave the trainer.
    inspect(&model, &schema)?;
    Ok(Trained {
        model,
        schema,
        network,
        history,
    })
}

fn run_epochs(
    settings: &Trainer,
    hidden: &[usize],
    preprocessing: &Preprocessing,
    rows: &Rows,
    validation: Option<&Rows>,
    observer: &mut dyn Observer,
) -> Result<(Network, Vec<Epoch>), LearnError> {
    let count = rows.targets.len();
    let mut random = ChaCha12Rng::seed_from_u64(settings.seed);
    let mut state = State {
        network: Network::new(preprocessing.width(), hidden, &mut random),
        random,
        step: 0,
        history: Vec::new(),
        best: None,
        waited: 0,
    };
    if let Some(before) = observer.begun()?
        && let Some(restored) = state.restored(settings, count, &before)
    {
        state = restored;
        observer.goes_on(state.history.len());
    }
    let batch_size = settings.batch_size as usize;
    let steps = count.div_ceil(batch_size) as u64 * u64::from(settings.epochs);
    let first = u32::try_from(state.history.len()).unwrap_or(u32::MAX).saturating_add(1);
    let patience = settings.early_stopping.unwrap_or(u32::MAX);
    for epoch in first..=settings.epochs {
        if state.waited >= patience {
            break;
        }
        let order = shuffled(count, &mut state.random);
        let mut sum = 0.0;
        for chosen in order.chunks(batch_size) {
            let part = rows.select(chosen);
            let inputs = part.expand(preprocessing);
            let batch = Batch {
                inputs: &inputs,
                targets: &part.targets,
                weights: &part.weights,
            };
            let rate = match settings.schedule {
                Schedule::Constant => settings.learning_rate,
                Schedule::Linear => settings.learning_rate * (1.0 - state.step as f64 / steps as f64),
            };
            sum += state.network.learn(&batch, rate as f32, settings.l2 as f32);
            state.step += 1;
        }
        let loss = sum / rows.total_weight();
        let validation_loss = validation.map(|rows| rows.loss(&mut state.network, preprocessing));
        if !loss.is_finite() || !validation_loss.is_none_or(f64::is_finite) {
            return Err(LearnError::Diverged(epoch));
        }
        let entry = Epoch {
            epoch,
            loss,
            validation_loss,
        };
        observer.epoch(&entry)?;
        state.history.push(entry);
        if let (Some(_), Some(loss)) = (settings.early_stopping, validation_loss) {
            if state.best.as_ref().is_none_or(|(lowest, _)| loss < *lowest) {
                state.best = Some((loss, state.network.clone()));
                state.waited = 0;
            } else {
                state.waited += 1;
            }
        }
        observer.unfinished(&|| state.save(settings, count).map_err(|_| LearnError::Unfinished))?;
    }
    let network = state.network;
    Ok((state.best.map_or(network, |(_, network)| network), state.history))
}

fn check_settings(settings: &Trainer) -> Result<(), LearnError> {
    match trainer_faults(settings).first() {
        None => Ok(()),
        Some(&(setting, reason)) => Err(LearnError::Setting { setting, reason }),
    }
}

/// Encoded rows with what is to be learned from them.
struct Rows {
    matrix: Array2<f32>,
    targets: Vec<f32>,
    weights: Vec<f32>,
}

impl Rows {
    fn new(
        table: &Table,
        class: &[bool],
        schema: &FeatureSchema,
        weights: [f32; 2],
        part: &'static str,
    ) -> Result<Self, LearnError> {
        let matrix = table
            .encode(schema)
            .map_err(|source| LearnError::Encode { part, source })?;
        let weight = |&outcome: &bool| if outcome { weights[1] } else { weights[0] };
        let target = |&outcome: &bool| if outcome { 1.0 } else { 0.0 };
        Ok(Self {
            matrix,
            targets: class.iter().map(target).collect(),
            weights: class.iter().map(weight).collect(),
        })
    }

    fn select(&self, rows: &[usize]) -> Self {
        let pick = |values: &[f32]| rows.iter().filter_map(|&row| values.get(row).copied()).collect();
        Self {
            matrix: self.matrix.select(Axis(0), rows),
            targets: pick(&self.targets),
            weights: pick(&self.weights),
        }
    }

    fn expand(&self, preprocessing: &Preprocessing) -> Vec<f32> {
        expand(self.matrix.view(), preprocessing)
    }

    fn total_weight(&self) -> f64 {
        self.weights.iter().copied().map(f64::from).sum()
    }

    fn loss(&self, network: &mut Network, preprocessing: &Preprocessing) -> f64 {
        let parts = self.matrix.axis_chunks_iter(Axis(0), LOSS_ROWS);
        let parts = parts
            .zip(self.targets.chunks(LOSS_ROWS))
            .zip(self.weights.chunks(LOSS_ROWS));
        let losses = parts.map(|((matrix, targets), weights)| {
            let inputs = expand(matrix, preprocessing);
            network.loss(&Batch {
                inputs: &inputs,
                targets,
                weights,
            })
        });
        losses.sum::<f64>() / self.total_weight()
    }
}

/// The features that the layers see, row-major: the very preprocessing that the model carries.
fn expand(matrix: ArrayView2<'_, f32>, preprocessing: &Preprocessing) -> Vec<f32> {
    preprocessing.apply(matrix).into_raw_vec_and_offset().0
}
