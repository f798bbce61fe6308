//! Accounts, keys, policies and tokens.

use http::Method;
use identity::{
    access::AccessKey,
    base64::{self, Form},
    keys::SigningKey,
};
use serde_json::{Value, json};

use crate::scene::{START, Scene};

const IAM: &str = "https://iam.googleapis.com/v1/projects/producer-1/serviceAccounts";
const CREDENTIALS: &str = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts";
const TOKEN: &str = "https://oauth2.googleapis.com/token";
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const PROJECT: &str = "https://cloudresourcemanager.googleapis.com/v1/projects/producer-1";
const BOT: &str = "bot-account@producer-1.iam.gserviceaccount.com";

async fn with_bot() -> Scene {
    let scene = Scene::with_project().await;
    let body = json!({"accountId": "bot-account", "serviceAccount": {"displayName": "Bot"}});
    scene.post(IAM, body).await.ok();
    scene
}

/// A key of the bot and the id it has.
async fn bot_key(scene: &Scene) -> (SigningKey, String) {
    let made = scene.post(&format!("{IAM}/{BOT}/keys"), json!({})).await.ok();
    let file = base64::decode(Form::Standard, made["privateKeyData"].as_str().unwrap()).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(file["client_email"], BOT);
    let pem: String = file["private_key"].as_str().unwrap().lines().filter(|l| !l.starts_with("---")).collect();
    let key = SigningKey::from_pkcs8(&base64::decode(Form::Standard, &pem).unwrap()).unwrap();
    (key, made["name"].as_str().unwrap().rsplit('/').next().unwrap().to_owned())
}

fn assertion(key: &SigningKey, extra: Value) -> String {
    let mut claims = json!({"iss": BOT, "aud": TOKEN, "iat": START, "exp": START + 3_600});
    for (name, value) in extra.as_object().unwrap() {
        claims[name] = value.clone();
    }
    key.sign_jwt(&claims.to_string())
}

