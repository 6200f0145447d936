//! A view of a backend in which some ranges read as zeros.
//!
//! Invariant: nothing can be written through it, and it is as long as what lies below. It takes no memory but that of
//! the ranges.

use std::io;
use std::sync::Arc;

use super::Backend;

/// The view.
#[derive(Debug, Clone)]
pub struct Zeroed {
    base: Arc<dyn Backend>,
    /// (offset, length), ascending, no two touching the same byte.
    ranges: Arc<[(u64, u64)]>,
}

impl Zeroed {
    /// Shows `base` with zeros in these ranges of (offset, length).
    ///
    /// # Errors
    /// `InvalidInput` where they are not in ascending order, overlap, or reach past the largest offset.
    pub fn new(base: Arc<dyn Backend>, ranges: Arc<[(u64, u64)]>) -> io::Result<Self> {
        let mut end = 0;
        for &(offset, len) in ranges.iter() {
            let next = offset.checked_add(len).filter(|_| offset >= end);
            end = next.ok_or_else(|| {
                let why = format!("range {offset:#x} + {len:#x} behind one that ends at {end:#x}");
                io::Error::new(io::ErrorKind::InvalidInput, why)
            })?;
        }
        Ok(Self { base, ranges })
    }

    /// The parts of `offset .. end` that read as zeros, as (start, end).
    fn zeros(&self, offset: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self.ranges.partition_point(|(start, len)| start + len <= offset);
        let behind = self.ranges.iter().skip(first).map(|(start, len)| (*start, start + len));
        behind
            .take_while(move |(start, _)| *start < end)
            .map(move |(start, stop)| (start.max(offset), stop.min(end)))
    }
}

impl Backend for Zeroed {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.base.read_at(into, offset)?;
        let end = offset.saturating_add(into.len() as u64);
        for (start, stop) in self.zeros(offset, end) {
            let range = instar_abi::to_usize(start - offset)..instar_abi::to_usize(stop - offset);
            into[range].fill(0);
        }
        Ok(())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn data_ranges(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut data = Vec::new();
        for (start, len) in self.base.data_ranges(offset, len)? {
            let (mut at, end) = (start, start.saturating_add(len));
            for (hole, behind) in self.zeros(start, end) {
                if at < hole {
                    data.push((at, hole - at));
                }
                at = behind;
            }
            if at < end {
                data.push((at, end - at));
            }
        }
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Overlay;

    fn base(bytes: &[u8]) -> Arc<dyn Backend> {
        #[derive(Debug)]
        struct Bytes(Vec<u8>);
        impl Backend for Bytes {
            fn len(&self) -> u64 {
                self.0.len() as u64
            }
            fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
                let from = instar_abi::to_usize(offset);
                let bytes = self.0.get(from..from + into.len());
                into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
                panic!("a view wrote to its base")
            }
            fn set_len(&self, _: u64) -> io::Result<()> {
                panic!("a view resized its base")
            }
            fn sync(&self) -> io::Result<()> {
                Ok(())
            }
        }
        // Through an overlay, which tells ranges of its own.
        Arc::new(Overlay::new(Arc::new(Bytes(bytes.to_vec())), 0))
    }

    #[test]
    fn ranges_out_of_order_are_refused() {
        for ranges in [&[(4, 2), (5, 1)][..], &[(4, 1), (2, 1)], &[(u64::MAX, 2)]] {
            assert!(Zeroed::new(base(b"0123456789"), ranges.into()).is_err(), "{ranges:?}");
        }
        assert!(Zeroed::new(base(b"0123456789"), [(2, 2), (4, 1)].into()).is_ok());
    }

    proptest! {
        #[test]
        fn view_reads_like_a_vector_with_zeros(
            bytes in proptest::collection::vec(1_u8.., 1..60),
            gaps in proptest::collection::vec((0_u64..9, 1_u64..9), 0..8),
            from in 0_usize..60, len in 0_usize..60,
        ) {
            let mut model = bytes.clone();
            let mut ranges = Vec::new();
            let mut at = 0;
            for (gap, len) in gaps {
                ranges.push((at + gap, len));
                at += gap + len;
                let end = instar_abi::to_usize(at).min(model.len());
                let start = instar_abi::to_usize(at - len).min(end);
                model[start..end].fill(0);
            }
            let view = Zeroed::new(base(&bytes), ranges.into()).unwrap();
            let mut part = vec![7; len];
            match (view.read_at(&mut part, from as u64), model.get(from..from + len)) {
                (read, Some(expected)) => { read.unwrap(); prop_assert_eq!(&part, expected); }
                (read, None) => prop_assert!(read.is_err()),
            }
            let mut told = vec![0; model.len()];
            for (offset, len) in view.data_ranges(0, model.len() as u64).unwrap() {
                let range = instar_abi::to_usize(offset)..instar_abi::to_usize(offset + len);
                told[range.clone()].copy_from_slice(&model[range]);
            }
            prop_assert_eq!(told, model);
        }
    }
}
