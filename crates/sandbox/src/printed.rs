//! What a container prints, line by line, on its way to the logs.
//!
//! The shim writes lines to small files under `lines/` and never waits for a reader: when nobody reads, the oldest file
//! goes. The host process reads them with a [`Tail`] and removes a file once all of it was passed on, so that what was
//! printed while the host or control were away is not lost. Lines are numbered: a number that is skipped is a lost line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use model::{
    id::WorkloadId,
    limits::{PRINTED_FILE_BYTES, PRINTED_FILES_MAX, PRINTED_LINE_BYTES_MAX},
    record::{Printed, PrintedLine, Stream},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

/// Where the files are, under a cloud's run directory.
pub fn dir(run_dir: &Path) -> PathBuf {
    run_dir.join("lines")
}

/// One line as it stands in a file. A record ends with a line feed, which JSON never contains.
#[derive(Serialize, Deserialize)]
struct Numbered {
    number: u64,
    #[serde(flatten)]
    line: PrintedLine,
}

/// Source and target of names: `WORKLOAD.FILE`, the second part a number.
fn path_of(dir: &Path, id: &WorkloadId, file: u64) -> PathBuf {
    dir.join(format!("{id}.{file}"))
}

fn parse_name(name: &str) -> Option<(WorkloadId, u64)> {
    let (id, file) = name.rsplit_once('.')?;
    Some((WorkloadId(id.to_owned()), file.parse().ok()?))
}

/// The writing end, in the shim.
pub(crate) struct Spool {
    dir: PathBuf,
    id: WorkloadId,
    /// None: the disk refused; the next write tries again with a new file.
    current: Option<File>,
    file: u64,
    bytes: usize,
    number: u64,
    /// What was printed since the last line feed, of each stream.
    partial: [Vec<u8>; 2],
}

impl Spool {
    pub(crate) fn new(run_dir: &Path, id: &WorkloadId) -> Spool {
        let (dir, id) = (dir(run_dir), id.clone());
        Spool { dir, id, current: None, file: 0, bytes: 0, number: 0, partial: [Vec::new(), Vec::new()] }
    }

    /// Takes what was read from a pipe. What the disk refuses is lost, and its numbers tell so.
    pub(crate) fn write(&mut self, stream: Stream, mut bytes: &[u8], at: Timestamp) {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let partial = &mut self.partial[place(stream)];
            let room = PRINTED_LINE_BYTES_MAX - partial.len();
            let end = bytes.iter().take(room).position(|b| *b == b'\n');
            let taken = end.map_or(room.min(bytes.len()), |end| end + 1);
            partial.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if end.is_some() || self.partial[place(stream)].len() >= PRINTED_LINE_BYTES_MAX {
                self.end_line(stream, at, &mut records);
            }
        }
        self.append(&records);
    }

    /// Nothing more comes: what has no line feed is a line as well.
    pub(crate) fn finish(&mut self, at: Timestamp) {
        let mut records = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.end_line(stream, at, &mut records);
        }
        self.append(&records);
    }

    fn end_line(&mut self, stream: Stream, at: Timestamp, records: &mut Vec<u8>) {
        let partial = std::mem::take(&mut self.partial[place(stream)]);
        let text = String::from_utf8_lossy(&partial);
        let text = text.trim_end_matches(['\n', '\r']).to_owned();
        if text.is_empty() {
            return;
        }
        let record = Numbered { number: self.number, line: PrintedLine { at, stream, text } };
        self.number += 1;
        serde_json::to_writer(&mut *records, &record).expect("numbers and strings always serialise");
        records.push(b'\n');
    }

    fn append(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if self.bytes > PRINTED_FILE_BYTES {
            self.current = None;
        }
        if self.current.is_none() {
            self.begin_file();
        }
        let written = self.current.as_mut().map(|file| file.write_all(records));
        match written {
            Some(Ok(())) => self.bytes += records.len(),
            // A record that was cut short would join with the next one.
            Some(Err(_)) | None => self.current = None,
        }
    }

    fn begin_file(&mut self) {
        self.file += 1;
        self.bytes = 0;
        let path = path_of(&self.dir, &self.id, self.file);
        self.current = File::options().create_new(true).append(true).mode(0o600).open(path).ok();
        if let Some(oldest) = self.file.checked_sub(PRINTED_FILES_MAX) {
            // One that was passed on is gone already.
            fs::remove_file(path_of(&self.dir, &self.id, oldest)).ok();
        }
    }
}

fn place(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

/// The numbers of the files that there are.
pub type Files = BTreeSet<u64>;

/// What workloads have printed and is still there.
pub fn look(dir: &Path) -> io::Result<BTreeMap<WorkloadId, Files>> {
    let mut found: BTreeMap<WorkloadId, Files> = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        if let Some((id, file)) = entry?.file_name().to_str().and_then(parse_name) {
            found.entry(id).or_default().insert(file);
        }
    }
    Ok(found)
}

