//! Every way to pass for somebody else that we could think of, and that it fails.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use aws_lc_rs::hmac;
use identity::{
    access::{AccessClaims, AccessKey, mint_access},
    base64::{self, Form},
    keys::SigningKey,
    token::{ISSUER, IdClaims, TokenError, Verifier, sign_id_token, verify_id_token},
};
use model::{iam::Principal, limits::TOKEN_BYTES_MAX, time::Timestamp};
use proptest::prelude::*;

const NOW: i64 = 1_800_000_000;
const AUDIENCE: &str = "https://hello-123456789012.asia-northeast1.run.app";

fn now() -> Timestamp {
    Timestamp::from_unix_s(NOW)
}

fn claims() -> IdClaims {
    IdClaims {
        aud: AUDIENCE.into(),
        azp: Some("100000000000000000001".into()),
        email: Some("Caller@p-12345.iam.gserviceaccount.com".into()),
        email_verified: true,
        exp: NOW + 3_600,
        google: None,
        iat: NOW,
        iss: ISSUER.into(),
        sub: "100000000000000000001".into(),
    }
}

/// One key for all tests of this file: making one takes a while.
fn key() -> &'static SigningKey {
    static KEY: std::sync::OnceLock<SigningKey> = std::sync::OnceLock::new();
    KEY.get_or_init(|| SigningKey::generate().unwrap())
}

fn verifier() -> Verifier {
    Verifier::new(&[key().public().clone()]).unwrap()
}

fn part(json: &str) -> String {
    base64::encode(Form::Url, json.as_bytes())
}

/// Signs header and payload as they are, whatever they say.
fn signed(header: &str, payload: &str) -> String {
    let body = format!("{}.{}", part(header), part(payload));
    let signature = base64::encode(Form::Url, &key().sign(body.as_bytes()));
    format!("{body}.{signature}")
}

