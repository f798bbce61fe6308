//! Which keys may log in as whom. Pure: attributes of the metadata server go in, an answer comes out.
//!
//! Source: Compute Engine, "Add SSH keys to VMs", and what Google's guest agent makes of it.

use model::time::Timestamp;
use russh::keys::PublicKey;
use serde_json::Value;

/// The attributes that decide, of the instance and of its project: JSON objects of strings.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    pub instance: Value,
    pub project: Value,
}

/// The metadata asks for OS Login: no key of the metadata counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OsLogin;

impl Attributes {
    /// Whether `key` may log in as `user`.
    ///
    /// # Errors
    /// Its owner's profile decides instead: [`Person::admits`].
    pub fn admit(&self, user: &str, key: &PublicKey, now: Timestamp) -> Result<bool, OsLogin> {
        let os_login = text(&self.instance, "enable-oslogin").or(text(&self.project, "enable-oslogin"));
        if os_login.is_some_and(is_true) {
            return Err(OsLogin);
        }
        Ok(self.lines().any(|line| entry(line, now).is_some_and(|(of, theirs)| of == user && same(&theirs, key))))
    }

    /// Lines of `ssh-keys`, the instance's before the project's. The older `sshKeys` of an instance counts too, and
    /// keeps the project's away.
    fn lines(&self) -> impl Iterator<Item = &str> {
        let legacy = text(&self.instance, "sshKeys");
        let alone = legacy.is_some() || text(&self.instance, "block-project-ssh-keys").is_some_and(is_true);
        let of_project = (!alone).then_some(&self.project).into_iter();
        let of_project = of_project.flat_map(|all| [text(all, "ssh-keys"), text(all, "sshKeys")]);
        [text(&self.instance, "ssh-keys"), legacy].into_iter().chain(of_project).flatten().flat_map(str::lines)
    }
}

/// Somebody of OS Login, and what the metadata server says of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub id: String,
    pub username: String,
    pub uid: u32,
    keys: Vec<(PublicKey, Option<Timestamp>)>,
    /// May log in.
    pub admitted: bool,
    /// May become root.
    pub admin: bool,
}

impl Person {
    /// One of `loginProfiles`; nobody is admitted yet.
    pub fn read(profile: &Value) -> Option<Person> {
        let account = &profile["posixAccounts"][0];
        let key = |key: &Value| {
            let expires = match key.get("expirationTimeUsec") {
                None => None,
                Some(at) => Some(Timestamp(at.as_str()?.parse().ok()?)),
            };
            let mut words = key["key"].as_str()?.split_ascii_whitespace();
            let (kind, data) = (words.next()?, words.next()?);
            Some((PublicKey::from_openssh(&format!("{kind} {data}")).ok()?, expires))
        };
        let id = profile["name"].as_str().filter(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()))?;
        Some(Person {
            id: id.to_owned(),
            username: account["username"].as_str()?.to_owned(),
            uid: account["uid"].as_u64()?.try_into().ok()?,
            keys: profile["sshPublicKeys"].as_object()?.values().filter_map(key).collect(),
            admitted: false,
            admin: false,
        })
    }

    pub fn admits(&self, user: &str, key: &PublicKey, now: Timestamp) -> bool {
        let alive = |(theirs, expires): &(PublicKey, Option<Timestamp>)| {
            same(theirs, key) && expires.is_none_or(|expires| expires > now)
        };
        self.admitted && self.username == user && self.keys.iter().any(alive)
    }
}

fn text<'a>(attributes: &'a Value, name: &str) -> Option<&'a str> {
    attributes.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn is_true(text: &str) -> bool {
    ["true", "t", "1", "y", "yes"].iter().any(|word| text.trim().eq_ignore_ascii_case(word))
}

fn same(a: &PublicKey, b: &PublicKey) -> bool {
    a.key_data() == b.key_data()
}

/// `USER:TYPE KEY [COMMENT]`, or `USER:TYPE KEY google-ssh {"userName":…,"expireOn":"2026-11-28T01:23:45+0000"}`. None
/// for what is no such line, and for a key whose time is over.
fn entry(line: &str, now: Timestamp) -> Option<(&str, PublicKey)> {
    let (user, key) = line.trim().split_once(':')?;
    let mut words = key.splitn(4, ' ');
    let (kind, data, comment, rest) = (words.next()?, words.next()?, words.next(), words.next());
    if comment == Some("google-ssh") {
        let about: Value = serde_json::from_str(rest?).ok()?;
        if expiry(about.get("expireOn")?.as_str()?)? <= now {
            return None;
        }
    }
    Some((user, PublicKey::from_openssh(&format!("{kind} {data}")).ok()?))
}

