//! Control groups: how much of the machine a sandbox may use, and who belongs to it.
//!
//! Machines differ. Most have the unified hierarchy (v2) only; some have one hierarchy per controller (v1), some both,
//! with a controller in one of them. Each controller is looked for separately, and two small writers know the file
//! names of the two versions. All groups live under `tombolo-<cloud>/`, one per sandbox, named by its first uid.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use model::planned::host::SandboxLimits;
use rustix::process::{Pid, Signal};

use crate::sys::number_of;

/// A group that still has processes cannot be removed; killed ones are gone within this, or something is wrong.
const EMPTY_WAIT_MAX: Duration = Duration::from_secs(5);
/// A parent group may vanish between its making and its use; more often than this in a row it does not.
const CREATE_TRIES_MAX: u32 = 16;
/// The period in which a CPU quota is counted, in microseconds. Source: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// What a sandbox needs to be limited in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Cpu,
    Memory,
    Pids,
}

impl Controller {
    const ALL: [Controller; 3] = [Controller::Cpu, Controller::Memory, Controller::Pids];

    fn name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Memory => "memory",
            Controller::Pids => "pids",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Version {
    V1,
    V2,
}

/// One mounted hierarchy and those of our controllers that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
    controllers: Vec<Controller>,
}

/// The hierarchies of this machine that matter to sandboxes.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    parent: String,
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Reads the mount table. Fails when a controller is nowhere: a limit that cannot be kept must not be promised.
    pub(crate) fn detect(cloud: &str) -> io::Result<Cgroups> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let hierarchies =
            hierarchies(&table, |mount| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default());
        for controller in Controller::ALL {
            if !hierarchies.iter().any(|h| h.controllers.contains(&controller)) {
                let why = format!("no hierarchy has the {} controller", controller.name());
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
        }
        Ok(Cgroups { parent: format!("tombolo-{cloud}"), hierarchies })
    }

    pub(crate) fn facts(&self) -> Vec<(String, String)> {
        let of = |c: Controller| self.hierarchies.iter().find(|h| h.controllers.contains(&c));
        Controller::ALL
            .into_iter()
            .filter_map(|c| of(c).map(|h| (c, h)))
            .map(|(c, h)| (format!("cgroup {}", c.name()), format!("{:?} at {}", h.version, h.mount.display())))
            .collect()
    }

    /// Makes the group of one sandbox in every hierarchy.
    pub(crate) fn create(&self, uid_base: u32) -> io::Result<Group> {
        for hierarchy in &self.hierarchies {
            let mut tries = 0;
            while let Err(e) = self.create_in(hierarchy, uid_base) {
                tries += 1;
                // Another sandbox was the last one just now, and took the parent with it.
                if e.kind() != io::ErrorKind::NotFound || tries == CREATE_TRIES_MAX {
                    return Err(e);
                }
            }
        }
        Ok(self.group(uid_base))
    }

    fn create_in(&self, hierarchy: &Hierarchy, uid_base: u32) -> io::Result<()> {
        let parent = hierarchy.mount.join(&self.parent);
        match hierarchy.version {
            Version::V1 => make_dir(&parent)?,
            Version::V2 => {
                delegate(&hierarchy.mount, &hierarchy.controllers)?;
                make_dir(&parent)?;
                delegate(&parent, &hierarchy.controllers)?;
            }
        }
        // One that exists is the rest of a sandbox that was never swept, or belongs to a living one: then it is busy.
        let own = parent.join(uid_base.to_string());
        fs::remove_dir(&own).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        fs::create_dir(&own)
    }

    fn group(&self, uid_base: u32) -> Group {
        let place = |h: &Hierarchy| Place {
            dir: h.mount.join(&self.parent).join(uid_base.to_string()),
            version: h.version,
            controllers: h.controllers.clone(),
        };
        Group { places: self.hierarchies.iter().map(place).collect() }
    }

    /// Removes every group of this cloud whose sandbox is not among the living, with whatever still runs in it.
    pub(crate) fn sweep(&self, living: &HashSet<u32>) -> io::Result<()> {
        let mut found = HashSet::new();
        for hierarchy in &self.hierarchies {
            let Ok(list) = fs::read_dir(hierarchy.mount.join(&self.parent)) else { continue };
            found.extend(list.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok()));
        }
        for uid_base in found.difference(living) {
            self.group(*uid_base).remove()?;
        }
        self.remove_parents();
        Ok(())
    }

    /// Removes the cloud's own groups when the last sandbox is gone.
    pub(crate) fn remove_parents(&self) {
        for hierarchy in &self.hierarchies {
            // Busy means that other sandboxes live.
            fs::remove_dir(hierarchy.mount.join(&self.parent)).ok();
        }
    }
}