fn good_header() -> String {
    format!(r#"{{"alg":"RS256","kid":"{}","typ":"JWT"}}"#, key().kid())
}

#[test]
fn a_token_of_our_own_says_who_calls() {
    let token = sign_id_token(key(), &claims());
    let seen = verifier().verify_for(&token, &BTreeSet::from([AUDIENCE.to_owned()]), now()).unwrap();
    assert_eq!(seen, claims());
    assert_eq!(seen.verified_email().as_deref(), Some("caller@p-12345.iam.gserviceaccount.com"));
    assert_eq!(verify_id_token(&[key().public().clone()], &token, now()), Ok(claims()));
}

#[test]
fn the_token_reads_as_googles_do() {
    let token = sign_id_token(key(), &claims());
    let parts: Vec<&str> = token.split('.').collect();
    let text = |i: usize| String::from_utf8(base64::decode(Form::Url, parts[i]).unwrap()).unwrap();
    assert_eq!(text(0), good_header());
    assert_eq!(
        text(1),
        r#"{"aud":"https://hello-123456789012.asia-northeast1.run.app","azp":"100000000000000000001","#.to_owned()
            + r#""email":"Caller@p-12345.iam.gserviceaccount.com","email_verified":true,"exp":1800003600,"#
            + r#""iat":1800000000,"iss":"https://accounts.google.com","sub":"100000000000000000001"}"#
    );
}

#[test]
fn an_address_nobody_vouches_for_names_nobody() {
    assert_eq!(IdClaims { email_verified: false, ..claims() }.verified_email(), None);
}

#[test]
fn a_token_for_another_service_is_refused() {
    let token = sign_id_token(key(), &IdClaims { aud: "http://10.1.0.5".into(), ..claims() });
    let ours = BTreeSet::from([AUDIENCE.to_owned()]);
    assert_eq!(verifier().verify_for(&token, &ours, now()), Err(TokenError::Audience));
}

#[test]
fn time_is_checked_at_both_ends_with_ten_seconds_of_grace() {
    for (iat, exp, want) in [
        (NOW - 3_600, NOW, Ok(())),
        (NOW - 3_610, NOW - 10, Err(TokenError::Expired)),
        (NOW + 10, NOW + 3_610, Ok(())),
        (NOW + 11, NOW + 3_611, Err(TokenError::NotYetValid)),
        (NOW, NOW, Err(TokenError::Claims)),
        (i64::MAX, i64::MIN, Err(TokenError::Claims)),
        (i64::MIN, i64::MAX, Err(TokenError::Lifetime)),
    ] {
        let token = sign_id_token(key(), &IdClaims { iat, exp, ..claims() });
        assert_eq!(verifier().verify(&token, now()).map(|_| ()), want, "{iat} {exp}");
    }
}

#[test]
fn no_algorithm_but_rs256_is_believed() {
    let payload = serde_json::to_string(&claims()).unwrap();
    let kid = key().kid();
    for alg in ["none", "None", "HS256", "RS512", "PS256", "ES256", "rs256", ""] {
        let token = signed(&format!(r#"{{"alg":"{alg}","kid":"{kid}","typ":"JWT"}}"#), &payload);
        assert_eq!(verifier().verify(&token, now()), Err(TokenError::Algorithm), "{alg}");
    }
    let unsigned = format!("{}.{}.", part(&format!(r#"{{"alg":"none","kid":"{kid}"}}"#)), part(&payload));
    assert_eq!(verifier().verify(&unsigned, now()), Err(TokenError::Algorithm));
}

#[test]
fn the_public_key_as_an_hmac_secret_signs_nothing() {
    let payload = serde_json::to_string(&claims()).unwrap();
    for alg in ["HS256", "RS256"] {
        let body = format!("{}.{}", part(&format!(r#"{{"alg":"{alg}","kid":"{}"}}"#, key().kid())), part(&payload));
        for secret in [identity::keys::public_pem(key().public()).unwrap(), key().public().n.clone()] {
            let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body.as_bytes());
            let token = format!("{body}.{}", base64::encode(Form::Url, mac.as_ref()));
            assert!(verifier().verify(&token, now()).is_err(), "{alg}");
        }
    }
}

#[test]
fn a_foreign_key_signs_nothing_even_under_our_kid() {
    let foreign = SigningKey::generate().unwrap();
    assert_eq!(verifier().verify(&sign_id_token(&foreign, &claims()), now()), Err(TokenError::UnknownKey));
    let body = format!("{}.{}", part(&good_header()), part(&serde_json::to_string(&claims()).unwrap()));
    let token = format!("{body}.{}", base64::encode(Form::Url, &foreign.sign(body.as_bytes())));
    assert_eq!(verifier().verify(&token, now()), Err(TokenError::Signature));
}

#[test]
fn a_key_inside_the_token_is_not_looked_at() {
    let foreign = SigningKey::generate().unwrap();
    let (n, e) = (&foreign.public().n, &foreign.public().e);
    let header = format!(r#"{{"alg":"RS256","jwk":{{"kty":"RSA","n":"{n}","e":"{e}"}},"kid":"{}"}}"#, foreign.kid());
    let body = format!("{}.{}", part(&header), part(&serde_json::to_string(&claims()).unwrap()));
    let token = format!("{body}.{}", base64::encode(Form::Url, &foreign.sign(body.as_bytes())));
    assert_eq!(verifier().verify(&token, now()), Err(TokenError::UnknownKey));
}

#[test]
fn an_access_token_is_no_id_token() {
    let principal = Principal::User { email: "ada@example.com".into() };
    let claims =
        AccessClaims { principal, scopes: vec![], issued: now(), expires: Timestamp::from_unix_s(NOW + 3_600) };
    let token = mint_access(&AccessKey::generate(), &claims).unwrap();
    assert_eq!(verifier().verify(&token, now()), Err(TokenError::Malformed));
}

#[test]
fn the_form_that_reaches_containers_does_not_open_the_next_door() {
    let token = sign_id_token(key(), &claims());
    let stripped = format!("{}.SIGNATURE_REMOVED_BY_GOOGLE", token.rsplit_once('.').unwrap().0);
    assert!(verifier().verify(&stripped, now()).is_err());
}

#[test]
fn what_two_parsers_could_read_differently_is_refused() {
    let good = serde_json::to_string(&claims()).unwrap();
    assert!(verifier().verify(&signed(&good_header(), &good), now()).is_ok());
    let twice = good.replacen('{', r#"{"sub":"100000000000000000002","#, 1);
    let unknown_twice = good.replacen('{', r#"{"x":1,"x":2,"#, 1);
    let list = good.replacen(&format!("\"{AUDIENCE}\""), &format!("[\"{AUDIENCE}\"]"), 1);
    let no_exp = good.replacen("\"exp\"", "\"e\"", 1);
    let fraction = good.replacen("1800003600", "1800003600.5", 1);
    for payload in [&twice, &unknown_twice, &list, &no_exp, &fraction, "", "null", "[]", "{}"] {
        assert_eq!(verifier().verify(&signed(&good_header(), payload), now()), Err(TokenError::Claims), "{payload}");
    }
    let header_twice = good_header().replacen('{', r#"{"alg":"none","#, 1);
    let critical = good_header().replacen('{', r#"{"crit":["b64"],"b64":false,"#, 1);
    for header in [&header_twice, &critical, "{}", "", &good_header().replacen("JWT", "at+jwt", 1)] {
        assert_eq!(verifier().verify(&signed(header, &good), now()), Err(TokenError::Malformed), "{header}");
    }
}

#[test]
fn another_issuer_is_refused() {
    for (iss, ok) in [("accounts.google.com", true), ("https://accounts.google.com/", false), ("", false)] {
        let token = sign_id_token(key(), &IdClaims { iss: iss.into(), ..claims() });
        assert_eq!(verifier().verify(&token, now()).is_ok(), ok, "{iss}");
    }
}

#[test]
fn a_token_cut_or_extended_anywhere_is_refused() {
    let (token, verifier) = (sign_id_token(key(), &claims()), verifier());
    for end in 0..token.len() {
        assert!(verifier.verify(&token[..end], now()).is_err(), "cut at {end}");
    }
    for more in ["A", "=", ".", " ", "\n", ".A"] {
        assert!(verifier.verify(&format!("{token}{more}"), now()).is_err(), "with {more:?}");
    }
    assert!(verifier.verify(&format!("Bearer {token}"), now()).is_err());
}

#[test]
fn an_oversize_token_is_refused_before_it_is_read() {
    let long = "A".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(verifier().verify(&long, now()), Err(TokenError::Oversize { bytes: TOKEN_BYTES_MAX + 1 }));
}

#[test]
fn a_short_key_is_no_key() {
    let short = base64::encode(Form::Url, &[0xff; 128]);
    let weak = model::planned::edge::PublicKey { kid: "weak".into(), n: short, e: "AQAB".into() };
    assert!(Verifier::new(&[weak]).is_err());
}

proptest! {
    #[test]
    fn no_text_makes_verify_panic_or_agree(text in ".{0,200}") {
        prop_assert!(verifier().verify(&text, now()).is_err());
    }

    #[test]
    fn no_three_parts_make_verify_panic_or_agree(header in ".{0,60}", payload in ".{0,60}", signature in ".{0,60}") {
        let token = format!("{}.{}.{}", part(&header), part(&payload), part(&signature));
        prop_assert!(verifier().verify(&token, now()).is_err());
        let foreign_signature = format!("{}.{}.{}", part(&good_header()), part(&payload), part(&signature));
        prop_assert!(verifier().verify(&foreign_signature, now()).is_err());
    }
}
