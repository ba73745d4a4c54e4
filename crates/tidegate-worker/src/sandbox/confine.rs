//! The sandbox program: limits itself and then becomes the command.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};
use tidegate_types::message::SandboxEvidence;

use super::filter::Sockets;
use super::order::{Answer, Order};
use super::{DEVICES, Policy, ROOTED, SPEAKING, filter, joined, room, root, shared, system_paths};

/// The newest Landlock that this program knows; an older kernel enforces what it knows.
const LANDLOCK: ABI = ABI::V9;
/// Open files of one process.
const OPEN_FILES: u64 = 4096;
/// How far above the policy's limit the kernel refuses another task.
const MORE_TASKS: u64 = 256;
/// How much the command steps back behind the thread that watches it.
const NICE: i32 = 5;
/// Users that belong to nobody: the range that service managers give to short-lived services.
const NOBODY: std::ops::Range<u32> = 61_184..65_520;

/// The hidden subcommand `sandbox-exec`: reads an order from standard input, limits this process and
/// becomes the command. `args` are the arguments after the subcommand; there are none.
///
/// Must be called before the process starts a thread: limits hold for the calling thread and what it
/// starts. Returns only when the command cannot be started: with 125 when the sandbox cannot be
/// closed, 127 when there is no such command.
pub fn sandbox_exec_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let closed = Order::read(args).and_then(|order| confine(&order).map(|answer| (order, answer)));
    let (order, answer) = match closed {
        Ok((mut order, answer)) => {
            if let (true, Some(folder)) = (answer.in_room, &order.policy.room) {
                room::renamed(folder, &mut order.environment);
            }
            (Some(order), answer)
        }
        Err(why) => (
            None,
            Answer {
                refused: Some(why),
                ..Answer::default()
            },
        ),
    };
    let (Some(order), Ok(())) = (order, answer.send()) else {
        return ExitCode::from(125);
    };
    if let Some(probe) = &order.probe {
        return probe.attempt();
    }
    let Some((program, arguments)) = order.command.split_first() else {
        return ExitCode::from(127);
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&order.environment)
        .stdin(Stdio::null());
    let error = command.exec();
    // The program's name comes from the job and is no secret; nothing else is told.
    let _ = writeln!(std::io::stderr(), "the command cannot be started: {}", error.kind());
    ExitCode::from(127)
}

/// Limits this process for good.
fn confine(order: &Order) -> Result<Answer, String> {
    close_inherited()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // So that what watches the command gets its turn also beside a command that takes all processors.
    let _ = rustix::process::nice(NICE);
    // Inside another sandbox, what passed over the owners of files there has to here. Asked before any namespace gives more.
    let held = match rustix::thread::capabilities(None) {
        Ok(sets) if rustix::thread::no_new_privs().unwrap_or(false) => sets.effective & CapabilitySet::DAC_OVERRIDE,
        _ => CapabilitySet::empty(),
    };
    let mut answer = Answer::default();
    let rooms = own_rooms(&order.policy, &mut answer)?;
    let sockets = match (order.policy.network || rooms.speaks, rooms.root) {
        (false, _) => Sockets::None,
        (true, false) => Sockets::Internet,
        (true, true) => Sockets::Local,
    };
    drop_privileges(held)?;
    let mut limits = resources(&order.policy)?;
    rustix::thread::set_no_new_privs(true).map_err(|error| format!("no new privileges: {error}"))?;
    // Set after the credentials changed, which clears it. The group is ended by the watching thread;
    // this is for the case that the whole worker is killed.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("death signal: {error}"))?;
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned()) != Some(order.parent) {
        return Err("the worker that started the sandbox is gone".to_owned());
    }
    let landlock = close_files(&order.policy, answer.shared.is_some(), sockets)?;
    for program in filter::programs(sockets, landlock).map_err(|error| format!("seccomp: {error}"))? {
        seccompiler::apply_filter(&program).map_err(|error| format!("seccomp: {error}"))?;
    }
    limits.sort();
    let network = match (sockets, rooms.network) {
        // Sockets can be had, and nobody is there to be reached.
        (Sockets::Local, true) => ROOTED,
        (Sockets::Internet, true) => SPEAKING,
        (Sockets::Internet | Sockets::Local, false) => "",
        (Sockets::None, true) => "network-namespace+seccomp",
        (Sockets::None, false) => "seccomp",
    };
    answer.evidence = SandboxEvidence {
        network: network.to_owned(),
        files: format!("landlock-v{landlock}"),
        limits,
    };
    Ok(answer)
}

