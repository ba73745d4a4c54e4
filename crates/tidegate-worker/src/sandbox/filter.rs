//! System calls that a command may not make.
//!
//! A list of what is forbidden, not of what is allowed: numerical libraries use calls that nobody
//! listed, and what protects files is Landlock. The list closes the network, other processes, the
//! kernel's wide interfaces, and every way around the two (namespaces, `io_uring`, the x32 calls of
//! `x86_64`, calls that are newer than this list).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The first call number that this list does not know, and the last that is closed for that.
const UNKNOWN: std::ops::RangeInclusive<i64> = 463..=511;
/// Calls of the x32 interface carry this bit on `x86_64`.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// Which sockets a command may have, besides pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sockets {
    /// None.
    None,
    /// Those of the internet.
    Internet,
    /// Those, and local ones.
    Local,
}

/// The filters to apply, in order. Applying the first forbids nothing that the others need.
///
/// # Errors
/// When the machine's processor is not supported.
pub(super) fn programs(sockets: Sockets, landlock_abi: i32) -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let mut forbidden = Rules::new();
    for call in FORBIDDEN {
        forbidden.insert(*call, Vec::new());
    }
    if landlock_abi < 3 {
        // Before ABI 3, Landlock lets a path be truncated without the right to write it.
        forbidden.insert(libc::SYS_truncate, Vec::new());
    }
    // A datagram socket can be sent to any path; a stream pair reaches only its other end.
    let mut pairs = vec![rule(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?];
    for kind in (0..16).filter(|kind| ![libc::SOCK_STREAM as u64, libc::SOCK_SEQPACKET as u64].contains(kind)) {
        pairs.push(rule(1, SeccompCmpOp::MaskedEq(0xf), kind)?);
    }
    forbidden.insert(libc::SYS_socketpair, pairs);
    forbidden.insert(libc::SYS_clone, namespaces()?);
    forbidden.insert(
        libc::SYS_ioctl,
        vec![
            rule(1, SeccompCmpOp::Eq, TIOCSTI)?,
            rule(1, SeccompCmpOp::Eq, TIOCLINUX)?,
        ],
    );
    if sockets == Sockets::None {
        for call in NETWORK {
            forbidden.insert(*call, Vec::new());
        }
        // `send` is this call without an address; a pair needs it.
        let address = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
        forbidden.insert(libc::SYS_sendto, vec![SeccompRule::new(vec![address])?]);
    } else {
        forbidden.insert(libc::SYS_socket, others(sockets)?);
    }
    // `clone3` takes its flags by reference, where a filter cannot look: libraries that hear that it
    // does not exist use `clone`.
    let mut absent: Rules = UNKNOWN.map(|call| (call, Vec::new())).collect();
    absent.insert(libc::SYS_clone3, Vec::new());
    // The group is what we end; leaving it seems to work, so that programs which try go on.
    let feigned: Rules = [libc::SYS_setsid, libc::SYS_setpgid]
        .map(|call| (call, Vec::new()))
        .into();
    [(feigned, 0), (absent, libc::ENOSYS), (forbidden, libc::EPERM)]
        .into_iter()
        .map(|(rules, errno)| compile(rules, errno))
        .collect()
}

fn compile(mut rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::Error> {
    #[cfg(target_arch = "x86_64")]
    {
        let x32: Vec<_> = rules
            .iter()
            .map(|(call, conditions)| (call | X32, conditions.clone()))
            .collect();
        rules.extend(x32);
        if errno == libc::EPERM {
            // Calls that have another number in the x32 interface: ptrace, process_vm_*, sockets, exec.
            rules.extend((512..=547).map(|call| (call | X32, Vec::new())));
        }
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let action = SeccompAction::Errno(errno.unsigned_abs());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, action, architecture)?.try_into()?)
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::Error> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// Making a process in any new namespace; one rule for each flag, because a filter cannot ask for any
/// of several bits.
fn namespaces() -> Result<Vec<SeccompRule>, seccompiler::Error> {
    const FLAGS: [u64; 7] = [
        0x0002_0000,
        0x0200_0000,
        0x0400_0000,
        0x0800_0000,
        0x1000_0000,
        0x2000_0000,
        0x4000_0000,
    ];
    FLAGS
        .into_iter()
        .map(|flag| rule(0, SeccompCmpOp::MaskedEq(flag), flag))
        .collect()
}

/// Sockets that are neither internet nor the kernel's list of addresses, nor local ones where these are allowed. They stay
/// closed also with a network: the machine's services listen on them.
fn others(sockets: Sockets) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    let mut allowed = vec![libc::AF_INET as u64, libc::AF_INET6 as u64, libc::AF_NETLINK as u64];
    allowed.extend((sockets == Sockets::Local).then_some(libc::AF_UNIX as u64));
    const FAMILIES: u64 = 64;
    let mut rules = vec![rule(0, SeccompCmpOp::Ge, FAMILIES)?];
    for family in (0..FAMILIES).filter(|family| !allowed.contains(family)) {
        rules.push(rule(0, SeccompCmpOp::Eq, family)?);
    }
    // Of the kernel's own protocols, only number 0: the one that resolvers ask for addresses.
    let netlink = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)?;
    let other = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?;
    rules.push(SeccompRule::new(vec![netlink, other])?);
    // Protocols that are not needed and not looked at by many.
    for protocol in [MPTCP, UDP_LITE] {
        rules.push(rule(2, SeccompCmpOp::Eq, protocol)?);
    }
    // Raw packets, of any family.
    for kind in (0..16).filter(|kind| ![libc::SOCK_STREAM as u64, libc::SOCK_DGRAM as u64].contains(kind)) {
        let raw = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(0xf), kind)?;
        let netlink = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::AF_NETLINK as u64)?;
        rules.push(SeccompRule::new(vec![raw, netlink])?);
    }
    Ok(rules)
}

/// TCP over several paths, and UDP without checksums of all of a packet.
const MPTCP: u64 = libc::IPPROTO_MPTCP as u64;
const UDP_LITE: u64 = libc::IPPROTO_UDPLITE as u64;

/// Puts a character into a terminal's input.
const TIOCSTI: u64 = 0x5412;
/// Selects and pastes on a console.
const TIOCLINUX: u64 = 0x541c;

/// Closed without a network. Made sockets cannot be had, so the calls on them are closed for depth.
const NETWORK: &[i64] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// Closed for every command.
const FORBIDDEN: &[i64] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_setpriority,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Ways around these filters.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    // Keys of the kernel.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Memory that belongs to no process, and outlives all.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    // Mounts.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    // Attributes and owners of files: Landlock does not guard them.
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];
