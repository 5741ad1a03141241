//! Open directories. A listing goes through a directory in name order, page by page. Its cookies are running numbers that
//! keep their meaning while names come and go: a page that has to be read again is laid over what it showed the first time.

use std::hash::{DefaultHasher, Hash, Hasher};

use parking_lot::Mutex;

use super::{FsError, Since};
use crate::bucket::{BucketError, Dirent};

/// Entries of a page.
pub const PAGE: usize = 512;
/// Cookies of `.` and `..`; the first name of the directory has the next one.
const DOTS: u64 = 2;
/// File type of a directory as in [`Dirent::kind`].
const KIND_DIR: u8 = (libc::S_IFDIR >> 12) as u8;

/// Gives up to `most` entries behind a name, in name order.
pub type Source<'a> = &'a dyn Fn(&[u8], usize) -> Result<Vec<Dirent>, BucketError>;

#[derive(Debug, Default)]
struct Listing {
    /// Page n begins behind the name `starts[n]`.
    starts: Vec<Vec<u8>>,
    /// A hash of each name as first seen, in order: 4 bytes a name, so that the largest directory stays affordable.
    marks: Vec<u32>,
    /// The last page read, with holes where names of the first reading are gone.
    page: Option<(usize, Vec<Option<Dirent>>)>,
    complete: bool,
}

/// An open directory.
#[derive(Debug)]
pub struct OpenDir {
    pub ino: u64,
    pub since: Since,
    listing: Mutex<Listing>,
}

fn mark(name: &[u8]) -> u32 {
    let mut h = DefaultHasher::new();
    name.hash(&mut h);
    h.finish() as u32
}

impl Listing {
    /// Bring page `n`; false when the listing ends before it.
    fn load(&mut self, n: usize, source: Source) -> Result<bool, BucketError> {
        if self.page.as_ref().is_some_and(|(at, _)| *at == n) {
            return Ok(true);
        }
        let first = n * PAGE;
        if first > self.marks.len() || (self.complete && first >= self.marks.len()) {
            return Ok(false);
        }
        if self.starts.is_empty() {
            self.starts.push(Vec::new());
        }
        let Some(after) = self.starts.get(n) else { return Ok(false) };
        if first == self.marks.len() {
            let page = source(after, PAGE)?;
            self.marks.extend(page.iter().map(|d| mark(&d.name)));
            match page.last() {
                Some(last) if page.len() >= PAGE => self.starts.push(last.name.clone()),
                _ => self.complete = true,
            }
            self.page = Some((n, page.into_iter().map(Some).collect()));
            return Ok(true);
        }
        // Again. Names that are new since the first reading are left out, as POSIX allows; between two of the old ones there
        // can be any number of them, so read on until the page's end has been passed.
        let seen = &self.marks[first..self.marks.len().min(first + PAGE)];
        let end = self.starts.get(n + 1);
        let mut slots: Vec<Option<Dirent>> = vec![None; seen.len()];
        let (mut next, mut after) = (0, after.clone());
        'reading: loop {
            let entries = source(&after, PAGE)?;
            let Some(last) = entries.last() else { break };
            after.clone_from(&last.name);
            let short = entries.len() < PAGE;
            for d in entries {
                if next >= seen.len() || end.is_some_and(|e| d.name > *e) {
                    break 'reading;
                }
                let m = mark(&d.name);
                if let Some(i) = seen[next..].iter().position(|s| *s == m) {
                    slots[next + i] = Some(d);
                    next += i + 1;
                }
            }
            if short {
                break;
            }
        }
        self.page = Some((n, slots));
        Ok(true)
    }
}

impl OpenDir {
    pub fn new(ino: u64, since: Since) -> OpenDir {
        OpenDir { ino, since, listing: Mutex::default() }
    }

