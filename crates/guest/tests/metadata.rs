//! What stock clients find at 169.254.169.254, and what nobody can find there. Source of the forms: the metadata server
//! of Compute Engine and of Cloud Run.

#![allow(clippy::unwrap_used)]

mod scene;

use std::{sync::Arc, time::Duration};

use model::{
    limits::METADATA_CONNECTIONS_PER_PEER_MAX,
    planned::guest::{GuestItem, GuestKey, Machine, MintRefusal, Sockets, ToGuest, Want},
};
use proptest::prelude::*;
use scene::{CONTAINER, CONTAINER_ACCOUNT, Minting, NOBODY, Scene, VM, VM_ACCOUNT, container, seat, vm};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATHS: &str = "(/[a-z%0-9.+-]{0,8}){0,8}";

proptest! {
    #[test]
    fn no_request_line_makes_it_panic_or_find_a_foreign_account(path in PATHS, query in "[a-z_&=%0-9+.]{0,30}") {
        let uri = format!("/computeMetadata/v1/instance/service-accounts{path}?{query}");
        let request = http::Request::get(uri).header("metadata-flavor", "Google").body(());
        if let Ok(request) = request {
            let step = guest::metadata::consider(&request.into_parts().0, Some(&vm()));
            let shown = format!("{step:?}");
            prop_assert!(!shown.contains(CONTAINER_ACCOUNT));
        }
    }
}

const TOKEN: &str = "/computeMetadata/v1/instance/service-accounts/default/token";
const IDENTITY: &str = "/computeMetadata/v1/instance/service-accounts/default/identity";

#[tokio::test]
async fn the_probes_of_stock_clients_find_a_metadata_server() {
    let scene = Scene::open().await;
    // Go and Python look at the root for the header in the answer; Go sends none in the request.
    for headers in ["", "Metadata-Flavor: Google\r\n"] {
        let root = scene.get_with(VM, "/", headers).await;
        assert_eq!(root.said(), (200, "computeMetadata/\n"));
        assert_eq!(root.header("metadata-flavor"), Some("Google"));
    }
    // Node asks for a directory without its slash and needs the redirect to carry the header.
    let redirect = scene.get(VM, "/computeMetadata/v1/instance?recursive=true").await;
    assert_eq!(redirect.said(), (301, "/computeMetadata/v1/instance/\n"));
    let want = "http://metadata.google.internal/computeMetadata/v1/instance/?recursive=true";
    assert_eq!((redirect.header("location"), redirect.header("metadata-flavor")), (Some(want), Some("Google")));
    // gcloud takes digits only.
    let number = scene.get(VM, "/computeMetadata/v1/project/numeric-project-id").await;
    assert_eq!(number.said(), (200, "123456789012"));
    // Python insists on the content types.
    let account = scene.get(VM, "/computeMetadata/v1/instance/service-accounts/default/?recursive=true").await;
    assert_eq!(account.header("content-type"), Some("application/json"));
    let scopes = ["https://www.googleapis.com/auth/cloud-platform"];
    let want = json!({ "aliases": ["default"], "email": VM_ACCOUNT, "scopes": scopes });
    assert_eq!(serde_json::from_str::<Value>(&account.body).unwrap(), want);
}

