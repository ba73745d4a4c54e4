//! The trainer on real medicine: SUPPORT2, 9,105 critically ill patients, as the example has them.

use std::time::Instant;

use tidegate_bundle::{Predictor, inspect};
use tidegate_learn::{JudgeInput, Table, fit_platt, judge, membership, metrics, train};
use tidegate_types::files::pipeline::{Schedule, Trainer, TrainerModel};

use crate::patients::Random;

/// Columns that name a person, tell the outcome, or stand for it.
const LEFT_OUT: [&str; 31] = [
    "patient_id",
    "record_number",
    "name",
    "birth_date",
    "ssn",
    "phone",
    "email",
    "street",
    "zip",
    "admission_date",
    "notes",
    "sno",
    "death",
    "d.time",
    "slos",
    "sfdm2",
    "charges",
    "totcst",
    "totmcst",
    "avtisst",
    "surv2m",
    "surv6m",
    "prg2m",
    "prg6m",
    "dnr",
    "dnrday",
    "aps",
    "sps",
    "adlp",
    "adls",
    "adlsc",
];

/// The file with its fields trimmed and without the leaking columns, in five parts drawn at random.
fn parts(path: &std::path::Path) -> [Table; 3] {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).unwrap();
    let header = reader.headers().unwrap().clone();
    let kept: Vec<usize> = (0..header.len())
        .filter(|&at| !LEFT_OUT.contains(&&header[at]))
        .collect();
    let mut parts: [Vec<Vec<String>>; 3] = Default::default();
    let mut random = Random::new(5);
    for record in reader.records() {
        let record = record.unwrap();
        let draw = random.next();
        let part = if draw < 0.7 {
            0
        } else if draw < 0.8 {
            1
        } else {
            2
        };
        parts[part].push(kept.iter().map(|&at| record[at].to_owned()).collect());
    }
    let header: Vec<String> = kept.iter().map(|&at| header[at].to_owned()).collect();
    parts.map(|records| Table::new(header.clone(), records).unwrap())
}

#[test]
fn support2_is_learned_well_and_fast() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/hospital/admissions.csv");
    let [train_part, validation, test] = parts(&path);
    let base = Trainer {
        model: TrainerModel::Mlp,
        hidden: vec![128],
        epochs: 10,
        batch_size: 32,
        learning_rate: 0.001,
        schedule: Schedule::Constant,
        early_stopping: None,
        balanced: false,
        l2: 0.0,
        seed: 0,
    };
    let mut best = 0.0f64;
    for settings in [
        base.clone(),
        Trainer {
            model: TrainerModel::Logistic,
            ..base.clone()
        },
        Trainer {
            early_stopping: Some(2),
            l2: 0.0005,
            ..base.clone()
        },
        // As the example has it.
        Trainer {
            learning_rate: 0.003,
            schedule: Schedule::Linear,
            l2: 0.001,
            ..base
        },
    ] {
        let started = Instant::now();
        let trained = train(&settings, &train_part, Some(&validation), "hospdead").unwrap();
        let seconds = started.elapsed().as_secs_f64();
        let predictor = Predictor::load(&inspect(&trained.model, &trained.schema).unwrap()).unwrap();
        let score = |table: &Table| -> (Vec<f64>, Vec<bool>) {
            let probabilities = predictor
                .predict(table.encode(&trained.schema).unwrap().view())
                .unwrap();
            let outcomes = table.column("hospdead").unwrap().map(|text| text == "1").collect();
            (probabilities.into_iter().map(f64::from).collect(), outcomes)
        };
        let (p, y) = score(&test);
        let subjects: Vec<u64> = (0..p.len() as u64).collect();
        let input = JudgeInput {
            probabilities: &p,
            outcomes: &y,
            subjects: &subjects,
            threshold: 0.5,
            subgroups: &[],
            min_cell: 11,
        };
        let judged = judge(&input).unwrap();
        let (train_p, train_y) = score(&train_part);
        let train_subjects: Vec<u64> = (100_000..).take(train_p.len()).collect();
        let leak = membership(
            &metrics::losses(&train_p, &train_y),
            &train_subjects,
            &metrics::losses(&p, &y),
            &subjects,
        )
        .unwrap();
        let (refine_p, refine_y) = score(&validation);
        let refine_subjects: Vec<u64> = (0..refine_p.len() as u64).collect();
        let platt = fit_platt(&refine_p, &refine_y, &refine_subjects).unwrap();
        println!(
            "{:?} hidden {:?}, {} rows, {seconds:.2} s",
            settings.model,
            settings.hidden,
            train_part.rows()
        );
        println!(
            "  epochs {:?}",
            trained.history.iter().map(|e| (e.loss, e.validation_loss)).next_back()
        );
        for (name, figure) in judged.summary().figures {
            println!("  {name} {} ({} to {})", figure.value, figure.low, figure.high);
        }
        println!("  membership {:.3} to {:.3}, {platt:?}", leak.auc.low, leak.auc.high);
        best = best.max(judged.quality.0["roc_auc"].value);
        assert!(seconds < 10.0, "{seconds}");
        if settings.model == TrainerModel::Mlp {
            assert!(judged.quality.0["roc_auc"].value >= 0.80, "{:?}", judged.quality);
        }
    }
    println!("best roc_auc {best:.4}");
}
