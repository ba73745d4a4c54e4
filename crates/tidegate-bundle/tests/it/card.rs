//! The model card reads well and hides what must be hidden.

use std::collections::BTreeMap;

use tidegate_bundle::{Interval, ModelCard, Quality, Subgroup};

fn quality(value: f64) -> Quality {
    let interval = Interval {
        value,
        low: value - 0.021_234,
        high: value + 0.02,
    };
    Quality(BTreeMap::from([
        ("roc_auc".to_owned(), interval),
        (
            "brier".to_owned(),
            Interval {
                value: 0.15,
                low: 0.14,
                high: 0.16,
            },
        ),
    ]))
    .rounded(3)
}

#[test]
fn card() {
    let group = |level: &str, rows: Option<u64>| Subgroup {
        variable: "race".into(),
        level: level.into(),
        rows,
        quality: rows.map(|_| quality(0.81)),
    };
    let card = ModelCard {
        name: "readmission".into(),
        version: 3,
        target: "hospdead".into(),
        intended_use: vec!["Quality of care; not for decisions about single patients.".into()],
        data: vec!["`admissions`, 5,463 rows for training.".into()],
        deidentification: vec![
            "`age` in bands of ten years, top-coded at 90.".into(),
            "`name` | `note`\nleft out <b>".into(),
        ],
        quality: quality(0.824_49),
        refined: Some(quality(0.824_49)),
        threshold: 0.31,
        subgroups: vec![group("white", Some(1440)), group("other|x", None)],
        min_cell: 11,
        risk: vec!["Membership inference by loss: AUC 0.51.".into()],
        limits: vec![],
    };
    insta::assert_snapshot!(card.to_markdown());
}
