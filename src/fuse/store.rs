//! Clusters that were inflated for a part of them, put into the kernel's page cache as a whole.
//!
//! Invariant: no thread that answers the kernel ever waits for a store. A store waits for pages that are locked until
//! a read of them is answered, so it happens on a thread of its own, and what that one has no time for is dropped:
//! nothing depends on it but speed. Stored is only what lies outside the read, which had its own answer.

use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use fuser::{INodeNo, Notifier};
use instar_abi::to_usize;
use tracing::debug;

use crate::disk::LeftOver;

/// Clusters that may wait for being stored; more would be memory that no budget knows of.
const WAITING_MAX: usize = 16;
/// Only whole pages can be stored.
const PAGE_BYTES: u64 = 4096;

/// One cluster, and the guest bytes of it that a read has answered.
#[derive(Debug)]
struct Store {
    ino: INodeNo,
    cluster: LeftOver,
    answered: Range<u64>,
}

/// Where clusters are handed in.
#[derive(Debug, Clone)]
pub(super) struct Storing(SyncSender<Store>);

/// The other end, until there is a mount to store in.
#[derive(Debug)]
pub(super) struct Stored(Receiver<Store>);

/// Both ends.
pub(super) fn channel() -> (Storing, Stored) {
    let (sender, receiver) = sync_channel(WAITING_MAX);
    (Storing(sender), Stored(receiver))
}

impl Storing {
    /// Hands in a cluster of which a read has `answered` a part; it is dropped where others wait.
    pub fn put(&self, ino: INodeNo, cluster: LeftOver, answered: Range<u64>) {
        match self.0.try_send(Store { ino, cluster, answered }) {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => debug!("nobody stores clusters"),
        }
    }
}

impl Stored {
    /// Stores what is handed in until nobody can hand in more.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(self, notifier: Notifier) -> io::Result<()> {
        let live = move || {
            for store in &self.0 {
                // A kernel that takes no stores is asked in vain, which costs little beside inflating.
                if let Err(error) = store.run(&notifier) {
                    debug!(%error, "a cluster was not stored");
                }
            }
        };
        // It ends with the session, which holds the last sender.
        std::thread::Builder::new().name("instar-store".into()).spawn(live).map(drop)
    }
}

impl Store {
    fn run(&self, notifier: &Notifier) -> io::Result<()> {
        let LeftOver { offset, len, cluster } = &self.cluster;
        let Ok(bytes) = &**cluster else { return Ok(()) };
        for part in around(*offset..*offset + *len as u64, &self.answered) {
            let at = to_usize(part.start - offset);
            let Some(bytes) = bytes.get(at..to_usize(part.end - offset)) else { continue };
            notifier.store(self.ino, part.start, bytes)?;
        }
        Ok(())
    }
}

/// The pages of `all` that are not in `answered`: those before and those behind it. Nothing where `all` does not
/// begin with a page.
fn around(all: Range<u64>, answered: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let from = answered.start - answered.start % PAGE_BYTES;
    let to = answered.end.next_multiple_of(PAGE_BYTES);
    let is_aligned = all.start.is_multiple_of(PAGE_BYTES);
    let parts = [all.start..from.min(all.end), to.max(all.start)..all.end];
    parts.into_iter().filter(move |part| is_aligned && part.start < part.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(all: Range<u64>, answered: Range<u64>) -> Vec<Range<u64>> {
        around(all, &answered).collect()
    }

    #[test]
    fn store_covers_the_cluster_but_for_the_pages_that_were_answered() {
        let all = 0x1_0000..0x2_0000;
        assert_eq!(stored(all.clone(), 0x1_4000..0x1_5000), [0x1_0000..0x1_4000, 0x1_5000..0x2_0000]);
        assert_eq!(stored(all.clone(), 0x1_0000..0x1_1000), vec![0x1_1000..0x2_0000]);
        assert_eq!(stored(all.clone(), 0..0x1_1000), vec![0x1_1000..0x2_0000]);
        assert_eq!(stored(all.clone(), 0x1_f000..0x3_0000), vec![0x1_0000..0x1_f000]);
        assert_eq!(stored(all, 0..0x3_0000), []);
    }

    #[test]
    fn store_of_a_part_of_a_page_leaves_the_page_out() {
        assert_eq!(stored(0x1_0000..0x1_0200, 0x1_0000..0x1_0200), []);
        assert_eq!(stored(0x1_0200..0x1_0400, 0x1_1000..0x1_2000), []);
        assert_eq!(stored(0x1_0000..0x1_2200, 0x1_0000..0x1_1000), vec![0x1_1000..0x1_2200]);
    }
}
