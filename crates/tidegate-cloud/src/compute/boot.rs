//! What a machine does once it has booted: its user-data, which cloud-init runs as root.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use tidegate_contracts::{ComputeError, JobRequest};

use super::shelf::{Offered, ProgramShelf};

/// What the last line of a job begins with on the machine's console.
const ENDED: &str = "tidegate: the job ended with exit code ";

/// What comes first: how to speak, and how to end.
///
/// cloud-init runs it once. A machine that is started again has nothing to do, and ends at once; and none lives longer
/// than a worker's credentials, whatever becomes of this script.
const BEGINNING: &str = r#"#!/bin/sh
# Tidegate: does one job and ends this machine.
umask 077
PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export PATH
say() { echo "tidegate: $1"; }
ended() {
    say "the job ended with exit code $1"
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

/// User-data of a machine for `request`, compressed and in base64; before that it has at most `most` bytes. The program
/// is offered by `shelf` where the request's command is this program; `secret` says whether nobody there needs the
/// metadata service.
pub(super) async fn user_data(
    request: &JobRequest,
    secret: bool,
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
    let script = script(request, secret, offered.as_ref().map(|offered| (own, offered)));
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

/// What a command could learn from the metadata service: the ticket, and rights that end later than its hello.
const ALONE: &str = r#"# Nobody else reads what this machine was told.
ip route add prohibit 169.254.169.254/32 || { say "the way to the metadata service cannot be closed"; ended 98; }
ip route add prohibit fd00:ec2::254/128 2>/dev/null || true
"#;

/// The script of a machine for `request`; `secret` says whether nobody there needs the metadata service. `program` is
/// offered to it, and stands in the request's command under its path `own` here.
fn script(request: &JobRequest, secret: bool, program: Option<(&Path, &Offered)>) -> String {
    let mut script = BEGINNING.to_owned();
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
    if secret {
        script.push_str(ALONE);
    }
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
fn quoted(word: &str) -> String {
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
        let folder = tempfile::tempdir().unwrap();
        let stub = folder.path().join("shutdown");
        std::fs::write(&stub, "#!/bin/sh\necho \"shutdown $*\"\n").unwrap();
        let ip = folder.path().join("ip");
        std::fs::write(&ip, "#!/bin/sh\necho \"ip $*\"\n").unwrap();
        Command::new("chmod").arg("+x").args([&stub, &ip]).status().unwrap();
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let output = Command::new("/bin/sh")
            .args(["-c", script])
            .env_clear()
            .env("PATH", path)
            .env("TMPDIR", folder.path())
            .output()
            .unwrap();
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "something is left: {left:?}");
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    }

    #[test]
    fn a_job_gets_its_ticket_and_its_environment_and_the_machine_ends_after_it() {
        let command = "cat; echo; echo \"$GREETING\"; env | wc -l; exit 3";
        let (told, code) = run(&script(&request(&["/bin/sh", "-c", command]), false, None));
        assert_eq!(code, 3);
        let lines: Vec<&str> = told.lines().skip(1).collect();
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
        let (told, code) = run(&script(&request, true, Some((own, &good))));
        assert!(code == 0 && told.contains("I ran worker"), "{told}");
        // What stands in the machine's user-data is not for the command.
        let closed = told.find("ip route add prohibit 169.254.169.254/32").unwrap();
        assert!(closed < told.find("I ran").unwrap(), "{told}");
        let (told, code) = run(&script(&request, true, Some((own, &offered("another")))));
        assert_eq!(code, 97);
        assert!(!told.contains("I ran") && told.contains("not the program"), "{told}");
        assert_eq!(exit_code(&told), Some(97));
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
