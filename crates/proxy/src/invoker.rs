//! May this caller invoke this service? Every request is asked anew; only the proof that a token is genuine is kept.
//!
//! The role decision looks at the service as it stands now, so a changed policy holds for the next request. Keys are
//! public halves: this process can check tokens and make none. Start with [`Gate::check`].
//! Source: Cloud Run authentication; the order of its steps is that of the real front end.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use identity::token::{TokenError, Verifier};
use model::{
    limits::TOKEN_CACHE_MAX,
    planned::edge::{EdgeService, PublicKey},
    time::Timestamp,
};

use crate::{header::X_SERVERLESS_AUTHORIZATION, refusal::Refusal};

/// A genuine token: who it names, for whom, and what the container may see of it.
#[derive(Debug)]
struct Genuine {
    token: Box<str>,
    audience: String,
    /// Verified e-mail, lower case.
    email: Option<String>,
    /// Of a service account, its unique id. Empty beside an e-mail that nobody verified.
    subject: String,
    expires: Timestamp,
    /// `Bearer HEADER.PAYLOAD.SIGNATURE_REMOVED_BY_GOOGLE`.
    shown: HeaderValue,
}

/// Keys and the tokens they proved genuine.
pub struct Gate {
    inner: RefCell<Inner>,
}

struct Inner {
    verifier: Option<Verifier>,
    keys: Vec<PublicKey>,
    /// By the end of the token, which no two genuine ones share; what is found is compared to its first byte.
    genuine: HashMap<End, Rc<Genuine>>,
    /// Oldest first.
    order: VecDeque<End>,
}

/// The last characters of a token: 192 bits of its signature.
type End = [u8; 32];

impl Gate {
    pub fn new() -> Gate {
        let inner = Inner { verifier: None, keys: Vec::new(), genuine: HashMap::new(), order: VecDeque::new() };
        Gate { inner: RefCell::new(inner) }
    }

    /// Replaces the keys and forgets what the old ones proved. Keys that do not parse verify nothing.
    pub fn set_keys(&self, keys: Vec<PublicKey>) {
        let mut inner = self.inner.borrow_mut();
        if inner.keys == keys {
            return;
        }
        inner.verifier = Verifier::new(&keys).ok();
        inner.keys = keys;
        inner.genuine.clear();
        inner.order.clear();
    }

    /// Decides, and when the check took place rewrites the checked header so that the container cannot reuse it.
    pub fn check(&self, service: &EdgeService, headers: &mut HeaderMap, now: Timestamp) -> Result<(), Refusal> {
        if service.invokers.everyone {
            return Ok(());
        }
        let (name, credential) = match credential(headers) {
            Credential::None => return Err(Refusal::Unauthenticated),
            Credential::Several => return Err(Refusal::InvalidToken),
            Credential::Bearer(name, token) => (name, token),
        };
        let genuine = self.genuine(credential, now).map_err(|_| Refusal::InvalidToken)?;
        if !service.audiences.contains(&genuine.audience) {
            return Err(Refusal::InvalidToken);
        }
        if !service.invokers.admits(&genuine.subject, genuine.email.as_deref()) {
            return Err(Refusal::Forbidden);
        }
        headers.insert(name, genuine.shown.clone());
        Ok(())
    }

    fn genuine(&self, token: &str, now: Timestamp) -> Result<Rc<Genuine>, TokenError> {
        let inner = &mut *self.inner.borrow_mut();
        let end = *token.as_bytes().last_chunk::<32>().ok_or(TokenError::Malformed)?;
        if let Some(known) = inner.genuine.get(&end).filter(|known| *known.token == *token) {
            if now < known.expires {
                return Ok(known.clone());
            }
            inner.genuine.remove(&end);
            inner.order.retain(|other| *other != end);
        }
        let claims = inner.verifier.as_ref().ok_or(TokenError::UnknownKey)?.verify(token, now)?;
        let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
        let shown = format!("Bearer {signed}.SIGNATURE_REMOVED_BY_GOOGLE");
        let genuine = Rc::new(Genuine {
            token: token.into(),
            email: claims.verified_email(),
            subject: if claims.email.is_none() || claims.email_verified { claims.sub } else { String::new() },
            audience: claims.aud,
            expires: Timestamp::from_unix_s(claims.exp),
            shown: HeaderValue::try_from(shown).expect("base64url and dots make a header value"),
        });
        if inner.order.len() >= TOKEN_CACHE_MAX
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.genuine.remove(&oldest);
        }
        if inner.genuine.insert(end, genuine.clone()).is_none() {
            inner.order.push_back(end);
        }
        Ok(genuine)
    }
}

