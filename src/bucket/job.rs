//! Sealing many objects anew on a live bucket, in an order that a stop at any moment does not disturb: what is done is told by
//! the objects themselves (when their PUT was made), and the row of the job only says what is to be done. So a job that was
//! stopped, killed or cut off goes on where it stopped (SEMANTICS 73).

use std::path::Path;
use std::time::{Duration, Instant};

use super::kek::now_s;
use super::{Bucket, BucketError, ROOT};
use crate::catalog::JobRow;
use crate::rule::{Effective, Method, Origin, Place, Rule};

const AT_ONCE: usize = 256;
/// Objects named in a report that could not be done at most.
const NAMED_MAX: usize = 1000;
/// How often a job writes down how far it is.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// Walks over a directory that is being renamed in.
const WALKS_MAX: u32 = 3;

/// Who waits for a long piece of work.
pub struct Ask<'a> {
    /// A stage begins, with so many units.
    pub stage: &'a (dyn Fn(&str, Option<u64>) + Sync),
    /// So many more are done; false: stop.
    pub advance: &'a (dyn Fn(u64) -> bool + Sync),
}

/// Nobody sees it.
pub static QUIET: Ask<'static> = Ask { stage: &|_, _| {}, advance: &|_| true };

/// An object that was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LeftObject {
    pub path: String,
    pub why: String,
}

/// What a job did, in this run.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct JobReport {
    pub finished: bool,
    pub objects: u64,
    pub bytes: u64,
    /// They were as they are to be.
    pub already: u64,
    pub left_objects: u64,
    /// Some of those left, with the reason.
    pub left: Vec<LeftObject>,
}

/// What became of one object.
enum Outcome {
    Done(u64),
    Already,
    Gone,
}

/// A conversion as it is asked for.
struct Convert {
    /// None: to the rule in force.
    rule: Option<Rule>,
    new_keys: bool,
    /// PUTs made later are done.
    start: Option<u64>,
}

/// How a job goes.
pub(super) struct Run<'a> {
    pub ask: &'a Ask<'a>,
    pub report: JobReport,
    noted: Instant,
}

impl<'a> Run<'a> {
    pub fn new(ask: &'a Ask<'a>) -> Run<'a> {
        Run { ask, report: JobReport::default(), noted: Instant::now() }
    }

    pub fn left(&mut self, path: String, why: String) {
        self.report.left_objects += 1;
        if self.report.left.len() < NAMED_MAX {
            self.report.left.push(LeftObject { path, why });
        }
    }
}

/// Whether an error is about one object, so that the others go on.
pub(super) fn is_of_one_object(e: &BucketError) -> bool {
    matches!(
        e,
        BucketError::Damaged { .. }
            | BucketError::Key(_)
            | BucketError::Customer(_)
            | BucketError::Erased(_)
            | BucketError::Crypto(_)
            | BucketError::Unsupported(_)
            | BucketError::Denied(_)
            | BucketError::Rule(_)
            | BucketError::Log(crate::log::LogError::Missing(_))
    )
}

impl Bucket {
    /// Convert an object, or all below a directory (the root: the whole bucket), to `rule` or to what is in force; with
    /// `new_keys` those that are under it already get new data keys. Stopped by `ask`, it ends with a report that is not
    /// finished, and [`Bucket::resume_convert`] goes on.
    pub fn convert(
        &self,
        uid: u32,
        path: &Path,
        rule: Option<Rule>,
        new_keys: bool,
        ask: &Ask,
    ) -> Result<JobReport, BucketError> {
        self.health()?;
        self.may_rule(uid)?;
        if rule == Some(Rule::None) {
            let why = "a conversion makes nothing plain: copy the file to where no rule stands";
            return Err(BucketError::Denied(why.into()));
        }
        let rule = rule.map(|r| self.check_rule(uid, r, Place::Directory)).transpose()?;
        let ino = self.walk(path)?;
        let Some(_turn) = self.job.try_lock() else { return Err(busy()) };
        let (is_file, is_dir) = {
            let inode = self.inode(ino)?;
            let st = inode.state.lock();
            (st.is_file(), st.is_dir())
        };
        if is_file {
            let mut run = Run::new(ask);
            (ask.stage)("converting", Some(self.attr(ino)?.size));
            let what = Convert { rule, new_keys, start: None };
            self.convert_next(ino, &what, None, &mut run)?;
            self.commit()?;
            run.report.finished = true;
            return Ok(run.report);
        }
        if !is_dir {
            return Err(BucketError::Invalid("only files have content to convert"));
        }
        if self.job_of("convert").is_some() {
            return Err(BucketError::Denied(format!(
                "a conversion of bucket {0} is not done: go on with it (ssefs object convert {0}: --resume) or give it up (--abandon)",
                self.name
            )));
        }
        let job = self.begin_job("convert", ino, rule.map(|r| r.to_string()).unwrap_or_default(), new_keys)?;
        self.run_convert(job, ask)
    }

    /// The conversion that is not done, if there is one.
    pub fn convert_status(&self) -> Option<(JobRow, String)> {
        let job = self.job_of("convert")?;
        let path = self.path_of(job.dir).unwrap_or_default();
        Some((job, path.display().to_string()))
    }

