//! Figures about a model: right, with honest intervals, and silent about few people.

use std::time::Instant;

use proptest::prelude::*;
use tidegate_bundle::Subgroup;
use tidegate_learn::metrics::{Confusion, METRICS, NOT_SHOWN};
use tidegate_learn::{JudgeError, JudgeInput, Judgement, judge};

use crate::patients::Random;

fn judge_rows(probabilities: &[f64], outcomes: &[bool], subjects: &[u64]) -> Judgement {
    judge(&JudgeInput {
        probabilities,
        outcomes,
        subjects,
        threshold: 0.5,
        subgroups: &[],
        min_cell: 11,
    })
    .unwrap()
}

/// Calibrated probabilities with outcomes drawn from them.
fn rows(count: usize, seed: u64) -> (Vec<f64>, Vec<bool>) {
    let mut random = Random::new(seed);
    (0..count)
        .map(|_| (random.next(), random.next()))
        .map(|(p, draw)| (p, draw < p))
        .unzip()
}

#[test]
fn figures_agree_with_a_computation_by_hand() {
    // Ranked: + + - + (tie with -) - : five pairs of six and a half of the 3 x 3.
    let probabilities = [0.9, 0.8, 0.7, 0.4, 0.4, 0.1];
    let outcomes = [true, true, false, true, false, false];
    let subjects = [1, 2, 3, 4, 5, 6];
    let copies = |values: &[f64]| values.repeat(20);
    let subjects: Vec<u64> = (0..20)
        .flat_map(|copy| subjects.map(|subject| copy * 10 + subject))
        .collect();
    let judged = judge_rows(&copies(&probabilities), &outcomes.repeat(20), &subjects);
    let figure = |name: &str| judged.quality.0[name].value;
    let close = |name: &str, expected: f64| {
        assert!(
            (figure(name) - expected).abs() < 1e-12,
            "{name}: {} and {expected}",
            figure(name)
        )
    };
    close("roc_auc", (3.0 + 3.0 + 1.5) / 9.0);
    close("pr_auc", (1.0 + 1.0 + 3.0 / 5.0) / 3.0);
    close("accuracy", 4.0 / 6.0);
    close("f1", 2.0 * 2.0 / (2.0 * 2.0 + 1.0 + 1.0));
    close("brier", (0.01 + 0.04 + 0.49 + 0.36 + 0.16 + 0.01) / 6.0);
    close(
        "log_loss",
        -(0.9f64.ln() + 0.8f64.ln() + 0.3f64.ln() + 0.4f64.ln() + 0.6f64.ln() + 0.9f64.ln()) / 6.0,
    );
    close("expected_calibration_error", (0.1 + 0.2 + 0.7 + 0.2 + 0.1) / 6.0);
    let expected = Confusion {
        true_positives: 40,
        false_positives: 20,
        true_negatives: 40,
        false_negatives: 20,
    };
    assert_eq!(judged.confusion, expected);
    assert_eq!((judged.rows, judged.subjects), (120, 120));
}

#[test]
fn intervals_are_about_subjects() {
    let (p, y) = rows(400, 1);
    let alone: Vec<u64> = (0..400).collect();
    let width = |judged: &Judgement| judged.quality.0["roc_auc"].high - judged.quality.0["roc_auc"].low;
    let once = judge_rows(&p, &y, &alone);
    // The same people four times over: four times the rows and not a bit more knowledge.
    let repeated = judge_rows(&p.repeat(4), &y.repeat(4), &alone.repeat(4));
    assert!((width(&once) - width(&repeated)).abs() < 1e-12);
    assert_eq!((repeated.rows, repeated.subjects), (1_600, 400));
    let others: Vec<u64> = (0..1_600).collect();
    assert!(width(&judge_rows(&p.repeat(4), &y.repeat(4), &others)) < 0.6 * width(&once));
}

