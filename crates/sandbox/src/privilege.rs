//! What a workload may still do when it starts: capabilities, system calls, users.
//!
//! Containers and VMs get the same rights: the capabilities that container engines grant by default, and those only
//! inside their own user namespace. A VM gets no CAP_NET_ADMIN on purpose: its one address belongs to the cloud, and a
//! machine that changes it only cuts itself off.

use std::{collections::BTreeMap, io};

use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::sys;

/// What container engines leave to a container's root.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// The newest system call whose meaning was looked at for this list (`file_setattr`). Later ones do not exist here.
const NEWEST_REVIEWED: u32 = 469;

/// Calls that are refused with EPERM whatever their arguments. Most would be refused to a user namespace's root anyway;
/// refusing them here keeps their code out of a stranger's reach.
const DENIED: &[libc::c_long] = &[
    // The file system tree of the sandbox is finished.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // New namespaces bring new rights.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Programs, modules and kernels in the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    // Keys are not namespaced by user.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // The machine is not theirs.
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
];

/// Namespaces that may not be asked for by `clone`. (`clone3` hides its flags in memory and does not exist here; C
/// libraries fall back to `clone`.)
const DENIED_CLONES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWCGROUP,
];

/// Sockets that know no network namespace, or are only kernel surface: VM sockets reach the hypervisor.
const DENIED_FAMILIES: [i32; 3] = [libc::AF_VSOCK, libc::AF_ALG, libc::AF_KEY];

/// Typing into a terminal on behalf of whoever sits at it.
const DENIED_IOCTLS: [libc::Ioctl; 2] = [libc::TIOCSTI, libc::TIOCLINUX];

/// The finished filter, made once by the shim: compiling takes longer than installing.
pub(crate) struct Filter {
    denied: BpfProgram,
    numbers: [libc::sock_filter; 5],
}

impl Filter {
    pub(crate) fn compile() -> io::Result<Filter> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
        let bits = DENIED_CLONES.map(|flag| (0, u64::try_from(flag).unwrap_or(0)));
        let bits = bits.map(|(arg, flag)| rule(arg, SeccompCmpOp::MaskedEq(flag), flag));
        rules.insert(libc::SYS_clone, bits.into_iter().collect::<io::Result<_>>()?);
        let families = DENIED_FAMILIES.map(|family| rule(0, SeccompCmpOp::Eq, u64::try_from(family).unwrap_or(0)));
        rules.insert(libc::SYS_socket, families.into_iter().collect::<io::Result<_>>()?);
        let ioctls = DENIED_IOCTLS.map(|request| rule(1, SeccompCmpOp::Eq, request));
        rules.insert(libc::SYS_ioctl, ioctls.into_iter().collect::<io::Result<_>>()?);
        let errno = u32::try_from(libc::EPERM).expect("error numbers are positive");
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch);
        let denied = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
        Ok(Filter { denied, numbers: numbers() })
    }

    fn install(&self) -> io::Result<()> {
        // The second filter must still be installable under the first.
        sys::install_filter(&self.numbers)?;
        seccompiler::apply_filter(&self.denied).map_err(io::Error::other)
    }
}

fn rule(argument: u8, op: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(io::Error::other)
}

/// `clone3`, calls newer than this list and the second numbering of x86-64 (x32, from 0x4000_0000 on) do not exist.
fn numbers() -> [libc::sock_filter; 5] {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k };
    let jump = libc::BPF_JMP | libc::BPF_K;
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(0);
    let nosys = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::ENOSYS).unwrap_or(0);
    [
        // The number is the first field of what a filter sees.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(jump | libc::BPF_JEQ, 2, 0, clone3),
        op(jump | libc::BPF_JGT, 1, 0, NEWEST_REVIEWED),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, nosys),
    ]
}

/// A user of a sandbox, by numbers of its user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Drops everything a workload must not have and becomes its user. The last step before exec; not to be undone.
pub(crate) fn drop_rights(user: &User, filter: &Filter) -> io::Result<()> {
    let bounding = CapabilitySet::all() - KEPT;
    for capability in bounding.iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
    sys::become_user(user.uid, user.gid, &user.groups)?;
    let kept = if user.uid == 0 { KEPT } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    filter.install()
}

/// Leaves to a process that unpacks archives, root of its own user namespace, only what it takes to give files away.
pub(crate) fn keep_file_rights(filter: &Filter) -> io::Result<()> {
    let kept = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER | CapabilitySet::FSETID;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    filter.install()
}

/// Finds the user that an image or a caller names, in the sandbox's own files.
pub(crate) fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, group_name) = match wanted.split_once(':') {
        Some((name, group_name)) => (name, Some(group_name)),
        None => (wanted, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let row = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| {
        f.len() >= 6 && (f[0] == name || (number.is_some() && f[2].parse() == Ok(number.unwrap_or(u32::MAX))))
    });
    let uid = match (&row, number) {
        (Some(fields), _) => fields[2].parse().map_err(|_| format!("the uid of user {name:?} is no number"))?,
        (None, Some(number)) => number,
        (None, None) => return Err(format!("there is no user {name:?} in /etc/passwd")),
    };
    let groups: Vec<Vec<&str>> =
        group.lines().map(|l| l.split(':').collect()).filter(|f: &Vec<_>| f.len() >= 3).collect();
    let gid = match group_name.filter(|g| !g.is_empty()) {
        Some(wanted) => match groups.iter().find(|f| f[0] == wanted).map_or(wanted, |f| f[2]).parse() {
            Ok(gid) => gid,
            Err(_) => return Err(format!("there is no group {wanted:?} in /etc/group")),
        },
        None => row.as_ref().and_then(|f| f[3].parse().ok()).unwrap_or(0),
    };
    let member =
        |f: &&Vec<&str>| row.as_ref().is_some_and(|row| f.get(3).is_some_and(|m| m.split(',').any(|m| m == row[0])));
    let mut more: Vec<u32> = match group_name {
        Some(_) => Vec::new(),
        None => groups.iter().filter(member).filter_map(|f| f[2].parse().ok()).collect(),
    };
    more.insert(0, gid);
    more.dedup();
    let limit = model::limits::SANDBOX_UIDS;
    if uid >= limit || gid >= limit {
        return Err(format!("user {wanted:?} is outside of the {limit} ids of a sandbox"));
    }
    let home = row.as_ref().map_or("/", |f| f[5]).to_owned();
    Ok(User { uid, gid, groups: more, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app\nweb:x:33:\n";

    #[test]
    fn a_user_is_found_by_name_or_number_with_its_groups() {
        let app = User { uid: 1000, gid: 1001, groups: vec![1001, 50], home: "/app".into() };
        assert_eq!(resolve("app", PASSWD, GROUP).unwrap(), app);
        assert_eq!(resolve("1000", PASSWD, GROUP).unwrap(), app);
        assert_eq!(resolve("", PASSWD, GROUP).unwrap().uid, 0);
    }

    #[test]
    fn a_named_group_replaces_the_users_own_groups() {
        assert_eq!(resolve("app:web", PASSWD, GROUP).unwrap().groups, [33]);
        assert_eq!(resolve("7:8", PASSWD, GROUP).unwrap(), User { uid: 7, gid: 8, groups: vec![8], home: "/".into() });
    }

    #[test]
    fn who_does_not_exist_is_refused_and_never_becomes_root() {
        assert!(resolve("ghost", PASSWD, GROUP).is_err());
        assert!(resolve("app:ghosts", PASSWD, GROUP).is_err());
        assert!(resolve("70000", PASSWD, GROUP).is_err());
        assert!(resolve("-1", PASSWD, GROUP).is_err());
    }
}
