//! The cluster as this client sees it: the newest layout, who is where, and messages to servers.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::select_ok;
use milonga_protocol::frame::Message;
use milonga_protocol::messages::{
    self, LayoutRequest, LayoutResponse, Marks, Request, Response, SequencerRequest,
    SequencerResponse, UnitRequest, UnitResponse,
};
use milonga_protocol::{Epoch, Layout, Limits, Position, Published, SharedEnv, Time, UnitIndex};
use milonga_transport::{Peer, SharedNetwork};
use tokio::sync::{Notify, watch};

use crate::marks::{ChainKey, SettledMarks};
use crate::options::ClientOptions;
use crate::retry::{Backoff, Failure, millis};

/// How long a layout server holds a request for something newer.
const LAYOUT_WAIT: Duration = Duration::from_secs(1);
/// A layout server that has not answered so long after that is taken for gone, and another one is asked.
const LAYOUT_ANSWERS: Duration = Duration::from_millis(500);
/// After a newer layout came, a unit's answer is waited for so much longer.
const ANSWERS_STILL: Duration = Duration::from_millis(50);
/// The same epoch is reported again only after this long.
const REPORT_AGAIN: Duration = Duration::from_millis(500);

/// A layout and where its servers are.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) published: Arc<Published>,
    units: Vec<Peer>,
    sequencer: Peer,
}

impl View {
    pub(crate) fn new(published: Published) -> Self {
        let peer = |name: &milonga_protocol::ServerName| Peer {
            name: name.clone(),
            // Without an address nobody can be reached, and the error names the server.
            address: published
                .addresses
                .get(name)
                .map_or("", String::as_str)
                .into(),
        };
        let layout = &published.layout;
        Self {
            units: layout.units.iter().map(|unit| peer(&unit.name)).collect(),
            sequencer: peer(&layout.sequencer.name),
            published: Arc::new(published),
        }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.published.layout
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.published.layout.epoch
    }

    pub(crate) fn unit(&self, index: UnitIndex) -> &Peer {
        &self.units[usize::from(index.0)]
    }

    pub(crate) const fn sequencer(&self) -> &Peer {
        &self.sequencer
    }

    /// Index of the last segment: where everything new goes.
    pub(crate) fn last_segment(&self) -> usize {
        self.layout().segments.len().saturating_sub(1)
    }

    /// The units of a chain, head first.
    pub(crate) fn chain(&self, segment: usize, chain: usize) -> &[UnitIndex] {
        &self.layout().segments[segment].chains[chain]
    }

    /// The name of a chain that holds in later epochs too.
    pub(crate) fn key(&self, segment: usize, chain: usize) -> ChainKey {
        let segment = &self.layout().segments[segment];
        ChainKey {
            start: segment.start,
            origin: segment.origin,
            chains: segment.chains.len(),
            chain,
        }
    }
}

/// Shared by everything that talks to servers.
pub(crate) struct Cluster {
    pub(crate) env: SharedEnv,
    pub(crate) options: ClientOptions,
    pub(crate) marks: SettledMarks,
    network: SharedNetwork,
    layout_servers: Vec<Peer>,
    view: watch::Sender<Arc<View>>,
    /// Wakes who waits for a newer view, in the order in which they came. (A watch wakes them in an order of its own.)
    changed: Notify,
    reported: Mutex<Option<(Epoch, Time)>>,
    closed: AtomicBool,
}

/// Why there is no client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody to ask.
    #[error("no layout server is configured; name at least one")]
    NoServers,
    /// The deadline passed; what each server said last.
    #[error("no layout after {waited_ms} ms: {why}")]
    NoLayout {
        /// For people: which servers do not answer, or what they wait for.
        why: String,
        /// How long.
        waited_ms: u64,
    },
    /// Every server turned this client away, and trying again does not help.
    #[error("turned away: {why}")]
    Refused {
        /// The servers' words.
        why: String,
    },
}

impl ConnectError {
    /// Whether trying again can help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::NoLayout { .. })
    }
}

