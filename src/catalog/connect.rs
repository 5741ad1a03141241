//! Opening, committing, syncing and checkpointing the catalog. Why each pragma is there: ARCHITECTURE.md, The catalog.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OpenFlags};

use super::{CatalogError, Reader, Redo, Snapshot};

const APPLICATION_ID: i64 = 0x5353_4546;
/// Catalog format this program writes and the newest it reads.
pub const FORMAT_VERSION: i64 = 1;
/// The -wal file is checkpointed above this many bytes.
const WAL_BYTES_MAX: u64 = 32 << 20;
/// Not before so many rows have changed since the last time: a row touches a page or two.
const WAL_CHANGES_MIN: u64 = 4096;
/// The same on a disk that is nearly full, where the WAL must not take what is kept for it.
const SCARCE_WAL_BYTES_MAX: u64 = 4 << 20;
const SCARCE_WAL_CHANGES_MIN: u64 = 256;
/// Page cache of the writing connection, KiB.
const CACHE_KIB: i64 = 48 * 1024;

/// Each connection is behind a mutex of ours: SQLite's own would be taken for nothing, at every call.
const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);
/// How long a statement waits for another connection.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// The first bytes of the main file that are read ahead when rows are looked for that are not in memory.
const WARM_BYTES: i64 = 64 << 20;
/// Milliseconds before they are read ahead again.
const WARM_EVERY_MS: u64 = 100;
/// Rows that took longer were waited for at the disk.
const COLD: std::time::Duration = std::time::Duration::from_micros(50);

/// One bucket's catalog.
pub struct Catalog {
    path: PathBuf,
    writer: Mutex<Reader>,
    checkpointer: Mutex<Connection>,
    /// Held open for our own fdatasync; the -wal file carries no POSIX locks, so this descriptor is harmless.
    wal: File,
    failed: AtomicBool,
    changes: AtomicU64,
    /// Rows changed since the last checkpoint.
    written: AtomicU64,
    /// Changed under the writer's lock.
    pub(super) redo: Mutex<Redo>,
    opened: Instant,
    /// Seconds since then at which the file was last read ahead, plus one.
    warmed: AtomicU64,
    /// For reading ahead only. The last to be closed: closing it drops the locks that SQLite has on the file.
    main: File,
}

/// The writing connection, locked. Writes begin the epoch's transaction when none is open.
pub struct Tx<'a> {
    pub(super) conn: MutexGuard<'a, Reader>,
    pub(super) catalog: &'a Catalog,
}

fn wal_path(path: &Path) -> PathBuf {
    let mut s = path.as_os_str().to_owned();
    s.push("-wal");
    s.into()
}

fn configure(conn: &Connection) -> Result<(), rusqlite::Error> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(96);
    // Closing must not checkpoint by itself: after a failed sync the frames in the WAL may be gone, and copying them would
    // put what is left into the main file. Clean closings checkpoint before they close.
    conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "cache_spill", false)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(())
}

impl Catalog {
    /// Make a new, empty catalog at `path` (mode 0600) and leave it durable and closed.
    pub fn create(path: &Path, fill: impl FnOnce(&Tx) -> Result<(), CatalogError>) -> Result<(), CatalogError> {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let conn = Connection::open_with_flags(path, FLAGS)?;
        conn.pragma_update(None, "page_size", 4096)?;
        // Before the first table, or not at all: pages that become free can then be given back to the disk.
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        configure(&conn)?;
        conn.pragma_update(None, "application_id", APPLICATION_ID)?;
        conn.pragma_update(None, "user_version", FORMAT_VERSION)?;
        conn.execute_batch("BEGIN IMMEDIATE")?;
        conn.execute_batch(include_str!("schema.sql"))?;
        conn.execute_batch("COMMIT")?;
        let catalog = Catalog::from_connection(path, conn)?;
        fill(&catalog.lock())?;
        catalog.lock().commit()?;
        catalog.close()
    }

