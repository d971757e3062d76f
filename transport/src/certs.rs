//! Certificates of a cluster: one authority, one leaf for each process. Ed25519 throughout.
//!
//! A leaf carries its process's name and role as DNS names (`unit-1a` and `server.role.milonga`). No address is in
//! it: the name is checked, so a certificate works wherever the process runs. In a directory, the authority is
//! `ca.pem` and `ca.key`, and each process has `NAME.pem` and `NAME.key`; keys are readable by their owner only.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use milonga_protocol::ServerName;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use rustls::pki_types::DnsName;

use crate::network::Role;
use crate::tls::{Tls, TlsError};

const CA_NAME: &str = "ca";
const ROLE_DOMAIN: &str = ".role.milonga";

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertError {
    /// The name cannot stand in a certificate.
    #[error(
        "`{0}` cannot be the name of a process: use letters, digits, `-`, `_` and `.`, at most 63 between dots, \
         and neither `ca` nor a name that ends in `.role.milonga`"
    )]
    Name(ServerName),
    /// The directory already has an authority; overwriting it would cut off every process that uses it.
    #[error(
        "{0} already exists; keep using that authority, or remove it and all certificates it has signed"
    )]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot {verb} {path}; {remedy}")]
    File {
        /// `read` or `write`.
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The authority's files are not what this module writes.
    #[error("{0} is not a certificate authority made by `milonga certs`; make a new one")]
    Authority(PathBuf, #[source] rcgen::Error),
    /// Signing failed.
    #[error("cannot make a certificate")]
    Sign(#[from] rcgen::Error),
    /// What was made is not accepted.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A certificate authority: whoever has its key can make members of the cluster.
pub struct Authority {
    cert: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A process's certificate and its private key, as PEM.
pub struct Leaf {
    /// The certificate.
    pub cert: String,
    /// The private key.
    pub key: String,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// [`CertError::Sign`].
    pub fn new() -> Result<Self, CertError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        // Distinct subjects: a foreign authority is then reported as unknown, not as a broken signature.
        let tag: String = key.public_key_raw()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        params.distinguished_name = named(&format!("milonga authority {tag}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key)?.pem();
        Ok(Self {
            cert,
            key: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The authority in `dir`.
    ///
    /// # Errors
    /// [`CertError::File`] or [`CertError::Authority`], naming the file.
    pub fn read(dir: &Path) -> Result<Self, CertError> {
        let (cert_path, key_path) = paths(dir, CA_NAME);
        let cert = read(&cert_path)?;
        let key = read(&key_path)?;
        let pair = KeyPair::from_pem(&key).map_err(|e| CertError::Authority(key_path, e))?;
        let issuer = Issuer::from_ca_cert_pem(&cert, pair)
            .map_err(|e| CertError::Authority(cert_path, e))?;
        Ok(Self { cert, key, issuer })
    }

    /// Its certificate as PEM: what every process has to trust.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.cert
    }

    /// Makes the certificate of a process.
    ///
    /// # Errors
    /// [`CertError::Name`] or [`CertError::Sign`].
    pub fn issue(&self, name: &ServerName, role: Role) -> Result<Leaf, CertError> {
        self.sign(leaf_params(name, role)?)
    }

    #[cfg(test)]
    pub(crate) fn issue_expired(&self, name: &ServerName) -> Result<Leaf, CertError> {
        let mut params = leaf_params(name, Role::Server)?;
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<Leaf, CertError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        Ok(Leaf {
            cert: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Issues a certificate and puts it together with this authority's.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn tls(&self, name: &ServerName, role: Role) -> Result<Tls, CertError> {
        let leaf = self.issue(name, role)?;
        Ok(Tls::from_pem(&self.cert, &leaf.cert, &leaf.key)?)
    }
}

/// Makes an authority in `dir`, which is created if need be.
///
/// # Errors
/// [`CertError::Exists`] rather than overwriting one; [`CertError::File`].
pub fn make_ca(dir: &Path) -> Result<Authority, CertError> {
    fs::create_dir_all(dir).map_err(|source| CertError::File {
        verb: "create",
        path: dir.to_owned(),
        remedy: "choose a directory that this user may write",
        source,
    })?;
    let (cert, key) = paths(dir, CA_NAME);
    for path in [&cert, &key] {
        if path.exists() {
            return Err(CertError::Exists(path.clone()));
        }
    }
    let authority = Authority::new()?;
    write(&key, &authority.key, 0o600)?;
    write(&cert, &authority.cert, 0o644)?;
    Ok(authority)
}

/// Makes `NAME.pem` and `NAME.key` in `dir`, signed by the authority there; replaces older ones of that name.
///
/// # Errors
/// Any [`CertError`].
pub fn make_leaf(dir: &Path, name: &ServerName, role: Role) -> Result<Leaf, CertError> {
    let leaf = Authority::read(dir)?.issue(name, role)?;
    let (cert, key) = paths(dir, name.as_str());
    write(&key, &leaf.key, 0o600)?;
    write(&cert, &leaf.cert, 0o644)?;
    Ok(leaf)
}

/// What process `name` uses from a directory that [`make_ca`] and [`make_leaf`] have filled.
///
/// # Errors
/// As [`Tls::read`].
pub fn read_tls(dir: &Path, name: &ServerName) -> Result<Tls, TlsError> {
    let (cert, key) = paths(dir, name.as_str());
    Tls::read(paths(dir, CA_NAME).0, cert, key)
}

/// Name and role in a leaf's DNS names.
pub(crate) fn name_and_role<'a>(
    dns_names: impl Iterator<Item = &'a str>,
) -> Result<(ServerName, Role), String> {
    let (mut name, mut role) = (None, None);
    for dns_name in dns_names {
        match dns_name.strip_suffix(ROLE_DOMAIN) {
            Some("server") => role = Some(Role::Server),
            Some("client") => role = Some(Role::Client),
            Some(other) => return Err(format!("its role `{other}` is unknown")),
            None if name.is_none() => name = Some(ServerName::new(dns_name)),
            None => return Err("it has several names".to_owned()),
        }
    }
    let name = name.ok_or("it has no name")?;
    let role = role.ok_or("it has no role")?;
    Ok((name, role))
}

fn leaf_params(name: &ServerName, role: Role) -> Result<CertificateParams, CertError> {
    check_name(name)?;
    let mut params = CertificateParams::new([name.as_str().to_owned(), role_name(role)])?;
    params.distinguished_name = named(name.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match role {
        Role::Server => vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
        // A client cannot pass for a server, whatever its name.
        Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn role_name(role: Role) -> String {
    let role = match role {
        Role::Server => "server",
        Role::Client => "client",
    };
    format!("{role}{ROLE_DOMAIN}")
}

fn check_name(name: &ServerName) -> Result<(), CertError> {
    let text = name.as_str();
    let fine = DnsName::try_from(text).is_ok()
        && !text.ends_with('.')
        && text != CA_NAME
        && !text.to_ascii_lowercase().ends_with(ROLE_DOMAIN);
    fine.then_some(())
        .ok_or_else(|| CertError::Name(name.clone()))
}

fn named(name: &str) -> rcgen::DistinguishedName {
    let mut subject = rcgen::DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn paths(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    (
        dir.join(format!("{name}.pem")),
        dir.join(format!("{name}.key")),
    )
}

fn read(path: &Path) -> Result<String, CertError> {
    fs::read_to_string(path).map_err(|source| CertError::File {
        verb: "read",
        path: path.to_owned(),
        remedy: "make an authority with `milonga certs` first, or name the directory that has one",
        source,
    })
}

/// Writes beside the target and renames, so that nobody ever sees half a file or a key with wider permissions.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let failed = |source| CertError::File {
        verb: "write",
        path: path.to_owned(),
        remedy: "check that the directory exists and that this user may write to it",
        source,
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(&beside).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_certificates_is_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("certs");
        make_ca(&dir).expect("made");
        for (name, role) in [("unit-1a", Role::Server), ("app", Role::Client)] {
            make_leaf(&dir, &name.into(), role).expect("made");
            let tls = read_tls(&dir, &name.into()).expect("read");
            assert_eq!(tls.name(), &ServerName::new(name));
            assert_eq!(tls.role(), role);
        }
        make_leaf(&dir, &"app".into(), Role::Client).expect("replaced");
        let error = make_ca(&dir).map(|_| ()).expect_err("there is one");
        assert!(
            error.to_string().contains("ca.pem already exists"),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        make_ca(dir.path()).expect("made");
        make_leaf(dir.path(), &"unit-1a".into(), Role::Server).expect("made");
        for name in ["ca.key", "unit-1a.key"] {
            let mode = fs::metadata(dir.path().join(name))
                .expect("there")
                .permissions();
            assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn names_that_cannot_be_checked_are_refused() {
        let authority = Authority::new().expect("made");
        for name in [
            "",
            "ca",
            "two words",
            "10.0.0.1",
            "server.role.milonga",
            "a.",
        ] {
            let refused = authority.issue(&name.into(), Role::Client);
            assert!(matches!(refused, Err(CertError::Name(_))), "`{name}`");
        }
        authority
            .issue(&"Unit_1.a".into(), Role::Server)
            .expect("fine");
    }

    #[test]
    fn a_missing_authority_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = make_leaf(dir.path(), &"app".into(), Role::Client)
            .map(|_| ())
            .expect_err("no authority");
        assert!(error.to_string().contains("ca.pem"), "{error}");
        assert!(error.to_string().contains("milonga certs"), "{error}");
    }
}
