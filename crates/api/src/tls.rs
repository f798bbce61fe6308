//! The private certificate authority of one cloud, and the leaves it mints for the names at the door.
//!
//! The authority can sign for Google's names only (name constraints), so a person may trust its `ca.pem` without
//! trusting it for anything else. Its key never leaves this module and its file. Start with [`Authority::open`].

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use model::{limits::DOOR_LEAVES_MAX, time::Timestamp};

/// The domains that the authority may sign for, with everything below them.
const DOMAINS: [&str; 5] = ["googleapis.com", "google.com", "run.app", "pkg.dev", "tunnel.cloudproxy.app"];

/// A leaf is valid from a day before it is minted until this long after. Source: browsers' limit of 398 days.
const LEAF_LIFE: Duration = Duration::from_secs(390 * 86_400);
/// A cached leaf older than this is minted anew.
const LEAF_RENEW: Duration = Duration::from_secs(180 * 86_400);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read or write {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} holds no key of ours")]
    Key { path: PathBuf, source: rcgen::Error },
    #[error("cannot sign a certificate for {name}")]
    Sign { name: String, source: rcgen::Error },
    #[error("cannot offer the certificate for {name}")]
    Offer { name: String, source: rustls::Error },
}

/// The authority with its cache of minted leaves.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    ca_path: PathBuf,
    /// One key for all leaves: a leaf costs one signature.
    leaf_key: KeyPair,
    leaves: Mutex<Leaves>,
}

#[derive(Default)]
struct Leaves {
    by_name: HashMap<String, (Timestamp, Arc<ServerConfig>)>,
    /// Oldest first.
    order: VecDeque<String>,
}

impl Authority {
    /// Opens the authority in `dir`, or makes it: `ca-key.pem` (mode 0600) and `ca.pem`.
    ///
    /// # Errors
    /// Files that cannot be read or written, or a key file that holds something else. A broken key is never replaced:
    /// clients trust the certificate that goes with it.
    pub fn open(dir: &Path) -> Result<Authority, TlsError> {
        let (key_path, ca_path) = (dir.join("ca-key.pem"), dir.join("ca.pem"));
        let key = match fs::read_to_string(&key_path) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(|source| TlsError::Key { path: key_path, source })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let key = new_key("the authority")?;
                write(&key_path, &key.serialize_pem(), 0o600)?;
                key
            }
            Err(source) => return Err(TlsError::File { path: key_path, source }),
        };
        let params = authority_params();
        let ca_pem = match fs::read_to_string(&ca_path) {
            Ok(pem) => pem,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let pem = params.self_signed(&key).map_err(|source| sign_error("the authority", source))?.pem();
                write(&ca_path, &pem, 0o644)?;
                pem
            }
            Err(source) => return Err(TlsError::File { path: ca_path, source }),
        };
        let leaf_key = new_key("the leaves")?;
        // The parameters are constants and the key is the same, so this issuer is the one that `ca.pem` shows.
        Ok(Authority { issuer: Issuer::new(params, key), ca_pem, ca_path, leaf_key, leaves: Mutex::default() })
    }

    /// What clients must trust, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Where [`Authority::ca_pem`] lies on disk.
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// The server side of TLS for `host`, minted or remembered.
    ///
    /// # Errors
    /// A host name that no certificate can carry.
    pub fn server_config(&self, host: &str, now: Timestamp) -> Result<Arc<ServerConfig>, TlsError> {
        {
            let leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
            // One from the future was minted by a clock that has been set back: nobody would take it yet.
            if let Some((minted, config)) = leaves.by_name.get(host)
                && *minted <= now
                && now.since(*minted) < LEAF_RENEW
            {
                return Ok(config.clone());
            }
        }
        let config = Arc::new(self.mint(host, now)?);
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        leaves.remember(host, now, config.clone());
        Ok(config)
    }

    fn mint(&self, host: &str, now: Timestamp) -> Result<ServerConfig, TlsError> {
        let mut params = CertificateParams::new([host.to_owned()]).map_err(|e| sign_error(host, e))?;
        let mut name = DistinguishedName::new();
        // A common name has at most 64 characters; the alternative name is what counts.
        name.push(DnType::CommonName, host.get(..64).unwrap_or(host));
        params.distinguished_name = name;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let (year, month, date) = day(Timestamp(now.0.saturating_sub(86_400 * 1_000_000)));
        params.not_before = rcgen::date_time_ymd(year, month, date);
        let (year, month, date) = day(now.plus(LEAF_LIFE));
        params.not_after = rcgen::date_time_ymd(year, month, date);
        let leaf = params.signed_by(&self.leaf_key, &self.issuer).map_err(|e| sign_error(host, e))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let offer = |source| TlsError::Offer { name: host.to_owned(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(offer)?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .map_err(offer)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl Leaves {
    fn remember(&mut self, host: &str, now: Timestamp, config: Arc<ServerConfig>) {
        if self.by_name.insert(host.to_owned(), (now, config)).is_some() {
            self.order.retain(|name| name != host);
        }
        self.order.push_back(host.to_owned());
        if self.order.len() > DOOR_LEAVES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_name.remove(&oldest);
        }
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "tombolo");
    name.push(DnType::CommonName, "tombolo private cloud");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: DOMAINS.iter().map(|d| GeneralSubtree::DnsName((*d).to_owned())).collect(),
        excluded_subtrees: Vec::new(),
    });
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 12, 31);
    params
}

