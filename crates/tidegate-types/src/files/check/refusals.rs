//! Where the engineer's file would loosen what the data owner wrote. The engineer may tighten, never
//! loosen; saying no here costs nothing, for no row was read yet. Policy asks again later.

use crate::column::Role;
use crate::files::catalog::Dataset;
use crate::files::pipeline::Profile;
use crate::files::rules::{GateCondition, SUBGROUP_FUNCTIONS, subgroup_column};
use crate::files::{Catalog, Pipeline, Sites};
use crate::label::Level;
use crate::refusal::Refusal;

/// Figures about fewer people than this are never shown outside: the least that a pipeline may write.
pub const LEAST_CELL: u32 = 11;
/// The loosest bound of the leak test that a pipeline may write. One half is guessing.
pub const LOOSEST_MEMBERSHIP_AUC: f64 = 0.75;
/// The gates that are about the leak test.
const LEAK_GATES: [&str; 2] = ["membership_auc", "membership_tpr_at_1_percent_fpr"];

/// What the data owner forbids of what the pipeline asks for; empty when nothing is. A dataset or site
/// that does not exist is an error of [`super::check`] and skipped here.
#[must_use]
pub fn check_refusals(catalog: &Catalog, sites: &Sites, pipeline: &Pipeline) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let from = &pipeline.prepare.from;
    let Some(dataset) = catalog.datasets.get(from) else {
        return refusals;
    };
    let disclosure = &pipeline.prepare.disclosure;
    let mut refuse = |rule: &str, what: String, why: String, fix: String| {
        refusals.push(Refusal {
            rule: rule.to_owned(),
            what,
            why,
            fix,
        });
    };
    if !dataset.purposes.contains(&pipeline.purpose) {
        let allowed: Vec<_> = dataset.purposes.iter().map(|purpose| format!("`{purpose}`")).collect();
        refuse(
            "purpose-not-in-catalog",
            format!("using dataset `{from}` for `{}`", pipeline.purpose),
            if allowed.is_empty() {
                "its owner allows nothing".to_owned()
            } else {
                format!("its owner allows {} and nothing else", allowed.join(", "))
            },
            "use the data for what its owner allows, or let the owner add the purpose to the catalog".to_owned(),
        );
    }
    for (key, asked, least) in [
        ("k", disclosure.k, dataset.least_k),
        ("l", disclosure.l, dataset.least_l),
    ] {
        if let Some(asked) = asked.filter(|asked| *asked < least) {
            refuse(
                &format!("{key}-below-catalog"),
                format!("releasing from dataset `{from}` with {key} = {asked}"),
                format!("the catalog's `least_{key}` is {least}, and a pipeline may tighten it, never loosen it"),
                format!("write `disclosure: {{{key}: {least}}}` or more, or leave the key out"),
            );
        }
    }
    if !dataset.public {
        refuse_to_show_people(dataset, pipeline, &mut refuse);
    }
    if !dataset.public && pipeline.prepare.profile == Profile::None && disclosure.to < Level::Confidential {
        refuse(
            "nothing-lowers",
            format!("releasing from dataset `{from}` as `{}`", disclosure.to),
            "the data is about people, so every column is `confidential` or higher, and profile `none` lowers nothing"
                .to_owned(),
            "choose a profile such as `hipaa-safe-harbor`, or release to a higher level and a site cleared for it"
                .to_owned(),
        );
    }
    if pipeline.release_model.to < disclosure.to {
        refuse(
            "model-below-data",
            format!("releasing the model as `{}`", pipeline.release_model.to),
            format!(
                "it is trained on data released as `{}`, and a model can hold what it was shown",
                disclosure.to
            ),
            format!("write `release_model: {{to: {}}}` or a higher level", disclosure.to),
        );
    }
    for name in &pipeline.deploy {
        let Some(site) = sites.sites.get(name) else { continue };
        if pipeline.release_model.to > site.clearance.level {
            refuse(
                "label-above-clearance",
                format!("deploying the bundle to site `{name}`"),
                format!(
                    "the bundle is `{}`, and the site is cleared for `{}`",
                    pipeline.release_model.to, site.clearance.level
                ),
                format!("remove `{name}` from `deploy`, or release the model to a lower level if its data allows it"),
            );
        }
    }
    refusals
}

/// What keeps figures about single people inside holds for every pipeline over people.
fn refuse_to_show_people(
    dataset: &Dataset,
    pipeline: &Pipeline,
    refuse: &mut impl FnMut(&str, String, String, String),
) {
    let from = &pipeline.prepare.from;
    let cell = pipeline.release_model.min_cell;
    if cell < LEAST_CELL {
        refuse(
            "cell-too-small",
            format!("showing figures about {cell} people of dataset `{from}`"),
            format!("figures about fewer than {LEAST_CELL} people can be about one of them"),
            format!("write `release_model: {{min_cell: {LEAST_CELL}}}` or more, or leave the key out"),
        );
    }
    for expression in &pipeline.evaluate.by {
        let Some(column) = subgroup_column(expression) else {
            refuse(
                "subgroup-expression",
                format!("measuring subgroups by `{expression}`"),
                "a subgroup is a column, or one column under a function that makes it coarser: what else an \
                 expression reads or tells apart is not known"
                    .to_owned(),
                format!(
                    "name a column of dataset `{from}`, or one of the functions {} over it",
                    SUBGROUP_FUNCTIONS.join(", ")
                ),
            );
            continue;
        };
        let why = match dataset.column(&column).map(|column| column.role) {
            None => "the catalog does not describe the column, which makes it an identifier",
            Some(Role::Identifier) => "the catalog calls the column an identifier, and a group of one is a person",
            Some(Role::Text) => "the catalog calls the column text, which may hold anything",
            Some(Role::QuasiIdentifier | Role::Sensitive | Role::Attribute) => continue,
        };
        refuse(
            "subgroup-names-people",
            format!("measuring subgroups by `{expression}`"),
            why.to_owned(),
            "choose a column that many people share, such as an age in bands".to_owned(),
        );
    }
    for metric in LEAK_GATES {
        // What cannot be read as a condition is an error of the file.
        let Some(Ok(gate)) = pipeline
            .evaluate
            .gates
            .get(metric)
            .map(|text| text.parse::<GateCondition>())
        else {
            continue;
        };
        let loose = metric == "membership_auc" && gate.bound > LOOSEST_MEMBERSHIP_AUC;
        if gate.at_least || loose {
            refuse(
                "leak-gate-open",
                format!("releasing a model under the gate `{metric}`"),
                format!(
                    "the figure says how well people of the training are told from others: it is bounded from above, \
                     and `membership_auc` by at most {LOOSEST_MEMBERSHIP_AUC}"
                ),
                format!("write for example `{metric}: \"<= 0.60\"`, or leave the gate out"),
            );
        }
    }
}
