//! What a machine does once it has booted: its user-data, which cloud-init runs as root.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use tidegate_contracts::{ComputeError, JobRequest};

use super::amazon::{Ec2Prover, SpotNotices};
use super::shelf::{Offered, ProgramShelf};
use crate::client::METADATA;

/// What the last line of a job begins with on the machine's console.
const ENDED: &str = "tidegate: the job ended with exit code ";

/// What comes first: how to speak.
const BEGINNING: &str = r#"#!/bin/sh
# Tidegate: does one job and ends this machine.
umask 077
PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export PATH
say() { echo "tidegate: $1"; }
"#;

/// On machines whose console can be read nobody else has to be told.
const TELLING_NOBODY: &str = "tell() { :; }\n";

/// A hypervisor of VMware keeps what the guest's tools tell it.
const TELLING_VMWARE: &str = r#"tell() {
    vmware-rpctool "info-set guestinfo.$1 $2" || vmtoolsd --cmd "info-set guestinfo.$1 $2"
} >/dev/null 2>&1
"#;

/// How to end, and the folder of the job.
///
/// cloud-init runs it once. A machine that is started again has nothing to do, and ends at once; and none lives longer
/// than a worker's credentials, whatever becomes of this script.
const FRAME: &str = r#"ended() {
    say "the job ended with exit code $1"
    tell tidegate.exit "$1"
    cd / && rm -rf "$work"
    shutdown -P now || poweroff -f
    exit "$1"
}
again=/var/lib/cloud/scripts/per-boot
if [ -d "$again" ]; then
    printf '#!/bin/sh\nshutdown -P now || poweroff -f\n' >"$again/tidegate-end" && chmod 700 "$again/tidegate-end"
fi
shutdown -P +780 >/dev/null 2>&1 || true
work="$(mktemp -d "${TMPDIR:-/var/tmp}/tidegate.XXXXXXXX")" && cd "$work" || ended 95
say "up for $(cut -d ' ' -f 1 /proc/uptime) s"
"#;

/// Where a cloud keeps a machine's user-data, from which a command could learn the ticket, and rights that end later than
/// its hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// In the metadata service, which the worker needs for its credentials, and to prove who its machine is.
    Needed,
    /// In the metadata service, which the worker asks whether its machine is taken back.
    Asked,
    /// In the metadata service.
    Metadata,
    /// In variables that every program on a machine of VMware can read. The machine's exit code stands there, too.
    GuestInfo,
}

/// User-data of a machine for `request`, compressed and in base64; before that it has at most `most` bytes. The program
/// is offered by `shelf` where the request's command is this program; `kept` says what has to be closed before it runs.
pub(super) async fn user_data(
    request: &JobRequest,
    kept: Kept,
    shelf: &ProgramShelf,
    most: usize,
) -> Result<String, ComputeError> {
    let invalid = |why: String| ComputeError::Invalid {
        id: request.id.clone(),
        why,
    };
    let own = shelf.program();
    let needs_program = request
        .command
        .first()
        .is_some_and(|first| own.as_os_str() == first.as_str());
    let offered = if needs_program {
        let offered = shelf.offer().await;
        Some(offered.map_err(|why| ComputeError::Transient {
            what: "bringing the program into the site's store".to_owned(),
            source: std::io::Error::other(why),
        })?)
    } else {
        None
    };
    let script = script(request, kept, offered.as_ref().map(|offered| (own, offered)));
    let mut shrunk = GzEncoder::new(Vec::new(), Compression::best());
    let written = shrunk.write_all(script.as_bytes()).and_then(|()| shrunk.finish());
    let bytes = written.map_err(|error| invalid(error.to_string()))?;
    if bytes.len() > most {
        return Err(invalid(format!(
            "what its machine has to be told has more than {} KiB",
            most >> 10
        )));
    }
    Ok(STANDARD.encode(bytes))
}

