//! What a sandbox's root filesystem consists of. Pure: from a plan and what the host has, which mount trees to take and
//! which directories, links and files to make. The shim takes the trees; `inside` makes the rest.

use std::path::{Path, PathBuf};

use model::planned::host::{Attach, Process, Rootfs, SandboxPlan};

use crate::wire::{Assembly, Command, Root};

/// Where the metadata server and the name server are.
const METADATA_ADDRESS: &str = "169.254.169.254";
/// Where a VM's init is copied to: bound there, the mount table would tell where the host keeps it.
pub(crate) const INIT: &str = "/run/init";
/// Search path of a VM.
const MACHINE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most layers of an image. Source: the kernel's overlayfs takes 500; their paths fit into one page of options.
const LAYERS_MAX: usize = 128;

/// Parts of the host's /etc that programs under /usr cannot do without, and that hold no secret.
const HOST_ETC: &[&str] = &[
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
];

/// Directories that belong to /usr on a merged system, and beside it on others.
const USR_LINKS: &[&str] = &["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// A piece of the host's file tree to be seen at a place in the sandbox, read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) from: PathBuf,
    pub(crate) at: String,
    /// Its owners 0, 1, … are the sandbox's 0, 1, …; otherwise what belongs to the host belongs to nobody.
    pub(crate) shifted: bool,
}

/// What exists on the host at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Link(String),
    Other,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("{digest:?} is no digest of a layer (sha256: and 64 hexadecimal digits)")]
    Digest { digest: String },
    #[error("an image of {count} layers is over the limit of {LAYERS_MAX}")]
    Layers { count: usize },
    #[error("a root filesystem without layers")]
    Empty,
    #[error("the host has no /usr")]
    NoUsr,
    #[error("the process has an empty command line")]
    NoCommand,
}

/// Plans the root filesystem of `plan`. `layers` is the directory of unpacked layers.
pub(crate) fn assemble(
    plan: &SandboxPlan,
    layers: &Path,
    host: impl Fn(&str) -> Found,
) -> Result<(Vec<Tree>, Assembly), RootError> {
    let mut trees = Vec::new();
    let mut dirs = vec![("/etc".into(), 0o755), ("/tmp".into(), 0o1777)];
    let mut links = vec![("/etc/mtab".into(), "/proc/self/mounts".into())];
    let mut files = common_files(plan);
    let root = match &plan.rootfs {
        Rootfs::Layers(digests) => {
            trees.extend(layer_trees(digests, layers)?);
            Root::Overlay { layers: digests.len() }
        }
        Rootfs::HostView => {
            trees.extend(host_trees(&host, &mut links)?);
            dirs.extend(MACHINE_DIRS.iter().map(|(dir, mode)| ((*dir).to_owned(), *mode)));
            links.push(("/var/run".into(), "/run".into()));
            links.push(("/etc/os-release".into(), "/usr/lib/os-release".into()));
            files.extend(MACHINE_FILES.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())));
            Root::Fresh
        }
    };
    let command = match &plan.process {
        Process::Init => Command {
            argv: vec![INIT.into()],
            env: vec![("PATH".into(), MACHINE_PATH.into())],
            cwd: "/".into(),
            user: "0:0".into(),
        },
        Process::Run { argv, .. } if argv.is_empty() => return Err(RootError::NoCommand),
        Process::Run { argv, env, cwd, user } => {
            Command { argv: argv.clone(), env: env.clone(), cwd: cwd.clone(), user: user.clone() }
        }
    };
    Ok((trees, Assembly { hostname: plan.hostname.clone(), root, dirs, links, files, seed: None, command }))
}

/// The directory name of a layer: the hexadecimal part of its digest.
pub(crate) fn layer_name(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let fine = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    fine.then_some(hex)
}

fn layer_trees(digests: &[String], layers: &Path) -> Result<Vec<Tree>, RootError> {
    match digests.len() {
        0 => return Err(RootError::Empty),
        count if count > LAYERS_MAX => return Err(RootError::Layers { count }),
        _ => {}
    }
    let tree = |(n, digest): (usize, &String)| {
        let name = layer_name(digest).ok_or_else(|| RootError::Digest { digest: digest.clone() })?;
        Ok(Tree { from: layers.join(name), at: format!("/.layers/{n}"), shifted: true })
    };
    digests.iter().enumerate().map(tree).collect()
}

fn host_trees(host: &impl Fn(&str) -> Found, links: &mut Vec<(String, String)>) -> Result<Vec<Tree>, RootError> {
    let tree = |path: &str| Tree { from: path.into(), at: path.into(), shifted: false };
    if host("/usr") == Found::Nothing {
        return Err(RootError::NoUsr);
    }
    let mut trees = vec![tree("/usr")];
    for path in USR_LINKS {
        match host(path) {
            Found::Nothing => {}
            Found::Link(target) => links.push(((*path).to_owned(), target)),
            Found::Other => trees.push(tree(path)),
        }
    }
    // A link such as /etc/localtime is followed: what counts is what it says.
    trees.extend(HOST_ETC.iter().filter(|path| host(path) != Found::Nothing).map(|path| tree(path)));
    Ok(trees)
}

fn common_files(plan: &SandboxPlan) -> Vec<(String, String)> {
    let address = match &plan.attach {
        Attach::Vpc { address, .. } => *address,
        Attach::Fabric(port) => port.v4,
    };
    let name = &plan.hostname;
    let mut names: Vec<String> = plan.search.first().map(|domain| format!("{name}.{domain}")).into_iter().collect();
    names.push(name.clone());
    let names = names.join(" ");
    let search = if plan.search.is_empty() { String::new() } else { format!("search {}\n", plan.search.join(" ")) };
    vec![
        ("/etc/hostname".into(), format!("{name}\n")),
        (
            "/etc/hosts".into(),
            format!(
                "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\
                 {METADATA_ADDRESS} metadata.google.internal metadata\n{address} {names}\n"
            ),
        ),
        ("/etc/resolv.conf".into(), format!("nameserver {METADATA_ADDRESS}\n{search}")),
    ]
}

const MACHINE_DIRS: &[(&str, u32)] = &[
    ("/home", 0o755),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/run/lock", 0o1777),
    ("/mnt", 0o755),
    ("/opt", 0o755),
    ("/srv", 0o755),
    ("/var", 0o755),
    ("/var/cache", 0o755),
    ("/var/lib", 0o755),
    ("/var/log", 0o755),
    ("/var/tmp", 0o1777),
];

const MACHINE_FILES: &[(&str, &str)] = &[
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\n\
         daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "/etc/group",
        "root:x:0:\ndaemon:x:1:\nadm:x:4:\ntty:x:5:\nwww-data:x:33:\nutmp:x:43:\nusers:x:100:\nnogroup:x:65534:\n",
    ),
    ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n"),
    (
        "/etc/profile",
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         [ \"$(id -u)\" = 0 ] && PS1='\\u@\\h:\\w# ' || PS1='\\u@\\h:\\w$ '\n",
    ),
];
