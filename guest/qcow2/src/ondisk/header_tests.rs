use super::*;

fn v3() -> Vec<u8> {
    let mut bytes = alloc::vec![0_u8; FIXED_BYTES];
    bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[7] = 3;
    bytes[23] = 16;
    bytes[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
    bytes[39] = 2;
    bytes[40..48].copy_from_slice(&0x3_0000_u64.to_be_bytes());
    bytes[48..56].copy_from_slice(&0x1_0000_u64.to_be_bytes());
    bytes[59] = 1;
    bytes[99] = 4;
    bytes[103] = 104;
    bytes
}

fn fault_with(change: impl FnOnce(&mut [u8])) -> Problem {
    let mut bytes = v3();
    change(&mut bytes);
    match Header::decode(&bytes) {
        Ok((_, faults)) => faults[0].problem,
        Err(fault) => fault.problem,
    }
}

#[test]
fn good_header_has_no_faults() {
    let (header, faults) = Header::decode(&v3()).unwrap();
    assert_eq!(faults, []);
    assert_eq!((header.version, header.cluster.bytes(), header.refcount_width.bits()), (3, 65536, 16));
    let bounds = header.bounds(0x4_0000);
    assert_eq!(header.l1_table(&bounds), Ok(TableRange { offset: 0x3_0000, len: 16 }));
    assert_eq!(header.refcount_table(&bounds).unwrap().len, 65536);
    assert_eq!(header.snapshot_table_offset(&bounds), Ok(None));
}

#[test]
fn version_2_ignores_bytes_from_72_on() {
    let mut bytes = v3();
    bytes[7] = 2;
    bytes[72..112].fill(0xff);
    let (header, faults) = Header::decode(&bytes).unwrap();
    assert_eq!(faults, []);
    assert_eq!((header.incompatible, header.header_bytes, header.refcount_width.bits()), (0, Some(72), 16));
    bytes.truncate(72);
    assert!(Header::decode(&bytes).is_ok());
}

#[test]
fn each_bad_field_is_told_by_its_own_problem() {
    assert_eq!(fault_with(|b| b[0] = 0), Problem::NotQcow2);
    assert_eq!(fault_with(|b| b[7] = 4), Problem::HeaderVersion);
    assert_eq!(fault_with(|b| b[23] = 8), Problem::HeaderClusterBits);
    assert_eq!(fault_with(|b| b[103] = 96), Problem::HeaderLength);
    assert_eq!(fault_with(|b| b[35] = 3), Problem::HeaderCryptMethod);
    assert_eq!(fault_with(|b| b[72] = 1), Problem::HeaderIncompatibleFeature);
    assert_eq!(fault_with(|b| b[79] = 8), Problem::HeaderCompressionType);
    assert_eq!(fault_with(|b| b[39] = 1), Problem::HeaderL1Size);
    assert_eq!(fault_with(|b| b[36] = 1), Problem::HeaderL1Size);
    assert_eq!(fault_with(|b| b[15] = 8), Problem::HeaderBackingName);
    assert_eq!(fault_with(|b| b[95] = 2), Problem::AutoclearDataFileRaw);
}

#[test]
fn l1_table_that_fits_other_entries_casts_doubt_on_all_of_them() {
    let fault_with = |size: u64, l1_entries: u8, cluster_bits: u8, extended: u8| {
        let mut bytes = v3();
        bytes[24..32].copy_from_slice(&size.to_be_bytes());
        (bytes[39], bytes[23], bytes[79]) = (l1_entries, cluster_bits, extended);
        Header::decode(&bytes).unwrap().0.geometry_fault().map(|fault| fault.problem)
    };
    let size = 3 << 29;
    assert_eq!(fault_with(size, 3, 16, 0), None, "as it ought to be");
    assert_eq!(fault_with(size, 3, 15, 0), Some(Problem::HeaderL1Size));
    assert_eq!(fault_with(size, 3, 16, 16), Some(Problem::HeaderL1Size));
    assert_eq!(fault_with(size, 9, 16, 0), None, "longer than needed is no contradiction");
    assert_eq!(fault_with(1 << 50, 3, 16, 0), None, "no other geometry explains it");
    assert_eq!(fault_with(size, 2, 16, 0), None);
}

#[test]
fn impossible_length_leaves_the_fixed_fields_readable() {
    let mut bytes = v3();
    bytes[103] = 96;
    let (header, faults) = Header::decode(&bytes).unwrap();
    assert_eq!((header.header_bytes, header.version), (None, 3));
    assert_eq!(faults.len(), 1);
}

#[test]
fn refused_header_still_tells_what_it_has() {
    let mut bytes = v3();
    bytes[35] = 3;
    assert!(Header::decode(&bytes).is_err());
    let facts = PlainFacts::of(&bytes);
    assert_eq!((facts.version, facts.cluster_bits), (Some(3), Some(16)));
    assert_eq!(PlainFacts::of(&bytes[..28]).virtual_size, None);
    assert_eq!(PlainFacts::of(&[0; 112]), PlainFacts::default());
}

#[test]
fn header_with_several_impossible_fields_is_salvaged_without_them() {
    let mut bytes = v3();
    (bytes[23], bytes[35], bytes[72]) = (63, 9, 1);
    let header = Header::salvage(&bytes).unwrap();
    assert_eq!((header.version, header.virtual_size, header.snapshots), (3, 1 << 30, 0));
    assert_eq!((header.incompatible, header.crypt), (0, Crypt::None));
    bytes[7] = 9;
    assert_eq!(Header::salvage(&bytes), None);
    assert_eq!(Header::salvage(&v3()[..50]), None);
}

#[test]
fn every_prefix_is_refused_without_a_panic() {
    let bytes = v3();
    for len in 0..V3_BYTES_MIN as usize {
        assert!(Header::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn pointers_outside_the_file_are_not_handed_out() {
    let mut bytes = v3();
    bytes[99] = 7;
    let (header, _) = Header::decode(&bytes).unwrap();
    let fault = header.refcount_table(&header.bounds(1 << 40)).unwrap_err();
    assert_eq!((fault.problem, fault.stored), (Problem::HeaderRefcountOrder, 7));
    let (header, _) = Header::decode(&v3()).unwrap();
    let bounds = header.bounds(0x1_0000);
    assert_eq!(header.l1_table(&bounds).unwrap_err().problem, Problem::HeaderL1Offset);
    let fault = header.refcount_table(&bounds).unwrap_err();
    assert_eq!(fault.problem, Problem::HeaderRefcountTableOffset);
}
