//! Canonical JSON that survives the way there and back.
//!
//! RFC 8785 writes every number as a double. A whole number above 2^53 would silently become another
//! one, so it is refused when written; and what is read must be canonical, so that two parsers can
//! never see two meanings in one signed text.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_types::to_canonical_json;

use crate::error::SealError;

/// The largest whole number that every JSON reader holds exactly (RFC 8785, appendix D).
const MAX_EXACT: u64 = 1 << 53;

fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            number.as_u64().is_none_or(|n| n <= MAX_EXACT)
                && number.as_i64().is_none_or(|n| n.unsigned_abs() <= MAX_EXACT)
        }
        Value::Array(items) => items.iter().all(is_exact),
        Value::Object(fields) => fields.values().all(is_exact),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// Writes `value`, called `what` in errors.
pub(crate) fn write<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, SealError> {
    let not_canonical = |why: String| SealError::NotCanonical { what, why };
    let tree = serde_json::to_value(value).map_err(|error| not_canonical(position(&error)))?;
    if !is_exact(&tree) {
        return Err(not_canonical("a whole number in it is larger than 2^53".to_owned()));
    }
    to_canonical_json(value).map_err(|error| not_canonical(error.to_string()))
}

/// Reads what [`write`] wrote, and nothing else.
pub(crate) fn read<T: Serialize + DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, SealError> {
    let value: T = serde_json::from_slice(bytes).map_err(|error| SealError::malformed(what, position(&error)))?;
    if write(what, &value)? == bytes {
        Ok(value)
    } else {
        Err(SealError::malformed(what, "it is not canonical JSON (RFC 8785)"))
    }
}

/// Where a parser stopped. Its own message may quote what it read, which may be secret.
pub(crate) fn position(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Io | serde_json::error::Category::Eof => "the text ends too early",
        serde_json::error::Category::Syntax => "the text is not JSON",
        serde_json::error::Category::Data => "a field is missing, unknown or of another type",
    };
    format!("{kind}, at line {} column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Pair {
        b: u64,
        a: String,
    }

    #[test]
    fn reads_only_what_it_would_write() {
        let pair = Pair {
            b: 7,
            a: "x".to_owned(),
        };
        let bytes = write("a pair", &pair).unwrap();
        assert_eq!(bytes, br#"{"a":"x","b":7}"#);
        assert_eq!(read::<Pair>("a pair", &bytes), Ok(pair));
        for other in [
            r#"{"b":7,"a":"x"}"#,
            r#"{"a":"x", "b":7}"#,
            r#"{"a":"\u0078","b":7}"#,
            r#"{"a":"x","b":7}"#.to_owned().as_str().trim_end_matches('}'),
            r#"{"a":"x","a":"x","b":7}"#,
        ] {
            assert!(read::<Pair>("a pair", other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn refuses_numbers_that_would_change() {
        for (number, fits) in [(MAX_EXACT, true), (MAX_EXACT + 1, false), (u64::MAX, false)] {
            let pair = Pair {
                b: number,
                a: String::new(),
            };
            assert_eq!(write("a pair", &pair).is_ok(), fits, "{number}");
        }
        assert!(write("a number", &i64::MIN).is_err());
        assert!(write("a number", &f64::NAN).is_err());
    }

    #[test]
    fn errors_do_not_quote_what_was_read() {
        let error = read::<Pair>("a pair", br#"{"a":"x","b":"hunter2"}"#).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