impl Cluster {
    /// Waits for a published layout, from whichever server has one, until the deadline of the options.
    pub(crate) async fn connect(
        env: SharedEnv,
        network: SharedNetwork,
        layout_servers: Vec<Peer>,
        options: ClientOptions,
    ) -> Result<Self, ConnectError> {
        if layout_servers.is_empty() {
            return Err(ConnectError::NoServers);
        }
        let began = env.now();
        let deadline = began.after(options.deadline);
        let mut backoff = Backoff::default();
        let published = 'found: loop {
            let mut said = Vec::new();
            let mut hopeless = true;
            for server in &layout_servers {
                let patience = match layout_servers.as_slice() {
                    [_] => options.call_timeout,
                    _ => LAYOUT_ANSWERS.min(options.call_timeout),
                };
                let call_by = deadline.min(env.now().after(patience));
                match get(&network, server, Epoch::NONE, Duration::ZERO, call_by).await {
                    Ok(Got::Layout(published)) => match published.layout.validate() {
                        Ok(()) => break 'found *published,
                        Err(error) => said.push(format!("{server}: {error}")),
                    },
                    Ok(Got::Waiting(why)) => {
                        hopeless = false;
                        said.push(format!("{server}: {why}"));
                    }
                    Err(failure) => {
                        hopeless &= failure.remedy() == crate::retry::Remedy::GiveUp;
                        said.push(failure.to_string());
                    }
                }
            }
            let (why, now) = (said.join("; "), env.now());
            if hopeless {
                return Err(ConnectError::Refused { why });
            }
            if now >= deadline {
                return Err(ConnectError::NoLayout {
                    why,
                    waited_ms: millis(now.since(began)),
                });
            }
            let pause = now.after(backoff.next(&env));
            env.sleep_until(pause.min(deadline)).await;
        };
        Ok(Self {
            env,
            options,
            marks: SettledMarks::default(),
            network,
            layout_servers,
            view: watch::Sender::new(Arc::new(View::new(published))),
            changed: Notify::new(),
            reported: Mutex::new(None),
            closed: AtomicBool::new(false),
        })
    }

    /// The newest layout this client knows.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The limits in force.
    pub(crate) fn limits(&self) -> Limits {
        self.view.borrow().layout().limits
    }

    /// Now plus the options' deadline.
    pub(crate) fn deadline(&self) -> Time {
        self.env.now().after(self.options.deadline)
    }

    /// When a message sent now is given up.
    pub(crate) fn call_deadline(&self, deadline: Time) -> Time {
        deadline.min(self.env.now().after(self.options.call_timeout))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Wakes everybody who waits for a layout; nobody is to begin anything any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.view.send_modify(|_| {});
        self.changed.notify_waiters();
    }

    /// Waits until a layout newer than `epoch` is known, at most until `until`: whether there is one.
    /// Returns early when the client is closed.
    pub(crate) async fn newer_than(&self, epoch: Epoch, until: Time) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let newer = self.view.borrow().epoch() > epoch;
            if newer || self.is_closed() {
                return newer;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = self.env.sleep_until(until) => return false,
            }
        }
    }

    /// Tells the layout that `epoch` was met sealed and no later one is known (rule 2).
    pub(crate) async fn report_sealed(&self, epoch: Epoch, until: Time) {
        {
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.env.now();
            if reported.is_some_and(|(e, at)| e == epoch && now.since(at) < REPORT_AGAIN) {
                return;
            }
            *reported = Some((epoch, now));
        }
        tracing::debug!(%epoch, "reporting a sealed epoch without a successor");
        let request = Request::Layout(LayoutRequest::ReportSealed { epoch });
        let message = request.into_message(Bytes::new());
        let mut turn: VecDeque<_> = self.layout_servers.iter().cloned().collect();
        let mut asked = BTreeSet::new();
        while let Some(server) = turn.pop_front() {
            if !asked.insert(server.name.clone()) {
                continue;
            }
            let patience = self.env.now().after(LAYOUT_ANSWERS);
            let deadline = self.call_deadline(until).min(patience);
            match call(&self.network, &server, message.clone(), deadline).await {
                Ok(_) => return,
                Err(failure) => {
                    tracing::debug!(%failure, "report not heard");
                    // Whoever leads is asked next.
                    failure
                        .leader()
                        .into_iter()
                        .for_each(|peer| turn.push_front(peer));
                }
            }
        }
    }

    /// Has the layout note durably that what is lost in `from..to` is about to be given up.
    pub(crate) async fn note_given_up(
        &self,
        from: Position,
        to: Position,
        deadline: Time,
    ) -> Result<(), Failure> {
        let request = Request::Layout(LayoutRequest::GiveUp { from, to });
        let message = request.into_message(Bytes::new());
        // All at once: one that is gone must not keep the leader from hearing it.
        let asked = self.layout_servers.iter().map(async |server| {
            match call(&self.network, server, message.clone(), deadline).await? {
                (Response::Layout(LayoutResponse::Heard), _) => Ok(()),
                _ => Err(garbage(server, "an answer of another role")),
            }
        });
        let heard = select_ok(asked.map(Box::pin)).await;
        heard.map(|((), _)| ())
    }

    /// Who can be asked for the layout.
    pub(crate) fn layout_servers(&self) -> &[Peer] {
        &self.layout_servers
    }

    /// Keeps the layout up to date by what `server` says; runs until it is dropped. Every server is followed, so that one
    /// that is gone, or cut off from the others, delays nothing.
    pub(crate) async fn follow(self: Arc<Self>, server: Peer) {
        let mut backoff = Backoff::default();
        loop {
            let asked = self.env.now();
            let deadline = asked.after(LAYOUT_WAIT + LAYOUT_ANSWERS);
            let known = self.view.borrow().epoch();
            match get(&self.network, &server, known, LAYOUT_WAIT, deadline).await {
                Ok(Got::Layout(published)) => {
                    backoff.reset();
                    self.publish(*published);
                    continue;
                }
                Ok(Got::Waiting(_)) if self.env.now().since(asked) >= LAYOUT_WAIT / 2 => {
                    backoff.reset();
                    continue;
                }
                // A server that does not hold the request must not make this loop busy.
                Ok(Got::Waiting(_)) => {}
                Err(failure) => {
                    tracing::debug!(%failure, "layout server does not answer");
                }
            }
            self.env.sleep(backoff.next(&self.env)).await;
        }
    }

    fn publish(&self, published: Published) {
        if let Err(error) = published.layout.validate() {
            tracing::warn!(%error, "layout ignored");
            return;
        }
        let epoch = published.layout.epoch;
        self.view.send_if_modified(|view| {
            let newer = epoch > view.epoch();
            if newer {
                tracing::debug!(%epoch, start = %published.layout.start, "new layout");
                *view = Arc::new(View::new(published));
            }
            newer
        });
        self.changed.notify_waiters();
    }

    /// Sends an encoded request to a unit of the layout of `epoch`, which may have ended: then only who is alive answers.
    pub(crate) async fn unit_message(
        &self,
        epoch: Epoch,
        unit: &Peer,
        message: Message,
        deadline: Time,
    ) -> Result<(UnitResponse, Bytes), Failure> {
        // Whoever is alive answers: sealed, or with what it did before.
        let still = Some(ANSWERS_STILL);
        let answer = self.call_in(epoch, unit, message, still, deadline);
        match answer.await? {
            (Response::Unit(response), body) => Ok((response, body)),
            _ => Err(garbage(unit, "an answer of another role")),
        }
    }

    /// Sends a request without a body to a unit.
    pub(crate) async fn unit(
        &self,
        epoch: Epoch,
        unit: &Peer,
        request: UnitRequest,
        deadline: Time,
    ) -> Result<(UnitResponse, Bytes), Failure> {
        let message = Request::Unit(request).into_message(Bytes::new());
        self.unit_message(epoch, unit, message, deadline).await
    }

    /// Sends a request to the sequencer of `view`.
    pub(crate) async fn sequencer(
        &self,
        view: &View,
        request: SequencerRequest,
        deadline: Time,
    ) -> Result<SequencerResponse, Failure> {
        let message = Request::Sequencer(request).into_message(Bytes::new());
        let answer = self.call_in(view.epoch(), view.sequencer(), message, None, deadline);
        match answer.await? {
            (Response::Sequencer(response), _) => Ok(response),
            _ => Err(garbage(view.sequencer(), "an answer of another role")),
        }
    }

    /// One message and its answer, unless a newer layout than that of `epoch` comes, and `still` passes, before: who waits
    /// for a server that died learns of the epoch without it by the layout.
    async fn call_in(
        &self,
        epoch: Epoch,
        to: &Peer,
        message: Message,
        still: Option<Duration>,
        deadline: Time,
    ) -> Result<(Response, Bytes), Failure> {
        let superseded = async {
            if !self.newer_than(epoch, deadline).await {
                return std::future::pending().await;
            }
            if let Some(still) = still {
                self.env.sleep(still).await;
            }
        };
        tokio::select! {
            biased;
            answer = call(&self.network, to, message, deadline) => answer,
            () = superseded => Err(Failure::Superseded { server: to.name.clone() }),
        }
    }

    /// Whether `unit` still serves the epoch (rule 21), with its marks of the last segment.
    pub(crate) async fn confirm(
        &self,
        view: &View,
        unit: UnitIndex,
        deadline: Time,
    ) -> Result<Marks, Failure> {
        let unit = view.unit(unit);
        let epoch = view.epoch();
        match self
            .unit(epoch, unit, UnitRequest::Confirm { epoch }, deadline)
            .await?
        {
            (UnitResponse::Serving { marks }, _) => Ok(marks),
            _ => Err(garbage(unit, "no confirmation")),
        }
    }

    /// The settled mark of a chain, as far as its units of this epoch may know it.
    pub(crate) fn settled(&self, view: &View, segment: usize, chain: usize) -> Position {
        self.marks.get(view.epoch(), view.key(segment, chain))
    }

    /// A unit of this epoch told the settled mark of a chain.
    pub(crate) fn raise_settled(&self, view: &View, segment: usize, chain: usize, mark: Position) {
        self.marks
            .raise(view.epoch(), view.key(segment, chain), mark);
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({:?})", self.view.borrow().epoch())
    }
}