/// The control groups of one sandbox, one per hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    places: Vec<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    dir: PathBuf,
    version: Version,
    controllers: Vec<Controller>,
}

impl Group {
    /// Moves the calling process in. Slow when the machine has been idle (milliseconds per v1 hierarchy: the kernel
    /// waits for RCU), so sandboxes are born inside and never moved.
    pub(crate) fn join(&self) -> io::Result<()> {
        self.places.iter().try_for_each(|place| fs::write(place.dir.join("cgroup.procs"), "0"))
    }

    pub(crate) fn limit(&self, limits: &SandboxLimits) -> io::Result<()> {
        for place in &self.places {
            for controller in &place.controllers {
                place.limit(*controller, limits)?;
            }
        }
        Ok(())
    }

    /// How many processes the kernel killed here for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.memory().map_or(0, |place| place.number_in(place.writer().oom_file(), "oom_kill"))
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory().map_or(0, |place| read_number(&place.dir.join(place.writer().memory_now())))
    }

    pub(crate) fn pids(&self) -> u64 {
        let place = self.places.iter().find(|p| p.controllers.contains(&Controller::Pids));
        place.map_or(0, |place| read_number(&place.dir.join("pids.current")))
    }

    /// A descriptor that becomes readable (v1) or exceptional (v2) when the kernel kills for want of memory.
    pub(crate) fn oom_watch(&self) -> io::Result<OomWatch> {
        let place = self.memory().ok_or(io::ErrorKind::Unsupported)?;
        match place.version {
            Version::V2 => Ok(OomWatch::Events(fs::File::open(place.dir.join("memory.events"))?.into())),
            Version::V1 => {
                let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
                let control = fs::File::open(place.dir.join("memory.oom_control"))?;
                let (bell_fd, control_fd) = (number_of(bell.as_fd()), number_of(control.as_fd()));
                fs::write(place.dir.join("cgroup.event_control"), format!("{bell_fd} {control_fd}"))?;
                Ok(OomWatch::Bell(bell))
            }
        }
    }

    /// Kills what is left inside and removes the groups.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + EMPTY_WAIT_MAX;
        self.places.iter().try_for_each(|place| place.remove(deadline))
    }

    fn memory(&self) -> Option<&Place> {
        self.places.iter().find(|p| p.controllers.contains(&Controller::Memory))
    }
}

/// What tells of kills for want of memory.
pub(crate) enum OomWatch {
    Bell(OwnedFd),
    Events(OwnedFd),
}

