//! Tells the layout who is here, until it is heard, and then again and again (rule 2).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::messages::{Hello, LayoutRequest, LayoutResponse, Request, Response};
use milonga_protocol::{Incarnation, ServerName, SharedEnv};
use milonga_transport::{Identity, Peer, SharedNetwork};
use tokio::sync::watch;

use crate::roles::UnitState;

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Between two attempts while nobody hears.
const RETRY: Duration = Duration::from_millis(100);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// What one process says to one layout server.
pub(crate) struct Greeter {
    pub(crate) env: SharedEnv,
    pub(crate) network: SharedNetwork,
    pub(crate) to: Peer,
    pub(crate) name: ServerName,
    pub(crate) address: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) identity: Arc<Identity>,
    pub(crate) unit: Option<watch::Receiver<UnitState>>,
    pub(crate) sequencer: bool,
}

impl Greeter {
    /// Never ends.
    pub(crate) async fn run(mut self) {
        let mut heard = None;
        loop {
            let result = self.greet().await;
            let now = result.as_ref().err().cloned();
            match (&result, heard != Some(now.clone())) {
                (Ok(()), true) => tracing::info!(layout = %self.to, "heard by the layout"),
                (Err(why), true) => {
                    tracing::warn!(layout = %self.to, why, "not heard by the layout")
                }
                _ => {}
            }
            heard = Some(now);
            self.pause(if result.is_ok() { HEARTBEAT } else { RETRY })
                .await;
        }
    }

    async fn greet(&self) -> Result<(), String> {
        let hello = Hello {
            name: self.name.clone(),
            address: self.address.clone(),
            incarnation: self.incarnation,
            unit: self.unit_hello()?,
            sequencer: self.sequencer,
        };
        let request = Request::Layout(LayoutRequest::Hello(hello)).into_message(Bytes::new());
        let deadline = self.env.now().after(PATIENCE);
        let answer = self.network.call(&self.to, request, deadline).await;
        let answer = answer.map_err(|error| error.to_string())?;
        match Response::decode(&answer) {
            Ok(Response::Layout(LayoutResponse::Heard)) => Ok(()),
            Ok(Response::Refused(refusal)) => Err(refusal.to_string()),
            Ok(other) => Err(format!("unexpected answer {other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn unit_hello(&self) -> Result<Option<milonga_protocol::messages::UnitHello>, String> {
        let Some(unit) = &self.unit else {
            return Ok(None);
        };
        match &*unit.borrow() {
            // A process that holds a unit must not be taken for one that does not.
            None => Err("the unit is recovering its directory".to_owned()),
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(hello)) => {
                if let Some(cluster) = hello.cluster {
                    let set = self.identity.set_cluster(cluster);
                    set.map_err(|error| error.to_string())?;
                }
                Ok(Some(*hello))
            }
        }
    }

    /// Until the next time, or until there is news of the unit.
    async fn pause(&mut self, duration: Duration) {
        let sleep = self.env.sleep(duration);
        let news = async {
            let Some(unit) = &mut self.unit else {
                return std::future::pending().await;
            };
            // A unit that is gone has no news; this process is being stopped.
            if unit.changed().await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = sleep => {}
            () = news => {}
        }
    }
}
