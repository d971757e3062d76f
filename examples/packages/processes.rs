//! The job on a cluster: servers, producer and workers are processes of their own; some may be killed midway.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::bar::{Bar, Clock};
use crate::child::{BE_CHILD, Order, Part};
use crate::compare::Found;
use crate::input::{Checked, Input};
use crate::job::{Event, Fault, Job, look, pause};
use crate::report::{Kill, Progress, Work};
use crate::servers::{Servers, signal};

/// Transactions at a time in each worker process.
const TASKS: u32 = 8;
/// Who is killed, and from which percentage of the work on.
const VICTIMS: [(Role, u64); 2] = [(Role::Producer, 25), (Role::Worker, 50)];
/// Nobody is killed later than that.
const LAST_PERCENT: u64 = 80;
/// What a stopped process has said arrives within that.
const QUIET: Duration = Duration::from_millis(30);

/// Does the whole job with so many worker processes.
pub(crate) async fn run(
    input: &Input,
    checked: Checked,
    dir: &Path,
    workers: u32,
    kill: bool,
) -> Result<(Found, Work), Fault> {
    let mut servers = Servers::start(dir).await?;
    let result = with_servers(&mut servers, input, checked, workers, kill).await;
    servers.stop().await;
    result
}

async fn with_servers(
    servers: &mut Servers,
    input: &Input,
    checked: Checked,
    workers: u32,
    kill: bool,
) -> Result<(Found, Work), Fault> {
    let job = Job::open(servers.connect().await?).await?;
    job.check_input(checked.fingerprint).await?;
    let mut crew = Crew::new(servers, input, checked, job.done().await?);
    crew.hire(Role::Producer)?;
    for _ in 0..workers {
        crew.hire(Role::Worker)?;
    }
    let clock = Clock::start();
    let progress = Arc::clone(&crew.progress);
    let watch = async {
        if kill {
            servers.kill_some(&progress).await
        } else {
            servers.any_dies().await
        }
    };
    tokio::select! {
        biased;
        died = watch => return Err(died),
        ended = crew.run(kill) => ended?,
    }
    let took = clock.elapsed();
    crew.work.kills.append(&mut servers.kills);
    crew.work.kills.sort_by_key(|kill| kill.done);
    crew.bar.finish();
    let found = look(&job).await?;
    job.close().await?;
    Ok((found, Work { took, ..crew.work }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Producer,
    Worker,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Worker => "worker",
        }
    }
}

/// A child at work.
struct Member {
    role: Role,
    child: Child,
    pid: u32,
    /// By task: line of the stanza, and what is about to commit.
    in_flight: BTreeMap<u32, (u64, String)>,
    /// Open as long as the child shall live.
    _stdin: Option<ChildStdin>,
}

/// All children, and what they say: an event, or that they ended.
struct Crew {
    members: BTreeMap<u32, Member>,
    said: mpsc::Receiver<(u32, Option<Event>)>,
    say: mpsc::Sender<(u32, Option<Event>)>,
    producing: Order,
    working: Order,
    input: String,
    stanzas: u64,
    bar: Bar,
    progress: Arc<Progress>,
    work: Work,
}

impl Crew {
    fn new(servers: &Servers, input: &Input, checked: Checked, done: u64) -> Self {
        let (say, said) = mpsc::channel(1_024);
        let Checked {
            stanzas,
            fingerprint,
            ..
        } = checked;
        let (config, path) = (servers.client_config(), input.path.clone());
        let part = Part::Produce {
            path,
            fingerprint,
            stanzas,
        };
        Self {
            members: BTreeMap::new(),
            said,
            say,
            producing: Order {
                config: config.clone(),
                part,
            },
            working: Order {
                config,
                part: Part::Work { tasks: TASKS },
            },
            input: input.name.clone(),
            stanzas,
            bar: Bar::new(stanzas, done),
            progress: Arc::new(Progress::new(stanzas)),
            work: Work::default(),
        }
    }

