//! `tidegate.yaml` against the other two.

use super::Findings;
use crate::column::Role;
use crate::files::catalog::Dataset;
use crate::files::pipeline::{Prepare, Train, Trainer};
use crate::files::rules::{
    CpuRequest, GATE_METRICS, GateCondition, MAX_NODES, environment_name_fault, read_accelerators, trainer_faults,
};
use crate::files::source::suggest;
use crate::files::{Catalog, Pipeline, Sites};
use crate::ids::SiteName;

pub(super) fn check(catalog: &Catalog, sites: &Sites, pipeline: &Pipeline, findings: &mut Findings<'_>) {
    let from = &pipeline.prepare.from;
    let dataset = catalog.datasets.get(from);
    if dataset.is_none() {
        let help = suggest(
            from.as_str(),
            "known datasets",
            catalog.datasets.keys().map(|name| name.as_str()),
        );
        findings.value(
            &["prepare", "from"],
            format!("dataset `{from}` is not in the catalog"),
            help,
        );
    }
    check_prepare(&pipeline.prepare, dataset, findings);
    check_split(pipeline, findings);
    check_disclosure(&pipeline.prepare, findings);
    check_train(&pipeline.train, sites, findings);
    check_evaluate(pipeline, findings);
    for (index, site) in pipeline.deploy.iter().enumerate() {
        // The set is sorted and the list is not: the key is the honest place when there are several.
        let at = if pipeline.deploy.len() == 1 {
            index.to_string()
        } else {
            String::new()
        };
        check_site_exists(site, sites, &["deploy", &at], findings);
    }
    if pipeline.release_model.min_cell == 0 {
        findings.value(&["release_model", "min_cell"], "`min_cell` is at least 1", "");
    }
    if pipeline.deadline.is_some_and(|deadline| deadline.0 == 0) {
        findings.value(
            &["deadline"],
            "the deadline is over before the run begins",
            "write for example `2h`",
        );
    }
    for (key, path) in [("catalog", &pipeline.catalog), ("sites", &pipeline.sites)] {
        if path.trim().is_empty() {
            findings.value(&[key], "no file is named", "");
        }
    }
}

fn check_site_exists(site: &SiteName, sites: &Sites, path: &[&str], findings: &mut Findings<'_>) -> bool {
    let exists = sites.sites.contains_key(site);
    if !exists {
        let help = suggest(
            site.as_str(),
            "known sites",
            sites.sites.keys().map(|name| name.as_str()),
        );
        findings.value(path, format!("site `{site}` is not in the sites file"), help);
    }
    exists
}

fn check_prepare(prepare: &Prepare, dataset: Option<&Dataset>, findings: &mut Findings<'_>) {
    if prepare.sql.is_some() && prepare.sql_file.is_some() {
        findings.key(
            &["prepare", "sql_file"],
            "`sql` and `sql_file` are both written",
            "remove one of them",
        );
    }
    let own_sql = prepare.sql.is_some() || prepare.sql_file.is_some();
    if own_sql && !prepare.drop.is_empty() {
        let help = "leave those columns out of the query, and remove `drop`";
        findings.key(
            &["prepare", "drop"],
            "`drop` is for the query that the profile writes",
            help,
        );
    }
    if prepare.target.trim().is_empty() {
        findings.value(&["prepare", "target"], "no target is named", "");
        return;
    }
    // A query of one's own may compute the target, and only the query knows its columns.
    let Some(dataset) = dataset.filter(|_| !own_sql) else {
        return;
    };
    let target = &prepare.target;
    let described = || dataset.columns.keys().map(String::as_str).filter(|name| *name != "*");
    match dataset.column(target) {
        _ if target == "*" => findings.value(&["prepare", "target"], "`*` is not a column", ""),
        None => {
            let message = format!("column `{target}` is not described in the catalog");
            findings.value(
                &["prepare", "target"],
                message,
                suggest(target, "described columns", described()),
            );
        }
        Some(column) if matches!(column.role, Role::Identifier | Role::Text) => {
            let message = format!("column `{target}` cannot be learned: the catalog calls it an identifier or text");
            findings.value(
                &["prepare", "target"],
                message,
                "choose a column with the values 0 and 1",
            );
        }
        Some(_) => {}
    }
    if prepare.drop.contains(target) {
        findings.value(
            &["prepare", "drop"],
            format!("the target `{target}` is among the dropped columns"),
            "",
        );
    }
    for column in prepare.drop.iter().filter(|name| dataset.column(name).is_none()) {
        let message = format!("column `{column}` is not described in the catalog");
        findings.value(
            &["prepare", "drop"],
            message,
            suggest(column, "described columns", described()),
        );
    }
}