    /// Go on with the conversion that was stopped.
    pub fn resume_convert(&self, ask: &Ask) -> Result<JobReport, BucketError> {
        self.health()?;
        let Some(_turn) = self.job.try_lock() else { return Err(busy()) };
        match self.job_of("convert") {
            Some(job) => self.run_convert(job, ask),
            None => Err(BucketError::NotFound("no conversion was stopped".into())),
        }
    }

    /// Give the conversion up; what is done stays.
    pub fn abandon_convert(&self) -> Result<(), BucketError> {
        self.health()?;
        let Some(_turn) = self.job.try_lock() else { return Err(busy()) };
        if let Some(job) = self.job_of("convert") {
            self.end_job(job.id)?;
        }
        Ok(())
    }

    pub(super) fn job_of(&self, kind: &str) -> Option<JobRow> {
        self.settings().jobs.values().find(|j| j.kind == kind).cloned()
    }

    /// Write a job down, durably; what is sealed from here on is sealed after its start.
    pub(super) fn begin_job(&self, kind: &str, dir: u64, rule: String, new_keys: bool) -> Result<JobRow, BucketError> {
        let job = {
            let _permit = self.gate.names();
            let id = self.settings().jobs.keys().max().map_or(1, |id| id + 1);
            // No commit ends while the permit is held: this is the number of the one that will hold the row.
            let start = self.counters.lock().commit + 1;
            let job = JobRow {
                id,
                kind: kind.into(),
                dir,
                rule,
                new_keys,
                start,
                created: now_s(),
                done_objects: 0,
                done_bytes: 0,
            };
            self.write_job(&job)?;
            job
        };
        self.commit()?;
        Ok(job)
    }

    /// The caller holds the names' permit.
    pub(super) fn write_job(&self, job: &JobRow) -> Result<(), BucketError> {
        self.catalog().lock().put_job(job)?;
        self.change_jobs(|jobs| drop(jobs.insert(job.id, job.clone())));
        Ok(())
    }

    pub(super) fn end_job(&self, id: u64) -> Result<(), BucketError> {
        {
            let _permit = self.gate.names();
            self.catalog().lock().delete_job(id)?;
            self.change_jobs(|jobs| drop(jobs.remove(&id)));
        }
        self.commit()
    }

    fn change_jobs(&self, f: impl FnOnce(&mut std::collections::BTreeMap<u64, JobRow>)) {
        let mut s = (*self.settings()).clone();
        f(&mut s.jobs);
        *self.settings.write() = std::sync::Arc::new(s);
        self.lists_changed();
    }

    /// Write down how far a job is, now and then: for people, nothing hangs on it.
    pub(super) fn note_job(&self, job: &mut JobRow, run: &mut Run, at_once: bool) -> Result<(), BucketError> {
        if !at_once && run.noted.elapsed() < NOTE_EVERY {
            return Ok(());
        }
        run.noted = Instant::now();
        let _permit = self.gate.names();
        let now = JobRow {
            done_objects: job.done_objects + run.report.objects,
            done_bytes: job.done_bytes + run.report.bytes,
            ..job.clone()
        };
        self.write_job(&now)
    }

