//! What the values of a column look like: a second opinion on the roles that the catalog gives.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use tidegate_types::files::catalog::{Column, ValueType};
use tidegate_types::{IdentifierKind, Refusal, Role};

use super::{by_name, dates};
use crate::ingest::types::Guess;

/// Values whose distinctness is counted: enough to know, and bounded.
const DISTINCT_LIMIT: usize = 4096;
/// Values that must be there before a share of them means something.
const ENOUGH: u64 = 20;
/// The same for whole numbers: of few measurements each may well be another one.
const ENOUGH_NUMBERS: u64 = 100;

/// What was seen of one column.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) guess: Guess,
    pub(crate) missing: u64,
    emails: u64,
    national_ids: u64,
    phones: u64,
    times: u64,
    prose: u64,
    counted: u64,
    distinct: HashSet<u64>,
    hasher: RandomState,
}

impl Look {
    pub(crate) fn new() -> Self {
        Self {
            guess: Guess::default(),
            missing: 0,
            emails: 0,
            national_ids: 0,
            phones: 0,
            times: 0,
            prose: 0,
            counted: 0,
            distinct: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    pub(crate) fn see(&mut self, value: Option<&str>, file: &str, line: u64) {
        let Some(value) = value else {
            self.missing += 1;
            return;
        };
        self.guess.see(value, file, line);
        if self.distinct.len() < DISTINCT_LIMIT {
            self.counted += 1;
            self.distinct.insert(self.hasher.hash_one(value));
        }
        self.emails += u64::from(is_email(value));
        self.national_ids += u64::from(is_national_id(value));
        self.phones += u64::from(is_phone(value));
        self.times += u64::from(dates::is_temporal(value));
        self.prose += u64::from(value.split_whitespace().nth(5).is_some());
    }

    /// Distinct values, and whether there may be more.
    pub(crate) fn distinct(&self) -> (u64, bool) {
        (self.distinct.len() as u64, self.distinct.len() >= DISTINCT_LIMIT)
    }

    fn share(&self, count: u64) -> f64 {
        count as f64 / self.guess.seen.max(1) as f64
    }

    /// Whether nearly every value is another one.
    pub(crate) fn nearly_unique(&self) -> bool {
        self.counted >= ENOUGH && self.distinct.len() as f64 >= 0.95 * self.counted as f64
    }

    /// Whether the values are whole numbers of which nearly every one is another, as those of records are.
    fn numbers_records(&self) -> bool {
        let whole = self.guess.integers.saturating_mul(20) >= self.guess.seen.saturating_mul(19);
        whole && self.counted >= ENOUGH_NUMBERS && self.nearly_unique()
    }

    /// Whether the values are sentences.
    pub(crate) fn is_prose(&self) -> bool {
        self.guess.seen > 0 && self.share(self.prose) >= 0.5
    }

    /// The kind that the values' form alone gives away.
    pub(crate) fn kind(&self) -> Option<IdentifierKind> {
        if self.guess.seen == 0 {
            return None;
        }
        // A twentieth is enough: one e-mail address is one too many, a typing error is not a column.
        [
            (self.emails, 0.05, IdentifierKind::Email),
            (self.national_ids, 0.05, IdentifierKind::NationalId),
            (self.phones, 0.05, IdentifierKind::Phone),
            (self.times, 0.5, IdentifierKind::Date),
        ]
        .into_iter()
        .find(|(count, least, _)| *count > 0 && self.share(*count) >= *least)
        .map(|(_, _, kind)| kind)
    }

    /// Whether name or values contradict what the catalog says about column `name`. What an owner wrote
    /// for the column itself is contradicted by addresses and numbers of people and by dates only: dates
    /// must be of kind `date`, or they would leave whole. What merely follows from the default `"*"` is
    /// also contradicted by the column's name, by sentences, and by texts and whole numbers that differ in
    /// nearly every record.
    pub(crate) fn contradicts(
        &self,
        name: &str,
        facts: &Column,
        by_default: bool,
        read_as: ValueType,
    ) -> Option<Refusal> {
        if !matches!(facts.role, Role::Attribute | Role::Sensitive | Role::QuasiIdentifier) {
            return None;
        }
        let kind = self.kind().filter(|kind| *kind != facts.kind);
        let found = match kind {
            Some(IdentifierKind::Email) => "its values look like e-mail addresses",
            Some(IdentifierKind::NationalId) => "its values look like social security numbers",
            Some(IdentifierKind::Phone) => "its values look like telephone numbers",
            Some(IdentifierKind::Date) => "its values look like calendar dates",
            _ if !by_default => return None,
            _ if self.is_prose() => "its values look like sentences",
            _ if read_as == ValueType::Text && self.nearly_unique() => {
                "its values look like texts that differ in nearly every record"
            }
            _ if self.numbers_records() => "its values look like numbers that differ in nearly every record",
            _ if by_name(name, self).is_some_and(|said| said != (facts.role, facts.kind)) => {
                "its name says that it is something else"
            }
            _ => return None,
        };
        Some(Refusal {
            rule: "scan-contradicts-catalog".to_owned(),
            what: format!("preparing column `{name}` as {}", facts.role),
            why: found.to_owned(),
            fix: if kind == Some(IdentifierKind::Date) {
                format!(
                    "give column `{name}` `kind: date` in the catalog, so that `year({name})` may leave and no whole date, \
                     or `role: identifier`"
                )
            } else {
                format!(
                    "give column `{name}` an entry of its own in the catalog: `role: identifier` with its kind, \
                     `role: text`, or the role that it really has"
                )
            },
        })
    }

    /// Why a person should look again at what an owner wrote for column `name`, where its name or its values
    /// look like more than the role and kind there say. An owner knows better than a name, so that this is no
    /// contradiction; but a profile lets the column leave as the owner says it is.
    pub(crate) fn doubts(&self, name: &str, facts: &Column, read_as: ValueType) -> Option<String> {
        if matches!(facts.role, Role::Identifier | Role::Text) || facts.kind != IdentifierKind::Value {
            return None;
        }
        if let Some((role, kind)) = by_name(name, self) {
            if kind != IdentifierKind::Value {
                return Some(format!("its name says {role} of kind {kind}"));
            }
            if role.strictness() > facts.role.strictness() {
                return Some(format!("its name says {role}"));
            }
        }
        if self.is_prose() {
            return Some("its values look like sentences".to_owned());
        }
        (read_as == ValueType::Text && self.nearly_unique())
            .then(|| "its values look like texts that differ in nearly every record".to_owned())
    }
}

fn is_email(value: &str) -> bool {
    let Some((user, host)) = value.split_once('@') else {
        return false;
    };
    !user.is_empty() && !host.contains('@') && host.contains('.') && !value.contains(char::is_whitespace)
}

/// `NNN-NN-NNNN`.
fn is_national_id(value: &str) -> bool {
    shape(value) == "999-99-9999"
}

/// Numbers as they are dialled in North America, and international ones with `+`.
fn is_phone(value: &str) -> bool {
    let shape = shape(value);
    if let Some(rest) = value.strip_prefix('+') {
        let digits = rest.bytes().filter(u8::is_ascii_digit).count();
        let others = rest
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b" -().".contains(&byte));
        return others && (8..=15).contains(&digits) && rest.contains([' ', '-']);
    }
    [
        "999-999-9999",
        "(999) 999-9999",
        "(999)999-9999",
        "999.999.9999",
        "1-999-999-9999",
    ]
    .contains(&shape.as_str())
}

fn shape(value: &str) -> String {
    value
        .chars()
        .take(20)
        .map(|character| if character.is_ascii_digit() { '9' } else { character })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(values: impl IntoIterator<Item = String>) -> Look {
        let mut look = Look::new();
        for (line, value) in values.into_iter().enumerate() {
            look.see(Some(&value), "a.csv", line as u64 + 2);
        }
        look
    }

    #[test]
    fn forms_of_identifiers_are_known() {
        for (value, kind) in [
            ("a.b@example.org", Some(IdentifierKind::Email)),
            ("900-12-3456", Some(IdentifierKind::NationalId)),
            ("(555) 555-0100", Some(IdentifierKind::Phone)),
            ("+49 30 1234567", Some(IdentifierKind::Phone)),
            ("2020-01-31", Some(IdentifierKind::Date)),
            ("2020-01-31T10:00:00", Some(IdentifierKind::Date)),
            ("03/14/2024", Some(IdentifierKind::Date)),
            ("12345", None),
            ("male", None),
            ("+5.25", None),
        ] {
            assert_eq!(look([value.to_owned()]).kind(), kind, "{value}");
        }
    }

    #[test]
    fn dates_are_found_whatever_the_catalog_says() {
        let facts = |kind| Column {
            role: Role::Attribute,
            kind,
            value_type: None,
        };
        let contradicted = |look: &Look, kind| look.contradicts("x", &facts(kind), false, ValueType::Text);
        for form in ["2024-01-31T10:00:00", "3/14/2024", "2024-01-31", "14-Mar-2024"] {
            // One value of another form does not hide the others.
            let dates = look((0..30).map(|n| if n == 7 { "soon" } else { form }.to_owned()));
            let refusal = contradicted(&dates, IdentifierKind::Value).unwrap();
            assert!(
                refusal.why.contains("dates") && refusal.fix.contains("year(x)"),
                "{refusal}"
            );
            assert!(contradicted(&dates, IdentifierKind::Age).is_some());
            assert!(contradicted(&dates, IdentifierKind::Date).is_none(), "{form}");
        }
    }

    #[test]
    fn a_default_lets_no_numbers_of_records_and_no_telling_names_through() {
        let facts = Column {
            role: Role::Attribute,
            kind: IdentifierKind::Value,
            value_type: None,
        };
        let contradicted = |name: &str, look: &Look| look.contradicts(name, &facts, true, ValueType::Integer).is_some();
        let numbers = |count: u64, different: u64| look((0..count).map(|n| (70_000 + n % different).to_string()));
        assert!(contradicted("x", &numbers(200, 200)));
        assert!(!contradicted("x", &numbers(200, 100)) && !contradicted("x", &numbers(60, 60)));
        assert!(!contradicted("x", &look((0..200).map(|n| format!("{n}.25")))));
        for name in ["age", "zip", "Patient_ZIP", "sex", "patient id", "mrn"] {
            assert!(contradicted(name, &numbers(200, 3)), "{name}");
        }
        for name in ["d.time", "day", "hrt", "num.co", "stage"] {
            assert!(!contradicted(name, &numbers(200, 3)), "{name}");
        }
    }

    #[test]
    fn a_default_is_contradicted_more_easily_than_a_written_role() {
        let facts = Column {
            role: Role::Attribute,
            kind: IdentifierKind::Value,
            value_type: None,
        };
        let contradicted = |look: &Look, by_default| {
            look.contradicts("x", &facts, by_default, ValueType::Text)
                .map(|refusal| refusal.why)
        };
        let emails = look((0..30).map(|n| format!("p{n}@example.org")));
        assert!(contradicted(&emails, true).is_some() && contradicted(&emails, false).is_some());
        let names = look((0..30).map(|n| format!("Person{n}")));
        assert!(contradicted(&names, true).is_some() && contradicted(&names, false).is_none());
        let notes = look((0..30).map(|_| "was seen at home and felt well".to_owned()));
        assert!(contradicted(&notes, true).unwrap().contains("sentences"));
        let levels = look((0..30).map(|n| format!("level{}", n % 3)));
        assert!(contradicted(&levels, true).is_none());
    }
}
