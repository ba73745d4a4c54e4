//! How a value is written: the one place that decides what training, evaluation and prediction read.

use std::fmt::Write;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringArray, StringBuilder,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, TimeUnit};

use crate::error::PrepareError;

/// A column as text. Missing values, and floats that are not finite, are the empty text; numbers are
/// the shortest text that reads back as the same number; booleans are `1` and `0`; dates are
/// `YYYY-MM-DD`.
pub(super) fn of(column: &dyn Array, name: &str) -> Result<StringArray, PrepareError> {
    let unsupported = || {
        PrepareError::input(
            "executing the query",
            format!("column `{name}` of its output is neither number, text, boolean, date nor time"),
            "Select plain values",
        )
    };
    let to = |wanted: &DataType| -> Result<ArrayRef, PrepareError> { cast(column, wanted).map_err(|_| unsupported()) };
    Ok(match column.data_type() {
        DataType::Null => StringArray::from_iter_values(std::iter::repeat_n("", column.len())),
        DataType::Boolean => booleans(column.as_boolean()),
        DataType::Float16 | DataType::Float32 | DataType::Float64 | DataType::Decimal128(..) => {
            floats(to(&DataType::Float64)?.as_primitive())
        }
        found if found.is_integer() => match found {
            DataType::UInt64 => written(to(&DataType::Utf8)?.as_string()),
            _ => integers(to(&DataType::Int64)?.as_primitive()),
        },
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_) => written(to(&DataType::Utf8)?.as_string()),
        DataType::Timestamp(..) => written(
            cast(&to(&DataType::Timestamp(TimeUnit::Second, None))?, &DataType::Utf8)
                .map_err(|_| unsupported())?
                .as_string(),
        ),
        DataType::Dictionary(_, values) => return of(to(values)?.as_ref(), name),
        _ => return Err(unsupported()),
    })
}

fn booleans(column: &BooleanArray) -> StringArray {
    column
        .iter()
        .map(|value| Some(value.map_or("", |value| if value { "1" } else { "0" })))
        .collect()
}

fn integers(column: &Int64Array) -> StringArray {
    let mut builder = StringBuilder::with_capacity(column.len(), column.len() * 4);
    for value in column {
        if let Some(value) = value {
            // Writing into memory cannot fail.
            let _ = write!(builder, "{value}");
        }
        builder.append_value("");
    }
    builder.finish()
}

fn floats(column: &Float64Array) -> StringArray {
    let mut builder = StringBuilder::with_capacity(column.len(), column.len() * 8);
    for value in column {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            // Adding zero makes negative zero positive.
            let _ = write!(builder, "{}", value + 0.0);
        }
        builder.append_value("");
    }
    builder.finish()
}

fn written(column: &StringArray) -> StringArray {
    column
        .iter()
        .map(|value| Some(value.unwrap_or_default().trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Date32Array, Float32Array, UInt64Array};

    use super::*;

    #[test]
    fn values_are_written_one_way() {
        let columns: Vec<(ArrayRef, Vec<&str>)> = vec![
            (
                Arc::new(Float64Array::from(vec![
                    Some(62.0),
                    Some(0.1),
                    Some(-0.0),
                    Some(f64::NAN),
                    None,
                    Some(1e-7),
                ])),
                vec!["62", "0.1", "0", "", "", "0.0000001"],
            ),
            (Arc::new(Int64Array::from(vec![Some(-5), None])), vec!["-5", ""]),
            (
                Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
                vec!["1", "0", ""],
            ),
            (Arc::new(Date32Array::from(vec![19_782])), vec!["2024-02-29"]),
            (
                Arc::new(UInt64Array::from(vec![u64::MAX])),
                vec!["18446744073709551615"],
            ),
            (Arc::new(StringArray::from(vec![Some(" a "), None])), vec!["a", ""]),
            (Arc::new(Float32Array::from(vec![0.5])), vec!["0.5"]),
        ];
        for (column, expected) in columns {
            let found = of(column.as_ref(), "x").unwrap();
            let found: Vec<_> = found.iter().map(Option::unwrap_or_default).collect();
            assert_eq!(found, expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn a_number_reads_back_as_itself(value in proptest::num::f64::NORMAL) {
            let found = of(&Float64Array::from(vec![value]), "x").unwrap();
            proptest::prop_assert_eq!(found.value(0).parse::<f64>().unwrap(), value);
        }
    }
}
