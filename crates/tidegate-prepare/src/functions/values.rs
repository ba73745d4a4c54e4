//! What each de-identifying function makes of one value.

use aws_lc_rs::hmac;

use super::zip;

/// What `mask()` writes for every value.
pub const MASK: &str = "***";

/// The age from which on all are one group (45 CFR 164.514(b)(2)(i)(C): "ages 90 or older").
pub const OLDEST_AGE: i64 = 90;

/// The least width of an age band.
pub const LEAST_AGE_BAND: i64 = 5;

/// `year()` never tells an earlier year. A year of birth must not tell an age over 89, and the
/// functions read no clock, so that training and prediction agree; with this bound no year of birth
/// tells such an age before 2040.
pub const OLDEST_YEAR: i64 = 1950;

/// Ages outside are mistakes and become NULL.
const POSSIBLE_AGES: std::ops::RangeInclusive<i64> = 0..=150;

/// 128 bits of HMAC-SHA-256, as hexadecimal digits.
pub(super) fn token(key: &hmac::Key, text: &str) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(b"tidegate token v1\0");
    context.update(text.as_bytes());
    let tag = context.sign();
    tag.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The first three digits of a code of five or nine digits. In a column of numbers leading zeros are
/// missing and are put back.
pub(super) fn zip3(text: &str, numeric: bool) -> Option<String> {
    let text = if numeric {
        let whole = text.strip_suffix(".0").unwrap_or(text);
        if whole.is_empty() || whole.len() > 9 || !whole.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = if whole.len() <= 5 { 5 } else { 9 };
        format!("{whole:0>digits$}")
    } else {
        text.to_owned()
    };
    let (five, four) = match text.split_once('-') {
        Some((five, four)) => (five, Some(four)),
        None if text.len() == 9 => (text.get(..5)?, text.get(5..)),
        None => (text.as_str(), None),
    };
    let digits = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(five, 5) || four.is_some_and(|four| !digits(four, 4)) {
        return None;
    }
    let three = five.get(..3)?;
    Some(if zip::is_sparse(three) { "000" } else { three }.to_owned())
}

/// The year, bounded below by [`OLDEST_YEAR`].
pub(super) fn year(year: i64) -> Option<i64> {
    (1..=9999).contains(&year).then(|| year.max(OLDEST_YEAR))
}

/// The year of `YYYY-MM-DD`, with or without a time behind it.
pub(super) fn year_of_text(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    if !(rest.is_empty() || rest.starts_with(['T', ' '])) {
        return None;
    }
    let mut parts = date.split('-');
    let mut number = |length: usize| {
        parts
            .next()
            .filter(|part| part.len() == length && part.bytes().all(|b| b.is_ascii_digit()))?
            .parse::<i64>()
            .ok()
    };
    let (y, month, day) = (number(4)?, number(2)?, number(2)?);
    let leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if (1..=days).contains(&day) { year(y) } else { None }
}

/// The whole-number part, rounded down; NULL for what is not a number of moderate size.
pub(super) fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let floor = number.floor();
    #[expect(clippy::cast_possible_truncation, reason = "the line before bounds it")]
    (floor.abs() <= EXACT).then_some(floor as i64)
}

/// The lower bound of the band of `width` years that `age` is in.
pub(super) fn age_band(age: i64, width: i64) -> Option<i64> {
    if !POSSIBLE_AGES.contains(&age) || width < 1 {
        return None;
    }
    Some(if age >= OLDEST_AGE {
        OLDEST_AGE
    } else {
        age / width * width
    })
}

/// `age`, at most `limit`.
pub(super) fn top_code(age: i64, limit: i64) -> Option<i64> {
    POSSIBLE_AGES.contains(&age).then(|| age.min(limit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zip_codes_keep_three_digits_and_lose_sparse_areas() {
        let text = |code| zip3(code, false);
        assert_eq!(text("02139").as_deref(), Some("021"));
        assert_eq!(text("02139-4307").as_deref(), Some("021"));
        assert_eq!(text("021394307").as_deref(), Some("021"));
        assert_eq!(text("03601").as_deref(), Some("000"));
        assert_eq!(text("83001-1234").as_deref(), Some("000"));
        for bad in [
            "", "2139", "0213a", "02139-", "02139-43", "0213é", "SW1A 1AA", "-2139", "+2139", "2e4",
        ] {
            assert_eq!(text(bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_get_their_leading_zeros_back() {
        assert_eq!(zip3("2139", true).as_deref(), Some("021"));
        assert_eq!(zip3("2139.0", true).as_deref(), Some("021"));
        assert_eq!(zip3("21394307", true).as_deref(), Some("021"));
        assert_eq!(zip3("1234567890", true), None);
        assert_eq!(zip3("-2139", true), None);
        assert_eq!(zip3("2139.5", true), None);
    }

    #[test]
    fn years_are_read_from_dates_only() {
        assert_eq!(year_of_text("2024-02-29"), Some(2024));
        assert_eq!(year_of_text("2024-02-29T08:00:00"), Some(2024));
        assert_eq!(year_of_text("2024-02-29 08:00"), Some(2024));
        assert_eq!(year_of_text("1931-05-04"), Some(OLDEST_YEAR));
        for bad in [
            "2023-02-29",
            "2024-13-01",
            "2024-00-10",
            "24-01-01",
            "2024-1-1",
            "2024-01-01x",
            "",
            "2024",
            "éé24-01-01",
        ] {
            assert_eq!(year_of_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn nobody_is_older_than_ninety() {
        assert_eq!(age_band(62, 10), Some(60));
        assert_eq!(age_band(89, 7), Some(84));
        assert_eq!(age_band(90, 7), Some(90));
        assert_eq!(age_band(101, 5), Some(90));
        assert_eq!(age_band(-1, 10), None);
        assert_eq!(age_band(151, 10), None);
        assert_eq!(age_band(50, 0), None);
        assert_eq!(top_code(95, 90), Some(90));
        assert_eq!(top_code(62, 90), Some(62));
        assert_eq!(top_code(-1, 90), None);
        assert_eq!(top_code(151, 90), None);
        assert_eq!(whole(89.97), Some(89));
        assert_eq!(whole(f64::NAN), None);
        assert_eq!(whole(f64::INFINITY), None);
        assert_eq!(whole(-0.5), Some(-1));
    }

    #[test]
    fn tokens_are_keyed() {
        let key = |byte| hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32]);
        assert_eq!(token(&key(1), "a"), token(&key(1), "a"));
        assert_ne!(token(&key(1), "a"), token(&key(1), "b"));
        assert_ne!(token(&key(1), "a"), token(&key(2), "a"));
        assert_eq!(token(&key(1), "a").len(), 32);
    }

    proptest! {
        #[test]
        fn every_text_gives_three_digits_or_nothing(text in any::<String>(), numeric in any::<bool>()) {
            if let Some(three) = zip3(text.trim(), numeric) {
                prop_assert!(three.len() == 3 && three.bytes().all(|b| b.is_ascii_digit()));
                prop_assert!(three == "000" || !zip::is_sparse(&three));
            }
            if let Some(year) = year_of_text(text.trim()) {
                prop_assert!((OLDEST_YEAR..=9999).contains(&year));
            }
        }

        #[test]
        fn a_band_is_no_finer_than_its_width(age in 0_i64..90, width in 1_i64..90) {
            let band = age_band(age, width).unwrap();
            prop_assert!(band <= age && age < band + width && band % width == 0);
        }
    }
}
