//! The de-identifying functions: `token`, `mask`, `zip3`, `year`, `age_band`, `top_code`, `redact`.
//!
//! They are ordinary scalar functions of the query language, and the only ones that the label
//! analysis lets lower a label ([`crate::labels`]). Each is total: a value that it cannot read
//! becomes NULL, never an error, because an error would tell something about the value. What a
//! function makes of one value is in `values`; this file carries it to columns.

mod values;
mod zip;

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray, new_null_array};
use datafusion::arrow::compute::{CastOptions, DatePart, cast_with_options, date_part};
use datafusion::arrow::datatypes::{DataType, Float64Type, Int32Type, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

pub use values::{LEAST_AGE_BAND, MASK, OLDEST_AGE, OLDEST_YEAR};

/// Keys of the functions. Made anew for each release and audience, so that tokens of two releases
/// cannot be matched.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FunctionKeys {
    /// The key of `token()`: HMAC-SHA-256.
    pub token: [u8; 32],
}

impl fmt::Debug for FunctionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FunctionKeys([secret])")
    }
}

/// Which de-identifying function it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Function {
    /// `token(column)`: a keyed code, 32 hexadecimal digits; equal values give equal tokens.
    Token,
    /// `mask(column)`: the constant text `***`, also for NULL.
    Mask,
    /// `zip3(column)`: the first three digits of a ZIP code, `000` for sparsely populated areas.
    Zip3,
    /// `year(column)`: the year of a date; years before [`OLDEST_YEAR`] become that year.
    Year,
    /// `age_band(column, width)`: the lower bound of the band; [`OLDEST_AGE`] and above is one band.
    AgeBand,
    /// `top_code(column, limit)`: the whole-number part, at most `limit`.
    TopCode,
    /// `redact(column)`: NULL, as text whatever the column's type.
    Redact,
}

impl Function {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Token,
        Self::Mask,
        Self::Zip3,
        Self::Year,
        Self::AgeBand,
        Self::TopCode,
        Self::Redact,
    ];

    /// The name in SQL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Mask => "mask",
            Self::Zip3 => "zip3",
            Self::Year => "year",
            Self::AgeBand => "age_band",
            Self::TopCode => "top_code",
            Self::Redact => "redact",
        }
    }

    const fn arguments(self) -> usize {
        match self {
            Self::AgeBand | Self::TopCode => 2,
            _ => 1,
        }
    }
}

/// The functions as the query engine takes them. Without keys, `token()` can be planned and not
/// executed.
#[must_use]
pub fn all(keys: Option<&FunctionKeys>) -> Vec<ScalarUDF> {
    Function::ALL
        .into_iter()
        .map(|function| {
            ScalarUDF::new_from_impl(DeIdentify {
                function,
                keys: keys.cloned(),
                // No implicit cast may come between the function and the column that it refers to.
                signature: Signature::any(function.arguments(), Volatility::Immutable),
            })
        })
        .collect()
}

/// Which de-identifying function `udf` is; `None` for every other function, also one of the same name.
#[must_use]
pub fn recognise(udf: &ScalarUDF) -> Option<Function> {
    udf.inner().downcast_ref::<DeIdentify>().map(|it| it.function)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DeIdentify {
    function: Function,
    keys: Option<FunctionKeys>,
    signature: Signature,
}

impl ScalarUDFImpl for DeIdentify {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(match self.function {
            // Also what redact() gives: the column's own type was found in values that it hides.
            Function::Token | Function::Mask | Function::Zip3 | Function::Redact => DataType::Utf8,
            Function::Year | Function::AgeBand | Function::TopCode => DataType::Int64,
        })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let constant = arguments
            .args
            .iter()
            .all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let length = if constant { 1 } else { rows };
        let mut arrays = Vec::with_capacity(arguments.args.len());
        for value in &arguments.args {
            arrays.push(value.to_array(length)?);
        }
        let Some(column) = arrays.first() else {
            return exec_err!("{}() needs a column", self.name());
        };
        let result = self.column(column, arrays.get(1))?;
        if constant {
            Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(
                &result, 0,
            )?))
        } else {
            Ok(ColumnarValue::Array(result))
        }
    }
}

