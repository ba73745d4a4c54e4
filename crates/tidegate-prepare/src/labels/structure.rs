//! What a plan may not hold at all, whatever its labels: statements, other tables, functions that give
//! another result each time, nesting without end.

use std::collections::BTreeSet;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion, TreeNodeVisitor};
use datafusion::error::Result;
use datafusion::logical_expr::expr::WindowFunctionDefinition;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use tidegate_types::Refusal;
use tidegate_types::ids::DatasetName;

use super::rules::{Rule, Rules};
use crate::session::{DEEPEST_EXPRESSION, MOST_RELATIONS, not_one_select, too_large, unknown_table};

/// A plan may be deeper than the query has relations: each has a projection, a filter, an alias.
const DEEPEST_PLAN: usize = 2 * MOST_RELATIONS;

/// What was found about the form of a plan.
pub(super) struct Structure {
    /// Everything that is refused about it.
    pub(super) refusals: Vec<Refusal>,
    /// Whether the plan is shallow enough to be analysed.
    pub(super) shallow: bool,
}

pub(super) fn check(plan: &LogicalPlan, dataset: &DatasetName, rules: Rules) -> Structure {
    let mut visitor = Visitor {
        dataset: dataset.as_str(),
        depth: 0,
        too_deep: false,
        statement: false,
        volatile: BTreeSet::new(),
        foreign: BTreeSet::new(),
    };
    let walked = plan.visit_with_subqueries(&mut visitor);
    let shallow = walked.is_ok() && !visitor.too_deep;
    let mut refusals = Vec::new();
    if visitor.statement {
        refusals.push(not_one_select("it holds a statement that is no SELECT"));
    }
    if !shallow {
        refusals.push(too_large());
    }
    if rules.on(Rule::OnlyTheDataset) {
        refusals.extend(visitor.foreign.iter().map(|name| unknown_table(name)));
    }
    if rules.on(Rule::VolatileRefused) {
        refusals.extend(visitor.volatile.into_iter().map(|name| {
            Refusal {
                rule: "volatile-function".to_owned(),
                what: format!("calling `{name}()` in the query of `prepare:`"),
                why: "its result changes from call to call, so training and prediction would not agree, and what it \
                  hides could not be analysed"
                    .to_owned(),
                fix: format!("leave `{name}()` out, or write the value as a constant"),
            }
        }));
    }
    Structure { refusals, shallow }
}

struct Visitor<'d> {
    dataset: &'d str,
    depth: usize,
    too_deep: bool,
    statement: bool,
    volatile: BTreeSet<String>,
    foreign: BTreeSet<String>,
}

impl<'n> TreeNodeVisitor<'n> for Visitor<'_> {
    type Node = LogicalPlan;

    fn f_down(&mut self, plan: &'n LogicalPlan) -> Result<TreeNodeRecursion> {
        self.depth += 1;
        if self.depth > DEEPEST_PLAN {
            self.too_deep = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        self.statement |= matches!(
            plan,
            LogicalPlan::Statement(_)
                | LogicalPlan::Explain(_)
                | LogicalPlan::Analyze(_)
                | LogicalPlan::Dml(_)
                | LogicalPlan::Ddl(_)
                | LogicalPlan::Copy(_)
                | LogicalPlan::DescribeTable(_)
        );
        if let LogicalPlan::TableScan(scan) = plan
            && (scan.table_name.table() != self.dataset || scan.source.get_logical_plan().is_some())
        {
            self.foreign.insert(scan.table_name.to_string());
        }
        plan.apply_expressions(|expr| {
            let mut expressions = Expressions { depth: 0, outer: self };
            expr.visit(&mut expressions)?;
            Ok(if self.too_deep {
                TreeNodeRecursion::Stop
            } else {
                TreeNodeRecursion::Continue
            })
        })
    }

    fn f_up(&mut self, _: &'n LogicalPlan) -> Result<TreeNodeRecursion> {
        self.depth -= 1;
        Ok(TreeNodeRecursion::Continue)
    }
}

struct Expressions<'v, 'd> {
    depth: usize,
    outer: &'v mut Visitor<'d>,
}

impl<'n> TreeNodeVisitor<'n> for Expressions<'_, '_> {
    type Node = Expr;

    fn f_down(&mut self, expr: &'n Expr) -> Result<TreeNodeRecursion> {
        self.depth += 1;
        if self.depth > 2 * DEEPEST_EXPRESSION {
            self.outer.too_deep = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        let (name, signature) = match expr {
            Expr::ScalarFunction(call) => (call.func.name(), call.func.signature()),
            Expr::AggregateFunction(call) => (call.func.name(), call.func.signature()),
            Expr::WindowFunction(call) => match &call.fun {
                WindowFunctionDefinition::AggregateUDF(function) => (function.name(), function.signature()),
                WindowFunctionDefinition::WindowUDF(function) => (function.name(), function.signature()),
            },
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        if signature.volatility != Volatility::Immutable {
            self.outer.volatile.insert(name.to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn f_up(&mut self, _: &'n Expr) -> Result<TreeNodeRecursion> {
        self.depth -= 1;
        Ok(TreeNodeRecursion::Continue)
    }
}
