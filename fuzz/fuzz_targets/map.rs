//! Whatever the bytes of an image are: every request is answered over its whole range, the same for a part as for the
//! whole, and no guest byte is served from anywhere but where its entry says.
//!
//! Where an entry leads is known from a reader of the format that shares no code with the product. Of places that
//! are metadata too it has no opinion, and damage is always a right answer.
#![no_main]

#[path = "shared/memory.rs"]
#[allow(dead_code, reason = "each target uses its own part of this")]
mod memory;
#[path = "shared/mutate.rs"]
mod mutate;
#[path = "shared/support.rs"]
mod support;

use instar_abi::extent::{Extent, ExtentKind, MapOp, MapRequest, REQUESTS_MAX};
use instar_abi::finding::ACTIVE;
use instar_qcow2::map;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use memory::Memory;
use support::reading::{self, Disk, Seen};
use support::reference::{Content, Head};

/// Guest bytes asked for at most.
const MAPPED_MAX: u64 = 4 << 20;
/// Bytes at the end of the input that say which parts are asked for again.
const SCRIPT_BYTES: usize = 16;
/// Disks of one image that are looked at.
const DISKS_MAX: u32 = 3;

fn request(snapshot: u32, guest_offset: u64, guest_len: u64) -> MapRequest {
    MapRequest {
        op: MapOp::Map as u32,
        snapshot,
        guest_offset,
        guest_len,
        host_offset: 0,
        host_len: 0,
        payload: 0,
    }
}

/// The extents of a request, or nothing of an image that has no disk.
fn mapped(image: &[u8], asked: MapRequest) -> Vec<Extent> {
    let mut host = Memory::new(image);
    host.requests.push_back(asked);
    map::serve(&mut host);
    let extents = host.extents;
    if let (Some(first), Some(last)) = (extents.first(), extents.last()) {
        assert!(first.guest_offset <= asked.guest_offset);
        assert!(last.guest_offset + last.guest_len >= asked.guest_offset + asked.guest_len);
        let joined = extents.iter().zip(&extents[1..]);
        assert!(joined.clone().all(|(one, next)| one.guest_offset + one.guest_len == next.guest_offset));
    }
    extents
}

fn kind(extent: &Extent) -> ExtentKind {
    ExtentKind::from_u32(extent.kind).expect("a known kind")
}

/// The extent that a guest byte lies in, and what it is made of there.
fn at(extents: &[Extent], guest: u64) -> (ExtentKind, u64, u64) {
    let index = extents.partition_point(|extent| extent.guest_offset <= guest) - 1;
    let extent = &extents[index];
    assert!(guest < extent.guest_offset + extent.guest_len, "a gap at {guest:#x}");
    let skipped = guest - extent.guest_offset;
    match kind(extent) {
        kind @ (ExtentKind::Data | ExtentKind::Encrypted) => (kind, extent.host_offset + skipped, 0),
        kind => (kind, extent.host_offset, extent.host_len),
    }
}

/// Whether this is what the entry of a place says.
fn is_as_stored(head: &Head, file_len: u64, place: u64, seen: &Seen, found: (ExtentKind, u64, u64)) -> bool {
    let skipped = if head.is_extended() { place % head.cluster() } else { 0 };
    match (seen.content, found) {
        (_, (ExtentKind::Damaged, ..)) | (Content::Zero, (ExtentKind::Zero, ..)) => true,
        (Content::Data(_), (ExtentKind::Data | ExtentKind::Encrypted, host, _)) => {
            host == seen.host.0 + skipped
        }
        // The file ends within the cluster.
        (Content::Data(_), (ExtentKind::Zero, ..)) => seen.host.0 + skipped >= file_len,
        (Content::Packed(_), (ExtentKind::Compressed, host, len)) => {
            host == seen.host.0 && host + len == seen.host.1.min(file_len)
        }
        _ => false,
    }
}

