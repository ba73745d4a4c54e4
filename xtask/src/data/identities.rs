//! Invents who the patients are.

use anyhow::{Context, ensure};
use jiff::civil::{Date, date};
use jiff::{Span, ToSpan};

use super::random::Random;
use super::words::{AREAS, CITIES, FAMILIES, KIN, MEN, SPARSE, STREETS, WOMEN};

/// The columns that are put before the source's.
pub(crate) const ADDED: [&str; 11] = [
    "patient_id",
    "record_number",
    "name",
    "birth_date",
    "ssn",
    "phone",
    "email",
    "street",
    "zip",
    "admission_date",
    "notes",
];

/// The first day of the study's admissions.
const FIRST_DAY: Date = date(1989, 6, 12);
/// Days on which somebody was admitted for the only time.
const SINGLE_DAYS: u64 = 1_687;
/// Days on which somebody was admitted for the first of two times.
const PAIR_DAYS: u64 = 950;
/// Mean length of a year in days (Gregorian).
const YEAR: f64 = 365.2425;
/// The least and the most years between two admissions of one person.
const APART: std::ops::RangeInclusive<f64> = 0.1..=2.0;

/// What identities must fit.
struct Row {
    age: f64,
    sex: String,
    race: String,
    died: bool,
}

/// One person, with the numbers of their rows in the order of admission.
struct Person {
    rows: Vec<usize>,
    admitted: Vec<Date>,
    born: Date,
}

/// One identity for each record, in the order of [`ADDED`].
pub(super) fn invent(header: &csv::StringRecord, records: &[csv::StringRecord]) -> anyhow::Result<Vec<[String; 11]>> {
    let rows = read(header, records)?;
    let mut random = Random::new(0x7469_6465_6761_7465);
    let people = people(&rows, &mut random)?;
    // Numbers say nothing about the order of rows: they are dealt out.
    let mut numbers: Vec<usize> = (0..people.len()).collect();
    random.shuffle(&mut numbers);
    let mut stays: Vec<usize> = (0..rows.len()).collect();
    random.shuffle(&mut stays);
    let mut invented = vec![Default::default(); rows.len()];
    for (person, number) in people.iter().zip(numbers) {
        describe(person, number, &rows, &stays, &mut random, &mut invented);
    }
    Ok(invented)
}

fn read(header: &csv::StringRecord, records: &[csv::StringRecord]) -> anyhow::Result<Vec<Row>> {
    let place = |name: &str| {
        let place = header.iter().position(|column| column == name);
        place.with_context(|| format!("the source has no column `{name}`"))
    };
    let (age, sex, race) = (place("age")?, place("sex")?, place("race")?);
    let (hospdead, death) = (place("hospdead")?, place("death")?);
    records
        .iter()
        .map(|record| {
            let text = |index: usize| record.get(index).unwrap_or("").trim();
            let age: f64 = text(age).parse().context("an age of the source is not a number")?;
            ensure!((0.0..130.0).contains(&age), "an age of the source is no age");
            Ok(Row {
                age,
                sex: text(sex).to_owned(),
                race: text(race).to_owned(),
                died: text(hospdead) != "0" || text(death) != "0",
            })
        })
        .collect()
}

