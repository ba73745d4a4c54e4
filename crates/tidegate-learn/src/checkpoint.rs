//! Where a training is between two epochs, as a file: enough to go on so that nobody sees from the model that it ever
//! stopped.
//!
//! One line of JSON, then the numbers of the network, and of the best network so far where there is one: for each layer
//! weights and bias, each with both moments of Adam, in 32 bits, little endian.

use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};
use tidegate_types::files::pipeline::Trainer;

use crate::network::Network;
use crate::train::Epoch;

const FORMAT: &str = "tidegate-training-1";

/// Where a training is between two epochs.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) network: Network,
    pub(crate) random: ChaCha12Rng,
    /// Steps of all epochs so far.
    pub(crate) step: u64,
    pub(crate) history: Vec<Epoch>,
    /// The lowest validation loss, and the network that had it.
    pub(crate) best: Option<(f64, Network)>,
    /// Epochs since then.
    pub(crate) waited: u32,
}

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    /// What was trained how, as JSON: another training does not go on here.
    settings: String,
    rows: usize,
    widths: Vec<(usize, usize)>,
    step: u64,
    /// Position of the generator, in decimal: JSON has no numbers that large.
    random: String,
    waited: u32,
    /// The lowest validation loss, bit by bit.
    best: Option<u64>,
    history: Vec<Epoch>,
}

fn widths(network: &Network) -> Vec<(usize, usize)> {
    network.layers().iter().map(crate::network::Layer::shape).collect()
}

impl State {
    /// The file of a training of `rows` rows.
    pub(crate) fn save(&self, settings: &Trainer, rows: usize) -> serde_json::Result<Vec<u8>> {
        let mut file = serde_json::to_vec(&Head {
            format: FORMAT.to_owned(),
            settings: serde_json::to_string(settings)?,
            rows,
            widths: widths(&self.network),
            step: self.step,
            random: self.random.get_word_pos().to_string(),
            waited: self.waited,
            best: self.best.as_ref().map(|(loss, _)| loss.to_bits()),
            history: self.history.clone(),
        })?;
        file.push(b'\n');
        self.network.save(&mut file);
        if let Some((_, best)) = &self.best {
            best.save(&mut file);
        }
        Ok(file)
    }

    /// Where that file says that the training was of which this is the beginning; nothing where it is the file of another
    /// one, or none.
    pub(crate) fn restored(&self, settings: &Trainer, rows: usize, file: &[u8]) -> Option<Self> {
        let end = file.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(file.get(..end)?).ok()?;
        let same = head.format == FORMAT
            && Some(head.settings) == serde_json::to_string(settings).ok()
            && head.rows == rows
            && head.widths == widths(&self.network);
        if !same {
            return None;
        }
        let mut numbers = file.get(end + 1..)?;
        let mut state = self.clone();
        state.network.restore(&mut numbers)?;
        if let Some(loss) = head.best {
            let mut best = self.network.clone();
            best.restore(&mut numbers)?;
            state.best = Some((f64::from_bits(loss), best));
        }
        let epochs = head.history.len();
        let steps = rows.div_ceil(settings.batch_size.max(1) as usize) * epochs;
        let counted = head
            .history
            .iter()
            .zip(1..)
            .all(|(epoch, number)| epoch.epoch == number);
        let fits = counted
            && epochs <= settings.epochs as usize
            && head.step == steps as u64
            && head.waited as usize <= epochs
            && state.network.is_finite()
            && state
                .best
                .as_ref()
                .is_none_or(|(loss, best)| loss.is_finite() && best.is_finite());
        state.random.set_word_pos(head.random.parse().ok()?);
        state.step = head.step;
        state.waited = head.waited;
        state.history = head.history;
        (fits && numbers.is_empty()).then_some(state)
    }
}
