//! Whatever the first bytes of a file are: the header and its extensions are decoded or refused, without a panic, and
//! what is decoded keeps its promises.
#![no_main]

use instar_qcow2::ondisk::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Longer files are decoded from their first cluster, shorter ones as if zeros followed.
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().max(512), 0);
    if let Ok((header, faults)) = Header::decode(&padded) {
        assert!((9..=21).contains(&header.cluster.bits()), "{header:?}");
        assert!(faults.len() < 64, "{faults:?}");
    }
});
