//! No personal value outside the private site, and no key where it does not belong.

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
