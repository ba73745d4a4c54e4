//! Reading: strict, bounded, and with errors that point at the place.

use proptest::prelude::*;
use tidegate_types::files::{read_catalog, read_pipeline, read_sites};
use tidegate_types::label::Residency;

use crate::samples::{CATALOG, PIPELINE, SITES, spoiled, verdict};

#[test]
fn the_samples_are_accepted() {
    assert_eq!(verdict(CATALOG, SITES, PIPELINE), [""; 0]);
}

#[test]
fn what_is_written_is_what_is_read() {
    let catalog = read_catalog("catalog.yaml", CATALOG).unwrap();
    let admissions = catalog.datasets.values().next().unwrap();
    assert_eq!(admissions.csv.null, ["".to_owned(), "NA".to_owned()].into());
    assert_eq!(admissions.residency, Residency::only(["US"]));
    assert!(admissions.column("nobody").is_none(), "no default was written");
    let sites = read_sites("sites.yaml", SITES).unwrap();
    let cloud = &sites.sites["cloud".parse().as_ref().unwrap()];
    assert_eq!(cloud.egress["*"].to_string(), "0.09 USD/GiB");
    let pipeline = read_pipeline("tidegate.yaml", PIPELINE).unwrap();
    assert_eq!(pipeline.deadline.unwrap().0, 7200);
    assert_eq!(pipeline.train.resources.cpus.as_deref(), Some("2+"));
}

/// One line of a file spoiled, and what the user reads.
#[test]
fn every_error_points_at_file_line_and_column() {
    let table = [
        ("train:\n", "trian:\n"),
        ("  target: readmitted\n", "  taget: readmitted\n"),
        ("  target: readmitted\n", ""),
        ("epochs: 10", "epoch: 10"),
        ("epochs: 10", "epochs: ten"),
        ("epochs: 10", "epochs: -3"),
        ("model: mlp", "model: mpl"),
        ("profile: hipaa-safe-harbor", "profile: hippa-safe-harbor"),
        ("to: internal, k: 5", "to: secret, k: 5"),
        ("cost: 5 USD", "cost: 5 EUR"),
        ("deadline: 2h", "deadline: soon"),
        ("deploy: [hospital", "deploy: [Hospital!"),
        ("deploy: [hospital, cloud, ward]", "deploy: hospital"),
        ("use_spot: true", "use_spot: yes"),
        ("purpose: quality-of-care\nprepare", "purpose:\nprepare"),
        ("refine: {calibrate: platt}", "refine: platt"),
        ("role: text", "role: txt"),
        ("  admissions:\n", "  Admissions:\n"),
        ("organisation: st-mary", "organization: st-mary"),
        ("memory: 2 GiB, price: 0.08 USD/h", "memory: 2 GB, price: 0.08 USD/h"),
        ("level: restricted", "level: top"),
    ];
    let said: Vec<String> = table
        .iter()
        .map(|(from, to)| {
            let said = spoiled(from, to);
            assert!(!said.is_empty(), "{from} -> {to} was accepted");
            format!("# {from:?} -> {to:?}\n{}\n", said.join("\n"))
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"));
}

/// Files that are no files of ours, or attack the reader.
#[test]
fn hostile_files_are_refused_quickly() {
    let deep = format!("a: {}", "[".repeat(3000));
    let deep_block: String = (0..300).map(|depth| format!("{:depth$}a:\n", "")).collect();
    let laughs = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b]\n";
    let large = format!("# {}\n{PIPELINE}", "x".repeat(1 << 20));
    let many = format!("a: [{}]", "1,".repeat(60_000));
    let table: [(&str, &str); 15] = [
        ("empty", ""),
        ("comment only", "# nothing\n"),
        ("not a mapping", "- a\n- b\n"),
        ("a word", "hello"),
        ("alias bomb", laughs),
        ("anchor", "name: &n readmission\n"),
        ("tag", "name: !!str readmission\n"),
        ("merge key", "<<: {name: x}\n"),
        ("two documents", "name: a\n---\nname: b\n"),
        ("twice", "name: a\npurpose: b\nname: c\n"),
        ("key is a list", "? [a, b]\n: c\n"),
        ("deep", &deep),
        ("deep block", &deep_block),
        ("large", &large),
        ("many", &many),
    ];
    let said: Vec<String> = table
        .iter()
        .map(|(name, text)| format!("# {name}\n{}\n", read_pipeline("tidegate.yaml", text).unwrap_err()))
        .collect();
    insta::assert_snapshot!(said.join("\n"));
    for broken in [
        "a: [",
        "a: 'x",
        "\ta: 1",
        "a: b: c",
        "%YAML 9.9\n---\na: 1",
        "a: \u{7}\u{1b}[31m",
        "\0",
    ] {
        let error = read_pipeline("tidegate.yaml", broken).unwrap_err().to_string();
        assert!(!error.contains(['\u{1b}', '\u{7}', '\0']), "{error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_text_breaks_the_reader(text in any::<String>()) {
        prop_assert!(read_pipeline("tidegate.yaml", &text).is_err());
    }

    /// A file cut or changed anywhere is read or refused with a place inside it, and never breaks it.
    #[test]
    fn a_damaged_file_is_refused_at_a_place_inside_it(at in 0..PIPELINE.len(), insert in "[ -~\n\t]{0,4}", remove in 0..6_usize) {
        let mut text = PIPELINE.to_owned();
        let end = (at + remove).min(text.len());
        text.replace_range(at..end, &insert);
        if let Err(error) = read_pipeline("tidegate.yaml", &text) {
            let lines = u64::try_from(text.lines().count()).unwrap();
            prop_assert!((1..=lines + 1).contains(&error.line) && error.column >= 1, "{error}");
        }
    }
}