    /// Open an existing catalog for writing: recovers its WAL, checkpoints and truncates it, so that nothing
    /// acknowledged from here on can sit behind frames of an earlier run.
    pub fn open(path: &Path) -> Result<Catalog, CatalogError> {
        if !path.exists() {
            return Err(CatalogError::Missing(path.to_owned()));
        }
        let damaged = |e: rusqlite::Error| CatalogError::Damaged { path: path.to_owned(), why: e.to_string() };
        let conn = Connection::open_with_flags(path, FLAGS).map_err(damaged)?;
        let app: i64 = conn.pragma_query_value(None, "application_id", |r| r.get(0)).map_err(damaged)?;
        let version: i64 = conn.pragma_query_value(None, "user_version", |r| r.get(0)).map_err(damaged)?;
        if app != APPLICATION_ID {
            return Err(CatalogError::Damaged {
                path: path.to_owned(),
                why: "its application id is not ssefs's".into(),
            });
        }
        if version > FORMAT_VERSION {
            return Err(CatalogError::Newer { path: path.to_owned(), found: version, known: FORMAT_VERSION });
        }
        configure(&conn).map_err(damaged)?;
        let extras: i64 = conn
            .query_row("SELECT count(*) FROM sqlite_schema WHERE type IN ('trigger','view')", [], |r| r.get(0))
            .map_err(damaged)?;
        if extras != 0 {
            return Err(CatalogError::Damaged { path: path.to_owned(), why: "it holds triggers or views".into() });
        }
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(damaged)?;
        Catalog::from_connection(path, conn)
    }

