//! Training learns what is there, says what is wrong, and does the same thing twice.

use ndarray::array;
use tidegate_bundle::{FeatureKind, Predictor, inspect};
use tidegate_learn::{Epoch, JudgeInput, LearnError, Observer, Table, Trained, judge, metrics, train, train_observed};
use tidegate_types::files::pipeline::{Schedule, Trainer, TrainerModel};

use crate::patients::{settings, table};

/// The ROC-AUC on rows that the training did not see.
fn roc_auc(trained: &Trained) -> f64 {
    let test = table(1_000, 99);
    let matrix = test.encode(&trained.schema).unwrap();
    let probabilities: Vec<f64> = trained
        .network
        .predict(matrix.view())
        .iter()
        .map(|&p| f64::from(p))
        .collect();
    let outcomes: Vec<bool> = test.column("died").unwrap().map(|text| text == "1").collect();
    let subjects: Vec<u64> = (0..1_000).collect();
    let input = JudgeInput {
        probabilities: &probabilities,
        outcomes: &outcomes,
        subjects: &subjects,
        threshold: 0.5,
        subgroups: &[],
        min_cell: 11,
    };
    judge(&input).unwrap().quality.0["roc_auc"].value
}

#[test]
fn both_models_learn_the_rule() {
    for model in [TrainerModel::Logistic, TrainerModel::Mlp] {
        let trained = train(&settings(model), &table(2_000, 1), Some(&table(300, 2)), "died").unwrap();
        let auc = roc_auc(&trained);
        assert!(auc > 0.88, "{model:?}: {auc}");
        let [first, .., last] = &trained.history[..] else {
            panic!("15 epochs")
        };
        assert!(
            trained.history.len() == 15 && last.loss < 0.9 * first.loss,
            "{:?}",
            trained.history
        );
        assert!(trained.history.iter().all(|epoch| epoch.validation_loss.is_some()));
        assert_eq!(
            trained.network.layers.len(),
            if model == TrainerModel::Mlp { 2 } else { 1 }
        );
    }
}

#[test]
fn the_schema_says_what_the_columns_are() {
    let trained = train(&settings(TrainerModel::Logistic), &table(500, 1), None, "died").unwrap();
    let names: Vec<&str> = trained
        .schema
        .features
        .iter()
        .map(|feature| feature.name.as_str())
        .collect();
    assert_eq!(
        names,
        ["id", "age", "lab", "ward"],
        "a column without a value is no feature"
    );
    let levels = ["general", "icu", "surgery"].map(str::to_owned).to_vec();
    assert_eq!(trained.schema.features[3].kind, FeatureKind::Category { levels });
    assert!(trained.history.iter().all(|epoch| epoch.validation_loss.is_none()));
}

#[test]
fn the_model_file_gives_the_probabilities_of_the_training_network() {
    let trained = train(&settings(TrainerModel::Mlp), &table(1_000, 1), None, "died").unwrap();
    let predictor = Predictor::load(&inspect(&trained.model, &trained.schema).unwrap()).unwrap();
    // Rows of the data, and rows with missing, unknown and absurd values.
    let test = table(500, 4).encode(&trained.schema).unwrap();
    let odd = array![
        [f32::NAN, f32::NAN, f32::NAN, f32::NAN],
        [1e30, -1e30, 0.0, 7.0],
        [-5.0, 55.0, 120.0, 1.0]
    ];
    for matrix in [test, odd] {
        let served = predictor.predict(matrix.view()).unwrap();
        for (ours, theirs) in trained.network.predict(matrix.view()).iter().zip(served) {
            assert!((ours - theirs).abs() < 1e-5, "{ours} and {theirs}");
        }
    }
}

#[test]
fn the_same_rows_settings_and_seed_give_the_same_bytes_and_another_seed_others() {
    let train_with = |seed| {
        let settings = Trainer {
            seed,
            epochs: 3,
            ..settings(TrainerModel::Mlp)
        };
        train(&settings, &table(400, 1), Some(&table(100, 2)), "died").unwrap()
    };
    let (first, again, other) = (train_with(7), train_with(7), train_with(8));
    assert_eq!(first.model, again.model);
    assert_eq!(first.history, again.history);
    assert_ne!(first.model, other.model);
}

#[test]
fn early_stopping_keeps_the_best_epoch() {
    // Few rows and many weights: the validation loss falls and rises again.
    let long = Trainer {
        hidden: vec![64],
        epochs: 200,
        early_stopping: Some(5),
        ..settings(TrainerModel::Mlp)
    };
    let (rows, validation) = (table(150, 1), table(400, 2));
    let stopped = train(&long, &rows, Some(&validation), "died").unwrap();
    let losses: Vec<f64> = stopped
        .history
        .iter()
        .map(|epoch| epoch.validation_loss.unwrap())
        .collect();
    let best = losses
        .iter()
        .copied()
        .enumerate()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap()
        .0;
    assert_eq!(
        losses.len(),
        best + 1 + 5,
        "five epochs without a better one end the training"
    );
    let exact = Trainer {
        epochs: best as u32 + 1,
        early_stopping: None,
        ..long.clone()
    };
    assert_eq!(
        train(&exact, &rows, Some(&validation), "died").unwrap().model,
        stopped.model
    );
    assert!(matches!(
        train(&long, &rows, None, "died"),
        Err(LearnError::NoValidation)
    ));
}

