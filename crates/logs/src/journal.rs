//! Where entries are kept: segments of a few MiB, the oldest of which goes when there is too much.
//!
//! [`Journal::append`] touches memory only and never waits for a disk; a thread writes behind it. What is appended can
//! be read at once. If the disk refuses, the journal keeps a bounded amount, then drops new entries and counts them.
//! A crash of the machine may lose the last moments; a crash of the process loses what came within
//! [`limits::LOG_WRITE_PAUSE`], but nothing that [`Journal::flush`] or [`Journal::append_then`] has called written.
//! Start with [`Journal`], then `segment` (the files) and `query` (finding).

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use model::limits;

use crate::entry::Entry;

mod query;
mod segment;
mod write;

use query::Search;
pub use query::{Order, Page, Query, QueryError};
use segment::{Extent, Record, Scan};

/// How much may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all segments together.
    pub bytes_max: u64,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Bytes that wait for the disk.
    pub unwritten_bytes_max: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            bytes_max: limits::LOG_DISK_BYTES_MAX,
            segment_bytes: limits::LOG_SEGMENT_BYTES,
            unwritten_bytes_max: limits::LOG_UNWRITTEN_BYTES_MAX,
        }
    }
}

/// How the journal is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub entries: u64,
    pub bytes: u64,
    /// Entries that were dropped since the start, because the disk refused earlier ones.
    pub dropped: u64,
    /// Entries that went with the oldest segments since the start.
    pub expired: u64,
    /// Segments in which a query met damage since the start.
    pub damaged: u64,
    /// Why the last write failed; none once one has succeeded.
    pub disk_error: Option<io::ErrorKind>,
}

/// The journal of one cloud. Cheap to share behind an `Arc`; all methods may be called from any thread.
pub struct Journal {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    /// None: everything stays in memory.
    dir: Option<PathBuf>,
    bounds: Bounds,
    inner: Mutex<Inner>,
    /// Something is to be written, or it is time to end.
    work: Condvar,
    /// Held while files are written.
    writing: Mutex<()>,
}

/// What somebody wants done once an entry is on disk.
type Then = Box<dyn FnOnce() + Send>;

struct Inner {
    /// Who waits for the disk, and for which append; those of later ones follow.
    waiting: VecDeque<(u64, Then)>,
    /// How many appends there were.
    appended: u64,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Segment>,
    unwritten: u64,
    /// Files of segments that were dropped.
    doomed: Vec<PathBuf>,
    stats: Stats,
    closing: bool,
}

struct Segment {
    extent: Extent,
    /// The newest append that is in it; 0 if all of it was found on disk.
    newest: u64,
    /// Its content, until it is finished and on disk.
    blocks: Option<Vec<Arc<[u8]>>>,
    /// How much of the content is on disk.
    written_blocks: usize,
    written_bytes: u64,
    sealed: bool,
}

impl Segment {
    fn new(base: u64) -> Segment {
        let extent = Extent::empty(base);
        Segment { extent, newest: 0, blocks: Some(Vec::new()), written_blocks: 0, written_bytes: 0, sealed: false }
    }

    fn unwritten(&self) -> u64 {
        if self.blocks.is_some() { self.extent.bytes - self.written_bytes } else { 0 }
    }
}

impl Journal {
    /// Opens the journal in this directory, or makes it. A torn end is cut off.
    ///
    /// # Errors
    /// If the directory cannot be made or read.
    pub fn open(dir: &Path, bounds: Bounds) -> io::Result<Journal> {
        fs::create_dir_all(dir)?;
        let segments = recover(dir)?;
        let shared = Arc::new(Shared::new(Some(dir.to_owned()), bounds, segments));
        let writer = {
            let shared = shared.clone();
            std::thread::Builder::new().name("journal".to_owned()).spawn(move || shared.write_behind())?
        };
        Ok(Journal { shared, writer: Some(writer) })
    }

    /// A journal that is gone with the process.
    pub fn in_memory(bounds: Bounds) -> Journal {
        Journal { shared: Arc::new(Shared::new(None, bounds, VecDeque::new())), writer: None }
    }

