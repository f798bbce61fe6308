//! What a service account's own key can and cannot obtain.

#![allow(clippy::unwrap_used)]

use identity::{
    assertion::{Assertion, CredentialsFile, Grant, GrantError, verify_assertion},
    keys::SigningKey,
    token::TokenError,
};
use model::{iam::ServiceAccount, time::Timestamp};
use serde_json::{Value, json};

const NOW: i64 = 1_800_000_000;
const EMAIL: &str = "robot@p-12345.iam.gserviceaccount.com";
const OURS: &str = "http://127.0.0.1:8090/token";

fn now() -> Timestamp {
    Timestamp::from_unix_s(NOW)
}

fn key() -> &'static SigningKey {
    static KEY: std::sync::OnceLock<SigningKey> = std::sync::OnceLock::new();
    KEY.get_or_init(|| SigningKey::generate().unwrap())
}

/// Signs the usual claims with these members laid over them; null takes one away.
fn signed(over: Value) -> String {
    let mut claims = json!({ "iss": EMAIL, "aud": OURS, "iat": NOW, "exp": NOW + 3_600 });
    for (name, value) in over.as_object().unwrap() {
        claims[name] = value.clone();
    }
    key().sign_jwt(&claims.to_string())
}

fn grant(over: Value) -> Result<Grant, GrantError> {
    verify_assertion(&[key().public().clone()], EMAIL, &signed(over), now()).unwrap().grant(OURS)
}

#[test]
fn an_assertion_is_exchanged_for_what_it_names() {
    let scopes = vec!["https://www.googleapis.com/auth/a".to_owned(), "https://www.googleapis.com/auth/b".to_owned()];
    assert_eq!(grant(json!({ "scope": scopes.join(" ") })), Ok(Grant::AccessToken { scopes }));
    assert_eq!(grant(json!({ "target_audience": "https://x" })), Ok(Grant::IdToken { audience: "https://x".into() }));
    assert_eq!(grant(json!({ "scope": "s", "sub": EMAIL })), Ok(Grant::AccessToken { scopes: vec!["s".into()] }));
    for google in identity::assertion::TOKEN_ENDPOINTS {
        assert!(grant(json!({ "scope": "s", "aud": google })).is_ok());
    }
}

#[test]
fn an_assertion_gives_nothing_it_should_not() {
    for (over, want) in [
        (json!({}), GrantError::Nothing),
        (json!({ "scope": " ", "target_audience": "" }), GrantError::Nothing),
        (json!({ "scope": "s", "aud": "https://evil.example/token" }), GrantError::Audience),
        (json!({ "scope": "s", "aud": null }), GrantError::Audience),
        (json!({ "scope": "s", "sub": "ada@example.com" }), GrantError::Delegation),
    ] {
        assert_eq!(grant(over.clone()), Err(want), "{over}");
    }
}

#[test]
fn time_key_and_issuer_are_checked() {
    let verify = |text: &str| verify_assertion(&[key().public().clone()], EMAIL, text, now()).map(|_| ());
    for (over, want) in [
        (json!({ "exp": NOW + 3_700 }), Err(TokenError::Lifetime)),
        (json!({ "iat": NOW - 3_600, "exp": NOW - 10 }), Err(TokenError::Expired)),
        (json!({ "iat": NOW + 601, "exp": NOW + 700 }), Err(TokenError::NotYetValid)),
        (json!({ "iat": NOW + 600, "exp": NOW + 700 }), Ok(())),
        (json!({ "exp": NOW }), Err(TokenError::Claims)),
        (json!({ "iss": "other@p-12345.iam.gserviceaccount.com" }), Err(TokenError::Issuer)),
        (json!({ "iss": "ROBOT@p-12345.iam.gserviceaccount.com" }), Ok(())),
        (json!({ "iss": null }), Err(TokenError::Claims)),
    ] {
        assert_eq!(verify(&signed(over.clone())), want, "{over}");
    }
    let foreign = SigningKey::generate().unwrap();
    assert_eq!(
        verify_assertion(&[foreign.public().clone()], EMAIL, &signed(json!({})), now()),
        Err(TokenError::UnknownKey)
    );
}

#[test]
fn the_issuer_is_known_before_the_keys_are() {
    let text = signed(json!({}));
    let assertion = Assertion::parse(&text).unwrap();
    assert_eq!((assertion.claimed_issuer(), assertion.kid()), (EMAIL, key().kid()));
}

#[test]
fn a_signed_credential_opens_the_service_it_names() {
    let credential = |over: Value| {
        let keys = [key().public().clone()];
        verify_assertion(&keys, EMAIL, &signed(over), now()).unwrap().credential("run.googleapis.com")
    };
    for aud in ["https://run.googleapis.com/", "https://run.googleapis.com"] {
        assert_eq!(credential(json!({ "sub": EMAIL, "aud": aud })), Ok(vec![]));
    }
    assert_eq!(credential(json!({ "sub": EMAIL, "aud": null, "scope": "s" })), Ok(vec!["s".to_owned()]));
    for (over, want) in [
        (json!({ "sub": EMAIL, "aud": "https://iam.googleapis.com/" }), GrantError::Audience),
        (json!({ "sub": EMAIL, "aud": "http://run.googleapis.com/" }), GrantError::Audience),
        (json!({ "sub": EMAIL, "aud": null }), GrantError::Nothing),
        (json!({ "aud": "https://run.googleapis.com/" }), GrantError::Delegation),
        (json!({ "sub": "ada@example.com", "aud": "https://run.googleapis.com/" }), GrantError::Delegation),
    ] {
        assert_eq!(credential(over.clone()), Err(want), "{over}");
    }
}

#[test]
fn the_key_file_is_what_client_libraries_read() {
    let account = ServiceAccount {
        email: EMAIL.into(),
        project: "p-12345".parse().unwrap(),
        unique_id: "100000000000000000001".into(),
        display_name: String::new(),
        description: String::new(),
        disabled: false,
        created: now(),
        agent: false,
    };
    let text = CredentialsFile::new(&account, key(), OURS).to_text();
    assert!(text.starts_with("{\n  \"type\": \"service_account\",\n  \"project_id\": \"p-12345\",\n"), "{text}");
    assert!(text.ends_with("\"universe_domain\": \"googleapis.com\"\n}\n"));
    let file: Value = serde_json::from_str(&text).unwrap();
    let members: Vec<&str> = file.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        members,
        [
            "type",
            "project_id",
            "private_key_id",
            "private_key",
            "client_email",
            "client_id",
            "auth_uri",
            "token_uri",
            "auth_provider_x509_cert_url",
            "client_x509_cert_url",
            "universe_domain"
        ]
    );
    assert_eq!(file["private_key_id"], key().kid());
    assert!(file["private_key"].as_str().unwrap().starts_with("-----BEGIN PRIVATE KEY-----\nMII"));
    assert!(file["client_x509_cert_url"].as_str().unwrap().ends_with("/robot%40p-12345.iam.gserviceaccount.com"));
}
