//! Where a task may run, and on what: its words for places and sizes, as sites and pipelines have them.

use tidegate_types::files::pipeline::{AnyOf, Resources};
use tidegate_types::files::rules::{CpuRequest, read_accelerators};
use tidegate_types::files::sites::{Site, Sites};
use tidegate_types::ids::SiteName;
use tidegate_types::quantity::ByteSize;

use super::Taking;
use super::file::{Asked, Kinds, Place};
use crate::failure::Failure;

impl Taking<'_> {
    pub(super) fn resources(&self, asked: &Asked, sites: &Sites) -> Result<Resources, Failure> {
        let one = [Place::default()];
        let places = if asked.any_of.is_empty() {
            &one[..]
        } else {
            &asked.any_of
        };
        let mut named: Vec<SiteName> = Vec::new();
        let mut anywhere = false;
        for place in places {
            // What stands beside `any_of` holds for each of its places.
            let merged = Place {
                infra: place
                    .infra
                    .clone()
                    .or_else(|| asked.infra.clone().filter(|_| place.cloud.is_none())),
                cloud: place.cloud.clone().or_else(|| asked.cloud.clone()),
                region: place.region.clone().or_else(|| asked.region.clone()),
            };
            match self.sites(&merged, sites)? {
                Some(found) => named.extend(found),
                None => anywhere = true,
            }
        }
        if anywhere {
            named.clear();
        }
        named.sort();
        named.dedup();
        let (infra, any_of) = match named.as_slice() {
            [] => (None, Vec::new()),
            [one] => (Some(one.clone()), Vec::new()),
            several => (
                None,
                several.iter().map(|infra| AnyOf { infra: infra.clone() }).collect(),
            ),
        };
        let gigabytes = asked
            .memory
            .as_ref()
            .map(|memory| memory.trim_end_matches('+').to_owned());
        let memory = gigabytes.map(|text| {
            let number: Option<u64> = text.trim_end_matches("GB").trim().parse().ok();
            let bytes = number.and_then(|number| number.checked_mul(1 << 30));
            bytes.map(ByteSize).ok_or_else(|| {
                let why = "`resources: memory` is a whole number of GB, such as `16` or `16+`";
                self.wrong_at(&["resources", "memory"], why)
            })
        });
        if let Some(Err(error)) = asked.cpus.as_ref().map(|cpus| cpus.parse::<CpuRequest>()) {
            return Err(self.wrong_at(&["resources", "cpus"], format!("`resources: cpus`: {error}")));
        }
        Ok(Resources {
            infra,
            any_of,
            cpus: asked.cpus.clone(),
            memory: memory.transpose()?,
            accelerators: self.accelerators(asked)?,
            use_spot: asked.use_spot,
        })
    }

    fn accelerators(&self, asked: &Asked) -> Result<Option<String>, Failure> {
        let text = match &asked.accelerators {
            None => return Ok(None),
            Some(Kinds::Text(text)) => text.clone(),
            Some(Kinds::Numbers(kinds)) => match kinds.iter().next().filter(|_| kinds.len() == 1) {
                Some((kind, number)) => format!("{kind}:{number}"),
                None => {
                    let why = "`resources: accelerators`: name one kind; a job is not placed by any of several";
                    return Err(self.wrong_at(&["resources", "accelerators"], why));
                }
            },
        };
        match read_accelerators(&text) {
            Ok(_) => Ok(Some(text)),
            Err(error) => Err(self.wrong_at(
                &["resources", "accelerators"],
                format!("`resources: accelerators`: {error}"),
            )),
        }
    }

    /// The sites that a place of the task means: the one of that name, those of that cloud, those in that region; none for
    /// anywhere.
    fn sites(&self, place: &Place, sites: &Sites) -> Result<Option<Vec<SiteName>>, Failure> {
        let text = place
            .infra
            .as_ref()
            .or(place.cloud.as_ref())
            .filter(|text| *text != "*");
        if let Some(name) = text.and_then(|text| SiteName::new(text.clone()).ok())
            && sites.sites.contains_key(&name)
        {
            return Ok(Some(vec![name]));
        }
        let mut parts = text.map_or("", String::as_str).split('/').filter(|part| *part != "*");
        let cloud = parts.next().unwrap_or_default().to_ascii_lowercase();
        let region = parts.next().or(place.region.as_deref().filter(|region| *region != "*"));
        if parts.next().is_some() {
            let why = "a zone cannot be chosen; the site's `machine: {networks: …}` says where machines are";
            return Err(self.wrong_at(&["resources"], why));
        }
        if cloud.is_empty() && region.is_none() {
            return Ok(None);
        }
        let driver = match cloud.as_str() {
            "aws" => "ec2",
            "gcp" => "vertex",
            "azure" => "azureml",
            other => other,
        };
        let fits = |site: &Site| {
            let Some(compute) = &site.compute else { return false };
            let there = compute.machine.as_ref().map_or("", |machine| machine.region.as_str());
            (driver.is_empty() || compute.driver == driver) && region.is_none_or(|region| region == there)
        };
        let found = sites.sites.iter().filter(|(_, site)| fits(site));
        let found: Vec<SiteName> = found.map(|(name, _)| name.clone()).collect();
        if found.is_empty() {
            let known: Vec<&str> = sites.sites.keys().map(SiteName::as_str).collect();
            let asked: Vec<&str> = text
                .map(String::as_str)
                .into_iter()
                .chain(place.region.as_deref())
                .collect();
            let why = format!(
                "`{}` is neither a site nor a cloud or region of one; the sites file has {}",
                asked.join(" in "),
                known.join(", ")
            );
            return Err(self.wrong_at(&["resources"], why));
        }
        Ok(Some(found))
    }
}