pub(crate) fn garbage(server: &Peer, why: &'static str) -> Failure {
    Failure::Garbage {
        server: server.name.clone(),
        why,
    }
}

enum Got {
    Layout(Box<Published>),
    Waiting(String),
}

async fn get(
    network: &SharedNetwork,
    server: &Peer,
    known: Epoch,
    wait: Duration,
    deadline: Time,
) -> Result<Got, Failure> {
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    let request = Request::Layout(LayoutRequest::Get { known, wait_ms });
    let message = request.into_message(Bytes::new());
    match call(network, server, message, deadline).await? {
        (Response::Layout(LayoutResponse::Layout(published)), _)
            if published.layout.epoch > known =>
        {
            Ok(Got::Layout(Box::new(published)))
        }
        (Response::Layout(LayoutResponse::Layout(_)), _) => {
            Ok(Got::Waiting("nothing newer".into()))
        }
        (Response::Layout(LayoutResponse::Waiting { why }), _) => Ok(Got::Waiting(why)),
        _ => Err(garbage(server, "an answer of another role")),
    }
}

/// One message and its answer; a refusal is a failure.
async fn call(
    network: &SharedNetwork,
    to: &Peer,
    message: Message,
    deadline: Time,
) -> Result<(Response, Bytes), Failure> {
    let answer = network.call(to, message, deadline).await;
    let answer = answer.map_err(|error| Failure::Call {
        server: to.name.clone(),
        error,
    })?;
    match messages::decode("response", &answer.header) {
        Ok(Response::Refused(refusal)) => Err(Failure::Refused {
            server: to.name.clone(),
            refusal,
        }),
        Ok(response) => Ok((response, answer.body)),
        Err(_) => Err(garbage(to, "an answer that cannot be decoded")),
    }
}
