//! Random queries over the small dataset: projections, CASE, filters, self-joins, aggregates, unions,
//! common table expressions, the de-identifying functions rightly and wrongly used.

use crate::noninterference::Choices;

#[derive(Clone, Copy, PartialEq)]
enum Type {
    Whole,
    Real,
    Text,
    Date,
}

/// A column in reach, as it is written.
#[derive(Clone)]
struct Reach {
    written: String,
    of: Type,
    /// The unchanged source column of this kind, where it is one: `age`, `zip`, `date`.
    kind: Option<&'static str>,
    high: bool,
}

struct Writer<'c> {
    c: &'c mut Choices,
    aliases: usize,
}

/// One query.
pub(crate) fn query(c: &mut Choices) -> String {
    let mut writer = Writer { c, aliases: 0 };
    let depth = writer.c.below(3);
    if writer.c.percent(20) {
        let (inner, columns) = writer.select(depth);
        let columns = writer.renamed(&columns, "w");
        let (outer, _) = writer.select_from(" FROM w", &columns);
        return format!("WITH w AS ({inner}) {outer}");
    }
    writer.select(depth).0
}

/// A query whose every row comes from one record, with the target `died`.
pub(crate) fn row_query(c: &mut Choices) -> String {
    let mut writer = Writer { c, aliases: 0 };
    let types = [
        writer.c.pick(&[Type::Whole, Type::Text]),
        writer.c.pick(&[Type::Whole, Type::Real, Type::Text]),
    ];
    let columns = people("people");
    let mut branches = vec![writer.rows("people", types, &columns)];
    while writer.c.percent(25) && branches.len() < 3 {
        branches.push(writer.rows("people", types, &columns));
    }
    let union = branches.join(" UNION ALL ");
    if writer.c.percent(70) {
        return union;
    }
    let plain = |name: &str, of| Reach {
        written: format!("w.{name}"),
        of,
        kind: None,
        high: false,
    };
    let [first, second] = types;
    let columns = [plain("c0", first), plain("c1", second), plain("died", Type::Whole)];
    format!("WITH w AS ({union}) {}", writer.rows("w", types, &columns))
}

