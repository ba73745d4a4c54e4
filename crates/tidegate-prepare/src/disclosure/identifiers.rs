//! A last look at what is about to leave: does it hold an identifier of the data? The labels say that
//! it cannot; this second line finds a catalog that is wrong. It is no proof.

use tidegate_types::Refusal;

use crate::scan::words::Identifiers;

/// Digits from which a number alone gives a person away.
const LONG_NUMBER: usize = 9;
/// Digits from which a number is looked at at all.
const SHORT_NUMBER: usize = 6;
/// Rows that must hold a short number before it counts: amounts equal record numbers by chance.
const LEAST_ROWS: u64 = 3;

/// What was found in one output column.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    values: u64,
    short_numbers: u64,
    column: Option<u16>,
    certain: bool,
}

impl Found {
    /// Looks at one value.
    pub(crate) fn look(&mut self, value: &str, identifiers: &Identifiers) {
        if value.is_empty() || self.certain {
            return;
        }
        self.values += 1;
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits || value.parse::<f64>().is_ok();
        if number && !(digits && value.len() >= SHORT_NUMBER) {
            return;
        }
        if let Some(column) = identifiers.find(value) {
            self.column = Some(column);
            if digits && value.len() < LONG_NUMBER {
                self.short_numbers += 1;
            } else {
                self.certain = true;
            }
        }
    }

    /// The refusal of output column `name`, where it holds identifiers of one of `columns`.
    pub(crate) fn refusal(&self, name: &str, columns: &[String]) -> Option<Refusal> {
        let often = self.short_numbers >= LEAST_ROWS && self.short_numbers.saturating_mul(100) > self.values;
        if !self.certain && !often {
            return None;
        }
        let source = self.column.and_then(|column| columns.get(usize::from(column)))?;
        Some(Refusal {
            rule: "identifier-in-output".to_owned(),
            what: format!("releasing column `{name}`"),
            why: format!("it holds values that stand in the identifier column `{source}`"),
            fix: format!("leave column `{name}` out, or give the column it is made from the role `identifier`"),
        })
    }
}