#[test]
fn class_weights_and_penalty_do_what_they_say() {
    let mean = |settings: &Trainer| {
        let trained = train(settings, &rare(), None, "died").unwrap();
        let matrix = table(500, 5).encode(&trained.schema).unwrap();
        (trained.network.predict(matrix.view()).mean().unwrap(), trained)
    };
    let plain = settings(TrainerModel::Logistic);
    let (as_it_is, free) = mean(&plain);
    let (balanced, _) = mean(&Trainer {
        balanced: true,
        ..plain.clone()
    });
    assert!(
        balanced > as_it_is + 0.1,
        "the rare outcome weighs more: {as_it_is} and {balanced}"
    );
    let (_, held) = mean(&Trainer { l2: 0.05, ..plain });
    let size = |trained: &Trained| {
        trained.network.layers[0]
            .weights
            .iter()
            .map(|weight| weight * weight)
            .sum::<f32>()
    };
    assert!(size(&held) < size(&free) * 0.5, "{} and {}", size(&held), size(&free));
}

#[test]
fn a_step_size_that_falls_leaves_less_of_single_batches() {
    let constant = Trainer {
        learning_rate: 0.1,
        ..settings(TrainerModel::Logistic)
    };
    let linear = Trainer {
        schedule: Schedule::Linear,
        ..constant.clone()
    };
    let loss = |settings: &Trainer| {
        let rows = table(500, 5);
        let trained = train(settings, &rows, None, "died").unwrap();
        let probabilities = trained.network.predict(rows.encode(&trained.schema).unwrap().view());
        let outcomes = rows.column("died").unwrap().map(|text| text == "1").collect::<Vec<_>>();
        let probabilities: Vec<f64> = probabilities.iter().map(|&p| f64::from(p)).collect();
        metrics::losses(&probabilities, &outcomes).iter().sum::<f64>() / 500.0
    };
    // Logistic regression has one minimum, which small steps find.
    let lowest = loss(&Trainer {
        learning_rate: 0.001,
        epochs: 500,
        ..constant.clone()
    });
    let (falling, steady) = (loss(&linear) - lowest, loss(&constant) - lowest);
    assert!(falling < steady * 0.5, "{falling} and {steady} above {lowest}");
    // The first step is as large as the setting says, whatever comes after it.
    let first = |settings: &Trainer| {
        let one = Trainer {
            epochs: 1,
            batch_size: 500,
            ..settings.clone()
        };
        train(&one, &table(500, 5), None, "died").unwrap().model
    };
    assert_eq!(first(&linear), first(&constant));
}

/// Patients of whom only every fifth who died is kept.
fn rare() -> Table {
    let mut died = 0;
    let kept = crate::patients::records(2_000, 1).into_iter().filter(|record| {
        died += usize::from(record[5] == "1");
        record[5] == "0" || died % 5 == 0
    });
    Table::new(crate::patients::HEADER.map(str::to_owned).to_vec(), kept).unwrap()
}

#[test]
fn what_cannot_be_trained_is_refused_with_a_reason() {
    let refused = |settings: Trainer| train(&settings, &table(50, 1), None, "died").unwrap_err().to_string();
    let plain = settings(TrainerModel::Mlp);
    for (changed, setting) in [
        (
            Trainer {
                hidden: vec![],
                ..plain.clone()
            },
            "hidden",
        ),
        (
            Trainer {
                hidden: vec![0],
                ..plain.clone()
            },
            "hidden",
        ),
        (
            Trainer {
                hidden: vec![4_096; 8],
                ..plain.clone()
            },
            "hidden",
        ),
        (
            Trainer {
                hidden: vec![1; 9],
                ..plain.clone()
            },
            "hidden",
        ),
        (
            Trainer {
                epochs: 0,
                ..plain.clone()
            },
            "epochs",
        ),
        (
            Trainer {
                batch_size: 0,
                ..plain.clone()
            },
            "batch_size",
        ),
        (
            Trainer {
                learning_rate: f64::NAN,
                ..plain.clone()
            },
            "learning_rate",
        ),
        (
            Trainer {
                learning_rate: 0.0,
                ..plain.clone()
            },
            "learning_rate",
        ),
        (
            Trainer {
                l2: -1.0,
                ..plain.clone()
            },
            "l2",
        ),
        (
            Trainer {
                l2: f64::INFINITY,
                ..plain.clone()
            },
            "l2",
        ),
        (
            Trainer {
                early_stopping: Some(0),
                ..plain.clone()
            },
            "early_stopping",
        ),
    ] {
        let text = refused(changed);
        assert!(text.contains(&format!("`{setting}`")), "{text}");
    }
    let header = |names: [&str; 2]| names.map(str::to_owned).to_vec();
    let one_outcome = Table::new(header(["x", "died"]), [vec!["1", "0"], vec!["2", "0"]]).unwrap();
    assert!(matches!(
        train(&plain, &one_outcome, None, "died"),
        Err(LearnError::OneOutcome { rows: 2, .. })
    ));
    assert!(matches!(
        train(&plain, &one_outcome, None, "dead"),
        Err(LearnError::NoTarget(..))
    ));
    let no_feature = Table::new(header(["x", "died"]), [vec!["", "0"], vec!["", "1"]]).unwrap();
    assert!(matches!(
        train(&plain, &no_feature, None, "died"),
        Err(LearnError::NoFeature)
    ));
    let wrong = Table::new(header(["age", "died"]), [vec!["text", "0"]]).unwrap();
    let numbers = Table::new(header(["age", "died"]), [vec!["1", "0"], vec!["2", "1"]]).unwrap();
    let text = train(&plain, &numbers, Some(&wrong), "died").unwrap_err().to_string();
    assert!(
        text.contains("validation") && text.contains("`age`") && !text.contains("text"),
        "{text}"
    );
}