#[test]
fn an_interval_covers_the_truth_about_as_often_as_it_says() {
    // For a uniform p and outcomes drawn from it, the true Brier score is 1/6 and the true ROC-AUC 5/6.
    let covered = |name: &str, truth: f64| {
        let hit = |seed: u64| {
            let (p, y) = rows(250, 1_000 + seed);
            let figure = judge_rows(&p, &y, &(0..250).collect::<Vec<_>>()).quality.0[name];
            usize::from(figure.low <= truth && truth <= figure.high)
        };
        (0..200).map(hit).sum::<usize>()
    };
    for (name, truth) in [("brier", 1.0 / 6.0), ("roc_auc", 5.0 / 6.0)] {
        let hits = covered(name, truth);
        assert!((178..=199).contains(&hits), "{name}: {hits} of 200");
    }
}

#[test]
fn two_thousand_rows_take_less_than_a_second() {
    let (p, y) = rows(2_000, 2);
    let subjects: Vec<u64> = (0..2_000).map(|row| row / 2).collect();
    let values = (0..2_000)
        .map(|row| Some(["a", "b", "c"][row % 3].to_owned()))
        .collect();
    let subgroups = [("ward".to_owned(), values)];
    let input = JudgeInput {
        probabilities: &p,
        outcomes: &y,
        subjects: &subjects,
        threshold: 0.5,
        subgroups: &subgroups,
        min_cell: 11,
    };
    let started = Instant::now();
    let judged = judge(&input).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    println!("judged 2,000 rows and three groups in {seconds:.3} s");
    assert!(seconds < 1.0, "{seconds}");
    assert_eq!(judge(&input).unwrap(), judged, "the same rows give the same numbers");
}

/// Rows with one variable, whose groups have these sizes; every second row has the outcome.
fn grouped(sizes: &[(Option<&str>, usize)]) -> Judgement {
    let values: Vec<Option<String>> = sizes
        .iter()
        .flat_map(|(level, size)| vec![level.map(str::to_owned); *size])
        .collect();
    let outcomes: Vec<bool> = (0..values.len()).map(|row| row % 2 == 0).collect();
    let probabilities: Vec<f64> = (0..values.len()).map(|row| (row * 37 % 100) as f64 / 100.0).collect();
    let subjects: Vec<u64> = (0..values.len() as u64).collect();
    let subgroups = [("race".to_owned(), values)];
    let input = JudgeInput {
        probabilities: &probabilities,
        outcomes: &outcomes,
        subjects: &subjects,
        threshold: 0.5,
        subgroups: &subgroups,
        min_cell: 11,
    };
    judge(&input).unwrap()
}

#[test]
fn small_groups_are_neither_shown_nor_named_nor_left_to_subtraction() {
    let judged = grouped(&[
        (Some("common"), 200),
        (Some("fewer"), 60),
        (Some("one-patient"), 5),
        (None, 90),
    ]);
    let shown: Vec<(&str, bool)> = judged
        .subgroups
        .iter()
        .map(|group: &Subgroup| (group.level.as_str(), group.quality.is_some()))
        .collect();
    assert_eq!(
        shown,
        [("(missing)", true), ("common", true), (NOT_SHOWN, false)],
        "`fewer` hides what is left of it"
    );
    let summary = judged.summary();
    assert!(!serde_json::to_string(&summary).unwrap().contains("one-patient"));
    assert!(summary.subgroups["race = (not shown)"].is_empty());
    assert_eq!(summary.subgroups["race = common"].len(), METRICS.len());
    assert_eq!((summary.rows, summary.subjects), (355, 355));
}

#[test]
fn rounded_figures_keep_the_interval_around_the_figure() {
    let judged = grouped(&[(Some("all"), 300)]);
    for (name, figure) in judged.summary().figures {
        let exact = judged.quality.0[&name];
        assert!(
            figure.low <= exact.low && figure.high >= exact.high && exact.high + 0.001 > figure.high,
            "{name}"
        );
        for number in [figure.value, figure.low, figure.high] {
            assert!(
                (number * 1_000.0 - (number * 1_000.0).round()).abs() < 1e-9,
                "{name}: {number}"
            );
        }
    }
}