    fn from_connection(path: &Path, conn: Connection) -> Result<Catalog, CatalogError> {
        // One harmless write makes sure that the -wal file exists before we take our own descriptor of it.
        conn.execute_batch("BEGIN IMMEDIATE; PRAGMA user_version = 1; COMMIT")?;
        let wal = File::open(wal_path(path))?;
        let checkpointer = Connection::open_with_flags(path, FLAGS)?;
        configure(&checkpointer)?;
        checkpointer.pragma_update(None, "cache_size", -1024)?;
        Ok(Catalog {
            path: path.to_owned(),
            writer: Mutex::new(Reader(conn)),
            checkpointer: Mutex::new(checkpointer),
            wal,
            failed: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            written: AtomicU64::new(0),
            redo: Mutex::default(),
            opened: Instant::now(),
            warmed: AtomicU64::new(0),
            main: File::open(path)?,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The writing connection. Callers hold no inode's lock taken after it: see bucket, Lock order.
    pub fn lock(&self) -> Tx<'_> {
        Tx { conn: self.writer.lock(), catalog: self }
    }

    /// True after SQLite rolled the epoch's transaction back on its own: nothing may be acknowledged any more.
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Rows changed since the last commit.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Whether rows have changed since the changes were last taken.
    pub fn has_redo(&self) -> bool {
        !self.redo.lock().is_empty()
    }

    /// Make what the last COMMIT wrote durable. Needs no lock.
    pub fn sync(&self) -> Result<(), CatalogError> {
        // SAFETY: plain fdatasync of a descriptor we own.
        if unsafe { libc::fdatasync(self.wal.as_raw_fd()) } != 0 {
            self.failed.store(true, Ordering::Release);
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
    }

    /// Have the kernel read the main file ahead if the rows asked for at `asked` came from the disk, unless that was done a
    /// moment ago. A cold walk over names and inodes would otherwise wait for the disk once a page.
    pub fn warm_if_cold(&self, asked: Instant) {
        if asked.elapsed() < COLD {
            return;
        }
        let now = self.opened.elapsed().as_millis() as u64 + WARM_EVERY_MS;
        let last = self.warmed.load(Ordering::Relaxed);
        if now < last + WARM_EVERY_MS {
            return;
        }
        if self.warmed.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            // SAFETY: advice about a descriptor we own.
            unsafe { libc::posix_fadvise(self.main.as_raw_fd(), 0, WARM_BYTES, libc::POSIX_FADV_WILLNEED) };
        }
    }

    /// What is committed now, to be read at leisure: later commits do not show in it. While it lives the -wal file cannot
    /// start over, so whoever reads for long renews it.
    pub fn snapshot(&self) -> Result<Snapshot, CatalogError> {
        Snapshot::open(&self.path)
    }

    /// Copy committed pages into the main file where no lock is needed for long. True when the WAL has grown past its
    /// bound, so that the caller asks for the rest between a COMMIT and the next BEGIN. Sooner where room is scarce.
    pub fn checkpoint(&self, ample: bool) -> Result<bool, CatalogError> {
        let (bytes, changes) = match ample {
            true => (WAL_BYTES_MAX, WAL_CHANGES_MIN),
            false => (SCARCE_WAL_BYTES_MAX, SCARCE_WAL_CHANGES_MIN),
        };
        // The file keeps its length when the WAL starts over, so what has been written since counts as well.
        if self.written.load(Ordering::Relaxed) < changes || self.wal.metadata()?.len() < bytes {
            return Ok(false);
        }
        self.written.store(0, Ordering::Relaxed);
        self.checkpointer.lock().query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(true)
    }

    /// Everything committed goes into the main file, and the WAL becomes empty.
    pub fn checkpoint_all(&self) -> Result<(), CatalogError> {
        self.writer.lock().0.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Bytes of the -wal file, and of the main file that hold nothing and can be given back.
    pub fn spare_bytes(&self) -> Result<(u64, u64), CatalogError> {
        let wal = self.wal.metadata()?.len();
        let tx = self.lock();
        let number = |what| tx.conn.0.pragma_query_value(None, what, |r| r.get::<_, i64>(0));
        // A catalog that was made without it cannot: its free pages are only used again.
        let free = if number("auto_vacuum")? == 2 { number("freelist_count")? * number("page_size")? } else { 0 };
        Ok((wal, free.max(0) as u64))
    }

    /// Whether the main file holds a part of one of these (64 bytes or more each) as it lies on the disk: freed pages and gaps as
    /// well.
    pub fn holds_any(&self, needles: &[Vec<u8>]) -> Result<bool, CatalogError> {
        use std::collections::HashMap;
        use std::os::unix::fs::FileExt;
        const PART: usize = 16;
        const STEP: usize = 1 << 20;
        let word = |b: &[u8]| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        let mut parts: HashMap<u64, Vec<&[u8]>> = HashMap::new();
        for needle in needles {
            // Not the first byte, which all wrapped keys share.
            for part in needle.get(1..).unwrap_or_default().chunks_exact(PART) {
                parts.entry(word(part)).or_default().push(part);
            }
        }
        if parts.is_empty() {
            return Ok(false);
        }
        let len = self.main.metadata()?.len();
        let mut buffer = vec![0u8; STEP + PART];
        let mut at = 0;
        while at < len {
            let n = ((len - at) as usize).min(buffer.len());
            self.main.read_exact_at(&mut buffer[..n], at)?;
            for window in buffer[..n].windows(PART) {
                if parts.get(&word(window)).is_some_and(|found| found.contains(&window)) {
                    return Ok(true);
                }
            }
            at += STEP as u64;
        }
        Ok(false)
    }

    /// Commit what is pending, checkpoint everything and close.
    pub fn close(self) -> Result<(), CatalogError> {
        let Catalog { writer, checkpointer, wal, .. } = self;
        drop(checkpointer);
        let Reader(conn) = writer.into_inner();
        if !conn.is_autocommit() {
            conn.execute_batch("COMMIT")?;
        }
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        conn.close().map_err(|(_, e)| e)?;
        drop(wal);
        Ok(())
    }
}

impl Tx<'_> {
    /// Note a failed statement: if SQLite rolled the transaction back, the bucket must stop acknowledging.
    pub(super) fn guard<T>(&self, r: Result<T, rusqlite::Error>) -> Result<T, CatalogError> {
        if r.is_err() && self.conn.0.is_autocommit() {
            self.catalog.failed.store(true, Ordering::Release);
        }
        Ok(r?)
    }

    /// Run one statement that no intent can carry inside the epoch's transaction.
    pub(super) fn write_unrecorded(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize, CatalogError> {
        self.catalog.redo.lock().unfit();
        self.write(sql, params)
    }

    /// The epoch's transaction is open.
    fn begin(&self) -> Result<(), CatalogError> {
        if self.conn.0.is_autocommit() {
            if self.catalog.is_failed() {
                return Err(CatalogError::Io(std::io::Error::from_raw_os_error(libc::EIO)));
            }
            self.conn.0.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        }
        Ok(())
    }

    /// Run several statements that stand or fall together: when `f` fails, what it has done so far is undone.
    ///
    /// # Errors
    /// That of `f`.
    pub fn together<T>(&self, f: impl FnOnce() -> Result<T, CatalogError>) -> Result<T, CatalogError> {
        self.begin()?;
        let run = |sql: &str| self.guard(self.conn.0.prepare_cached(sql).and_then(|mut s| s.execute([])));
        run("SAVEPOINT together")?;
        let recorded = self.catalog.redo.lock().mark();
        let done = f();
        // Where SQLite has rolled back everything there is no savepoint either, and `guard` has seen it.
        if done.is_err() && !self.conn.0.is_autocommit() {
            let undone = run("ROLLBACK TO together");
            self.catalog.redo.lock().back_to(recorded);
            if undone.is_err() {
                self.catalog.failed.store(true, Ordering::Release);
            }
        }
        if !self.conn.0.is_autocommit() && run("RELEASE together").is_err() {
            self.catalog.failed.store(true, Ordering::Release);
        }
        done
    }

    /// Run one writing statement inside the epoch's transaction.
    pub(super) fn write(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize, CatalogError> {
        self.begin()?;
        self.catalog.changes.fetch_add(1, Ordering::Relaxed);
        self.catalog.written.fetch_add(1, Ordering::Relaxed);
        let r = self.conn.0.prepare_cached(sql).and_then(|mut s| s.execute(params));
        self.guard(r)
    }

    /// COMMIT the epoch's transaction (a no-op without one). Durable only after [`Catalog::sync`].
    pub fn commit(&self) -> Result<(), CatalogError> {
        self.catalog.changes.store(0, Ordering::Relaxed);
        drop(self.take_redo());
        if self.conn.0.is_autocommit() {
            return if self.catalog.is_failed() {
                Err(CatalogError::Io(std::io::Error::from_raw_os_error(libc::EIO)))
            } else {
                Ok(())
            };
        }
        let r = self.conn.0.prepare_cached("COMMIT").and_then(|mut s| s.execute([]));
        if r.is_err() {
            self.catalog.failed.store(true, Ordering::Release);
        }
        r?;
        Ok(())
    }

    /// Give up to so many free pages at the file's end back, in the open transaction; pages in use move to its front.
    pub fn give_back_pages(&self, most: u32) -> Result<(), CatalogError> {
        let r = (|| {
            let mut s = self.conn.0.prepare(&format!("PRAGMA incremental_vacuum({most})"))?;
            let mut rows = s.query([])?;
            // A page a step.
            while rows.next()?.is_some() {}
            Ok(())
        })();
        self.guard(r)
    }

    /// Between COMMIT and the next BEGIN: everything goes into the main file and the -wal file becomes empty, unless somebody
    /// reads from it.
    pub fn truncate_wal(&self) -> Result<(), CatalogError> {
        self.conn.0.busy_timeout(std::time::Duration::ZERO)?;
        let r = self.conn.0.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.conn.0.busy_timeout(BUSY_TIMEOUT)?;
        match r {
            Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(()),
            r => Ok(r?),
        }
    }

    /// Between COMMIT and the next BEGIN: everything goes into the main file, the -wal file is overwritten with zeroes and becomes
    /// empty. False while somebody reads from it. With `rebuild` the main file is written anew first: what SQLite leaves in the
    /// gaps of its pages goes.
    pub fn scrub(&self, rebuild: bool) -> Result<bool, CatalogError> {
        if rebuild {
            self.conn.0.execute_batch("VACUUM")?;
        }
        let checkpoint = |how: &str| {
            self.conn
                .0
                .query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |r| r.get::<_, i64>(0))
                .map(|busy| busy == 0)
        };
        let clean = |r: Result<bool, rusqlite::Error>| match r {
            Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(false),
            r => r,
        };
        self.conn.0.busy_timeout(std::time::Duration::from_millis(200))?;
        // After RESTART nobody reads from the -wal file, and whoever begins to read needs the main file alone.
        let done = clean(checkpoint("RESTART")).and_then(|free| {
            if !free {
                return Ok(Ok(false));
            }
            if let Err(e) = self.zero_wal() {
                return Ok(Err(e));
            }
            clean(checkpoint("TRUNCATE")).map(Ok)
        });
        self.conn.0.busy_timeout(BUSY_TIMEOUT)?;
        Ok(done??)
    }

    fn zero_wal(&self) -> Result<(), std::io::Error> {
        use std::os::unix::fs::FileExt;
        // The -wal file carries no POSIX locks: closing this descriptor drops none.
        let wal = File::options().write(true).open(wal_path(&self.catalog.path))?;
        let (len, zeroes) = (wal.metadata()?.len(), vec![0u8; 1 << 20]);
        let mut at = 0;
        while at < len {
            let n = (len - at).min(zeroes.len() as u64);
            wal.write_all_at(&zeroes[..n as usize], at)?;
            at += n;
        }
        wal.sync_data()
    }

    /// Between COMMIT and the next BEGIN: finish a checkpoint, so that the WAL starts over.
    pub fn checkpoint_rest(&self) -> Result<(), CatalogError> {
        self.conn.0.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(())
    }
}
