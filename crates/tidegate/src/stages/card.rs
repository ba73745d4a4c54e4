//! What the card of a model says.

use tidegate_bundle::{Calibration, ModelCard};
use tidegate_contracts::stage::StageContext;
use tidegate_learn::{Judgement, Membership, metrics};
use tidegate_types::report::RiskReport;

#[allow(clippy::too_many_arguments)]
pub(super) fn card(
    context: &StageContext<'_>,
    version: u64,
    before: &Judgement,
    after: &Judgement,
    calibration: &Calibration,
    risk: &RiskReport,
    sql: &str,
    leak: String,
) -> ModelCard {
    let pipeline = context.pipeline;
    let quasi = if risk.quasi_identifiers.is_empty() {
        "none".to_owned()
    } else {
        risk.quasi_identifiers.join(", ")
    };
    ModelCard {
        name: pipeline.name.to_string(),
        version,
        target: pipeline.prepare.target.clone(),
        intended_use: vec![
            format!(
                "For the purpose `{}`, by the organisation that owns the data.",
                pipeline.purpose
            ),
            "Supports a person's decision and does not replace it.".to_owned(),
        ],
        data: vec![
            format!(
                "Dataset `{}`: {} rows of {} people left for training.",
                pipeline.prepare.from,
                risk.rows - risk.suppressed_rows,
                risk.subjects
            ),
            format!(
                "Judged on {} rows of {} people that never left the private site.",
                after.rows, after.subjects
            ),
        ],
        deidentification: vec![
            format!(
                "Profile `{}`; the query is in `recipe.json` ({} characters).",
                pipeline.prepare.profile,
                sql.len()
            ),
            format!("Quasi-identifiers that left: {quasi}."),
        ],
        quality: before.quality.rounded(metrics::PUBLIC_DECIMALS),
        refined: pipeline
            .refine
            .as_ref()
            .map(|_| after.quality.rounded(metrics::PUBLIC_DECIMALS)),
        threshold: calibration.threshold,
        subgroups: after
            .subgroups
            .iter()
            .map(|group| tidegate_bundle::Subgroup {
                quality: group
                    .quality
                    .as_ref()
                    .map(|quality| quality.rounded(metrics::PUBLIC_DECIMALS)),
                ..group.clone()
            })
            .collect(),
        min_cell: u64::from(pipeline.release_model.min_cell),
        risk: vec![
            format!(
                "k = {} people at least share all quasi-identifiers of what left.",
                risk.k
            ),
            leak,
        ],
        limits: vec![
            "Figures hold for people like those of the dataset; other places and times may differ.".to_owned(),
            "A probability says nothing about the cause.".to_owned(),
        ],
    }
}

pub(super) fn leak_line(leak: &Membership) -> String {
    format!(
        "Telling training rows from others by the model's loss: ROC-AUC {:.3} ({:.3} to {:.3}); true-positive rate {:.3} at 1 % false positives.",
        leak.auc.value, leak.auc.low, leak.auc.high, leak.tpr_at_1_percent_fpr.value
    )
}
