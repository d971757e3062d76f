//! `milonga map|counter|queue …`: objects of text and numbers.

use clap::Subcommand;
use serde_json::json;

use super::Access;
use super::output::{self, Failure};
use crate::Milonga;

#[derive(Debug, Subcommand)]
pub(super) enum MapCommand {
    /// Print the value of a key; exit code 3 if there is none.
    Get {
        /// The map.
        name: String,
        /// The key.
        key: String,
    },
    /// Set a key and print the value it had.
    Put {
        /// The map; made if it is not there.
        name: String,
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Remove a key and print the value it had; exit code 3 if there was none.
    Del {
        /// The map.
        name: String,
        /// The key.
        key: String,
    },
    /// Print all keys, in order.
    List {
        /// The map.
        name: String,
    },
    /// Print all keys and values, in order of the keys, separated by a tabulator.
    Dump {
        /// The map.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CounterCommand {
    /// Print the counter.
    Get {
        /// The counter.
        name: String,
    },
    /// Add to the counter and print what it is then. It stops at the least and the greatest 64-bit number.
    Add {
        /// The counter; made if it is not there.
        name: String,
        /// How much; may be negative.
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        amount: i64,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// Put an item at the end.
    Push {
        /// The queue; made if it is not there.
        name: String,
        /// The item.
        item: String,
    },
    /// Take the item at the front and print it; exit code 3 if the queue is empty.
    Pop {
        /// The queue; made if it is not there and this waits.
        name: String,
        /// Wait for an item instead.
        #[arg(long)]
        wait: bool,
    },
    /// Print the number of items.
    Len {
        /// The queue.
        name: String,
    },
}

fn no_key(name: &str, key: &str) -> Failure {
    Failure::not_found(format!("map `{name}` has no key `{key}`"))
}

/// Commands that only read make no object: a name nobody registered is an error, not a new, empty object.
async fn must_exist(milonga: &Milonga, name: &str) -> Result<(), Failure> {
    let objects = milonga.directory().await?;
    if objects.iter().any(|object| &*object.name == name) {
        return Ok(());
    }
    let names: Vec<_> = objects.iter().map(|object| &*object.name).collect();
    let known = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    Err(Failure::not_found(format!(
        "there is no object `{name}`; objects: {known}"
    )))
}

impl MapCommand {
    pub(super) const fn access(&self) -> Access {
        match self {
            Self::Put { .. } => Access::Make,
            _ => Access::Existing,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Get { name, .. }
            | Self::Put { name, .. }
            | Self::Del { name, .. }
            | Self::List { name }
            | Self::Dump { name } => name,
        }
    }

    pub(super) async fn run(self, milonga: &Milonga, json: bool) -> Result<(), Failure> {
        if !matches!(self, Self::Put { .. }) {
            must_exist(milonga, self.name()).await?;
        }
        let map = milonga.map::<String, String>(self.name()).await?;
        match self {
            Self::Get { name, key } => {
                let value = map.get(&key).await?.ok_or_else(|| no_key(&name, &key))?;
                output::result(json, &json!({ "key": key, "value": value }), |_| {
                    value.clone()
                })
            }
            Self::Put { key, value, .. } => {
                let (old, position) = map.insert(key.clone(), value).with_position().await?;
                let shown = json!({ "key": key, "old": old, "position": position.0 });
                output::result(json, &shown, |_| old.clone().unwrap_or_default())
            }
            Self::Del { name, key } => {
                let (old, position) = map.remove(key.clone()).with_position().await?;
                let old = old.ok_or_else(|| no_key(&name, &key))?;
                let shown = json!({ "key": key, "old": old, "position": position.0 });
                output::result(json, &shown, |_| old.clone())
            }
            Self::List { .. } => {
                let keys: Vec<_> = map.entries().await?.map(|(key, _)| key).collect();
                output::result(json, &keys, |keys| keys.join("\n"))
            }
            Self::Dump { .. } => {
                let entries: Vec<(String, String)> = map.entries().await?.collect();
                output::result(json, &entries, |entries| {
                    entries
                        .iter()
                        .map(|(key, value)| format!("{key}\t{value}\n"))
                        .collect()
                })
            }
        }
    }
}

impl CounterCommand {
    pub(super) const fn access(&self) -> Access {
        match self {
            Self::Add { .. } => Access::Make,
            _ => Access::Existing,
        }
    }

    pub(super) async fn run(self, milonga: &Milonga, json: bool) -> Result<(), Failure> {
        let value = match self {
            Self::Get { name } => {
                must_exist(milonga, &name).await?;
                milonga.counter(&name).await?.get().await?
            }
            Self::Add { name, amount } => milonga.counter(&name).await?.add(amount).await?,
        };
        output::result(json, &json!({ "value": value }), |_| value.to_string())
    }
}

impl QueueCommand {
    pub(super) const fn access(&self) -> Access {
        match self {
            Self::Push { .. } | Self::Pop { wait: true, .. } => Access::Make,
            _ => Access::Existing,
        }
    }

    pub(super) async fn run(self, milonga: &Milonga, json: bool) -> Result<(), Failure> {
        match self {
            Self::Push { name, item } => {
                let queue = milonga.queue::<String>(&name).await?;
                let (_, position) = queue.push(item).with_position().await?;
                output::result(json, &json!({ "position": position.0 }), |_| {
                    position.to_string()
                })
            }
            Self::Pop { name, wait } => {
                if !wait {
                    must_exist(milonga, &name).await?;
                }
                let queue = milonga.queue::<String>(&name).await?;
                let item = if wait {
                    Some(queue.pop_wait().await?)
                } else {
                    queue.pop().await?
                };
                let item =
                    item.ok_or_else(|| Failure::not_found(format!("queue `{name}` is empty")))?;
                output::result(json, &json!({ "item": item }), |_| item.clone())
            }
            Self::Len { name } => {
                must_exist(milonga, &name).await?;
                let len = milonga.queue::<String>(&name).await?.len().await?;
                output::result(json, &json!({ "len": len }), |_| len.to_string())
            }
        }
    }
}