impl Writer<'_> {
    fn rows(&mut self, from: &str, types: [Type; 2], columns: &[Reach]) -> String {
        let [first, second] = types.map(|of| self.value(of, columns, 2));
        let condition = if self.c.percent(50) {
            format!(" WHERE {}", self.condition(columns, 2))
        } else {
            String::new()
        };
        format!("SELECT {first} AS c0, {second} AS c1, {from}.died AS died FROM {from}{condition}")
    }

    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("t{}", self.aliases)
    }

    fn renamed(&self, columns: &[Reach], relation: &str) -> Vec<Reach> {
        columns
            .iter()
            .map(|column| Reach {
                written: format!("{relation}.{}", column.written),
                ..column.clone()
            })
            .collect()
    }

    /// A SELECT and its output columns.
    fn select(&mut self, depth: usize) -> (String, Vec<Reach>) {
        let (from, columns) = self.from(depth);
        self.select_from(&from, &columns)
    }

    fn select_from(&mut self, from: &str, columns: &[Reach]) -> (String, Vec<Reach>) {
        if self.c.percent(20) {
            return self.aggregate(from, columns);
        }
        let mut outputs = Vec::new();
        let mut items = Vec::new();
        for number in 0..1 + self.c.below(3) {
            let of = self.c.pick(&[Type::Whole, Type::Real, Type::Text]);
            let name = format!("c{number}");
            let plain = self.c.percent(35);
            let column = if plain { self.column(columns, None) } else { None };
            let (written, of, kind, high) = match column {
                Some(column) => (column.written, column.of, column.kind, column.high),
                None => (self.value(of, columns, 2), of, None, false),
            };
            items.push(format!("{written} AS {name}"));
            outputs.push(Reach {
                written: name,
                of,
                kind,
                high,
            });
        }
        let distinct = if self.c.percent(12) { "DISTINCT " } else { "" };
        let mut sql = format!("SELECT {distinct}{}{from}", items.join(", "));
        if self.c.percent(40) {
            sql += &format!(" WHERE {}", self.condition(columns, 2));
        }
        if distinct.is_empty() && self.c.percent(15) {
            let of = self.c.pick(&[Type::Whole, Type::Text]);
            sql += &format!(" ORDER BY {}", self.value(of, columns, 1));
            if self.c.percent(40) {
                sql += " LIMIT 2";
            }
        } else if self.c.percent(12) {
            let names: Vec<&str> = outputs.iter().map(|it| it.written.as_str()).collect();
            sql += &format!(" ORDER BY {} LIMIT 2", names.join(", "));
        }
        (sql, outputs)
    }

    fn aggregate(&mut self, from: &str, columns: &[Reach]) -> (String, Vec<Reach>) {
        let key_type = self.c.pick(&[Type::Whole, Type::Text]);
        let key = self.value(key_type, columns, 1);
        let (call, of) = match self.c.below(7) {
            0 => ("count(*)".to_owned(), Type::Whole),
            1 => (format!("count({})", self.value(Type::Text, columns, 1)), Type::Whole),
            2 => (format!("sum({})", self.value(Type::Whole, columns, 1)), Type::Whole),
            3 => (format!("avg({})", self.value(Type::Real, columns, 1)), Type::Real),
            4 => (format!("max({})", self.value(Type::Text, columns, 1)), Type::Text),
            5 => (
                format!("count(*) FILTER (WHERE {})", self.condition(columns, 1)),
                Type::Whole,
            ),
            _ => (format!("min({})", self.value(Type::Whole, columns, 1)), Type::Whole),
        };
        let condition = if self.c.percent(30) {
            format!(" WHERE {}", self.condition(columns, 1))
        } else {
            String::new()
        };
        let output = |name: &str, of| Reach {
            written: name.to_owned(),
            of,
            kind: None,
            high: false,
        };
        if self.c.percent(30) {
            return (format!("SELECT {call} AS c0{from}{condition}"), vec![output("c0", of)]);
        }
        let having = if self.c.percent(20) { " HAVING count(*) > 1" } else { "" };
        (
            format!("SELECT {key} AS c0, {call} AS c1{from}{condition} GROUP BY {key}{having}"),
            vec![output("c0", key_type), output("c1", of)],
        )
    }

    /// A FROM clause and what it puts in reach.
    fn from(&mut self, depth: usize) -> (String, Vec<Reach>) {
        let alias = self.alias();
        match if depth == 0 { 0 } else { self.c.below(6) } {
            1 | 2 => {
                let (inner, columns) = self.select(depth - 1);
                (format!(" FROM ({inner}) AS {alias}"), self.renamed(&columns, &alias))
            }
            3 => {
                let (one, columns) = self.select(depth - 1);
                let (other, others) = self.select(depth - 1);
                if columns.len() != others.len() || columns.iter().zip(&others).any(|(a, b)| a.of != b.of) {
                    return (format!(" FROM ({one}) AS {alias}"), self.renamed(&columns, &alias));
                }
                let union = self.c.pick(&["UNION ALL", "UNION ALL", "UNION", "INTERSECT", "EXCEPT"]);
                let mut columns = self.renamed(&columns, &alias);
                columns.iter_mut().for_each(|column| column.kind = None);
                (format!(" FROM (({one}) {union} ({other})) AS {alias}"), columns)
            }
            4 => {
                let other = self.alias();
                let mut columns = people(&alias);
                let others = people(&other);
                let of = self.c.pick(&[Type::Whole, Type::Text]);
                let (left, right) = (self.value(of, &columns, 0), self.value(of, &others, 0));
                let kind = self.c.pick(&["JOIN", "JOIN", "LEFT JOIN", "FULL JOIN"]);
                let comparison = self.c.pick(&["=", "=", "<"]);
                columns.extend(others);
                (
                    format!(" FROM people AS {alias} {kind} people AS {other} ON {left} {comparison} {right}"),
                    columns,
                )
            }
            5 if self.c.percent(50) => (
                format!(" FROM people AS {alias} CROSS JOIN (VALUES (1), (2)) AS v{alias}(x)"),
                people(&alias),
            ),
            _ => (format!(" FROM people AS {alias}"), people(&alias)),
        }
    }

    fn column(&mut self, columns: &[Reach], of: Option<Type>) -> Option<Reach> {
        // Mostly what may leave, or most queries would be refused.
        let high = self.c.percent(10);
        let fitting: Vec<&Reach> = columns
            .iter()
            .filter(|column| of.is_none_or(|of| of == column.of) && (high || !column.high))
            .collect();
        if fitting.is_empty() {
            None
        } else {
            Some(fitting[self.c.below(fitting.len())].clone())
        }
    }

    fn value(&mut self, of: Type, columns: &[Reach], depth: usize) -> String {
        let leaf = depth == 0 || self.c.percent(40);
        if leaf {
            if self.c.percent(25)
                && let Some(call) = self.call(of, columns)
            {
                return call;
            }
            if self.c.percent(85)
                && let Some(column) = self.column(columns, Some(of))
            {
                return column.written;
            }
            return self.constant(of);
        }
        let d = depth - 1;
        match of {
            Type::Whole => match self.c.below(9) {
                0 => format!("({} + {})", self.value(of, columns, d), self.value(of, columns, d)),
                1 => format!("({} * {})", self.value(of, columns, d), self.value(of, columns, d)),
                2 => format!("({} / {})", self.value(of, columns, d), self.value(of, columns, d)),
                3 => format!("({} % 2)", self.value(of, columns, d)),
                4 => format!(
                    "coalesce({}, {})",
                    self.value(of, columns, d),
                    self.value(of, columns, d)
                ),
                5 => format!("length({})", self.value(Type::Text, columns, d)),
                6 => format!("CAST({} AS BIGINT)", self.value(Type::Text, columns, d)),
                7 => format!("nullif({}, {})", self.value(of, columns, d), self.value(of, columns, d)),
                _ => self.case(of, columns, d),
            },
            Type::Real => match self.c.below(4) {
                0 => format!("({} + {})", self.value(of, columns, d), self.value(of, columns, d)),
                1 => format!("({} / {})", self.value(of, columns, d), self.value(of, columns, d)),
                2 => format!("CAST({} AS DOUBLE)", self.value(Type::Whole, columns, d)),
                _ => self.case(of, columns, d),
            },
            Type::Text => match self.c.below(6) {
                0 => format!("({} || {})", self.value(of, columns, d), self.value(of, columns, d)),
                1 => format!("upper({})", self.value(of, columns, d)),
                2 => format!("substr({}, 1, 2)", self.value(of, columns, d)),
                3 => format!("CAST({} AS VARCHAR)", self.value(Type::Whole, columns, d)),
                4 => format!("mask({})", self.value(of, columns, d)),
                _ => self.case(of, columns, d),
            },
            Type::Date => "DATE '2001-02-03'".to_owned(),
        }
    }

    fn case(&mut self, of: Type, columns: &[Reach], depth: usize) -> String {
        format!(
            "CASE WHEN {} THEN {} ELSE {} END",
            self.condition(columns, depth),
            self.value(of, columns, depth),
            self.value(of, columns, depth)
        )
    }

    /// A de-identifying function, mostly as it must be used.
    fn call(&mut self, of: Type, columns: &[Reach]) -> Option<String> {
        let wanted = match of {
            Type::Whole => self.c.pick(&["age", "date"]),
            Type::Text => "zip",
            Type::Real | Type::Date => return None,
        };
        let fitting: Vec<&Reach> = columns.iter().filter(|column| column.kind == Some(wanted)).collect();
        if fitting.is_empty() {
            return None;
        }
        let column = fitting[self.c.below(fitting.len())].written.clone();
        let wrong = self.c.percent(12);
        Some(match wanted {
            "age" if wrong => {
                let other = self.value(Type::Whole, columns, 1);
                self.c.pick(&[
                    format!("age_band({column} + 1, 10)"),
                    format!("age_band({column}, 1)"),
                    format!("age_band({other}, 10)"),
                    format!("age_band({column}, {other})"),
                    format!("top_code({column}, 95)"),
                ])
            }
            // Mostly one and the same, for two are refused.
            "age" if self.c.percent(90) => format!("age_band({column}, 10)"),
            "age" => self
                .c
                .pick(&[format!("age_band({column}, 5)"), format!("top_code({column}, 90)")]),
            "date" => format!("year({column})"),
            _ if wrong => {
                let other = self.value(Type::Text, columns, 1);
                self.c.pick(&[format!("zip3({other})"), format!("token({column})")])
            }
            _ => format!("zip3({column})"),
        })
    }

    fn condition(&mut self, columns: &[Reach], depth: usize) -> String {
        if depth > 0 && self.c.percent(30) {
            let (a, b) = (self.condition(columns, depth - 1), self.condition(columns, depth - 1));
            return match self.c.below(3) {
                0 => format!("({a} AND {b})"),
                1 => format!("({a} OR {b})"),
                _ => format!("NOT ({a})"),
            };
        }
        let d = depth.saturating_sub(1);
        match self.c.below(7) {
            0 => format!("{} LIKE '%a%'", self.value(Type::Text, columns, d)),
            1 => format!("{} IS NULL", self.value(Type::Whole, columns, d)),
            2 => format!("{} IN (1, 2, 40)", self.value(Type::Whole, columns, d)),
            3 => format!("{} BETWEEN 1 AND 60", self.value(Type::Whole, columns, d)),
            4 => format!(
                "{} = {}",
                self.value(Type::Text, columns, d),
                self.value(Type::Text, columns, d)
            ),
            5 => format!(
                "{} < {}",
                self.value(Type::Real, columns, d),
                self.value(Type::Real, columns, d)
            ),
            _ => format!(
                "{} > {}",
                self.value(Type::Whole, columns, d),
                self.value(Type::Whole, columns, d)
            ),
        }
    }

    fn constant(&mut self, of: Type) -> String {
        match of {
            Type::Whole => self.c.pick(&["0", "1", "40"]),
            Type::Real => self.c.pick(&["0.5", "70.5"]),
            Type::Text => self.c.pick(&["'a'", "'5'", "'name1'"]),
            Type::Date => "DATE '2001-02-03'",
        }
        .to_owned()
    }
}

fn people(relation: &str) -> Vec<Reach> {
    let column = |name: &str, of, kind, high| Reach {
        written: format!("{relation}.{name}"),
        of,
        kind,
        high,
    };
    vec![
        column("patient_id", Type::Whole, None, true),
        column("name", Type::Text, None, true),
        column("notes", Type::Text, None, true),
        column("born", Type::Date, Some("date"), true),
        column("admitted", Type::Date, Some("date"), true),
        column("zip", Type::Text, Some("zip"), true),
        column("age", Type::Whole, Some("age"), true),
        column("mystery", Type::Whole, None, true),
        column("sex", Type::Text, None, false),
        column("hrt", Type::Real, None, false),
        column("days", Type::Whole, None, false),
        column("died", Type::Whole, None, false),
    ]
}