    /// Adds entries. They can be read when this returns, unless they had to be dropped ([`Stats::dropped`]).
    pub fn append(&self, entries: &[Entry]) {
        self.add(entries, None);
    }

    /// Adds entries and calls `then`, from another thread, once no death of this process can lose them; at once if they
    /// had to be dropped. One call waits for each entry that does, so the bound of these bounds those.
    pub fn append_then(&self, entries: &[Entry], then: impl FnOnce() + Send + 'static) {
        self.add(entries, Some(Box::new(then)));
    }

    fn add(&self, entries: &[Entry], then: Option<Then>) {
        let mut bytes = Vec::new();
        let mut extent = Extent::empty(0);
        for entry in entries {
            let json = entry.to_text();
            let (timestamp, before) = (entry.timestamp.0, bytes.len());
            segment::encode(Record { timestamp, parent: &entry.log_name.parent, json: &json }, &mut bytes);
            let grown = u64::try_from(bytes.len() - before).unwrap_or(u64::MAX);
            extent.add(1, grown, &(timestamp..=timestamp));
        }
        match (extent.count, then) {
            (0, None) => {}
            (0, Some(then)) => then(),
            (_, then) => self.shared.append(bytes.into(), &extent, then),
        }
    }

    /// One page of what is asked for.
    ///
    /// # Errors
    /// [`QueryError::Token`] for a token of another query.
    pub fn query(&self, query: &Query) -> Result<Page, QueryError> {
        let (mut search, mut found) = {
            let inner = self.shared.lock();
            let next = inner.segments.back().map_or(0, |s| s.extent.end());
            let search = Search::new(query, next)?;
            let found: Vec<_> = inner
                .segments
                .iter()
                .filter(|s| s.extent.overlaps(&search.times))
                .map(|s| (s.extent.clone(), s.blocks.clone()))
                .collect();
            (search, found)
        };
        found.sort_by_key(|(extent, _)| search.rank(extent));
        for (extent, blocks) in found {
            if search.is_over(&extent) {
                break;
            }
            let whole = match blocks {
                Some(blocks) => search.visit(extent.base, blocks.iter().map(|block| &**block)),
                None => match self.shared.read(&extent)? {
                    Some(bytes) => search.visit(extent.base, std::iter::once(bytes.as_slice())),
                    None => true,
                },
            };
            if !whole {
                self.shared.lock().stats.damaged += 1;
            }
        }
        Ok(search.page())
    }

    /// Writes everything that waits. Done at the end by itself.
    ///
    /// # Errors
    /// The disk's; what could not be written is tried again later.
    pub fn flush(&self) -> io::Result<()> {
        self.shared.flush()
    }