impl Place {
    fn writer(&self) -> &'static dyn Writer {
        match self.version {
            Version::V1 => &V1,
            Version::V2 => &V2,
        }
    }

    fn limit(&self, controller: Controller, limits: &SandboxLimits) -> io::Result<()> {
        let settings = match controller {
            Controller::Cpu => self.writer().cpu(limits.cpu_millis),
            Controller::Memory => self.writer().memory(limits.memory_bytes),
            Controller::Pids => vec![Setting::must("pids.max", limits.pids.to_string())],
        };
        for setting in settings {
            match fs::write(self.dir.join(setting.file), &setting.value) {
                Ok(()) => {}
                Err(_) if setting.optional => {}
                Err(e) => {
                    let what = format!("{} = {}: {e}", self.dir.join(setting.file).display(), setting.value);
                    return Err(io::Error::new(e.kind(), what));
                }
            }
        }
        Ok(())
    }

    fn number_in(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(k, _)| *k == key)
            .and_then(|(_, v)| v.trim().parse().ok())
            .unwrap_or(0)
    }

    fn remove(&self, deadline: Instant) -> io::Result<()> {
        loop {
            match fs::remove_dir(&self.dir) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) if Instant::now() >= deadline => return Err(e),
                Err(_) => {
                    self.remove_children(deadline);
                    self.kill();
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// A workload with a writable cgroup view could have made groups of its own.
    fn remove_children(&self, deadline: Instant) {
        let Ok(list) = fs::read_dir(&self.dir) else { return };
        for child in list.filter_map(|e| e.ok()).filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            Place { dir: child.path(), ..self.clone() }.remove(deadline).ok();
        }
    }

    fn kill(&self) {
        let procs = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines().filter_map(|l| l.parse().ok()).filter_map(Pid::from_raw) {
            // Our own shims only sit here for the moment in which they bring a process in.
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
    }
}

/// A value for a file of a control group.
struct Setting {
    file: &'static str,
    value: String,
    /// The kernel may be built without it.
    optional: bool,
}

impl Setting {
    fn must(file: &'static str, value: String) -> Setting {
        Setting { file, value, optional: false }
    }

    fn may(file: &'static str, value: String) -> Setting {
        Setting { file, value, optional: true }
    }
}

/// The file names and formats of one version of control groups.
trait Writer {
    fn cpu(&self, millis: u32) -> Vec<Setting>;
    fn memory(&self, bytes: u64) -> Vec<Setting>;
    fn oom_file(&self) -> &'static str;
    fn memory_now(&self) -> &'static str;
}

struct V1;
struct V2;

impl Writer for V1 {
    fn cpu(&self, millis: u32) -> Vec<Setting> {
        vec![
            Setting::must("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
            Setting::must("cpu.cfs_quota_us", quota_us(millis).to_string()),
        ]
    }

    fn memory(&self, bytes: u64) -> Vec<Setting> {
        vec![
            Setting::must("memory.limit_in_bytes", bytes.to_string()),
            // Memory and swap together: no swap.
            Setting::may("memory.memsw.limit_in_bytes", bytes.to_string()),
        ]
    }

    fn oom_file(&self) -> &'static str {
        "memory.oom_control"
    }

    fn memory_now(&self) -> &'static str {
        "memory.usage_in_bytes"
    }
}

impl Writer for V2 {
    fn cpu(&self, millis: u32) -> Vec<Setting> {
        vec![Setting::must("cpu.max", format!("{} {CPU_PERIOD_US}", quota_us(millis)))]
    }

    fn memory(&self, bytes: u64) -> Vec<Setting> {
        vec![Setting::must("memory.max", bytes.to_string()), Setting::may("memory.swap.max", "0".into())]
    }

    fn oom_file(&self) -> &'static str {
        "memory.events"
    }

    fn memory_now(&self) -> &'static str {
        "memory.current"
    }
}

/// Microseconds of CPU per period. The kernel refuses less than a millisecond.
fn quota_us(millis: u32) -> u64 {
    (u64::from(millis) * CPU_PERIOD_US / 1_000).max(1_000)
}

/// Our controllers' hierarchies in a mount table; `controllers_at` reads the list of a v2 mount. A controller that a v2
/// mount offers is taken there. Only mounts of a hierarchy's own root count: in others our groups would get lost.
fn hierarchies(mountinfo: &str, controllers_at: impl Fn(&Path) -> String) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some("/"), Some(mount), Some(kind)) = (left.get(3).copied(), left.get(4), right.first()) else { continue };
        let mount = PathBuf::from(mount);
        let (version, names) = match *kind {
            "cgroup" => (Version::V1, right.get(2).copied().unwrap_or_default().to_owned()),
            "cgroup2" => (Version::V2, controllers_at(&mount)),
            _ => continue,
        };
        let has = |c: &Controller| names.split([',', ' ', '\n']).any(|n| n == c.name());
        let controllers: Vec<_> = Controller::ALL.into_iter().filter(has).collect();
        let known = found.iter().any(|h| h.controllers == controllers && h.version == version);
        if !controllers.is_empty() && !known {
            found.push(Hierarchy { version, mount, controllers });
        }
    }
    found
}

