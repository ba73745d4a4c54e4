//! How a command's processes speak to each other, and to nobody else.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use tidegate_worker::sandbox::{Ended, Policy};

use crate::sandbox::{stdout, with_python};

fn speaking(policy: &mut Policy) {
    policy.local = true;
    policy.own_root = true;
    policy.shared_memory = true;
}

#[test]
fn processes_of_a_command_speak_to_each_other_and_to_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    // Services of the machine: at a port, at a path that anybody may use, and at a name without a path.
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let number = port.local_addr().unwrap().port();
    let path = outside.path().join("service");
    let _service = UnixListener::bind(&path).unwrap();
    for open in [outside.path(), &path] {
        let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(open, anybody).unwrap();
    }
    let name = format!("tidegate-{}", std::process::id());
    let _unnamed = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let script = format!(
        r"
import multiprocessing, os, socket, tempfile
from multiprocessing.connection import Client, Listener
def closed(name, act):
    try:
        act()
        print('OPEN', name)
    except OSError:
        pass
def local(address):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(address)
closed('a port', lambda: socket.create_connection(('127.0.0.1', {number}), 2))
closed('a path', lambda: local('{path}'))
closed('a path by its process', lambda: local('/proc/{pid}/root{path}'))
closed('a name', lambda: local('\0{name}'))
closed('another machine', lambda: socket.create_connection(('192.0.2.1', 80), 2))
for family, kind in ((socket.AF_INET, 3), (17, 3), (40, 1)):
    closed((family, kind), lambda: socket.socket(family, kind))
def tell(family):
    listener = Listener(family=family)
    def child():
        with Client(listener.address) as to:
            to.send(os.getpid())
    process = multiprocessing.get_context('fork').Process(target=child)
    process.start()
    with listener.accept() as from_child:
        assert from_child.recv() == process.pid
    process.join()
    print('spoke over', family)
tell('AF_INET')
tell('AF_UNIX')
with multiprocessing.get_context('fork').Manager() as manager:
    kept = manager.dict()
    child = multiprocessing.get_context('fork').Process(target=kept.update, args=({{'a': 1}},))
    child.start(); child.join()
    assert dict(kept) == {{'a': 1}}
print('hidden', *(name for name in ('/boot', '/home', '/srv', '/var', '/run') if os.path.exists(name)))
print('here', os.getcwd(), os.path.samefile('.', '{folder}'))
open('written', 'w').write('yes')
",
        path = path.display(),
        pid = std::process::id(),
        folder = folder.path().display(),
    );
    let Some(done) = with_python(folder.path(), speaking, &script) else {
        return;
    };
    let told = format!("{}{}", stdout(&done), String::from_utf8_lossy(&done.stderr));
    assert!(!told.contains("OPEN"), "{told}");
    assert!(done.evidence.network.starts_with("network-namespace"), "{told}");
    assert!(told.contains("spoke over AF_INET"), "{told}");
    if told.contains("spoke over AF_UNIX") || std::env::var_os("TIDEGATE_INTEROP").is_some() {
        assert_eq!(done.ended, Ended::Exited(0), "{told}");
        assert!(told.contains("spoke over AF_UNIX"), "{told}");
        assert!(told.contains("hidden\n"), "{told}");
        assert_eq!(done.evidence.network, "network-namespace+root", "{told}");
        assert!(told.contains("True"), "{told}");
        assert_eq!(std::fs::read_to_string(folder.path().join("written")).unwrap(), "yes");
    }
    // The control: it is the policy that gives it.
    let done = with_python(folder.path(), |_| {}, &script).unwrap();
    assert!(!stdout(&done).contains("spoke"), "{}", stdout(&done));
    assert_eq!(done.evidence.network, "network-namespace+seccomp");
}

