//! The conformance suite of the log contract, over the model cluster.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milonga_client::LogClient;
use milonga_protocol::conformance::{LogUnderTest, Outcome, checks};
use milonga_protocol::env::BoxFuture;
use milonga_protocol::messages::Token;
use milonga_protocol::{Position, SharedLog, StreamId};
use std::sync::Mutex;

use crate::client;
use crate::fake::Fake;

struct Under {
    fake: Arc<Fake>,
    clients: Vec<Arc<LogClient>>,
    tokens: Mutex<Vec<Token>>,
    replicas: usize,
}

impl LogUnderTest for Under {
    fn log(&self, n: usize) -> SharedLog {
        Arc::<LogClient>::clone(&self.clients[n])
    }

    fn make_hole(&self, streams: Vec<StreamId>) -> BoxFuture<'_, Position> {
        let token = self.fake.take_token(&streams);
        let position = token.position;
        self.tokens.lock().expect("no panic inside").push(token);
        Box::pin(async move { position })
    }

    fn write_late(&self, hole: Position, payload: Bytes) -> BoxFuture<'_, Option<bool>> {
        let tokens = self.tokens.lock().expect("no panic inside");
        let token = tokens.iter().find(|token| token.position == hole).cloned();
        let token = token.expect("holes are made first");
        Box::pin(async move {
            self.fake.env.sleep(Duration::from_micros(300)).await;
            Some(self.fake.write(&token, &payload, self.replicas))
        })
    }

    fn lose(&self, position: Position) -> BoxFuture<'_, bool> {
        let lost = self.fake.lose(position, |_| true);
        Box::pin(async move { lost })
    }

    fn lose_one_replica(&self, position: Position) -> BoxFuture<'_, bool> {
        let tail = self.replicas - 1;
        let another = tail > 0;
        if another {
            self.fake.lose(position, |place| place == tail);
        }
        Box::pin(async move { another })
    }

    fn restart(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            self.fake.seal();
            self.fake.env.sleep(Duration::from_millis(30)).await;
            self.fake.reconfigure();
            true
        })
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_keeps_the_log_contract() {
    for (chains, replicas) in [(1, 1), (2, 2), (3, 2)] {
        for check in checks() {
            let fake = Fake::new(chains, replicas);
            let mut clients = Vec::new();
            for _ in 0..4 {
                clients.push(client(&fake).await);
            }
            let under = Under {
                fake,
                clients,
                tokens: Mutex::default(),
                replicas,
            };
            println!("{check:?} on {chains} x {replicas}");
            let outcome = check.run(Arc::new(under)).await;
            let only_one = outcome == Outcome::NotSupported && replicas == 1;
            assert!(
                only_one || outcome == Outcome::Passed,
                "{check:?}: {outcome:?}"
            );
        }
    }
}
