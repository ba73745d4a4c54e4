//! A hospital, two clouds and a ward, to be changed one line at a time.

use tidegate_plan::{Plan, PlanInput, PlannedCrossing, Report, Step, plan};
use tidegate_types::column::Role;
use tidegate_types::files::{Catalog, Pipeline, Sites, read_catalog, read_pipeline, read_sites};
use tidegate_types::label::{Label, Level, Residency};
use tidegate_types::refusal::Refusal;
use tidegate_types::report::{ColumnReport, LabelReport};

pub(crate) const CATALOG: &str = r#"datasets:
  admissions:
    site: hospital
    source: admissions.csv
    subject: patient_id
    purposes: [quality-of-care]
    tags: [phi]
    residency: {only: [US]}
    columns:
      patient_id: {role: identifier}
      "*": {role: attribute}
"#;

pub(crate) const SITES: &str = r#"organisation: st-mary
sites:
  hospital:
    kind: private
    jurisdiction: US
    clearance: {level: restricted, tags: [phi]}
    store: "folder:"
    custody: "file:"
    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.08 USD/h}
    egress: {"*": 0.02 USD/GiB}
  cloud:
    kind: public
    jurisdiction: US
    clearance: {level: internal}
    store: "folder:"
    compute: {driver: process, cpus: 8, memory: 16 GiB, price: 0.10 USD/h, spot_price: 0.04 USD/h}
    egress: {"*": 0.09 USD/GiB}
    network: {setup: allow}
  abroad:
    kind: public
    jurisdiction: DE
    clearance: {level: internal}
    store: "folder:"
    compute: {driver: process, cpus: 8, memory: 16 GiB, price: 0.01 USD/h}
    egress: {"*": 0.01 USD/GiB}
  ward: {kind: edge, jurisdiction: US, clearance: {level: internal}, store: "folder:"}
"#;

pub(crate) const PIPELINE: &str = r#"name: readmission
purpose: quality-of-care
prepare:
  from: admissions
  profile: hipaa-safe-harbor
  target: readmitted
  disclosure: {to: internal, k: 5, on_violation: suppress}
train:
  resources: {cpus: 2+, use_spot: true}
  trainer: {model: mlp, epochs: 200}
refine: {calibrate: platt}
deploy: [hospital, ward]
budget: {cost: 5 USD, egress: 1 GiB}
deadline: 2h
"#;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) catalog: Catalog,
    pub(crate) sites: Sites,
    pub(crate) pipeline: Pipeline,
    pub(crate) labels: LabelReport,
    pub(crate) source_bytes: u64,
    pub(crate) until: Option<Step>,
}

impl World {
    /// The world with some texts replaced.
    pub(crate) fn with(changes: &[(&str, &str)]) -> Self {
        let mut files = [CATALOG, SITES, PIPELINE].map(str::to_owned);
        for (from, to) in changes {
            assert!(files.iter().any(|text| text.contains(from)), "no file holds {from}");
            files = files.map(|text| text.replacen(from, to, 1));
        }
        let [catalog, sites, pipeline] = &files;
        let pipeline = read_pipeline("tidegate.yaml", pipeline).unwrap();
        Self {
            catalog: read_catalog("catalog.yaml", catalog).unwrap(),
            sites: read_sites("sites.yaml", sites).unwrap(),
            labels: labels(pipeline.prepare.disclosure.to),
            pipeline,
            source_bytes: 4 << 20,
            until: None,
        }
    }

    pub(crate) fn input<'a>(&'a self, policies: &'a dyn Fn(&PlannedCrossing) -> Result<(), Refusal>) -> PlanInput<'a> {
        PlanInput {
            catalog: &self.catalog,
            sites: &self.sites,
            pipeline: &self.pipeline,
            labels: &self.labels,
            source_bytes: self.source_bytes,
            policies,
            until: self.until,
        }
    }

    /// The plan, which the checker has accepted, or the refusal.
    pub(crate) fn plan(&self) -> Result<(Plan, Report), Refusal> {
        let input = self.input(&|_| Ok(()));
        let planned = plan(&input)?;
        assert_eq!(tidegate_plan::check(&input, &planned.0), Ok(()));
        Ok(planned)
    }

    /// Where it trains, or the rule that leaves no place.
    pub(crate) fn place(&self) -> String {
        match self.plan() {
            Ok((plan, _)) => plan
                .tasks
                .iter()
                .find(|task| task.kind == Step::Train)
                .unwrap()
                .site
                .to_string(),
            Err(refusal) => format!("refused by {}", refusal.rule),
        }
    }
}

pub(crate) fn labels(to: Level) -> LabelReport {
    let label = |level, tags: &[&str]| Label {
        level,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        residency: Residency::only(["US"]),
    };
    let column = |name: &str, role, function: Option<&str>, before, why: &str| ColumnReport {
        name: name.to_owned(),
        reads: vec![format!("admissions.{name}")],
        label_before: label(before, &["phi"]),
        label: label(to, &[]),
        role,
        function: function.map(str::to_owned),
        why: why.to_owned(),
    };
    LabelReport {
        sql: "SELECT age_band(age, 10) AS age, lactate, readmitted FROM admissions".to_owned(),
        release: label(to, &[]),
        columns: vec![
            column(
                "age",
                Role::QuasiIdentifier,
                Some("age_band(age, 10)"),
                Level::Restricted,
                "ages in bands",
            ),
            column(
                "lactate",
                Role::Attribute,
                None,
                Level::Confidential,
                "an attribute, once k is measured",
            ),
            column("readmitted", Role::Attribute, None, Level::Confidential, "the target"),
        ],
        row_label: label(to, &[]),
        row_reads: Vec::new(),
        warnings: Vec::new(),
        refusals: Vec::new(),
    }
}
