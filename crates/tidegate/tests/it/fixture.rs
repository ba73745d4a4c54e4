//! A small hospital in a temporary folder: invented people, three sites, one pipeline.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A name that no log, error or journal outside the private site may ever hold.
pub(crate) const PLANTED_NAME: &str = "Zebulon Quackenbush";
/// As many rows as k-anonymity and calibration need, and no more.
pub(crate) const PEOPLE: u64 = 700;

/// The folder and what is in it.
pub(crate) struct Hospital {
    pub(crate) folder: tempfile::TempDir,
}

/// A small deterministic generator (Steele et al., SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

pub(crate) const CATALOG: &str = "datasets:
  admissions:
    site: hospital
    source: admissions.csv
    subject: patient_id
    purposes: [quality-of-care]
    least_k: 5
    tags: [phi]
    residency: {only: [US]}
    csv: {null: [\"\", NA]}
    columns:
      patient_id: {role: identifier, kind: record_number}
      name: {role: identifier, kind: name}
      zip: {role: quasi_identifier, kind: zip_code}
      age: {role: quasi_identifier, kind: age}
      sex: {role: quasi_identifier}
      notes: {role: text}
      \"*\": {role: attribute}
";

pub(crate) const SITES: &str = "organisation: st-mary
sites:
  hospital:
    kind: private
    jurisdiction: US
    clearance: {level: restricted, tags: [phi]}
    store: \"folder:\"
    custody: \"file:\"
    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.08 USD/h}
  cloud:
    kind: public
    jurisdiction: US
    clearance: {level: internal}
    store: \"folder:\"
    compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.10 USD/h, spot_price: 0.04 USD/h}
    egress: {\"*\": 0.09 USD/GiB}
  ward:
    kind: edge
    jurisdiction: US
    clearance: {level: internal}
    store: \"folder:\"
";

pub(crate) const PIPELINE: &str = "name: readmission
purpose: quality-of-care
prepare:
  from: admissions
  profile: hipaa-safe-harbor
  target: readmitted
  drop: [zip, sex]
  split: {validation: 0.1, refine: 0.2, test: 0.3}
  disclosure: {to: internal, k: 5, on_violation: suppress, max_suppressed: 0.1}
train:
  resources: {infra: cloud}
  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}
