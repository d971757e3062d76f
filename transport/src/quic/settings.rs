//! How QUIC is set up: what differs from quinn's defaults, and why.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::env::SharedEnv;
use quinn::udp::{UdpSockRef, UdpSocketState};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, MtuDiscoveryConfig,
    ServerConfig, TransportConfig, VarInt,
};
use ring::hmac;

use crate::bounds::Bounds;
use crate::tls::Tls;

/// Bidirectional streams per connection for calls: a lost packet holds up only the calls of its stream.
pub(super) const CALL_STREAMS: usize = 2;
/// Bodies above this travel on the bulk stream, so that small calls need not wait behind them.
pub(super) const BULK_BYTES: usize = 256 << 10;

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const SEND_WINDOW: u64 = 8 << 20;
/// Connection attempts that wait to be looked at; they have proved nothing yet.
const WAITING_ATTEMPTS: usize = 256;
/// Larger than the kernel's default: bursts of a whole window should not overflow it.
const SOCKET_BUFFER: usize = 2 << 20;
/// Loopback and jumbo frames carry such packets; elsewhere discovery ends at what the path carries. Bodies of 4 KiB
/// cost a third less than with 1,472; from 9,000 on a lost packet hurt more than large ones helped.
const LARGEST_PACKET: u16 = 4_000;
/// Of machines in one data centre. Only the first packets depend on it: with quinn's 333 ms a server that starts
/// while it is dialled is found a second late.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(50);

pub(super) fn client_config(tls: &Tls, bounds: &Bounds) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::new(tls.client_config()?);
    config.transport_config(transport(bounds));
    Ok(config)
}

pub(super) fn server_config(tls: &Tls, bounds: &Bounds) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::with_crypto(tls.server_config()?);
    config.transport_config(transport(bounds));
    config.migration(false);
    config.max_incoming(WAITING_ATTEMPTS);
    config.incoming_buffer_size(64 << 10);
    config.incoming_buffer_size_total(4 << 20);
    Ok(config)
}

/// A server that was killed and is back must be able to tell its callers that their connections are gone: the
/// key by which they recognise that has to be the same in every run, so it comes from the private key.
pub(super) fn server_endpoint(
    tls: &Tls,
    env: &SharedEnv,
    seed: Option<[u8; 32]>,
) -> EndpointConfig {
    let secret = tls.derive_secret("milonga stateless reset");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    let mut config = with_packets(EndpointConfig::new(Arc::new(key)), seed);
    let env = env.clone();
    // quinn's own generator would not recognise the connections of an earlier run.
    config.cid_generator(move || Box::new(RandomIds(env.clone())));
    config
}

pub(super) fn client_endpoint(seed: Option<[u8; 32]>) -> EndpointConfig {
    with_packets(EndpointConfig::default(), seed)
}

fn with_packets(mut config: EndpointConfig, seed: Option<[u8; 32]>) -> EndpointConfig {
    config
        .rng_seed(seed)
        .max_udp_payload_size(LARGEST_PACKET)
        .expect("more than QUIC's least");
    config
}

fn transport(bounds: &Bounds) -> Arc<TransportConfig> {
    let streams = VarInt::from_u64(CALL_STREAMS as u64).expect("few");
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(streams)
        .max_concurrent_uni_streams(VarInt::from(1u32))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from(STREAM_WINDOW))
        .receive_window(VarInt::from(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .initial_rtt(FIRST_ROUND_TRIP)
        .keep_alive_interval(Some(bounds.keep_alive))
        .max_idle_timeout(bounds.idle.try_into().ok());
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(LARGEST_PACKET);
    config.mtu_discovery_config(Some(discovery));
    Arc::new(config)
}

/// A bound socket with larger buffers, as far as the system allows.
pub(super) fn socket(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(addr)?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    // Smaller buffers cost speed, nothing else.
    let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER);
    let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER);
    Ok(socket)
}

struct RandomIds(SharedEnv);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.random().to_le_bytes())
    }

    fn cid_len(&self) -> usize {
        size_of::<u64>()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
