//! What a relation depends on: its columns, and which rows there are.

use datafusion::common::{DFSchema, JoinType};
use datafusion::logical_expr::{Aggregate, Distinct, Expr, Join, Limit, LogicalPlan, Sort, TableScan, Union, Window};

use super::analysis::Analysis;
use super::expression::Scope;
use super::rules::Rule;
use super::taint::{Relation, Taint, Value};

impl Analysis<'_> {
    /// What the rows and columns of `plan` depend on, in the order of its schema.
    pub(super) fn relation(&mut self, plan: &LogicalPlan) -> Relation {
        let relation = match plan {
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::SubqueryAlias(alias) => self.relation(&alias.input),
            LogicalPlan::Projection(projection) => {
                let mut input = self.relation(&projection.input);
                input.columns = self.values(&projection.expr, &projection.input, &mut input);
                input
            }
            LogicalPlan::Filter(filter) => {
                let mut input = self.relation(&filter.input);
                let predicate = self.values([&filter.predicate], &filter.input, &mut input);
                if self.on(Rule::FilterDecidesRows) {
                    self.decide_all(&mut input.rows, &predicate, "a filter");
                }
                input
            }
            LogicalPlan::Join(join) => self.join_relation(join),
            LogicalPlan::Aggregate(aggregate) => self.aggregate_relation(aggregate),
            LogicalPlan::Union(union) => self.union(union),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let mut input = self.relation(input);
                if self.on(Rule::DistinctDecidesRows) {
                    let columns = input.columns.clone();
                    self.decide_all(&mut input.rows, &columns, "DISTINCT");
                }
                input.columns.iter_mut().for_each(|column| column.direct = None);
                input
            }
            LogicalPlan::Sort(sort) => self.sort(sort),
            LogicalPlan::Limit(limit) => self.limit(limit),
            LogicalPlan::Values(values) => {
                let width = values.schema.fields().len();
                let mut relation = Relation {
                    columns: vec![Value::default(); width],
                    supplied: true,
                    ..Relation::default()
                };
                let nothing = DFSchema::empty();
                let scope = Scope {
                    columns: &[],
                    schema: &nothing,
                };
                for row in &values.values {
                    for (column, expr) in relation.columns.iter_mut().zip(row) {
                        column.taint.extend(self.value(expr, &scope, &mut relation.rows).taint);
                    }
                }
                relation
            }
            LogicalPlan::EmptyRelation(empty) => Relation {
                columns: vec![Value::default(); empty.schema.fields().len()],
                supplied: empty.produce_one_row,
                ..Relation::default()
            },
            LogicalPlan::Window(window) if !self.on(Rule::WindowJoinsEverything) => self.window_unjoined(window),
            LogicalPlan::Window(window) => self.unknown_relation(window.schema.fields().len(), "a window function"),
            // Everything else, also what a later version of the query engine may add.
            other if !self.on(Rule::UnknownJoinsEverything) => Relation {
                columns: vec![Value::default(); other.schema().fields().len()],
                ..Relation::default()
            },
            other => {
                let because_of = match other {
                    LogicalPlan::RecursiveQuery(_) => "a recursive query",
                    LogicalPlan::Unnest(_) => "UNNEST",
                    LogicalPlan::Distinct(Distinct::On(_)) => "DISTINCT ON",
                    _ => "an operator that it does not know",
                };
                self.unknown_relation(other.schema().fields().len(), because_of)
            }
        };
        if relation.columns.len() == plan.schema().fields().len() {
            relation
        } else {
            self.unknown_relation(plan.schema().fields().len(), "a relation of an unexpected shape")
        }
    }

    /// What expressions over `plan` depend on; what may fail decides over the rows of `input`.
    fn values<'e>(
        &mut self,
        exprs: impl IntoIterator<Item = &'e Expr>,
        plan: &LogicalPlan,
        input: &mut Relation,
    ) -> Vec<Value> {
        let scope = Scope {
            columns: &input.columns,
            schema: plan.schema(),
        };
        let rows = &mut input.rows;
        exprs.into_iter().map(|expr| self.value(expr, &scope, rows)).collect()
    }

    fn decide_all(&mut self, rows: &mut Taint, values: &[Value], cause: &'static str) {
        for value in values {
            self.decide(rows, &value.taint, cause);
        }
    }

    fn scan(&mut self, scan: &TableScan) -> Relation {
        let width = scan.projected_schema.fields().len();
        if scan.table_name.table() != self.facts.dataset.as_str() && self.on(Rule::OnlyTheDataset) {
            return self.unknown_relation(width, "a table that is not the dataset");
        }
        let schema = scan.source.schema();
        let all: Vec<Value> = schema
            .fields()
            .iter()
            .map(|field| self.read(field.name(), Some(field.data_type())))
            .collect();
        // A plan that was not optimised has no filters and no limit here.
        if !scan.filters.is_empty() || scan.fetch.is_some() {
            return self.unknown_relation(width, "a scan with conditions of its own");
        }
        Relation {
            columns: match &scan.projection {
                None => all,
                Some(indices) => indices.iter().filter_map(|index| all.get(*index).cloned()).collect(),
            },
            ..Relation::default()
        }
    }

    fn join_relation(&mut self, join: &Join) -> Relation {
        let mut left = self.relation(&join.left);
        let mut right = self.relation(&join.right);
        let left_keys = self.values(join.on.iter().map(|(left, _)| left), &join.left, &mut left);
        let right_keys = self.values(join.on.iter().map(|(_, right)| right), &join.right, &mut right);
        let mut rows = Taint::new();
        if self.on(Rule::JoinCarriesRows) {
            rows.extend(left.rows.union(&right.rows).cloned());
        }
        let mut keys = Taint::new();
        self.decide_all(&mut keys, &left_keys, "a join key");
        self.decide_all(&mut keys, &right_keys, "a join key");
        if self.on(Rule::JoinKeysDecideRows) {
            rows.extend(keys.iter().cloned());
        }
        let both: Vec<Value> = left.columns.iter().chain(&right.columns).cloned().collect();
        if let Some(filter) = &join.filter {
            let filter = match join.left.schema().join(join.right.schema()) {
                Ok(schema) => {
                    let scope = Scope {
                        columns: &both,
                        schema: &schema,
                    };
                    self.value(filter, &scope, &mut rows)
                }
                Err(_) => self.everything("a join over columns of the same name"),
            };
            if self.on(Rule::JoinFilterDecidesRows) {
                self.decide(&mut rows, &filter.taint, "a condition of a join");
            }
        }
        // Marks say whether a row found a partner: that is what the row label says already.
        let mark = || Value::computed(keys.clone());
        let columns = match join.join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => both,
            JoinType::LeftSemi | JoinType::LeftAnti => left.columns,
            JoinType::RightSemi | JoinType::RightAnti => right.columns,
            JoinType::LeftMark => left.columns.into_iter().chain([mark()]).collect(),
            JoinType::RightMark => right.columns.into_iter().chain([mark()]).collect(),
        };
        let supplied = match join.join_type {
            JoinType::Inner => left.supplied && right.supplied,
            JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left.supplied,
            JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right.supplied,
            JoinType::Full => left.supplied || right.supplied,
        };
        Relation {
            columns,
            rows,
            order: left.order.union(&right.order).cloned().collect(),
            supplied,
        }
    }

    fn aggregate_relation(&mut self, aggregate: &Aggregate) -> Relation {
        let mut input = self.relation(&aggregate.input);
        let sets = aggregate
            .group_expr
            .iter()
            .any(|expr| matches!(expr, Expr::GroupingSet(_)));
        if sets && self.on(Rule::GroupingSetJoinsEverything) {
            return self.unknown_relation(aggregate.schema.fields().len(), "a grouping set");
        }
        if sets {
            let columns = vec![Value::default(); aggregate.schema.fields().len()];
            return Relation { columns, ..input };
        }
        let mut keys = self.values(&aggregate.group_expr, &aggregate.input, &mut input);
        keys.iter_mut().for_each(|key| key.direct = None);
        if self.on(Rule::GroupKeysDecideRows) {
            self.decide_all(&mut input.rows, &keys, "a group key");
        }
        self.use_order(&mut input);
        let scope = Scope {
            columns: &input.columns,
            schema: aggregate.input.schema(),
        };
        let mut columns = keys;
        for expr in &aggregate.aggr_expr {
            columns.push(self.aggregate(expr, &scope, &mut input.rows));
        }
        Relation {
            columns,
            rows: input.rows,
            order: Taint::new(),
            // Without keys there is one row, also over no row at all.
            supplied: input.supplied,
        }
    }

    /// A column tells which branch a row came through, and so what the conditions of that branch say,
    /// unless every branch gives the same source column unchanged.
    fn union(&mut self, union: &Union) -> Relation {
        let width = union.schema.fields().len();
        let mut relation = Relation::default();
        for (number, input) in union.inputs.iter().enumerate() {
            let input = self.relation(input);
            if input.columns.len() != width {
                return self.unknown_relation(width, "a union of an unexpected shape");
            }
            if self.on(Rule::UnionCarriesRows) {
                relation.rows.extend(input.rows);
            }
            relation.order.extend(input.order);
            relation.supplied |= input.supplied;
            if number == 0 {
                relation.columns = input.columns;
            } else if self.on(Rule::UnionJoinsBranches) {
                for (column, branch) in relation.columns.iter_mut().zip(input.columns) {
                    column.taint.extend(branch.taint);
                    if column.direct != branch.direct && self.on(Rule::UnionOfOneColumn) {
                        column.direct = None;
                    }
                }
            }
        }
        if union.inputs.len() > 1 && self.on(Rule::UnionJoinsBranches) {
            let rows = &relation.rows;
            for column in relation.columns.iter_mut().filter(|column| column.direct.is_none()) {
                column.taint.extend(rows.iter().cloned());
            }
        }
        relation
    }

    fn sort(&mut self, sort: &Sort) -> Relation {
        let mut input = self.relation(&sort.input);
        let keys = self.values(sort.expr.iter().map(|key| &key.expr), &sort.input, &mut input);
        for key in &keys {
            input.order.extend(key.taint.iter().cloned());
        }
        if sort.fetch.is_some() {
            self.cut(&mut input, is_total(sort));
        }
        input
    }

    fn limit(&mut self, limit: &Limit) -> Relation {
        let mut input = self.relation(&limit.input);
        let bounds = limit.skip.iter().chain(&limit.fetch).map(|bound| bound.as_ref());
        let bounds = self.values(bounds, &limit.input, &mut input);
        self.decide_all(&mut input.rows, &bounds, "a limit");
        let total = matches!(limit.input.as_ref(), LogicalPlan::Sort(sort) if is_total(sort));
        self.cut(&mut input, total);
        input
    }

    /// Some rows of `input` are left out by their place.
    fn cut(&mut self, input: &mut Relation, total_order: bool) {
        if total_order {
            if self.on(Rule::OrderedLimitDecidesRows) {
                let order = input.order.clone();
                self.decide(&mut input.rows, &order, "ORDER BY with a limit");
            }
        } else if self.on(Rule::LimitJoinsEverything) {
            let value = self.everything("a limit without a total order");
            self.decide(&mut input.rows, &value.taint, "a limit without a total order");
        }
    }

    /// An operator makes something of the order of its rows.
    fn use_order(&mut self, input: &mut Relation) {
        let order = std::mem::take(&mut input.order);
        if self.on(Rule::OrderReachesAggregates) {
            self.decide(&mut input.rows, &order, "the order of an aggregate's input");
        }
    }

    fn window_unjoined(&mut self, window: &Window) -> Relation {
        let mut input = self.relation(&window.input);
        input.columns.resize(window.schema.fields().len(), Value::default());
        input
    }
}

/// Whether the order leaves no tie between different rows: it names every column.
fn is_total(sort: &Sort) -> bool {
    let schema = sort.input.schema();
    let named: std::collections::BTreeSet<usize> = sort
        .expr
        .iter()
        .filter_map(|key| match &key.expr {
            Expr::Column(column) => schema.maybe_index_of_column(column),
            _ => None,
        })
        .collect();
    named.len() == schema.fields().len()
}
