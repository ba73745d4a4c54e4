//! Invented patients whose outcome follows a rule that a model can learn.

use tidegate_learn::Table;
use tidegate_types::files::pipeline::{Schedule, Trainer, TrainerModel};

/// A small generator of numbers that no library's next version changes (PCG, O'Neill 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))
    }

    /// A number in `[0, 1)`.
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let word = ((self.0 >> ((self.0 >> 59) + 5)) ^ self.0).wrapping_mul(12_605_985_483_714_917_081);
        ((word >> 43) ^ word) as u32 as f64 / f64::from(u32::MAX)
    }
}

pub(crate) const HEADER: [&str; 6] = ["id", "age", "lab", "ward", "empty", "died"];

/// Records of [`HEADER`]: risk rises with age, with a missing `lab`, and on one ward.
pub(crate) fn records(count: usize, seed: u64) -> Vec<Vec<String>> {
    let mut random = Random::new(seed);
    let one = |row: usize| {
        let age = 20.0 + 70.0 * random.next();
        let missing = random.next() < 0.3;
        let lab = 100.0 + 50.0 * random.next();
        let ward = ["icu", "surgery", "", "general"][(random.next() * 4.0) as usize % 4];
        let logit = (age - 55.0) / 8.0 + if missing { 1.5 } else { -0.5 } + if ward == "icu" { 2.0 } else { -0.7 };
        let died = random.next() < 1.0 / (1.0 + (-logit).exp());
        let lab = if missing { String::new() } else { format!("{lab:.2}") };
        vec![
            row.to_string(),
            format!("{age:.1}"),
            lab,
            ward.to_owned(),
            String::new(),
            u8::from(died).to_string(),
        ]
    };
    (0..count).map(one).collect()
}

pub(crate) fn table(count: usize, seed: u64) -> Table {
    Table::new(HEADER.map(str::to_owned).to_vec(), records(count, seed)).unwrap()
}

/// The same as CSV.
pub(crate) fn csv(count: usize, seed: u64) -> String {
    let lines =
        std::iter::once(HEADER.join(",")).chain(records(count, seed).into_iter().map(|record| record.join(",")));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

pub(crate) fn settings(model: TrainerModel) -> Trainer {
    Trainer {
        model,
        hidden: vec![16],
        epochs: 15,
        batch_size: 32,
        learning_rate: 0.01,
        schedule: Schedule::Constant,
        early_stopping: None,
        balanced: false,
        l2: 0.0,
        seed: 7,
    }
}
