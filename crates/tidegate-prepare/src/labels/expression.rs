//! What an expression depends on.

use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::{AggregateFunction, Case, ScalarFunction};
use tidegate_types::column::IdentifierKind;
use tidegate_types::files::pipeline::Profile;

use super::analysis::Analysis;
use super::failing;
use super::rules::Rule;
use super::taint::{Atom, Call, Taint, Value};
use crate::functions::{self, Function, LEAST_AGE_BAND, OLDEST_AGE};

/// The columns that an expression is written over.
pub(super) struct Scope<'a> {
    pub(super) columns: &'a [Value],
    pub(super) schema: &'a DFSchema,
}

impl Analysis<'_> {
    /// What `expr` depends on. If it may fail, its failure tells about all that it depends on, so that
    /// joins `rows`.
    pub(super) fn value(&mut self, expr: &Expr, scope: &Scope<'_>, rows: &mut Taint) -> Value {
        let mut may_fail = false;
        let value = self.walk(expr, scope, &mut may_fail);
        if may_fail && self.on(Rule::FailureDecidesRows) {
            self.decide(rows, &value.taint, "an expression that may fail");
        }
        value
    }

    fn walk(&mut self, expr: &Expr, scope: &Scope<'_>, may_fail: &mut bool) -> Value {
        match expr {
            Expr::Alias(alias) => self.walk(&alias.expr, scope, may_fail),
            Expr::Column(column) => self.column(column, scope),
            Expr::Literal(..) => Value::default(),
            Expr::BinaryExpr(binary) => {
                *may_fail |= failing::binary(binary, scope.schema);
                self.join([binary.left.as_ref(), binary.right.as_ref()], scope, may_fail)
            }
            Expr::Like(like) | Expr::SimilarTo(like) => {
                let constant = matches!(like.pattern.as_ref(), Expr::Literal(..));
                *may_fail |= !constant || matches!(expr, Expr::SimilarTo(_));
                self.join([like.expr.as_ref(), like.pattern.as_ref()], scope, may_fail)
            }
            Expr::Not(inner)
            | Expr::IsNotNull(inner)
            | Expr::IsNull(inner)
            | Expr::IsTrue(inner)
            | Expr::IsFalse(inner)
            | Expr::IsUnknown(inner)
            | Expr::IsNotTrue(inner)
            | Expr::IsNotFalse(inner)
            | Expr::IsNotUnknown(inner)
            | Expr::TryCast(datafusion::logical_expr::TryCast { expr: inner, .. }) => {
                self.join([inner.as_ref()], scope, may_fail)
            }
            Expr::Negative(inner) => {
                *may_fail |= failing::negative(inner, scope.schema);
                self.join([inner.as_ref()], scope, may_fail)
            }
            Expr::Between(between) => {
                let parts = [between.expr.as_ref(), between.low.as_ref(), between.high.as_ref()];
                self.join(parts, scope, may_fail)
            }
            Expr::Case(case) => self.case(case, scope, may_fail),
            Expr::Cast(cast) => {
                *may_fail |= failing::cast(&cast.expr, cast.field.data_type(), scope.schema);
                self.join([cast.expr.as_ref()], scope, may_fail)
            }
            Expr::InList(list) => {
                let parts = std::iter::once(list.expr.as_ref()).chain(&list.list);
                self.join(parts, scope, may_fail)
            }
            Expr::ScalarFunction(call) => match functions::recognise(&call.func) {
                Some(function) => self.de_identify(function, call, scope, may_fail),
                None => {
                    *may_fail |= failing::function(call, scope.schema);
                    self.join(&call.args, scope, may_fail)
                }
            },
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::ScalarSubquery(_)
                if !self.on(Rule::SubqueryJoinsEverything) =>
            {
                Value::default()
            }
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::ScalarSubquery(_) => {
                *may_fail = true;
                self.everything("a subquery inside an expression")
            }
            // Everything else, also what a later version of the query engine may add.
            _ if !self.on(Rule::UnknownJoinsEverything) => Value::default(),
            other => {
                *may_fail = true;
                self.everything(&format!("an expression of the kind {}", other.variant_name()))
            }
        }
    }

    /// The column that a reference means. Which one the engine takes where a shortened name fits several
    /// is its own affair, so all of them count.
    fn column(&mut self, column: &Column, scope: &Scope<'_>) -> Value {
        let fields = scope.schema.iter().zip(scope.columns);
        let mut fitting = fields.filter(|((qualifier, field), _)| {
            field.name() == &column.name
                && match (&column.relation, qualifier) {
                    (Some(wanted), Some(found)) => wanted.resolved_eq(found),
                    (Some(_), None) => false,
                    (None, _) => true,
                }
        });
        let Some((_, first)) = fitting.next() else {
            return self.everything("a column that is not in its relation");
        };
        let mut value = first.clone();
        for (_, other) in fitting {
            value.taint.extend(other.taint.iter().cloned());
            value.direct = None;
        }
        value
    }

    fn join<'e>(&mut self, parts: impl IntoIterator<Item = &'e Expr>, scope: &Scope<'_>, may_fail: &mut bool) -> Value {
        let mut taint = Taint::new();
        for part in parts {
            taint.extend(self.walk(part, scope, may_fail).taint);
        }
        Value::computed(taint)
    }

    fn case(&mut self, case: &Case, scope: &Scope<'_>, may_fail: &mut bool) -> Value {
        let mut conditions = self.join(case.expr.as_deref(), scope, may_fail).taint;
        let mut taint = Taint::new();
        for (when, then) in &case.when_then_expr {
            conditions.extend(self.walk(when, scope, may_fail).taint);
            taint.extend(self.walk(then, scope, may_fail).taint);
        }
        taint.extend(self.join(case.else_expr.as_deref(), scope, may_fail).taint);
        if self.on(Rule::CaseConditionsJoin) {
            taint.extend(conditions);
        }
        Value::computed(taint)
    }

    /// An aggregate function over the rows of a group.
    pub(super) fn aggregate(&mut self, expr: &Expr, scope: &Scope<'_>, rows: &mut Taint) -> Value {
        let expr = match expr {
            Expr::Alias(alias) => alias.expr.as_ref(),
            other => other,
        };
        let Expr::AggregateFunction(AggregateFunction { func, params }) = expr else {
            return self.everything("an aggregate that is no function");
        };
        if !failing::order_does_not_matter(func.name()) && self.on(Rule::OrderedAggregateJoinsEverything) {
            return self.everything(&format!("`{}`, which depends on the order of rows", func.name()));
        }
        let mut may_fail = failing::aggregate(func.name(), &params.args, scope.schema);
        let mut taint = self.join(&params.args, scope, &mut may_fail).taint;
        let keys = params.order_by.iter().map(|sort| &sort.expr);
        taint.extend(self.join(keys, scope, &mut may_fail).taint);
        let filter = self.join(params.filter.as_deref(), scope, &mut may_fail).taint;
        if self.on(Rule::AggregateFilterJoins) {
            taint.extend(filter);
        }
        if may_fail && self.on(Rule::FailureDecidesRows) {
            self.decide(rows, &taint, "an aggregate that may fail");
        }
        Value::computed(taint)
    }

    /// A call of one of our functions: lowers only if every condition of the profile holds. If one
    /// does not, it is a function like any other, and the reason is kept for the refusal.
    fn de_identify(
        &mut self,
        function: Function,
        call: &ScalarFunction,
        scope: &Scope<'_>,
        may_fail: &mut bool,
    ) -> Value {
        let Some((first, parameters)) = call.args.split_first() else {
            return self.everything("a de-identifying function without a column");
        };
        let argument = self.walk(first, scope, may_fail);
        let written = self.join(parameters, scope, may_fail).taint;
        let raw = Value::computed(argument.taint.union(&written).cloned().collect());
        let parameter = match parameters.first() {
            None => None,
            Some(Expr::Literal(ScalarValue::Int64(Some(constant)), _)) => Some(*constant),
            Some(_) if self.on(Rule::ConstantParameters) => {
                self.note(&raw.taint, Objection::Parameter(function));
                return raw;
            }
            Some(_) => Some(LEAST_AGE_BAND),
        };
        let call = Call { function, parameter };
        let column = match &argument.direct {
            Some(column) if matches!(first, Expr::Column(_)) => column.clone(),
            _ if self.on(Rule::DirectReference) => {
                self.note(&argument.taint, Objection::Computed(function));
                return raw;
            }
            _ => {
                let taint = argument.taint.iter();
                return Value::computed(
                    taint
                        .map(|atom| Atom::Lowered(atom.column().clone(), call.clone()))
                        .collect(),
                );
            }
        };
        if let Some(objection) = self.objection(&call, &column) {
            self.note(&argument.taint, objection);
            return raw;
        }
        if !call.is_constant() {
            self.uses.entry(column.clone()).or_default().insert(call.clone());
        }
        Value::computed([Atom::Lowered(column, call)].into())
    }

    fn objection(&self, call: &Call, column: &str) -> Option<Objection> {
        let Call { function, parameter } = *call;
        if self.facts.profile == Profile::None && self.on(Rule::NoneLowersNothing) {
            return Some(Objection::NoProfile(function));
        }
        let made_for = match function {
            Function::Token if self.on(Rule::DerivedCodesDoNotLower) => return Some(Objection::DerivedCode),
            Function::Token | Function::Mask | Function::Redact => None,
            Function::Zip3 => Some(IdentifierKind::ZipCode),
            Function::Year => Some(IdentifierKind::Date),
            Function::AgeBand | Function::TopCode => Some(IdentifierKind::Age),
        };
        let kind = self.source(column).kind;
        if made_for.is_some_and(|made_for| made_for != kind) && self.on(Rule::KindFits) {
            return Some(Objection::Kind(function));
        }
        let bounds = match function {
            Function::AgeBand => LEAST_AGE_BAND..=OLDEST_AGE,
            Function::TopCode => 0..=OLDEST_AGE,
            _ => return None,
        };
        let inside = parameter.is_some_and(|parameter| bounds.contains(&parameter));
        (!inside && self.on(Rule::ParametersInBounds)).then_some(Objection::Bounds(function))
    }
}

/// Why a call of a de-identifying function does not lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Objection {
    /// Its argument is no direct reference to one source column.
    Computed(Function),
    /// Its parameter is not a constant.
    Parameter(Function),
    /// Its parameter is outside the bounds.
    Bounds(Function),
    /// The column is of another kind.
    Kind(Function),
    /// Safe Harbor accepts no derived codes.
    DerivedCode,
    /// The profile lowers nothing.
    NoProfile(Function),
    /// Another function is applied to the same column.
    SecondFunction,
}