/// Joins rows to people: one in eleven rows is the second admission of somebody, so that a tenth of the
/// people have two. Whoever comes again had not died, is of the same sex and race, and is older by the
/// time between.
fn people(rows: &[Row], random: &mut Random) -> anyhow::Result<Vec<Person>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    random.shuffle(&mut order);
    let mut second: Vec<Option<usize>> = vec![None; rows.len()];
    let mut taken = vec![false; rows.len()];
    let mut wanted = rows.len() / 11;
    for (at, &first) in order.iter().enumerate() {
        let Some(row) = rows
            .get(first)
            .filter(|row| wanted > 0 && !row.died && !row.race.is_empty())
        else {
            continue;
        };
        if taken.get(first) != Some(&false) {
            continue;
        }
        let later = order.iter().skip(at + 1).copied().find(|&other| {
            let free = taken.get(other) == Some(&false);
            free && rows.get(other).is_some_and(|other| {
                other.sex == row.sex && other.race == row.race && APART.contains(&(other.age - row.age))
            })
        });
        if let Some(later) = later {
            for (index, other) in [(first, Some(later)), (later, None)] {
                if let (Some(taken), Some(second)) = (taken.get_mut(index), second.get_mut(index)) {
                    (*taken, *second) = (true, other);
                }
            }
            wanted -= 1;
        }
    }
    let mut comes_again = vec![false; rows.len()];
    for later in second.iter().flatten() {
        if let Some(later) = comes_again.get_mut(*later) {
            *later = true;
        }
    }
    let mut people = Vec::new();
    for (index, row) in rows
        .iter()
        .enumerate()
        .filter(|(index, _)| comes_again.get(*index) == Some(&false))
    {
        let again = second.get(index).copied().flatten();
        let admitted = after(
            FIRST_DAY,
            random.below(if again.is_some() { PAIR_DAYS } else { SINGLE_DAYS }),
        )?;
        let born = admitted.checked_sub(days(row.age))?;
        let mut person = Person {
            rows: vec![index],
            admitted: vec![admitted],
            born,
        };
        if let Some((later, other)) = again.and_then(|later| rows.get(later).map(|other| (later, other))) {
            person.rows.push(later);
            person.admitted.push(born.checked_add(days(other.age))?);
        }
        people.push(person);
    }
    Ok(people)
}

/// The time that somebody of that age has lived, in days.
fn days(years: f64) -> Span {
    // An age is below 130: the number of days is small, and whole.
    ((years * YEAR).floor() as i64).days()
}

fn after(day: Date, count: u64) -> anyhow::Result<Date> {
    Ok(day.checked_add(i64::try_from(count)?.days())?)
}

fn describe(
    person: &Person,
    number: usize,
    rows: &[Row],
    stays: &[usize],
    random: &mut Random,
    invented: &mut [[String; 11]],
) {
    let Some(row) = person.rows.first().and_then(|index| rows.get(*index)) else {
        return;
    };
    let woman = row.sex == "female";
    let (first, family) = (random.one(if woman { &WOMEN } else { &MEN }), random.one(&FAMILIES));
    let title = if woman { "Ms." } else { "Mr." };
    // Areas from 900 on were never issued as social security numbers.
    let ssn = format!("{}-{:02}-{:04}", 900 + number % 100, 10 + number / 100 % 90, number);
    let phone = format!("({}) 555-01{:02}", random.one(&AREAS), random.below(100));
    let email = format!("{}.{}{number}@example.org", first.to_lowercase(), family.to_lowercase());
    let street = format!("{} {}", 1 + random.below(990), random.one(&STREETS));
    let area = if random.below(20) == 0 {
        random.one(&SPARSE)
    } else {
        random.one(&CITIES)
    };
    let zip = format!("{area}{:02}", 1 + random.below(98));
    for (&index, admitted) in person.rows.iter().zip(&person.admitted) {
        let record_number = format!("MR{:07}", 1_000_000 + stays.get(index).copied().unwrap_or(0) * 7);
        let kin = random.one(&KIN);
        let notes = match random.below(5) {
            0 => format!("{title} {family} was admitted on {admitted}; {kin} can be reached at {phone}."),
            1 => format!("Record {record_number} reviewed with {first} {family} and {kin}."),
            2 => format!("Lives at {street}, {zip}, with {kin}."),
            3 => format!("{first} is anxious about the stay; {kin} visits daily."),
            _ => format!("Discussed goals of care, will write to {email}."),
        };
        if let Some(place) = invented.get_mut(index) {
            *place = [
                format!("P{:06}", 100_000 + number * 37),
                record_number,
                format!("{first} {family}"),
                person.born.to_string(),
                ssn.clone(),
                phone.clone(),
                email.clone(),
                street.clone(),
                zip.clone(),
                admitted.to_string(),
                notes,
            ];
        }
    }
}