fn compare(image: &Vec<u8>, head: &Head, disk: &Disk, extents: &[Extent], end: u64) {
    for (place, seen) in disk.places.iter().filter(|(place, seen)| **place < end && seen.is_own) {
        let found = at(extents, *place);
        assert!(
            is_as_stored(head, image.len() as u64, *place, seen, found),
            "{place:#x}: {seen:?} as {found:?}"
        );
    }
    let is_broken = |guest: u64| disk.broken.iter().any(|range| range.contains(&guest));
    let unit = if head.is_extended() { head.cluster() / 32 } else { head.cluster() };
    for extent in
        extents.iter().filter(|extent| !matches!(kind(extent), ExtentKind::Hole | ExtentKind::Damaged))
    {
        let guest = extent.guest_offset;
        let is_known = disk.places.contains_key(&(guest - guest % unit));
        assert!(guest >= end || is_known || is_broken(guest), "{guest:#x}: a hole as {extent:?}");
    }
}

/// What a part is made of does not depend on how much is asked for at once. Only that a whole table is garbage is seen
/// by its bad entries alone.
fn ask_again(image: &[u8], script: &[u8], snapshot: u32, extents: &[Extent], end: u64) {
    for bytes in script.chunks_exact(4) {
        let offset = u64::from(u16::from_le_bytes([bytes[0], bytes[1]])) * 61 % end;
        let len = (1 + u64::from(bytes[2]) << (bytes[3] % 12)).min(end - offset);
        let part = mapped(image, request(snapshot, offset, len));
        for guest in [offset, offset + len / 2, offset + len - 1] {
            let (alone, whole) = (at(&part, guest), at(extents, guest));
            let is_damage = [alone, whole].iter().any(|found| found.0 == ExtentKind::Damaged);
            assert!(
                is_damage || alone == whole,
                "{guest:#x} of {offset:#x} + {len:#x}: {alone:?}, {whole:?}"
            );
        }
    }
}

/// Inflates the first compressed clusters, together and one by one.
fn inflate(image: &[u8], extents: &[Extent]) {
    let packed = extents.iter().filter(|extent| kind(extent) == ExtentKind::Compressed);
    let requests = packed.take(REQUESTS_MAX / 8).map(|extent| MapRequest {
        op: MapOp::Inflate as u32,
        host_offset: extent.host_offset,
        host_len: extent.host_len,
        ..request(ACTIVE, extent.guest_offset, extent.guest_len)
    });
    let requests: Vec<MapRequest> = requests.collect();
    let total: u64 = requests.iter().map(|request| request.guest_len).sum();
    if requests.is_empty() || total > instar_abi::extent::INFLATED_BYTES_MAX {
        return;
    }
    let mut host = Memory::new(image);
    host.batches.push_back(requests.clone());
    map::serve(&mut host);
    assert_eq!(host.inflated.len(), requests.len());
    for (request, together) in requests.into_iter().zip(host.inflated) {
        let mut host = Memory::new(image);
        let wanted = request.guest_len;
        host.batches.push_back(vec![request]);
        map::serve(&mut host);
        assert_eq!(host.inflated, [together.clone()]);
        assert!(together.is_none_or(|bytes| bytes.len() as u64 == wanted));
    }
}

fuzz_mutator!(|data: &mut [u8], size: usize, size_max: usize, seed: u32| {
    mutate::mutate(data, size, size_max, seed)
});

fuzz_target!(|data: &[u8]| {
    if data.len() <= SCRIPT_BYTES {
        return;
    }
    let script = &data[data.len() - SCRIPT_BYTES..];
    let image = data.to_vec();
    let head = Head::of(&image);
    let disks = reading::disks(&image);
    for index in 0..DISKS_MAX.min(u32::try_from(disks.len()).expect("few disks")) {
        let snapshot = index.checked_sub(1).unwrap_or(ACTIVE);
        let end = head.size.clamp(1, MAPPED_MAX);
        let extents = mapped(&image, request(snapshot, 0, end));
        if extents.is_empty() {
            continue;
        }
        compare(&image, &head, &disks[index as usize], &extents, end);
        ask_again(&image, script, snapshot, &extents, end);
        inflate(&image, &extents);
    }
});
