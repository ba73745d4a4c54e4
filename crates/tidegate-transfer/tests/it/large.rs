//! What is large: as many files as an artifact may have, and one file that is larger than memory.

use std::process::Command;

use crate::fixture::{World, files};
use crate::kill::{FOLDER, in_child, store_in};

/// Many small files are packed: they cost bytes, and no request of their own.
#[tokio::test]
async fn a_hundred_thousand_small_files_cross_in_three_objects() {
    let world = World::new();
    for folder in 0..100 {
        world.write(&format!("{folder}/0"), b"");
        for file in 1..1_000 {
            let path = world.source().join(format!("{folder}/{file}"));
            std::fs::write(path, format!("{folder} {file}")).unwrap();
        }
    }
    // One of them has the longest name.
    let long = [200; 4].map(|length| "n".repeat(length)).join("/") + "/" + &"n".repeat(196);
    assert_eq!(long.len(), 1_000);
    std::fs::remove_file(world.source().join("0/1")).unwrap();
    world.write(&long, b"long");
    let store = store_in(&world.folder);
    let sent = world.send(&store).await.unwrap();
    assert_eq!(sent.objects.len(), 3);
    world.receive(&sent, &store).await.unwrap();
    let received = files(&world.destination());
    assert_eq!(received.len(), 100_000);
    assert!(received == files(&world.source()), "the files differ");
}

/// How large the large file is: eight GiB where everything is asked for, and there is room for it.
fn bytes() -> u64 {
    let free = rustix::fs::statvfs(std::env::temp_dir().as_path()).map(|room| room.f_bavail * room.f_frsize);
    match (std::env::var("TIDEGATE_INTEROP").as_deref(), free) {
        (Ok("1"), Ok(12_884_901_888..)) => 8 << 30,
        _ => 1 << 30,
    }
}

#[test]
#[ignore = "a child of `a_file_larger_than_memory_needs_little_of_it`"]
fn child_crosses() {
    in_child(async |folder| {
        let (store, world) = (store_in(&folder), World::at(&folder));
        let sent = world.send(&store).await.unwrap();
        world.receive(&sent, &store).await.unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        println!("\npeak {}", peak.trim());
    });
}

#[test]
fn a_file_larger_than_memory_needs_little_of_it() {
    let world = World::new();
    let file = std::fs::File::create(world.source().join("large")).unwrap();
    file.set_len(bytes()).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "large::child_crosses",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(FOLDER, &world.folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    let peak = told.lines().find_map(|line| line.strip_prefix("peak ")).unwrap();
    let kibibytes: u64 = peak.strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(kibibytes < 512 << 10, "{kibibytes} KiB for {} bytes", bytes());
    let received = std::fs::metadata(world.destination().join("large")).unwrap();
    assert_eq!(received.len(), bytes());
}