    fn run_convert(&self, mut job: JobRow, ask: &Ask) -> Result<JobReport, BucketError> {
        let rule = match job.rule.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| BucketError::Invalid("the rule of the job"))?),
        };
        let what = Convert { rule, new_keys: job.new_keys, start: Some(job.start) };
        let mut run = Run::new(ask);
        let done = if job.dir == ROOT {
            self.convert_all(&mut job, &what, &mut run)
        } else {
            self.convert_below(&mut job, &what, &mut run)
        };
        match done {
            Ok(()) => {
                self.commit()?;
                self.end_job(job.id)?;
                run.report.finished = true;
                Ok(run.report)
            }
            Err(BucketError::Stopped) => {
                self.note_job(&mut job, &mut run, true)?;
                self.commit()?;
                Ok(run.report)
            }
            Err(e) => Err(e),
        }
    }

    /// Every object of the bucket, in the order of their numbers.
    fn convert_all(&self, job: &mut JobRow, what: &Convert, run: &mut Run) -> Result<(), BucketError> {
        let (objects, bytes) = self.catalog().snapshot()?.old_seals(job.start)?;
        (run.ask.stage)(&format!("converting {objects} objects"), Some(bytes));
        let mut after = 0;
        loop {
            let page = self.catalog().lock().old_seals_after(job.start, after, AT_ONCE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = *last;
            for ino in page {
                self.convert_next(ino, what, None, run)?;
                self.note_job(job, run, false)?;
            }
        }
    }

    /// Every object below a directory, as far as names tell; again while something was found that had been moved meanwhile.
    fn convert_below(&self, job: &mut JobRow, what: &Convert, run: &mut Run) -> Result<(), BucketError> {
        let (mut objects, mut bytes) = (0, 0);
        self.each_below(job.dir, &mut |_, ino| {
            objects += 1;
            bytes += self.attr(ino).map_or(0, |a| a.size);
            Ok(())
        })?;
        (run.ask.stage)(&format!("converting {objects} objects"), Some(bytes));
        for _ in 0..WALKS_MAX {
            let before = run.report.objects;
            (run.report.already, run.report.left_objects) = (0, 0);
            run.report.left.clear();
            let dir = job.dir;
            let mut walk = |name: &Path, ino| {
                self.convert_next(ino, what, Some(name), run)?;
                self.note_job(job, run, false)
            };
            self.each_below(dir, &mut walk)?;
            if run.report.objects == before {
                break;
            }
        }
        Ok(())
    }

    /// Call `f` with the path and number of each file below a directory. One page of each directory on the way is in memory.
    pub(super) fn each_below(
        &self,
        dir: u64,
        f: &mut dyn FnMut(&Path, u64) -> Result<(), BucketError>,
    ) -> Result<(), BucketError> {
        use std::os::unix::ffi::OsStrExt;
        let mut stack = vec![(dir, self.path_of(dir)?, Vec::new())];
        while let Some((at, path, after)) = stack.pop() {
            let page = self.catalog().lock().entries(at, &after, AT_ONCE)?;
            let mut below = Vec::new();
            if let Some(last) = page.last() {
                below.push((at, path.clone(), last.name.clone()));
            }
            for e in page {
                let name = path.join(std::ffi::OsStr::from_bytes(&e.name));
                match u32::from(e.kind) << 12 {
                    libc::S_IFREG => f(&name, e.ino)?,
                    // As deep as paths can be; a cycle made from outside ends here too.
                    libc::S_IFDIR if name.components().count() < 4096 => below.push((e.ino, name, Vec::new())),
                    _ => {}
                }
            }
            stack.append(&mut below);
        }
        Ok(())
    }

    /// One object of a conversion, and what is to be told of it.
    fn convert_next(&self, ino: u64, what: &Convert, name: Option<&Path>, run: &mut Run) -> Result<(), BucketError> {
        self.health()?;
        let mut told = 0;
        let size = self.attr(ino).map_or(0, |a| a.size);
        let done = self.convert_one(ino, what, &mut |n| {
            told += n;
            (run.ask.advance)(n)
        });
        match done {
            Ok(Outcome::Done(bytes)) => {
                run.report.objects += 1;
                run.report.bytes += bytes;
                self.tell_sealed_anew(ino, false);
            }
            Ok(Outcome::Already) => run.report.already += 1,
            Ok(Outcome::Gone) => {}
            Err(BucketError::NotFound(_)) => {}
            Err(e) if is_of_one_object(&e) => {
                let path = match name {
                    Some(name) => name.display().to_string(),
                    None => self.path_of(ino)?.display().to_string(),
                };
                log::warn!("object {ino} is not converted: {e}");
                run.left(path, e.to_string());
            }
            Err(e) => return Err(e),
        }
        // Holes and what was passed over count as done.
        if (run.ask.advance)(size.saturating_sub(told)) { Ok(()) } else { Err(BucketError::Stopped) }
    }

    fn convert_one(
        &self,
        ino: u64,
        what: &Convert,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Outcome, BucketError> {
        let inode = self.inode(ino)?;
        self.warm(&inode)?;
        let _io = inode.io.write();
        let (seal, size) = {
            let mut st = inode.state.lock();
            if !st.is_file() || st.dead || st.row.nlink == 0 {
                return Ok(Outcome::Gone);
            }
            if st.row.size == 0 {
                return Ok(Outcome::Already);
            }
            let size = st.row.size;
            match self.content(&mut st)?.seal.clone() {
                Some(seal) => (seal, size),
                None => return Ok(Outcome::Already),
            }
        };
        if what.start.is_some_and(|start| seal.made > start) {
            return Ok(Outcome::Already);
        }
        let to = match &what.rule {
            Some(rule) => Effective { asked: rule.clone().into(), origin: Origin::Request },
            None if seal.resolved.method == Method::SseC => {
                return Err(BucketError::Unsupported("it is under a customer's key: its owner changes that"));
            }
            None => self.effective_of(&inode)?,
        };
        let Some(rule) = to.asked.rule() else {
            return Err(BucketError::Unsupported("it asks for a customer's key: its owner writes it anew"));
        };
        // With no rule in force an encrypted object stays so, and gets a new key under the method it has.
        if *rule == Rule::None {
            if !what.new_keys || seal.is_plain() {
                return Ok(Outcome::Already);
            }
            self.convert_as(&inode, seal.resolved.clone(), &Origin::None, go_on)?;
            return Ok(Outcome::Done(size));
        }
        let resolved = self.resolve_rule(rule)?;
        if resolved == seal.resolved && !what.new_keys {
            return Ok(Outcome::Already);
        }
        self.convert_as(&inode, resolved, &to.origin, go_on)?;
        log::debug!("object {ino}: converted to {rule}");
        Ok(Outcome::Done(size))
    }
}

pub(super) fn busy() -> BucketError {
    BucketError::Invalid("other work over many objects of this bucket is under way: wait for it")
}