/// Closes what the worker's own starter left open: a descriptor is a right that no rule takes back.
fn close_inherited() -> Result<(), String> {
    let failed = |error: std::io::Error| format!("listing open files: {error}");
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        open.extend(
            name.to_str()
                .and_then(|text| text.parse::<i32>().ok())
                .filter(|number| *number > 2),
        );
    }
    for number in open {
        // The listing's own descriptor is in the list, and closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

fn limit(resource: Resource, value: u64) -> Result<(), String> {
    let hard = rustix::process::getrlimit(resource).maximum;
    let value = hard.map_or(value, |hard| hard.min(value));
    rustix::process::setrlimit(
        resource,
        Rlimit {
            current: Some(value),
            maximum: Some(value),
        },
    )
    .map_err(|error| format!("limit {resource:?}: {error}"))
}

/// Limits of one process. Those of the whole group are kept by the thread that watches it.
fn resources(policy: &Policy) -> Result<Vec<String>, String> {
    let mut limits = Vec::new();
    limit(Resource::Core, 0)?;
    limit(Resource::Msgqueue, 0)?;
    limit(Resource::Nofile, OPEN_FILES)?;
    if policy.file_bytes > 0 {
        limit(Resource::Fsize, policy.file_bytes)?;
        limits.push("file-size".to_owned());
    }
    if policy.memory_bytes > 0 {
        // The watching thread ends the group at the limit and can tell why. This stops one process
        // that is faster than it.
        limit(
            Resource::Data,
            policy.memory_bytes.saturating_mul(2).saturating_add(64 << 20),
        )?;
        limits.push("memory".to_owned());
    }
    if policy.seconds > 0 {
        // As above: for what outlives the watching thread.
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        limit(
            Resource::Cpu,
            policy.seconds.saturating_mul(processors).saturating_add(10),
        )?;
        limits.push("time".to_owned());
    }
    if policy.processes > 0 {
        let user = rustix::process::getuid();
        if !user.is_root() {
            // As above: the watching thread sees the limit passed first and can tell why. The kernel
            // counts all tasks of the user, so those that are there come on top.
            let most = policy.processes.saturating_mul(2).saturating_add(MORE_TASKS);
            limit(Resource::Nproc, most.saturating_add(tasks_of(user.as_raw())))?;
        }
        limits.push("processes".to_owned());
    }
    Ok(limits)
}

fn tasks_of(user: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let mine = entries
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == user));
    mine.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .map(|pid| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |tasks| tasks.count() as u64))
        .sum()
}

/// What a command has for itself.
#[derive(Debug, Clone, Copy)]
struct Rooms {
    /// A network.
    network: bool,
    /// In it, at least the way to itself.
    speaks: bool,
    /// A root.
    root: bool,
}

/// Moves into a network, to memory and into a room of its own, where the machine allows that.
///
/// # Errors
/// When the command cannot do without what the machine does not allow.
fn own_rooms(policy: &Policy, answer: &mut Answer) -> Result<Rooms, String> {
    let own_network = !policy.network || policy.node.is_some();
    let network = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC;
    let mut flags = CloneFlags::empty();
    flags.set(network, own_network);
    let own_mounts_wanted = policy.shared_memory || policy.room.is_some() || policy.own_root;
    flags.set(CloneFlags::CLONE_NEWNS, own_mounts_wanted);
    let moved = own_namespaces(flags).or_else(|why| {
        // A network of its own does not depend on mounts of its own.
        if flags == CloneFlags::CLONE_NEWNS || !flags.contains(CloneFlags::CLONE_NEWNS) {
            return Err(why);
        }
        flags.remove(CloneFlags::CLONE_NEWNS);
        own_namespaces(flags)
    });
    if let Some(rank) = policy.node {
        moved.clone().map_err(|why| {
            format!(
                "a network of the command's own, in which it reaches the job's other machines: {why}; it needs the root user, \
                 or user namespaces for everybody"
            )
        })?;
        answer.joined = Some(joined::join(rank)?);
    }
    let mounting = if flags.contains(CloneFlags::CLONE_NEWNS) {
        moved.clone().and_then(|()| own_mounts())
    } else {
        Err("this machine allows no mounts of its own".to_owned())
    };
    if policy.shared_memory {
        let made = mounting.clone().and_then(|()| shared::make(policy.memory_bytes));
        (answer.shared, answer.unshared) = match made {
            Ok(folder) => (Some(folder), None),
            Err(why) => (None, Some(why)),
        };
    }
    let network = own_network && moved.is_ok();
    let speaks = policy.node.is_some() || (policy.local && network && joined::loopback().is_ok());
    // In a network of its own nobody listens under a name without a path.
    let root = match &mounting {
        Ok(()) if policy.own_root && speaks => root::make(policy, answer.shared.is_some())?,
        _ => false,
    };
    if let Some(folder) = &policy.room {
        answer.in_room = root || mounting.and_then(|()| room::make(folder, policy)).is_ok();
    }
    Ok(Rooms { network, speaks, root })
}