fn payload(jwt: &str) -> Value {
    serde_json::from_slice(&base64::decode(Form::Url, jwt.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn an_account_lives_through_its_verbs() {
    let scene = with_bot().await;
    let shown = scene.get(&format!("{IAM}/{BOT}")).await.ok();
    assert_eq!((shown["email"].as_str(), shown["uniqueId"].as_str().map(str::len)), (Some(BOT), Some(21)));
    // Under the wildcard and by its number it is the same account.
    let by_id =
        format!("https://iam.googleapis.com/v1/projects/-/serviceAccounts/{}", shown["uniqueId"].as_str().unwrap());
    assert_eq!(scene.get(&by_id).await.ok(), shown);
    let twice = scene.post(IAM, json!({"accountId": "bot-account"})).await;
    assert_eq!(twice.refused(409), "Service account bot-account already exists within project projects/producer-1.");
    let short = scene.post(IAM, json!({"accountId": "bot"})).await;
    assert_eq!(short.refused(400), "The account ID \"bot\" does not have a length between 6 and 30.");
    let patched = scene
        .patch(
            &format!("{IAM}/{BOT}"),
            json!({"serviceAccount": {"description": "d", "displayName": "x"}, "updateMask": "description"}),
        )
        .await
        .ok();
    assert_eq!((&patched["description"], &patched["displayName"]), (&json!("d"), &json!("Bot")));
    let absent = "nobody-here@producer-1.iam.gserviceaccount.com";
    assert_eq!(
        scene.get(&format!("{IAM}/{absent}")).await.refused(404),
        format!("Service account projects/producer-1/serviceAccounts/{absent} does not exist.")
    );
    let hidden = scene.get(&format!("https://iam.googleapis.com/v1/projects/-/serviceAccounts/{absent}")).await;
    assert_eq!(hidden.refused(403), "Permission 'iam.serviceAccounts.get' denied on resource (or it may not exist).");
    scene.delete(&format!("{IAM}/{BOT}")).await.ok();
    assert_eq!(scene.get(&format!("{IAM}/{BOT}")).await.status, 404);
}

#[tokio::test]
async fn a_key_file_opens_the_token_endpoint_until_the_key_or_the_account_is_off() {
    let scene = with_bot().await;
    let (key, kid) = bot_key(&scene).await;
    let scope = json!({"scope": "https://www.googleapis.com/auth/cloud-platform"});
    let grant = |extra: Value| vec![("grant_type", JWT_BEARER.to_owned()), ("assertion", assertion(&key, extra))];
    let ask = async |extra: Value| {
        let pairs = grant(extra);
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (*k, v.as_str())).collect();
        scene.form(TOKEN, &pairs).await
    };
    let token = ask(scope.clone()).await.ok()["access_token"].as_str().unwrap().to_owned();
    // The token is the account's: it may do what the account may, which is nothing yet.
    let denied = scene.call(Method::GET, PROJECT, Some(&token), None, "").await;
    assert_eq!(denied.refused(403), "The caller does not have permission");
    let id = ask(json!({"target_audience": "https://hello.example"})).await.ok();
    let claims = payload(id["id_token"].as_str().unwrap());
    assert_eq!(
        (&claims["aud"], &claims["email"], &claims["azp"]),
        (&json!("https://hello.example"), &json!(BOT), &json!(BOT))
    );
    assert_eq!(ask(json!({})).await.refused(400), "Invalid OAuth scope or ID token audience provided.");
    assert_eq!(ask(json!({"aud": "https://elsewhere", "scope": "x"})).await.status, 400);
    assert!(
        ask(json!({"exp": START + 9_000, "scope": "x"}))
            .await
            .refused(400)
            .starts_with("Invalid JWT: Token must be a short-lived")
    );
    assert_eq!(
        ask(json!({"iss": "ghost@producer-1.iam.gserviceaccount.com", "scope": "x"})).await.refused(400),
        "Invalid grant: account not found"
    );
    // A disabled account's token dies at once and comes back to life with it.
    scene.post(&format!("{IAM}/{BOT}:disable"), json!({})).await.ok();
    assert_eq!(scene.call(Method::GET, PROJECT, Some(&token), None, "").await.status, 401);
    assert_eq!(ask(scope.clone()).await.refused(401), "The OAuth client was disabled.");
    scene.post(&format!("{IAM}/{BOT}:enable"), json!({})).await.ok();
    assert_eq!(scene.call(Method::GET, PROJECT, Some(&token), None, "").await.status, 403);
    scene.post(&format!("{IAM}/{BOT}/keys/{kid}:disable"), json!({})).await.ok();
    assert_eq!(ask(scope.clone()).await.refused(400), "Invalid JWT Signature.");
    scene.delete(&format!("{IAM}/{BOT}/keys/{kid}")).await.ok();
    assert_eq!(scene.get(&format!("{IAM}/{BOT}/keys")).await.ok(), json!({}));
    assert_eq!(ask(scope).await.refused(400), "Invalid JWT Signature.");
}

#[tokio::test]
async fn a_self_signed_token_is_a_credential_at_the_api_it_names_only() {
    let scene = with_bot().await;
    let (key, _) = bot_key(&scene).await;
    let own = |aud: &str| assertion(&key, json!({"sub": BOT, "aud": aud}));
    let right = own("https://cloudresourcemanager.googleapis.com/");
    assert_eq!(scene.call(Method::GET, PROJECT, Some(&right), None, "").await.status, 403);
    let wrong = own("https://run.googleapis.com/");
    assert_eq!(scene.call(Method::GET, PROJECT, Some(&wrong), None, "").await.status, 401);
    let foreign = SigningKey::generate().unwrap().sign_jwt(&json!({"iss": BOT, "sub": BOT, "aud": "https://cloudresourcemanager.googleapis.com/", "iat": START, "exp": START + 60}).to_string());
    assert_eq!(scene.call(Method::GET, PROJECT, Some(&foreign), None, "").await.status, 401);
}

#[tokio::test]
async fn only_ten_keys_are_held_of_one_account() {
    let scene = with_bot().await;
    for _ in 0..10 {
        scene.post(&format!("{IAM}/{BOT}/keys"), json!({})).await.ok();
    }
    assert_eq!(scene.post(&format!("{IAM}/{BOT}/keys"), json!({})).await.refused(400), "Precondition check failed.");
    let listed = scene.get(&format!("{IAM}/{BOT}/keys")).await.ok();
    assert_eq!(listed["keys"].as_array().unwrap().len(), 10);
    assert!(!listed.to_string().contains("PRIVATE"), "a private key was kept");
}

#[tokio::test]
async fn missing_bad_and_narrow_credentials_are_told_apart() {
    let scene = Scene::with_project().await;
    let detail =
        |got: &crate::scene::Got| got.body["error"]["details"][0]["reason"].as_str().unwrap_or_default().to_owned();
    let missing = scene.call(Method::GET, PROJECT, None, None, "").await;
    assert_eq!((missing.status, detail(&missing).as_str()), (401, "CREDENTIALS_MISSING"));
    let garbage = scene.call(Method::GET, PROJECT, Some("ya29.nothing"), None, "").await;
    assert_eq!((garbage.status, detail(&garbage).as_str()), (401, "ACCESS_TOKEN_TYPE_UNSUPPORTED"));
    let claims = identity::access::AccessClaims {
        principal: model::iam::Principal::User { email: "admin@tombolo.local".into() },
        scopes: vec!["https://www.googleapis.com/auth/cloud-platform".into()],
        issued: scene.control.now(),
        expires: scene.control.now().plus(std::time::Duration::from_secs(3_600)),
    };
    let foreign = identity::access::mint_access(&AccessKey::generate(), &claims).unwrap();
    assert_eq!(scene.call(Method::GET, PROJECT, Some(&foreign), None, "").await.status, 401);
    let expired = scene.admin.clone();
    scene.advance_s(100 * 86_400);
    let got = scene.call(Method::GET, PROJECT, Some(&expired), None, "").await;
    assert_eq!((got.status, detail(&got).as_str()), (401, "ACCESS_TOKEN_EXPIRED"));
}

#[tokio::test]
async fn a_narrow_scope_reads_logs_and_nothing_else() {
    let scene = with_bot().await;
    let grant = json!({"policy": {"bindings": [{"role": "roles/owner", "members": ["user:admin@tombolo.local", format!("serviceAccount:{BOT}")]}]}});
    scene.post(&format!("{PROJECT}:setIamPolicy"), grant).await.ok();
    let (key, _) = bot_key(&scene).await;
    let narrow = assertion(&key, json!({"scope": "https://www.googleapis.com/auth/logging.read"}));
    let token = scene.form(TOKEN, &[("grant_type", JWT_BEARER), ("assertion", &narrow)]).await.ok();
    let token = token["access_token"].as_str().unwrap();
    let filter = "resource.type=nothing";
    let entries = json!({"resourceNames": ["projects/producer-1"], "filter": filter}).to_string();
    let read =
        scene.call(Method::POST, "https://logging.googleapis.com/v2/entries:list", Some(token), None, &entries).await;
    assert_eq!(read.ok(), json!({}));
    let other = scene.call(Method::GET, PROJECT, Some(token), None, "").await;
    assert_eq!(other.refused(403), "Request had insufficient authentication scopes.");
}

#[tokio::test]
async fn a_refresh_token_serves_until_it_is_revoked() {
    let scene = Scene::with_project().await;
    let refresh = scene.mint.refresh_token("Dev@Example.com", vec![], scene.control.now()).unwrap();
    assert!(refresh.starts_with("1//"));
    let pairs =
        [("grant_type", "refresh_token"), ("client_id", "c"), ("client_secret", "s"), ("refresh_token", &refresh)];
    let got = scene.form(TOKEN, &pairs).await.ok();
    assert_eq!(payload(got["id_token"].as_str().unwrap())["email"], "dev@example.com");
    let access = got["access_token"].as_str().unwrap();
    let info = scene.get(&format!("https://oauth2.googleapis.com/tokeninfo?access_token={access}")).await.ok();
    assert_eq!((&info["email"], &info["email_verified"]), (&json!("dev@example.com"), &json!("true")));
    // An access token is no refresh token, nor the other way round.
    let swapped = [("grant_type", "refresh_token"), ("refresh_token", access)];
    assert_eq!(scene.form(TOKEN, &swapped).await.status, 400);
    assert_eq!(scene.call(Method::GET, PROJECT, Some(&refresh), None, "").await.status, 401);
    assert_eq!(scene.form("https://oauth2.googleapis.com/revoke", &[("token", &refresh)]).await.ok(), json!({}));
    assert_eq!(scene.form(TOKEN, &pairs).await.refused(400), "Token has been expired or revoked.");
    assert_eq!(
        scene.form("https://oauth2.googleapis.com/revoke", &[("token", &refresh)]).await.refused(400),
        "Token expired or revoked"
    );
    assert_eq!(scene.form(TOKEN, &[("grant_type", "password")]).await.refused(400), "Invalid grant_type: password");
}

#[tokio::test]
async fn impersonation_takes_the_permission_on_the_account() {
    let scene = with_bot().await;
    let dev = scene.mint.operator_token("dev@example.com", scene.control.now()).unwrap();
    let ask = async |verb: &str, body: Value| {
        scene.call(Method::POST, &format!("{CREDENTIALS}/{BOT}:{verb}"), Some(&dev), None, &body.to_string()).await
    };
    let scope =
        json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"], "lifetime": "3600s", "delegates": null});
    assert_eq!(
        ask("generateAccessToken", scope.clone()).await.refused(403),
        "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist)."
    );
    let policy = json!({"policy": {"bindings": [{"role": "roles/iam.serviceAccountTokenCreator", "members": ["user:dev@example.com"]}]}});
    scene.post(&format!("{IAM}/{BOT}:setIamPolicy"), policy).await.ok();
    let got = ask("generateAccessToken", scope).await.ok();
    let expires = got["expireTime"].as_str().unwrap();
    assert!(expires.ends_with('Z') && expires.len() == 20, "{expires}");
    assert!(
        ask("generateAccessToken", json!({"scope": ["x"], "lifetime": "3601s"}))
            .await
            .refused(400)
            .contains("more than 1 hour")
    );
    assert!(ask("generateAccessToken", json!({})).await.refused(400).contains("scope is required"));
    let token = ask("generateIdToken", json!({"audience": "a", "includeEmail": true})).await.ok();
    assert_eq!(payload(token["token"].as_str().unwrap())["email"], BOT);
    let bare = ask("generateIdToken", json!({"audience": "a"})).await.ok();
    assert!(payload(bare["token"].as_str().unwrap()).get("email").is_none());
    // What it signs is what its published keys say.
    let signed = ask("signJwt", json!({"payload": "{\"iss\":\"x\"}"})).await.ok();
    let kid = signed["keyId"].as_str().unwrap();
    let jwks = scene.get(&format!("https://www.googleapis.com/service_accounts/v1/jwk/{BOT}")).await.ok();
    assert!(jwks["keys"].as_array().unwrap().iter().any(|k| k["kid"] == kid), "{jwks}");
    let blob = ask("signBlob", json!({"payload": "aGVsbG8="})).await.ok();
    assert_eq!(blob["keyId"], kid);
    // Every command asks for this first; the answer has to be there, and to be no.
    assert_eq!(scene.get(&format!("{CREDENTIALS}/{BOT}/allowedLocations")).await.status, 404);
}

#[tokio::test]
async fn a_policy_is_written_over_what_was_read_or_not_at_all() {
    let scene = with_bot().await;
    let url = format!("{IAM}/{BOT}:getIamPolicy?options.requestedPolicyVersion=3");
    let never = scene.post(&url, json!({})).await.ok();
    assert_eq!(never, json!({"etag": "ACAB"}));
    let set = format!("{IAM}/{BOT}:setIamPolicy");
    let user = |etag: &str| json!({"policy": {"etag": etag, "version": 3, "bindings": [{"role": "roles/iam.serviceAccountUser", "members": ["user:B@x.org", "user:a@x.org", "user:b@x.org"]}]}});
    let first = scene.post(&set, user("ACAB")).await.ok();
    assert_eq!(first["bindings"][0]["members"], json!(["user:a@x.org", "user:b@x.org"]));
    assert!(scene.post(&set, user("ACAB")).await.refused(409).starts_with("There were concurrent policy changes."));
    scene.post(&set, user(first["etag"].as_str().unwrap())).await.ok();
    scene.post(&set, user("")).await.ok();
    let bad = |role: &str, member: &str| json!({"policy": {"bindings": [{"role": role, "members": [member]}]}});
    for (role, member, want) in [
        (
            "roles/iam.serviceAccountUser",
            "serviceAccount:ghost@p.iam.gserviceaccount.com",
            "Service account ghost@p.iam.gserviceaccount.com does not exist.",
        ),
        (
            "roles/iam.serviceAccountUser",
            "mickey",
            "The member mickey is of an unknown type. Please set a valid type prefix for the member.",
        ),
        ("roles/nothing", "user:a@x.org", "Role roles/nothing does not exist in the resource's hierarchy."),
    ] {
        assert_eq!(scene.post(&set, bad(role, member)).await.refused(400), want);
    }
    let everyone = scene.post(&format!("{PROJECT}:setIamPolicy"), bad("roles/viewer", "allUsers")).await;
    assert_eq!(everyone.status, 400);
    let conditional = json!({"policy": {"version": 3, "bindings": [{"role": "roles/viewer", "members": ["user:a@x.org"], "condition": {"title": "t", "expression": "true"}}]}});
    assert_eq!(scene.post(&format!("{PROJECT}:setIamPolicy"), conditional).await.status, 400);
    let tested = scene
        .post(
            &format!("{PROJECT}:testIamPermissions"),
            json!({"permissions": ["serviceusage.services.use", "run.services.get"]}),
        )
        .await
        .ok();
    assert_eq!(tested, json!({"permissions": ["serviceusage.services.use", "run.services.get"]}));
}

#[tokio::test]
async fn a_deleted_account_leaves_no_rights_to_its_namesake() {
    let scene = with_bot().await;
    let grant = json!({"policy": {"bindings": [
        {"role": "roles/owner", "members": ["user:admin@tombolo.local"]},
        {"role": "roles/viewer", "members": [format!("serviceAccount:{BOT}")]},
    ]}});
    scene.post(&format!("{PROJECT}:setIamPolicy"), grant).await.ok();
    let old = scene.get(&format!("{IAM}/{BOT}")).await.ok()["uniqueId"].as_str().unwrap().to_owned();
    scene.delete(&format!("{IAM}/{BOT}")).await.ok();
    let body = json!({"accountId": "bot-account"});
    let new = scene.post(IAM, body).await.ok();
    assert_ne!(new["uniqueId"], old);
    let policy = scene.post(&format!("{PROJECT}:getIamPolicy"), json!({})).await.ok();
    let viewer = policy["bindings"].as_array().unwrap().iter().find(|b| b["role"] == "roles/viewer").unwrap();
    assert_eq!(viewer["members"], json!([format!("deleted:serviceAccount:{BOT}?uid={old}")]));
}

#[tokio::test]
async fn roles_and_published_keys_can_be_read() {
    let scene = Scene::with_project().await;
    let role = scene.get("https://iam.googleapis.com/v1/roles/run.invoker").await.ok();
    assert!(role["includedPermissions"].as_array().unwrap().contains(&json!("run.routes.invoke")));
    assert_eq!(
        scene.get("https://iam.googleapis.com/v1/roles/nothing").await.refused(404),
        "The role named roles/nothing was not found."
    );
    let jwks = scene.call(Method::GET, "https://www.googleapis.com/oauth2/v3/certs", None, None, "").await.ok();
    let pems = scene.call(Method::GET, "https://www.googleapis.com/oauth2/v1/certs", None, None, "").await.ok();
    let kid = jwks["keys"][0]["kid"].as_str().unwrap();
    assert!(pems[kid].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
}

#[tokio::test]
async fn a_read_only_token_changes_no_policy_with_any_method() {
    let scene = with_bot().await;
    let reading = json!({"scope": ["https://www.googleapis.com/auth/cloud-platform.read-only"]});
    let grant = json!({"policy": {"bindings": [
        {"role": "roles/iam.serviceAccountTokenCreator", "members": ["user:admin@tombolo.local"]}]}});
    let set = format!("{IAM}/{BOT}:setIamPolicy");
    scene.post(&set, grant.clone()).await.ok();
    let owner = json!({"policy": {"bindings": [
        {"role": "roles/owner", "members": [format!("serviceAccount:{BOT}")]}]}});
    scene.post(&format!("{PROJECT}:setIamPolicy"), owner).await.ok();
    let minted = scene.post(&format!("{CREDENTIALS}/{BOT}:generateAccessToken"), reading).await.ok();
    let token = minted["accessToken"].as_str();
    let read = scene.call(Method::GET, &format!("{IAM}/{BOT}:getIamPolicy"), token, None, "").await;
    let before = read.ok();
    for method in [Method::GET, Method::POST, Method::PUT] {
        let emptied = json!({"policy": {"bindings": []}}).to_string();
        let got = scene.call(method.clone(), &set, token, None, &emptied).await;
        assert!(got.status >= 400, "{method}: {got:?}");
    }
    assert_eq!(scene.get(&format!("{IAM}/{BOT}:getIamPolicy")).await.ok(), before);
}

#[tokio::test]
async fn nobody_acts_as_an_agent_of_the_platform() {
    let scene = Scene::with_project().await;
    let agent = format!("service-{}@serverless-robot-prod.iam.gserviceaccount.com", scene.number("producer-1"));
    let mut policy = scene.post(&format!("{PROJECT}:getIamPolicy"), json!({})).await.ok();
    policy["bindings"].as_array_mut().unwrap().push(json!({
        "role": "roles/iam.serviceAccountTokenCreator", "members": ["user:admin@tombolo.local"],
    }));
    scene.post(&format!("{PROJECT}:setIamPolicy"), json!({"policy": policy})).await.ok();
    let ask = json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"]});
    let got = scene.post(&format!("{CREDENTIALS}/{agent}:generateAccessToken"), ask.clone()).await;
    got.refused(403);
    let default = format!("{}-compute@developer.gserviceaccount.com", scene.number("producer-1"));
    scene.post(&format!("{CREDENTIALS}/{default}:generateAccessToken"), ask).await.ok();
}

#[tokio::test]
async fn a_code_from_the_operator_is_good_once_for_the_client_that_asked() {
    let scene = Scene::new();
    // Source: RFC 7636, appendix B.
    let (verifier, challenge) =
        ("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    let scope = "openid https://www.googleapis.com/auth/userinfo.email https://www.googleapis.com/auth/cloud-platform";
    let code = |seconds: u64| {
        let now = scene.control.now();
        let consent = control::tokens::Consent {
            email: "Ada@example.com".into(),
            client_id: "client-1".into(),
            redirect_uri: "https://sdk.cloud.google.com/authcode.html".into(),
            challenge: challenge.into(),
            scopes: scope.split(' ').map(str::to_owned).collect(),
            until: now.plus(std::time::Duration::from_secs(seconds)),
        };
        scene.mint.consent(consent, now).unwrap()
    };
    let exchange = async |code: &str, client: &str, verifier: &str| {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("client_id", client),
            ("redirect_uri", "https://sdk.cloud.google.com/authcode.html"),
            ("code_verifier", verifier),
        ];
        scene.form("https://oauth2.googleapis.com/token", &form).await
    };
    let good = code(600);
    let tokens = exchange(&good, "client-1", verifier).await.ok();
    assert_eq!((tokens["scope"].as_str(), tokens["token_type"].as_str()), (Some(scope), Some("Bearer")));
    let who =
        format!("https://oauth2.googleapis.com/tokeninfo?access_token={}", tokens["access_token"].as_str().unwrap());
    assert_eq!(scene.get(&who).await.ok()["email"], "ada@example.com");
    let refresh = tokens["refresh_token"].as_str().unwrap();
    let form = [("grant_type", "refresh_token"), ("refresh_token", refresh), ("client_id", "client-1")];
    let again = scene.form("https://oauth2.googleapis.com/token", &form).await.ok();
    assert_eq!(again["scope"], scope, "gcloud misses a scope that it was given and does not get again");
    let more = [form[0], form[1], form[2], ("scope", "https://www.googleapis.com/auth/compute")];
    assert_eq!(scene.form("https://oauth2.googleapis.com/token", &more).await.refused(400), "Bad Request");
    assert_eq!(exchange(&good, "client-1", verifier).await.refused(400), "Malformed auth code.", "it is good once");
    assert_eq!(exchange(&code(600), "client-1", "guessed").await.refused(400), "Invalid code verifier.");
    assert_eq!(exchange(&code(600), "client-2", verifier).await.refused(401), "The OAuth client was not found.");
    assert_eq!(exchange(&code(0), "client-1", verifier).await.refused(400), "Malformed auth code.", "it has a time");
}
