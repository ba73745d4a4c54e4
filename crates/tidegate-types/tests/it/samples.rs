//! Three files that fit each other, to be spoiled one line at a time.

use tidegate_types::files::{
    Catalog, FileError, Pipeline, Sites, SourceText, Texts, check, check_refusals, read_catalog, read_pipeline,
    read_sites,
};

/// A catalog.
pub(crate) const CATALOG: &str = r#"datasets:
  admissions:
    site: hospital
    source: admissions.csv
    subject: patient_id
    purposes: [quality-of-care]
    least_k: 5
    least_l: 2
    tags: [phi]
    residency: {only: [US]}
    csv: {null: ["", NA]}
    columns:
      patient_id: {role: identifier, kind: record_number}
      age: {role: quasi_identifier, kind: age}
      readmitted: {role: attribute}
      notes: {role: text}
"#;

/// Sites.
pub(crate) const SITES: &str = r#"organisation: st-mary
sites:
  hospital:
    kind: private
    jurisdiction: US
    clearance: {level: restricted, tags: [phi]}
    store: "folder:"
    custody: "file:"
    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.08 USD/h}
  cloud:
    kind: public
    jurisdiction: US
    clearance: {level: internal}
    store: "folder:"
    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.10 USD/h, spot_price: 0.04 USD/h}
    egress: {"*": 0.09 USD/GiB}
    network: {setup: allow, run: deny}
  ward: {kind: edge, jurisdiction: US, clearance: {level: internal}, store: "folder:"}
"#;

/// A pipeline.
pub(crate) const PIPELINE: &str = r#"name: readmission
purpose: quality-of-care
prepare:
  from: admissions
  profile: hipaa-safe-harbor
  target: readmitted
  split: {validation: 0.1, refine: 0.1, test: 0.2}
  disclosure: {to: internal, k: 5, on_violation: suppress, max_suppressed: 0.05}
train:
  resources: {infra: cloud, cpus: 2+, use_spot: true}
  trainer: {model: mlp, hidden: [128], epochs: 10, batch_size: 32}
evaluate: {by: [age], gates: {roc_auc: ">= 0.75", membership_auc: "<= 0.60"}}
refine: {calibrate: platt}
release_model: {to: internal, min_cell: 11}
deploy: [hospital, cloud, ward]
budget: {cost: 5 USD, egress: 1 GiB}
deadline: 2h
"#;

/// The three files, or what is wrong with them one by one.
pub(crate) fn read_all(
    catalog: &str,
    sites: &str,
    pipeline: &str,
) -> Result<(Catalog, Sites, Pipeline), Vec<FileError>> {
    match (
        read_catalog("catalog.yaml", catalog),
        read_sites("sites.yaml", sites),
        read_pipeline("tidegate.yaml", pipeline),
    ) {
        (Ok(catalog), Ok(sites), Ok(pipeline)) => Ok((catalog, sites, pipeline)),
        (catalog, sites, pipeline) => {
            let errors = [catalog.err(), sites.err(), pipeline.err()];
            Err(errors.into_iter().flatten().collect())
        }
    }
}

/// Everything that is said about three files, each message as a user sees it.
pub(crate) fn verdict(catalog: &str, sites: &str, pipeline: &str) -> Vec<String> {
    let texts = Texts {
        catalog: SourceText {
            file: "catalog.yaml",
            text: catalog,
        },
        sites: SourceText {
            file: "sites.yaml",
            text: sites,
        },
        pipeline: SourceText {
            file: "tidegate.yaml",
            text: pipeline,
        },
    };
    let (catalog, sites, pipeline) = match read_all(catalog, sites, pipeline) {
        Ok(files) => files,
        Err(errors) => return errors.into_iter().map(|error| error.to_string()).collect(),
    };
    let mut said: Vec<String> = match check(&catalog, &sites, &pipeline, &texts) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| error.to_string()).collect(),
    };
    said.extend(
        check_refusals(&catalog, &sites, &pipeline)
            .iter()
            .map(ToString::to_string),
    );
    said
}

/// The verdict when one text of one of the files was replaced by another.
pub(crate) fn spoiled(from: &str, to: &str) -> Vec<String> {
    let files = [CATALOG, SITES, PIPELINE];
    assert!(files.iter().any(|text| text.contains(from)), "no file holds {from}");
    let [catalog, sites, pipeline] = files.map(|text| text.replacen(from, to, 1));
    verdict(&catalog, &sites, &pipeline)
}
