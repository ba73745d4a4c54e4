//! A keeper on a small host: the site's machines prepare and judge in its place.

use serde_json::Value;

use crate::fixture::{Hospital, files, nobody_works};

/// Has the private site's machines work on its rows.
fn by_machines(hospital: &Hospital, rows: bool) {
    let sites = std::fs::read_to_string(hospital.path("sites.yaml")).unwrap();
    let (home, others) = sites.split_once("  cloud:").unwrap();
    let home = home.replace(", rows: true}", "}");
    let begin = home.find("compute: {").unwrap();
    let end = begin + home[begin..].find('}').unwrap();
    let rows = if rows { ", rows: true" } else { "" };
    hospital.write(
        "sites.yaml",
        &format!("{}{rows}{}  cloud:{others}", &home[..end], &home[end..]),
    );
}

/// The tasks that machines worked at in a run, with their sites.
fn machines(hospital: &Hospital, run: &Value) -> Vec<(String, String)> {
    let costs: Value = serde_json::from_str(&hospital.succeed(&["cost", "--format", "json"])).unwrap();
    let mut of_run = costs.as_array().unwrap().iter().filter(|one| one["run"] == *run);
    let machines = of_run.next().unwrap()["machines"].as_array().unwrap().iter();
    let text = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
    let mut all: Vec<_> = machines.map(|one| (text(one, "task"), text(one, "site"))).collect();
    all.sort();
    all
}

fn named(tasks: &[(&str, &str)]) -> Vec<(String, String)> {
    let named = |(task, site): &(&str, &str)| ((*task).to_owned(), (*site).to_owned());
    tasks.iter().map(named).collect()
}

#[test]
fn machines_of_the_private_site_prepare_and_judge_to_the_same_figures() {
    let hospital = Hospital::new();
    by_machines(&hospital, true);
    let first = hospital.run();
    assert_eq!(first["status"], "done");
    let all = named(&[("evaluate", "hospital"), ("prepare", "hospital"), ("train", "cloud")]);
    assert_eq!(machines(&hospital, &first["run"]), all);
    // What they were given is nowhere any more, and no data but the training's is at the cloud.
    let away = hospital.state().join("sites/hospital/away");
    assert_eq!(files(&away), Vec::<std::path::PathBuf>::new());
    let swept = hospital.succeed(&["transfers", "sweep", "--format", "json"]);
    assert!(!swept.contains("hospital\",\"object"), "{swept}");
    assert!(nobody_works(&hospital));
    hospital.succeed(&["audit", "verify"]);
    // Nothing is done twice.
    assert_eq!(hospital.run()["reused"].as_array().unwrap().len(), 7);

    // The keeper itself comes to the same, with nothing that a machine left.
    std::fs::remove_dir_all(hospital.state().join("sites/hospital/work/scores")).unwrap();
    by_machines(&hospital, false);
    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 13");
    let other = hospital.run();
    assert_eq!(machines(&hospital, &other["run"]), named(&[("train", "cloud")]));
    hospital.edit("tidegate.yaml", "epochs: 13", "epochs: 12");
    std::fs::remove_dir_all(hospital.state().join("sites/hospital/work/prepared")).unwrap();
    let again = hospital.run();
    assert_ne!(other["metrics"], first["metrics"]);
    assert_eq!(again["metrics"], first["metrics"]);
    assert_eq!(again["risk"], first["risk"]);
}

#[test]
fn what_a_machine_refuses_is_told_as_the_keeper_would_tell_it() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "k: 5", "k: 5000");
    let (rule, message) = hospital.refused();
    by_machines(&hospital, true);
    assert_eq!(hospital.refused(), (rule, message));
    let runs: Value = serde_json::from_str(&hospital.succeed(&["status", "--format", "json"])).unwrap();
    let of_runs = runs
        .as_array()
        .unwrap()
        .iter()
        .map(|run| machines(&hospital, &run["id"]));
    assert!(
        of_runs.into_iter().any(|all| all == named(&[("prepare", "hospital")])),
        "{runs}"
    );
    // Corrected, it goes on.
    hospital.edit("tidegate.yaml", "k: 5000", "k: 5");
    assert_eq!(hospital.run()["status"], "done");
}

#[test]
fn only_a_private_site_has_machines_for_rows() {
    let hospital = Hospital::new();
    let price = "price: 0.10 USD/h, spot_price: 0.04 USD/h}";
    hospital.edit("sites.yaml", price, &price.replace('}', ", rows: true}"));
    let output = hospital.tidegate(&["check"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("only private sites have rows to work on"),
        "{told}"
    );
}