enum Credential<'a> {
    None,
    Several,
    Bearer(HeaderName, &'a str),
}

/// `X-Serverless-Authorization` if it is there at all, else `Authorization`; only the chosen one is looked at.
fn credential(headers: &HeaderMap) -> Credential<'_> {
    let name = match headers.contains_key(&X_SERVERLESS_AUTHORIZATION) {
        true => X_SERVERLESS_AUTHORIZATION.clone(),
        false => AUTHORIZATION,
    };
    let mut values = headers.get_all(&name).into_iter();
    let Some(value) = values.next() else { return Credential::None };
    if values.next().is_some() {
        return Credential::Several;
    }
    let Ok(text) = value.to_str() else { return Credential::None };
    match text.trim().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Credential::Bearer(name, token.trim())
        }
        Some(_) | None => Credential::None,
    }
}

#[cfg(test)]
mod tests {
    use identity::{
        base64,
        keys::SigningKey,
        token::{IdClaims, sign_id_token},
    };
    use model::{planned::edge::Invokers, run::Ingress};

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const URL: &str = "https://shop-123456789012.asia-northeast1.run.app";

    fn claims() -> IdClaims {
        IdClaims {
            aud: URL.into(),
            azp: None,
            email: Some("Till@consumer-1.iam.gserviceaccount.com".into()),
            email_verified: true,
            exp: NOW + 3_600,
            google: None,
            iat: NOW,
            iss: "https://accounts.google.com".into(),
            sub: "1".into(),
        }
    }

