//! Following a chain downwards.

use std::sync::Arc;

use super::member::{Chain, ChainPolicy, ChainProblem, Describe, Facts, Format, Member};
use crate::image::gate::CHAIN_MEMBERS_MAX;
use crate::image::{ImageHandle, Mode};

/// Opens every member below `top` that `policy` admits; `top` is QCOW2 by the user's word. All are locked for reading
/// as long as the chain lives. Whatever is wrong stands in the chain's problems.
pub fn follow(top: Arc<ImageHandle>, policy: &ChainPolicy, cage: &dyn Describe) -> Chain {
    let path = top.path().to_path_buf();
    let first = Member { path, format: Format::Qcow2, virtual_size: 0, handle: top };
    let mut chain = Chain { members: vec![first], problems: Vec::new() };
    loop {
        match next(&mut chain, policy, cage) {
            Ok(Some(member)) => chain.members.push(member),
            Ok(None) => break,
            Err(problem) => {
                chain.problems.push((chain.members.len() - 1, problem));
                break;
            }
        }
    }
    compare_sizes(&mut chain);
    chain
}

/// Looks at the last member and opens the one below it, if it names one.
fn next(
    chain: &mut Chain,
    policy: &ChainPolicy,
    cage: &dyn Describe,
) -> Result<Option<Member>, ChainProblem> {
    let depth = chain.members.len() - 1;
    let last = &mut chain.members[depth];
    if last.format == Format::Raw {
        last.virtual_size = last.handle.backend().len();
        return Ok(None);
    }
    let facts = cage.describe(last.handle.backend()).map_err(ChainProblem::Cage)?;
    if !facts.is_qcow2 {
        return Err(ChainProblem::NotAsStated);
    }
    last.virtual_size = facts.virtual_size;
    if facts.has_backing && policy.last == Some(depth) {
        return Err(ChainProblem::LeftOut);
    }
    let Some(name) = &facts.backing_name else {
        return if facts.has_backing { Err(ChainProblem::NameUnreadable) } else { Ok(None) };
    };
    let format = stated_format(&facts, policy.formats.get(depth))?;
    if chain.members.len() == CHAIN_MEMBERS_MAX {
        return Err(ChainProblem::TooLong { limit: CHAIN_MEMBERS_MAX });
    }
    let admitted = policy.gate.admit(depth, &chain.members[depth].path, name).map_err(ChainProblem::Gate)?;
    let path = admitted.path.clone();
    let handle = ImageHandle::from_admitted(admitted, Mode::Read).map_err(ChainProblem::Handle)?;
    let identity = handle.file().identity();
    let known = chain.members.iter().position(|member| member.handle.file().identity() == identity);
    match known {
        Some(position) => Err(ChainProblem::Cycle { position }),
        None => Ok(Some(Member { path, format, virtual_size: 0, handle: Arc::new(handle) })),
    }
}

/// The format by the image's word, or where it says nothing, by the user's.
fn stated_format(facts: &Facts, by_user: Option<&Format>) -> Result<Format, ChainProblem> {
    let Some(stated) = &facts.backing_format else {
        return by_user.copied().ok_or(ChainProblem::FormatUnstated);
    };
    Format::from_name(stated).ok_or_else(|| ChainProblem::FormatUnknown { stated: stated.clone() })
}

