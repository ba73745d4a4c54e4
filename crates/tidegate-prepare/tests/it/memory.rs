//! Memory does not grow with the data: a preparation of ten times the rows needs hardly more of it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tidegate_prepare::{Part, home_rows};

use super::fixture::{Hospital, KEYS, block_on};

/// Tells the child, which is this test program, which folder to prepare in.
const FOLDER: &str = "TIDEGATE_TEST_PREPARE_MUCH";
/// What a preparation may need, whatever the number of rows.
const CEILING: u64 = 192 << 20;

fn hospital(folder: &Path) -> Hospital {
    let mut hospital = Hospital::at(folder);
    hospital.catalog["datasets"]["admissions"]["columns"] = json!({
        "patient_id": {"role": "identifier", "kind": "record_number"},
        "zip": {"role": "quasi_identifier", "kind": "zip_code"},
        "age": {"role": "quasi_identifier", "kind": "age"},
        "diagnosis": {"role": "sensitive"},
        "*": {"role": "attribute"}
    });
    hospital.pipeline["prepare"]["split"] = json!({"validation": 0.1, "refine": 0.001, "test": 0.001});
    hospital.pipeline["prepare"]["disclosure"] =
        json!({"to": "internal", "k": 5, "l": 2, "on_violation": "suppress", "max_suppressed": 0.9});
    hospital.sql("SELECT age_band(age, 5) AS age, zip3(zip) AS zip, diagnosis, pulse, died FROM admissions");
    hospital
}

/// The most that this process ever had in memory.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The child: does nothing unless it was started as one.
#[test]
fn child_that_prepares_much() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let prepared = hospital(folder).prepare().unwrap();
    let after_prepare = peak();
    assert!(
        prepared.risk.suppressed_rows > 0 && prepared.risk.k >= 5,
        "{:?}",
        prepared.risk
    );
    // Once more against the register, which then holds as many people as the source.
    let mut again = hospital(folder);
    again.pipeline["prepare"]["drop"] = json!(["sex"]);
    again.prepare().unwrap();
    assert!(
        !block_on(home_rows(&prepared.home, &KEYS, Part::Test, &[]))
            .unwrap()
            .records
            .is_empty()
    );
    std::fs::write(folder.join("peak"), format!("{after_prepare} {}", peak())).unwrap();
}

/// What preparing so many rows takes at the most: the first time, and beside an earlier release.
fn peaks(rows: u64) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut file = BufWriter::new(File::create(folder.path().join("admissions.csv")).unwrap());
    writeln!(file, "patient_id,zip,age,diagnosis,pulse,died").unwrap();
    for number in 0..rows {
        let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        let (zip, age, pulse) = (10_000 + mixed % 89_999, 20 + mixed % 60, 50 + (mixed >> 16) % 90);
        let diagnosis = ["Cirrhosis", "Coma", "Lung Cancer"][(mixed >> 12) as usize % 3];
        writeln!(
            file,
            "P{number:07},{zip},{age},{diagnosis},{pulse}.5,{}",
            mixed >> 24 & 1
        )
        .unwrap();
    }
    // Two of an age that nobody else has: they must be suppressed.
    for number in 0..2 {
        writeln!(file, "R{number:07},10001,85,Coma,60.5,{number}").unwrap();
    }
    file.flush().unwrap();
    drop(file);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::child_that_prepares_much", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let peaks = std::fs::read_to_string(folder.path().join("peak")).unwrap();
    let (first, second) = peaks.split_once(' ').unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path().join("stage"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["lock", "prepared", "releases", "snapshots"].contains(&name.as_str()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    (first.parse().unwrap(), second.parse().unwrap())
}

#[test]
fn ten_times_the_rows_need_hardly_more_memory() {
    let started = std::time::Instant::now();
    let few = peaks(100_000);
    println!(
        "100,000 rows: {few:?} bytes after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let many = peaks(1_000_000);
    println!(
        "1,000,000 rows: {many:?} bytes after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    assert!(many.0 < CEILING && many.1 < CEILING, "{many:?}");
    assert!(many.0 < 2 * few.0 && many.1 < 2 * few.1, "{few:?} {many:?}");
}
