//! The network between the members.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, Weak};
use std::time::Duration;

use milonga_protocol::{BoxFuture, Time};

use super::*;

/// The network: who is reachable, and what travelled.
pub(super) struct Net {
    env: SharedEnv,
    state: Mutex<State>,
    /// What happened, line by line.
    trace: Mutex<Vec<String>>,
}

#[derive(Default)]
struct State {
    replicas: BTreeMap<MemberId, Weak<Replica>>,
    cut_off: BTreeSet<MemberId>,
}

impl Net {
    pub(super) fn new(env: &SharedEnv) -> Arc<Self> {
        Arc::new(Self {
            env: Arc::clone(env),
            state: Mutex::default(),
            trace: Mutex::default(),
        })
    }

    /// Lets others reach a member for as long as it is there.
    pub(super) fn attach(&self, id: MemberId, replica: &Arc<Replica>) {
        self.lock().replicas.insert(id, Arc::downgrade(replica));
    }

    pub(super) fn cut_off(&self, id: MemberId) {
        self.note(&format!("cut off {id}"));
        self.lock().cut_off.insert(id);
    }

    pub(super) fn is_cut_off(&self, id: MemberId) -> bool {
        self.lock().cut_off.contains(&id)
    }

    pub(super) fn heal(&self) {
        self.note("heal");
        self.lock().cut_off.clear();
    }

    pub(super) fn note(&self, what: &str) {
        let line = format!("{:?} {what}", self.env.now());
        self.trace.lock().unwrap().push(line);
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.trace.lock().unwrap().clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A drawn delay below 10 ms.
    fn delay(&self) -> BoxFuture<'static, ()> {
        let delay = Duration::from_micros(self.env.random() % 10_000);
        self.env.sleep(delay)
    }

    /// Whether something can go between the two now.
    fn connected(&self, a: MemberId, b: MemberId) -> bool {
        !self.is_cut_off(a) && !self.is_cut_off(b)
    }
}

/// One member's way into the network. What is cut off hangs: nobody is told.
pub(super) struct Wire {
    from: MemberId,
    net: Arc<Net>,
}

impl Wire {
    pub(super) fn new(from: MemberId, net: &Arc<Net>) -> Self {
        let net = Arc::clone(net);
        Self { from, net }
    }
}

impl RaftCarrier for Wire {
    fn call(
        &self,
        to: MemberId,
        _: &Member,
        request: RaftRequest,
        _: Time,
    ) -> BoxFuture<'static, Result<RaftResponse, String>> {
        let (from, net) = (self.from, Arc::clone(&self.net));
        Box::pin(async move {
            let bytes = request.encode();
            assert!(bytes.len() <= MESSAGE_BYTES);
            net.delay().await;
            if !net.connected(from, to) {
                std::future::pending::<()>().await;
            }
            net.note(&format!("{from} -> {to} {} {request:?}", request.kind()));
            let request = RaftRequest::decode(&bytes).unwrap();
            let Some(replica) = net.lock().replicas.get(&to).and_then(Weak::upgrade) else {
                return Err("nobody listens".to_owned());
            };
            let response = replica.handle(request).await.encode();
            drop(replica);
            net.delay().await;
            if !net.connected(from, to) {
                std::future::pending::<()>().await;
            }
            let response = RaftResponse::decode(&response).unwrap();
            net.note(&format!("{to} -> {from} {response:?}"));
            Ok(response)
        })
    }
}

/// No network at all.
pub(super) struct Nowhere;

impl RaftCarrier for Nowhere {
    fn call(
        &self,
        _: MemberId,
        _: &Member,
        _: RaftRequest,
        _: Time,
    ) -> BoxFuture<'static, Result<RaftResponse, String>> {
        Box::pin(async { Err("there is no network".to_owned()) })
    }
}
