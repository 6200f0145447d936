//! Takes the picture of an image that was checked.

use instar_abi::boot::JobKind;

use super::inspect::Inspector;
use crate::error::Error;
use crate::report::{CheckReport, Picture, Verdict};
use crate::sandbox;

/// The picture of the image that `inspector` looks at, with what `report` says of it; `None` for one that is no
/// QCOW2 image or uses what cannot be followed. Where the report has not kept all findings, the image is checked once
/// more for their places.
///
/// # Errors
/// [`Error::Sandbox`].
pub fn take(inspector: &Inspector, report: &CheckReport) -> Result<Option<Picture>, Error> {
    if matches!(report.verdict(), Verdict::NotQcow2 | Verdict::Unsupported) {
        return Ok(None);
    }
    let survey = inspector.job(JobKind::Survey);
    let mut picture = Picture::new(survey.image.len(), report.summary.virtual_size);
    let failed = |source| Error::Sandbox { image: report.image.clone(), source };
    // The survey's own finding, where it has one, is among those of the check.
    let mut quiet = Surveyed(&mut picture);
    sandbox::run(&survey, inspector.choice(), &mut quiet).map_err(failed)?;
    if report.findings_dropped == 0 {
        report.findings.iter().for_each(|kept| picture.put(kept.problem, &kept.finding));
    } else {
        sandbox::run(&inspector.job(JobKind::Check), inspector.choice(), &mut picture).map_err(failed)?;
    }
    Ok(Some(picture))
}

/// Takes what a survey tells, and no findings.
struct Surveyed<'a>(&'a mut Picture);

impl sandbox::observer::Observer for Surveyed<'_> {
    fn region(&mut self, table: instar_abi::finding::Table, region: &instar_abi::region::Region) {
        self.0.region(table, region);
    }

    fn extent(&mut self, kind: instar_abi::extent::ExtentKind, extent: &instar_abi::extent::Extent) {
        self.0.extent(kind, extent);
    }
}
