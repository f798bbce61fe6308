//! Users of the VM: found in its /etc/passwd, or made there when a key of the metadata names a new one.
//!
//! Like Google's guest agent: a home, a shell, and the group `google-sudoers`. What that group may is up to a `sudo`
//! that a VM here cannot have, since no set-uid program works in it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Mutex,
};

/// Uids of people begin here. Source: Debian, `adduser`.
const FIRST_UID: u32 = 1_000;
/// Uids of a sandbox end before this; the last ones are nobody's.
const LAST_UID: u32 = 60_000;
const NAME_BYTES_MAX: usize = 32;
const SUDOERS: &str = "google-sudoers";

/// A user as /etc/passwd has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups, the first one included.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// Who is to have an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    /// Of somebody of OS Login: their number in every VM. Others get the next one that is free.
    pub(crate) uid: Option<u32>,
    pub(crate) sudoer: bool,
}

pub(crate) struct Accounts {
    /// Parent of `passwd` and `group`.
    etc: PathBuf,
    /// Where homes are made.
    root: PathBuf,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Accounts {
    pub(crate) fn of_this_machine() -> Accounts {
        Accounts { etc: "/etc".into(), root: "/".into(), changing: Mutex::new(()) }
    }

    /// The account of this name, made when it does not exist. One that the VM has already keeps its number.
    ///
    /// # Errors
    /// A name that a user cannot have, tables that cannot be read or written.
    pub(crate) fn find_or_make(&self, wanted: &Wanted) -> io::Result<Account> {
        let name = wanted.name.as_str();
        let _alone = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (passwd, group) = (self.read("passwd")?, self.read("group")?);
        if let Some(account) = find(name, &passwd, &group) {
            // A role can be given and taken between two logins. The agent's users stay what they are.
            let group = match (wanted.uid, wanted.sudoer) {
                (None, _) => return Ok(account),
                (Some(_), true) => with_member(&without_member(&group, name), name),
                (Some(_), false) => without_member(&group, name),
            };
            self.write("group", &group)?;
            return Ok(find(name, &passwd, &group).unwrap_or(account));
        }
        if !is_name(name) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no user can be called {name:?}")));
        }
        let free = |uid: &u32| !taken(&passwd, &group).contains(uid);
        let uid = wanted.uid.filter(free).or_else(|| free_id(&passwd, &group));
        let uid = uid.ok_or_else(|| io::Error::other("every uid is taken"))?;
        let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
        let home = format!("/home/{name}");
        // The groups first: a user whose group is missing would be half a user.
        let group = append(&group, &format!("{name}:x:{uid}:"));
        self.write("group", &if wanted.sudoer { with_member(&group, name) } else { group })?;
        self.write("passwd", &append(&passwd, &format!("{name}:x:{uid}:{uid}::{home}:{shell}")))?;
        self.make_home(&home, uid)?;
        let account = find(name, &self.read("passwd")?, &self.read("group")?);
        account.ok_or_else(|| io::Error::other(format!("user {name} was written and is not there")))
    }

    fn make_home(&self, home: &str, uid: u32) -> io::Result<()> {
        let place = self.root.join(home.trim_start_matches('/'));
        match fs::DirBuilder::new().mode(0o755).create(&place) {
            Ok(()) => std::os::unix::fs::chown(&place, Some(uid), Some(uid)),
            // One that is there already belongs to whom it belongs.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn read(&self, table: &str) -> io::Result<String> {
        match fs::read_to_string(self.etc.join(table)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            outcome => outcome,
        }
    }

    /// Whole or not at all: others read these tables meanwhile.
    fn write(&self, table: &str, text: &str) -> io::Result<()> {
        let (place, new) = (self.etc.join(table), self.etc.join(format!("{table}.new")));
        fs::write(&new, text)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
        fs::rename(&new, &place)
    }
}

/// Whether a user that is made here may be called so. Source: useradd(8), the portable names.
pub fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.'));
    first && rest && name.len() <= NAME_BYTES_MAX
}

fn rows(table: &str) -> impl Iterator<Item = Vec<&str>> {
    table.lines().map(|line| line.split(':').collect())
}

fn find(name: &str, passwd: &str, group: &str) -> Option<Account> {
    let row = rows(passwd).find(|row| row.len() >= 7 && row[0] == name)?;
    let (uid, gid) = (row[2].parse().ok()?, row[3].parse().ok()?);
    let member = |row: &Vec<&str>| row.len() >= 4 && row[3].split(',').any(|member| member == name);
    let mut groups = vec![gid];
    groups.extend(rows(group).filter(member).filter_map(|row| row[2].parse::<u32>().ok()).filter(|more| *more != gid));
    let shell = if row[6].is_empty() { "/bin/sh" } else { row[6] };
    Some(Account { name: name.into(), uid, gid, groups, home: row[5].into(), shell: shell.into() })
}

/// A number that is neither a user's nor a group's.
fn free_id(passwd: &str, group: &str) -> Option<u32> {
    let taken = taken(passwd, group);
    (FIRST_UID..LAST_UID).find(|id| !taken.contains(id))
}

