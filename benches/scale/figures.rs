//! The figures of a run: as a table, as CSV, and held against the bounds that ssefs sets itself.

pub const CREATE_RATIO_MAX: f64 = 1.3;
pub const MOUNT_S_MAX: f64 = 1.0;
pub const MOUNT_KILLED_S_MAX: f64 = 3.0;
pub const RSS_MAX: u64 = 256 << 20;
/// Store: at most this factor of the content, and this many bytes a file.
pub const CONTENT_FACTOR_MAX: f64 = 1.02;
pub const BYTES_A_FILE_MAX: f64 = 1024.0;

/// At one mark. Times as their names say, memory and space in bytes.
pub struct Row {
    pub mark: u64,
    /// With those of the probes.
    pub files: u64,
    /// Of the stretch that ends at the mark, several writers.
    pub creates_per_s: f64,
    /// One writer.
    pub create_us: f64,
    pub mount_clean_s: f64,
    pub mount_killed_s: f64,
    /// Nothing of the store in the page cache.
    pub mount_cold_s: f64,
    pub sync_ms: f64,
    pub sync_worst_ms: f64,
    /// For 10,000 files.
    pub find_ms: f64,
    /// Most memory of the daemon that was written through, and of the one that find(1) asked.
    pub fill_rss: u64,
    pub find_rss: u64,
    pub store_bytes: u64,
    pub catalog_bytes: u64,
}

pub struct Big {
    pub bytes: u64,
    pub rss_idle: u64,
    pub copy_in_s: f64,
    pub copy_in_rss: u64,
    pub compare_s: f64,
    pub compare_rss: u64,
    pub sparse_write_rss: u64,
    pub sparse_rss_before: u64,
    pub sparse_rss_after: u64,
    pub sparse_first_ms: f64,
    pub sparse_next_ms: f64,
}

pub struct Figures {
    pub rows: Vec<Row>,
    pub big: Big,
    pub file_bytes: u64,
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub fn head() -> String {
    let top = "             create         mount, s           fsync, ms   find   RSS, MiB   store";
    let low = "   files    /s    us   clean  kill-9 cold    med  worst    ms  fill  find  B/file";
    format!("{top}\n{low}\n{}", "-".repeat(low.len()))
}

impl Row {
    pub fn bytes_a_file(&self) -> f64 {
        self.store_bytes as f64 / self.files as f64
    }

    pub fn line(&self) -> String {
        format!(
            "{:8} {:5.0} {:5.0}   {:5.2}  {:5.2} {:5.2}  {:5.2} {:6.1} {:5.0} {:5.0} {:5.0} {:7.0}",
            self.mark,
            self.creates_per_s,
            self.create_us,
            self.mount_clean_s,
            self.mount_killed_s,
            self.mount_cold_s,
            self.sync_ms,
            self.sync_worst_ms,
            self.find_ms,
            mib(self.fill_rss),
            mib(self.find_rss),
            self.bytes_a_file(),
        )
    }
}

impl Figures {
    /// What a file may take of the store.
    pub fn bytes_a_file_max(&self) -> f64 {
        self.file_bytes as f64 * CONTENT_FACTOR_MAX + BYTES_A_FILE_MAX
    }

    pub fn rss_most(&self) -> u64 {
        let b = &self.big;
        let rows = self.rows.iter().flat_map(|r| [r.fill_rss, r.find_rss]);
        rows.chain([b.copy_in_rss, b.compare_rss, b.sparse_write_rss, b.sparse_rss_after]).max().unwrap_or(0)
    }

    /// Large files, and which bounds hold.
    pub fn summary(&self) -> String {
        let (b, first, last) = (&self.big, &self.rows[0], &self.rows[self.rows.len() - 1]);
        let rate = |s: f64| mib(b.bytes) / s;
        let mut out = format!(
            "copy of {} MiB in: {:.1} s, {:.0} MiB/s, RSS {:.0} MiB at most ({:.0} before)\n\
             compared cold:       {:.1} s, {:.0} MiB/s, RSS {:.0} MiB at most\n\
             4 KiB of a 100 GiB sparse file, cold: {:.2} ms, RSS {:.0} -> {:.0} MiB; the next, median: {:.2} ms\n\n",
            b.bytes >> 20,
            b.copy_in_s,
            rate(b.copy_in_s),
            mib(b.copy_in_rss),
            mib(b.rss_idle),
            b.compare_s,
            rate(b.compare_s),
            mib(b.compare_rss),
            b.sparse_first_ms,
            mib(b.sparse_rss_before),
            mib(b.sparse_rss_after),
            b.sparse_next_ms,
        );
        let mut bound = |what: &str, have: f64, max: f64, unit: &str| {
            let holds = if have <= max { "holds" } else { "EXCEEDED" };
            out += &format!("{what:44} {have:8.2} of at most {max:7.2} {unit:6} {holds}\n");
        };
        let ratio = last.create_us / first.create_us;
        bound(&format!("creating file {} against {}", last.mark, first.mark), ratio, CREATE_RATIO_MAX, "times");
        bound(&format!("mounting {} files", last.mark), last.mount_clean_s, MOUNT_S_MAX, "s");
        bound("the same after kill -9", last.mount_killed_s, MOUNT_KILLED_S_MAX, "s");
        bound("memory of the daemon, most", mib(self.rss_most()), mib(RSS_MAX), "MiB");
        bound("space a file of 1 KiB, store in all", last.bytes_a_file(), self.bytes_a_file_max(), "bytes");
        out.truncate(out.trim_end().len());
        out
    }

    pub fn csv(&self) -> String {
        let mut out = String::from(
            "mark,files,creates_per_s,create_us,mount_clean_s,mount_killed_s,mount_cold_s,fsync_ms,fsync_worst_ms,\
             find_10000_ms,fill_rss_bytes,find_rss_bytes,store_bytes,catalog_bytes\n",
        );
        for r in &self.rows {
            out += &format!(
                "{},{},{:.1},{:.2},{:.4},{:.4},{:.4},{:.3},{:.3},{:.1},{},{},{},{}\n",
                r.mark,
                r.files,
                r.creates_per_s,
                r.create_us,
                r.mount_clean_s,
                r.mount_killed_s,
                r.mount_cold_s,
                r.sync_ms,
                r.sync_worst_ms,
                r.find_ms,
                r.fill_rss,
                r.find_rss,
                r.store_bytes,
                r.catalog_bytes,
            );
        }
        out
    }
}
