//! The thread that writes behind: it takes what waits, writes it without holding the journal's lock, then notes it.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    sync::{Arc, PoisonError},
};

use model::limits;

use super::{Shared, segment::Extent};

/// Content of one segment that is to be written.
struct Job {
    extent: Extent,
    /// Once it is written, every append up to this one is.
    newest: u64,
    blocks: Vec<Arc<[u8]>>,
    /// Bytes of it that are on disk.
    from: u64,
    sealed: bool,
}

impl Shared {
    pub(super) fn write_behind(&self) {
        let mut failed = false;
        loop {
            let inner = self.lock();
            // Idle until there is something. After a failure, try again when the time is over.
            let idle =
                self.work.wait_while(inner, |i| !failed && !i.closing && i.unwritten == 0 && i.doomed.is_empty());
            let closing = idle.unwrap_or_else(PoisonError::into_inner).closing;
            failed = self.flush().is_err();
            if closing {
                return;
            }
            // Let some more come.
            drop(self.work.wait_timeout_while(self.lock(), limits::LOG_WRITE_PAUSE, |i| !i.closing));
        }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.write_all(dir);
        self.lock().stats.disk_error = result.as_ref().err().map(io::Error::kind);
        result
    }

    fn write_all(&self, dir: &Path) -> io::Result<()> {
        while let Some(job) = self.next_job() {
            job.write(dir)?;
            self.note_written(&job);
            self.call_waiting(job.newest);
        }
        let doomed = std::mem::take(&mut self.lock().doomed);
        for path in doomed {
            // A segment has one of its two names, or none if it was never written.
            match fs::remove_file(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What is oldest among that which waits.
    fn next_job(&self) -> Option<Job> {
        let inner = self.lock();
        inner.segments.iter().find_map(|segment| {
            let blocks = segment.blocks.as_ref()?;
            let waits = segment.sealed || blocks.len() > segment.written_blocks;
            waits.then(|| Job {
                extent: segment.extent.clone(),
                newest: segment.newest,
                blocks: blocks[segment.written_blocks..].to_vec(),
                from: segment.written_bytes,
                sealed: segment.sealed,
            })
        })
    }

    fn note_written(&self, job: &Job) {
        let mut inner = self.lock();
        let written = job.extent.bytes - job.from;
        // It may have expired while it was written; then its file is doomed already.
        let Some(segment) = inner.segments.iter_mut().find(|s| s.extent.base == job.extent.base) else { return };
        segment.written_blocks += job.blocks.len();
        segment.written_bytes += written;
        if job.sealed {
            segment.blocks = None;
        }
        inner.unwritten -= written;
    }
}

impl Job {
    fn write(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(self.extent.open_name());
        let mut file = File::options().write(true).create(true).truncate(false).open(&path)?;
        // Whatever an earlier attempt or a crash left behind is cut off first.
        file.set_len(self.from)?;
        file.seek(SeekFrom::Start(self.from))?;
        for block in &self.blocks {
            file.write_all(block)?;
        }
        if self.sealed { fs::rename(&path, dir.join(self.extent.sealed_name())) } else { Ok(()) }
    }
}