#[test]
fn a_training_that_runs_away_ends_in_an_error_and_never_in_a_broken_model() {
    let mut stopped = 0;
    for seed in 0..12 {
        let wild = Trainer {
            learning_rate: 10.0,
            hidden: vec![256; 8],
            epochs: 3,
            batch_size: 8,
            seed,
            ..settings(TrainerModel::Mlp)
        };
        match train(&wild, &table(64, 1), None, "died") {
            Err(LearnError::Diverged(epoch)) => {
                assert!((1..=3).contains(&epoch));
                stopped += 1;
            }
            Err(other) => panic!("{other}"),
            Ok(trained) => {
                let matrix = table(50, 2).encode(&trained.schema).unwrap();
                let probabilities = trained.network.predict(matrix.view());
                assert!(probabilities.iter().all(|p| (0.0..=1.0).contains(p)));
            }
        }
    }
    assert!(stopped > 0, "none of these trainings ran away");
}

/// Keeps the newest unfinished training, and ends it after an epoch.
struct Interrupted {
    file: Option<Vec<u8>>,
    ends_after: u32,
    went_on: usize,
}

impl Observer for Interrupted {
    fn epoch(&mut self, epoch: &Epoch) -> Result<(), LearnError> {
        // In the middle: what was kept is the epoch before.
        if epoch.epoch > self.ends_after {
            return Err(LearnError::NoFeature);
        }
        Ok(())
    }

    fn unfinished(&mut self, file: &dyn Fn() -> Result<Vec<u8>, LearnError>) -> Result<(), LearnError> {
        self.file = Some(file()?);
        Ok(())
    }

    fn begun(&mut self) -> Result<Option<Vec<u8>>, LearnError> {
        Ok(self.file.clone())
    }

    fn goes_on(&mut self, epochs: usize) {
        self.went_on = epochs;
    }
}

#[test]
fn a_training_that_was_interrupted_gives_the_very_same_model() {
    let (rows, validation) = (table(400, 1), table(100, 2));
    for patience in [None, Some(3)] {
        let settings = Trainer {
            schedule: Schedule::Linear,
            early_stopping: patience,
            learning_rate: 0.1,
            l2: 0.001,
            ..settings(TrainerModel::Mlp)
        };
        let whole = train(&settings, &rows, Some(&validation), "died").unwrap();
        if patience.is_some() {
            assert!(whole.history.len() < 15, "nothing stops early");
        }
        let mut observer = Interrupted {
            file: None,
            ends_after: 0,
            went_on: 0,
        };
        let trained = loop {
            let before = observer.ends_after as usize;
            match train_observed(&settings, &rows, Some(&validation), "died", &mut observer) {
                Ok(trained) => break trained,
                Err(LearnError::NoFeature) => observer.ends_after += 1,
                Err(error) => panic!("{error}"),
            }
            assert_eq!(observer.went_on, before.saturating_sub(1));
        };
        assert!(observer.went_on + 1 >= whole.history.len(), "{}", observer.went_on);
        assert_eq!(trained.model, whole.model);
        assert_eq!(trained.history.len(), whole.history.len());
        // What belongs to another training, or is cut, is a beginning.
        let file = observer.file.clone().unwrap();
        let other = Trainer {
            seed: 8,
            ..settings.clone()
        };
        for (settings, file) in [(&other, file.clone()), (&settings, file[..file.len() - 1].to_vec())] {
            let mut observer = Interrupted {
                file: Some(file),
                ends_after: 15,
                went_on: 0,
            };
            let anew = train_observed(settings, &rows, Some(&validation), "died", &mut observer).unwrap();
            assert_eq!(observer.went_on, 0);
            assert_eq!(anew.model == whole.model, settings.seed == 7);
        }
    }
}