    /// Hand the entries behind `cookie` (0: from the start, which also takes a fresh look at the directory) to `take`, each
    /// with its own cookie, until `take` answers false: that entry was not taken. `parent` is what `..` is by now.
    ///
    /// # Errors
    /// Those of the source and of `take`, only while nothing was taken; later ones come with the next call.
    pub fn read(
        &self,
        cookie: u64,
        parent: u64,
        source: Source,
        take: &mut dyn FnMut(u64, &Dirent) -> Result<bool, FsError>,
    ) -> Result<(), FsError> {
        let mut listing = self.listing.lock();
        if cookie == 0 {
            *listing = Listing::default();
        }
        let mut at = cookie;
        let mut taken = false;
        while at < DOTS {
            let (name, ino): (&[u8], u64) = if at == 0 { (b".", self.ino) } else { (b"..", parent) };
            if !take(at + 1, &Dirent { name: name.to_vec(), ino, kind: KIND_DIR })? {
                return Ok(());
            }
            taken = true;
            at += 1;
        }
        loop {
            let index = usize::try_from(at - DOTS).map_err(|_| FsError::Invalid("directory offset"))?;
            let n = index / PAGE;
            match listing.load(n, source) {
                Ok(true) => {}
                Err(e) if !taken => return Err(e.into()),
                Ok(false) | Err(_) => return Ok(()),
            }
            let Some((_, slots)) = &listing.page else { return Ok(()) };
            for slot in slots.iter().skip(index % PAGE) {
                at += 1;
                let Some(d) = slot else { continue };
                match take(at, d) {
                    Ok(true) => taken = true,
                    Ok(false) => return Ok(()),
                    Err(e) if !taken => return Err(e),
                    Err(_) => return Ok(()),
                }
            }
            if slots.len() < PAGE {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Failures;
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    struct Fake(RefCell<BTreeSet<Vec<u8>>>);

    impl Fake {
        fn of(n: usize) -> Fake {
            Fake(RefCell::new((0..n).map(|i| format!("n{i:06}").into_bytes()).collect()))
        }
        fn page(&self, after: &[u8], most: usize) -> Result<Vec<Dirent>, BucketError> {
            let names = self.0.borrow();
            let behind = names.iter().filter(|n| n.as_slice() > after).take(most);
            Ok(behind.map(|n| Dirent { name: n.clone(), ino: 9, kind: 8 }).collect())
        }
        fn remove(&self, i: usize) {
            assert!(self.0.borrow_mut().remove(format!("n{i:06}").as_bytes()));
        }
    }

    /// One call that takes up to `most` entries.
    fn call(dir: &OpenDir, fake: &Fake, cookie: u64, most: usize) -> Vec<(u64, String)> {
        let mut out = Vec::new();
        dir.read(cookie, 1, &|a, m| fake.page(a, m), &mut |c, d| {
            if out.len() == most {
                return Ok(false);
            }
            out.push((c, String::from_utf8(d.name.clone()).unwrap()));
            Ok(true)
        })
        .unwrap();
        out
    }

    fn all(dir: &OpenDir, fake: &Fake, mut cookie: u64, most: usize) -> Vec<(u64, String)> {
        let mut out = Vec::new();
        loop {
            let got = call(dir, fake, cookie, most);
            let Some((last, _)) = got.last() else { return out };
            cookie = *last;
            out.extend(got);
        }
    }

    #[test]
    fn every_name_is_listed_once_whatever_the_size_of_the_directory_and_of_the_calls() {
        for n in [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE] {
            for most in [1, 7, PAGE, 10_000] {
                let (dir, fake) = (OpenDir::new(5, Failures::default().now()), Fake::of(n));
                let got = all(&dir, &fake, 0, most);
                assert_eq!(got.len(), n + 2, "{n} {most}");
                assert_eq!((got[0].1.as_str(), got[1].1.as_str()), (".", ".."));
                assert!(got[2..].windows(2).all(|w| w[0].1 < w[1].1));
            }
        }
    }

    #[test]
    fn removing_what_was_listed_while_listing_leaves_nothing_out() {
        let (dir, fake) = (OpenDir::new(5, Failures::default().now()), Fake::of(3 * PAGE + 5));
        let (mut cookie, mut seen) = (0, 0);
        loop {
            let got = call(&dir, &fake, cookie, 100);
            let Some((last, _)) = got.last() else { break };
            cookie = *last;
            for (_, name) in got.iter().filter(|(_, n)| !n.starts_with('.')) {
                assert!(fake.0.borrow_mut().remove(name.as_bytes()));
                seen += 1;
            }
        }
        assert_eq!((seen, fake.0.borrow().len()), (3 * PAGE + 5, 0));
    }

    #[test]
    fn every_cookie_leads_back_to_its_place_after_names_came_and_went() {
        let (dir, fake) = (OpenDir::new(5, Failures::default().now()), Fake::of(2 * PAGE + 50));
        let first = all(&dir, &fake, 0, 64);
        for i in [0, 1, 5, 30, PAGE - 1, PAGE, PAGE + 3] {
            fake.remove(i);
        }
        // More new names within the first page than a page holds.
        fake.0.borrow_mut().extend((0..PAGE + 9).map(|i| format!("n000003-{i:05}").into_bytes()));
        for at in [0, 2, 3, 40, PAGE, PAGE + 1, PAGE + 2, PAGE + 40, first.len() - 1] {
            let after = all(&dir, &fake, first[at].0, 1000);
            let kept: Vec<_> = first[at + 1..]
                .iter()
                .filter(|(_, n)| n.starts_with('.') || fake.0.borrow().contains(n.as_bytes()))
                .cloned()
                .collect();
            assert_eq!(after, kept, "from {at}");
        }
        assert_eq!(all(&dir, &fake, 0, 1000).len(), fake.0.borrow().len() + 2);
    }

    #[test]
    fn a_cookie_that_was_never_given_ends_the_listing() {
        let (dir, fake) = (OpenDir::new(5, Failures::default().now()), Fake::of(10));
        call(&dir, &fake, 0, 4);
        assert!(call(&dir, &fake, u64::MAX - 5, 10).is_empty());
        assert!(call(&dir, &fake, 1 << 40, 10).is_empty());
    }
}
