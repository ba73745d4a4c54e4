//! Types of columns: found in the values of the parts that may leave, then applied to every part.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanBuilder, Date32Builder, Float64Builder, Int64Builder, StringBuilder};
use datafusion::arrow::datatypes::DataType;
use tidegate_types::files::catalog::{Column, ValueType};
use tidegate_types::{IdentifierKind, Role};

use super::reader::Records;
use crate::error::PrepareError;

/// Places that an error names at the most.
const PLACES: usize = 5;

/// What the values of a column look like, seen one at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guess {
    pub(crate) seen: u64,
    pub(crate) integers: u64,
    pub(crate) numbers: u64,
    pub(crate) dates: u64,
    words: u64,
    /// Numbers whose text says more than their amount, such as `007`.
    coded: u64,
    not_numbers: Vec<(String, u64)>,
}

impl Guess {
    pub(crate) fn see(&mut self, value: &str, file: &str, line: u64) {
        self.seen += 1;
        let coded = is_code(value);
        let number = parse_number(value).is_some();
        self.coded += u64::from(coded);
        self.numbers += u64::from(coded || number);
        if number && !coded {
            self.integers += u64::from(parse_integer(value).is_some());
            return;
        }
        if self.not_numbers.len() < PLACES {
            self.not_numbers.push((file.to_owned(), line));
        }
        if parse_date(value).is_some() {
            self.dates += 1;
        } else if value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false") {
            self.words += 1;
        }
    }

    /// The type of column `name`.
    ///
    /// # Errors
    /// When at least 95 % of the values are numbers, but not all: then the column was most likely meant
    /// to be one of numbers, and reading it as text would quietly turn each number into a category.
    pub(crate) fn settle(&self, name: &str, facts: Option<&Column>) -> Result<ValueType, PrepareError> {
        if let Some(value_type) = facts.and_then(|column| column.value_type) {
            return Ok(value_type);
        }
        if facts.is_none_or(|column| is_text(column.role, column.kind)) || self.seen == 0 {
            return Ok(ValueType::Text);
        }
        // One `00` among amounts is a slip; where a twentieth of the values is written so, all are codes.
        let codes = self.coded.saturating_mul(20) >= self.seen;
        let numbers = self.numbers - self.coded;
        if numbers < self.seen && numbers.saturating_mul(20) >= self.seen.saturating_mul(19) && !codes {
            let mut places: Vec<String> = self
                .not_numbers
                .iter()
                .map(|(file, line)| format!("{file}:{line}"))
                .collect();
            let others = (self.seen - numbers).saturating_sub(places.len() as u64);
            if others > 0 {
                places.push(format!("{others} more"));
            }
            return Err(PrepareError::input(
                format!("finding the type of column `{name}`"),
                format!(
                    "{numbers} of {} values are plain numbers, the others are not: {}",
                    self.seen,
                    places.join(", ")
                ),
                format!(
                    "Correct these values; or, in the catalog, add what they say to `csv.null` where it means a missing \
                     value, or give column `{name}` `type: text`"
                ),
            ));
        }
        Ok(if self.coded > 0 {
            ValueType::Text
        } else if self.integers == self.seen {
            ValueType::Integer
        } else if self.numbers == self.seen {
            ValueType::Number
        } else if self.dates == self.seen {
            ValueType::Date
        } else if self.words == self.seen {
            ValueType::Boolean
        } else {
            ValueType::Text
        })
    }
}

/// Columns whose digits are a name and no amount.
const fn is_text(role: Role, kind: IdentifierKind) -> bool {
    matches!(role, Role::Text) || !matches!(kind, IdentifierKind::Date | IdentifierKind::Age | IdentifierKind::Value)
}

fn is_code(value: &str) -> bool {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    digits && ((value.len() > 1 && value.starts_with('0')) || value.parse::<i64>().is_err())
}

pub(crate) fn parse_integer(value: &str) -> Option<i64> {
    value.parse().ok()
}

pub(crate) fn parse_number(value: &str) -> Option<f64> {
    value.parse::<f64>().ok().filter(|number| number.is_finite())
}

pub(crate) fn parse_boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Some(true),
        "false" | "0" | "no" => Some(false),
        _ => None,
    }
}

/// Days since 1970-01-01 of a date `YYYY-MM-DD` in the proleptic Gregorian calendar.
pub(crate) fn parse_date(value: &str) -> Option<i32> {
    let bytes = value.as_bytes();
    if bytes.len() != 10 || bytes.get(4) != Some(&b'-') || bytes.get(7) != Some(&b'-') {
        return None;
    }
    let part = |range: std::ops::Range<usize>| -> Option<i32> {
        let text = value.get(range)?;
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok())?
    };
    let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    // Years are counted from March, so that the leap day comes last (Hinnant, `days_from_civil`).
    let shifted = if month > 2 { year } else { year - 1 };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468)
}

