//! A bootstrap on its way in, page by page (rule 17).

use milonga_protocol::limits::STREAM_TAILS_PER_PAGE;
use milonga_protocol::messages::{Bootstrap, Refusal, StreamTail};
use milonga_protocol::{Epoch, StreamId};

use crate::lease::Held;
use crate::malformed;
use crate::state::{State, Streams};

/// The pages that came so far.
#[derive(Debug)]
pub(crate) struct Filling {
    /// What all pages must agree on; its tails were taken out.
    first: Bootstrap,
    next_page: u32,
    highest: Option<StreamId>,
    streams: Streams,
}

/// Takes a page of an epoch that may begin; says whether it was the last. Pages come in order; a repeat changes
/// nothing; the first page of a higher epoch replaces all that came.
pub(crate) fn take_page(filling: &mut Option<Filling>, page: Bootstrap) -> Result<bool, Refusal> {
    check_tails(&page.tails)?;
    match filling {
        Some(filling) if filling.first.epoch == page.epoch => return filling.add(page),
        Some(filling) if filling.first.epoch > page.epoch => {
            return Err(Refusal::Sealed {
                epoch: filling.first.epoch,
            });
        }
        _ => {}
    }
    if page.page != 0 {
        return Err(out_of_order(page.page, 0));
    }
    let mut new = Filling {
        first: Bootstrap {
            tails: Vec::new(),
            ..page
        },
        next_page: 0,
        highest: None,
        streams: Streams::default(),
    };
    let last = new.add(page)?;
    *filling = Some(new);
    Ok(last)
}

impl Filling {
    pub(crate) const fn epoch(&self) -> Epoch {
        self.first.epoch
    }

    pub(crate) fn describe(&self) -> String {
        let (pages, epoch) = (self.next_page, self.first.epoch);
        format!("has {pages} pages of the bootstrap of epoch {epoch}")
    }

    pub(crate) fn into_state(self) -> State {
        let Bootstrap {
            epoch,
            next,
            trimmed,
            lost,
            lease,
            stream_limit,
            ..
        } = self.first;
        State {
            epoch,
            next,
            trimmed,
            lost,
            lease: Held::new(lease),
            stream_limit,
            last: self.streams,
        }
    }

    fn add(&mut self, page: Bootstrap) -> Result<bool, Refusal> {
        if page.page < self.next_page {
            return Ok(false);
        }
        if page.page > self.next_page {
            return Err(out_of_order(page.page, self.next_page));
        }
        let (a, b) = (&self.first, &page);
        let common = |b: &Bootstrap| {
            (
                b.cluster,
                b.next,
                b.trimmed,
                b.lost,
                b.lease,
                b.stream_limit,
            )
        };
        if common(a) != common(b) {
            return Err(malformed("pages of one bootstrap contradict".into()));
        }
        let lowest = page.tails.first().map(|tail| tail.stream);
        if lowest.is_some() && lowest <= self.highest {
            return Err(malformed("stream tails are not ascending".into()));
        }
        self.next_page += 1;
        self.highest = page.tails.last().map(|t| t.stream).or(self.highest);
        self.streams.reserve(page.tails.len());
        let tails = page.tails.into_iter();
        self.streams
            .extend(tails.map(|tail| (tail.stream, tail.last)));
        Ok(page.last)
    }
}

fn check_tails(tails: &[StreamTail]) -> Result<(), Refusal> {
    if tails.len() > STREAM_TAILS_PER_PAGE {
        let got = tails.len();
        return Err(malformed(format!(
            "a page of {got} streams, at most {STREAM_TAILS_PER_PAGE}"
        )));
    }
    if !tails.windows(2).all(|pair| pair[0].stream < pair[1].stream) {
        return Err(malformed("stream tails are not ascending".into()));
    }
    Ok(())
}

fn out_of_order(got: u32, want: u32) -> Refusal {
    malformed(format!(
        "page {got} of a bootstrap where page {want} is due"
    ))
}
