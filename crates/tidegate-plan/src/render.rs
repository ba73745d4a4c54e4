//! The plan as a person reads it before saying yes.

use std::fmt::Write as _;

use tidegate_types::artifact::ArtifactKind;
use tidegate_types::quantity::Money;
use tidegate_types::report::ColumnReport;

use crate::model::{Plan, PlannedCrossing, Report, Step};

impl Report {
    /// What runs where, what will cross and why each column may, what it costs, why this site.
    #[must_use]
    pub fn render(&self, plan: &Plan) -> String {
        let mut out = format!("Plan of `{}`, for the purpose `{}`\n", plan.pipeline, self.purpose);
        runs(&mut out, plan);
        self.crosses(&mut out, plan);
        if !self.candidates.is_empty() {
            out.push_str("\nWhy train there\n");
            let rows = self.candidates.iter().map(|candidate| {
                let chosen = if candidate.chosen { "chosen" } else { "not chosen" };
                vec![candidate.site.to_string(), chosen.to_owned(), candidate.reason.clone()]
            });
            table(&mut out, rows.collect());
        }
        if !plan.elsewhere.is_empty() {
            out.push_str("\nIf it cannot be done there\n");
            table(&mut out, plan.elsewhere.iter().map(other).collect());
            let all = plan.elsewhere.iter().flat_map(|other| &other.crossings);
            let train: Vec<_> = all
                .filter(|crossing| crossing.task.as_str() == Step::Train.as_str())
                .collect();
            if !train.is_empty() {
                out.push_str("\nWhat will cross then, besides\n");
                table(&mut out, train.into_iter().map(route).collect());
            }
        }
        self.costs(&mut out, plan);
        out
    }

    fn crosses(&self, out: &mut String, plan: &Plan) {
        if plan.crossings.is_empty() {
            let _ = writeln!(out, "\nNothing leaves site `{}`.", plan.home);
            return;
        }
        out.push_str("\nWhat will cross, sealed, each under its own permit\n");
        table(out, plan.crossings.iter().map(route).collect());
        // The parts of one split have the same columns: they are shown once.
        let rows: Vec<&PlannedCrossing> = plan
            .crossings
            .iter()
            .filter(|crossing| crossing.kind == ArtifactKind::Dataset)
            .collect();
        if let Some(first) = rows.first() {
            let names: Vec<String> = rows.iter().map(|crossing| format!("`{}`", crossing.artifact)).collect();
            let _ = writeln!(out, "\nColumn by column in {}", names.join(" and "));
            table(out, first.columns.iter().map(column).collect());
            if self.row_reads.is_empty() {
                out.push_str("  Which rows there are depends on no column.\n");
            } else {
                let _ = writeln!(out, "  Which rows there are depends on {}.", self.row_reads.join(", "));
            }
            sentences(out, "Warnings", &self.warnings);
            sentences(out, "Measured before anything leaves", &self.conditions);
        }
    }

    fn costs(&self, out: &mut String, plan: &Plan) {
        let _ = write!(out, "\nCost: about {}", plan.cost_estimate);
        if plan.unpriced {
            out.push_str(", and what is marked `unpriced` on top, which nobody has given a price");
        }
        if let Some(budget) = self.budget {
            let _ = write!(out, "; the budget is {budget}");
        }
        if let Some(deadline) = plan.deadline {
            let _ = write!(out, "; the deadline is {deadline}");
        }
        out.push_str(".\n");
    }
}

fn route(crossing: &PlannedCrossing) -> Vec<String> {
    vec![
        crossing.artifact.clone(),
        match crossing.copied_from.as_slice() {
            [] => format!("{} -> {}", crossing.from, crossing.to),
            others => {
                let others: Vec<&str> = others.iter().map(|site| site.as_str()).collect();
                format!("{} (or {}) -> {}", crossing.from, others.join(", "), crossing.to)
            }
        },
        crossing.label.to_string(),
        format!("at most about {}", bytes(crossing.bytes_estimate)),
        cost(crossing.cost),
    ]
}

/// Another site that may train.
fn other(plan: &Plan) -> Vec<String> {
    let site = plan.trains_at().map_or(String::new(), ToString::to_string);
    let unpriced = if plan.unpriced { " and what is unpriced" } else { "" };
    vec![
        format!("train on {site}"),
        format!("about {}{unpriced} in all", plan.cost_estimate),
    ]
}

fn sentences(out: &mut String, title: &str, sentences: &[String]) {
    if !sentences.is_empty() {
        let _ = writeln!(out, "\n{title}");
    }
    for sentence in sentences {
        let _ = writeln!(out, "  {sentence}");
    }
}

fn runs(out: &mut String, plan: &Plan) {
    out.push_str("\nWhat runs where\n");
    let rows = plan.tasks.iter().map(|task| {
        let price = if task.kind == Step::Deploy {
            String::new()
        } else {
            cost(task.cost)
        };
        vec![
            task.task.to_string(),
            match task.machines {
                1 => task.site.to_string(),
                machines => format!("{} ({machines} machines)", task.site),
            },
            format!("at most about {}s", task.seconds_estimate),
            price,
        ]
    });
    table(out, rows.collect());
    if let Some(task) = plan.tasks.iter().find(|task| task.machines > 1) {
        let _ = writeln!(
            out,
            "  Each of the {} machines opens what crosses for `{}`; they reach one another, sealed, and nobody else.",
            task.machines, task.task
        );
    }
}

fn column(column: &ColumnReport) -> Vec<String> {
    let label = if column.label_before == column.label {
        column.label.to_string()
    } else {
        format!("{} -> {}", column.label_before, column.label)
    };
    vec![
        column.name.clone(),
        column.function.clone().unwrap_or_default(),
        label,
        column.why.clone(),
    ]
}

fn cost(cost: Option<Money>) -> String {
    cost.map_or_else(|| "unpriced".to_owned(), |cost| cost.to_string())
}

/// A size in the largest unit that leaves one digit before the point.
fn bytes(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in units {
        if bytes >= size {
            let tenths = u128::from(bytes) * 10 / u128::from(size);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// Rows with columns below one another; the last column is as long as it is.
fn table(out: &mut String, rows: Vec<Vec<String>>) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |index: usize| {
        let cells = rows.iter().filter_map(|row| row.get(index));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let mut line = String::from("  ");
        for (cell, width) in row.iter().zip(&widths) {
            if *width > 0 {
                let _ = write!(line, "{cell:<width$}  ");
            }
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}
