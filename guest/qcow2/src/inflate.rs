//! Inflating compressed clusters: raw deflate (compression type 0) and Zstandard (type 1).
//!
//! Invariant: whatever the bytes are, at most one cluster of output is made and memory is bounded by the cluster
//! size plus one Zstandard block, so a decompression bomb is an error like any other.
//!
//! Deflate has two decoders. The quick one takes only streams that end with their cluster, which nearly all do; what
//! it does not take is for the other one to judge.
//!
//! A stream must fill its cluster. For deflate, what follows a full cluster is ignored (the payload's length is
//! told in 512-byte sectors only, and streams without an end mark are met in practice); a Zstandard frame must
//! end exactly with the cluster. Source: QCOW2 specification, "Compressed clusters" and "compression_type".

use alloc::boxed::Box;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use structured_zstd::decoding::{FrameDecoder, find_frame_compressed_size};
use zune_inflate::{DeflateDecoder, DeflateOptions};

/// How an image's compressed clusters are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate (RFC 1951).
    Deflate,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// What every Zstandard frame begins with (RFC 8878, 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The payload does not inflate to exactly one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOneCluster;

/// Inflates one cluster after the other with the same working memory.
pub struct Inflater {
    /// `None` where each payload has to say it.
    compression: Option<Compression>,
    deflate: Box<DecompressorOxide>,
    zstd: FrameDecoder,
}

impl core::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Inflater").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl Inflater {
    /// An inflater for all clusters of one image.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self { compression: Some(compression), ..Self::by_payload() }
    }

    /// An inflater for an image that contradicts itself in how its clusters are packed: a payload that begins with
    /// the magic number of a Zstandard frame is one.
    #[must_use]
    pub fn by_payload() -> Self {
        Self { compression: None, deflate: Box::default(), zstd: FrameDecoder::new() }
    }

    /// Fills `cluster` from `payload`.
    ///
    /// # Errors
    /// When the payload does not inflate to exactly one cluster; the content of `cluster` is unspecified then.
    pub fn inflate(&mut self, payload: &[u8], cluster: &mut [u8]) -> Result<(), NotOneCluster> {
        let by_payload =
            if payload.starts_with(&ZSTD_MAGIC) { Compression::Zstd } else { Compression::Deflate };
        match self.compression.unwrap_or(by_payload) {
            Compression::Deflate => self.inflate_deflate(payload, cluster),
            Compression::Zstd => self.inflate_zstd(payload, cluster),
        }
    }

    fn inflate_deflate(&mut self, payload: &[u8], cluster: &mut [u8]) -> Result<(), NotOneCluster> {
        if inflate_ended(payload, cluster) {
            return Ok(());
        }
        self.deflate.init();
        let (status, _, made) =
            decompress(&mut self.deflate, payload, cluster, 0, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF);
        let ended = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
        if made == cluster.len() && (ended || status == TINFLStatus::FailedCannotMakeProgress) {
            Ok(())
        } else {
            Err(NotOneCluster)
        }
    }

    fn inflate_zstd(&mut self, payload: &[u8], cluster: &mut [u8]) -> Result<(), NotOneCluster> {
        let frame_len = find_frame_compressed_size(payload).map_err(|_| NotOneCluster)?;
        let frame = payload.get(..frame_len).ok_or(NotOneCluster)?;
        let made = self.zstd.decode_all(frame, cluster).map_err(|_| NotOneCluster)?;
        if made == cluster.len() { Ok(()) } else { Err(NotOneCluster) }
    }
}

/// Fills `cluster` from a deflate stream that ends with it; false for any other, with the cluster unspecified.
fn inflate_ended(payload: &[u8], cluster: &mut [u8]) -> bool {
    let options = DeflateOptions::default().set_size_hint(cluster.len()).set_limit(cluster.len());
    match DeflateDecoder::new_with_options(payload, options).decode_deflate() {
        Ok(bytes) if bytes.len() == cluster.len() => {
            cluster.copy_from_slice(&bytes);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use miniz_oxide::deflate::compress_to_vec;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec as zstd_compress};

    use super::*;

    const CLUSTER: usize = 65_536;

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at * at % 251).unwrap()).collect()
    }

    fn inflate(compression: Compression, payload: &[u8]) -> Result<Vec<u8>, NotOneCluster> {
        let mut cluster = vec![0xaa; CLUSTER];
        Inflater::new(compression).inflate(payload, &mut cluster).map(|()| cluster)
    }

    fn packed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Deflate => compress_to_vec(bytes, 6),
            Compression::Zstd => zstd_compress(bytes, CompressionLevel::Fastest),
        }
    }

    #[test]
    fn inflate_whole_cluster_gives_its_bytes_back() {
        for compression in [Compression::Deflate, Compression::Zstd] {
            let mut payload = packed(compression, &sample(CLUSTER));
            assert_eq!(inflate(compression, &payload).unwrap(), sample(CLUSTER));
            payload.resize(payload.len().next_multiple_of(512), 0x5a);
            assert_eq!(inflate(compression, &payload).unwrap(), sample(CLUSTER), "bytes behind the stream");
        }
    }

    #[test]
    fn inflate_by_payload_tells_the_packings_apart() {
        let mut inflater = Inflater::by_payload();
        for compression in [Compression::Deflate, Compression::Zstd, Compression::Deflate] {
            let mut cluster = vec![0xaa; CLUSTER];
            inflater.inflate(&packed(compression, &sample(CLUSTER)), &mut cluster).unwrap();
            assert!(cluster == sample(CLUSTER), "{compression:?}");
        }
    }

    #[test]
    fn inflate_short_or_cut_stream_is_refused() {
        for compression in [Compression::Deflate, Compression::Zstd] {
            assert_eq!(inflate(compression, &packed(compression, &sample(CLUSTER - 1))), Err(NotOneCluster));
            let whole = packed(compression, &sample(CLUSTER));
            assert_eq!(inflate(compression, &whole[..whole.len() / 2]), Err(NotOneCluster));
            assert_eq!(inflate(compression, &[]), Err(NotOneCluster));
            assert_eq!(inflate(compression, &[0xff; 512]), Err(NotOneCluster));
        }
    }

    #[test]
    fn inflate_zstd_bomb_is_refused() {
        let bomb = packed(Compression::Zstd, &vec![0; 64 << 20]);
        assert_eq!(inflate(Compression::Zstd, &bomb), Err(NotOneCluster));
    }

    #[test]
    fn inflate_after_a_failure_works_again() {
        for compression in [Compression::Deflate, Compression::Zstd] {
            let mut inflater = Inflater::new(compression);
            let mut cluster = vec![0; CLUSTER];
            assert!(inflater.inflate(&[0xff; 100], &mut cluster).is_err());
            assert!(inflater.inflate(&packed(compression, &sample(CLUSTER)), &mut cluster).is_ok());
            assert_eq!(cluster, sample(CLUSTER));
        }
    }
}
