//! What the workload in a seat is given.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use super::*;
use crate::{
    ops::Txn,
    projects::{ADMIN_DEFAULT, Wanted},
    testing,
};

const START_S: i64 = 1_800_000_000;

struct Scene {
    control: Control,
    mint: Mint,
    clock: Arc<AtomicI64>,
    seat: Seat,
    account: String,
}

/// A cloud with a container of project `producer-1` that runs as the default account.
fn scene() -> Scene {
    let clock = Arc::new(AtomicI64::new(START_S * 1_000_000));
    let hand = clock.clone();
    let now = Arc::new(move || Timestamp(hand.load(Ordering::SeqCst)));
    let control = Control::open(Arc::new(store::Embedded::in_memory()), now).expect("an empty store");
    let mint = Mint::open(&control).expect("keys can be made");
    mint.tend(&control).expect("the first signing key");
    projects::bootstrap(&control, None).expect("the first principal");
    let admin = Caller::new(Principal::User { email: ADMIN_DEFAULT.into() }, vec![]);
    let wanted = Wanted { id: "producer-1".into(), display_name: None, parent: None, labels: Default::default() };
    projects::create(&control, &admin, &wanted).expect("a project");
    let (project, _) =
        projects::enable(&control, &admin, "producer-1", &["run.googleapis.com".into()]).expect("the API");
    let address = Ipv4Addr::new(169, 254, 64, 2);
    let account = project.compute_default_account();
    let scene = Scene { control, mint, clock, seat: Seat { realm: Realm::Fabric, address }, account };
    scene.sit();
    scene
}

impl Scene {
    fn commit(&self, change: Change) {
        let push = |_: &World, txn: &mut Txn| {
            txn.push(change.clone());
            Ok(())
        };
        self.control.commit(push).expect("the store takes it");
    }

    fn sit(&self) {
        let mut revision = testing::revision();
        revision.template.service_account = self.account.clone();
        let seat = testing::seat(&revision);
        self.commit(Change::Revision(Box::new(revision)));
        self.commit(Change::Seat(Box::new(seat)));
    }

    fn ask(&self, want: &Want) -> Result<Minted, MintRefusal> {
        self.mint.for_seat(&self.control.read(), self.seat, want, self.control.now())
    }

    fn pass_s(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }
}

fn access() -> Want {
    Want::AccessToken { scopes: vec![] }
}

fn id(audience: &str) -> Want {
    Want::IdToken { audience: audience.into(), full: false }
}

#[test]
fn a_container_speaks_as_its_account_and_for_the_audience_it_names() {
    let scene = scene();
    let minted = scene.ask(&access()).expect("a token");
    assert_eq!(minted.expires_in_s, 3_599);
    let world = scene.control.read();
    let now = scene.control.now();
    let caller =
        scene.mint.authenticate(&world, Some(&minted.token), "run.googleapis.com", now).expect("our own token");
    assert_eq!((caller.principal.email(), caller.scopes), (scene.account.as_str(), vec![CLOUD_PLATFORM.to_owned()]));
    let token = scene.ask(&id("https://hello.example")).expect("a token").token;
    let claims = identity::token::verify_id_token(&scene.mint.public(), &token, now).expect("a good signature");
    assert_eq!((claims.aud.as_str(), claims.email.as_deref()), ("https://hello.example", Some(scene.account.as_str())));
    assert_eq!(claims.azp.as_ref(), Some(&claims.sub));
    // An ID token says who calls a service; at an API it is no credential.
    let refused = scene.mint.authenticate(&world, Some(&token), "run.googleapis.com", now);
    assert_eq!(refused.map(|c| c.principal), Err(Refused::WrongType));
}

#[test]
fn a_token_is_handed_out_again_while_it_has_five_minutes_left() {
    let scene = scene();
    let first = scene.ask(&id("a")).expect("a token");
    scene.pass_s(3_299);
    let again = scene.ask(&id("a")).expect("a token");
    assert_eq!((&again.token, again.expires_in_s), (&first.token, 300));
    scene.pass_s(1);
    assert_ne!(scene.ask(&id("a")).expect("a token").token, first.token);
    assert_ne!(scene.ask(&id("b")).expect("a token").token, scene.ask(&id("a")).expect("a token").token);
}

