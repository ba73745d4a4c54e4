//! Which sites could train, and which one should.

use tidegate_types::artifact::ArtifactKind;
use tidegate_types::files::pipeline::Resources;
use tidegate_types::files::rules::{CpuRequest, read_accelerators};
use tidegate_types::files::sites::{NetworkRule, Site};
use tidegate_types::ids::SiteName;
use tidegate_types::label::Label;
use tidegate_types::quantity::ByteSize;
use tidegate_types::refusal::Refusal;

use crate::model::PlanInput;

/// Shortens the making of refusals.
pub(crate) fn refusal(rule: &str, what: String, why: String, fix: &str) -> Refusal {
    Refusal {
        rule: rule.to_owned(),
        what,
        why,
        fix: fix.to_owned(),
    }
}

/// Whether `site` may hold something with `label`: level, tags and residency, each with its own rule.
pub(crate) fn held(
    (what, kind): (&str, ArtifactKind),
    label: &Label,
    name: &SiteName,
    site: &Site,
) -> Result<(), Refusal> {
    let sending = || format!("sending {what} to site `{name}`");
    if label.level > site.clearance.level {
        let why = format!(
            "it is `{}`, and the site is cleared for `{}`",
            label.level, site.clearance.level
        );
        let fix = if kind == ArtifactKind::Code {
            "choose a site with a higher clearance, lower `code_level`, or let the catalog say `task_files: internal` of what a \
             task brings along"
        } else {
            "lower the release level if policy allows it, or choose a site with a higher clearance"
        };
        return Err(refusal("label-above-clearance", sending(), why, fix));
    }
    if let Some(tag) = label.tags.difference(&site.clearance.tags).next() {
        let why = format!("it carries the tag `{tag}`, and the site is not cleared for that");
        let fix = "use a profile that removes what the tag stands for, or choose a site cleared for it";
        return Err(refusal("tag-not-cleared", sending(), why, fix));
    }
    if !label.residency.allows(&site.jurisdiction) {
        let why = format!("it is `{label}`, and the site is in `{}`", site.jurisdiction);
        let fix = "choose a site in a jurisdiction that the catalog's `residency` names";
        return Err(refusal("residency", sending(), why, fix));
    }
    Ok(())
}

/// Whether a site can run the training at all, policy and money aside.
pub(crate) fn able(input: &PlanInput<'_>, name: &SiteName, site: &Site) -> Result<(), Refusal> {
    let training = || format!("training on site `{name}`");
    let train = &input.pipeline.train;
    let resources = &train.resources;
    if !resources.allow(name) {
        let why = match &resources.infra {
            Some(named) => format!("the pipeline names site `{named}`"),
            None => "the pipeline names other sites".to_owned(),
        };
        return Err(refusal(
            "other-site-named",
            training(),
            why,
            "change `infra`, or leave it out",
        ));
    }
    let Some(offer) = &site.compute else {
        let why = "the site has no compute".to_owned();
        return Err(refusal(
            "no-compute",
            training(),
            why,
            "choose a site that has, or leave `infra` out",
        ));
    };
    let cpus = asked_cpus(resources)?;
    if cpus > offer.cpus {
        let why = format!("{cpus} processors are asked for, and the site offers {}", offer.cpus);
        return Err(refusal(
            "capacity",
            training(),
            why,
            "ask for fewer, or add a larger site",
        ));
    }
    if let Some(memory) = resources.memory.filter(|memory| *memory > offer.memory) {
        let why = format!("{memory} of memory are asked for, and the site offers {}", offer.memory);
        return Err(refusal(
            "capacity",
            training(),
            why,
            "ask for less, or add a larger site",
        ));
    }
    if let Some(asked) = &resources.accelerators {
        let read = |text: &str| read_accelerators(text).ok();
        let enough = match (read(asked), offer.accelerators.as_deref().and_then(read)) {
            (Some((kind, count)), Some((there, most))) => kind == there && count <= most,
            _ => false,
        };
        if !enough {
            let offered = offer.accelerators.as_deref().unwrap_or("none");
            let why = format!("accelerators `{asked}` are asked for, and the site offers {offered}");
            return Err(refusal(
                "capacity",
                training(),
                why,
                "ask for what a site has, or write `compute: {accelerators: …}` of one that has them",
            ));
        }
    }
    if train.num_nodes > 1 && site.network.nodes == NetworkRule::Deny {
        let why = format!(
            "{} machines are asked for, and the site does not let them reach one another",
            train.num_nodes
        );
        return Err(refusal(
            "nodes-not-allowed",
            training(),
            why,
            "write `network: {nodes: allow}` in the sites file, of a site whose machines do, or leave `num_nodes` out",
        ));
    }
    let hosts = u32::try_from(offer.hosts.len()).unwrap_or(u32::MAX);
    if train.num_nodes > hosts && hosts > 0 {
        let why = format!("{} machines are asked for, and the site has {hosts}", train.num_nodes);
        return Err(refusal(
            "capacity",
            training(),
            why,
            "ask for fewer, or name more `hosts`",
        ));
    }
    // A setup may do without the network, but only its writer knows: naming the site says so.
    if train.setup.is_some() && site.network.setup == NetworkRule::Deny && !resources.name_sites() {
        let why = "`setup` is written, and the site has no network to set anything up from".to_owned();
        return Err(refusal(
            "network",
            training(),
            why,
            "name the site in `infra` if `setup` needs no network",
        ));
    }
    Ok(())
}

fn asked_cpus(resources: &Resources) -> Result<u32, Refusal> {
    let Some(text) = &resources.cpus else { return Ok(1) };
    text.parse::<CpuRequest>()
        .map(|request| request.count)
        .map_err(|error| {
            let what = "reading `resources.cpus`".to_owned();
            refusal("capacity", what, error.to_string(), "write for example `2+`")
        })
}

/// Whether `bytes` leaving home stay inside the budget.
pub(crate) fn egress_within(budget: Option<ByteSize>, bytes: u64, what: &str) -> Result<(), Refusal> {
    match budget.filter(|budget| bytes > budget.0) {
        None => Ok(()),
        Some(budget) => Err(refusal(
            "egress-budget",
            what.to_owned(),
            format!("about {bytes} bytes would leave the private site, and the budget is {budget}"),
            "raise `budget: {egress: …}`, or send fewer columns",
        )),
    }
}
