//! From what quinn says went wrong to what a caller can do about it.

use quinn::{ConnectionError, TransportErrorCode, VarInt};

use crate::network::{CallError, Peer};

/// Why a side closes a connection; the reason goes with it as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// It stops, or does not need it any more.
    Done,
    /// The other side sent what is no acceptable frame.
    Malformed,
    /// The other side is not what it should be: version, cluster.
    Refused,
    /// The other side's certificate says too little.
    Certificate,
    /// A task of the connection ended unexpectedly.
    Broken,
}

impl Close {
    /// Closes the connection, unless it is closed: its reason would be lost.
    pub(super) fn close(self, connection: &quinn::Connection, why: &str) {
        if connection.close_reason().is_none() {
            connection.close(self.code(), why.as_bytes());
        }
    }

    pub(super) fn code(self) -> VarInt {
        VarInt::from(match self {
            Self::Done => 0u32,
            Self::Malformed => 1,
            Self::Refused => 2,
            Self::Certificate => 3,
            Self::Broken => 4,
        })
    }
}

/// Why a connection could not be made.
pub(super) fn dial(peer: &Peer, error: &ConnectionError) -> CallError {
    let peer = peer.to_string();
    match error {
        ConnectionError::TransportError(local) => match tls_alert(local.code) {
            Some(alert) if is_about_certificates(alert) => CallError::Certificate {
                peer,
                why: local.reason.clone(),
            },
            Some(_) => CallError::Handshake {
                peer,
                why: format!("no TLS connection: {}", local.reason),
            },
            None => unreachable(peer, text(error)),
        },
        ConnectionError::ConnectionClosed(remote) => match tls_alert(remote.error_code) {
            Some(alert) if is_about_certificates(alert) => CallError::Certificate {
                peer,
                why: format!("it refused this side's certificate: {}", alert_text(alert)),
            },
            Some(alert) => CallError::Handshake {
                peer,
                why: format!(
                    "no TLS connection: {}; is another program on this port?",
                    alert_text(alert)
                ),
            },
            None => unreachable(peer, text(error)),
        },
        ConnectionError::ApplicationClosed(close) => {
            let why = String::from_utf8_lossy(&close.reason).into_owned();
            match close.error_code {
                code if code == Close::Certificate.code() => CallError::Certificate { peer, why },
                code if code == Close::Refused.code() || code == Close::Malformed.code() => {
                    CallError::Handshake { peer, why }
                }
                _ => unreachable(peer, why),
            }
        }
        ConnectionError::VersionMismatch => CallError::Handshake {
            peer,
            why: "it speaks another version of QUIC; is another program on this port?".to_owned(),
        },
        _ => unreachable(peer, text(error)),
    }
}

/// Why a connection ended, for people.
pub(super) fn text(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(local) if !local.reason.is_empty() => local.reason.clone(),
        ConnectionError::ConnectionClosed(remote)
            if remote.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            "it takes no new connections: it is being stopped, or too many are open".to_owned()
        }
        ConnectionError::ConnectionClosed(remote) => match tls_alert(remote.error_code) {
            Some(alert) => format!("the other side refused it: {}", alert_text(alert)),
            None => error.to_string(),
        },
        ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        ConnectionError::Reset => "the other side has restarted".to_owned(),
        ConnectionError::TimedOut => "nothing was heard from the other side".to_owned(),
        ConnectionError::LocallyClosed => "closed by this side".to_owned(),
        _ => error.to_string(),
    }
}

fn unreachable(peer: String, why: String) -> CallError {
    CallError::Unreachable { peer, why }
}

fn tls_alert(code: TransportErrorCode) -> Option<u8> {
    let code = u64::from(code).checked_sub(0x100)?;
    u8::try_from(code).ok()
}

const fn is_about_certificates(alert: u8) -> bool {
    matches!(alert, 41..=46 | 48 | 49 | 51 | 116)
}

fn alert_text(alert: u8) -> String {
    let text = match alert {
        42 => "bad certificate",
        43 => "a certificate for another purpose (a client's used by a server?)",
        44 => "revoked certificate",
        45 => "expired certificate, or a clock that is wrong",
        46 => "certificate not acceptable",
        48 => "signed by an authority that it does not know",
        49 => "access denied",
        51 => "the signature does not fit the certificate",
        41 | 116 => "no certificate was shown",
        120 => "it does not speak Milonga's protocol",
        _ => return format!("TLS alert {alert}"),
    };
    text.to_owned()
}
