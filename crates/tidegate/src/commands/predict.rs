//! `predict`: probabilities for raw rows, on a private site.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tidegate_bundle::{Bundle, Predictor, bundle};
use tidegate_keeper::keys::SiteKeys;
use tidegate_prepare::{Keys, Recipe, apply_recipe};
use tidegate_seal::dsse;
use tidegate_seal::sign::VerifyingKey;
use tidegate_types::files::sites::SiteKind;
use tidegate_types::refusal::Refusal;
use tidegate_types::release::BUNDLE_PAYLOAD;

use crate::cli::Format;
use crate::commands::files::prepare_failure;
use crate::failure::{Failure, While};
use crate::project::Project;
use crate::{show, stores};

/// Opens a bundle folder signed by `owner`.
pub(crate) fn open_bundle(folder: &Path, owner: &VerifyingKey) -> Result<Bundle, Failure> {
    let files = bundle::read_folder(folder).while_("reading a bundle")?;
    bundle::open(files, |signature| verify(signature, owner)).map_err(|error| {
        Failure::Refused(Refusal {
            rule: "bundle-tampered".to_owned(),
            what: "opening a bundle".to_owned(),
            why: error.to_string(),
            fix: "deploy the model again from its private site".to_owned(),
        })
    })
}

/// The payload of a bundle's signature by `owner`.
pub(crate) fn verify(signature: &[u8], owner: &VerifyingKey) -> Result<Vec<u8>, String> {
    let envelope = dsse::from_bytes(signature).map_err(|error| error.to_string())?;
    dsse::open(&envelope, BUNDLE_PAYLOAD, owner).map_err(|error| error.to_string())
}

/// The newest version's folder of a model below a site's `serve/models`.
pub(crate) fn newest(models: &Path, name: &str) -> Result<PathBuf, Failure> {
    let mut versions: Vec<u64> = std::fs::read_dir(models.join(name))
        .map(|entries| {
            entries
                .filter_map(Result::ok)
                .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
                .collect()
        })
        .unwrap_or_default();
    versions.sort_unstable();
    match versions.pop() {
        Some(version) => Ok(models.join(name).join(version.to_string())),
        None => Err(Failure::Usage(format!(
            "model `{name}` is not deployed there: run the pipeline, with the site under `deploy:`"
        ))),
    }
}

/// Reads raw rows, takes them through the bundle's frozen recipe, and writes one probability a row.
pub(crate) async fn predict(
    project: &Project,
    site: &str,
    rows: &Path,
    out: Option<&Path>,
    format: Format,
) -> Result<(), Failure> {
    let predicting = "predicting";
    let site = project.site(site)?;
    let definition = project.sites.sites.get(&site);
    if definition.is_none_or(|definition| definition.kind != SiteKind::Private) {
        return Err(Failure::Refused(Refusal {
            rule: "raw-rows-stay-home".to_owned(),
            what: format!("predicting for raw rows on site `{site}`"),
            why: "raw rows are above what a site that is not private may hold".to_owned(),
            fix: "predict on the private site, or send features to `tidegate serve` there".to_owned(),
        }));
    }
    let home = project.home()?;
    if site != home {
        return Err(Failure::Refused(Refusal {
            rule: "raw-rows-stay-home".to_owned(),
            what: format!("predicting for raw rows on site `{site}`"),
            why: format!("the bundle's recipe needs keys that only site `{home}` has, and they never leave it"),
            fix: format!("predict on site `{home}`, or send features to `tidegate serve` on site `{site}`"),
        }));
    }
    std::fs::metadata(rows).map_err(|error| Failure::Usage(format!("{}: {error}", rows.display())))?;
    let folder = project.layout.site(&site);
    let at = newest(&folder.join("serve").join("models"), project.pipeline.name.as_str())?;
    let definition = definition.ok_or_else(|| Failure::failed(predicting, "the sites file does not have this site"))?;
    let custody = stores::custody(definition, &folder, &stores::environment()).await?;
    let keys = SiteKeys::open(&folder.join("keys").join("site-keys.json"), &*custody, &site)
        .await
        .while_(predicting)?;
    let bundle = open_bundle(&at, &keys.signing.public())?;
    let named = (bundle.manifest.name.as_str(), bundle.manifest.version.to_string());
    if named.0 != project.pipeline.name.as_str() || at.file_name().is_none_or(|version| *version != *named.1) {
        return Err(Failure::Refused(Refusal {
            rule: "bundle-tampered".to_owned(),
            what: "opening a bundle".to_owned(),
            why: "it stands under another name or version than it was signed for".to_owned(),
            fix: "deploy the model again from its private site".to_owned(),
        }));
    }
    let recipe: Recipe = serde_json::from_slice(&bundle.recipe).while_("reading the bundle's recipe")?;
    let stage = Keys {
        split: keys.stages.split,
        values: keys.stages.values,
    };
    let records = apply_recipe(&recipe, &stage, rows).await.map_err(prepare_failure)?;
    let matrix = bundle
        .schema
        .encode(&records.header, &records.records)
        .while_(predicting)?;
    let predictor = Predictor::load(&bundle.model).while_(predicting)?;
    let probabilities = predictor.predict(matrix.view()).while_(predicting)?;
    let threshold = bundle.calibration.threshold;
    let mut predictions: Vec<Prediction> = records
        .positions
        .iter()
        .zip(&probabilities)
        .map(|(position, probability)| {
            let calibrated = bundle.calibration.apply(f64::from(*probability));
            Prediction {
                row: position + 1,
                probability: calibrated,
                prediction: u8::from(calibrated >= threshold),
            }
        })
        .collect();
    predictions.sort_by_key(|prediction| prediction.row);
    match (out, format) {
        (None, Format::Text) => show::print(&csv(&predictions)),
        (None, Format::Json) => show::json(&predictions),
        (Some(file), _) => {
            std::fs::write(file, csv(&predictions)).while_("writing the predictions")?;
            let rows = predictions.len();
            match format {
                Format::Text => show::line(&format!("Wrote {rows} predictions to {}.", file.display())),
                Format::Json => show::json(&serde_json::json!({"rows": rows, "out": file})),
            }
        }
    }
}

/// What the model says of one row.
#[derive(Debug, Serialize)]
struct Prediction {
    /// Counts from 1, in the order of the file.
    row: u64,
    probability: f64,
    prediction: u8,
}

fn csv(predictions: &[Prediction]) -> String {
    let mut text = "row,probability,prediction\n".to_owned();
    for Prediction {
        row,
        probability,
        prediction,
    } in predictions
    {
        text.push_str(&format!("{row},{probability:.6},{prediction}\n"));
    }
    text
}
