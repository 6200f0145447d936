//! The call server against a cage that says anything: no call, however made, may panic the host, and what gets
//! through is within bounds.

use std::sync::Arc;

use instar_abi::boot::JobKind;
use instar_abi::cure::Cure;
use instar_abi::extent::ExtentKind;
use instar_abi::finding::{ACTIVE, Finding, Table};
use instar_abi::layout::{ARENA_BASE, LARGE_PAGE};
use instar_abi::problem::Problem;
use proptest::prelude::*;
use std::io;

use super::super::drill::Drill;
use super::super::observer::Ignore;
use super::*;
use crate::image::Backend;

const IMAGE_BYTES: u64 = 1 << 20;

/// An image of zeros.
#[derive(Debug)]
struct Zeros;

impl Backend for Zeros {
    fn len(&self) -> u64 {
        IMAGE_BYTES
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(offset + into.len() as u64 <= IMAGE_BYTES);
        into.fill(0);
        Ok(())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Holds every report against what the server promises.
#[derive(Debug, Default)]
struct Strict {
    scope: Vec<(u64, u64)>,
    mapped: u64,
}

impl Observer for Strict {
    fn finding(&mut self, _problem: Problem, finding: &Finding) {
        assert!(finding.count > 0 && (finding.witnesses == 0 || finding.expected != u64::MAX));
    }

    fn region(&mut self, _: Table, region: &instar_abi::region::Region) {
        assert!(region.len > 0 && region.offset + region.len <= IMAGE_BYTES);
    }

    fn replace(&mut self, offset: u64, bytes: Vec<u8>) {
        assert!(offset + bytes.len() as u64 <= IMAGE_BYTES);
    }

    fn extent(&mut self, kind: ExtentKind, extent: &Extent) {
        assert!(extent.guest_offset == self.mapped && kind as u32 == extent.kind);
        self.mapped += extent.guest_len;
    }

    fn scope(&mut self, _cure: Cure, ranges: &[(u64, u64)]) {
        self.scope = ranges.to_vec();
    }

    fn stage(&mut self, offset: u64, bytes: Vec<u8>) {
        let low = self.scope.iter().map(|range| range.0).min().unwrap();
        let high = self.scope.iter().map(|range| range.0 + range.1).max().unwrap();
        assert!(offset >= low && offset + bytes.len() as u64 <= high);
    }
}

/// A number that is near something that matters.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4u64,
        Just(IMAGE_BYTES),
        Just(ARENA_BASE),
        Just(ARENA_BASE + LARGE_PAGE - 1),
        Just(u64::MAX),
        Just(u64::from(ACTIVE)),
        (0..64u32).prop_map(|bit| 1 << bit),
        any::<u64>(),
    ]
}

fn one_call() -> impl Strategy<Value = (u32, u32, Vec<u64>)> {
    let op = prop_oneof![9 => 1..18u32, 1 => any::<u32>()];
    let count = prop_oneof![9 => 0..4u32, 1 => any::<u32>()];
    (op, count, prop::collection::vec(number(), 0..40))
}

fn drill(kind: JobKind) -> Drill {
    Drill::new(&Job::new(kind, Arc::new(Zeros))).unwrap()
}

proptest! {
    #[test]
    fn server_survives_any_sequence_of_calls(
        kind in prop::sample::select(vec![JobKind::Check, JobKind::Plan, JobKind::Map, JobKind::Describe, JobKind::Survey, JobKind::Free]),
        calls in prop::collection::vec(one_call(), 1..20),
        op in 1u32..3,
    ) {
        let mut drill = drill(kind);
        let mut observer = Strict::default();
        for (call, count, words) in calls {
            assert!(drill.put_call(call, count, words.as_bytes()));
            // An error ends a job; here it goes on, which asks more of the server, not less.
            if let Ok(Served::Idle) = drill.ring(&mut observer) {
                let (guest_offset, guest_len, host_len) = (4096, 9, 9);
                let request =
                    MapRequest { op, snapshot: 0, guest_offset, guest_len, host_offset: 0, host_len, payload: 0 };
                drill.ask(vec![request]).unwrap();
            }
        }
        match drill.take_answer() {
            Ok(Reply::Extents(extents)) => for extent in extents {
                prop_assert!(extent.host_offset <= IMAGE_BYTES && extent.host_len <= IMAGE_BYTES - extent.host_offset);
            },
            Ok(Reply::Clusters(clusters)) => for cluster in clusters {
                prop_assert_eq!(cluster.map_or(9, |bytes| bytes.len()), 9);
            },
            Err(_) => {}
        }
    }
}

#[test]
fn server_counts_every_call_it_is_rung_for() {
    let mut drill = drill(JobKind::Check);
    assert!(drill.put_call(99, 0, &[]));
    assert!(drill.ring(&mut Ignore).is_err());
    assert_eq!(drill.stats().exits, 1);
}