    pub fn stats(&self) -> Stats {
        let inner = self.shared.lock();
        let sum = |of: fn(&Extent) -> u64| inner.segments.iter().map(|s| of(&s.extent)).sum();
        Stats { entries: sum(|e| e.count), bytes: sum(|e| e.bytes), ..inner.stats.clone() }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        if let Some(writer) = self.writer.take() {
            // Its panic was already reported by its own thread.
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn new(dir: Option<PathBuf>, bounds: Bounds, segments: VecDeque<Segment>) -> Shared {
        let inner = Inner {
            waiting: VecDeque::new(),
            appended: 0,
            unwritten: segments.iter().map(Segment::unwritten).sum(),
            segments,
            doomed: Vec::new(),
            stats: Stats::default(),
            closing: false,
        };
        Shared { dir, bounds, inner: Mutex::new(inner), work: Condvar::new(), writing: Mutex::new(()) }
    }

    /// Nothing panics between two changes that belong together, so a poisoned lock is whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, block: Arc<[u8]>, new: &Extent, then: Option<Then>) {
        let mut inner = self.lock();
        if self.dir.is_some() && inner.unwritten + new.bytes > self.bounds.unwritten_bytes_max {
            inner.stats.dropped += new.count;
            drop(inner);
            then.into_iter().for_each(|then| then());
            return;
        }
        inner.appended += 1;
        let number = inner.appended;
        inner.waiting.extend(then.map(|then| (number, then)));
        let next = inner.segments.back().map_or(0, |s| s.extent.end());
        let needs_new = inner.segments.back().is_none_or(|s| s.sealed);
        if needs_new {
            inner.segments.push_back(Segment::new(next));
        }
        let active = inner.segments.back_mut().expect("one was pushed if there was none");
        active.blocks.get_or_insert_default().push(block);
        active.newest = number;
        active.extent.add(new.count, new.bytes, &new.times);
        active.sealed = active.extent.bytes >= self.bounds.segment_bytes;
        if self.dir.is_some() {
            inner.unwritten += new.bytes;
            self.work.notify_one();
        }
        self.expire(&mut inner);
        drop(inner);
        if self.dir.is_none() {
            self.call_waiting(number);
        }
    }

    /// Everything up to this append is where it is to stay.
    fn call_waiting(&self, appended: u64) {
        let mut inner = self.lock();
        let done = inner.waiting.partition_point(|(number, _)| *number <= appended);
        let calls: Vec<_> = inner.waiting.drain(..done).collect();
        drop(inner);
        calls.into_iter().for_each(|(_, then)| then());
    }

    /// Drops the oldest segments while there is too much; never the one that is written to.
    fn expire(&self, inner: &mut Inner) {
        let mut bytes: u64 = inner.segments.iter().map(|s| s.extent.bytes).sum();
        while bytes > self.bounds.bytes_max && inner.segments.len() > 1 {
            let Some(gone) = inner.segments.pop_front() else { return };
            bytes -= gone.extent.bytes;
            inner.stats.expired += gone.extent.count;
            if let Some(dir) = &self.dir {
                inner.unwritten -= gone.unwritten();
                inner.doomed.push(dir.join(gone.extent.open_name()));
                inner.doomed.push(dir.join(gone.extent.sealed_name()));
            }
        }
    }

    /// A finished segment's content; `None` if it has expired meanwhile.
    fn read(&self, extent: &Extent) -> Result<Option<Vec<u8>>, QueryError> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let path = dir.join(extent.sealed_name());
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(QueryError::Read { path: path.display().to_string(), source }),
        }
    }
}

/// What is in the directory. Only unfinished segments are read.
fn recover(dir: &Path) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for file in fs::read_dir(dir)? {
        let file = file?;
        let name = file.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(extent) = Extent::parse_sealed(name, file.metadata()?.len()) {
            let written_bytes = extent.bytes;
            segments.push(Segment { extent, newest: 0, blocks: None, written_blocks: 0, written_bytes, sealed: true });
        } else if let Some(base) = Extent::parse_open(name) {
            segments.extend(recover_open(&file.path(), base)?);
        }
    }
    segments.sort_by_key(|s| s.extent.base);
    // Only the newest may still be written to.
    let newest = segments.len().saturating_sub(1);
    segments.iter_mut().take(newest).for_each(|s| s.sealed = true);
    Ok(segments.into())
}

fn recover_open(path: &Path, base: u64) -> io::Result<Option<Segment>> {
    let mut bytes = fs::read(path)?;
    let mut extent = Extent::empty(base);
    let mut scan = Scan::new(&bytes);
    for record in scan.by_ref() {
        extent.add(1, 0, &(record.timestamp..=record.timestamp));
    }
    let whole = scan.read;
    bytes.truncate(whole);
    if extent.count == 0 {
        fs::remove_file(path)?;
        return Ok(None);
    }
    extent.bytes = u64::try_from(whole).unwrap_or(u64::MAX);
    // What was torn off is cut from the file too, before the next write.
    let written_bytes = extent.bytes;
    let blocks = Some(vec![Arc::from(bytes)]);
    Ok(Some(Segment { extent, newest: 0, blocks, written_blocks: 1, written_bytes, sealed: false }))
}
