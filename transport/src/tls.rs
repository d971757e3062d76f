//! What a process proves itself with and whom it trusts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use milonga_protocol::ServerName;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use ring::hmac;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::certs::{Authority, CertError, name_and_role};
use crate::network::{Caller, Role};

/// Both sides must agree on it; the wire version is checked by the handshake, which can say more.
const ALPN: &[u8] = b"milonga";

/// The authority that a process trusts, its certificate and its key. Complete and consistent once made; cheap to
/// clone.
#[derive(Clone)]
pub struct Tls(Arc<Parts>);

struct Parts {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    caller: Caller,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path} ({what}); make it with `milonga certs`, or correct the path")]
    Read {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A file or text does not hold what it should.
    #[error("{place} does not hold {what}: {why}; {remedy}")]
    Content {
        /// The file, or what stands for it.
        place: String,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
}

const RENEW: &str = "make a new one with `milonga certs`";

/// Where the three parts come from, for errors.
struct Places {
    ca: String,
    cert: String,
    key: String,
}

impl Tls {
    /// Reads PEM files: the authority's certificate, this process's certificate and its key.
    ///
    /// # Errors
    /// [`TlsError`] names the file and says what to do.
    pub fn read(
        ca: impl AsRef<Path>,
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, TlsError> {
        let (ca, cert, key) = (ca.as_ref(), cert.as_ref(), key.as_ref());
        let places = Places {
            ca: ca.display().to_string(),
            cert: cert.display().to_string(),
            key: key.display().to_string(),
        };
        Self::parse(
            &read(ca, "the authority's certificate")?,
            &read(cert, "a certificate")?,
            &read(key, "a private key")?,
            &places,
        )
    }

    /// As [`Tls::read`], from texts.
    ///
    /// # Errors
    /// [`TlsError::Content`].
    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Self, TlsError> {
        let places = Places {
            ca: "the authority's certificate".to_owned(),
            cert: "the certificate".to_owned(),
            key: "the key".to_owned(),
        };
        Self::parse(ca.as_bytes(), cert.as_bytes(), key.as_bytes(), &places)
    }

    /// Certificates for a few processes under one new authority that is then forgotten: for tests and for
    /// clusters that live as long as this process.
    ///
    /// # Errors
    /// [`CertError`] if a name cannot stand in a certificate.
    pub fn self_made<const N: usize>(processes: [(&str, Role); N]) -> Result<[Self; N], CertError> {
        let authority = Authority::new()?;
        let mut made = Vec::with_capacity(N);
        for (name, role) in processes {
            made.push(authority.tls(&name.into(), role)?);
        }
        Ok(made
            .try_into()
            .unwrap_or_else(|_| unreachable!("N were made")))
    }

    /// The name in the certificate.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        &self.0.caller.name
    }

    /// The role in the certificate.
    #[must_use]
    pub fn role(&self) -> Role {
        self.0.caller.role
    }

    fn parse(ca: &[u8], cert: &[u8], key: &[u8], places: &Places) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let what = "an authority's certificate";
        for root in certificates(ca, &places.ca, what)? {
            roots
                .add(root)
                .map_err(|e| content(&places.ca, what, &e, RENEW))?;
        }
        let roots = Arc::new(roots);
        let what = "a certificate";
        let chain = certificates(cert, &places.cert, what)?;
        let caller = identify(&chain).map_err(|why| content(&places.cert, what, &why, RENEW))?;
        check_signed(&roots, &chain).map_err(|e| {
            let remedy = "use the certificate and the authority of the same cluster";
            content(&places.cert, "a certificate of this cluster", &e, remedy)
        })?;
        let what = "a private key";
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| content(&places.key, what, &e, RENEW))?;
        let tls = Self(Arc::new(Parts {
            roots,
            chain,
            key,
            caller,
        }));
        tls.client_config().map_err(|e| {
            let remedy = "use the key that was made together with the certificate";
            content(&places.key, "the key of the certificate", &e, remedy)
        })?;
        Ok(tls)
    }

    /// Shows this certificate and trusts the authority of `other`.
    #[cfg(test)]
    pub(crate) fn trusting(&self, other: &Self) -> Self {
        Self(Arc::new(Parts {
            roots: other.0.roots.clone(),
            chain: self.0.chain.clone(),
            key: self.0.key.clone_key(),
            caller: self.0.caller.clone(),
        }))
    }

    pub(crate) fn client_config(&self) -> Result<Arc<QuicClientConfig>, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(self.0.roots.clone())
            .with_client_auth_cert(self.0.chain.clone(), self.0.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Every connection proves both sides anew; nothing is sent before it is proved.
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_early_data = false;
        let config = QuicClientConfig::try_from(config);
        Ok(Arc::new(config.expect("TLS 1.3 has QUIC's cipher suite")))
    }

    pub(crate) fn server_config(&self) -> Result<Arc<QuicServerConfig>, rustls::Error> {
        let verifier = client_verifier(&self.0.roots)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.0.chain.clone(), self.0.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        let config = QuicServerConfig::try_from(config);
        Ok(Arc::new(config.expect("TLS 1.3 has QUIC's cipher suite")))
    }

    /// A secret that is the same in every run of this process and unknown to others.
    pub(crate) fn derive_secret(&self, purpose: &str) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.key.secret_der());
        let tag = hmac::sign(&key, purpose.as_bytes());
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

