//! The program as drivers and machines meet it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests fail by panicking")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tidegate_local::program_digest;
use tidegate_machine::BUILD;
use tidegate_seal::sign::SigningKey;
use tidegate_types::message::{Attempt, Ticket};
use tidegate_types::{RunId, SiteName, TaskName};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate-machine");
/// The most bytes of a program that every machine fetches.
const MOST: u64 = 25 << 20;

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// The same program, linked statically. None where it was not built.
fn linked_statically() -> Option<PathBuf> {
    let program = std::env::var_os("TIDEGATE_STATIC").map(PathBuf::from);
    assert!(
        program.is_some() || std::env::var_os("TIDEGATE_INTEROP").is_none(),
        "TIDEGATE_STATIC must name the program that `cargo xtask machine` builds; `tests/run --all` does that"
    );
    program
}

#[test]
fn it_says_which_version_it_is_and_what_it_lacks() {
    let version = run(Path::new(PROGRAM), &["--version"]);
    assert_eq!(told(&version).trim(), format!("tidegate-machine {BUILD}"));
    let version = concat!(env!("CARGO_PKG_VERSION"), " build ");
    let number = BUILD.strip_prefix(version).unwrap();
    assert!(number.len() == 16 && u64::from_str_radix(number, 16).is_ok(), "{BUILD}");
    let without = run(Path::new(PROGRAM), &["worker"]);
    assert_eq!(without.status.code(), Some(1));
    assert!(
        told(&without).contains("failed while reading the ticket"),
        "{}",
        told(&without)
    );
    let nothing = run(Path::new(PROGRAM), &["rows"]);
    assert_eq!(nothing.status.code(), Some(2), "it has no commands for rows");
}

/// The types of segments in an ELF file (System V ABI), little-endian, 64 bits.
fn segments(file: &[u8]) -> Vec<u32> {
    let number = |at: usize, bytes: usize| {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(&file[at..at + bytes]);
        u64::from_le_bytes(number)
    };
    let (begin, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let at = |index| usize::try_from(begin + index * size).unwrap();
    (0..count)
        .map(|index| u32::try_from(number(at(index), 4)).unwrap())
        .collect()
}

#[test]
fn linked_statically_it_is_small_and_needs_nothing_of_the_machine() {
    let Some(program) = linked_statically() else { return };
    let file = std::fs::read(&program).unwrap();
    assert!(file.len() as u64 <= MOST, "{} bytes", file.len());
    let kinds = segments(&file);
    assert!(kinds.contains(&1), "something is loaded: {kinds:?}");
    assert!(!kinds.contains(&3), "it asks for a loader of libraries");
    // In a root that holds nothing else.
    let root = tempfile::tempdir().unwrap();
    let there = root.path().join("machine");
    std::fs::copy(&program, &there).unwrap();
    std::fs::set_permissions(&there, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut alone = Command::new("unshare");
    alone.args(["--user", "--map-root-user", "--root"]).arg(root.path());
    let output = alone.args(["/machine", "--version"]).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
}

#[test]
fn linked_statically_it_finds_hosts_whatever_the_machine_has_for_that() {
    let Some(program) = linked_statically() else { return };
    // A root with a name of its own, and a way to find names that does not exist.
    let root = tempfile::tempdir().unwrap();
    for folder in ["dev", "etc", "proc", "tmp", "work"] {
        std::fs::create_dir(root.path().join(folder)).unwrap();
    }
    std::fs::write(root.path().join("etc/hosts"), "127.0.0.1 store.st-mary.example\n").unwrap();
    std::fs::write(
        root.path().join("etc/nsswitch.conf"),
        "hosts: nothing [UNAVAIL=return]\n",
    )
    .unwrap();
    let there = root.path().join("machine");
    std::fs::copy(&program, &there).unwrap();
    std::fs::set_permissions(&there, std::fs::Permissions::from_mode(0o755)).unwrap();
    let store = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = store.local_addr().unwrap().port();
    let ticket = Ticket {
        attempt: Attempt {
            run: RunId::new("r1").unwrap(),
            task: TaskName::new("train").unwrap(),
            attempt: 1,
            rank: 0,
        },
        site: SiteName::new("cloud").unwrap(),
        store: format!("s3://bucket/mary?endpoint=https://store.st-mary.example:{port}&region=us-east-1"),
        credentials: [("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "SK")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        organisation: "st-mary".to_owned(),
        secret: "00".repeat(32),
        worker: program_digest(&program, None).unwrap(),
        owner: SiteName::new("hospital").unwrap(),
        owner_key: SigningKey::generate().unwrap().public().to_base64(),
        expires: u64::MAX,
    };
    let mut machine = Command::new("unshare");
    machine.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    let inside = "mount --rbind /dev \"$0/dev\" && mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\"";
    machine.args(["sh", "-c", inside]).arg(root.path());
    let mut machine = machine
        .args(["/machine", "worker", "--work", "/work/attempt"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = serde_json::to_vec(&ticket).unwrap();
    machine.stdin.take().unwrap().write_all(&text).unwrap();
    let (found, heard) = std::sync::mpsc::channel();
    let said = found.clone();
    std::thread::spawn(move || {
        let (mut connection, _) = store.accept().unwrap();
        let mut begin = [0; 3];
        connection.read_exact(&mut begin).unwrap();
        found.send(Ok(begin)).unwrap();
    });
    let mut words = machine.stderr.take().unwrap();
    std::thread::spawn(move || {
        let mut text = String::new();
        words.read_to_string(&mut text).unwrap();
        let _ = said.send(Err(text));
    });
    let heard = heard.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    machine.kill().unwrap();
    machine.wait().unwrap();
    // What TLS begins with (RFC 8446, 5.1).
    assert_eq!(heard, Ok([22, 3, 1]), "the store was found by its name");
}