/// A place in the files of one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    file: u64,
    offset: u64,
    /// The number that comes next; unknown to a reader that begins in the middle.
    next: Option<u64>,
}

/// The reading end, in the host process: one batch at a time, each until it was passed on.
pub struct Tail {
    dir: PathBuf,
    id: WorkloadId,
    /// Everything before this was passed on.
    done: Mark,
    /// The end of the batch that is on its way.
    read: Option<Mark>,
}

impl Tail {
    /// `fresh` says that the workload has been watched since it was started, so that its first line is number 0.
    pub fn new(dir: &Path, id: WorkloadId, fresh: bool) -> Tail {
        let done = Mark { file: 0, offset: 0, next: fresh.then_some(0) };
        Tail { dir: dir.to_owned(), id, done, read: None }
    }

    /// The next lines in `files`, of about `bytes` at most; None when there are none yet, or the last batch is still on
    /// its way.
    pub fn next(&mut self, files: &Files, bytes: usize) -> io::Result<Option<Printed>> {
        if self.read.is_some() {
            return Ok(None);
        }
        let mut mark = self.done;
        loop {
            // A file that a full spool removed is skipped; its lines are those whose numbers are.
            let Some(file) = files.range(mark.file..).next().copied() else { return Ok(None) };
            if file != mark.file {
                mark = Mark { file, offset: 0, ..mark };
            }
            let (records, complete) = self.records(&mark, bytes)?;
            if !records.is_empty() {
                mark.offset += complete;
                return Ok(Some(self.batch(records, mark)));
            }
            // Nothing more in this one; it has grown its last once there is another.
            if files.range(file + 1..).next().is_none() {
                return Ok(None);
            }
            mark = Mark { file: file + 1, offset: 0, ..mark };
        }
    }

    fn batch(&mut self, records: Vec<Numbered>, mut mark: Mark) -> Printed {
        let first = records.first().map_or(0, |record| record.number);
        let lost = mark.next.map_or(0, |next| first.saturating_sub(next));
        mark.next = records.last().map(|record| record.number + 1);
        self.read = Some(mark);
        Printed { workload: self.id.clone(), first, lost, lines: records.into_iter().map(|r| r.line).collect() }
    }

