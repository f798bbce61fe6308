//! Who may, who may not, and what a policy must look like to be obeyed.

use std::collections::{BTreeMap, BTreeSet};

use identity::{
    permission,
    policy::{
        Caller, Decision, Member, Place, bury, canonical, check_etag, decide, etag, holders, invokers, revive,
        test_permissions,
    },
    role::Role,
};
use model::{
    fault::Code,
    iam::{Binding, Condition, Policy, Principal},
    limits::POLICY_MEMBERS_MAX,
};
use proptest::prelude::*;

fn user(email: &str) -> Principal {
    Principal::User { email: email.into() }
}

fn account(email: &str) -> Principal {
    Principal::ServiceAccount { email: email.into(), unique_id: "100000000000000000001".into() }
}

fn binding(role: &str, members: &[&str]) -> Binding {
    let members = members.iter().map(|m| (*m).to_owned()).collect();
    Binding { role: role.into(), members, condition: None }
}

fn policy(bindings: &[Binding]) -> Policy {
    Policy { bindings: bindings.to_vec(), revision: 1 }
}

fn may_invoke(policy: &Policy, who: Caller<'_>) -> bool {
    matches!(decide(&[policy], who, permission!("run.routes.invoke")), Decision::Allowed(_))
}

#[test]
fn a_member_names_whom_it_says_and_nobody_else() {
    let (ada, bob) = (user("Ada@Example.com"), user("bob@elsewhere.org"));
    let caller = account("caller@p-12345.iam.gserviceaccount.com");
    // (member, anonymous, ada, bob, the service account)
    for (member, anonymous, is_ada, is_bob, is_caller) in [
        ("allUsers", true, true, true, true),
        ("allAuthenticatedUsers", false, true, true, true),
        ("user:ada@example.com", false, true, false, false),
        ("USER:ADA@EXAMPLE.COM", false, true, false, false),
        ("serviceAccount:caller@p-12345.iam.gserviceaccount.com", false, false, false, true),
        ("user:caller@p-12345.iam.gserviceaccount.com", false, false, false, false),
        ("serviceAccount:ada@example.com", false, false, false, false),
        ("domain:example.com", false, true, false, false),
        ("domain:p-12345.iam.gserviceaccount.com", false, false, false, false),
        ("domain:ample.com", false, false, false, false),
        ("group:ada@example.com", false, false, false, false),
        ("deleted:user:ada@example.com?uid=1", false, false, false, false),
        ("deleted:serviceAccount:caller@p-12345.iam.gserviceaccount.com?uid=1", false, false, false, false),
        ("projectOwner:p-12345", false, false, false, false),
        ("allUsers:x", false, false, false, false),
        ("", false, false, false, false),
    ] {
        let policy = policy(&[binding("roles/run.invoker", &[member])]);
        let seen = [Caller::Anonymous, Caller::Known(&ada), Caller::Known(&bob), Caller::Known(&caller)]
            .map(|who| may_invoke(&policy, who));
        assert_eq!(seen, [anonymous, is_ada, is_bob, is_caller], "{member}");
    }
}

#[test]
fn any_level_grants_and_the_proof_says_which() {
    let ada = user("ada@example.com");
    let (own, org) = (Policy::default(), policy(&[binding("roles/owner", &["user:ada@example.com"])]));
    let Decision::Allowed(proof) = decide(&[&own, &org], Caller::Known(&ada), permission!("run.services.create"))
    else {
        panic!("denied");
    };
    assert_eq!((proof.role().name, proof.level()), ("roles/owner", 1));
    assert_eq!(proof.permission().as_str(), "run.services.create");
    assert_eq!(decide(&[&own], Caller::Known(&ada), permission!("run.services.create")), Decision::Denied);
    assert_eq!(decide(&[], Caller::Known(&ada), permission!("run.services.create")), Decision::Denied);
}

