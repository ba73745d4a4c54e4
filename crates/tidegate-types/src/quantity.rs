//! Money, bytes, rates and times as people write them: `5 USD`, `0.08 USD/h`, `2 GiB`, `20 MiB/s`, `2h`, `20:00-06:00`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not the quantity that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidQuantity {
    /// What was written, shortened.
    pub text: String,
    /// What would have been right, with an example.
    pub expected: &'static str,
}

fn invalid(text: &str, expected: &'static str) -> InvalidQuantity {
    InvalidQuantity {
        text: text.chars().take(80).collect(),
        expected,
    }
}

/// A decimal number without sign or exponent, scaled by 10^`digits`; more digits than that are refused.
fn parse_scaled(text: &str, digits: usize) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || fraction.len() > digits {
        return None;
    }
    format!("{whole}{fraction:0<digits$}").parse().ok()
}

macro_rules! text_form {
    ($type:ident, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "pattern": $pattern})
            }
        }
    };
}

/// An amount of money in millionths of a United States dollar, the only currency for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Money {
    /// Millionths of a dollar.
    pub micro_usd: u64,
}

impl Money {
    /// No money.
    pub const ZERO: Self = Self { micro_usd: 0 };

    /// The sum, held at the largest amount that can be written.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self {
            micro_usd: self.micro_usd.saturating_add(other.micro_usd),
        }
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06}", self.micro_usd / 1_000_000, self.micro_usd % 1_000_000);
        let shown = text.trim_end_matches('0');
        let decimals = shown.len() - shown.find('.').unwrap_or(0) - 1;
        let padded = text.len() - 6 + decimals.max(2);
        write!(f, "{} USD", &text[..padded])
    }
}

impl FromStr for Money {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "an amount of money such as `5 USD` or `0.25 USD`, with at most six decimals";
        let number = text.trim().strip_suffix("USD").ok_or_else(|| invalid(text, expected))?;
        let micro_usd = parse_scaled(number.trim_end(), 6).ok_or_else(|| invalid(text, expected))?;
        Ok(Self { micro_usd })
    }
}
text_form!(Money, r"^[0-9]+(\.[0-9]{1,6})? ?USD$");

/// A price for an hour of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HourPrice(pub Money);

impl HourPrice {
    /// What `seconds` of use cost, rounded up to a millionth of a dollar.
    #[must_use]
    pub const fn for_seconds(self, seconds: u64) -> Money {
        Money {
            micro_usd: self.0.micro_usd.saturating_mul(seconds).div_ceil(3600),
        }
    }
}

impl fmt::Display for HourPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/h", self.0)
    }
}

impl FromStr for HourPrice {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "a price for an hour such as `0.08 USD/h`";
        let amount = text.trim().strip_suffix("/h").ok_or_else(|| invalid(text, expected))?;
        amount.parse().map(Self).map_err(|_| invalid(text, expected))
    }
}
text_form!(HourPrice, r"^[0-9]+(\.[0-9]{1,6})? ?USD/h$");

/// A price for a gibibyte that leaves a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BytePrice(pub Money);

impl BytePrice {
    /// What `bytes` cost, rounded up to a millionth of a dollar.
    #[must_use]
    pub fn for_bytes(self, bytes: u64) -> Money {
        let micro = (u128::from(self.0.micro_usd) * u128::from(bytes)).div_ceil(1 << 30);
        Money {
            micro_usd: u64::try_from(micro).unwrap_or(u64::MAX),
        }
    }
}

impl fmt::Display for BytePrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/GiB", self.0)
    }
}

impl FromStr for BytePrice {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "a price for a gibibyte such as `0.09 USD/GiB`";
        let amount = text
            .trim()
            .strip_suffix("/GiB")
            .ok_or_else(|| invalid(text, expected))?;
        amount.parse().map(Self).map_err(|_| invalid(text, expected))
    }
}
text_form!(BytePrice, r"^[0-9]+(\.[0-9]{1,6})? ?USD/GiB$");

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in UNITS {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{} {unit}", self.0 / size);
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "a size such as `2 GiB`, `512 MiB` or `100 B`";
        for (unit, size) in UNITS {
            if let Some(number) = text.trim().strip_suffix(unit) {
                let thousandths = parse_scaled(number.trim_end(), 3).ok_or_else(|| invalid(text, expected))?;
                let bytes = u128::from(thousandths) * u128::from(size) / 1000;
                return u64::try_from(bytes).map(Self).map_err(|_| invalid(text, expected));
            }
        }
        Err(invalid(text, expected))
    }
}
text_form!(ByteSize, r"^[0-9]+(\.[0-9]{1,3})? ?([KMGT]iB|B)$");

/// A length of time in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0s"),
            s if s % 86_400 == 0 => write!(f, "{}d", s / 86_400),
            s if s % 3600 == 0 => write!(f, "{}h", s / 3600),
            s if s % 60 == 0 => write!(f, "{}m", s / 60),
            s => write!(f, "{s}s"),
        }
    }
}

impl FromStr for Seconds {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "a length of time such as `30s`, `15m`, `2h` or `7d`";
        for (unit, seconds) in [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)] {
            if let Some(number) = text.trim().strip_suffix(unit) {
                let count: u64 = number.parse().map_err(|_| invalid(text, expected))?;
                return count
                    .checked_mul(seconds)
                    .map(Self)
                    .ok_or_else(|| invalid(text, expected));
            }
        }
        Err(invalid(text, expected))
    }
}
text_form!(Seconds, r"^[0-9]+[smhd]$");

/// A number of bytes in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteRate(pub ByteSize);

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

impl FromStr for ByteRate {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "a number of bytes in a second such as `20 MiB/s`";
        let size = text.trim().strip_suffix("/s").ok_or_else(|| invalid(text, expected))?;
        size.parse().map(Self).map_err(|_| invalid(text, expected))
    }
}
text_form!(ByteRate, r"^[0-9]+(\.[0-9]{1,3})? ?([KMGT]iB|B)/s$");

/// Some hours of every day, in Coordinated Universal Time: `20:00-06:00` goes over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DailyWindow {
    /// The first minute after midnight in it.
    from: u16,
    /// The first minute after it.
    to: u16,
}

const DAY: u64 = 86_400;

impl DailyWindow {
    /// Seconds from `at` (Unix time) until it is open; nothing while it is.
    #[must_use]
    pub const fn opens_in(self, at: u64) -> u64 {
        let (from, to, now) = (self.from as u64 * 60, self.to as u64 * 60, at % DAY);
        let open = if from < to {
            from <= now && now < to
        } else {
            from <= now || now < to
        };
        if open { 0 } else { (from + DAY - now) % DAY }
    }
}

impl fmt::Display for DailyWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from, self.to);
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl FromStr for DailyWindow {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "hours of a day (UTC) such as `20:00-06:00`, which begin and end at different minutes";
        let minute = |text: &str| {
            let (hour, minute) = text.split_once(':')?;
            let digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            let two = |text: &str| digits(text).then(|| text.parse::<u16>().ok()).flatten();
            let (hour, minute) = (two(hour)?, two(minute)?);
            (hour < 24 && minute < 60).then_some(hour * 60 + minute)
        };
        let window = text.trim().split_once('-').and_then(|(from, to)| {
            let (from, to) = (minute(from)?, minute(to)?);
            (from != to).then_some(Self { from, to })
        });
        window.ok_or_else(|| invalid(text, expected))
    }
}
text_form!(DailyWindow, r"^[0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]$");