fn new_key(name: &str) -> Result<KeyPair, TlsError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| sign_error(name, source))
}

fn sign_error(name: &str, source: rcgen::Error) -> TlsError {
    TlsError::Sign { name: name.to_owned(), source }
}

/// The day of `at` in UTC, as the certificate library wants it.
fn day(at: Timestamp) -> (i32, u8, u8) {
    let date = jiff::Timestamp::from_microsecond(at.0).unwrap_or_default().to_zoned(jiff::tz::TimeZone::UTC).date();
    let part = |n: i8| n.unsigned_abs();
    (i32::from(date.year()), part(date.month()), part(date.day()))
}

/// Writes a file that either is complete or is not there.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let new = path.with_extension("new");
    let go = || {
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    go().map_err(|source| TlsError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::Dir;

    #[test]
    fn an_authority_is_made_once_and_its_key_is_for_its_owner_only() {
        let dir = Dir::new();
        let first = Authority::open(dir.path()).unwrap().ca_pem().to_owned();
        let key = fs::read(dir.path().join("ca-key.pem")).unwrap();
        let mode = fs::metadata(dir.path().join("ca-key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Authority::open(dir.path()).unwrap().ca_pem(), first);
        assert_eq!(fs::read(dir.path().join("ca-key.pem")).unwrap(), key);
    }

    #[test]
    fn a_broken_key_file_is_refused_and_not_replaced() {
        let dir = Dir::new();
        fs::write(dir.path().join("ca-key.pem"), "not a key").unwrap();
        assert!(matches!(Authority::open(dir.path()), Err(TlsError::Key { .. })));
        assert_eq!(fs::read_to_string(dir.path().join("ca-key.pem")).unwrap(), "not a key");
    }

    #[test]
    fn leaves_are_remembered_up_to_the_limit_and_renewed_when_old() {
        let dir = Dir::new();
        let authority = Authority::open(dir.path()).unwrap();
        let now = Timestamp::from_unix_s(1_800_000_000);
        let first = authority.server_config("a.run.app", now).unwrap();
        assert!(Arc::ptr_eq(&first, &authority.server_config("a.run.app", now.plus(LEAF_RENEW / 2)).unwrap()));
        assert!(!Arc::ptr_eq(&first, &authority.server_config("a.run.app", now.plus(LEAF_RENEW)).unwrap()));
        let renewed = authority.server_config("a.run.app", now.plus(LEAF_RENEW)).unwrap();
        assert!(!Arc::ptr_eq(&renewed, &authority.server_config("a.run.app", now).unwrap()), "the clock was set back");
        for n in 0..DOOR_LEAVES_MAX {
            authority.server_config(&format!("n{n}.run.app"), now).unwrap();
        }
        let leaves = authority.leaves.lock().unwrap();
        assert_eq!((leaves.order.len(), leaves.by_name.len()), (DOOR_LEAVES_MAX, DOOR_LEAVES_MAX));
        assert!(!leaves.by_name.contains_key("a.run.app"));
    }
}