    fn service() -> EdgeService {
        EdgeService {
            ingress: Ingress::Internal,
            hosts: vec![],
            audiences: [URL.to_owned(), format!("{URL}/"), "custom".into()].into(),
            invokers: Invokers {
                emails: ["ada@example.com".to_owned()].into(),
                accounts: [("1".to_owned(), "till@consumer-1.iam.gserviceaccount.com".to_owned())].into(),
                ..Invokers::default()
            },
            traffic: vec![],
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_s(NOW + seconds)
    }

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    fn gate(key: &SigningKey) -> Gate {
        let gate = Gate::new();
        gate.set_keys(vec![key.public().clone()]);
        gate
    }

    fn unsigned(alg: &str, kid: &str) -> String {
        let part = |json: String| base64::encode(base64::Form::Url, json.as_bytes());
        let head = part(format!("{{\"alg\":\"{alg}\",\"kid\":\"{kid}\",\"typ\":\"JWT\"}}"));
        let payload = part(serde_json::to_string(&claims()).unwrap());
        format!("{head}.{payload}.{}", part("signature".into()))
    }

    #[test]
    fn only_a_genuine_current_token_for_this_service_is_accepted() {
        let key = SigningKey::generate().unwrap();
        let other = SigningKey::generate().unwrap();
        let sign = |change: fn(&mut IdClaims)| {
            let mut claims = claims();
            change(&mut claims);
            sign_id_token(&key, &claims)
        };
        let good = sign(|_| {});
        let (signed, _) = good.rsplit_once('.').unwrap();
        let no_padding_signature = format!("{signed}.");
        for (what, token, want) in [
            ("genuine", good.clone(), Ok(())),
            ("custom audience", sign(|c| c.aud = "custom".into()), Ok(())),
            ("trailing slash", sign(|c| c.aud.push('/')), Ok(())),
            ("bare issuer", sign(|c| c.iss = "accounts.google.com".into()), Ok(())),
            ("path in audience", sign(|c| c.aud.push_str("/x")), Err(Refusal::InvalidToken)),
            ("wrong audience", sign(|c| c.aud = "https://10.1.0.5".into()), Err(Refusal::InvalidToken)),
            ("wrong issuer", sign(|c| c.iss = "https://evil".into()), Err(Refusal::InvalidToken)),
            ("expired", sign(|c| (c.iat, c.exp) = (NOW - 3_700, NOW - 100)), Err(Refusal::InvalidToken)),
            ("from the future", sign(|c| c.iat = NOW + 600), Err(Refusal::InvalidToken)),
            ("another key", sign_id_token(&other, &claims()), Err(Refusal::InvalidToken)),
            ("alg none", unsigned("none", key.kid()), Err(Refusal::InvalidToken)),
            ("HS256", unsigned("HS256", key.kid()), Err(Refusal::InvalidToken)),
            ("bad signature", unsigned("RS256", key.kid()), Err(Refusal::InvalidToken)),
            ("no signature", no_padding_signature, Err(Refusal::InvalidToken)),
            ("access token", "ya29.c.abc".into(), Err(Refusal::InvalidToken)),
            ("garbage", "x".into(), Err(Refusal::InvalidToken)),
            ("two tokens", format!("{good} {good}"), Err(Refusal::InvalidToken)),
            ("stripped", format!("{signed}.SIGNATURE_REMOVED_BY_GOOGLE"), Err(Refusal::InvalidToken)),
            ("no role", sign(|c| c.email = Some("x@y.z".into())), Err(Refusal::Forbidden)),
            ("unverified e-mail", sign(|c| c.email_verified = false), Err(Refusal::Forbidden)),
            ("no e-mail", sign(|c| c.email = None), Ok(())),
            ("a user", sign(|c| (c.email, c.sub) = (Some("ada@example.com".into()), "9".into())), Ok(())),
            ("an account of that name, deleted since", sign(|c| c.sub = "2".into()), Err(Refusal::Forbidden)),
            ("no e-mail, no account", sign(|c| (c.email, c.sub) = (None, "2".into())), Err(Refusal::Forbidden)),
            ("another's id", sign(|c| c.email = Some("eve@x.iam.gserviceaccount.com".into())), Err(Refusal::Forbidden)),
        ] {
            let gate = gate(&key);
            for round in ["cold", "cached"] {
                let mut headers = with("authorization", &format!("Bearer {token}"));
                assert_eq!(gate.check(&service(), &mut headers, at(1)), want, "{what}, {round}");
            }
        }
    }

    #[test]
    fn without_a_bearer_credential_the_answer_is_403() {
        let key = SigningKey::generate().unwrap();
        for mut headers in [HeaderMap::new(), with("authorization", "Basic eDp5"), with("authorization", "Bearer ")] {
            assert_eq!(gate(&key).check(&service(), &mut headers, at(1)), Err(Refusal::Unauthenticated));
        }
        let mut twice = with("authorization", &format!("Bearer {}", sign_id_token(&key, &claims())));
        twice.append("authorization", "Bearer x".parse().unwrap());
        assert_eq!(gate(&key).check(&service(), &mut twice, at(1)), Err(Refusal::InvalidToken));
    }

    #[test]
    fn the_container_sees_the_claims_and_not_the_signature() {
        let key = SigningKey::generate().unwrap();
        let token = sign_id_token(&key, &claims());
        let shown = format!("Bearer {}.SIGNATURE_REMOVED_BY_GOOGLE", token.rsplit_once('.').unwrap().0);
        let mut headers = with("authorization", &format!("bearer {token}"));
        gate(&key).check(&service(), &mut headers, at(1)).unwrap();
        assert_eq!(headers["authorization"], shown.as_str());

        let mut headers = with("authorization", "Bearer of-the-application");
        headers.insert("x-serverless-authorization", format!("Bearer {token}").parse().unwrap());
        gate(&key).check(&service(), &mut headers, at(1)).unwrap();
        assert_eq!(headers["authorization"], "Bearer of-the-application");
        assert_eq!(headers["x-serverless-authorization"], shown.as_str());
    }

    #[test]
    fn a_bad_serverless_header_is_not_rescued_by_a_good_authorization() {
        let key = SigningKey::generate().unwrap();
        let mut headers = with("authorization", &format!("Bearer {}", sign_id_token(&key, &claims())));
        headers.insert("x-serverless-authorization", "Bearer x".parse().unwrap());
        assert_eq!(gate(&key).check(&service(), &mut headers, at(1)), Err(Refusal::InvalidToken));
    }

    #[test]
    fn a_public_service_gets_its_headers_untouched() {
        let mut public = service();
        public.invokers.everyone = true;
        let mut headers = with("authorization", "Bearer a.b.c");
        Gate::new().check(&public, &mut headers, at(1)).unwrap();
        assert_eq!(headers["authorization"], "Bearer a.b.c");
    }

    #[test]
    fn a_remembered_token_ends_with_its_life_its_key_or_its_role() {
        let key = SigningKey::generate().unwrap();
        let gate = gate(&key);
        let token = format!("Bearer {}", sign_id_token(&key, &claims()));
        let check = |service: &EdgeService, s| gate.check(service, &mut with("authorization", &token), at(s));
        assert_eq!(check(&service(), 1), Ok(()));
        assert_eq!(check(&service(), 3_611), Err(Refusal::InvalidToken));
        assert_eq!(check(&service(), 2), Ok(()));
        let mut revoked = service();
        revoked.invokers.accounts.clear();
        assert_eq!(check(&revoked, 3), Err(Refusal::Forbidden));
        revoked.invokers.domains.insert("consumer-1.iam.gserviceaccount.com".into());
        assert_eq!(check(&revoked, 3), Ok(()));
        gate.set_keys(vec![SigningKey::generate().unwrap().public().clone()]);
        assert_eq!(check(&service(), 4), Err(Refusal::InvalidToken));
    }

    #[test]
    fn the_memory_of_tokens_is_bounded() {
        let key = SigningKey::generate().unwrap();
        let gate = gate(&key);
        let end_of = |n: usize| *format!("{n:032}").as_bytes().first_chunk::<32>().unwrap();
        for n in 0..TOKEN_CACHE_MAX + 8 {
            let genuine = Genuine {
                token: String::from_utf8(end_of(n).to_vec()).unwrap().into(),
                subject: String::new(),
                audience: String::new(),
                email: None,
                expires: at(3_600),
                shown: HeaderValue::from_static("Bearer x"),
            };
            let end = end_of(n);
            let mut inner = gate.inner.borrow_mut();
            if inner.order.len() < TOKEN_CACHE_MAX {
                inner.genuine.insert(end, Rc::new(genuine));
                inner.order.push_back(end);
            }
        }
        let token = sign_id_token(&key, &claims());
        gate.genuine(&token, at(1)).unwrap();
        let inner = gate.inner.borrow();
        assert_eq!((inner.genuine.len(), inner.order.len()), (TOKEN_CACHE_MAX, TOKEN_CACHE_MAX));
        let end = token.as_bytes().last_chunk::<32>().unwrap();
        assert!(inner.genuine.contains_key(end) && !inner.genuine.contains_key(&end_of(0)));
    }

    #[test]
    fn a_token_that_ends_like_a_genuine_one_is_not_taken_for_it() {
        let key = SigningKey::generate().unwrap();
        let gate = gate(&key);
        let token = sign_id_token(&key, &claims());
        gate.genuine(&token, at(1)).unwrap();
        let forged = format!("x{token}");
        assert!(gate.genuine(&forged, at(1)).is_err());
        assert!(gate.genuine(&token, at(1)).is_ok());
    }
}