    /// Whole records from the mark on and how many bytes they are. They are consecutive: a gap ends a batch.
    fn records(&self, mark: &Mark, bytes: usize) -> io::Result<(Vec<Numbered>, u64)> {
        let mut file = match File::open(path_of(&self.dir, &self.id, mark.file)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
            Err(e) => return Err(e),
        };
        file.seek(SeekFrom::Start(mark.offset))?;
        let mut content = Vec::new();
        // One line may be longer than a batch, and six times as long when every byte of it is escaped.
        let most = u64::try_from(bytes.max(PRINTED_LINE_BYTES_MAX * 7)).unwrap_or(u64::MAX);
        file.take(most).read_to_end(&mut content)?;
        let (mut records, mut taken): (Vec<Numbered>, usize) = (Vec::new(), 0);
        for line in content.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n")) {
            if taken >= bytes {
                break;
            }
            // What does not parse was cut short by a full disk; its number is missing.
            let record = serde_json::from_slice::<Numbered>(line).ok();
            let follows = |r: &Numbered| records.last().is_none_or(|last: &Numbered| last.number + 1 == r.number);
            if record.as_ref().is_some_and(|r| !follows(r)) {
                break;
            }
            records.extend(record);
            taken += line.len();
        }
        Ok((records, u64::try_from(taken).unwrap_or(u64::MAX)))
    }

    /// Everything before line `next` was passed on: its files go, but for the one that may still grow.
    pub fn heard(&mut self, next: u64) -> io::Result<()> {
        let Some(read) = self.read.take_if(|read| read.next == Some(next)) else { return Ok(()) };
        self.done = read;
        self.remove(read.file.saturating_sub(PRINTED_FILES_MAX)..read.file)
    }

    /// Nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.read.is_none()
    }

    /// Whoever was to pass the last batch on is gone: it is read again.
    pub fn again(&mut self) {
        self.read = None;
    }

    /// The workload has ended and everything it printed was passed on. Removes what is left of it.
    pub fn bury(&mut self, files: &Files) -> io::Result<()> {
        self.remove(files.iter().copied())
    }

    fn remove(&self, files: impl Iterator<Item = u64>) -> io::Result<()> {
        for file in files {
            match fs::remove_file(path_of(&self.dir, &self.id, file)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let run = std::env::temp_dir().join(format!("tombolo-lines-{}-{name}", std::process::id()));
            fs::create_dir_all(dir(&run)).unwrap();
            Dir(run)
        }

        fn id() -> WorkloadId {
            WorkloadId("run-1".into())
        }

        fn spool(&self) -> Spool {
            Spool::new(&self.0, &Dir::id())
        }

        fn tail(&self, fresh: bool) -> Tail {
            Tail::new(&dir(&self.0), Dir::id(), fresh)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    impl Dir {
        fn files(&self) -> Files {
            look(&dir(&self.0)).unwrap().remove(&Dir::id()).unwrap_or_default()
        }

        fn read(&self, tail: &mut Tail) -> Option<Printed> {
            tail.next(&self.files(), 1 << 16).unwrap()
        }
    }

    fn texts(batch: Option<Printed>) -> Vec<String> {
        batch.map(|b| b.lines.into_iter().map(|l| l.text).collect()).unwrap_or_default()
    }

    #[test]
    fn lines_arrive_whole_in_order_and_with_the_stream_they_were_printed_to() {
        let home = Dir::new("whole");
        let (mut spool, mut tail) = (home.spool(), home.tail(true));
        spool.write(Stream::Stdout, b"one\r\ntw", Timestamp(1));
        spool.write(Stream::Stderr, b"bad \xff\n\n", Timestamp(2));
        let first = home.read(&mut tail).unwrap();
        let seen: Vec<_> = first.lines.iter().map(|l| (l.at.0, l.stream, l.text.as_str())).collect();
        assert_eq!(seen, [(1, Stream::Stdout, "one"), (2, Stream::Stderr, "bad \u{fffd}")]);
        assert_eq!((first.first, first.lost), (0, 0));
        spool.write(Stream::Stdout, b"o\nthree", Timestamp(3));
        assert_eq!(home.read(&mut tail), None, "one batch at a time");
        tail.heard(2).unwrap();
        assert_eq!(texts(home.read(&mut tail)), ["two"]);
        tail.heard(3).unwrap();
        spool.finish(Timestamp(4));
        assert_eq!(texts(home.read(&mut tail)), ["three"], "the last line needs no line feed");
        tail.heard(4).unwrap();
        tail.bury(&home.files()).unwrap();
        assert!(home.files().is_empty());
    }

    #[test]
    fn a_batch_that_nobody_confirmed_is_read_again() {
        let home = Dir::new("again");
        let (mut spool, mut tail) = (home.spool(), home.tail(true));
        spool.write(Stream::Stdout, b"a\nb\n", Timestamp(1));
        let batch = home.read(&mut tail);
        tail.again();
        assert_eq!(home.read(&mut tail), batch);
        tail.heard(7).unwrap();
        assert_eq!(home.read(&mut tail), None, "a confirmation of something else confirms nothing");
        // Another reader, as after a restart, finds what was not passed on.
        assert_eq!(home.read(&mut home.tail(false)), batch);
    }

    #[test]
    fn what_is_printed_while_nobody_reads_is_bounded_and_what_was_lost_is_counted() {
        let home = Dir::new("bounded");
        let (mut spool, mut tail) = (home.spool(), home.tail(true));
        spool.write(Stream::Stdout, b"first\n", Timestamp(0));
        assert_eq!(texts(home.read(&mut tail)), ["first"]);
        tail.heard(1).unwrap();
        let line = [b"x".repeat(1_000), b"\n".to_vec()].concat();
        for n in 0..10_000 {
            spool.write(Stream::Stdout, &line, Timestamp(n));
        }
        let size =
            || -> u64 { fs::read_dir(dir(&home.0)).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum() };
        let most = u64::try_from(PRINTED_FILE_BYTES).unwrap() * (PRINTED_FILES_MAX + 1);
        assert!(size() <= most, "{}", size());
        let (mut lost, mut read, mut next) = (0, 1, 1);
        while let Some(batch) = home.read(&mut tail) {
            assert_eq!(batch.first, next + batch.lost);
            lost += batch.lost;
            read += u64::try_from(batch.lines.len()).unwrap();
            next = batch.first + u64::try_from(batch.lines.len()).unwrap();
            tail.heard(next).unwrap();
        }
        assert!(lost > 0);
        assert_eq!(lost + read, 10_001, "every line was read or is counted");
        assert!(size() <= u64::try_from(PRINTED_FILE_BYTES * 2).unwrap(), "what was passed on is gone");
    }

    #[test]
    fn a_line_without_end_is_cut_into_pieces() {
        let home = Dir::new("pieces");
        let (mut spool, mut tail) = (home.spool(), home.tail(true));
        spool.write(Stream::Stdout, &b"\x01".repeat(PRINTED_LINE_BYTES_MAX + 5), Timestamp(1));
        spool.finish(Timestamp(2));
        let mut lengths = Vec::new();
        while let Some(batch) = home.read(&mut tail) {
            lengths.extend(batch.lines.iter().map(|l| l.text.len()));
            tail.heard(batch.first + u64::try_from(batch.lines.len()).unwrap()).unwrap();
        }
        assert_eq!(lengths, [PRINTED_LINE_BYTES_MAX, 5]);
    }
}