fn delegate(dir: &Path, controllers: &[Controller]) -> io::Result<()> {
    controllers.iter().try_for_each(|c| fs::write(dir.join("cgroup.subtree_control"), format!("+{}", c.name())))
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(e.kind(), format!("{}: {e}", dir.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn read_number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 29 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 29 0:28 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
33 29 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
34 29 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn on_a_hybrid_machine_each_controller_is_found_where_it_is() {
        let found = hierarchies(HYBRID, |_| "hugetlb\n".into());
        let at: Vec<_> = found.iter().map(|h| (h.version, h.mount.to_str().unwrap(), h.controllers[0])).collect();
        assert_eq!(
            at,
            [
                (Version::V1, "/sys/fs/cgroup/cpu,cpuacct", Controller::Cpu),
                (Version::V1, "/sys/fs/cgroup/memory", Controller::Memory),
                (Version::V1, "/sys/fs/cgroup/pids", Controller::Pids),
            ]
        );
    }

    #[test]
    fn on_a_unified_machine_one_hierarchy_has_everything() {
        let table = "25 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = hierarchies(table, |_| "cpuset cpu io memory hugetlb pids rdma\n".into());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].controllers, Controller::ALL);
    }

    #[test]
    fn a_mount_of_a_part_of_a_hierarchy_does_not_count() {
        let table = "25 1 0:22 /docker/abc /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        assert_eq!(hierarchies(table, |_| "cpu memory pids".into()), []);
    }

    #[test]
    fn a_quota_is_never_below_what_the_kernel_takes() {
        assert_eq!(quota_us(1_000), 100_000);
        assert_eq!(quota_us(80), 8_000);
        assert_eq!(quota_us(1), 1_000);
    }

    /// On the real kernel, in a place of its own. Where this machine has bound the controllers to version 1, groups of
    /// version 2 hold processes and have nothing to limit; where it has not, the limits are read back, too.
    #[test]
    fn groups_of_the_unified_hierarchy_hold_processes_and_limits_and_a_sweep_ends_both() {
        use std::os::unix::process::ExitStatusExt;
        let mount = std::env::temp_dir().join(format!("tombolo-cgroup2-{}", std::process::id()));
        fs::create_dir(&mount).unwrap();
        rustix::mount::mount("none", &mount, "cgroup2", rustix::mount::MountFlags::empty(), None).unwrap();
        let found = fs::read_to_string(mount.join("cgroup.controllers")).unwrap();
        let controllers: Vec<_> =
            Controller::ALL.into_iter().filter(|c| found.split_whitespace().any(|f| f == c.name())).collect();
        let hierarchy = Hierarchy { version: Version::V2, mount: mount.clone(), controllers: controllers.clone() };
        let cgroups = Cgroups { parent: format!("tombolo-v{}", std::process::id()), hierarchies: vec![hierarchy] };
        let uid_base = model::limits::SANDBOX_UID_FIRST;
        let group = cgroups.create(uid_base).unwrap();
        let dir = mount.join(&cgroups.parent).join(uid_base.to_string());

        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(fs::read_to_string(dir.join("cgroup.procs")).unwrap().trim(), child.id().to_string());
        group.limit(&SandboxLimits { cpu_millis: 500, memory_bytes: 64 << 20, pids: 24 }).unwrap();
        for controller in controllers {
            let (file, limit) = match controller {
                Controller::Cpu => ("cpu.max", "50000 100000"),
                Controller::Memory => ("memory.max", "67108864"),
                Controller::Pids => ("pids.max", "24"),
            };
            assert_eq!(fs::read_to_string(dir.join(file)).unwrap().trim(), limit);
        }
        cgroups.sweep(&HashSet::from([uid_base])).unwrap();
        assert!(dir.exists(), "the living are left alone");
        cgroups.sweep(&HashSet::new()).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(!mount.join(&cgroups.parent).exists(), "and the cloud's own group went with its last");
        rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()).unwrap();
        fs::remove_dir(&mount).unwrap();
    }
}
