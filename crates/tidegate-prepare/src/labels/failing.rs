//! Which operations cannot fail, whatever the values. All others may, and failing tells something
//! about the values: a division, a cast of text to a number, a position in a list.
//!
//! The lists hold what was checked in DataFusion's kernels: integers wrap, floating point numbers
//! become infinite or NaN, comparisons and boolean logic are total.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator};

/// Whether a binary operation may fail.
pub(super) fn binary(binary: &BinaryExpr, schema: &DFSchema) -> bool {
    match binary.op {
        Operator::And
        | Operator::Or
        | Operator::Eq
        | Operator::NotEq
        | Operator::Lt
        | Operator::LtEq
        | Operator::Gt
        | Operator::GtEq
        | Operator::IsDistinctFrom
        | Operator::IsNotDistinctFrom
        | Operator::StringConcat => false,
        Operator::Plus | Operator::Minus | Operator::Multiply => !both(binary, schema, is_plain_number),
        Operator::Divide | Operator::Modulo => {
            let total = both(binary, schema, DataType::is_floating)
                || (both(binary, schema, is_plain_number) && is_safe_divisor(&binary.right));
            !total
        }
        _ => true,
    }
}

/// Whether the negation of `inner` may fail.
pub(super) fn negative(inner: &Expr, schema: &DFSchema) -> bool {
    !of_type(inner, schema, DataType::is_floating)
}

/// Whether a cast of `inner` to `to` may fail.
pub(super) fn cast(inner: &Expr, to: &DataType, schema: &DFSchema) -> bool {
    let Ok(from) = inner.get_type(schema) else {
        return true;
    };
    let text = |it: &DataType| matches!(it, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let same = &from == to || from.is_null();
    let widening = match (&from, to) {
        (DataType::Boolean, to) => is_plain_number(to),
        (from, DataType::Float64) => is_plain_number(from),
        (DataType::Int8 | DataType::Int16 | DataType::Int32, DataType::Int64) => true,
        (DataType::UInt8 | DataType::UInt16 | DataType::UInt32, DataType::Int64 | DataType::UInt64) => true,
        _ => false,
    };
    let printing = text(to) && (text(&from) || is_plain_number(&from) || from == DataType::Boolean);
    !(same || widening || printing)
}

/// Whether a scalar function that is not one of ours may fail.
pub(super) fn function(call: &ScalarFunction, schema: &DFSchema) -> bool {
    match call.func.name() {
        "coalesce" | "nullif" | "nvl" | "nvl2" | "greatest" | "least" | "lower" | "upper" | "btrim" | "ltrim"
        | "rtrim" | "character_length" | "octet_length" | "starts_with" | "ends_with" | "concat" | "isnan"
        | "iszero" | "nanvl" => false,
        "abs" | "ceil" | "floor" | "exp" | "signum" => !call
            .args
            .iter()
            .all(|argument| of_type(argument, schema, DataType::is_floating)),
        _ => true,
    }
}

/// Whether an aggregate over these arguments may fail.
pub(super) fn aggregate(name: &str, arguments: &[Expr], schema: &DFSchema) -> bool {
    match name {
        "count" | "min" | "max" | "bool_and" | "bool_or" => false,
        "sum" | "avg" | "stddev" | "stddev_pop" | "var" | "var_pop" | "median" => !arguments
            .iter()
            .all(|argument| of_type(argument, schema, is_plain_number)),
        _ => true,
    }
}

/// Whether an aggregate gives the same for every order of its rows.
pub(super) fn order_does_not_matter(name: &str) -> bool {
    matches!(
        name,
        "count"
            | "sum"
            | "avg"
            | "min"
            | "max"
            | "median"
            | "stddev"
            | "stddev_pop"
            | "var"
            | "var_pop"
            | "corr"
            | "covar_samp"
            | "covar_pop"
            | "bool_and"
            | "bool_or"
            | "bit_and"
            | "bit_or"
            | "bit_xor"
    )
}

fn both(binary: &BinaryExpr, schema: &DFSchema, accept: fn(&DataType) -> bool) -> bool {
    of_type(&binary.left, schema, accept) && of_type(&binary.right, schema, accept)
}

fn of_type(expr: &Expr, schema: &DFSchema, accept: fn(&DataType) -> bool) -> bool {
    expr.get_type(schema).is_ok_and(|it| accept(&it))
}

fn is_plain_number(it: &DataType) -> bool {
    it.is_integer() || it.is_floating()
}

/// Zero divides nothing, and the least integer divided by minus one does not fit.
fn is_safe_divisor(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(ScalarValue::Int64(Some(divisor)), _) if !matches!(divisor, 0 | -1))
}
