//! Who one is, by every credential that people use: key files, tokens in files, consent, impersonation.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
};

use acceptance::{Answer, Cloud, Home, Said, installed, journey::client};
use identity::base64::{self, Form};
use identity::keys::SigningKey;
use serde_json::{Value, json};
use tombolo::journey;

const P: &str = "who-is-who";
const ADA: &str = "ada@example.com";
const CRM: &str = "cloudresourcemanager.googleapis.com";
const IAM: &str = "iam.googleapis.com";
const TOKENS: &str = "oauth2.googleapis.com";
const CREDENTIALS: &str = "iamcredentials.googleapis.com";
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const AUDIENCE: &str = "https://hello.example";

/// A project with two service accounts: one has a key, the other can only be spoken for. Neither may do anything yet.
struct Scene {
    cloud: Cloud,
    home: Home,
    /// The key file, as it is downloaded.
    key: Value,
    robot: String,
    puppet: String,
}

impl Scene {
    fn up() -> Scene {
        let cloud = Cloud::up();
        let client = client(&cloud);
        journey::create_project(&client, P).unwrap();
        journey::enable(&client, P, &["compute.googleapis.com"]).unwrap();
        let make = |path: &str, body: Value| {
            client.ok("POST", IAM, &format!("/v1/projects/{P}/serviceAccounts{path}"), Some(&body)).unwrap()
        };
        let [robot, puppet] = ["robot-account", "puppet-account"]
            .map(|id| make("", json!({"accountId": id}))["email"].as_str().expect("an address").to_owned());
        let key = make(&format!("/{robot}/keys"), json!({}));
        let file = base64::decode(Form::Standard, key["privateKeyData"].as_str().expect("a file")).expect("base64");
        let home = Home::of(&cloud);
        std::fs::write(home.join("key.json"), &file).unwrap();
        Scene { cloud, home, key: serde_json::from_slice(&file).unwrap(), robot, puppet }
    }

    /// Gives a role on the project.
    fn grant(&self, member: &str, role: &str) {
        self.bind(CRM, &format!("/v1/projects/{P}"), member, role);
    }

    fn bind(&self, host: &str, resource: &str, member: &str, role: &str) {
        let binding = json!({"role": role, "members": [member]});
        self.cloud.change_policy(host, resource, |bindings| bindings.push(binding));
    }

    fn as_puppet(&self, token: &str, verb: &str, body: Value) -> Answer {
        let path = format!("/v1/projects/-/serviceAccounts/{}:{verb}", self.puppet);
        self.cloud.call_as(Some(token), "POST", CREDENTIALS, &path, Some(body))
    }

    /// What the project answers to a token.
    fn project(&self, token: &str) -> u16 {
        self.cloud.call_as(Some(token), "GET", CRM, &format!("/v1/projects/{P}"), None).status
    }

    fn tokens(&self, body: Value) -> Answer {
        self.cloud.call_as(None, "POST", TOKENS, "/token", Some(body))
    }

    /// A grant by the key file, for what the claims ask.
    fn by_key(&self, asks: (&str, &str)) -> Answer {
        let pem: String =
            self.key["private_key"].as_str().unwrap().lines().filter(|line| !line.starts_with("---")).collect();
        let key = SigningKey::from_pkcs8(&base64::decode(Form::Standard, &pem).unwrap()).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let mut claims = json!({"iss": self.robot, "aud": self.key["token_uri"], "iat": now, "exp": now + 3_600});
        claims[asks.0] = json!(asks.1);
        self.tokens(json!({"grant_type": JWT_BEARER, "assertion": key.sign_jwt(&claims.to_string())}))
    }

    /// A shell without the operator's token, as whoever logs in has it.
    fn sh(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("HOME", self.home.as_os_str()).envs(self.cloud.env());
        command.env("CLOUDSDK_CONFIG", self.home.join("gcloud"));
        for name in ["CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", "CLOUDSDK_CORE_ACCOUNT", "NO_PROXY", "no_proxy"] {
            command.env_remove(name);
        }
        command
    }