#[tokio::test]
async fn a_vm_reads_its_own_tree() {
    let scene = Scene::open().await;
    for (path, want) in [
        ("", "instance/\nproject/\nuniverse/\n"),
        ("project/", "attributes/\nnumeric-project-id\nproject-id\n"),
        ("project/project-id", "consumer-1"),
        ("project/attributes/ssh-keys", "ada:ssh-ed25519 AAAA"),
        ("instance/id", "9007199254740993"),
        ("instance/zone", "projects/123456789012/zones/asia-northeast1-b"),
        ("instance/machine-type", "projects/123456789012/machineTypes/e2-micro"),
        ("instance/image", "projects/debian-cloud/global/images/debian-12"),
        ("instance/attributes/", "startup-script\n"),
        ("instance/attributes/startup-script", "echo hi"),
        ("instance/tags", r#"["ssh","web"]"#),
        ("instance/tags?alt=text", "ssh\nweb\n"),
        ("instance/name?alt=json", r#""test-vm""#),
        ("instance/id?alt=json", "9007199254740993"),
        ("instance/network-interfaces/", "0/\n"),
        ("instance/network-interfaces/0/ip", "127.0.0.2"),
        ("instance/network-interfaces/0/network", "projects/123456789012/networks/consumer-vpc"),
        ("instance/network-interfaces/0/dns-servers", "169.254.169.254\n"),
        ("instance/service-accounts/", "123456789012-compute@developer.gserviceaccount.com/\ndefault/\n"),
        ("instance/service-accounts/default/", "aliases\nemail\nidentity\nscopes\ntoken\n"),
        ("instance/service-accounts/default/email", VM_ACCOUNT),
        ("instance/service-accounts/123456789012-compute%40developer.gserviceaccount.com/email", VM_ACCOUNT),
        ("instance/service-accounts/default/scopes", "https://www.googleapis.com/auth/cloud-platform\n"),
        ("universe/universe-domain", "googleapis.com"),
        (
            "instance/scheduling/?recursive=true&alt=text",
            "automatic-restart TRUE\non-host-maintenance MIGRATE\npreemptible FALSE\n",
        ),
    ] {
        let reply = scene.get(VM, &format!("/computeMetadata/v1/{path}")).await;
        assert_eq!(reply.said(), (200, want), "{path}");
        assert_eq!(reply.header("server"), Some("Metadata Server for VM"));
        let etag = reply.header("etag").unwrap();
        assert!(etag.len() == 16 && etag.bytes().all(|b| b.is_ascii_hexdigit()), "{path}: {etag}");
    }
}

#[tokio::test]
async fn everything_at_once_is_strict_json_without_a_token() {
    let scene = Scene::open().await;
    let reply = scene.get(VM, "/computeMetadata/v1/?recursive=true&alt=json").await;
    let all: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(all["project"]["numericProjectId"], 123456789012u64);
    assert_eq!(all["instance"]["id"], 9_007_199_254_740_993u64);
    assert_eq!(all["instance"]["attributes"]["startup-script"], "echo hi", "keys of users stay as they are");
    assert_eq!(all["instance"]["networkInterfaces"][0]["mtu"], 1460);
    assert_eq!(all["instance"]["serviceAccounts"]["default"]["email"], VM_ACCOUNT);
    assert!(!reply.body.contains("token") && !reply.body.contains("identity"));
    assert!(scene.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_container_reads_the_smaller_tree_of_cloud_run() {
    let scene = Scene::open().await;
    for (path, want) in [
        ("instance/", "id\nregion\nservice-accounts/\nzone\n"),
        ("instance/region", "projects/210987654321/regions/asia-northeast1"),
        ("instance/zone", "projects/210987654321/zones/asia-northeast1-1"),
        ("project/", "numeric-project-id\nproject-id\n"),
        ("instance/service-accounts/default/email", CONTAINER_ACCOUNT),
    ] {
        let reply = scene.get(CONTAINER, &format!("/computeMetadata/v1/{path}")).await;
        assert_eq!(reply.said(), (200, want), "{path}");
        assert_eq!((reply.header("server"), reply.header("etag")), (Some("Metadata Server for Serverless"), None));
    }
    assert_eq!(scene.get(CONTAINER, "/computeMetadata/v1/instance/name").await.status(), 404);
}

#[tokio::test]
async fn what_breaks_the_rules_is_refused() {
    let scene = Scene::open().await;
    let google = "Metadata-Flavor: Google\r\n";
    let v1 = "/computeMetadata/v1";
    for (path, headers, status) in [
        (format!("{v1}/instance/id"), "", 403),
        (format!("{v1}/nothing"), "", 403),
        ("/computeMetadata".to_owned(), "", 403),
        (format!("{v1}/instance/id"), "Metadata-Flavor: google\r\n", 403),
        (format!("{v1}/instance/id"), "Metadata-Flavor: Goo\r\nX-Other: Google\r\n", 403),
        (format!("{v1}/instance/id"), "X-Google-Metadata-Request: True\r\n", 200),
        (format!("{v1}/instance/id"), "Metadata-Flavor: Google\r\nX-Forwarded-For: 1.2.3.4\r\n", 403),
        ("/".to_owned(), "X-Forwarded-For:\r\n", 403),
        ("/".to_owned(), "x-forwarded-for: 127.0.0.3\r\n", 403),
        ("/favicon.ico".to_owned(), google, 404),
        ("/favicon.ico".to_owned(), "", 404),
        (format!("{v1}/nothing"), google, 404),
        (format!("{v1}/instance/id/"), google, 404),
        (format!("{TOKEN}/"), google, 404),
        (format!("{v1}/instance/id/more"), google, 404),
        (format!("{v1}/instance/%zz"), google, 404),
        (format!("{v1}/instance/?alt=json"), google, 400),
        (format!("{v1}/instance/?wait_for_change=true"), google, 400),
        (format!("{v1}/instance/id?alt=xml"), google, 400),
        (format!("{v1}/instance/id?timeout_sec=-1"), google, 400),
        (format!("{v1}/instance/id?x=%"), google, 400),
        (format!("{v1}/instance/guest-attributes/a/b"), google, 403),
        (IDENTITY.to_owned(), google, 400),
        (format!("{IDENTITY}?audience="), google, 400),
        (format!("{IDENTITY}?audience=a&format=other"), google, 400),
        (format!("{v1}/instance/service-accounts/other@x.y/token"), google, 404),
    ] {
        let reply = scene.get_with(VM, &path, headers).await;
        assert_eq!(reply.status(), status, "{path} {headers}");
        assert_eq!(reply.header("metadata-flavor"), Some("Google"), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let request = format!("{method} {TOKEN} HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\n{google}\r\n");
        assert_eq!(scene.raw(VM, &request).await.status(), 405, "{method}");
    }
    assert!(scene.asked.lock().unwrap().is_empty(), "a refused request must not reach control");
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let scene = Scene::open().await;
    let path = "/computeMetadata/v1/instance/name";
    let head = format!("HEAD {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\nMetadata-Flavor: Google\r\n\r\n");
    let reply = scene.raw(VM, &head).await;
    assert_eq!((reply.said(), reply.header("content-length")), ((200, ""), Some("7")));
}

#[tokio::test]
async fn the_refusal_pages_say_what_clients_show() {
    let scene = Scene::open().await;
    let page = scene.get_with(VM, "/computeMetadata/v1/a", "").await;
    assert!(page.body.contains("<title>Error 403 (Forbidden)!!1</title>"), "{}", page.body);
    assert!(page.body.contains("Missing Metadata-Flavor:Google header."));
    let page = scene.get(VM, "/computeMetadata/v1/no&thing").await;
    assert!(page.body.contains("<code>/computeMetadata/v1/no&amp;thing</code> was not found"), "{}", page.body);
    let identity = scene.get(VM, IDENTITY).await;
    assert_eq!(identity.said(), (400, "non-empty audience parameter required"));
    assert_eq!(identity.header("content-type"), Some("text/html"));
}

#[tokio::test]
async fn an_access_token_comes_as_json_and_again_while_it_is_good() {
    let scene = Scene::open().await;
    let reply = scene.get(VM, TOKEN).await;
    assert_eq!((reply.status(), reply.header("content-type")), (200, Some("application/json")));
    let token: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(token["token_type"], "Bearer");
    assert!(token["expires_in"].as_u64().unwrap() > 3500);
    assert!(token["access_token"].as_str().unwrap().starts_with("127.0.0.2 AccessToken"));
    let again: Value = serde_json::from_str(&scene.get(VM, TOKEN).await.body).unwrap();
    assert_eq!(again["access_token"], token["access_token"]);
    assert_eq!(scene.asked.lock().unwrap().len(), 1, "the second comes from memory");
}

#[tokio::test]
async fn a_token_with_less_than_five_minutes_left_is_not_handed_out_again() {
    let scene = Scene::open().await;
    *scene.minting.lock().unwrap() = Minting::Valid(299);
    let first = scene.get(VM, TOKEN).await;
    assert_ne!(scene.get(VM, TOKEN).await.body, first.body);
    assert_eq!(scene.asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn an_id_token_is_for_the_audience_to_the_letter() {
    let scene = Scene::open().await;
    for (from, query, audience, full) in [
        (VM, "audience=https://hello-abc-an.a.run.app", "https://hello-abc-an.a.run.app", false),
        (VM, "audience=https%3A%2F%2Fx.y%2F&format=full", "https://x.y/", true),
        (VM, "format=standard&licenses=TRUE&audience=a+b%2Bc", "a b+c", false),
        (
            CONTAINER,
            "audience=32555940559.apps.googleusercontent.com&format=full",
            "32555940559.apps.googleusercontent.com",
            false,
        ),
    ] {
        let reply = scene.get(from, &format!("{IDENTITY}?{query}")).await;
        assert_eq!((reply.status(), reply.header("content-type")), (200, Some("text/html")), "{query}");
        let want = Want::IdToken { audience: audience.to_owned(), full };
        assert_eq!(scene.asked.lock().unwrap().last(), Some(&(seat(from), want)), "{query}");
        assert!(reply.body.starts_with(&from.to_string()) && !reply.body.ends_with('\n'), "{}", reply.body);
    }
}

#[tokio::test]
async fn a_vm_cannot_widen_its_scopes_and_a_container_may_choose() {
    let scene = Scene::open().await;
    for (from, scopes) in [(VM, vec![]), (CONTAINER, vec!["a".to_owned(), "b".to_owned()])] {
        scene.get(from, &format!("{TOKEN}?scopes=b,a,b")).await;
        assert_eq!(scene.asked.lock().unwrap().last(), Some(&(seat(from), Want::AccessToken { scopes })));
    }
    let many: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
    assert_eq!(scene.get(CONTAINER, &format!("{TOKEN}?scopes={}", many.join(","))).await.status(), 400);
}

#[tokio::test]
async fn nothing_in_a_request_makes_it_anothers() {
    let scene = Scene::open().await;
    let other = format!("/computeMetadata/v1/instance/service-accounts/{CONTAINER_ACCOUNT}");
    // Paths and headers by which the VM at .2 tries to be the container at .3.
    for path in [
        format!("{other}/token"),
        format!("{other}/identity?audience=a"),
        format!("{other}/email"),
        format!("{TOKEN}/../../{CONTAINER_ACCOUNT}/token"),
        "//127.0.0.3/computeMetadata/v1/instance/service-accounts/default/token".to_owned(),
        TOKEN.replace("/v1/", "/v1/../127.0.0.3/"),
        TOKEN.replace('/', "%2f"),
    ] {
        let reply = scene.get(VM, &path).await;
        assert!([400, 404].contains(&reply.status()), "{path}: {reply:?}");
        assert!(!reply.body.contains("robot@") || reply.status() == 404, "{path}");
    }
    for headers in [
        "Forwarded: for=127.0.0.3\r\n",
        "X-Real-IP: 127.0.0.3\r\n",
        "X-Client-IP: 127.0.0.3\r\n",
        "True-Client-IP: 127.0.0.3\r\n",
        "X-Forwarded-Host: 127.0.0.3\r\n",
        "X-Goog-Instance: 127.0.0.3\r\n",
        "Via: 1.1 127.0.0.3\r\n",
        "X-Tombolo-Workload: 127.0.0.3\r\n",
        "X-Google-Metadata-Request: True\r\nX-Original-Forwarded-For: 127.0.0.3\r\n",
    ] {
        let headers = format!("Metadata-Flavor: Google\r\n{headers}");
        let email = scene.get_with(VM, "/computeMetadata/v1/instance/service-accounts/default/email", &headers).await;
        assert_eq!(email.said(), (200, VM_ACCOUNT), "{headers}");
        let query = format!("{TOKEN}?seat=127.0.0.3&address=127.0.0.3&account={CONTAINER_ACCOUNT}");
        assert!(scene.get_with(VM, &query, &headers).await.body.contains("127.0.0.2 AccessToken"), "{headers}");
    }
    // As one talks to a proxy: the address in the request line is no address to us.
    let line = format!("GET http://127.0.0.3{TOKEN} HTTP/1.1\r\nHost: 127.0.0.3\r\n");
    let proxied = format!("{line}Connection: close\r\nMetadata-Flavor: Google\r\n\r\n");
    assert!(scene.raw(VM, &proxied).await.body.contains("127.0.0.2 AccessToken"));
    let asked = scene.asked.lock().unwrap();
    assert!(asked.iter().all(|(seat, _)| seat.address == VM), "{asked:?}");
}

#[tokio::test]
async fn a_seat_without_a_workload_or_account_gets_nothing() {
    let mut scene = Scene::open().await;
    assert_eq!(scene.get(NOBODY, TOKEN).await.status(), 503);
    assert_eq!(scene.get(NOBODY, "/").await.status(), 200);
    let mut nameless = vm();
    nameless.account = None;
    scene.tell(ToGuest::Set(GuestItem::Workload(seat(VM), Box::new(nameless)))).await;
    scene.settled().await;
    assert_eq!(scene.get(VM, "/computeMetadata/v1/instance/service-accounts/").await.said(), (200, ""));
    assert_eq!(scene.get(VM, TOKEN).await.status(), 404);
    assert!(scene.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_successor_in_the_same_seat_inherits_no_token() {
    let mut scene = Scene::open().await;
    scene.get(VM, TOKEN).await;
    let mut successor = vm();
    if let Machine::Vm { id, .. } = &mut successor.machine {
        *id = 7;
    }
    scene.tell(ToGuest::Set(GuestItem::Workload(seat(VM), Box::new(successor)))).await;
    scene.settled().await;
    scene.get(VM, TOKEN).await;
    assert_eq!(scene.asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn refusals_of_control_reach_the_client_in_the_servers_words() {
    let scene = Scene::open().await;
    *scene.minting.lock().unwrap() = Minting::Refused(|| MintRefusal::Unusable);
    let reply = scene.get(CONTAINER, &format!("{TOKEN}?scopes=a")).await;
    assert_eq!(reply.said(), (500, format!("Could not fetch URI {TOKEN}?scopes=a\n").as_str()));
    *scene.minting.lock().unwrap() = Minting::Refused(|| MintRefusal::NoAccount);
    assert_eq!(scene.get(CONTAINER, TOKEN).await.status(), 404);
}

#[tokio::test]
async fn while_control_is_away_everything_goes_on_but_minting() {
    let mut scene = Scene::open().await;
    let before = scene.get(VM, TOKEN).await;
    assert_eq!(before.status(), 200);
    scene.kill_control().await;
    assert_eq!(scene.get(CONTAINER, TOKEN).await.status(), 503);
    assert_eq!(scene.get(VM, TOKEN).await.status(), 200, "this one was minted before");
    assert_eq!(scene.get(VM, "/computeMetadata/v1/instance/name").await.said(), (200, "test-vm"));
    scene.start_control().await;
    scene.tell(ToGuest::Set(GuestItem::Workload(seat(CONTAINER), Box::new(container())))).await;
    scene.settled().await;
    assert_eq!(scene.get(CONTAINER, TOKEN).await.status(), 200);
    assert_eq!(scene.get(VM, "/computeMetadata/v1/instance/name").await.status(), 200, "not yet complete");
    scene.tell(ToGuest::Complete).await;
    scene.settled().await;
    assert_eq!(scene.get(VM, "/computeMetadata/v1/instance/name").await.status(), 503, "control no longer knows it");
}

#[tokio::test]
async fn who_waits_for_a_token_learns_at_once_that_control_died() {
    let mut scene = Scene::open().await;
    *scene.minting.lock().unwrap() = Minting::Silent;
    let mut stream = scene.stream(VM).await;
    let request = format!("GET {TOKEN} HTTP/1.1\r\nHost: m\r\nConnection: close\r\nMetadata-Flavor: Google\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    while scene.asked.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene.kill_control().await;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503"), "{reply}");
}

#[tokio::test]
async fn a_change_wakes_who_waits_for_it_and_nobody_else() {
    let mut scene = Scene::open().await;
    let path = "/computeMetadata/v1/instance/attributes/?recursive=true";
    let etag = scene.get(VM, path).await.header("etag").unwrap().to_owned();
    let scene_dir = scene.http;
    let wait = |path: String| async move {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((VM, 0).into()).unwrap();
        let mut stream = socket.connect(scene_dir).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\nMetadata-Flavor: Google\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    };
    let attributes = tokio::spawn(wait(format!("{path}&wait_for_change=true&last_etag={etag}")));
    let name = tokio::spawn(wait("/computeMetadata/v1/instance/name?wait_for_change=true".to_owned()));
    let mut changed = vm();
    if let Machine::Vm { attributes, .. } = &mut changed.machine {
        attributes.insert("enable-oslogin".into(), "TRUE".into());
    }
    scene.tell(ToGuest::Set(GuestItem::Workload(seat(VM), Box::new(changed)))).await;
    let reply = attributes.await.unwrap();
    assert!(reply.contains(r#"{"enable-oslogin":"TRUE","startup-script":"echo hi"}"#), "{reply}");
    assert!(!name.is_finished(), "its value is the same");
    scene.tell(ToGuest::Unset(GuestKey::Workload(seat(VM)))).await;
    assert!(name.await.unwrap().starts_with("HTTP/1.1 503"), "the workload has left");
}

#[tokio::test]
async fn who_knows_an_old_value_or_waits_long_enough_is_answered() {
    let scene = Scene::open().await;
    let name = "/computeMetadata/v1/instance/name?wait_for_change=true";
    assert_eq!(scene.get(VM, &format!("{name}&last_etag=0")).await.said(), (200, "test-vm"));
    assert_eq!(scene.get(VM, &format!("{name}&timeout_sec=0")).await.said(), (200, "test-vm"));
    assert_eq!(scene.get(VM, &format!("{name}&timeout_sec=1")).await.said(), (200, "test-vm"));
}

#[tokio::test]
async fn one_workload_cannot_take_all_connections() {
    let scene = Arc::new(Scene::open().await);
    let mut held = Vec::new();
    for _ in 0..METADATA_CONNECTIONS_PER_PEER_MAX {
        let mut stream = scene.stream(VM).await;
        // An answer shows that the connection has its place.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'H');
        held.push(stream);
    }
    assert_eq!(scene.get(VM, "/").await.status(), 0, "closed without an answer");
    assert_eq!(scene.get(CONTAINER, "/").await.status(), 200, "a neighbour is served");
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let scene = Scene::open().await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: m\r\n\r\n", "a".repeat(20_000));
    assert!([414, 431].contains(&scene.raw(VM, &long).await.status()));
    let many = format!("GET / HTTP/1.1\r\nHost: m\r\n{}\r\n", "X: y\r\n".repeat(70));
    assert_eq!(scene.raw(VM, &many).await.status(), 431);
}

#[tokio::test]
async fn sockets_of_a_host_that_came_back_replace_the_old_ones() {
    let mut scene = Scene::open().await;
    assert_eq!(scene.get(VM, "/").await.status(), 200);
    scene.start_host().await;
    assert_eq!(scene.get(VM, "/").await.status(), 200);
    scene.tell_host(&Sockets::Withdraw(scene::REALM));
    while tokio::net::TcpStream::connect(scene.http).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn after_a_start_requests_wait_until_control_has_said_everything() {
    let mut scene = Scene::just_started();
    scene.start_host().await;
    let [mut known, mut nobody] = [scene.stream(VM).await, scene.stream(NOBODY).await];
    let head = "GET /computeMetadata/v1/instance/name HTTP/1.1\r\nHost: m\r\nMetadata-Flavor: Google\r\n\r\n";
    for stream in [&mut known, &mut nobody] {
        stream.write_all(head.as_bytes()).await.unwrap();
    }
    let early = tokio::time::timeout(Duration::from_millis(200), known.read_u8()).await;
    assert!(early.is_err(), "nothing is said before it is known: {early:?}");
    scene.start_control().await;
    scene.tell_everything().await;
    for (stream, status) in [(&mut known, "HTTP/1.1 200"), (&mut nobody, "HTTP/1.1 503")] {
        let mut said = [0; 12];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(std::str::from_utf8(&said).unwrap(), status);
    }
}
