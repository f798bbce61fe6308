//! Names, numbers and keys of profiles. Who gets in is shown by acceptance `iap`.

use std::sync::Arc;

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

fn control() -> Control {
    let now = Arc::new(|| Timestamp::from_unix_s(1_800_000_000));
    Control::open(Arc::new(store::Embedded::in_memory()), now).unwrap()
}

fn user(email: &str) -> Caller {
    Caller::new(Principal::User { email: email.into() }, vec![])
}

fn account(id: &str) -> Caller {
    let email = "robot@p-one.iam.gserviceaccount.com".into();
    Caller::new(Principal::ServiceAccount { email, unique_id: id.into() }, vec![])
}

fn import(control: &Control, caller: &Caller, key: &str) -> Result<LoginProfile, Fault> {
    let key = LoginKey { key: key.into(), expires: None };
    super::import(control, caller, caller.principal.email(), Some(key), None)
}

#[test]
fn a_username_is_the_address_made_portable_and_no_two_profiles_share_one() {
    let control = control();
    for (email, username) in [
        ("ada@example.com", "ada_example_com"),
        ("ada@example_com", "ada_example_com_1"),
        ("ada.example@com", "ada_example_com_2"),
        ("7of9@example.com", "_7of9_example_com"),
        ("a-very-long-address-of-somebody@example.com", "a_very_long_address_of_somebody_"),
        ("a-very-long-address-of-somebody@example.org", "a_very_long_address_of_somebod_1"),
    ] {
        assert_eq!(import(&control, &user(email), KEY).unwrap().username, username);
    }
    assert_eq!(import(&control, &account("1234"), KEY).unwrap().username, "sa_1234");
    let world = control.read();
    let uids: std::collections::BTreeSet<u32> = world.logins.values().map(|profile| profile.uid).collect();
    assert_eq!(uids.len(), world.logins.len(), "nor a number");
    assert!(uids.iter().all(|uid| (FIRST_UID..=LAST_UID).contains(uid)));
}

#[test]
fn a_profile_is_its_owners_and_an_account_made_again_does_not_own_its_predecessors() {
    let control = control();
    let ada = user("ada@example.com");
    import(&control, &ada, KEY).unwrap();
    assert_eq!(profile(&control, &ada, "Ada@example.com", None).unwrap().keys.len(), 1);
    let refused = profile(&control, &user("eve@example.com"), "ada@example.com", None).unwrap_err();
    assert_eq!(refused.code, Code::PermissionDenied);
    import(&control, &account("1"), KEY).unwrap();
    assert_eq!(profile(&control, &account("2"), account("2").principal.email(), None).unwrap().keys.len(), 0);
}

#[test]
fn what_is_no_key_is_no_key_and_the_same_key_has_the_same_fingerprint() {
    let print = fingerprint(KEY).unwrap();
    assert_eq!((print.len(), fingerprint(&format!("{KEY} ada@laptop")).unwrap()), (64, print));
    let (_, data) = KEY.split_once(' ').unwrap();
    for line in ["", "ssh-ed25519", "ssh-ed25519 !", &format!("ssh-rsa {data}"), &format!("{KEY}\nroot"), data] {
        assert!(fingerprint(line).is_err(), "{line}");
    }
}

#[test]
fn keys_change_end_and_go_and_a_profile_has_its_limit() {
    let control = control();
    let ada = user("ada@example.com");
    let print = import(&control, &ada, KEY).unwrap().keys.into_keys().next().unwrap();
    let tomorrow = Some(Timestamp::from_unix_s(1_800_086_400));
    let (_, key) = patch(&control, &ada, "ada@example.com", &print, None, Some(tomorrow)).unwrap();
    assert_eq!(key, LoginKey { key: KEY.into(), expires: tomorrow });
    let long = import(&control, &ada, &format!("{KEY} {}", "x".repeat(LOGIN_PROFILE_BYTES_MAX))).unwrap_err();
    assert!(long.message.starts_with("Login profile size exceeds 32 KiB."), "{}", long.message);
    delete_key(&control, &ada, "ada@example.com", &print).unwrap();
    assert_eq!(delete_key(&control, &ada, "ada@example.com", &print).unwrap_err().code, Code::NotFound);
    assert_eq!(patch(&control, &ada, "ada@example.com", &print, None, None).unwrap_err().code, Code::NotFound);
}