evaluate:
  by: [sex]
  gates: {roc_auc: \">= 0.55\", membership_auc: \"<= 0.70\"}
refine: {calibrate: platt}
deploy: [hospital, ward]
";

impl Hospital {
    pub(crate) fn new() -> Self {
        let hospital = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        hospital.write("admissions.csv", &rows(0));
        hospital.write("catalog.yaml", CATALOG);
        hospital.write("sites.yaml", SITES);
        hospital.write("tidegate.yaml", PIPELINE);
        hospital
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Replaces a text in one of the files; it must be there.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} does not hold {from}");
        self.write(name, &text.replace(from, to));
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_tidegate")), arguments)
    }

    /// The same of another program.
    pub(crate) fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("TIDEGATE_HOME")
            .env("TIDEGATE_LOG", "warn")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn tidegate(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; gives its standard output.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.tidegate(arguments);
        assert!(
            output.status.success(),
            "tidegate {}: {}\n{}\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the newest run's commands have written so far; nothing where there is none.
    pub(crate) fn logs(&self) -> String {
        let runs: Value = serde_json::from_str(&self.succeed(&["status", "--format", "json"])).unwrap();
        let newest = runs.as_array().unwrap().last();
        let Some(run) = newest.map(|run| run["id"].as_str().unwrap()) else {
            return String::new();
        };
        String::from_utf8(self.tidegate(&["logs", run]).stdout).unwrap()
    }

    /// Runs the pipeline to its end; gives the summary.
    pub(crate) fn run(&self) -> Value {
        serde_json::from_str(&self.succeed(&["run", "--yes", "--format", "json"])).unwrap()
    }

    /// Runs the pipeline, which a rule must refuse; gives the rule and the message.
    pub(crate) fn refused(&self) -> (String, String) {
        self.refuses(&["run", "--yes"])
    }

    /// Runs a command that a rule must refuse, in a paragraph that says what was about to happen, why it
    /// does not, which rule says so and what would make it pass. Gives the rule and the paragraph.
    pub(crate) fn refuses(&self, arguments: &[&str]) -> (String, String) {
        let mut words = arguments.to_vec();
        words.extend(["--format", "json"]);
        let output = self.tidegate(&words);
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(answer, "", "a refusal is no answer");
        let told = told(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{told:?}");
        let error = told.last().unwrap();
        assert_eq!(error["event"], "error", "{error}");
        assert_eq!(error["status"], "refused", "{error}");
        assert_eq!(error["exit_code"], 3, "{error}");
        let word = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        let message = word("error");
        for part in ["what", "why", "rule", "fix"] {
            assert!(
                !word(part).is_empty() && message.contains(&word(part)),
                "{part}: {error}"
            );
        }
        assert!(message.starts_with("refused: "), "{message}");
        assert!(message.contains("To make it pass: "), "{message}");
        (word("rule"), message)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path(".tidegate")
    }
}

/// What `--format json` wrote on standard error: JSON, line by line, whatever happened.
pub(crate) fn told(stderr: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(stderr)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Processes of this hospital whose command line has `word` as its first argument.
pub(crate) fn processes(hospital: &Hospital, word: &str) -> Vec<u32> {
    let state = hospital.folder.path().to_string_lossy().into_owned();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let command = read("cmdline");
            let mut words = command.split(|byte| *byte == 0);
            let ours = words.nth(1).is_some_and(|first| first == word.as_bytes());
            let environment = String::from_utf8_lossy(&read("environ")).into_owned();
            let here = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            ours && (environment.contains(&state) || here.starts_with(hospital.folder.path()))
        })
        .collect()
}

/// Whether nobody works for this hospital any more, after at most ten seconds.
pub(crate) fn nobody_works(hospital: &Hospital) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    let left = || {
        ["keeper", "worker", "trainer", "sandbox-exec"]
            .iter()
            .any(|word| !processes(hospital, word).is_empty())
    };
    while left() && Instant::now() < until {
        std::thread::yield_now();
    }
    !left()
}

/// Every regular file below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Invented admissions; the outcome depends on age and two measurements.
pub(crate) fn rows(seed: u64) -> String {
    let mut random = Random(seed);
    let mut text = "patient_id,name,zip,age,sex,lactate,pressure,unit,notes,readmitted\n".to_owned();
    for person in 0..PEOPLE {
        let age = 30 + random.next() % 55;
        let lactate = 0.5 + 5.0 * random.unit();
        let pressure = 60.0 + 60.0 * random.unit();
        let risk = 0.05 * (age as f64 - 55.0) + 0.9 * (lactate - 3.0) - 0.03 * (pressure - 90.0);
        let readmitted = u8::from(random.unit() < 1.0 / (1.0 + (-risk).exp()));
        let name = if person == 3 {
            PLANTED_NAME.to_owned()
        } else {
            format!("Person Invented{person}")
        };
        let sex = if random.unit() < 0.5 { "female" } else { "male" };
        let unit = ["icu", "ward", "emergency"][(random.next() % 3) as usize];
        let _ = writeln!(
            text,
            "MRN{:07},{name},{:05},{age},{sex},{lactate:.2},{pressure:.1}, {unit} ,{name} was seen,{readmitted}",
            4_100_000 + person * 7,
            10_000 + (random.next() % 40) * 101,
        );
    }
    text
}

/// The program that workers outside of the home site are: the small one, where it was built.
pub(crate) fn worker_program() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_BIN_EXE_tidegate"));
    let small = own.with_file_name(tidegate_machine::PROGRAM);
    if small.is_file() { small } else { own }
}