/// Ways to close the metadata service: to everybody, and to everybody but the root user. A worker of the root user is one of
/// those that may ask; what it runs in its sandbox is another user. Images have rules of their own for each address of the
/// machine, which a program could choose: this one goes before them.
const CLOSING: &str = r#"# Nobody else reads what this machine was told.
all() {
    ip route add prohibit 169.254.169.254/32 || return 1
    ip route add prohibit fd00:ec2::254/128 2>/dev/null || true
}
others() {
    ip rule add pref 1 to 169.254.169.254/32 uidrange 1-4294967294 prohibit || return 1
    ip -6 rule add pref 1 to fd00:ec2::254/128 uidrange 1-4294967294 prohibit 2>/dev/null || true
    notices="$asked"
}
"#;
/// What follows where the service must not be reached.
const UNCLOSED: &str = r#" || { say "the way to the metadata service cannot be closed"; ended 98; }
"#;

/// As cloud-init does it where it is told to.
const TAKEN_BACK: &str = r#"# Nobody else reads what this machine was told.
tell userdata --- || { say "what this machine was told cannot be taken back"; ended 98; }
"#;

/// The script of a machine for `request`; `kept` says what has to be closed before it runs. `program` is offered to it,
/// and stands in the request's command under its path `own` here.
fn script(request: &JobRequest, kept: Kept, program: Option<(&Path, &Offered)>) -> String {
    let closed = |by: &str| [CLOSING, by, UNCLOSED].concat();
    let (telling, closing) = match kept {
        Kept::Needed => (TELLING_NOBODY, closed("others")),
        Kept::Asked => (TELLING_NOBODY, closed("others || all")),
        Kept::Metadata => (TELLING_NOBODY, closed("all")),
        Kept::GuestInfo => (TELLING_VMWARE, TAKEN_BACK.to_owned()),
    };
    let mut script = [BEGINNING, telling, FRAME].concat();
    let mut command: Vec<String> = request.command.iter().map(|word| quoted(word)).collect();
    if let Some((own, offered)) = program {
        script.push_str(&fetching(offered));
        if let Some(first) = command
            .first_mut()
            .filter(|first| **first == quoted(&own.to_string_lossy()))
        {
            "./tidegate".clone_into(first);
        }
    }
    let mut environment = String::new();
    for (name, value) in &request.environment {
        let _ = write!(environment, " {}", quoted(&format!("{name}={value}")));
    }
    // The worker is told whom to ask where it may.
    let told = [
        (request.spot && matches!(kept, Kept::Needed | Kept::Asked)).then_some(SpotNotices::VARIABLE),
        (kept == Kept::Needed).then_some(Ec2Prover::VARIABLE),
    ];
    if told.iter().any(Option::is_some) {
        let _ = writeln!(script, "asked={}", quoted(METADATA));
    }
    for variable in told.into_iter().flatten() {
        let _ = write!(environment, " ${{notices:+\"{variable}=$notices\"}}");
    }
    script.push_str(&closing);
    let _ = write!(
        script,
        "printf %s '{}' | base64 -d | env -i PATH=\"$PATH\"{environment} {}\nended $?\n",
        STANDARD.encode(&request.ticket),
        command.join(" ")
    );
    script
}

/// The address is told in no command line: it is a right for an hour.
fn fetching(offered: &Offered) -> String {
    let mut settings = format!("url = \"{}\"", offered.url);
    if let Some(certificates) = &offered.certificates {
        let _ = write!(settings, "\ncacert = \"{}\"", certificates.display());
    }
    format!(
        r#"tries=0
until printf '%s\n' {settings} | curl --config - --silent --show-error --fail \
    --connect-timeout 10 --speed-limit 1000 --speed-time 30 --output tidegate; do
    tries=$((tries + 1))
    [ "$tries" -lt 10 ] || {{ say "the program cannot be fetched"; ended 96; }}
    sleep "$tries"
done
echo '{digest}  tidegate' | sha256sum -c - >/dev/null || {{ say "what was fetched is not the program"; ended 97; }}
chmod 700 tidegate
say "the program is here after $(cut -d ' ' -f 1 /proc/uptime) s"
"#,
        settings = quoted(&settings),
        digest = offered.digest.to_hex()
    )
}

