//! What a hostile command tries, and how it ends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use tidegate_worker::sandbox::{Completed, Ended, Policy, SandboxError, run, self_test, spawn};

const OUTPUT: u64 = 1 << 20;

pub(crate) fn shell(text: &str) -> Vec<OsString> {
    vec!["/bin/sh".into(), "-c".into(), text.into()]
}

pub(crate) fn environment() -> BTreeMap<String, String> {
    [("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())].into()
}

pub(crate) fn policy(folder: &Path) -> Policy {
    Policy {
        write: vec![folder.to_owned()],
        seconds: 60,
        memory_bytes: 256 << 20,
        processes: 64,
        file_bytes: 1 << 20,
        ..Policy::default()
    }
}

pub(crate) fn try_in(folder: &Path, policy: &Policy, text: &str) -> Completed {
    run(
        crate::executable(),
        policy,
        &shell(text),
        &environment(),
        folder,
        OUTPUT,
    )
    .unwrap()
}

pub(crate) fn stdout(done: &Completed) -> String {
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[test]
fn an_ordinary_command_works() {
    let folder = tempfile::tempdir().unwrap();
    let text = "read line; echo \"line=$line\"; echo out; echo err >&2; mkdir -p a/b && echo x > a/b/c && mv a/b/c d && \
                chmod 700 d && rm -r a; cat d; env | sort; umask; exit 5";
    let done = try_in(folder.path(), &policy(folder.path()), text);
    assert_eq!(done.ended, Ended::Exited(5));
    let (out, err) = (stdout(&done), String::from_utf8_lossy(&done.stderr).into_owned());
    assert!(out.starts_with("line=\nout\nx\n") && out.contains("0077"), "{out}");
    assert_eq!(err, "err\n", "nothing but the command's own");
    let variables: Vec<_> = out
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert!(
        variables
            .iter()
            .all(|name| ["line", "PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(name)),
        "{variables:?}"
    );
    assert!(done.evidence.files.starts_with("landlock-v") && done.evidence.network.contains("seccomp"));
}

#[test]
fn files_outside_are_neither_read_nor_changed() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "patient 4711").unwrap();
    let at = outside.path().display();
    for text in [
        format!("cat {at}/secret"),
        format!("ls {at}"),
        format!("echo x > {at}/new"),
        format!("echo x >> {at}/secret"),
        format!("truncate -s 0 {at}/secret"),
        format!("rm {at}/secret"),
        format!("mv {at}/secret stolen"),
        format!("ln {at}/secret link && cat link"),
        format!("ln -s {at}/secret soft && cat soft"),
        format!("cat /proc/{}/root{at}/secret", std::process::id()),
        format!("cd / && cat {}", std::path::absolute(&secret).unwrap().display()),
        "cat ~root/.profile || cat ~root/.bashrc".to_owned(),
        "cat /etc/shadow".to_owned(),
        format!("tr '\\0' '\\n' < /proc/{}/environ | grep .", std::process::id()),
        "ls /tmp".to_owned(),
        "mknod device b 8 0".to_owned(),
        format!("chown 1 {at}/secret"),
        "mount -t tmpfs none .".to_owned(),
        "unshare -r true".to_owned(),
    ] {
        let done = try_in(folder.path(), &policy(folder.path()), &text);
        assert!(
            matches!(done.ended, Ended::Exited(code) if code != 0),
            "{text}: {:?}",
            done.ended
        );
        assert!(!stdout(&done).contains("4711"), "{text}");
    }
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "patient 4711");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn what_may_be_read_may_not_be_written() {
    let (folder, input) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(input.path().join("rows"), "rows").unwrap();
    let policy = Policy {
        read: vec![input.path().to_owned()],
        ..policy(folder.path())
    };
    let at = input.path().display();
    let done = try_in(
        folder.path(),
        &policy,
        &format!("cat {at}/rows; echo x > {at}/rows || echo x > {at}/new || rm {at}/rows"),
    );
    assert_eq!(stdout(&done), "rows");
    assert!(matches!(done.ended, Ended::Exited(code) if code != 0));
    assert_eq!(std::fs::read_to_string(input.path().join("rows")).unwrap(), "rows");
}

/// Python, where there is one: a shell has no sockets to try.
fn python() -> Option<String> {
    let name = std::env::var("TIDEGATE_INTEROP_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let done = std::process::Command::new(&name)
        .args(["-c", "import sys; print(sys.executable); print(sys.base_prefix)"])
        .output();
    let text = done
        .ok()
        .filter(|done| done.status.success())
        .and_then(|done| String::from_utf8(done.stdout).ok());
    if text.is_none() {
        assert!(
            std::env::var_os("TIDEGATE_INTEROP").is_none_or(|value| value != "1"),
            "there is no `{name}`"
        );
        println!("skipped: there is no `{name}`");
    }
    text
}

pub(crate) fn with_python(folder: &Path, change: impl FnOnce(&mut Policy), script: &str) -> Option<Completed> {
    let about = python()?;
    let (program, base) = about.trim().split_once('\n')?;
    let program = Path::new(program);
    let prefix = program.parent()?.parent()?;
    let mut policy = Policy {
        read: vec![prefix.to_owned(), base.trim().into()],
        ..policy(folder)
    };
    change(&mut policy);
    let command = [program.into(), "-I".into(), "-c".into(), script.into()];
    Some(run(crate::executable(), &policy, &command, &environment(), folder, OUTPUT).unwrap())
}

#[test]
fn no_socket_can_be_had_without_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        r"
import socket, os
def attempt(name, act):
    try:
        act()
        print('OPEN', name)
    except OSError as error:
        print('closed', name)
families = [(f, k) for f in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 16, 17, 40) for k in (1, 2, 3)]
for family, kind in families:
    attempt((family, kind), lambda: socket.socket(family, kind))
attempt('connect', lambda: socket.create_connection(('127.0.0.1', {port}), 2))
attempt('datagram pair', lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
left, right = socket.socketpair()
left.send(b'x'); assert right.recv(1) == b'x'
print('pair works')
"
    );
    let Some(done) = with_python(folder.path(), |_| {}, &script) else {
        return;
    };
    let out = stdout(&done);
    assert!(
        out.contains("pair works") && !out.contains("OPEN"),
        "{out}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(done.ended, Ended::Exited(0));
}

#[test]
fn a_granted_network_is_internet_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        r"
import socket
socket.create_connection(('127.0.0.1', {port}), 5)
print('connected')
for family, kind in ((socket.AF_UNIX, 1), (socket.AF_UNIX, 2), (17, 3), (socket.AF_INET, 3), (40, 1)):
    try:
        socket.socket(family, kind)
        print('OPEN', family, kind)
    except OSError:
        pass
"
    );
    let Some(done) = with_python(folder.path(), |policy| policy.network = true, &script) else {
        return;
    };
    let out = stdout(&done);
    assert!(
        out.contains("connected") && !out.contains("OPEN"),
        "{out}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(done.evidence.network, "", "an open network is not called closed");
}

#[test]
fn other_processes_are_out_of_reach() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = std::process::Command::new("sleep").arg("300").spawn().unwrap();
    let script = format!(
        "kill -9 {0}; cat /proc/{0}/mem > /dev/null; head -c 1 /proc/{0}/maps",
        other.id()
    );
    let done = try_in(folder.path(), &policy(folder.path()), &script);
    assert!(matches!(done.ended, Ended::Exited(code) if code != 0) && done.stdout.is_empty());
    assert_eq!(other.try_wait().unwrap(), None, "it still runs");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn each_limit_ends_the_command_and_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let base = policy(folder.path());
    let cases = [
        (
            "sleep 300",
            Policy {
                seconds: 1,
                ..base.clone()
            },
            Ended::OverTime,
        ),
        (
            "head -c 400000000 /dev/zero | tail -n 1 | wc -c",
            Policy {
                memory_bytes: 32 << 20,
                ..base.clone()
            },
            Ended::OverMemory,
        ),
        (
            "for i in $(seq 300); do sleep 60 & done; sleep 300",
            base.clone(),
            Ended::OverProcesses,
        ),
        (
            "exec head -c 3000000 /dev/zero > long",
            base.clone(),
            Ended::OverFileSize,
        ),
        ("kill -11 $$", base, Ended::Signalled(11)),
    ];
    for (text, policy, expected) in cases {
        let begun = Instant::now();
        let done = try_in(folder.path(), &policy, text);
        assert_eq!(
            done.ended,
            expected,
            "{text}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        assert!(begun.elapsed() < Duration::from_secs(50), "{text}");
    }
    assert!(std::fs::metadata(folder.path().join("long")).unwrap().len() <= 1 << 20);
}

#[test]
fn what_a_command_leaves_behind_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = "setsid sleep 301 > /dev/null 2>&1 & (sleep 302 > /dev/null 2>&1 &) ; sleep 303 & echo done";
    let begun = Instant::now();
    let done = try_in(folder.path(), &policy(folder.path()), text);
    assert_eq!((done.ended, stdout(&done).as_str()), (Ended::Exited(0), "done\n"));
    assert!(begun.elapsed() < Duration::from_secs(60));
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(
            !["sleep 301 ", "sleep 302 ", "sleep 303 "].contains(&line.as_str()),
            "{line} still runs"
        );
    }
}

