//! The DataFusion session in which queries are planned and executed.
//!
//! [`session`] knows the de-identifying functions and nothing of the outside: no file, address or
//! table is reachable by name unless it was registered. [`plan`] turns one SELECT into the analysed
//! plan that the label analysis reads ([`crate::labels::analyse`]) and that is then executed.

pub(crate) mod mistake;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use datafusion::sql::sqlparser::ast::{Expr, Query, Select, TableFactor, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use tidegate_types::Refusal;

use crate::functions;
pub use crate::functions::FunctionKeys;

/// What a query may hold in memory before it fails.
pub const MEMORY_LIMIT: usize = 512 << 20;

/// A query that cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It is not one SELECT, or reads what is no table of the session.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It is not valid SQL, or names a column or function that is not there: the place in the query, where
    /// it is known, and what is wrong. Nothing was read, so the text holds nothing from the data.
    #[error("the query cannot be planned: {0}")]
    Invalid(String),
}

/// A session with the de-identifying functions. Without keys, `token()` can be planned and fails when
/// it is executed. A query that needs more than [`MEMORY_LIMIT`] fails: rows are never written beside
/// the data.
#[must_use]
pub fn session(keys: Option<&FunctionKeys>) -> SessionContext {
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(MEMORY_LIMIT)))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .build()
        .unwrap_or_else(|_| RuntimeEnv {
            // Without its own settings a session gets no memory, rather than all of it.
            memory_pool: Arc::new(FairSpillPool::new(0)),
            ..RuntimeEnv::default()
        });
    // One partition: the same rows give the same bytes, which several would not for sums of floating
    // point numbers.
    let mut config = SessionConfig::new()
        .with_target_partitions(1)
        .with_information_schema(false);
    // Its table of groups stops the process for some rows (DataFusion 55.2).
    config.options_mut().optimizer.enable_topk_aggregation = false;
    // Errors of planning know their place in the query.
    config.options_mut().sql_parser.collect_spans = true;
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(Arc::new(runtime))
        .with_default_features()
        .build();
    let context = SessionContext::new_with_state(state);
    for function in functions::all(keys) {
        context.register_udf(function);
    }
    context
}

/// The analysed plan of one SELECT over the tables registered in `context`.
///
/// # Errors
/// [`QueryError::Refused`] for anything but exactly one query, and for one that reads what is no table of
/// the session; [`QueryError::Invalid`] for a query that does not parse or does not fit the tables.
pub async fn plan(context: &SessionContext, sql: &str) -> Result<LogicalPlan, QueryError> {
    let invalid = |error: DataFusionError| QueryError::Invalid(mistake::told(&error));
    if tokens(sql) > MOST_TOKENS {
        return Err(too_large().into());
    }
    let mut statements = DFParser::parse_sql(sql).map_err(invalid)?;
    let (Some(statement), true) = (statements.pop_front(), statements.is_empty()) else {
        return Err(not_one_select("it does not hold exactly one statement").into());
    };
    match &statement {
        Statement::Statement(inner) if matches!(**inner, SqlStatement::Query(_)) => {
            if inner.visit(&mut Size::default()).is_break() {
                return Err(too_large().into());
            }
        }
        _ => return Err(not_one_select("its statement is no SELECT").into()),
    }
    let state = context.state();
    for table in state.resolve_table_references(&statement).map_err(invalid)? {
        let function = || context.table_function(table.table()).is_ok();
        if !context.table_exist(table.clone()).unwrap_or(false) && !function() {
            return Err(unknown_table(&table.to_string()).into());
        }
    }
    let plan = state.statement_to_plan(statement).await.map_err(invalid)?;
    analysed(&state, plan).map_err(invalid)
}

/// The refusal of a table that is not the dataset.
pub(crate) fn unknown_table(name: &str) -> Refusal {
    Refusal {
        rule: "unknown-table".to_owned(),
        what: format!("reading the table `{name}` in the query of `prepare:`"),
        why: format!("a step reads its own dataset and nothing else: no label is known for `{name}`"),
        fix: "select from the dataset that `prepare: from:` names, or from a WITH or subquery over it".to_owned(),
    }
}

fn analysed(state: &SessionState, plan: LogicalPlan) -> datafusion::error::Result<LogicalPlan> {
    state
        .analyzer()
        .execute_and_check(plan, state.config_options(), |_, _| {})
}

/// Parsing, planning and analysis go down the query recursively, so a query that is nested without end
/// would end the process. These bounds are far above what people write.
const MOST_TOKENS: usize = 10_000;
pub(crate) const DEEPEST_EXPRESSION: usize = 300;
pub(crate) const MOST_RELATIONS: usize = 100;

