//! What a person sees at the end: text or JSON on standard output, and the summary of a run.

use std::fmt::Write as _;
use std::io::Write as _;

use serde::Serialize;
use tidegate_engine::Summary;
use tidegate_types::ids::SiteName;
use tidegate_types::keeper::QualitySummary;

use crate::failure::Failure;

/// Writes to standard output.
///
/// # Errors
/// When it is full, or when nobody reads it any more.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    written(std::io::stdout().lock().write_all(text.as_bytes()))
}

/// Writes a line to standard output.
///
/// # Errors
/// As [`print()`].
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// What came of writing to standard output.
pub(crate) fn written<T>(result: std::io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::failed("writing the answer", error),
    })
}

/// Prints one JSON value on standard output.
///
/// # Errors
/// As [`print()`].
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::failed("writing JSON", error))?;
    line(&text)
}

/// Writes a line on standard error. A reader that is gone stops nothing.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A moment (Unix time) as RFC 3339 has it; nothing where there is none such.
pub(crate) fn time(at: u64) -> String {
    let at = i64::try_from(at)
        .ok()
        .and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map(|at| at.to_string()).unwrap_or_default()
}

const SHOWN: [(&str, &str); 7] = [
    ("roc_auc", "ROC-AUC"),
    ("pr_auc", "PR-AUC"),
    ("accuracy", "accuracy"),
    ("f1", "F1"),
    ("log_loss", "log loss"),
    ("brier", "Brier score"),
    ("expected_calibration_error", "calibration error"),
];

/// The end of a run, as a person reads it.
pub(crate) fn summary(summary: &Summary, file: &str, home: Option<&SiteName>) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "\nRun {} is {} ({:.1} s).",
        summary.run,
        summary.status.as_str(),
        summary.seconds
    );
    if !summary.reused.is_empty() {
        let _ = writeln!(out, "Unchanged and reused: {}.", summary.reused.join(", "));
    }
    if let Some(model) = &summary.model {
        let _ = writeln!(
            out,
            "\nModel {} version {} ({})",
            model.name, model.version, model.digest
        );
    }
    if let Some(home) = &summary.home {
        quality(&mut out, home, summary.refined.as_ref(), summary);
    }
    if !summary.gates.is_empty() {
        let _ = writeln!(out, "\nGates, judged on the unfavourable end of the interval:");
        for gate in &summary.gates {
            let verdict = if gate.passed { "passed" } else { "FAILED" };
            let value = gate
                .value
                .map_or_else(|| "unknown".to_owned(), |value| format!("{value:.3}"));
            let _ = writeln!(
                out,
                "  {:<28} {value:>8}, judged {:.3} {:<10} {verdict}",
                gate.metric, gate.judged, gate.condition
            );
        }
    }
    if let Some(risk) = &summary.risk {
        let l = risk.l.map_or(String::new(), |l| format!(", l = {l}"));
        let what = if summary.crossings.is_empty() {
            "what was prepared"
        } else {
            "what left"
        };
        let _ = writeln!(
            out,
            "\nDisclosure risk of {what}: k = {}{l}; {} of {} rows suppressed. Before: {} rows unique on the raw quasi-identifiers.",
            risk.k, risk.suppressed, risk.rows, risk.raw_unique
        );
    }
    if summary.crossings.is_empty() {
        let _ = writeln!(out, "\nNothing crossed in this run.");
    } else {
        let _ = writeln!(out, "\nCrossings:");
        for crossing in &summary.crossings {
            let way = format!("{} to {}", crossing.from, crossing.to);
            let _ = writeln!(
                out,
                "  {:<12} {way:<24} {:>12} bytes  permit {}",
                crossing.artifact, crossing.bytes, crossing.permit
            );
        }
    }
    let _ = writeln!(out, "\nCost: {}", summary.cost);
    let _ = writeln!(
        out,
        "Ledger: {} entries, root {}",
        summary.ledger.size, summary.ledger.root
    );
    if let Some(site) = summary.deployed.first() {
        let _ = writeln!(out, "\nNext:");
        let _ = writeln!(out, "  tidegate serve {file} --site {site}");
        if let Some(home) = home.filter(|home| summary.deployed.contains(home)) {
            let _ = writeln!(out, "  tidegate predict --pipeline {file} --site {home} new.csv");
        }
        let _ = writeln!(out, "  tidegate audit verify {file}");
    }
    out
}