impl DeIdentify {
    fn column(&self, column: &ArrayRef, parameter: Option<&ArrayRef>) -> Result<ArrayRef> {
        Ok(match self.function {
            Function::Token => {
                let Some(keys) = &self.keys else {
                    return exec_err!("token() needs the keys of a release, and this session has none");
                };
                let key = hmac::Key::new(hmac::HMAC_SHA256, &keys.token);
                let tokens = texts(column)?.into_iter();
                let tokens = tokens.map(|text| text.map(|text| values::token(&key, &text)));
                Arc::new(tokens.collect::<StringArray>())
            }
            Function::Mask => Arc::new(StringArray::from(vec![MASK; column.len()])),
            Function::Zip3 => {
                let codes = texts(column)?.into_iter();
                let numeric = column.data_type().is_numeric();
                Arc::new(
                    codes
                        .map(|code| code.and_then(|code| values::zip3(&code, numeric)))
                        .collect::<StringArray>(),
                )
            }
            Function::Year => Arc::new(years(column)?.into_iter().collect::<Int64Array>()),
            Function::AgeBand | Function::TopCode => {
                let apply = if self.function == Function::AgeBand {
                    values::age_band
                } else {
                    values::top_code
                };
                let parameters = match parameter {
                    Some(parameter) => whole_numbers(parameter)?,
                    None => vec![None; column.len()],
                };
                let pairs = whole_numbers(column)?.into_iter().zip(parameters);
                Arc::new(
                    pairs
                        .map(|(value, parameter)| apply(value?, parameter?))
                        .collect::<Int64Array>(),
                )
            }
            Function::Redact => new_null_array(&DataType::Utf8, column.len()),
        })
    }
}

/// Casts without errors: what does not fit becomes NULL.
fn cast(column: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let options = CastOptions {
        safe: true,
        ..CastOptions::default()
    };
    // A type that cannot be cast at all depends on the schema and on no value.
    Ok(cast_with_options(column, to, &options).unwrap_or_else(|_| new_null_array(to, column.len())))
}

fn texts(column: &ArrayRef) -> Result<Vec<Option<String>>> {
    let column = cast(column, &DataType::Utf8)?;
    Ok(column
        .as_string::<i32>()
        .iter()
        .map(|text| text.map(|text| text.trim().to_owned()))
        .collect())
}

fn whole_numbers(column: &ArrayRef) -> Result<Vec<Option<i64>>> {
    let kind = column.data_type();
    Ok(if kind.is_integer() {
        cast(column, &DataType::Int64)?
            .as_primitive::<Int64Type>()
            .iter()
            .collect()
    } else if kind.is_numeric() {
        let column = cast(column, &DataType::Float64)?;
        column
            .as_primitive::<Float64Type>()
            .iter()
            .map(|number| number.and_then(values::whole))
            .collect()
    } else if kind.is_string() {
        texts(column)?
            .into_iter()
            .map(|text| values::whole(text?.parse().ok()?))
            .collect()
    } else {
        vec![None; column.len()]
    })
}

fn years(column: &ArrayRef) -> Result<Vec<Option<i64>>> {
    let kind = column.data_type();
    if kind.is_string() {
        return Ok(texts(column)?
            .into_iter()
            .map(|text| values::year_of_text(&text?))
            .collect());
    }
    if !matches!(kind, DataType::Date32 | DataType::Date64 | DataType::Timestamp(..)) {
        return Ok(vec![None; column.len()]);
    }
    let Ok(years) = date_part(column, DatePart::Year) else {
        return Ok(vec![None; column.len()]);
    };
    Ok(years
        .as_primitive::<Int32Type>()
        .iter()
        .map(|year| year.and_then(|year| values::year(i64::from(year))))
        .collect())
}