fn check_split(pipeline: &Pipeline, findings: &mut Findings<'_>) {
    let split = pipeline.prepare.split;
    let mut sum = 0.0;
    for (key, share, needed) in [
        ("validation", split.validation, None),
        ("refine", split.refine, pipeline.refine.as_ref().map(|_| "calibration")),
        ("test", split.test, Some("every reported figure")),
    ] {
        let path = ["prepare", "split", key];
        if !(0.0..1.0).contains(&share) {
            findings.value(
                &path,
                format!("`{key}` is a share from 0 to below 1"),
                "write for example 0.1",
            );
        } else if let Some(what) = needed.filter(|_| share == 0.0) {
            findings.value(
                &path,
                format!("{what} needs a part of its own"),
                "write for example 0.1",
            );
        }
        sum += share;
    }
    // What is left is the training part; less than a hundredth is a mistake of arithmetic.
    if sum > 0.99 {
        let message = "the shares add up to 1 or more, and nothing is left to train on";
        findings.key(&["prepare", "split"], message, "lower one of them");
    }
}

fn check_disclosure(prepare: &Prepare, findings: &mut Findings<'_>) {
    let disclosure = &prepare.disclosure;
    for (key, number) in [("k", disclosure.k), ("l", disclosure.l)] {
        if number == Some(0) {
            findings.value(&["prepare", "disclosure", key], format!("`{key}` is at least 1"), "");
        }
    }
    if !(0.0..=1.0).contains(&disclosure.max_suppressed) {
        let path = ["prepare", "disclosure", "max_suppressed"];
        findings.value(
            &path,
            "`max_suppressed` is a share from 0 to 1",
            "write for example 0.05",
        );
    }
}