fn quality(out: &mut String, home: &QualitySummary, refined: Option<&QualitySummary>, summary: &Summary) {
    let _ = writeln!(
        out,
        "\nQuality at home, on {} rows of {} people that never left (95 % intervals):",
        home.rows, home.subjects
    );
    let heading = if refined.is_some() { "after refinement" } else { "" };
    let _ = writeln!(out, "  {:<20} {:<24} {heading}", "", "as trained");
    for (metric, name) in SHOWN {
        let cell = |quality: &QualitySummary| {
            quality
                .figures
                .get(metric)
                .map(|figure| format!("{:.3} ({:.3} to {:.3})", figure.value, figure.low, figure.high))
        };
        if let Some(before) = cell(home) {
            let after = refined.and_then(cell).unwrap_or_default();
            let _ = writeln!(out, "  {name:<20} {before:<24} {after}");
        }
    }
    if let Some(cells) = refined.unwrap_or(home).confusion {
        let _ = writeln!(
            out,
            "  Decisions at the threshold: {} of {} rows with the outcome and {} of {} without it were told rightly.",
            cells.true_positives,
            cells.true_positives + cells.false_negatives,
            cells.true_negatives,
            cells.true_negatives + cells.false_positives
        );
    }
    if let (Some(raw), Some(ours)) = (summary.metrics.raw.get("roc_auc"), summary.metrics.home.get("roc_auc")) {
        let _ = writeln!(
            out,
            "  The same training on raw columns at home: ROC-AUC {raw:.3}; de-identification changed it by {:+.3}.",
            ours - raw
        );
    }
    let shown = refined.unwrap_or(home);
    if !shown.subgroups.is_empty() {
        let _ = writeln!(out, "  By subgroup, from columns that never left (ROC-AUC):");
        for (group, figures) in &shown.subgroups {
            match figures.get("roc_auc") {
                Some(figure) => {
                    let _ = writeln!(
                        out,
                        "    {group:<32} {:.3} ({:.3} to {:.3})",
                        figure.value, figure.low, figure.high
                    );
                }
                None => {
                    let _ = writeln!(out, "    {group:<32} too few people to show");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn quality(shift: f64) -> Value {
        let figure =
            |value: f64| json!({"value": value + shift, "low": value + shift - 0.03, "high": value + shift + 0.03});
        json!({
            "figures": {"roc_auc": figure(0.81), "brier": figure(0.14)},
            "rows": 1800, "subjects": 1650,
            "confusion": {"true_positives": 300, "false_positives": 200, "true_negatives": 1150, "false_negatives": 150},
            "subgroups": {"sex = female": {"roc_auc": figure(0.79)}, "sex = other": {}},
        })
    }

    /// What a person reads at the end of a run: everything that the command promises, and nothing twice.
    #[test]
    fn the_end_of_a_run_tells_quality_risk_crossings_cost_ledger_and_what_comes_next() {
        let done = json!({
            "run": "readmission-20260101-000000-abcdef", "status": "done",
            "model": {"name": "readmission", "version": 3, "digest": "sha256:00"},
            "metrics": {"home": {"roc_auc": 0.81}, "refined": {"roc_auc": 0.81}, "raw": {"roc_auc": 0.82}},
            "home": quality(0.0), "refined": quality(0.001),
            "gates": [
                {"metric": "roc_auc", "condition": ">= 0.75", "value": 0.81, "judged": 0.78, "passed": true},
                {"metric": "membership_auc", "condition": "<= 0.60", "value": null, "judged": 1.0, "passed": false},
            ],
            "risk": {"k": 11, "l": 2, "suppressed": 40, "rows": 9000, "raw_unique": 3354},
            "crossings": [
                {"artifact": "train", "from": "hospital", "to": "cloud", "bytes": 123456, "permit": "p-1"},
                {"artifact": "model", "from": "cloud", "to": "hospital", "bytes": 789, "permit": "p-1"},
            ],
            "cost": "0.01 USD", "ledger": {"size": 42, "root": "00ff"},
            "deployed": ["ward", "hospital"], "reused": [], "seconds": 2.5,
        });
        let mut unchanged = done.clone();
        unchanged["crossings"] = json!([]);
        unchanged["reused"] = json!(["prepare", "train"]);
        let home = SiteName::new("hospital").unwrap();
        let text = |value: Value| summary(&serde_json::from_value(value).unwrap(), "tidegate.yaml", Some(&home));
        insta::assert_snapshot!(text(done));
        insta::assert_snapshot!(text(unchanged));
    }
}
