//! The certificate authority of this installation, which sandboxes trust, and the certificates it makes for hosts.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const LIFETIME: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Clocks of sandboxes may be behind.
const IN_THE_PAST: Duration = Duration::from_secs(60 * 60);
/// How long a leaf is given out; it is valid for [`DAY`].
const REUSE: Duration = Duration::from_secs(12 * 60 * 60);
const MAX_LEAVES: usize = 1024;

/// Signs for hosts. Its key stays in this process and in a file that only its owner reads.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    /// One for all leaves: it never leaves this process, and making one for each host would be the larger cost.
    leaf_key: KeyPair,
    leaf_signer: Arc<dyn rustls::sign::SigningKey>,
    leaves: Mutex<HashMap<String, Leaf>>,
}

struct Leaf {
    key: Arc<CertifiedKey>,
    made: Instant,
    used: Instant,
}

impl Authority {
    /// Its whole name.
    pub const NAME: &'static str = "OpenSandbox Proxy CA";

    /// The one in `folder` (`ca.pem`, and `ca.key` with mode 0600), made at the first call. Made in an order in which a
    /// crash leaves a key without a certificate at worst, and the next call goes on from there.
    pub fn open_or_create(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let key = match fs::read_to_string(folder.join(KEY)) {
            Ok(text) => KeyPair::from_pem(&text).map_err(|error| bad(format!("{KEY}: {error}")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = new_key()?;
                write(folder, KEY, &key.serialize_pem(), 0o600)?;
                key
            }
            Err(error) => return Err(error),
        };
        let pem = match fs::read_to_string(folder.join(CERTIFICATE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pem = authority_params().self_signed(&key).map_err(io::Error::other)?.pem();
                write(folder, CERTIFICATE, &pem, 0o644)?;
                pem
            }
            Err(error) => return Err(error),
        };
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| bad(format!("{CERTIFICATE}: {error}")))?;
        let public = key.public_key_raw();
        if !der.windows(public.len()).any(|window| window == public) {
            return Err(bad(format!(
                "{CERTIFICATE} does not belong to {KEY}; remove both to have new ones made"
            )));
        }
        let leaf_key = new_key()?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let leaf_signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).map_err(io::Error::other)?;
        Ok(Self {
            pem,
            issuer: Issuer::new(authority_params(), key),
            leaf_key,
            leaf_signer,
            leaves: Mutex::default(),
        })
    }

    /// What sandboxes have to trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for a host name or an address, made now or within the last half day.
    pub(crate) fn leaf(&self, host: &str) -> io::Result<Arc<CertifiedKey>> {
        let now = Instant::now();
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get_mut(host).filter(|leaf| now - leaf.made < REUSE) {
            leaf.used = now;
            return Ok(leaf.key.clone());
        }
        let key = Arc::new(self.sign(host)?);
        if leaves.len() >= MAX_LEAVES {
            let oldest = leaves.iter().min_by_key(|(_, leaf)| leaf.used).map(|(host, _)| host.clone());
            oldest.and_then(|host| leaves.remove(&host));
        }
        leaves.insert(host.to_owned(), Leaf { key: key.clone(), made: now, used: now });
        Ok(key)
    }

    fn sign(&self, host: &str) -> io::Result<CertifiedKey> {
        let mut params = CertificateParams::default();
        params.not_before = (SystemTime::now() - IN_THE_PAST).into();
        params.not_after = (SystemTime::now() + DAY).into();
        params.subject_alt_names = vec![match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.try_into().map_err(io::Error::other)?),
        }];
        params.distinguished_name = DistinguishedName::new();
        // A common name has at most 64 characters; programs look at the names above.
        if host.len() <= 64 {
            params.distinguished_name.push(DnType::CommonName, host);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Programs refuse two certificates of one issuer with the same number.
        params.serial_number = Some(serial());
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.leaf_key, &self.issuer).map_err(io::Error::other)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], self.leaf_signer.clone()))
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - IN_THE_PAST).into();
    params.not_after = (SystemTime::now() + LIFETIME).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, Authority::NAME);
    params.serial_number = Some(serial());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Random and positive.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn new_key() -> io::Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// All of it or nothing, and on the disk when this returns.
fn write(folder: &Path, name: &str, text: &str, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut file =
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(mode)).tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(folder.join(name)).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_is_made_once_and_its_key_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open_or_create(folder.path()).unwrap();
        let again = Authority::open_or_create(folder.path()).unwrap();
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        let mode = fs::metadata(folder.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_that_was_not_written_is_made_for_the_key_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        Authority::open_or_create(folder.path()).unwrap();
        let key = fs::read(folder.path().join(KEY)).unwrap();
        fs::remove_file(folder.path().join(CERTIFICATE)).unwrap();
        Authority::open_or_create(folder.path()).unwrap();
        assert_eq!(fs::read(folder.path().join(KEY)).unwrap(), key);
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::open_or_create(one.path()).unwrap();
        Authority::open_or_create(other.path()).unwrap();
        fs::copy(one.path().join(CERTIFICATE), other.path().join(CERTIFICATE)).unwrap();
        let Err(error) = Authority::open_or_create(other.path()) else { panic!("taken") };
        assert!(error.to_string().contains("does not belong"), "{error}");
    }

    #[test]
    fn leaves_are_kept_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path()).unwrap();
        let leaf = authority.leaf("a.example").unwrap();
        assert!(Arc::ptr_eq(&leaf, &authority.leaf("a.example").unwrap()));
        for host in 0..MAX_LEAVES + 10 {
            authority.leaf(&format!("h{host}.example")).unwrap();
        }
        assert_eq!(authority.leaves.lock().unwrap().len(), MAX_LEAVES);
        assert!(authority.leaf("198.51.100.7").is_ok());
    }
}
