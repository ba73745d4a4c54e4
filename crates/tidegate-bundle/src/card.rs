//! The model card: what a reader must know before using the model, in Markdown.
//!
//! Sections follow "Model Cards for Model Reporting" (Mitchell et al., 2019).

use std::fmt::Write;

use crate::quality::{Quality, Subgroup};

/// What stands on a card. Texts are single lines; numbers must already be in the form that may leave
/// the private site (rounded, small groups suppressed).
#[derive(Debug, Clone, Default)]
pub struct ModelCard {
    /// The model's name and version.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// What it predicts.
    pub target: String,
    /// What it is for and what not, one line each.
    pub intended_use: Vec<String>,
    /// What it was trained on, one line each.
    pub data: Vec<String>,
    /// How the data was de-identified, one line each.
    pub deidentification: Vec<String>,
    /// Figures on the test part, before refinement.
    pub quality: Quality,
    /// Figures on the test part, after refinement.
    pub refined: Option<Quality>,
    /// A calibrated probability from here on counts as positive.
    pub threshold: f64,
    /// Figures by group.
    pub subgroups: Vec<Subgroup>,
    /// The fewest subjects of a group, and with either outcome in it, that are shown.
    pub min_cell: u64,
    /// Measured risk of disclosure, one line each.
    pub risk: Vec<String>,
    /// What the model cannot do, one line each.
    pub limits: Vec<String>,
}

/// The figures of the subgroup table, in order.
const SUBGROUP_FIGURES: [&str; 3] = ["roc_auc", "brier", "expected_calibration_error"];

impl ModelCard {
    /// The card as Markdown.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = format!(
            "# {}, version {}\n\nPredicts `{}`.\n",
            clean(&self.name),
            self.version,
            clean(&self.target)
        );
        section(&mut text, "Intended use", &self.intended_use);
        section(&mut text, "Data", &self.data);
        section(&mut text, "De-identification", &self.deidentification);
        self.write_quality(&mut text);
        self.write_subgroups(&mut text);
        section(&mut text, "Risk", &self.risk);
        section(&mut text, "Limits", &self.limits);
        text
    }

    fn write_quality(&self, text: &mut String) {
        text.push_str("\n## Quality\n\nMeasured on the test part, which took no part in training or refinement; 95 % intervals.\n\n");
        let refined = self.refined.as_ref();
        text.push_str(if refined.is_some() {
            "| metric | as trained | refined |\n|---|---|---|\n"
        } else {
            "| metric | as trained |\n|---|---|\n"
        });
        for name in self.quality.0.keys() {
            row(
                text,
                [clean(name), figure(Some(&self.quality), name)]
                    .into_iter()
                    .chain(refined.map(|refined| figure(Some(refined), name))),
            );
        }
        let _ = writeln!(
            text,
            "\nA probability of {:.3} or more counts as positive.",
            self.threshold
        );
    }

    fn write_subgroups(&self, text: &mut String) {
        if self.subgroups.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "\n## Subgroups\n\nGroups with fewer than {} subjects with either outcome are not shown; neither is a group from which one of those could be worked out.\n",
            self.min_cell
        );
        row(
            text,
            ["group".to_owned(), "rows".to_owned()]
                .into_iter()
                .chain(SUBGROUP_FIGURES.map(str::to_owned)),
        );
        row(text, std::iter::repeat_n("---".to_owned(), 2 + SUBGROUP_FIGURES.len()));
        for group in &self.subgroups {
            let rows = group
                .rows
                .map_or_else(|| "not shown".to_owned(), |rows| rows.to_string());
            let figures = SUBGROUP_FIGURES.map(|name| figure(group.quality.as_ref(), name));
            row(
                text,
                [format!("{} = {}", clean(&group.variable), clean(&group.level)), rows]
                    .into_iter()
                    .chain(figures),
            );
        }
    }
}

fn section(text: &mut String, title: &str, lines: &[String]) {
    let _ = writeln!(text, "\n## {title}\n");
    if lines.is_empty() {
        text.push_str("Nothing was stated.\n");
    }
    for line in lines {
        let _ = writeln!(text, "- {}", clean(line));
    }
}

fn row(text: &mut String, cells: impl Iterator<Item = String>) {
    for cell in cells {
        let _ = write!(text, "| {cell} ");
    }
    text.push_str("|\n");
}

fn figure(quality: Option<&Quality>, name: &str) -> String {
    let figure = quality.and_then(|quality| quality.0.get(name));
    figure.map_or_else(
        || "–".to_owned(),
        |f| format!("{:.3} ({:.3} to {:.3})", f.value, f.low, f.high),
    )
}

/// A text that cannot break out of its line or table cell.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .replace('|', "\\|")
        .replace('<', "&lt;")
}
