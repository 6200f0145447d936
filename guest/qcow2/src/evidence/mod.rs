//! Evidence for a damaged header field: what must have stood there for the rest of the file to make sense.
//!
//! A header is read as if one field of it held another value, and the tables that it then leads to are put on trial
//! ([`trial`]): do they read as tables, and do reference counts and COPIED flags agree with them? The field is
//! *determined* where exactly one change of one field passes.
//!
//! Invariant: nothing is proposed for a header that passes as it stands, none where two changes pass, and never more
//! than one field at a time. What is looked at is bounded by constants here, whatever the file says. What this does
//! not do: decide that the field is to be changed. That is the user's.

mod layout;
mod search;
mod trial;

use alloc::vec::Vec;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::choice::Decision;
use instar_abi::finding::Finding;
use instar_abi::problem::{Problem, Problem as P};

use crate::check::reader::{Bytes, Reader};
use crate::host::Host;
use crate::ondisk::bytes::{be_u32, be_u64};
use crate::ondisk::extensions::{BACKING_FORMAT, BITMAPS, CRYPTO, DATA_FILE, FEATURE_TABLE};
use crate::ondisk::header::{FIXED_BYTES, MAGIC, V3_BYTES_MIN, incompatible};
use crate::ondisk::l1::L1_TABLE_BYTES_MAX;
use crate::ondisk::refcount::REFCOUNT_ORDER_MAX;
use crate::ondisk::units::{CLUSTER_BITS_MAX, CLUSTER_BITS_MIN};
use crate::ondisk::{Fault, Header};
use layout::Layout;
use trial::{Score, trial};

/// Bytes of a version 3 header that says how clusters are compressed.
const V3_BYTES_COMPRESSION: u64 = 112;
/// Types of header extensions.
const EXTENSIONS: &[u32] = &[BACKING_FORMAT, FEATURE_TABLE, BITMAPS, CRYPTO, DATA_FILE];

/// A header field, and the value that the rest of the file asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// The problem that it is told as.
    pub problem: Problem,
    /// Byte offset of the field in the file.
    pub at: u64,
    /// Bytes of the field: 4 or 8.
    pub len: u64,
    /// The value stored.
    pub stored: u64,
    /// The value that it is to have.
    pub value: u64,
    /// Parts of the file that bear the value out, at least 1.
    pub witnesses: u32,
}

impl Root {
    /// The finding that tells of it; with witnesses only where the user can decide to restore the field.
    #[must_use]
    pub fn finding(&self) -> Finding {
        let fault = Fault::header(self.problem, self.at, self.len, self.stored, self.value);
        let witnesses = if Decision::restoring(self.problem).is_some() { self.witnesses } else { 0 };
        Finding { witnesses, ..fault.finding() }
    }
}

/// The first bytes of a file with one field changed.
#[must_use]
pub fn patched(head: &[u8], at: u64, len: u64, value: u64) -> Vec<u8> {
    let mut head = head.to_vec();
    let (at, len) = (instar_abi::to_usize(at), instar_abi::to_usize(len).min(8));
    if let Some(place) = head.get_mut(at..at.saturating_add(len)) {
        place.copy_from_slice(value.to_be_bytes().get(8 - len..).unwrap_or(&[]));
    }
    head
}

/// A field, and the values that it may have had.
struct Field {
    problem: Problem,
    at: u64,
    len: u64,
    values: Vec<u64>,
}

impl Field {
    const fn new(problem: Problem, at: u64, len: u64, values: Vec<u64>) -> Self {
        Self { problem, at, len, values }
    }
}

/// Looks for the one change of one field with which the file makes sense. `None` where it does as it is, where no
/// change helps, and where several do.
///
/// The active disk `is_lost` where a table that nothing leads to was found: then an L1 table without any entry is not
/// taken for it.
pub fn find<H: Host>(host: &mut H, is_lost: bool) -> Option<Root> {
    let mut reader = Reader::new(host.file_len(FILE_IMAGE)?);
    let Bytes::Read(head) = reader.one(host, 0, FIXED_BYTES) else { return None };
    let head = head.to_vec();
    let mut court = Court { host, reader, head: &head };
    let mut baseline = court.trial(&head);
    if let Some(score) = baseline.as_mut().filter(|score| is_lost && score.tables == 0) {
        score.against = score.against.max(1);
    }
    if baseline.is_some_and(|score| score.against == 0) {
        return None;
    }
    let fields = fields(court.host, &mut court.reader, &head);
    let mut passed: Vec<Heard> = fields.iter().flat_map(|field| court.hear(field, baseline)).collect();
    if passed.is_empty() && baseline.is_none_or(|score| score.tables == 0) {
        let values = search::l1_tables(court.host, &mut court.reader, &head);
        passed = court.hear(&Field::new(P::HeaderL1Offset, 40, 8, values), baseline);
    }
    decide(passed)
}