fn compare_sizes(chain: &mut Chain) {
    let whole = chain.is_whole();
    let sizes: Vec<u64> = chain.members.iter().map(|member| member.virtual_size).collect();
    let last = sizes.len() - 1;
    for (position, pair) in sizes.windows(2).enumerate() {
        let (own, below) = (pair[0], pair[1]);
        // The last member of a chain that broke off was not looked at as a whole.
        if !whole && position + 1 == last {
            break;
        }
        if below < own {
            chain.problems.push((position, ChainProblem::Shorter { own, below }));
        } else if below > own {
            chain.problems.push((position, ChainProblem::Larger { own, below }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::image::Backend;
    use crate::image::gate::GatePolicy;
    use crate::sandbox::error::SandboxError;

    /// Understands files of the form "image SIZE [BACKING [FORMAT]]".
    struct Fake;

    impl Describe for Fake {
        fn describe(&self, image: Arc<dyn Backend>) -> Result<Facts, SandboxError> {
            let mut bytes = vec![0; usize::try_from(image.len()).unwrap()];
            image.read_at(&mut bytes, 0).unwrap();
            let text = String::from_utf8(bytes).unwrap();
            let mut words = text.split(' ');
            let is_qcow2 = words.next() == Some("image");
            let virtual_size = words.next().and_then(|size| size.parse().ok()).unwrap_or(0);
            let mut name = || words.next().map(|word| word.as_bytes().to_vec());
            let backing_name = name();
            let has_backing = backing_name.is_some();
            Ok(Facts { is_qcow2, has_backing, virtual_size, backing_name, backing_format: name() })
        }
    }

    fn top_of(folder: &tempfile::TempDir, name: &str) -> Arc<ImageHandle> {
        Arc::new(ImageHandle::open(&folder.path().join(name), Mode::Read).unwrap())
    }

    fn chain(files: &[(&str, &str)]) -> (tempfile::TempDir, Chain) {
        chain_with(files, &[])
    }

    fn chain_with(files: &[(&str, &str)], formats: &[Format]) -> (tempfile::TempDir, Chain) {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let gate = GatePolicy { named: vec![], folders: vec![folder.path().to_path_buf()] };
        let policy = ChainPolicy { gate, formats: formats.to_vec(), last: None };
        let chain = follow(top_of(&folder, files[0].0), &policy, &Fake);
        (folder, chain)
    }

    fn names(chain: &Chain) -> Vec<String> {
        chain.members.iter().map(|m| m.path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn follow_whole_chain_reaches_its_raw_end() {
        let (_folder, chain) =
            chain(&[("top", "image 4 middle qcow2"), ("middle", "image 4 end raw"), ("end", "1234")]);
        assert_eq!(names(&chain), ["top", "middle", "end"]);
        assert!(chain.is_whole() && chain.problems.is_empty());
    }

    #[test]
    fn follow_sizes_that_differ_are_remarks() {
        let (_folder, chain) = chain(&[("top", "image 9 a qcow2"), ("a", "image 3 b raw"), ("b", "12345")]);
        assert!(chain.is_whole());
        assert!(matches!(chain.problems[0], (0, ChainProblem::Shorter { own: 9, below: 3 })));
        assert!(matches!(chain.problems[1], (1, ChainProblem::Larger { own: 3, below: 5 })));
    }

    #[test]
    fn follow_chain_that_bites_its_tail_ends() {
        let (_folder, chain) = chain(&[("top", "image 9 a qcow2"), ("a", "image 9 ./top qcow2")]);
        assert!(matches!(chain.problems[..], [(1, ChainProblem::Cycle { position: 0 })]));
    }

    #[test]
    fn follow_missing_unstated_unknown_or_wrong_format_is_told() {
        let broken = |content: &str| {
            let (_folder, mut chain) = chain(&[("top", content), ("a", "no image")]);
            assert!(!chain.is_whole());
            chain.problems.remove(0)
        };
        assert!(matches!(broken("image 9 gone raw"), (0, ChainProblem::Gate(_))));
        assert!(matches!(broken("image 9 a"), (0, ChainProblem::FormatUnstated)));
        assert!(matches!(broken("image 9 a vmdk"), (0, ChainProblem::FormatUnknown { .. })));
        assert!(matches!(broken("image 9 a qcow2"), (1, ChainProblem::NotAsStated)));
    }

    #[test]
    fn follow_ends_where_the_user_leaves_out_the_rest() {
        let (folder, _) = chain(&[("top", "image 9 middle qcow2"), ("middle", "image 9 gone vmdk")]);
        let gate = GatePolicy { named: vec![], folders: vec![folder.path().to_path_buf()] };
        for (last, members) in [(0, 1), (1, 2)] {
            let policy = ChainPolicy { gate: gate.clone(), formats: vec![], last: Some(last) };
            let chain = follow(top_of(&folder, "top"), &policy, &Fake);
            assert_eq!(names(&chain).len(), members);
            assert!(chain.is_whole() && chain.is_cut());
            assert!(matches!(chain.problems[..], [(at, ChainProblem::LeftOut)] if at == last));
        }
    }

    #[test]
    fn follow_format_by_the_user_counts_only_where_none_is_stated() {
        let files = [("top", "image 4 middle"), ("middle", "image 4 end raw"), ("end", "1234")];
        let (_folder, chain) = chain_with(&files, &[Format::Qcow2, Format::Qcow2]);
        assert!(chain.is_whole());
        assert_eq!(chain.members[1].format, Format::Qcow2);
        assert_eq!(chain.members[2].format, Format::Raw, "what the image states wins");
    }

    #[test]
    fn follow_endless_chain_stops_at_the_limit() {
        let contents: Vec<(String, String)> = (0..CHAIN_MEMBERS_MAX + 2)
            .map(|n| (format!("f{n}"), format!("image 9 f{} qcow2", n + 1)))
            .collect();
        let files: Vec<(&str, &str)> = contents.iter().map(|(n, c)| (n.as_str(), c.as_str())).collect();
        let (_folder, chain) = chain(&files);
        assert_eq!(chain.members.len(), CHAIN_MEMBERS_MAX);
        assert!(matches!(chain.problems[..], [(_, ChainProblem::TooLong { limit: CHAIN_MEMBERS_MAX })]));
    }

    #[test]
    fn follow_fifo_as_backing_file_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("top"), "image 9 fifo raw").unwrap();
        let fifo = folder.path().join("fifo");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
        for policy in [
            GatePolicy { named: vec![], folders: vec![folder.path().to_path_buf()] },
            GatePolicy { named: vec![PathBuf::from(&fifo)], folders: vec![] },
        ] {
            let policy = ChainPolicy { gate: policy, formats: vec![], last: None };
            let chain = follow(top_of(&folder, "top"), &policy, &Fake);
            assert!(matches!(chain.problems[..], [(0, ChainProblem::Handle(_))]));
        }
    }
}