#[test]
fn a_preloaded_library_runs_inside_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut variables = environment();
    variables.insert("LD_PRELOAD".to_owned(), "/nowhere/hostile.so".to_owned());
    let done = run(
        crate::executable(),
        &policy(folder.path()),
        &shell("echo ran"),
        &variables,
        folder.path(),
        OUTPUT,
    );
    let done = done.unwrap();
    // The loader complains once for the shell; had the sandbox program loaded it, its first line would
    // not have been its evidence.
    assert_eq!((done.ended, stdout(&done).as_str()), (Ended::Exited(0), "ran\n"));
    assert!(String::from_utf8_lossy(&done.stderr).contains("hostile.so"));
}

#[test]
fn a_running_command_is_stopped_on_request_and_with_its_handle() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut running = spawn(
            crate::executable(),
            &policy(folder.path()),
            &shell("echo $$; sleep 300"),
            &environment(),
            folder.path(),
        )
        .unwrap();
        let (mut stdout, _) = running.take_pipes().unwrap();
        let mut pid = [0; 16];
        let count = stdout.read(&mut pid).unwrap();
        (
            running,
            stdout,
            String::from_utf8_lossy(&pid[..count]).trim().to_owned(),
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut running, _stdout, _) = start();
    running.stop();
    assert_eq!(runtime.block_on(running.ended()), Ended::Stopped);
    let (running, mut stdout, pid) = start();
    drop(running);
    // The stream ends when nobody holds it any more.
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert!(
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .unwrap_or_default()
            .is_empty()
    );
}

