//! The plainest workload: appends by some, and reads of what was acknowledged by others.

use bytes::Bytes;
use milonga_client::LogClient;
use milonga_protocol::{
    AppendError, BoxFuture, Log as _, NewEntry, Position, ReadAnswer, StreamId,
};

use crate::world::journal::{Operation, Outcome};
use crate::world::workload::{Client, Workload};

/// Appends and reads of positions.
#[derive(Clone, Copy, Debug)]
pub struct Appends;

/// Which of the shared numbers is the first position above all acknowledged ones.
const HIGH: usize = 0;
/// Tasks of one client.
const TASKS: u64 = 2;

impl Workload for Appends {
    fn name(&self) -> &'static str {
        "appends"
    }

    fn client(&self, client: Client) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let log = client.connect().await;
            let mut done = Vec::new();
            let mut tasks = Vec::new();
            for task in 0..TASKS {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                let worker = Worker {
                    client: client.clone(),
                    log: log.clone(),
                    task,
                };
                tasks.push(client.spawn(Box::pin(async move {
                    worker.work().await;
                    let _ = sender.send(());
                })));
                done.push(receiver);
            }
            for done in done {
                let _ = done.await;
            }
            log.close().await;
        })
    }
}

struct Worker {
    client: Client,
    log: std::sync::Arc<LogClient>,
    task: u64,
}

impl Worker {
    async fn work(&self) {
        let mut number = 0;
        while !self.client.is_over() {
            number += 1;
            if self.client.draw(|rng| rng.happens(600_000)) {
                self.append(number).await;
            } else {
                self.read().await;
            }
            self.client.rest().await;
        }
        // In a healthy cluster both work.
        loop {
            number += 1;
            if self.append(number).await {
                break;
            }
        }
        while !self.read().await {}
    }

    async fn append(&self, number: u64) -> bool {
        let (name, run, task) = (self.client.name(), self.client.run(), self.task);
        let padding = self.client.draw(|rng| *rng.pick(&[0, 50, 3_000]));
        let text = format!("{name}/{run}/{task}/{number}/{:.>padding$}", "");
        let payload = Bytes::from(text.into_bytes());
        let stream = self.client.draw(|rng| rng.between(1, 3));
        let streams = vec![StreamId(stream)];
        let id = self.client.invoke(Operation::Append {
            streams: streams.clone(),
            payload: payload.clone(),
        });
        let entry = NewEntry::new(streams, payload);
        let outcome = match self.log.append(entry).await {
            Ok(appended) => {
                let high = appended.position.next().0;
                self.client.shared().raise(HIGH, high);
                Outcome::Appended(appended.position)
            }
            Err(error @ AppendError::OutcomeUnknown { .. }) => Outcome::Unknown(error.to_string()),
            Err(error) => Outcome::Failed(error.to_string()),
        };
        let worked = matches!(outcome, Outcome::Appended(_));
        self.client.finish(id, outcome);
        worked
    }

    async fn read(&self) -> bool {
        let high = self.client.shared().get(HIGH);
        let position = Position(self.client.draw(|rng| rng.below(high)));
        let id = self.client.invoke(Operation::Read { position });
        let outcome = match self.log.read(vec![position]).await {
            Ok(answers) => match answers.into_iter().next() {
                Some(ReadAnswer::Data(entry)) => Outcome::Data(entry.payload),
                Some(ReadAnswer::Junk) => Outcome::Junk,
                Some(ReadAnswer::Unwritten) => Outcome::Unwritten,
                Some(ReadAnswer::Trimmed) => Outcome::Trimmed,
                Some(ReadAnswer::Lost) => Outcome::Lost,
                None => Outcome::Failed("no answer for a position".to_owned()),
            },
            Err(error) => Outcome::Failed(error.to_string()),
        };
        let worked = !matches!(outcome, Outcome::Failed(_));
        self.client.finish(id, outcome);
        worked
    }
}
