//! Following streams.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use milonga_protocol::{
    Entry, LogError, Position, SharedLog, StreamId, StreamRead, TailOf, Target,
};

/// Yields the entries of some streams in order of position and follows their tail.
///
/// It waits at the tail without polling, keeps a bounded number of bytes ready, and never passes a hole. Dropping a
/// future of [`Self::next`] loses nothing.
pub struct Subscription {
    log: SharedLog,
    streams: Arc<[StreamId]>,
    /// Everything below was yielded or is in `ready`.
    from: Position,
    /// How far the last tail check allows to read.
    target: Option<Target>,
    ready: VecDeque<(Position, Entry)>,
    prefetch_bytes: usize,
}

impl Subscription {
    pub(crate) fn new(
        log: SharedLog,
        streams: Arc<[StreamId]>,
        from: Position,
        prefetch_bytes: usize,
    ) -> Self {
        Self {
            log,
            streams,
            from,
            target: None,
            ready: VecDeque::new(),
            prefetch_bytes,
        }
    }

    /// The next entry; waits as long as there is none.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if the log did not answer by its deadline: call again. [`LogError::Trimmed`] and
    /// [`LogError::Lost`] name the position that cannot be passed. [`LogError::Closed`] at the end.
    pub async fn next(&mut self) -> Result<(Position, Entry), LogError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(entry);
            }
            match self.target {
                Some(target) if self.from < target.to => self.read(target).await?,
                target => {
                    if target.is_some() {
                        let streams = Arc::clone(&self.streams);
                        self.log.wait(streams, self.from).await?;
                    }
                    let of = TailOf::Streams(Arc::clone(&self.streams));
                    // What others are writing is waited for at the units, not by asking again and again.
                    self.target = Some(self.log.tail(of).await?.granted());
                }
            }
        }
    }

    /// Every entry below it was yielded.
    #[must_use]
    pub fn position(&self) -> Position {
        self.ready.front().map_or(self.from, |(first, _)| *first)
    }

    async fn read(&mut self, target: Target) -> Result<(), LogError> {
        let read = StreamRead {
            streams: Arc::clone(&self.streams),
            from: self.from,
            target,
            max_bytes: self.prefetch_bytes,
        };
        let part = self.log.read_streams(read).await?;
        // Nothing awaits from here on: a dropped future has either changed nothing or everything.
        self.from = part.complete;
        self.target = Some(part.target);
        self.ready.extend(part.entries);
        Ok(())
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subscription({:?} from {})", self.streams, self.from)
    }
}
