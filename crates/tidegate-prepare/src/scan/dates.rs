//! What dates look like: in files they are often plain text.

use crate::ingest::types::parse_date;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
/// Years that a date without separators may have, or every number of eight digits would be one.
const LIKELY_YEARS: std::ops::RangeInclusive<u32> = 1900..=2099;

/// Whether a value looks like a calendar date, with or without a time behind it: `2024-01-31`,
/// `2024/1/31`, `20240131`, `1/31/2024`, `31.01.2024`, `1/31/24`, `31-Jan-2024`, `Jan 31, 2024`.
pub(super) fn is_temporal(value: &str) -> bool {
    if value.get(..10).is_some_and(|date| parse_date(date).is_some()) {
        return true;
    }
    if value.len() == 8 && value.bytes().all(|byte| byte.is_ascii_digit()) {
        let part = |range: std::ops::Range<usize>| value.get(range).and_then(number);
        let year = part(0..4).filter(|year| LIKELY_YEARS.contains(year));
        return year.is_some() && is_day(part(4..6), part(6..8));
    }
    named(value) || separated(value)
}

/// Three numbers with `/`, `-` or `.` between them, then perhaps a time.
fn separated(value: &str) -> bool {
    let date = value.split(['T', ' ']).next().unwrap_or_default();
    let Some(separator) = date.chars().find(|character| !character.is_ascii_digit()) else {
        return false;
    };
    if !['/', '-', '.'].contains(&separator) {
        return false;
    }
    let parts: Vec<&str> = date.split(separator).collect();
    let [first, second, third] = parts.as_slice() else {
        return false;
    };
    let (a, b, c) = (number(first), number(second), number(third));
    match (first.len(), second.len(), third.len()) {
        (4, 1..=2, 1..=2) => is_day(b, c),
        (1..=2, 1..=2, 4) => c.is_some() && (is_day(a, b) || is_day(b, a)),
        // With two digits for the year only as it is written in the United States.
        (1..=2, 1..=2, 2) if separator == '/' => c.is_some() && (is_day(a, b) || is_day(b, a)),
        _ => false,
    }
}

/// A month by its name among a day and a year.
fn named(value: &str) -> bool {
    let parts: Vec<&str> = value
        .split(|character: char| !character.is_alphanumeric())
        .filter(|part| !part.is_empty())
        .take(3)
        .collect();
    let [first, second, third] = parts.as_slice() else {
        return false;
    };
    let month = |text: &str| {
        let text = text.to_lowercase();
        text.bytes().all(|byte| byte.is_ascii_alphabetic()) && MONTHS.iter().any(|month| text.starts_with(month))
    };
    let year = |text: &str| matches!(text.len(), 2 | 4) && number(text).is_some();
    let day = |text: &str| number(text).is_some_and(|day| (1..=31).contains(&day));
    (day(first) && month(second) && year(third)) || (month(first) && day(second) && year(third))
}

fn is_day(month: Option<u32>, day: Option<u32>) -> bool {
    month.is_some_and(|month| (1..=12).contains(&month)) && day.is_some_and(|day| (1..=31).contains(&day))
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_told_from_other_values() {
        for date in [
            "2024-01-31",
            "2024-01-31T10:00:00",
            "2024-01-31 10:00:00.123+02:00",
            "2024/1/31",
            "20240131",
            "3/14/2024",
            "03/14/2024 08:30",
            "14/03/2024",
            "3/14/24",
            "31.01.2024",
            "01-31-2024",
            "31-Jan-2024",
            "Jan 31, 2024",
            "14 March 2024 10:00",
        ] {
            assert!(is_temporal(date), "{date}");
        }
        for other in [
            "",
            "12345",
            "99999999",
            "12345678",
            "120/80",
            "1.5",
            "10.0.0.1",
            "1.2.24",
            "900-12-3456",
            "13/13/2024",
            "2024",
            "10:30",
            "may be 20 ok",
            "555-555-0100",
            "Marble 1",
            "é/é/éééé",
            "-5",
        ] {
            assert!(!is_temporal(other), "{other}");
        }
    }
}