    #[track_caller]
    fn gcloud(&self, args: &str) -> Said {
        Said::of(&self.sh(&format!("gcloud {args}")).stdin(Stdio::null()).output().unwrap())
    }

    /// A login that shows an address and waits for a code, which the operator gives.
    #[track_caller]
    fn login(&self, args: &str) -> String {
        let script = format!("gcloud {args} --no-launch-browser 2>&1");
        let mut login = self.sh(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(login.stdout.take().unwrap());
        let mut url = String::new();
        while !url.trim_start().starts_with("https://accounts.google.com/") {
            url.clear();
            assert_ne!(said.read_line(&mut url).unwrap(), 0, "an address is shown");
        }
        let code = self.cloud.tombolo("consent", &[ADA, url.trim()]).ok();
        writeln!(login.stdin.take().unwrap(), "{code}").unwrap();
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert!(login.wait().unwrap().success(), "{rest}");
        rest
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).expect("three parts");
    serde_json::from_slice(&base64::decode(Form::Url, part).expect("base64url")).expect("JSON")
}

#[test]
fn a_key_file_a_spoken_for_account_and_a_users_consent_each_open_what_their_roles_open() {
    let scene = Scene::up();
    // The key file.
    let granted = scene.by_key(("scope", "https://www.googleapis.com/auth/cloud-platform"));
    assert_eq!(granted.status, 200, "{}", granted.body);
    let robot = text(&granted.body["access_token"]).to_owned();
    assert_eq!(scene.project(&robot), 403, "no role yet");
    scene.grant(&format!("serviceAccount:{}", scene.robot), "roles/viewer");
    assert_eq!(scene.project(&robot), 200);
    let id = scene.by_key(("target_audience", AUDIENCE));
    let shown = claims(text(&id.body["id_token"]));
    assert_eq!((&shown["aud"], &shown["email"]), (&json!(AUDIENCE), &json!(scene.robot)));

    // An account that is spoken for, once it may be.
    let ask = || json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"], "lifetime": "600s"});
    assert_eq!(scene.as_puppet(&robot, "generateAccessToken", ask()).status, 403);
    let account = format!("/v1/projects/{P}/serviceAccounts/{}", scene.puppet);
    let member = format!("serviceAccount:{}", scene.robot);
    scene.bind(IAM, &account, &member, "roles/iam.serviceAccountTokenCreator");
    let granted = scene.as_puppet(&robot, "generateAccessToken", ask());
    assert_eq!(granted.status, 200, "{}", granted.body);
    let puppet = text(&granted.body["accessToken"]).to_owned();
    assert_eq!(scene.project(&puppet), 403, "it may what it may itself, not what its speaker may");
    let id = scene.as_puppet(&robot, "generateIdToken", json!({"audience": AUDIENCE, "includeEmail": true}));
    assert_eq!(claims(text(&id.body["token"]))["email"], json!(scene.puppet));

    // A user, by the operator's word. The challenge is that of RFC 7636, appendix B.
    let url = "https://accounts.google.com/o/oauth2/auth?response_type=code&client_id=my-client\
               &redirect_uri=http%3A%2F%2Flocalhost%3A8085%2F&scope=openid+https%3A%2F%2Fwww.googleapis.com%2Fauth\
               %2Fcloud-platform&state=s&code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM\
               &code_challenge_method=S256&access_type=offline";
    let consented = scene.cloud.tombolo("consent", &[ADA, url]);
    assert!(consented.err.contains("http://localhost:8085/?"), "{consented:?}");
    let code = consented.ok();
    let exchange = |verifier: &str, code: &str| {
        scene.tokens(json!({
            "grant_type": "authorization_code", "code": code, "client_id": "my-client", "client_secret": "known to all",
            "redirect_uri": "http://localhost:8085/", "code_verifier": verifier,
        }))
    };
    let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let granted = exchange(verifier, &code);
    assert_eq!(granted.status, 200, "{}", granted.body);
    assert_eq!(exchange(verifier, &code).status, 400, "a code is good once");
    let (ada, refresh) =
        (text(&granted.body["access_token"]).to_owned(), text(&granted.body["refresh_token"]).to_owned());
    assert_eq!(claims(text(&granted.body["id_token"]))["email"], ADA);
    assert_eq!(scene.project(&ada), 403);
    scene.grant(&format!("user:{ADA}"), "roles/viewer");
    assert_eq!(scene.project(&ada), 200);
    let again = json!({"grant_type": "refresh_token", "client_id": "my-client", "refresh_token": refresh});
    let refreshed = scene.tokens(again.clone());
    assert_eq!(scene.project(text(&refreshed.body["access_token"])), 200);
    let revoked = scene.cloud.call_as(None, "POST", TOKENS, &format!("/revoke?token={refresh}"), None);
    assert_eq!((revoked.status, scene.tokens(again).status), (200, 400));
}

#[test]
fn gcloud_is_whom_it_was_told_to_be() {
    if !installed("gcloud", "credentials of gcloud") {
        return;
    }
    let scene = Scene::up();
    scene.grant(&format!("serviceAccount:{}", scene.robot), "roles/viewer");
    let describe = format!("projects describe {P} --format='value(projectId)'");
    let none = scene.gcloud(&describe);
    assert!(none.code == Some(1) && none.err.contains("You do not currently have an active account"), "{none:?}");

    // A key file.
    let key = scene.home.join("key.json").display().to_string();
    let said = scene.gcloud(&format!("auth activate-service-account --key-file={key}"));
    let activated = format!("Activated service account credentials for: [{}]", scene.robot);
    assert!(said.code == Some(0) && said.err.contains(&activated), "{said:?}");
    assert_eq!(scene.gcloud(&describe).ok(), P);
    let token = scene.gcloud(&format!("auth print-identity-token --audiences={AUDIENCE}")).ok();
    assert_eq!((&claims(&token)["aud"], &claims(&token)["email"]), (&json!(AUDIENCE), &json!(scene.robot)));

    // Another account's name, refused and allowed.
    let impersonate = format!("{describe} --impersonate-service-account={}", scene.puppet);
    let refused = scene.gcloud(&impersonate);
    assert!(refused.code == Some(1) && refused.err.contains("iam.serviceAccounts.getAccessToken"), "{refused:?}");
    let account = format!("/v1/projects/{P}/serviceAccounts/{}", scene.puppet);
    let member = format!("serviceAccount:{}", scene.robot);
    scene.bind(IAM, &account, &member, "roles/iam.serviceAccountTokenCreator");
    scene.grant(&format!("serviceAccount:{}", scene.puppet), "roles/viewer");
    assert_eq!(scene.gcloud(&impersonate).ok(), P);

    // A token in a file.
    let token = scene.gcloud("auth print-access-token").ok();
    std::fs::write(scene.home.join("token"), token).unwrap();
    let file = scene.home.join("token").display().to_string();
    assert_eq!(scene.gcloud(&format!("{describe} --access-token-file={file}")).ok(), P);

    // A user.
    let said = scene.login("auth login");
    assert!(said.contains(&format!("You are now logged in as [{ADA}]")), "{said}");
    assert_eq!(scene.gcloud(&describe).code, Some(1), "a user without a role");
    scene.grant(&format!("user:{ADA}"), "roles/viewer");
    assert_eq!(scene.gcloud(&describe).ok(), P);

    // Programs on this machine, by what the user has left them.
    scene.login("auth application-default login");
    let token = scene.gcloud("auth application-default print-access-token").ok();
    let info = scene.cloud.call_as(None, "GET", TOKENS, &format!("/tokeninfo?access_token={token}"), None);
    assert_eq!(info.body["email"], ADA, "{}", info.body);
    scene.gcloud(&format!("auth revoke {ADA}")).ok();
    let accounts = scene.gcloud("auth list --format='value(account)'").ok();
    assert_eq!(accounts, scene.robot);
}