/// What is to be tried, by fields. Where a field cannot be as it stands, nothing but that field is.
fn fields<H: Host>(host: &mut H, reader: &mut Reader, head: &[u8]) -> Vec<Field> {
    let u32_at = |at| u64::from(be_u32(head, at).unwrap_or(0));
    if be_u32(head, 0) != Some(MAGIC) {
        return alloc::vec![Field::new(P::HeaderMagic, 0, 4, alloc::vec![u64::from(MAGIC)])];
    }
    let (version, bits, crypt) = (u32_at(4), u32_at(20), u32_at(32));
    let of_version = |values| Field::new(P::HeaderVersion, 4, 4, values);
    let all_bits = (u64::from(CLUSTER_BITS_MIN)..=u64::from(CLUSTER_BITS_MAX)).filter(|other| *other != bits);
    let of_bits = Field::new(P::HeaderClusterBits, 20, 4, all_bits.collect());
    if version != 2 && version != 3 {
        return alloc::vec![of_version(alloc::vec![2, 3])];
    }
    if bits < u64::from(CLUSTER_BITS_MIN) || bits > u64::from(CLUSTER_BITS_MAX) {
        return alloc::vec![of_bits];
    }
    if crypt > 2 {
        return alloc::vec![Field::new(P::HeaderCryptMethod, 32, 4, alloc::vec![0, 1, 2])];
    }
    let mut fields = alloc::vec![of_version(alloc::vec![5 - version]), of_bits];
    if version == 3 {
        let (order, len) = (u32_at(96), u32_at(100));
        if order > u64::from(REFCOUNT_ORDER_MAX) {
            let orders = (0..=u64::from(REFCOUNT_ORDER_MAX)).collect();
            fields.push(Field::new(P::HeaderRefcountOrder, 96, 4, orders));
        }
        if len < u64::from(V3_BYTES_MIN) || len % 8 != 0 || len > 1 << bits {
            // Without the compression type the first extension follows at once.
            let is_short = be_u32(head, V3_BYTES_MIN as usize).is_some_and(|kind| EXTENSIONS.contains(&kind));
            let len = if is_short { u64::from(V3_BYTES_MIN) } else { V3_BYTES_COMPRESSION };
            fields.push(Field::new(P::HeaderLength, 100, 4, alloc::vec![len]));
        }
        let other = be_u64(head, 72).unwrap_or(0) ^ incompatible::EXTENDED_L2;
        fields.push(Field::new(P::HeaderExtendedL2Flag, 72, 8, alloc::vec![other]));
    }
    fields.extend(sizes(host, reader, head));
    fields
}

/// The number of L1 entries, which follows from the disk's size, and the disk's size, which does not quite follow from
/// the number of entries: that of the last snapshot is tried first.
fn sizes<H: Host>(host: &mut H, reader: &mut Reader, head: &[u8]) -> Vec<Field> {
    let Ok((header, _)) = Header::decode(head) else { return Vec::new() };
    let Layout { header, snapshots, .. } = Layout::of(host, reader, header);
    let (needed, entries) = (header.l1_entries_needed(), u64::from(header.l1_entries));
    let mut fields = Vec::new();
    if needed != entries && needed > 0 && needed <= L1_TABLE_BYTES_MAX / 8 {
        fields.push(Field::new(P::HeaderL1Size, 36, 4, alloc::vec![needed]));
    }
    let of_entries = |size: &u64| size.div_ceil(1 << header.l1_entry_reach_bits()) == entries;
    let told = snapshots.iter().flatten().last().and_then(|entry| entry.disk_bytes).filter(of_entries);
    let largest = entries.checked_mul(1 << header.l1_entry_reach_bits()).filter(of_entries);
    let sizes = [told, largest].into_iter().flatten();
    let others = sizes.filter(|size| *size != header.virtual_size && *size > 0);
    fields.extend(others.map(|size| Field::new(P::HeaderVirtualSize, 24, 8, alloc::vec![size])));
    fields
}

/// A change that passes, and with which score.
type Heard = (Root, Score);

/// Which of the changes that pass is the one: the best, if it is the only one. The number of L1 entries follows from the
/// disk's size, and comes before it where both are as good; so does what a snapshot tells before the largest size that
/// there can be.
fn decide(mut passed: Vec<Heard>) -> Option<Root> {
    let least = passed.iter().map(|(_, score)| score.against).min();
    passed.retain(|(_, score)| Some(score.against) == least);
    if passed.iter().any(|(root, _)| root.problem == P::HeaderL1Size) {
        passed.retain(|(root, _)| root.problem != P::HeaderVirtualSize);
    }
    let is_size = |(root, _): &Heard| root.problem == P::HeaderVirtualSize;
    passed.dedup_by(|next, first| is_size(next) && is_size(first));
    match passed.as_slice() {
        [(root, _)] => Some(*root),
        _ => None,
    }
}

/// Where changes of a header are tried.
struct Court<'a, H> {
    host: &'a mut H,
    reader: Reader,
    head: &'a [u8],
}

impl<H: Host> Court<'_, H> {
    fn trial(&mut self, head: &[u8]) -> Option<Score> {
        trial(self.host, &mut self.reader, head)
    }

    /// The values of a field that pass.
    fn hear(&mut self, field: &Field, baseline: Option<Score>) -> Vec<Heard> {
        let mut heard = Vec::new();
        for &value in &field.values {
            let head = patched(self.head, field.at, field.len, value);
            let score = self.trial(&head).filter(|score| score.passes(baseline));
            heard.extend(score.map(|score| (self.root(field, value, score), score)));
        }
        heard
    }

    fn root(&self, field: &Field, value: u64, score: Score) -> Root {
        let at = instar_abi::to_usize(field.at);
        let stored = match field.len {
            4 => u64::from(be_u32(self.head, at).unwrap_or(0)),
            _ => be_u64(self.head, at).unwrap_or(0),
        };
        let Field { problem, at, len, .. } = *field;
        Root { problem, at, len, stored, value, witnesses: score.witnesses }
    }
}