#[test]
fn what_is_no_worker_program_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["/bin/true", "/nowhere"] {
        let done = run(
            Path::new(program),
            &policy(folder.path()),
            &shell("true"),
            &environment(),
            folder.path(),
            OUTPUT,
        );
        assert!(
            matches!(done, Err(SandboxError::Silent { .. } | SandboxError::Start { .. })),
            "{program}"
        );
    }
    let done = run(
        crate::executable(),
        &policy(folder.path()),
        &["/nowhere".into()],
        &environment(),
        folder.path(),
        OUTPUT,
    );
    assert_eq!(done.unwrap().ended, Ended::Exited(127));
}

#[test]
fn the_self_test_finds_what_is_enforced_and_nothing_without_a_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    let evidence = self_test(crate::executable(), folder.path());
    assert!(
        !evidence.network.is_empty() && evidence.files.starts_with("landlock-v"),
        "{evidence:?}"
    );
    assert_eq!(evidence.limits, ["file-size", "memory", "processes", "time"]);
    assert_eq!(
        self_test(Path::new("/bin/true"), folder.path()),
        tidegate_types::message::SandboxEvidence::default()
    );
    // Killed workers would fill a common folder, and one of them would meet what another left there.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "a child of `a_machine_without_any_network_has_a_sandbox_too`"]
fn child_without_network() {
    let folder = tempfile::tempdir().unwrap();
    println!("\nnetwork={}", self_test(crate::executable(), folder.path()).network);
}

/// Not even with itself: a new namespace begins like that.
#[test]
fn a_machine_without_any_network_has_a_sandbox_too() {
    let alone = |program: &Path, words: &[&str]| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--"]);
        command.arg(program).args(words).output().unwrap()
    };
    if !alone(Path::new("true"), &[]).status.success() {
        eprintln!("left out: no namespaces here");
        return;
    }
    let words = ["sandbox::child_without_network", "--exact", "--ignored", "--nocapture"];
    let output = alone(&std::env::current_exe().unwrap(), &words);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let network = told.lines().find_map(|line| line.strip_prefix("network="));
    assert!(network.is_some_and(|network| network.contains("seccomp")), "{told}");
}