    /// Starts a child.
    fn hire(&mut self, role: Role) -> Result<(), Fault> {
        let order = match role {
            Role::Producer => &self.producing,
            Role::Worker => &self.working,
        };
        let mut child = Command::new(std::env::current_exe()?)
            .args([BE_CHILD, &serde_json::to_string(order)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or("a child ended before it began")?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no standard output")?).lines();
        let say = self.say.clone();
        // Ends with the child, or with the crew.
        spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(event) = serde_json::from_str(&line) else {
                    continue;
                };
                if say.send((pid, Some(event))).await.is_err() {
                    return;
                }
            }
            let _ = say.send((pid, None)).await;
        });
        let in_flight = BTreeMap::new();
        let _stdin = child.stdin.take();
        self.members.insert(
            pid,
            Member {
                role,
                child,
                pid,
                in_flight,
                _stdin,
            },
        );
        Ok(())
    }

    /// Until all have done their part.
    async fn run(&mut self, kill: bool) -> Result<(), Fault> {
        let mut victims = VICTIMS.iter().filter(|_| kill).peekable();
        while !self.members.is_empty() {
            let Some((pid, said)) = self.said.recv().await else {
                break;
            };
            self.hear(pid, said).await?;
            let Some((role, percent)) = victims.peek() else {
                continue;
            };
            let is_time = |percent| self.bar.done() * 100 >= self.stanzas * percent;
            if is_time(LAST_PERCENT) {
                break;
            }
            if is_time(*percent) && self.kill_one(*role).await? {
                victims.next();
            }
        }
        match victims.peek() {
            None => Ok(()),
            Some((role, _)) => Err(format!(
                "no {} could be killed with a transaction in flight before {LAST_PERCENT} % of the work was done; \
                 pass a larger FILE",
                role.name()
            )
            .into()),
        }
    }

    async fn hear(&mut self, pid: u32, said: Option<Event>) -> Result<(), Fault> {
        // Nobody listens to the dead.
        let Some(member) = self.members.get_mut(&pid) else {
            return Ok(());
        };
        match said {
            Some(Event::InFlight { task, line, what }) => {
                member.in_flight.insert(task, (line, what));
            }
            Some(Event::Ended {
                task,
                runs,
                stanzas,
            }) => {
                member.in_flight.remove(&task);
                if member.role == Role::Worker {
                    self.work.runs += runs;
                    self.work.committed += stanzas;
                    self.bar.add(stanzas);
                    self.progress.set(self.bar.done());
                }
            }
            None => {
                let status = member.child.wait().await?;
                let role = member.role.name();
                self.members.remove(&pid);
                if !status.success() {
                    return Err(format!("{role} pid {pid} ended with {status}").into());
                }
            }
        }
        Ok(())
    }

    /// Kills a child of that role that has a transaction in flight, and hires another; `false` if none has. All
    /// children stand still meanwhile, so what they said last is what they were doing.
    async fn kill_one(&mut self, role: Role) -> Result<bool, Fault> {
        self.signal_all(Signal::STOP);
        while self.members.values().any(|member| runs(member.pid)) {
            pause(Duration::from_millis(1)).await;
        }
        while let Some(Some((pid, said))) = within(QUIET, self.said.recv()).await {
            self.hear(pid, said).await?;
        }
        let victim = self
            .members
            .values()
            .find(|member| member.role == role && !member.in_flight.is_empty());
        let victim = victim.map(|member| member.pid);
        let in_time = self.bar.done() * 100 < self.stanzas * LAST_PERCENT;
        let killed = match victim.and_then(|pid| self.members.remove(&pid)) {
            Some(mut victim) if in_time => {
                victim.child.kill().await?;
                let done = self.bar.done();
                let in_flight = victim.in_flight.into_values().collect();
                let kill = Kill {
                    role: role.name(),
                    pid: victim.pid,
                    in_flight,
                    done,
                };
                self.bar.say(&kill.line(&self.input, self.stanzas));
                self.work.kills.push(kill);
                true
            }
            Some(spared) => {
                self.members.insert(spared.pid, spared);
                false
            }
            None => false,
        };
        self.signal_all(Signal::CONT);
        if killed {
            self.hire(role)?;
        }
        Ok(killed)
    }

    fn signal_all(&self, what: Signal) {
        for member in self.members.values() {
            signal(&member.child, what);
        }
    }
}

/// Whether the process is neither stopped nor dead.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state is behind the name, which stands in parentheses and may contain some.
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| !"TtZX".contains(state))
}

/// The future's output, if it comes in time.
#[expect(
    clippy::disallowed_methods,
    reason = "an application lives in real time; only the product must not"
)]
async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(time, future).await.ok()
}

#[expect(
    clippy::disallowed_methods,
    reason = "an application owns its tasks; only the product must not"
)]
fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}
