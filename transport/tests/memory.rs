//! The network in memory keeps the contract, and its test hooks do what they say.

mod suite;

use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::ServerName;
use milonga_protocol::env::{BoxFuture, SharedEnv};
use milonga_protocol::frame::Message;
use milonga_transport::{
    Bounds, CallError, MemoryNetwork, Peer, Role, Service, SharedNetwork, TokioEnv,
};
use suite::{NetworkUnderTest, Running, Toy, call, conformance, message};

struct Memory {
    env: SharedEnv,
    network: Arc<MemoryNetwork>,
}

impl NetworkUnderTest for Memory {
    fn env(&self) -> SharedEnv {
        self.env.clone()
    }

    fn client(&self, n: usize) -> SharedNetwork {
        let name = ServerName::new(format!("client-{n}"));
        self.network.endpoint(name, Role::Client)
    }

    fn peer(&self, n: usize) -> Peer {
        let name = format!("server-{n}");
        Peer {
            name: ServerName::new(&name),
            address: name.into(),
        }
    }

    fn serve(&self, n: usize, service: Arc<dyn Service>) -> BoxFuture<'_, Running> {
        let serving = self.network.serve(self.peer(n).name, service);
        Box::pin(async { Running(Box::new(|| Box::pin(async move { drop(serving) }))) })
    }
}

fn memory() -> Memory {
    let env: SharedEnv = TokioEnv::new();
    let mut bounds = Bounds::default();
    bounds.in_flight_bytes = 1 << 20;
    bounds.queue_bytes = 1 << 20;
    // A frame of any size still gets through a bound smaller than itself.
    Memory {
        network: MemoryNetwork::with_bounds(env.clone(), bounds),
        env,
    }
}

conformance!(memory);

struct Two {
    env: SharedEnv,
    network: Arc<MemoryNetwork>,
    client: SharedNetwork,
    peer: Peer,
    toy: Arc<Toy>,
    names: [ServerName; 2],
}

fn two() -> (Two, milonga_transport::Serving) {
    let memory = memory();
    let toy = Arc::new(Toy::default());
    let peer = memory.peer(0);
    let serving = memory.network.serve(peer.name.clone(), toy.clone());
    let two = Two {
        client: memory.client(0),
        names: ["client-0".into(), peer.name.clone()],
        env: memory.env,
        network: memory.network,
        peer,
        toy,
    };
    (two, serving)
}

impl Two {
    async fn call(&self, header: &str) -> Result<Message, CallError> {
        let limit = Duration::from_secs(1);
        call(
            &self.client,
            &self.peer,
            &self.env,
            limit,
            message(header, ""),
        )
        .await
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_passes_a_cut_link_until_it_is_healed() {
    let (two, _serving) = two();
    let [client, server] = &two.names;
    two.network.cut(client, server);
    assert!(matches!(
        two.call("echo").await,
        Err(CallError::TimedOut { sent: true, .. })
    ));
    assert_eq!(two.toy.handled(), 0);
    two.network.heal(client, server);
    two.call("echo").await.expect("healed");
}

#[tokio::test(start_paused = true)]
async fn answers_vanish_on_a_link_cut_one_way() {
    let (two, _serving) = two();
    let [client, server] = &two.names;
    two.network.cut_one_way(server, client);
    for header in ["echo", "drop"] {
        assert!(matches!(
            two.call(header).await,
            Err(CallError::TimedOut { sent: true, .. })
        ));
    }
    assert_eq!(two.toy.handled(), 2, "requests still arrive");
}

#[tokio::test(start_paused = true)]
async fn a_killed_server_is_gone_and_its_guard_spares_the_next() {
    let (two, serving) = two();
    two.network.kill(&two.names[1]);
    assert!(matches!(
        two.call("echo").await,
        Err(CallError::Unreachable { .. })
    ));
    let _next = two.network.serve(two.names[1].clone(), two.toy.clone());
    drop(serving);
    two.call("echo").await.expect("the next one serves");
}

#[tokio::test]
async fn a_server_is_freed_even_if_its_service_keeps_replies() {
    let (two, serving) = two();
    let service = Arc::downgrade(&two.toy);
    let held = two.call("hold");
    tokio::select! {
        biased;
        _ = held => panic!("held"),
        () = two.env.sleep(Duration::from_millis(1)) => {}
    }
    drop((two, serving));
    assert!(service.upgrade().is_none());
}