/// The type of a column in the query engine.
pub(crate) const fn data_type(value_type: ValueType) -> DataType {
    match value_type {
        ValueType::Text => DataType::Utf8,
        ValueType::Integer => DataType::Int64,
        ValueType::Number => DataType::Float64,
        ValueType::Boolean => DataType::Boolean,
        ValueType::Date => DataType::Date32,
    }
}

/// One column of the chosen `rows` of a batch.
///
/// # Errors
/// A value that is not of the type, by its place.
pub(crate) fn column(
    records: &Records,
    rows: &[usize],
    index: usize,
    name: &str,
    value_type: ValueType,
) -> Result<ArrayRef, PrepareError> {
    macro_rules! build {
        ($builder:expr, $parse:expr) => {{
            let mut builder = $builder;
            for &row in rows {
                match records.get(row, index) {
                    None => builder.append_null(),
                    Some(value) => match $parse(value) {
                        Some(parsed) => builder.append_value(parsed),
                        None => return Err(wrong(records, row, name, value_type)),
                    },
                }
            }
            Arc::new(builder.finish()) as ArrayRef
        }};
    }
    Ok(match value_type {
        ValueType::Text => build!(StringBuilder::new(), Some),
        ValueType::Integer => build!(Int64Builder::with_capacity(rows.len()), parse_integer),
        ValueType::Number => build!(Float64Builder::with_capacity(rows.len()), parse_number),
        ValueType::Boolean => build!(BooleanBuilder::with_capacity(rows.len()), parse_boolean),
        ValueType::Date => build!(Date32Builder::with_capacity(rows.len()), parse_date),
    })
}

fn wrong(records: &Records, row: usize, name: &str, value_type: ValueType) -> PrepareError {
    let kind = match value_type {
        ValueType::Text => "text",
        ValueType::Integer => "an integer",
        ValueType::Number => "a number",
        ValueType::Boolean => "true or false",
        ValueType::Date => "a date as YYYY-MM-DD",
    };
    PrepareError::Data {
        file: records.file.clone(),
        line: records.line(row),
        why: format!("the value of column `{name}` is not {kind}, which the column's type asks for"),
        fix: format!(
            "Correct the value; or, in the catalog, add what it says to `csv.null` where it means a missing value, or \
             give column `{name}` another `type`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(values: &[&str], facts: &Column) -> Result<ValueType, String> {
        let mut guess = Guess::default();
        for (line, value) in values.iter().enumerate() {
            guess.see(value, "a.csv", line as u64 + 2);
        }
        guess.settle("x", Some(facts)).map_err(|error| error.to_string())
    }

    fn attribute() -> Column {
        Column {
            role: Role::Attribute,
            kind: IdentifierKind::Value,
            value_type: None,
        }
    }

    #[test]
    fn types_are_found() {
        for (values, expected) in [
            (&["1", "-2"][..], ValueType::Integer),
            (&["1", "2.5", "1e3"], ValueType::Number),
            (&["007", "12"], ValueType::Text),
            (&["123456789012345678901"], ValueType::Text),
            (&["2024-02-29", "1900-01-01"], ValueType::Date),
            (&["2023-02-29"], ValueType::Text),
            (&["True", "false"], ValueType::Boolean),
            (&["a", "1"], ValueType::Text),
            (&["inf"], ValueType::Text),
            (&[], ValueType::Text),
        ] {
            assert_eq!(settle(values, &attribute()), Ok(expected), "{values:?}");
        }
        let zip = Column {
            kind: IdentifierKind::ZipCode,
            ..attribute()
        };
        assert_eq!(settle(&["12345"], &zip), Ok(ValueType::Text));
    }

    #[test]
    fn mostly_numbers_is_an_error_with_places_and_without_values() {
        let mut values = vec!["1"; 99];
        values.push("secret");
        let error = settle(&values, &attribute()).unwrap_err();
        assert!(
            error.contains("99 of 100 values are plain numbers") && error.contains("a.csv:101"),
            "{error}"
        );
        assert!(!error.contains("secret"), "{error}");
        let text = Column {
            value_type: Some(ValueType::Text),
            ..attribute()
        };
        assert_eq!(settle(&values, &text), Ok(ValueType::Text));
    }

    #[test]
    fn a_few_codes_do_not_make_a_column_of_numbers_text() {
        let column = |codes: usize| {
            let mut values = vec!["00"; codes];
            values.resize(100, "12");
            settle(&values, &attribute())
        };
        assert!(column(1).unwrap_err().contains("a.csv:2"));
        assert!(column(4).is_err());
        assert_eq!(column(5), Ok(ValueType::Text));
        assert_eq!(column(0), Ok(ValueType::Integer));
    }

    #[test]
    fn dates_are_days_since_1970() {
        for (text, days) in [
            ("1970-01-01", 0),
            ("1969-12-31", -1),
            ("2000-03-01", 11_017),
            ("2024-02-29", 19_782),
            ("0001-01-01", -719_162),
        ] {
            assert_eq!(parse_date(text), Some(days), "{text}");
        }
        for text in [
            "1970-1-1",
            "1970-13-01",
            "1970-00-10",
            "1970-04-31",
            "+970-01-01",
            "1970/01/01",
        ] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }
}
