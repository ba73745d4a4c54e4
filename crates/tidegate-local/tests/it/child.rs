//! Writers that are killed: this test program starts itself again to do one thing until it is ended.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

const FOLDER: &str = "TIDEGATE_TEST_FOLDER";

/// Starts the ignored test `name` of this program as a process of its own.
pub(crate) fn start(name: &str, folder: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(
            output.read_line(&mut line).unwrap(),
            0,
            "the child ended before it was ready"
        );
    }
    (child, output)
}

/// Lines that begin with `prefix` and are whole, up to the end of the child's output.
pub(crate) fn lines(output: BufReader<ChildStdout>, prefix: &str) -> Vec<String> {
    let text: Vec<u8> = output
        .split(b'\n')
        .map_while(Result::ok)
        .fold(Vec::new(), |mut all, mut line| {
            all.append(&mut line);
            all.push(b'\n');
            all
        });
    let text = String::from_utf8_lossy(&text).into_owned();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole
        .filter_map(|line| line.trim_end().strip_prefix(prefix).map(str::to_owned))
        .collect()
}

/// In a child: the folder to work in; nothing when somebody runs ignored tests by hand.
pub(crate) fn folder() -> Option<std::path::PathBuf> {
    std::env::var_os(FOLDER).map(Into::into)
}

/// Random pauses that repeat from run to run.
pub(crate) fn pauses(count: u64) -> impl Iterator<Item = std::time::Duration> {
    (1..=count).map(|i| std::time::Duration::from_micros(i.wrapping_mul(2_654_435_761) % 30_000))
}