/// One word for a shell, whatever it holds.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The exit code that a job told last on the console of its machine.
pub(super) fn exit_code(console: &str) -> Option<i32> {
    let line = console.lines().rev().find_map(|line| line.split_once(ENDED));
    line.and_then(|(_, code)| code.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use tidegate_seal::digest::sha256;
    use tidegate_types::message::Attempt;
    use tidegate_types::{RunId, TaskName};

    use super::*;

    fn request(command: &[&str]) -> JobRequest {
        JobRequest {
            id: "job".to_owned(),
            attempt: Attempt {
                run: RunId::new("run").unwrap(),
                task: TaskName::new("train").unwrap(),
                attempt: 1,
                rank: 0,
            },
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            ticket: "{\"secret\":\"it's $HOME\"}".to_owned(),
            environment: BTreeMap::from([("GREETING".to_owned(), "a 'b' \"c\" $d".to_owned())]),
            owner: "owner".to_owned(),
            spot: false,
        }
    }

    /// What a script prints, and the exit code, on a machine whose `shutdown` is none.
    fn run(script: &str) -> (String, i32) {
        run_beside(script, "echo \"vmtoolsd $*\" >&3", "echo \"ip $*\"")
    }

    /// The same where VMware's tools, and `ip`, are these.
    fn run_beside(script: &str, tools: &str, ip: &str) -> (String, i32) {
        let folder = tempfile::tempdir().unwrap();
        for (name, does) in [
            ("shutdown", "echo \"shutdown $*\""),
            ("ip", ip),
            ("vmware-rpctool", "exit 1"),
            ("vmtoolsd", tools),
        ] {
            let stub = folder.path().join(name);
            std::fs::write(&stub, format!("#!/bin/sh\n{does}\n")).unwrap();
            Command::new("chmod").arg("+x").arg(&stub).status().unwrap();
        }
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let output = Command::new("/bin/sh")
            .args(["-c", &format!("exec 3>&1\n{script}")])
            .env_clear()
            .env("PATH", path)
            .env("TMPDIR", folder.path())
            .output()
            .unwrap();
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 4, "something is left: {left:?}");
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    }

    #[test]
    fn a_job_gets_its_ticket_and_its_environment_and_the_machine_ends_after_it() {
        let command = "cat; echo; echo \"$GREETING\"; env | wc -l; exit 3";
        let (told, code) = run(&script(&request(&["/bin/sh", "-c", command]), Kept::Asked, None));
        assert_eq!(code, 3);
        let lines: Vec<&str> = told.lines().filter(|line| !line.starts_with("ip ")).skip(1).collect();
        // `PATH`, what was asked for, and what a shell sets itself.
        assert_eq!(lines.first(), Some(&"{\"secret\":\"it's $HOME\"}"), "{told}");
        assert_eq!(lines.get(1), Some(&"a 'b' \"c\" $d"), "{told}");
        assert_eq!(lines.get(2).map(|line| line.trim()), Some("3"), "{told}");
        assert_eq!(lines.last(), Some(&"shutdown -P now"), "{told}");
        assert_eq!(exit_code(&told), Some(3));
    }

    #[test]
    fn only_the_program_that_was_meant_is_run() {
        let served = tempfile::tempdir().unwrap();
        let file = served.path().join("a program");
        std::fs::write(&file, "#!/bin/sh\necho \"I ran $1\"\n").unwrap();
        let offered = |text: &str| Offered {
            url: url::Url::from_file_path(&file).unwrap(),
            digest: sha256(text.as_bytes()),
            certificates: None,
        };
        let own = Path::new("/opt/it's/tidegate");
        let request = request(&["/opt/it's/tidegate", "worker"]);
        let good = offered("#!/bin/sh\necho \"I ran $1\"\n");
        let (told, code) = run(&script(&request, Kept::Metadata, Some((own, &good))));
        assert!(code == 0 && told.contains("I ran worker"), "{told}");
        // What stands in the machine's user-data is not for the command.
        let closed = told.find("ip route add prohibit 169.254.169.254/32").unwrap();
        assert!(closed < told.find("I ran").unwrap(), "{told}");
        let (told, code) = run(&script(&request, Kept::Metadata, Some((own, &offered("another")))));
        assert_eq!(code, 97);
        assert!(!told.contains("I ran") && told.contains("not the program"), "{told}");
        assert_eq!(exit_code(&told), Some(97));
    }

    /// Root asks on a spot machine; nobody else is told.
    #[test]
    fn a_spot_machine_is_told_where_to_ask_and_only_the_root_user_may() {
        let mut request = request(&["/bin/sh", "-c", "echo \"asks $TIDEGATE_SPOT_NOTICES\""]);
        let (told, _) = run(&script(&request, Kept::Metadata, None));
        assert!(
            told.contains("asks \n") && told.contains("ip route add prohibit 169.254.169.254/32"),
            "{told}"
        );
        request.spot = true;
        for kept in [Kept::Needed, Kept::Asked] {
            let (told, code) = run(&script(&request, kept, None));
            let closed = told
                .find("ip rule add pref 1 to 169.254.169.254/32 uidrange 1-4294967294 prohibit")
                .unwrap();
            assert!(closed < told.find("asks http://169.254.169.254\n").unwrap(), "{told}");
            assert!(!told.contains("ip route") && code == 0, "{told}");
        }
        // Where the root user cannot be told from others, nobody asks; whoever has to ask does not begin.
        let no_rules = "[ \"$1\" != rule ] && echo \"ip $*\"";
        let (told, code) = run_beside(&script(&request, Kept::Asked, None), "", no_rules);
        assert!(
            told.contains("ip route add prohibit 169.254.169.254/32") && told.contains("asks \n") && code == 0,
            "{told}"
        );
        let (told, code) = run_beside(&script(&request, Kept::Needed, None), "", no_rules);
        assert!(code == 98 && !told.contains("asks"), "{told}");
    }

    #[test]
    fn a_machine_with_rights_of_its_own_is_told_where_to_prove_who_it_is() {
        let request = request(&["/bin/sh", "-c", "echo \"asks $TIDEGATE_MACHINE_IDENTITY\""]);
        let (told, code) = run(&script(&request, Kept::Needed, None));
        assert!(told.contains("asks http://169.254.169.254\n") && code == 0, "{told}");
        for kept in [Kept::Asked, Kept::Metadata] {
            let (told, _) = run(&script(&request, kept, None));
            assert!(told.contains("asks \n"), "{told}");
        }
    }

    #[test]
    fn a_machine_of_vmware_takes_back_what_it_was_told_and_says_how_its_job_ended() {
        let script = script(
            &request(&["/bin/sh", "-c", "echo I ran; exit 3"]),
            Kept::GuestInfo,
            None,
        );
        let (told, code) = run(&script);
        assert_eq!(code, 3);
        let lines: Vec<&str> = told.lines().skip(1).collect();
        let wanted = [
            "vmtoolsd --cmd info-set guestinfo.userdata ---",
            "I ran",
            "tidegate: the job ended with exit code 3",
            "vmtoolsd --cmd info-set guestinfo.tidegate.exit 3",
            "shutdown -P now",
        ];
        assert_eq!(lines, wanted);
        let (told, code) = run_beside(&script, "exit 1", "exit 1");
        assert_eq!(code, 98);
        assert!(
            !told.contains("I ran") && told.contains("cannot be taken back"),
            "{told}"
        );
    }

    #[test]
    fn of_a_console_the_last_word_counts() {
        let console = "[  5.1] cloud-init: tidegate: the job ended with exit code 1\r\nx\r\n\
                       [  9.2] cloud-init[911]: tidegate: the job ended with exit code 137\r\nsystemd: off\r\n";
        assert_eq!(exit_code(console), Some(137));
        assert_eq!(exit_code("tidegate: up for 3 s"), None);
        assert_eq!(exit_code(""), None);
    }
}
