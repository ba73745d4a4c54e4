//! What a command's processes share by name.

use std::path::Path;

use tidegate_worker::sandbox::{Completed, Ended, Policy, spawn};

use crate::sandbox::{environment, policy, shell, stdout, with_python};

fn sharing(policy: &mut Policy) {
    policy.shared_memory = true;
}

fn told(done: &Completed) -> String {
    format!("{}{}", stdout(done), String::from_utf8_lossy(&done.stderr))
}

/// Whether this machine allows it; where it does not, it says why.
fn is_given(folder: &Path) -> bool {
    let mut policy = policy(folder);
    sharing(&mut policy);
    let running = spawn(crate::executable(), &policy, &shell("true"), &environment(), folder).unwrap();
    if let Some(why) = &running.unshared {
        let checked = std::env::var_os("TIDEGATE_INTEROP").is_some_and(|value| value == "1");
        assert!(!checked, "this machine is to allow it: {why}");
        eprintln!("left out: {why}");
    }
    running.unshared.is_none()
}

#[test]
fn python_works_with_several_processes() {
    let folder = tempfile::tempdir().unwrap();
    if !is_given(folder.path()) {
        return;
    }
    let script = r"
import multiprocessing, os
from multiprocessing import shared_memory
def square(number):
    return number * number
def fill(name, lock, queue):
    memory = shared_memory.SharedMemory(name=name)
    with lock:
        memory.buf[0] += 1
    memory.close()
    queue.put(os.getpid())
if __name__ == '__main__':
    assert os.listdir('/dev/shm') == [], os.listdir('/dev/shm')
    context = multiprocessing.get_context('fork')
    with context.Pool(3) as pool:
        assert pool.map(square, range(50)) == [number * number for number in range(50)]
    memory = shared_memory.SharedMemory(create=True, size=4096)
    lock, queue = context.Lock(), context.Queue()
    children = [context.Process(target=fill, args=(memory.name, lock, queue)) for _ in range(4)]
    for child in children: child.start()
    assert len({queue.get() for _ in children}) == 4
    for child in children: child.join()
    assert memory.buf[0] == 4
    memory.close(); memory.unlink()
    print('shared')
";
    let Some(done) = with_python(folder.path(), sharing, script) else {
        return;
    };
    assert!(stdout(&done).contains("shared"), "{}", told(&done));
    // The control: it is the policy that gives it.
    let done = with_python(folder.path(), |_| {}, script).unwrap();
    assert!(!stdout(&done).contains("shared"), "{}", told(&done));
    assert_ne!(done.ended, Ended::Exited(0));
}

#[test]
fn it_is_seen_by_no_other_command_and_ends_with_its_own() {
    let folder = tempfile::tempdir().unwrap();
    if !is_given(folder.path()) {
        return;
    }
    let name = format!("tidegate-test-{}", std::process::id());
    let keep = format!(
        "echo patient > /dev/shm/{name}; cat /dev/shm/{name}; ls /dev/shm; cp /bin/true /dev/shm/x; /dev/shm/x"
    );
    let mut policy = policy(folder.path());
    sharing(&mut policy);
    let first = super::sandbox::try_in(folder.path(), &policy, &keep);
    assert_eq!(stdout(&first), format!("patient\n{name}\n"));
    assert_ne!(first.ended, Ended::Exited(0), "nothing is executed from there");
    assert!(!Path::new("/dev/shm").join(&name).exists());
    let second = super::sandbox::try_in(
        folder.path(),
        &policy,
        "ls -A /dev/shm; grep -c /dev/shm /proc/self/mounts",
    );
    assert!(
        stdout(&second).lines().all(|line| line.parse::<u32>().is_ok()),
        "{}",
        told(&second)
    );
}

#[test]
fn its_pages_count_once_as_memory_mapped_or_not() {
    let folder = tempfile::tempdir().unwrap();
    if !is_given(folder.path()) {
        return;
    }
    let limit = |policy: &mut Policy| {
        sharing(policy);
        policy.memory_bytes = 128 << 20;
        policy.file_bytes = 1 << 30;
    };
    let begin = r"
import mmap, os, time
SIZE = 64 << 20
with open('/dev/shm/kept', 'wb') as file:
    for _ in range(64): file.write(bytes(1 << 20))
def mapped(flags):
    with open('/dev/shm/kept', 'r+b') as file:
        return mmap.mmap(file.fileno(), SIZE, flags=flags)
def touch(memory, write):
    for page in range(0, SIZE, 4096):
        if write: memory[page] = 1
        else: memory[page]
";
    let several = "
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        memory = mapped(mmap.MAP_SHARED); touch(memory, True); time.sleep(0.3); os._exit(0)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
print('counted once')
";
    let unmapped = "
with open('/dev/shm/more', 'wb') as file:
    for _ in range(64): file.write(bytes(1 << 20))
time.sleep(60)
";
    let copied = "
memory = mapped(mmap.MAP_PRIVATE); touch(memory, True)
time.sleep(60)
";
    let beside = "
memory = mmap.mmap(-1, SIZE); touch(memory, True)
time.sleep(60)
";
    let Some(done) = with_python(folder.path(), limit, &format!("{begin}{several}")) else {
        return;
    };
    assert!(
        stdout(&done).contains("counted once"),
        "{:?} {}",
        done.ended,
        told(&done)
    );
    for over in [unmapped, copied, beside] {
        let done = with_python(folder.path(), limit, &format!("{begin}{over}")).unwrap();
        assert_eq!(done.ended, Ended::OverMemory, "{over} {}", told(&done));
    }
}