#[test]
fn a_test_part_of_few_people_says_nothing_outside() {
    let judged = judge_rows(&[0.9, 0.2, 0.8, 0.3], &[true, false, false, true], &[1, 2, 3, 4]);
    assert!(judged.quality.0.contains_key("brier"), "at home it does");
    assert_eq!(judged.summary(), Default::default());
}

#[test]
fn a_figure_that_is_not_defined_is_absent() {
    let p = [0.1, 0.9, 0.5];
    let judged = judge_rows(&p.repeat(10), &[true; 30], &(0..30).collect::<Vec<_>>());
    assert!(!judged.quality.0.contains_key("roc_auc") && judged.quality.0.contains_key("log_loss"));
    let certain = judge_rows(&[0.0, 1.0], &[true, false], &[1, 2]);
    let loss = certain.quality.0["log_loss"];
    assert!((loss.value - 16.118).abs() < 0.001 && loss.high.is_finite(), "{loss:?}");
}

#[test]
fn rows_that_cannot_be_judged_are_errors() {
    let base = JudgeInput {
        probabilities: &[0.1, 0.2],
        outcomes: &[true, false],
        subjects: &[1, 2],
        threshold: 0.5,
        subgroups: &[],
        min_cell: 11,
    };
    let error = |input: JudgeInput<'_>| judge(&input).unwrap_err();
    assert!(matches!(
        error(JudgeInput {
            outcomes: &[true],
            ..base
        }),
        JudgeError::Lengths { what: "outcomes", .. }
    ));
    assert!(matches!(
        error(JudgeInput { subjects: &[1], ..base }),
        JudgeError::Lengths { what: "subjects", .. }
    ));
    let short = [("sex".to_owned(), vec![None])];
    assert!(matches!(
        error(JudgeInput {
            subgroups: &short,
            ..base
        }),
        JudgeError::Lengths {
            what: "subgroup values",
            ..
        }
    ));
    assert_eq!(
        error(JudgeInput {
            probabilities: &[0.1, f64::NAN],
            ..base
        }),
        JudgeError::NotProbability(1)
    );
    assert_eq!(
        error(JudgeInput {
            probabilities: &[1.1, 0.5],
            ..base
        }),
        JudgeError::NotProbability(0)
    );
    assert_eq!(
        error(JudgeInput {
            subjects: &[3, 3],
            ..base
        }),
        JudgeError::TooFew(1)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn figures_stay_in_bounds_and_do_not_depend_on_the_order_of_rows(
        rows in proptest::collection::vec((0..=20u8, any::<bool>(), 0..30u64), 2..80),
    ) {
        let split = |rows: &[(u8, bool, u64)]| -> (Vec<f64>, Vec<bool>, Vec<u64>) {
            let p = rows.iter().map(|row| f64::from(row.0) / 20.0).collect();
            (p, rows.iter().map(|row| row.1).collect(), rows.iter().map(|row| row.2).collect())
        };
        let (p, y, s) = split(&rows);
        let input = JudgeInput { probabilities: &p, outcomes: &y, subjects: &s, threshold: 0.5, subgroups: &[], min_cell: 2 };
        if let Ok(judged) = judge(&input) {
            for (name, figure) in &judged.quality.0 {
                prop_assert!(figure.low <= figure.value && figure.value <= figure.high, "{name} {figure:?}");
                prop_assert!(figure.low >= 0.0 && (name == "log_loss" || figure.high <= 1.0 + 1e-12), "{name} {figure:?}");
            }
            let mut turned = rows.clone();
            turned.reverse();
            let (p, y, s) = split(&turned);
            let again = judge(&JudgeInput { probabilities: &p, outcomes: &y, subjects: &s, ..input }).unwrap();
            for (name, figure) in &judged.quality.0 {
                prop_assert!(again.quality.0.get(name).is_some_and(|other| (other.value - figure.value).abs() < 1e-9), "{name}");
            }
        }
    }
}
