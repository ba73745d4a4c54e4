//! What a command sees: environment variables, and the folders that its sandbox opens.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tidegate_types::message::{Job, SandboxEvidence};

use crate::accelerators::Accelerators;
use crate::nodes;
use crate::sandbox::{self, Policy};
use crate::scratch::Scratch;

/// Where programs are looked for when the worker itself was not told.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The most processes and threads of a command for each processor, and at least: numerical libraries
/// start one thread for each processor, several times over.
const TASKS_EACH: u64 = 32;
const TASKS_LEAST: u64 = 512;
/// The longest file of a command: caches and environments are larger than models.
const FILE_BYTES: u64 = 8 << 30;

/// What is the same for setup and run.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) job: &'a Job,
    pub(crate) scratch: &'a Scratch,
    pub(crate) executable: &'a Path,
    pub(crate) accelerators: &'a Accelerators,
    /// Which machine of the job it is.
    pub(crate) rank: u32,
    /// Whether its processes may speak to each other, and over local sockets too.
    pub(crate) local: bool,
    pub(crate) own_root: bool,
    /// The worker's own `PATH`.
    pub(crate) path: String,
}

impl<'a> Surroundings<'a> {
    pub(crate) fn new(
        job: &'a Job,
        scratch: &'a Scratch,
        executable: &'a Path,
        accelerators: &'a Accelerators,
        rank: u32,
        evidence: &SandboxEvidence,
    ) -> Self {
        let path = std::env::var("PATH").ok().filter(|path| !path.is_empty());
        Self {
            job,
            scratch,
            executable,
            accelerators,
            rank,
            // What a command has is what was tried.
            local: [sandbox::SPEAKING, sandbox::ROOTED].contains(&evidence.network.as_str()),
            own_root: evidence.network == sandbox::ROOTED,
            path: path.unwrap_or_else(|| DEFAULT_PATH.to_owned()),
        }
    }

    /// The environment of both commands. What the platform sets wins over what the job sets: a job
    /// that could redirect its own output would only fool itself, but confusingly.
    pub(crate) fn environment(&self, inputs: &[String]) -> BTreeMap<String, String> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (job, scratch) = (self.job, self.scratch);
        let mut all = BTreeMap::from([(
            "LANG".to_owned(),
            std::env::var("LANG").unwrap_or_else(|_| "C.UTF-8".to_owned()),
        )]);
        all.extend(
            job.environment
                .iter()
                .filter(|(name, _)| is_variable(name))
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        let output = text(scratch.output());
        let checkpoint = text(scratch.checkpoint());
        let fixed = [
            ("PATH", self.path.clone()),
            ("HOME", text(scratch.home())),
            ("TMPDIR", text(scratch.temporary())),
            ("TIDEGATE_TARGET", job.target.clone()),
            ("TIDEGATE_OUTPUT", output.clone()),
            ("TIDEGATE_CHECKPOINT", checkpoint.clone()),
            ("TIDEGATE_METRICS", text(scratch.metrics())),
            ("TIDEGATE_NOTICE", text(scratch.notice())),
            ("TIDEGATE_TRAINER", text(self.executable.to_owned())),
            // The names that scripts for SageMaker and Vertex AI know.
            ("SM_MODEL_DIR", output.clone()),
            ("SM_OUTPUT_DATA_DIR", output.clone()),
            ("AIP_MODEL_DIR", output),
            ("AIP_CHECKPOINT_DIR", checkpoint),
        ];
        all.extend(fixed.map(|(name, value)| (name.to_owned(), value)));
        if self.local && self.node().is_none() && !job.run_network {
            // There is nothing else to listen at.
            all.entry("GLOO_SOCKET_IFNAME".to_owned())
                .or_insert_with(|| "lo".to_owned());
        }
        if let Some(rank) = self.node() {
            let count = job.others.saturating_add(1);
            all.extend(nodes::variables(rank, count, job.accelerators));
        }
        for input in inputs {
            let (name, folder) = (input.to_ascii_uppercase(), text(scratch.input(input)));
            all.insert(format!("TIDEGATE_INPUT_{name}"), folder.clone());
            all.insert(format!("SM_CHANNEL_{name}"), folder);
        }
        all
    }

    /// Which machine of several it is.
    fn node(&self) -> Option<u32> {
        (self.job.others > 0).then_some(self.rank)
    }

    fn base(&self) -> Policy {
        let scratch = self.scratch;
        let mut read = toolchains(OsStr::new(&self.path));
        read.extend([self.executable.to_owned(), scratch.notice_folder()]);
        Policy {
            read,
            write: vec![scratch.code(), scratch.home(), scratch.temporary()],
            devices: Vec::new(),
            network: false,
            node: None,
            local: self.local,
            own_root: self.own_root,
            shared_memory: true,
            room: Some(scratch.root().to_owned()),
            memory_bytes: self.job.memory_bytes,
            seconds: self.job.seconds,
            processes: tasks(),
            file_bytes: FILE_BYTES.max(self.job.output_bytes),
        }
    }