/// Name and role that a chain proves. The chain itself is verified elsewhere.
pub(crate) fn identify(chain: &[CertificateDer<'_>]) -> Result<Caller, String> {
    let leaf = chain.first().ok_or("there is no certificate")?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|error| error.to_string())?;
    let (name, role) = name_and_role(leaf.valid_dns_names())?;
    Ok(Caller { name, role })
}

fn check_signed(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'_>],
) -> Result<(), rustls::Error> {
    let (leaf, others) = chain
        .split_first()
        .ok_or(rustls::Error::NoCertificatesPresented)?;
    client_verifier(roots)?
        .verify_client_cert(leaf, others, UnixTime::now())
        .map(|_| ())
}

fn client_verifier(
    roots: &Arc<RootCertStore>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// Named explicitly everywhere: the process-wide default belongs to the application.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(
    pem: &[u8],
    place: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(content(place, what, &"it has no certificate", RENEW)),
        Ok(found) => Ok(found),
        Err(error) => Err(content(place, what, &error, RENEW)),
    }
}

fn content(
    place: &str,
    what: &'static str,
    why: &dyn fmt::Display,
    remedy: &'static str,
) -> TlsError {
    TlsError::Content {
        place: place.to_owned(),
        what,
        why: why.to_string(),
        remedy,
    }
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        what,
        source,
    })
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({}, {:?})", self.name(), self.role())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ca: &Authority, cert: &str, key: &str) -> String {
        Tls::from_pem(ca.pem(), cert, key)
            .expect_err("does not fit")
            .to_string()
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let ours = Authority::new().expect("made");
        let theirs = Authority::new().expect("made");
        let leaf = ours.issue(&"unit-1a".into(), Role::Server).expect("made");
        let other = ours.issue(&"unit-1b".into(), Role::Server).expect("made");

        assert!(text(&theirs, &leaf.cert, &leaf.key).contains("of the same cluster"));
        assert!(text(&ours, &leaf.cert, &other.key).contains("made together"));
        assert!(text(&ours, "nonsense", &leaf.key).contains("no certificate"));
        assert!(text(&ours, &leaf.cert, "nonsense").contains("a private key"));
        assert!(text(&ours, ours.pem(), &leaf.key).contains("it has no name"));
    }

    #[test]
    fn an_expired_certificate_is_named() {
        let ours = Authority::new().expect("made");
        let leaf = ours.issue_expired(&"unit-1a".into()).expect("made");
        let text = text(&ours, &leaf.cert, &leaf.key);
        assert!(text.contains("expired"), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Tls::read("/nowhere/ca.pem", "/nowhere/a.pem", "/nowhere/a.key")
            .expect_err("no such file");
        let text = error.to_string();
        assert!(
            text.contains("/nowhere/ca.pem") && text.contains("milonga certs"),
            "{text}"
        );
    }

    #[test]
    fn secrets_are_stable_and_separate() {
        let [a, b] = Tls::self_made([("a", Role::Server), ("b", Role::Server)]).expect("made");
        assert_eq!(a.derive_secret("x"), a.derive_secret("x"));
        assert_ne!(a.derive_secret("x"), a.derive_secret("y"));
        assert_ne!(a.derive_secret("x"), b.derive_secret("x"));
    }
}