/// RFC 3339, or with an offset without a colon, as gcloud writes it.
fn expiry(text: &str) -> Option<Timestamp> {
    let spelled = match text.len().checked_sub(5).and_then(|at| text.split_at_checked(at)) {
        Some((time, offset)) if offset.starts_with(['+', '-']) && !offset.contains(':') => {
            format!("{time}{}:{}", &offset[..3], &offset[3..])
        }
        _ => text.to_owned(),
    };
    Timestamp::parse_rfc3339(&spelled)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn now() -> Timestamp {
        Timestamp::parse_rfc3339("2026-11-28T12:00:00Z").unwrap()
    }

    fn admits(instance: Value, project: Value) -> Result<bool, OsLogin> {
        Attributes { instance, project }.admit("ada", &PublicKey::from_openssh(KEY).unwrap(), now())
    }

    #[test]
    fn a_key_logs_in_as_the_user_it_is_listed_for() {
        for (lines, admitted) in [
            (format!("ada:{KEY}"), true),
            (format!("ada:{KEY} ada@laptop"), true),
            (format!("bob:{OTHER}\nada:{OTHER}\nada:{KEY} a comment of words"), true),
            (format!("bob:{KEY}"), false),
            (format!("ada:{OTHER}"), false),
            (KEY.to_owned(), false),
            ("ada:".to_owned(), false),
            ("ada:ssh-ed25519 garbage".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(admits(json!({"ssh-keys": lines}), json!({})), Ok(admitted), "{lines}");
            assert_eq!(admits(json!({}), json!({"ssh-keys": lines})), Ok(admitted), "{lines}");
        }
    }

    #[test]
    fn a_key_is_worth_nothing_once_its_time_is_over_or_cannot_be_read() {
        let until = |about: &str| admits(json!({"ssh-keys": format!("ada:{KEY} google-ssh {about}")}), json!({}));
        for (about, admitted) in [
            (r#"{"userName":"ada@example.com","expireOn":"2026-11-28T12:00:01+0000"}"#, true),
            (r#"{"userName":"ada@example.com","expireOn":"2026-11-28T13:00:01+0100"}"#, true),
            (r#"{"expireOn":"2026-11-28T12:00:01Z"}"#, true),
            (r#"{"userName":"ada@example.com","expireOn":"2026-11-28T12:00:00+0000"}"#, false),
            (r#"{"userName":"ada@example.com","expireOn":"2025-11-28T12:00:00+0000"}"#, false),
            (r#"{"userName":"ada@example.com","expireOn":"soon"}"#, false),
            (r#"{"userName":"ada@example.com"}"#, false),
            ("no json", false),
            ("", false),
        ] {
            assert_eq!(until(about), Ok(admitted), "{about}");
        }
    }

    #[test]
    fn an_instance_may_keep_the_keys_of_its_project_away() {
        let project = || json!({"ssh-keys": format!("ada:{KEY}")});
        for (instance, admitted) in [
            (json!({}), true),
            (json!({"block-project-ssh-keys": "FALSE"}), true),
            (json!({"block-project-ssh-keys": "TRUE"}), false),
            (json!({"block-project-ssh-keys": "true"}), false),
            (json!({"block-project-ssh-keys": "TRUE", "ssh-keys": format!("ada:{KEY}")}), true),
            (json!({"sshKeys": format!("bob:{OTHER}")}), false),
            (json!({"sshKeys": format!("ada:{KEY}")}), true),
        ] {
            assert_eq!(admits(instance.clone(), project()), Ok(admitted), "{instance}");
        }
    }

    #[test]
    fn where_os_login_is_asked_for_no_key_of_the_metadata_counts() {
        let keys = format!("ada:{KEY}");
        for (instance, project, outcome) in [
            (json!({"enable-oslogin": "TRUE", "ssh-keys": keys}), json!({}), Err(OsLogin)),
            (json!({"ssh-keys": keys}), json!({"enable-oslogin": "TRUE"}), Err(OsLogin)),
            (json!({"enable-oslogin": "FALSE", "ssh-keys": keys}), json!({"enable-oslogin": "TRUE"}), Ok(true)),
        ] {
            assert_eq!(admits(instance, project), outcome);
        }
    }

    #[test]
    fn a_person_of_os_login_comes_in_as_themselves_with_a_living_key_of_theirs() {
        let key = PublicKey::from_openssh(KEY).unwrap();
        let after = Timestamp(now().0 + 1).0.to_string();
        let profile = |key: Value| {
            json!({
                "name": "123", "sshPublicKeys": {"f": key},
                "posixAccounts": [{"username": "ada_example_com", "uid": 20_007}],
            })
        };
        for (listed, user, admitted, in_) in [
            (json!({"key": KEY}), "ada_example_com", true, true),
            (json!({"key": format!("{KEY} ada@laptop"), "expirationTimeUsec": after}), "ada_example_com", true, true),
            (json!({"key": KEY, "expirationTimeUsec": now().0.to_string()}), "ada_example_com", true, false),
            (json!({"key": KEY, "expirationTimeUsec": "soon"}), "ada_example_com", true, false),
            (json!({"key": OTHER}), "ada_example_com", true, false),
            (json!({"key": KEY}), "root", true, false),
            (json!({"key": KEY}), "ada_example_com", false, false),
        ] {
            let person = Person { admitted, ..Person::read(&profile(listed.clone())).unwrap() };
            assert_eq!(person.admits(user, &key, now()), in_, "{listed} {user}");
        }
        for nobody in [json!({}), json!({"name": "a&policy=x"}), Value::Null] {
            assert_eq!(Person::read(&nobody), None);
        }
    }
}