#[test]
fn a_role_gives_its_permissions_and_no_other() {
    let ada = user("ada@example.com");
    let policy = policy(&[
        binding("roles/run.viewer", &["user:ada@example.com"]),
        binding("roles/madeUp", &["user:ada@example.com"]),
    ]);
    let asked = ["run.services.get", "run.services.create", "run.services.list"].map(str::to_owned);
    let held = test_permissions(&[&policy], Caller::Known(&ada), &asked).unwrap();
    assert_eq!(held, [permission!("run.services.get"), permission!("run.services.list")]);
    assert_eq!(test_permissions(&[&policy], Caller::Anonymous, &asked).unwrap(), []);
    for bad in ["run.services.*", "no.such.thing"] {
        let fault = test_permissions(&[&policy], Caller::Known(&ada), &[bad.to_owned()]).unwrap_err();
        assert_eq!(fault.message, format!("Permission {bad} is not valid for this resource."));
    }
    assert!(test_permissions(&[&policy], Caller::Known(&ada), &vec![String::new(); 101]).is_err());
}

#[test]
fn a_condition_that_is_not_evaluated_grants_nothing() {
    let mut conditional = binding("roles/run.invoker", &["allUsers"]);
    conditional.condition =
        Some(Condition { title: "t".into(), description: String::new(), expression: "true".into() });
    assert!(!may_invoke(&policy(&[conditional]), Caller::Anonymous));
}

#[test]
fn the_proxy_is_told_exactly_who_may_invoke() {
    let own = policy(&[
        binding("roles/run.invoker", &["serviceAccount:a@p-12345.iam.gserviceaccount.com", "domain:example.com"]),
        binding("roles/run.viewer", &["allUsers"]),
    ]);
    let project = policy(&[
        binding("roles/editor", &["user:ada@example.com", "deleted:user:x@example.com?uid=1"]),
        binding("roles/owner", &["group:g@example.com"]),
    ]);
    let ids = |email: &str| email.starts_with("a@").then(|| "111".to_owned());
    let seen = invokers(&[&own, &project], false, &ids);
    assert!(!seen.everyone && !seen.all_authenticated);
    assert_eq!(seen.emails, BTreeSet::from(["ada@example.com".to_owned()]));
    let accounts = [("111".to_owned(), "a@p-12345.iam.gserviceaccount.com".to_owned())];
    assert_eq!(seen.accounts, BTreeMap::from(accounts), "an account is who has its id, not who has its name");
    assert_eq!(seen.domains, BTreeSet::from(["example.com".to_owned()]));
    assert!(invokers(&[&own], true, &ids).everyone);
    assert!(invokers(&[&policy(&[binding("roles/run.invoker", &["allUsers"])])], false, &ids).everyone);
    assert_eq!(holders(&[&project], permission!("run.services.setIamPolicy")), BTreeSet::from(["group:g@example.com"]));
}

#[test]
fn a_policy_is_stored_in_one_form() {
    let asked = [
        binding("roles/run.viewer", &[]),
        binding("roles/run.invoker", &["user:Ada@Example.com", "allUsers"]),
        binding("roles/run.invoker", &["user:ada@example.com"]),
        binding("roles/run.admin", &["user:bob@example.com"]),
    ];
    let stored = canonical(Place::RunService, &asked, &Policy::default(), &|_| true).unwrap();
    let want = [
        binding("roles/run.admin", &["user:bob@example.com"]),
        binding("roles/run.invoker", &["allUsers", "user:ada@example.com"]),
    ];
    assert_eq!(stored, want);
    assert_eq!(canonical(Place::RunService, &stored, &Policy::default(), &|_| true).unwrap(), stored);
}

#[test]
fn what_cannot_be_obeyed_is_refused_in_googles_words() {
    let sa = "serviceAccount:x@p-12345.iam.gserviceaccount.com";
    for (place, role, member, want) in [
        (Place::Hierarchy, "roles/x", "user:a@b.c", "Role roles/x does not exist in the resource's hierarchy."),
        (Place::RunService, "roles/editor", "user:a@b.c", "Role roles/editor is not supported for this resource."),
        (Place::Hierarchy, "roles/editor", "user:a@b.c", "User a@b.c does not exist."),
        (Place::Hierarchy, "roles/editor", "group:a@b.c", "Group a@b.c does not exist."),
        (Place::Hierarchy, "roles/editor", "domain:b.c", "Domain b.c does not exist."),
        (
            Place::RunService,
            "roles/run.invoker",
            sa,
            "Service account x@p-12345.iam.gserviceaccount.com does not exist.",
        ),
        (
            Place::RunService,
            "roles/run.invoker",
            "ada@example.com",
            "The member ada@example.com is of an unknown type. Please set a valid type prefix for the member.",
        ),
        (
            Place::Hierarchy,
            "roles/run.invoker",
            "allUsers",
            "Member allUsers cannot be granted a role on this resource.",
        ),
        (
            Place::Hierarchy,
            "roles/run.invoker",
            "deleted:user:a@b.c?uid=1",
            "The member deleted:user:a@b.c?uid=1 is deleted and cannot be added.",
        ),
    ] {
        let fault = canonical(place, &[binding(role, &[member])], &Policy::default(), &|_| false).unwrap_err();
        assert_eq!((fault.code, fault.message.as_str()), (Code::InvalidArgument, want));
    }
}