/// What is mounted from now on is seen by nobody outside; what is mounted outside still comes here.
fn own_mounts() -> Result<(), String> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|error| format!("mounts of its own: {error}"))
}

fn own_namespaces(own: CloneFlags) -> Result<(), String> {
    if own.is_empty() || unshare(own).is_ok() {
        return Ok(());
    }
    if own == CloneFlags::CLONE_NEWNS && rustix::process::getuid().is_root() {
        // Not worth a namespace of users, in which the root user cannot become nobody.
        return Err("this root user may not mount".to_owned());
    }
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    unshare(own | CloneFlags::CLONE_NEWUSER).map_err(|error| format!("namespaces: {error}"))?;
    // Without these the process goes on as nobody, which would read none of its own files.
    let mapped = fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("{user} {user} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("{group} {group} 1")));
    mapped.map_err(|error| format!("a namespace of users: {error}"))
}

/// Gives up every capability, also those that the root user would get back by becoming another program.
///
/// The root user becomes a user that belongs to nobody first: the kernel exempts root from the limit of
/// processes, and root owns the files of the machine. What makes the attempt's folders usable all the
/// same is the one capability that is kept there, to pass over the owners of files; Landlock decides
/// which files those are.
fn drop_privileges(held: CapabilitySet) -> Result<(), String> {
    let failed = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    let mut kept = held;
    if rustix::process::getuid().is_root() {
        let bits = CapabilitiesSecureBits::NO_ROOT | CapabilitiesSecureBits::NO_SETUID_FIXUP;
        let nobody = NOBODY.start + std::process::id() % (NOBODY.end - NOBODY.start);
        let (user, group) = (Uid::from_raw(nobody), Gid::from_raw(nobody));
        let taken = rustix::thread::set_capabilities_secure_bits(bits)
            .and_then(|()| rustix::thread::set_thread_groups(&[]))
            .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
            .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user));
        if taken.is_ok() {
            kept = CapabilitySet::DAC_OVERRIDE;
        }
    }
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: kept,
    };
    rustix::thread::set_capabilities(None, sets).map_err(failed("capabilities"))?;
    if !kept.is_empty() {
        rustix::thread::configure_capability_in_ambient_set(kept, true).map_err(failed("capabilities"))?;
    }
    match rustix::thread::capabilities(None) {
        Ok(left) if left.permitted == kept && left.effective == kept => Ok(()),
        _ => Err("capabilities could not be given up".to_owned()),
    }
}

/// Closes the file system but for what the policy names; gives the Landlock version that does it.
fn close_files(policy: &Policy, shared_memory: bool, sockets: Sockets) -> Result<i32, String> {
    let failed = |error: landlock::RulesetError| format!("landlock: {error}");
    // Making devices is of no use without capabilities, and of no good use with them.
    let all = AccessFs::from_all(LANDLOCK);
    let write = all & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    let read = AccessFs::from_read(LANDLOCK);
    let device = AccessFs::ReadFile | AccessFs::WriteFile;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .map_err(failed)?;
    rules = rules.scope(Scope::from_all(LANDLOCK)).map_err(failed)?;
    if sockets == Sockets::None {
        rules = rules.handle_access(AccessNet::from_all(LANDLOCK)).map_err(failed)?;
    }
    let shared = shared_memory.then_some(shared::FOLDER);
    let readable: Vec<PathBuf> = system_paths().into_iter().chain(policy.read.iter().cloned()).collect();
    let status = rules
        .create()
        .and_then(|rules| rules.add_rules(path_beneath_rules(readable, read)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(&policy.write, write)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(shared, write)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(DEVICES, device)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(&policy.devices, device | AccessFs::IoctlDev)))
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(failed)?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => Err("the kernel has no Landlock, which closes the file system".to_owned()),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(effective_abi as i32),
        _ => Err("the kernel has no Landlock, which closes the file system".to_owned()),
    }
}
