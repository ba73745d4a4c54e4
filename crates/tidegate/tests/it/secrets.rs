//! No personal value outside the private site, and no key where it does not belong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tidegate_contracts::custody::Custody;
use tidegate_contracts::journal::Journal;
use tidegate_keeper::keys::SiteKeys;
use tidegate_local::{FileCustody, SqliteJournal};
use tidegate_types::ids::SiteName;

use crate::fixture::{Hospital, PLANTED_NAME, files};

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_planted_name_is_found_nowhere_outside_the_private_site() {
    let hospital = Hospital::new();
    let output = hospital
        .command(&["run", "--yes", "--format", "json"])
        .env("TIDEGATE_LOG", "trace")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Libraries would log whole queries and rows.
    let lines = String::from_utf8(output.stderr.clone()).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let targets: BTreeSet<String> = lines
        .filter_map(|line| line["target"].as_str().map(str::to_owned))
        .collect();
    assert!(targets.contains("tidegate_keeper::crossing"), "{targets:?}");
    let others: Vec<_> = targets
        .iter()
        .filter(|target| !target.starts_with("tidegate"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    for planted in [PLANTED_NAME, "MRN4100021", "Invented17"] {
        assert!(!holds(&output.stdout, planted));
        assert!(!holds(&output.stderr, planted), "{planted} in a log");
        for file in files(&hospital.state()) {
            if !file.starts_with(hospital.state().join("sites/hospital")) {
                assert!(
                    !holds(&std::fs::read(&file).unwrap(), planted),
                    "{planted} in {}",
                    file.display()
                );
            }
        }
    }
}

/// What is refused or goes wrong is told at length, and without what it was about.
#[test]
fn a_planted_name_is_told_by_no_refusal_and_no_error() {
    for (file, from, to) in [
        ("tidegate.yaml", "roc_auc: \">= 0.55\"", "roc_auc: \">= 0.999\""),
        (
            "tidegate.yaml",
            "k: 5, on_violation: suppress",
            "k: 200, on_violation: refuse",
        ),
        // The last record is cut off.
        ("admissions.csv", ",Person Invented699 was seen,", ","),
        // A value that is no number, where all others are.
        (
            "admissions.csv",
            ",Zebulon Quackenbush was seen,",
            ",Zebulon Quackenbush was seen,MRN4100021",
        ),
    ] {
        let hospital = Hospital::new();
        hospital.edit(file, from, to);
        let output = hospital
            .command(&["run", "--yes", "--format", "json"])
            .env("TIDEGATE_LOG", "trace")
            .output()
            .unwrap();
        assert!(!output.status.success(), "{to}");
        for planted in [PLANTED_NAME, "MRN4100021", "Invented17", "Invented699"] {
            assert!(
                !holds(&output.stdout, planted) && !holds(&output.stderr, planted),
                "{to}: {planted}"
            );
            for file in files(&hospital.state()) {
                let outside = !file.starts_with(hospital.state().join("sites/hospital"));
                assert!(
                    !outside || !holds(&std::fs::read(&file).unwrap(), planted),
                    "{to}: {planted} in {}",
                    file.display()
                );
            }
        }
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .trim()
        .bytes()
        .map(|digit| (digit as char).to_digit(16).unwrap() as u8)
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The entries of a table of a private site's journal.
fn entries(hospital: &Hospital, table: &str) -> Vec<(String, Value)> {
    let journal = SqliteJournal::open(hospital.state().join("sites/hospital/journal.sqlite")).unwrap();
    let entries = journal.scan(table, "").unwrap();
    assert!(!entries.is_empty(), "the journal has no {table}");
    entries
        .into_iter()
        .map(|(key, bytes)| (key, serde_json::from_slice(&bytes).unwrap()))
        .collect()
}

/// Every secret that a run made or used, by what it is: those of the site, of the control plane, of the
/// serving site, of each ticket and of each crossing.
async fn secrets(hospital: &Hospital) -> BTreeMap<String, Vec<u8>> {
    let keys = hospital.state().join("sites/hospital/keys");
    let custody = FileCustody::open(keys.join("custody.key"), None).unwrap();
    let site = SiteName::new("hospital").unwrap();
    let own = SiteKeys::open(&keys.join("site-keys.json"), &custody, &site)
        .await
        .unwrap();
    let text = |file: &str| std::fs::read_to_string(hospital.state().join(file)).unwrap();
    let custody_key = text("sites/hospital/keys/custody.key");
    let mut secrets = BTreeMap::from([
        (
            "custody key".to_owned(),
            from_hex(custody_key.split_whitespace().nth(1).unwrap()),
        ),
        ("signing key".to_owned(), own.signing.seed().to_vec()),
        ("identity".to_owned(), own.identity.secret().as_bytes().to_vec()),
        ("digest key".to_owned(), own.digest.to_vec()),
        ("split key".to_owned(), own.stages.split.to_vec()),
        ("value key".to_owned(), own.stages.values.to_vec()),
        ("control key".to_owned(), from_hex(&text("control/control.key"))),
        (
            "ward's identity".to_owned(),
            text("sites/ward/keys/identity.age").trim().as_bytes().to_vec(),
        ),
    ]);
    for (table, field, what) in [("attempts", "secret", "ticket"), ("permits", "wrapped_key", "data key")] {
        for (key, record) in entries(hospital, table) {
            let wrapped = from_hex(record[field].as_str().unwrap());
            let secret = custody.unwrap_key(&wrapped, &key).await.unwrap();
            secrets.insert(format!("{what} of {key}"), secret.to_vec());
        }
    }
    secrets
}

/// How a secret may be written: as it is, in hexadecimal, in base64.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex = to_hex(secret);
    vec![
        secret.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        STANDARD.encode(secret).trim_end_matches('=').as_bytes().to_vec(),
    ]
}

/// Everything that any process shows of itself to whoever lists processes.
fn process_list(seen: &mut BTreeSet<Vec<u8>>) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let is_process = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.parse::<u32>().is_ok());
        if is_process && let Ok(command) = std::fs::read(entry.path().join("cmdline")) {
            seen.insert(command);
        }
    }
}