#[test]
fn a_condition_is_refused_rather_than_ignored() {
    let mut asked = binding("roles/run.invoker", &["user:a@b.c"]);
    asked.condition = Some(Condition { title: "t".into(), description: String::new(), expression: "true".into() });
    let fault = canonical(Place::RunService, &[asked], &Policy::default(), &|_| true).unwrap_err();
    assert_eq!(fault.code, Code::Unimplemented);
}

#[test]
fn one_member_too_many_is_refused() {
    let members: BTreeSet<String> = (0..=POLICY_MEMBERS_MAX).map(|n| format!("user:u{n}@example.com")).collect();
    let mut asked = Binding { role: "roles/run.invoker".into(), members, condition: None };
    assert!(canonical(Place::RunService, &[asked.clone()], &Policy::default(), &|_| true).is_err());
    asked.members.pop_first();
    assert!(canonical(Place::RunService, &[asked], &Policy::default(), &|_| true).is_ok());
}

#[test]
fn a_recreated_service_account_inherits_nothing_and_an_undeleted_one_everything() {
    let email = "x@p-12345.iam.gserviceaccount.com";
    let mut policy = policy(&[binding("roles/run.invoker", &[&format!("serviceAccount:{email}")])]);
    assert!(may_invoke(&policy, Caller::Known(&account(email))));
    assert!(bury(&mut policy, email, "100000000000000000001"));
    assert!(!may_invoke(&policy, Caller::Known(&account(email))));
    let kept = canonical(Place::RunService, &policy.bindings, &policy, &|_| true).unwrap();
    assert_eq!(kept, policy.bindings, "a read-modify-write keeps the deleted member");
    assert!(!revive(&mut policy, email, "100000000000000000002"), "another incarnation");
    assert!(revive(&mut policy, email, "100000000000000000001"));
    assert!(may_invoke(&policy, Caller::Known(&account(email))));
}

#[test]
fn a_stale_etag_is_told_from_the_current_one() {
    let at = |revision| Policy { revision, ..Policy::default() };
    assert_eq!(etag(&at(0)), "ACAB");
    assert_eq!(etag(&at(1)), "BwAAAAAAABA=");
    check_etag(&at(0), "ACAB").unwrap();
    check_etag(&at(7), "").unwrap();
    check_etag(&at(7), &etag(&at(7))).unwrap();
    check_etag(&at(7), etag(&at(7)).trim_end_matches('=')).unwrap();
    for stale in [etag(&at(6)), "ACAB".to_owned(), "x".to_owned()] {
        let fault = check_etag(&at(7), &stale).unwrap_err();
        assert_eq!(fault.code, Code::Aborted);
        assert!(fault.message.starts_with("There were concurrent policy changes."), "{}", fault.message);
    }
}

proptest! {
    #[test]
    fn etags_differ_for_different_revisions_and_read_alike_in_both_alphabets(a in 1u64..1 << 47, b in 1u64..1 << 47) {
        let of = |revision| etag(&Policy { revision, ..Policy::default() });
        prop_assert_eq!(of(a) == of(b), a == b);
        let bytes = identity::base64::decode(identity::base64::Form::Standard, &of(a)).unwrap();
        prop_assert_eq!((bytes.len(), bytes[0]), (8, 7));
        prop_assert!(!of(a).contains(['+', '/']));
    }

    #[test]
    fn a_member_that_parses_is_written_as_it_will_be_read(text in ".{0,40}") {
        if let Ok(member) = text.parse::<Member>() {
            prop_assert_eq!(member.to_string().parse::<Member>(), Ok(member));
        }
    }
}

#[test]
fn every_role_can_be_found_under_its_own_name() {
    assert!(Role::all().count() > 50);
    assert!(Role::all().all(|role| Role::find(role.name) == Some(role)));
}