#[test]
fn nothing_is_minted_for_an_empty_seat_a_disabled_account_or_without_the_agents_grant() {
    let scene = scene();
    let elsewhere = Seat { address: Ipv4Addr::new(169, 254, 64, 3), ..scene.seat };
    let nobody = scene.mint.for_seat(&scene.control.read(), elsewhere, &access(), scene.control.now());
    assert_eq!(nobody, Err(MintRefusal::NoAccount));
    let token = scene.ask(&access()).expect("a token").token;
    let account = scene.control.read().accounts[&scene.account].clone();
    scene.commit(Change::Account(Box::new(ServiceAccount { disabled: true, ..account.clone() })));
    // Also what is in the cache is not handed out, and what is out is not accepted.
    assert_eq!(scene.ask(&access()), Err(MintRefusal::Unusable));
    let used = scene.mint.verify_access(&scene.control.read(), &token, scene.control.now());
    assert_eq!(used, Err(Refused::AccountState));
    scene.commit(Change::Account(Box::new(account)));
    assert!(scene.ask(&access()).is_ok());
    scene.commit(Change::NoPolicy("projects/producer-1".into()));
    assert_eq!(scene.ask(&access()), Err(MintRefusal::Unusable));
}

#[test]
fn tokens_and_keys_outlive_a_restart_and_keys_take_turns() {
    let scene = scene();
    let token = scene.ask(&access()).expect("a token").token;
    let again = Mint::open(&scene.control).expect("the stored keys");
    assert_eq!(again.public(), scene.mint.public());
    assert!(again.verify_access(&scene.control.read(), &token, scene.control.now()).is_ok());
    assert!(!scene.mint.tend(&scene.control).expect("nothing to do"));
    scene.pass_s(13 * 86_400);
    assert!(scene.mint.tend(&scene.control).expect("a second key"));
    assert_eq!(scene.mint.public().len(), 2);
    assert_eq!(Mint::open(&scene.control).expect("the stored keys").public(), scene.mint.public());
    scene.pass_s(2 * 86_400);
    assert!(scene.mint.tend(&scene.control).expect("the first key has gone"));
    assert_eq!(scene.mint.public().len(), 1);
}

#[test]
fn private_keys_do_not_show() {
    let scene = scene();
    let world = format!("{:?}", *scene.control.read());
    let stored = scene.control.read().secrets.clone().expect("keys were made");
    assert!(!world.contains(&stored.access) && !world.contains(&stored.ring[0].pkcs8));
}

#[test]
fn the_operators_token_lasts_and_a_workloads_does_not() {
    let scene = scene();
    let operator = scene.mint.operator_token(ADMIN_DEFAULT, scene.control.now()).expect("a token");
    let workload = scene.ask(&access()).expect("a token").token;
    scene.pass_s(i64::try_from(Duration::from_secs(3_600).as_secs()).expect("an hour"));
    let world = scene.control.read();
    let now = scene.control.now();
    assert!(scene.mint.verify_access(&world, &operator, now).is_ok());
    assert_eq!(scene.mint.verify_access(&world, &workload, now), Err(Refused::Expired));
}

#[test]
fn a_new_cloud_gives_access_tokens_at_once_and_id_tokens_once_their_key_is_stored() {
    let now = || Timestamp::from_unix_s(START_S);
    let control =
        Arc::new(Control::open(Arc::new(store::Embedded::in_memory()), Arc::new(now)).expect("an empty store"));
    let mint = Arc::new(Mint::open(&control).expect("the key of access tokens"));
    let token = mint.operator_token(ADMIN_DEFAULT, now()).expect("a token");
    assert!(mint.verify_access(&control.read(), &token, now()).is_ok());
    assert!(mint.try_ring().is_none() && mint.public().is_empty(), "nothing is signed with a key that is not stored");
    let waiting = std::thread::spawn({
        let mint = mint.clone();
        move || mint.ring().map(|ring| ring.public())
    });
    mint.keep(&control).expect("a thread");
    let waited_for = waiting.join().expect("no panic").expect("the key comes in time");
    assert_eq!(Mint::open(&control).expect("the stored keys").public(), waited_for);
}