#[test]
fn no_key_is_written_told_or_shown_anywhere() {
    let hospital = Hospital::new();
    let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
    command.env("TIDEGATE_LOG", "trace");
    let ended = AtomicBool::new(false);
    let (output, listed) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !ended.load(Ordering::SeqCst) {
                process_list(&mut seen);
            }
            seen
        });
        let output = command.output().unwrap();
        ended.store(true, Ordering::SeqCst);
        (output, watching.join().unwrap())
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A refusal and an error, which say what they saw.
    hospital.edit("tidegate.yaml", "roc_auc: \">= 0.55\"", "roc_auc: \">= 0.999\"");
    let refused = hospital
        .command(&["run", "--yes", "--format", "json"])
        .env("TIDEGATE_LOG", "trace")
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(3));

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let secrets = runtime.block_on(secrets(&hospital));
    // Code, train, validation and the bundle have a data key each; one worker had a ticket.
    assert!(secrets.keys().filter(|what| what.starts_with("data key")).count() >= 4);
    assert!(secrets.keys().any(|what| what.starts_with("ticket")));
    assert!(secrets.values().all(|secret| secret.len() >= 32));

    let control = hospital.state().join("control/control.key");
    let homes: [(&str, std::path::PathBuf); 3] = [
        ("custody key", hospital.state().join("sites/hospital/keys/custody.key")),
        ("control key", control),
        ("ward's identity", hospital.state().join("sites/ward/keys/identity.age")),
    ];
    let mut places: Vec<(String, Vec<u8>)> = files(hospital.folder.path())
        .into_iter()
        .map(|file| (file.display().to_string(), std::fs::read(&file).unwrap()))
        .collect();
    assert!(places.iter().any(|(place, _)| place.ends_with("journal.sqlite")));
    places.push(("the log".to_owned(), output.stderr));
    places.push(("the answer".to_owned(), output.stdout));
    places.push(("the refusal's log".to_owned(), refused.stderr));
    assert!(
        listed.iter().any(|command| holds(command, "worker")),
        "no worker was listed"
    );
    assert!(
        listed.iter().any(|command| holds(command, "keeper")),
        "no keeper was listed"
    );
    places.extend(
        listed
            .into_iter()
            .map(|command| ("the process list".to_owned(), command)),
    );
    let ledger = hospital.succeed(&["audit", "show", "--format", "json"]);
    places.push(("the ledger".to_owned(), ledger.into_bytes()));

    for (what, secret) in &secrets {
        let needles = spellings(secret);
        let mut found = 0;
        for (place, bytes) in &places {
            if needles.iter().any(|needle| find(bytes, needle)) {
                found += 1;
                let home = homes.iter().find(|(it, _)| it == what);
                assert!(
                    home.is_some_and(|(_, file)| file.display().to_string() == *place),
                    "the {what} is in {place}"
                );
            }
        }
        // What has a file of its own is found there: the search sees what is there to be seen.
        assert_eq!(found, usize::from(homes.iter().any(|(it, _)| it == what)), "{what}");
    }
}

/// Whether bytes hold others; looks closer only where the first byte fits.
fn find(bytes: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return false };
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| byte == first) {
        if bytes[from + at..].starts_with(needle) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[test]
fn an_error_about_a_row_names_the_line_and_not_the_value() {
    let hospital = Hospital::new();
    let csv = std::fs::read_to_string(hospital.path("admissions.csv")).unwrap();
    let broken = csv.replacen(
        &format!("{PLANTED_NAME} was seen,"),
        &format!("{PLANTED_NAME} was seen,7,"),
        1,
    );
    assert_ne!(csv, broken);
    hospital.write("admissions.csv", &broken);
    let output = hospital.tidegate(&["run", "--yes"]);
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("admissions.csv:5"), "{message}");
    assert!(!message.contains(PLANTED_NAME), "{message}");
}

#[test]
fn keys_are_files_of_their_site_that_nobody_else_reads() {
    use std::os::unix::fs::PermissionsExt;

    let hospital = Hospital::new();
    hospital.run();
    for file in [
        "control/control.key",
        "sites/hospital/keys/custody.key",
        "sites/hospital/keys/site-keys.json",
        "sites/ward/keys/identity.age",
    ] {
        let mode = hospital.state().join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file} has mode {mode:o}");
    }
}