fn check_train(train: &Train, sites: &Sites, findings: &mut Findings<'_>) {
    match (&train.trainer, &train.run) {
        (None, None) => {
            let help = "write `trainer: {model: mlp}` for the built-in trainer, or `code:` and `run:` for your own";
            findings.key(&["train"], "nothing says how to train", help);
        }
        (Some(_), Some(_)) => {
            findings.key(
                &["train", "run"],
                "`trainer` and `run` are both written",
                "remove one of them",
            );
        }
        (Some(trainer), None) => {
            check_trainer(trainer, findings);
            let own = [
                ("code", !train.code.is_empty()),
                ("setup", train.setup.is_some()),
                ("envs", !train.envs.is_empty()),
            ];
            for (key, _) in own.into_iter().filter(|(_, written)| *written) {
                let message = format!("`{key}` is for a command of your own, and the built-in trainer is chosen");
                findings.key(
                    &["train", key],
                    message,
                    format!("remove `{key}`, or remove `trainer` and write `run`"),
                );
            }
        }
        (None, Some(run)) => {
            if run.trim().is_empty() {
                findings.value(&["train", "run"], "the command is empty", "");
            }
            if train.code.is_empty() {
                let help =
                    "list the command's files, such as `code: [train.py]`; no folder is sent because it is there";
                findings.key(&["train", "code"], "`run` needs `code`", help);
            }
        }
    }
    for (index, file) in train.code.iter().enumerate() {
        if !is_plain_relative(file) || train.code.iter().take(index).any(|earlier| earlier == file) {
            let help = "name each file once, relative to this file, with `/` and without `.` or `..`";
            let message = format!("`{file}` cannot be listed as code");
            findings.value(&["train", "code", &index.to_string()], message, help);
        }
    }
    for (name, value) in &train.envs {
        if let Some(help) = environment_name_fault(name) {
            findings.key(
                &["train", "envs", name],
                format!("`{name}` cannot name a variable of the job"),
                help,
            );
        } else if value.contains('\0') {
            findings.value(
                &["train", "envs", name],
                "a variable's value cannot hold a NUL character",
                "",
            );
        }
    }
    if train.retries > 20 {
        findings.value(&["train", "retries"], "more than 20 retries only cost money", "");
    }
    if !(1..=MAX_NODES).contains(&train.num_nodes) {
        findings.value(&["train", "num_nodes"], "machines train together from 1 to 64", "");
    } else if train.num_nodes > 1 && train.trainer.is_some() {
        let help = "remove it, or write a command of your own as `run`";
        findings.key(&["train", "num_nodes"], "the built-in trainer uses one machine", help);
    }
    let resources = &train.resources;
    if resources.infra.is_some() && !resources.any_of.is_empty() {
        let help = "write one of them";
        findings.key(
            &["train", "resources", "any_of"],
            "`infra` names the site already",
            help,
        );
    }
    let mut check = |infra: &SiteName, path: &[&str]| {
        if check_site_exists(infra, sites, path, findings)
            && sites.sites.get(infra).is_some_and(|site| site.compute.is_none())
        {
            let message = format!("site `{infra}` has no compute");
            findings.value(path, message, "choose a site that has, or leave the key out");
        }
    };
    if let Some(infra) = &resources.infra {
        check(infra, &["train", "resources", "infra"]);
    }
    for (index, one) in resources.any_of.iter().enumerate() {
        check(
            &one.infra,
            &["train", "resources", "any_of", &index.to_string(), "infra"],
        );
    }
    if let Some(Err(error)) = resources.cpus.as_ref().map(|cpus| cpus.parse::<CpuRequest>()) {
        findings.value(&["train", "resources", "cpus"], error.to_string(), "");
    }
    if let Some(Err(error)) = resources.accelerators.as_deref().map(read_accelerators) {
        findings.value(&["train", "resources", "accelerators"], error.to_string(), "");
    }
}

fn check_trainer(trainer: &Trainer, findings: &mut Findings<'_>) {
    for (key, must) in trainer_faults(trainer) {
        findings.value(&["train", "trainer", key], format!("`{key}` must be {must}"), "");
    }
}

fn check_evaluate(pipeline: &Pipeline, findings: &mut Findings<'_>) {
    for (metric, condition) in &pipeline.evaluate.gates {
        let path = ["evaluate", "gates", metric];
        if !GATE_METRICS.contains(&metric.as_str()) {
            let help = suggest(metric, "known metrics", GATE_METRICS);
            findings.key(&path, format!("metric `{metric}` is not known"), help);
        }
        if let Err(error) = condition.parse::<GateCondition>() {
            findings.value(&path, error.to_string(), "");
        }
    }
    for (index, expression) in pipeline.evaluate.by.iter().enumerate() {
        if expression.trim().is_empty() {
            findings.value(&["evaluate", "by", &index.to_string()], "the expression is empty", "");
        }
    }
    if findings.written(&["train", "trainer", "early_stopping"]) && pipeline.prepare.split.validation == 0.0 {
        let help = "write for example `split: {validation: 0.1}`, or remove `early_stopping`";
        let path = ["train", "trainer", "early_stopping"];
        findings.key(&path, "stopping early needs a validation part", help);
    }
}

/// Whether a path names a file below this folder in the one way in which it can be named.
fn is_plain_relative(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 512
        && !path.chars().any(|c| c.is_control() || c == '\\')
        && path
            .split('/')
            .all(|component| !component.is_empty() && component != "." && component != "..")
}