    pub(crate) fn setup_policy(&self) -> Policy {
        Policy {
            network: self.job.setup_network,
            ..self.base()
        }
    }

    pub(crate) fn run_policy(&self) -> Policy {
        let node = self.node();
        let mut policy = Policy {
            // What others are to hear goes to them and nobody else.
            network: self.job.run_network && node.is_none(),
            node,
            ..self.base()
        };
        let scratch = self.scratch;
        policy.read.push(scratch.inputs());
        if self.job.accelerators > 0 {
            let (devices, shown) = self.accelerators.open();
            policy.devices = devices;
            policy.read.extend(shown);
        }
        policy
            .write
            .extend([scratch.output(), scratch.checkpoint(), scratch.metrics_folder()]);
        policy
    }
}

fn tasks() -> u64 {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    TASKS_EACH.saturating_mul(processors).max(TASKS_LEAST)
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.bytes().any(|byte| byte == b'=' || byte == 0)
}

/// What belongs to the programs on a `PATH`: the folders themselves and the libraries beside them, but
/// never the folder around them, which may be somebody's home. An interpreter is followed to where it
/// was installed.
pub(crate) fn toolchains(path: &OsStr) -> Vec<PathBuf> {
    const BESIDE: [&str; 7] = [
        "lib",
        "lib64",
        "libexec",
        "include",
        "pyvenv.cfg",
        "versions",
        "version",
    ];
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in std::env::split_paths(path).filter(|folder| folder.is_absolute()) {
        for interpreter in ["python3", "python"] {
            let real = folder.join(interpreter).canonicalize().ok();
            folders.extend(real.as_deref().and_then(Path::parent).map(Path::to_owned));
        }
        folders.push(folder);
    }
    folders.sort();
    folders.dedup();
    let mut found = Vec::new();
    for folder in folders {
        if let Some(around) = folder.parent().filter(|around| around.parent().is_some()) {
            found.extend(
                BESIDE
                    .map(|name| around.join(name))
                    .into_iter()
                    .filter(|path| path.exists()),
            );
            if folder.is_dir() {
                found.push(folder);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tidegate_types::message::Attempt;
    use tidegate_types::{RunId, TaskName};

    use super::*;

    #[test]
    fn programs_open_their_libraries_and_not_the_home_around_them() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        for folder in [
            ".local/bin",
            ".local/lib",
            ".local/share/keyrings",
            "python/bin",
            "python/lib",
            ".ssh",
        ] {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        fs::write(home.join("python/bin/python3.11"), "").unwrap();
        std::os::unix::fs::symlink(home.join("python/bin/python3.11"), home.join(".local/bin/python3")).unwrap();
        let path = std::env::join_paths([home.join(".local/bin"), "relative".into(), "/".into()]).unwrap();
        let found = toolchains(&path);
        for part in [".local/bin", ".local/lib", "python/bin", "python/lib"] {
            assert!(found.contains(&home.join(part)), "{part}: {found:?}");
        }
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn what_the_platform_sets_wins() {
        let work = tempfile::tempdir().unwrap();
        let attempt = Attempt {
            run: RunId::new("r1").unwrap(),
            task: TaskName::new("train").unwrap(),
            attempt: 1,
            rank: 0,
        };
        let scratch = Scratch::create(work.path(), &attempt).unwrap();
        let environment = [
            ("TIDEGATE_OUTPUT", "/elsewhere"),
            ("EPOCHS", "3"),
            ("A=B", "x"),
            ("", "x"),
        ];
        let job = Job {
            target: "died".to_owned(),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..Job::default()
        };
        let none = Accelerators::default();
        let seen = Surroundings::new(
            &job,
            &scratch,
            Path::new("/x/tidegate"),
            &none,
            0,
            &SandboxEvidence::default(),
        );
        let seen = seen.environment(&["train".to_owned()]);
        let path = |folder: PathBuf| folder.to_str().unwrap().to_owned();
        for (name, value) in [
            ("EPOCHS", "3".to_owned()),
            ("TIDEGATE_TARGET", "died".to_owned()),
            ("TIDEGATE_OUTPUT", path(scratch.output())),
            ("SM_MODEL_DIR", path(scratch.output())),
            ("AIP_CHECKPOINT_DIR", path(scratch.checkpoint())),
            ("TIDEGATE_INPUT_TRAIN", path(scratch.input("train"))),
            ("SM_CHANNEL_TRAIN", path(scratch.input("train"))),
            ("TIDEGATE_TRAINER", "/x/tidegate".to_owned()),
            ("HOME", path(scratch.home())),
        ] {
            assert_eq!(seen.get(name), Some(&value), "{name}");
        }
        assert!(!seen.contains_key("A=B") && !seen.contains_key(""));
        assert!(!seen.contains_key("WORLD_SIZE"), "it is alone");
    }
}