fn taken(passwd: &str, group: &str) -> Vec<u32> {
    let id = |row: Vec<&str>| row.get(2).and_then(|id| id.parse::<u32>().ok());
    rows(passwd).chain(rows(group)).filter_map(id).collect()
}

/// The group that Google's agent puts its users into, made when missing.
fn with_member(group: &str, name: &str) -> String {
    if !rows(group).any(|row| row[0] == SUDOERS) {
        let gid = free_id(group, "").unwrap_or(LAST_UID);
        return append(group, &format!("{SUDOERS}:x:{gid}:{name}"));
    }
    let lines = group.lines().map(|line| match line.strip_prefix(SUDOERS) {
        Some(rest) if rest.ends_with(':') => format!("{line}{name}\n"),
        Some(rest) if rest.starts_with(':') => format!("{line},{name}\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

fn without_member(group: &str, name: &str) -> String {
    let lines = group.lines().map(|line| match line.strip_prefix(SUDOERS).and_then(|rest| rest.rsplit_once(':')) {
        Some((head, members)) if head.starts_with(':') => {
            let others: Vec<&str> = members.split(',').filter(|member| *member != name).collect();
            format!("{SUDOERS}{head}:{}\n", others.join(","))
        }
        Some(_) | None => format!("{line}\n"),
    });
    lines.collect()
}

fn append(table: &str, line: &str) -> String {
    let end = if table.is_empty() || table.ends_with('\n') { "" } else { "\n" };
    format!("{table}{end}{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000::/home/ada:/bin/zsh";
    const GROUP: &str = "root:x:0:\nada:x:1000:\nstaff:x:50:ada,bob\ndevs:x:1001:\n";

    #[test]
    fn a_user_is_found_with_all_groups() {
        let ada = find("ada", PASSWD, GROUP).unwrap();
        assert_eq!((ada.uid, ada.gid, ada.groups, ada.shell.as_str()), (1000, 1000, vec![1000, 50], "/bin/zsh"));
        assert_eq!(find("root", PASSWD, GROUP).unwrap().home, "/root");
        assert_eq!(find("bob", PASSWD, GROUP), None);
    }

    #[test]
    fn a_new_user_gets_a_free_number_and_joins_the_sudoers() {
        assert_eq!(free_id(PASSWD, GROUP), Some(1002));
        let first = with_member(&append(GROUP, "bob:x:1002:"), "bob");
        assert!(first.ends_with("bob:x:1002:\ngoogle-sudoers:x:1003:bob\n"), "{first}");
        let second = with_member(&append(&first, "eve:x:1004:"), "eve");
        assert!(second.contains("google-sudoers:x:1003:bob,eve\n"), "{second}");
        assert_eq!(with_member("google-sudoers:x:7:\n", "eve"), "google-sudoers:x:7:eve\n");
        assert_eq!(append(PASSWD, "x").lines().count(), 3);
    }

    #[test]
    fn names_that_would_break_the_tables_or_a_path_are_refused() {
        for name in ["", "a:b", "a\nroot", "../x", "a/b", "-rf", "Ada", "1st", &"a".repeat(33)] {
            assert!(!is_name(name), "{name:?}");
        }
        for name in ["ada", "ada_example_com", "_x", "a.b-c", "sa_1234567890"] {
            assert!(is_name(name), "{name:?}");
        }
    }

    #[test]
    fn a_user_is_made_once_and_found_ever_after() {
        let root = std::env::temp_dir().join(format!("sshd-accounts-{}", std::process::id()));
        let etc = root.join("etc");
        fs::create_dir_all(&etc).unwrap();
        fs::create_dir_all(root.join("home")).unwrap();
        fs::write(etc.join("passwd"), PASSWD).unwrap();
        fs::write(etc.join("group"), GROUP).unwrap();
        let accounts = Accounts { etc, root: root.clone(), changing: Mutex::new(()) };
        let agents = |name: &str| Wanted { name: name.into(), uid: None, sudoer: true };
        let person = |sudoer| Wanted { name: "eve_example_com".into(), uid: Some(20_007), sudoer };
        let made = accounts.find_or_make(&agents("bob"));
        let found = accounts.find_or_make(&agents("bob"));
        let home = root.join("home/bob").is_dir();
        let refused = accounts.find_or_make(&agents("../bob")).is_err();
        let eve = [false, true, true, false].map(|sudoer| accounts.find_or_make(&person(sudoer)).unwrap());
        fs::remove_dir_all(&root).unwrap();
        let bob = made.unwrap();
        assert_eq!((bob.uid, bob.groups.len(), bob.home.as_str()), (1002, 3, "/home/bob"));
        assert_eq!((found.unwrap(), home, refused), (bob, true, true));
        assert!(eve.iter().all(|eve| eve.uid == 20_007 && eve.home == "/home/eve_example_com"), "{eve:?}");
        let groups: Vec<usize> = eve.iter().map(|eve| eve.groups.len()).collect();
        assert_eq!(groups, [1, 2, 2, 1], "a role is given, stays, and is taken back");
    }
}
