//! The three files held against each other.

use crate::samples::{spoiled, verdict};

/// One thing made wrong, and what the user reads. Every row must be refused for its own reason only.
#[test]
fn what_does_not_fit_is_named_with_its_place() {
    let table = [
        // The catalog.
        ("site: hospital", "site: hospitl"),
        ("site: hospital", "site: cloud"),
        ("source: admissions.csv", "source: https://example.org/admissions.csv"),
        ("subject: patient_id", "subject: patientid"),
        ("subject: patient_id", "subject: age"),
        ("    subject: patient_id\n", ""),
        ("    tags: [phi]\n", "    public: true\n"),
        ("tags: [phi]\n", "tags: [phi, pci]\n"),
        ("only: [US]", "only: [DE]"),
        ("only: [US]", "only: []"),
        ("least_k: 5", "least_k: 0"),
        ("[quality-of-care]", "[]"),
        ("csv: {null", "csv: {delimiter: \"\\\"\", null"),
        // The sites.
        ("organisation: st-mary", "organisation: \" \""),
        ("    custody: \"file:\"\n", ""),
        ("custody: \"file:\"", "custody: \"hsm:\""),
        ("store: \"folder:\"", "store: \"ftp:\""),
        (
            "clearance: {level: internal}, store: \"folder:\"",
            "clearance: {level: internal}, store: \"folder:\", custody: \"file:\"",
        ),
        ("driver: process", "driver: proces"),
        ("driver: process", "driver: ssh"),
        ("driver: process", "driver: ssh, hosts: [gpu-1]"),
        ("driver: process", "driver: ec2"),
        (
            "driver: process",
            "driver: ec2, machine: {region: eu-central-1, image: ami-1}",
        ),
        (
            "driver: process",
            "driver: vertex, machine: {image: trainer, type: n1-standard-8}",
        ),
        ("driver: process", "driver: azureml, machine: {image: trainer}"),
        (
            "driver: process",
            "driver: process, machine: {region: eu-central-1, image: ami-1}",
        ),
        (
            "driver: process",
            "driver: ec2, hosts: [gpu-1], machine: {region: eu-central-1, image: ami-1, type: m7i.large}",
        ),
        (
            "driver: process",
            "driver: process, hosts: [gpu-1], ssh_config: config, folder: jobs",
        ),
        (
            "compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.08 USD/h}",
            "network: {nodes: allow}\n    compute: {driver: azureml, machine: {image: trainer, project: ml}, cpus: 2, memory: 2 GiB}",
        ),
        (
            "cpus: 2, memory: 2 GiB, price: 0.08",
            "cpus: 0, memory: 1 MiB, price: 0.08",
        ),
        (
            "cpus: 2, memory: 2 GiB, price: 0.08",
            "cpus: 2, memory: 2 GiB, accelerators: \"T4:0\", price: 0.08",
        ),
        (
            "driver: process",
            "driver: vertex, accelerators: T4, machine: {project: mary, region: europe-west4, image: a/b:1, type: n1-standard-8}",
        ),
        (
            "compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.08 USD/h}",
            "transfer: {copy_from: [clod]}\n    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.08 USD/h}",
        ),
        (
            "compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.08 USD/h}",
            "transfer: {copy_from: [ward]}\n    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.08 USD/h}",
        ),
        ("\"*\": 0.09", "wards: 0.09"),
        ("jurisdiction: US", "jurisdiction: \"\""),
        // The pipeline.
        ("from: admissions", "from: admission"),
        ("target: readmitted", "target: readmited"),
        ("target: readmitted", "target: notes"),
        ("target: readmitted", "target: readmitted\n  drop: [ages, readmitted]"),
        (
            "target: readmitted",
            "target: readmitted\n  drop: [age]\n  sql: SELECT 1",
        ),
        (
            "target: readmitted",
            "target: readmitted\n  sql: SELECT 1\n  sql_file: a.sql",
        ),
        ("test: 0.2", "test: 0.8"),
        ("test: 0.2", "test: 0"),
        ("test: 0.2", "test: .nan"),
        ("refine: 0.1", "refine: 0.0"),
        ("max_suppressed: 0.05", "max_suppressed: 5"),
        ("infra: cloud", "infra: clout"),
        ("infra: cloud", "infra: ward"),
        ("cpus: 2+", "cpus: two"),
        ("cpus: 2+", "accelerators: two T4"),
        ("trainer: {", "num_nodes: 2\n  trainer: {"),
        ("trainer: {", "num_nodes: 65\n  trainer: {"),
        ("trainer: {", "run: python train.py\n  trainer: {"),
        (
            "  trainer: {model: mlp, hidden: [128], epochs: 10, batch_size: 32}\n",
            "",
        ),
        (
            "trainer: {model: mlp, hidden: [128], epochs: 10, batch_size: 32}",
            "run: python train.py",
        ),
        (
            "trainer: {model: mlp, hidden: [128], epochs: 10, batch_size: 32}",
            "run: python train.py\n  code: [train.py, ../secret, train.py]\n  envs: {LD_PRELOAD: x, A-B: y}",
        ),
        ("trainer: {", "code: [train.py]\n  setup: pip install x\n  trainer: {"),
        (
            "epochs: 10, batch_size: 32",
            "epochs: 0, batch_size: 0, learning_rate: .inf, l2: -1.0, hidden: [0]",
        ),
        (
            "epochs: 10, batch_size: 32",
            "batch_size: 65537, learning_rate: 10.5, l2: 1000001.0",
        ),
        ("hidden: [128]", "hidden: []"),
        ("roc_auc: \">= 0.75\"", "roc-auc: \">= 0.75\""),
        ("roc_auc: \">= 0.75\"", "roc_auc: \"0.75\""),
        ("by: [age]", "by: [\"\"]"),
        ("[hospital, cloud, ward]", "[hospital, cloud, wards]"),
        ("[hospital, cloud, ward]", "[wards]"),
        ("min_cell: 11", "min_cell: 0"),
        ("deadline: 2h", "deadline: 0s"),
        // Loosening what the owner wrote.
        ("k: 5, on", "k: 4, on"),
        ("k: 5, on", "k: 5, l: 1, on"),
        ("purpose: quality-of-care\nprepare", "purpose: marketing\nprepare"),
        ("profile: hipaa-safe-harbor", "profile: none"),
        ("release_model: {to: internal", "release_model: {to: public"),
        ("release_model: {to: internal", "release_model: {to: confidential"),
        ("min_cell: 11", "min_cell: 10"),
        ("by: [age]", "by: [patient_id]"),
        ("by: [age]", "by: [PATIENT_ID]"),
        ("by: [age]", "by: [notes]"),
        ("by: [age]", "by: [undescribed]"),
        ("by: [age]", "by: [\"age_band(patient_id, 10)\", \"age || patient_id\"]"),
        ("membership_auc: \"<= 0.60\"", "membership_auc: \"<= 0.76\""),
        ("membership_auc: \"<= 0.60\"", "membership_auc: \">= 0.60\""),
        (
            "membership_auc: \"<= 0.60\"",
            "membership_tpr_at_1_percent_fpr: \">= 0.01\"",
        ),
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

#[test]
fn tightening_is_always_allowed() {
    for (from, to) in [
        ("k: 5, on", "k: 50, l: 3, on"),
        ("to: internal, k: 5, ", "to: internal, "),
        ("max_suppressed: 0.05", "max_suppressed: 0"),
        ("min_cell: 11", "min_cell: 30"),
        ("by: [age]", "by: [readmitted, \"age_band(age, 10)\", \"Age\"]"),
        ("membership_auc: \"<= 0.60\"", "membership_auc: \"<= 0.75\""),
        (
            "membership_auc: \"<= 0.60\"",
            "membership_tpr_at_1_percent_fpr: \"<= 0.05\"",
        ),
        ("model: mlp, hidden: [128]", "model: logistic, hidden: []"),
    ] {
        assert_eq!(spoiled(from, to), [""; 0], "{to}");
    }
}

#[test]
fn a_query_of_ones_own_may_compute_the_target() {
    assert_eq!(
        spoiled(
            "target: readmitted",
            "target: late\n  sql: SELECT age > 60 AS late FROM admissions"
        ),
        [""; 0]
    );
}

#[test]
fn a_public_dataset_needs_no_subject() {
    let catalog = "datasets:\n  iris: {site: hospital, source: iris.csv, purposes: [demo], public: true, columns: {\"*\": {role: attribute}}}\n";
    let pipeline = "name: iris\npurpose: demo\nprepare: {from: iris, target: setosa, disclosure: {to: public}}\ntrain: {code: [t.sh], run: sh t.sh}\n";
    assert_eq!(verdict(catalog, crate::samples::SITES, pipeline), [""; 0]);
}
