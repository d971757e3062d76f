//! The certificates of a world: the same in every run, because their lengths show.

use std::collections::BTreeMap;

use milonga_protocol::ServerName;
use milonga_transport::{Role, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};

/// What comes before the 32 bytes of an Ed25519 key in PKCS #8.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// What each process proves itself with.
#[derive(Debug)]
pub(crate) struct Certificates(BTreeMap<ServerName, Tls>);

impl Certificates {
    pub(crate) fn new(servers: &[ServerName], clients: &[ServerName]) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "world");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serial_number = Some(SerialNumber::from(100_u64));
        let ca_key = key(0);
        let ca = params.self_signed(&ca_key).expect("signs").pem();
        let issuer = Issuer::new(params, ca_key);
        let servers = servers.iter().map(|name| (name, Role::Server));
        let clients = clients.iter().map(|name| (name, Role::Client));
        let tls = |(number, (name, role)): (usize, (&ServerName, Role))| {
            let number = u8::try_from(number + 1).expect("few processes");
            let key = key(number);
            let leaf = leaf(name, role, number).signed_by(&key, &issuer);
            let leaf = leaf.expect("signs").pem();
            let tls = Tls::from_pem(&ca, &leaf, &key.serialize_pem());
            (name.clone(), tls.expect("made as the transport makes them"))
        };
        Self(servers.chain(clients).enumerate().map(tls).collect())
    }

    pub(crate) fn of(&self, name: &ServerName) -> &Tls {
        &self.0[name]
    }
}

/// A key that is no secret.
fn key(number: u8) -> KeyPair {
    let mut der = PKCS8.to_vec();
    der.extend([number; 32]);
    KeyPair::try_from(der).expect("a key of Ed25519")
}

fn leaf(name: &ServerName, role: Role, number: u8) -> CertificateParams {
    let (role, usage) = match role {
        Role::Client => ("client", vec![ExtendedKeyUsagePurpose::ClientAuth]),
        _ => (
            "server",
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        ),
    };
    let names = vec![name.as_str().to_owned(), format!("{role}.role.milonga")];
    let mut params = CertificateParams::new(names).expect("names");
    params
        .distinguished_name
        .push(DnType::CommonName, name.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usage;
    params.serial_number = Some(SerialNumber::from(100 + u64::from(number)));
    params.use_authority_key_identifier_extension = true;
    params
}