/// Sockets that a service of the machine has where commands may read, by whatever way they came to be there.
#[test]
fn a_service_in_a_folder_that_may_be_read_is_not_spoken_to() {
    let folder = tempfile::tempdir().unwrap();
    let (shown, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let anybody = || std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(shown.path(), anybody()).unwrap();
    let _bound = UnixListener::bind(shown.path().join("bound")).unwrap();
    let _moved = UnixListener::bind(elsewhere.path().join("moved")).unwrap();
    std::fs::rename(elsewhere.path().join("moved"), shown.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(shown.path(), elsewhere.path().join("link")).unwrap();
    let _linked = UnixListener::bind(elsewhere.path().join("link/linked")).unwrap();
    std::fs::write(shown.path().join("file"), "read").unwrap();
    for name in ["bound", "moved", "linked"] {
        std::fs::set_permissions(shown.path().join(name), anybody()).unwrap();
        std::os::unix::net::UnixStream::connect(shown.path().join(name)).unwrap();
    }
    let script = format!(
        r"
import os, socket, stat, time
here = '{here}'
assert open(here + '/file').read() == 'read'
open('began', 'w').close()
until = time.time() + 60
while not os.path.exists('later'):
    assert time.time() < until
for name in ('bound', 'moved', 'linked', 'later'):
    try:
        if name != 'later': assert stat.S_ISSOCK(os.stat(here + '/' + name).st_mode)
        with socket.socket(socket.AF_UNIX) as one: one.connect(here + '/' + name)
        print('OPEN', name)
    except OSError as error: print('closed', name)
",
        here = shown.path().display()
    );
    let (room, late) = (folder.path().to_owned(), shown.path().join("later"));
    // One that begins to listen while the command runs.
    let later = std::thread::spawn(move || {
        while !room.join("began").exists() {
            std::thread::yield_now();
        }
        let listener = UnixListener::bind(&late).unwrap();
        std::fs::set_permissions(&late, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        std::fs::write(room.join("later"), "").unwrap();
        listener
    });
    let read = shown.path().to_owned();
    let change = move |policy: &mut Policy| {
        speaking(policy);
        policy.read.push(read);
    };
    let Some(done) = with_python(folder.path(), change, &script) else {
        return;
    };
    // Also where the command never came so far.
    std::fs::write(folder.path().join("began"), "").unwrap();
    drop(later.join().unwrap());
    let told = format!("{}{}", stdout(&done), String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.ended, Ended::Exited(0), "{told}");
    assert_eq!(told.matches("closed").count(), 4, "{told}");
    if std::env::var_os("TIDEGATE_INTEROP").is_some() {
        assert_eq!(done.evidence.network, "network-namespace+root", "{told}");
    }
}

#[test]
fn a_command_with_a_root_of_its_own_finds_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    // By name, by links, as a stream, as memory, in the room, and what is not shown at all.
    let script = r"
import os, ssl, subprocess, sys, zoneinfo
assert subprocess.run(['sh', '-c', 'echo told >/dev/stderr; echo $0 $((1+1)); ls /dev/shm; cat /etc/passwd | head -1; date'],
    capture_output=True, text=True, check=True).stdout.startswith('sh 2')
assert os.path.islink('/bin') == (os.readlink('/bin') == 'usr/bin') if os.path.islink('/bin') else True
open('/dev/null', 'w').write('x'); assert len(open('/dev/urandom', 'rb').read(8)) == 8
assert os.path.exists('/proc/self/status') and os.path.exists('/sys/devices/system/cpu')
assert not os.path.exists('/sys/bus/pci') and not os.path.exists('/var')
for wrong in ('/new', '/dev/new', '/usr/new'):
    try:
        open(wrong, 'w'); print('WROTE', wrong)
    except OSError: pass
print(os.listdir('/mnt/tidegate'), os.getcwd())
";
    std::fs::write(folder.path().join("mine"), "x").unwrap();
    let room = folder.path().to_owned();
    let change = move |policy: &mut Policy| {
        speaking(policy);
        policy.room = Some(room);
    };
    let Some(done) = with_python(folder.path(), change, script) else {
        return;
    };
    let told = format!("{}{}", stdout(&done), String::from_utf8_lossy(&done.stderr));
    if std::env::var_os("TIDEGATE_INTEROP").is_some() {
        assert_eq!(done.ended, Ended::Exited(0), "{told}");
        assert!(!told.contains("WROTE"), "{told}");
        assert!(told.contains("['mine'] /mnt/tidegate"), "{told}");
    }
}
