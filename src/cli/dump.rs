//! `instar dump`: a copy of an image with all of its metadata and none of its guest data.
//!
//! Which bytes are metadata is the cage's word. The copy is made under another name, and checked beside the image
//! before it gets its own.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use instar_abi::boot::JobKind;
use instar_abi::finding::Table;
use instar_abi::region::{COPIED, LEFT_OUT, Region};

use super::inspect::Inspector;
use super::options::DumpArgs;
use super::output_file::OutputFile;
use super::{confine, say};
use crate::error::Error;
use crate::exit::Exit;
use crate::image::{Backend, HandleError, ImageFile, ImageHandle, Mode};
use crate::report::{CheckReport, Verdict, Watch, escape_path, units};
use crate::sandbox::job::{DumpNames, Job};
use crate::sandbox::{self, observer::Observer};

/// Bytes copied at once.
const PIECE_BYTES: usize = 1 << 20;
/// A part of the copy that is all zeros and this long stays a hole.
const HOLE_BYTES: usize = 4096;

/// Runs it.
///
/// # Errors
/// Whatever kept the copy from being made. There is none then.
pub fn run(args: &DumpArgs) -> Result<Exit, Error> {
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    let inspector = Inspector::new(&image, &args.cage, Watch::people(false))?;
    confine::to_copy(args.cage.sandbox, &args.out)?;
    let report = inspector.check()?;
    if report.verdict() == Verdict::NotQcow2 {
        say::to_person(&format!("{}: not a QCOW2 image, nothing is copied", escape_path(&args.image)));
        return Ok(Exit::NotChecked);
    }
    let out = OutputFile::new(&args.out).map_err(Error::OutputFile)?;
    let names = if args.mask_names { DumpNames::Masked } else { DumpNames::Kept };
    let job = Job { dump: Some(names), ..inspector.job(JobKind::Survey) };
    let set = out.file().set_len(job.image.len());
    set.map_err(|source| Error::OutputFile(out.failed("make", source)))?;
    let mut copy = Copy { image: job.image.as_ref(), out: out.file(), failed: None, copied: 0, left_out: 0 };
    sandbox::run(&job, inspector.choice(), &mut copy)
        .map_err(|source| Error::Sandbox { image: args.image.clone(), source })?;
    let (copied, left_out) = (copy.copied, copy.left_out);
    if let Some(source) = copy.failed {
        return Err(Error::OutputFile(out.failed("fill", source)));
    }
    let made = ImageFile::open_read_only(out.part()).map_err(HandleError::Open)?;
    let copy_report = inspector.clone().of(Arc::new(made)).check()?;
    out.finish().map_err(Error::OutputFile)?;
    let is_same = says_the_same(&report, &copy_report);
    say::result(|to| {
        let (out, size) = (escape_path(&args.out), units::bytes(job.image.len()));
        writeln!(to, "{out}: {} of metadata out of {size}, no guest data", units::bytes(copied))?;
        writeln!(to, "  names: {}", if args.mask_names { "masked" } else { "as they are" })?;
        if left_out > 0 {
            writeln!(to, "  left out: {} that cannot be told from guest data", units::bytes(left_out))?;
        }
        if is_same {
            writeln!(to, "  a check finds the same in it as in the image")
        } else {
            writeln!(
                to,
                "  a check does not find the same in it as in the image, because of what is left out"
            )
        }
    })?;
    Ok(Exit::Consistent)
}

/// Whether two checks have found the same, by count and place.
fn says_the_same(image: &CheckReport, copy: &CheckReport) -> bool {
    image.verdict() == copy.verdict()
        && image.findings == copy.findings
        && image.tally.rows().eq(copy.tally.rows())
}

/// Copies what the cage names.
struct Copy<'a> {
    image: &'a dyn Backend,
    out: &'a std::fs::File,
    /// The first error; nothing is copied behind it.
    failed: Option<io::Error>,
    copied: u64,
    left_out: u64,
}

impl Copy<'_> {
    fn attempt(&mut self, work: impl FnOnce(&Self) -> io::Result<()>) {
        if self.failed.is_none() {
            self.failed = work(self).err();
        }
    }

    fn copy(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut piece = vec![0; PIECE_BYTES.min(instar_abi::to_usize(len))];
        let mut done = 0;
        while done < len {
            let wanted = instar_abi::to_usize(len - done).min(PIECE_BYTES);
            let Some(part) = piece.get_mut(..wanted) else { break };
            self.image.read_at(part, offset + done)?;
            self.write(part, offset + done)?;
            done += wanted as u64;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        for (at, part) in (0..).step_by(HOLE_BYTES).zip(bytes.chunks(HOLE_BYTES)) {
            if part.iter().any(|byte| *byte != 0) {
                self.out.write_all_at(part, offset + at)?;
            }
        }
        Ok(())
    }
}

impl Observer for Copy<'_> {
    fn region(&mut self, _: Table, region: &Region) {
        let Region { offset, len, flags, .. } = *region;
        if flags & COPIED != 0 {
            self.copied = self.copied.saturating_add(len);
            self.attempt(|copy| copy.copy(offset, len));
        } else if flags & LEFT_OUT != 0 {
            self.left_out = self.left_out.saturating_add(len);
        }
    }

    fn replace(&mut self, offset: u64, bytes: Vec<u8>) {
        self.attempt(|copy| copy.out.write_all_at(&bytes, offset));
    }
}