fn tokens(sql: &str) -> usize {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize();
    // What is no SQL is refused by the parser, with a better reason.
    tokens.map_or(0, |tokens| {
        tokens
            .iter()
            .filter(|token| !matches!(token, Token::Whitespace(_)))
            .count()
    })
}

/// Stops at a query that is too large. The planner puts a query of WITH in every place that names it, so
/// a few that each name the one before twice would become more relations than there is memory for.
#[derive(Default)]
struct Size {
    depth: usize,
    /// As they are written.
    relations: usize,
    /// The queries that are being looked at, the outermost first.
    open: Vec<Opened>,
}

/// A query that is being looked at.
#[derive(Default)]
struct Opened {
    /// Relations in it, with what names of WITH stand for.
    relations: usize,
    /// The queries of its WITH by their addresses, with their names.
    named: HashMap<*const Query, String>,
    /// How many relations a name stands for.
    sizes: HashMap<String, usize>,
}

impl Size {
    fn relation(&mut self, stands_for: usize) -> ControlFlow<()> {
        self.relations += 1;
        if let Some(query) = self.open.last_mut() {
            query.relations = query.relations.saturating_add(stands_for);
        }
        if self.relations > MOST_RELATIONS || self.open.last().is_some_and(|query| query.relations > MOST_RELATIONS) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// How many relations a table of this name is: those of the WITH that defines it, if one does.
    fn stands_for(&self, name: &str) -> usize {
        let name = name.to_lowercase();
        let defined = self.open.iter().rev().find_map(|query| query.sizes.get(&name));
        defined.map_or(1, |size| size.saturating_add(1))
    }
}

impl Visitor for Size {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let with = query.with.iter().flat_map(|with| &with.cte_tables);
        let named = with.map(|cte| {
            (
                std::ptr::from_ref(cte.query.as_ref()),
                cte.alias.name.value.to_lowercase(),
            )
        });
        self.open.push(Opened {
            named: named.collect(),
            ..Opened::default()
        });
        self.relation(1)
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let inner = self.open.pop().unwrap_or_default();
        let Some(outer) = self.open.last_mut() else {
            return ControlFlow::Continue(());
        };
        if let Some(name) = outer.named.get(&std::ptr::from_ref(query)) {
            // Names that differ in case only count as the larger.
            let size = outer.sizes.entry(name.clone()).or_default();
            *size = inner.relations.max(*size);
        } else {
            outer.relations = outer.relations.saturating_add(inner.relations);
            if outer.relations > MOST_RELATIONS {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, _: &Select) -> ControlFlow<()> {
        self.relation(1)
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<()> {
        let stands_for = match table {
            TableFactor::Table { name, .. } => {
                let last = name.0.last().and_then(|part| part.as_ident());
                last.map_or(1, |last| self.stands_for(&last.value))
            }
            _ => 1,
        };
        self.relation(stands_for)
    }

    fn pre_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        self.depth += 1;
        if self.depth > DEEPEST_EXPRESSION {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn post_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        self.depth = self.depth.saturating_sub(1);
        ControlFlow::Continue(())
    }
}

/// The refusal of a query that is nested too deep or too long.
pub(crate) fn too_large() -> Refusal {
    Refusal {
        rule: "query-too-large".to_owned(),
        what: "planning the query of `prepare:`".to_owned(),
        why: format!(
            "it has more than {MOST_TOKENS} words and signs, an expression nested more than {DEEPEST_EXPRESSION} deep, \
             or more than {MOST_RELATIONS} relations, where each query of WITH counts as often as it is named"
        ),
        fix: "write it flatter, for example with IN in place of a long chain of OR".to_owned(),
    }
}

/// The refusal of everything that is not one SELECT.
pub(crate) fn not_one_select(why: &str) -> Refusal {
    Refusal {
        rule: "one-select".to_owned(),
        what: "running the query of `prepare:`".to_owned(),
        why: format!("{why}, and a step may only read its dataset"),
        fix: "write one SELECT (WITH is allowed) without COPY, CREATE, INSERT, SET or EXPLAIN".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_one_select_is_planned() {
        let context = session(None);
        assert!(plan(&context, "SELECT 1; ").await.is_ok());
        for sql in [
            "SELECT 1; SELECT 2",
            "",
            "CREATE TABLE t AS SELECT 1",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "COPY (SELECT 1) TO 'x.csv'",
            "EXPLAIN SELECT 1",
            "SET datafusion.catalog.information_schema = true",
            "SHOW TABLES",
            "DROP TABLE t",
        ] {
            assert!(
                matches!(plan(&context, sql).await, Err(QueryError::Refused(_))),
                "{sql}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_nested_without_end_is_refused_and_ends_nothing() {
        let context = session(None);
        let sum = |terms: usize| format!("SELECT {} AS x", vec!["1"; terms].join("+"));
        let union = |branches: usize| vec!["SELECT 1 AS x"; branches].join(" UNION ALL ");
        let join = |tables: usize| {
            let joined: String = (0..tables)
                .map(|it| format!(" CROSS JOIN (SELECT 1) AS t{it}"))
                .collect();
            format!("SELECT 1 AS x FROM (SELECT 1) AS t{joined}")
        };
        let parentheses = format!("SELECT {}1{} AS x", "(".repeat(40), ")".repeat(40));
        for sql in [sum(250), union(40), join(20), parentheses] {
            assert!(plan(&context, &sql).await.is_ok(), "{sql}");
        }
        for sql in [sum(400), sum(4_900), sum(200_000), union(200), union(20_000), join(200)] {
            let refused = plan(&context, &sql).await;
            assert!(
                matches!(&refused, Err(QueryError::Refused(it)) if it.rule == "query-too-large"),
                "{refused:?}"
            );
        }
        // Each names the one before twice, so that the last stands for 2^20 relations.
        let doubled = |queries: usize| {
            let doubled: String = (1..queries)
                .map(|it| format!(", T{it} AS (SELECT * FROM t{0} UNION ALL SELECT * FROM t{0})", it - 1))
                .collect();
            format!("WITH t0 AS (SELECT 1 AS x){doubled} SELECT * FROM t{}", queries - 1)
        };
        let chained: String = (1..12)
            .map(|it| format!(", t{it} AS (SELECT * FROM t{})", it - 1))
            .collect();
        for sql in [
            doubled(3),
            format!("WITH t0 AS (SELECT 1 AS x){chained} SELECT * FROM t11"),
        ] {
            assert!(plan(&context, &sql).await.is_ok(), "{sql}");
        }
        let nested = format!("SELECT * FROM (SELECT * FROM ({}) AS a) AS b", doubled(20));
        for sql in [doubled(20), nested] {
            let refused = plan(&context, &sql).await;
            assert!(
                matches!(&refused, Err(QueryError::Refused(it)) if it.rule == "query-too-large"),
                "{refused:?}"
            );
        }
        let parentheses = format!("SELECT {}1{} AS x", "(".repeat(4_000), ")".repeat(4_000));
        assert!(plan(&context, &parentheses).await.is_err());
    }

    #[tokio::test]
    async fn nothing_outside_is_reachable_by_name() {
        let context = session(None);
        for sql in [
            "SELECT * FROM '/etc/passwd'",
            "SELECT * FROM 'x.csv'",
            "SELECT * FROM information_schema.tables",
            "SELECT * FROM read_csv('/etc/passwd')",
            "SELECT 1 WHERE 1 IN (SELECT * FROM elsewhere)",
        ] {
            let refused = plan(&context, sql).await;
            assert!(
                matches!(&refused, Err(QueryError::Refused(refusal)) if refusal.rule == "unknown-table"),
                "{sql}: {refused:?}"
            );
        }
        for sql in [
            "WITH t AS (SELECT 1 AS x) SELECT x FROM t",
            "SELECT * FROM (SELECT 1) AS t",
        ] {
            assert!(plan(&context, sql).await.is_ok(), "{sql}");
        }
    }

    #[tokio::test]
    async fn a_token_needs_keys_to_be_made_but_not_to_be_planned() {
        let sql = "SELECT token('a') AS t";
        let bare = session(None);
        let planned = plan(&bare, sql).await.unwrap();
        assert!(
            bare.execute_logical_plan(planned)
                .await
                .unwrap()
                .collect()
                .await
                .is_err()
        );
        let keyed = session(Some(&FunctionKeys { token: [7; 32] }));
        let planned = plan(&keyed, sql).await.unwrap();
        assert!(
            keyed
                .execute_logical_plan(planned)
                .await
                .unwrap()
                .collect()
                .await
                .is_ok()
        );
        let shown = format!("{:?}", functions::all(Some(&FunctionKeys { token: [7; 32] })));
        assert!(shown.contains("[secret]") && !shown.contains("7, 7"));
    }
}
