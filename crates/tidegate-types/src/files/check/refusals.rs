//! Where the engineer's file would loosen what the data owner wrote. The engineer may tighten, never
//! loosen; saying no here costs nothing, for no row was read yet. Policy asks again later.

use crate::files::pipeline::Profile;
use crate::files::{Catalog, Pipeline, Sites};
use crate::label::Level;
use crate::refusal::Refusal;

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
