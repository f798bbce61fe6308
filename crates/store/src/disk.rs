//! The mirror of the memory in one file (redb). Knows no transaction of ours: it is given the last word about keys.
//!
//! A group of transactions is one redb commit with immediate durability: one sync of the disk however many wait. redb
//! refuses everything after an I/O error until it is opened anew, so an error here ends in [`Disk::reopen`], which also
//! answers the question an error leaves open: did the group reach the disk or not?

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use model::limits;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use crate::{
    kv::{Entry, Revision, StoreError},
    memory::Staged,
    schema::{self, Migration, Rewrite},
};

const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Opens the database, again and again. A closure, so that tests may bring a disk of their own.
pub(crate) type Opener = Box<dyn FnMut(&Builder) -> Result<Database, DatabaseError> + Send>;

pub(crate) struct Disk {
    opener: Opener,
    /// None after an error, until it could be opened again.
    db: Option<Database>,
}

/// Everything in the file.
pub(crate) struct Loaded {
    pub(crate) entries: Vec<Entry>,
    pub(crate) revision: Revision,
}

/// Any failure of redb, before we know what it means for a transaction.
#[derive(Debug, thiserror::Error)]
#[error("the database failed")]
pub(crate) struct DiskError(#[source] redb::Error);

impl<E: Into<redb::Error>> From<E> for DiskError {
    fn from(error: E) -> DiskError {
        DiskError(error.into())
    }
}

impl DiskError {
    /// As an I/O error that can be given to each of a group.
    pub(crate) fn to_io(&self) -> io::Error {
        match &self.0 {
            redb::Error::Io(source) => match source.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(source.kind(), source.to_string()),
            },
            other => io::Error::other(other.to_string()),
        }
    }

    /// What it means when nothing was changed.
    pub(crate) fn to_error(&self) -> StoreError {
        match &self.0 {
            redb::Error::Corrupted(detail) => StoreError::Damaged { detail: detail.clone() },
            redb::Error::UpgradeRequired(version) => {
                StoreError::Damaged { detail: format!("file format {version} of an older redb") }
            }
            redb::Error::DatabaseAlreadyOpen => StoreError::InUse,
            _ => {
                let source = self.to_io();
                match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
                    _ => StoreError::Io { source },
                }
            }
        }
    }
}

impl From<DiskError> for StoreError {
    fn from(error: DiskError) -> StoreError {
        error.to_error()
    }
}

/// The opener for a real file.
pub(crate) fn file(path: &Path) -> Opener {
    let path: PathBuf = path.to_owned();
    Box::new(move |builder| {
        if !path.try_exists().map_err(StorageError::Io)? {
            give_birth(builder, &path)?;
        }
        builder.open(&path)
    })
}

/// Makes the file under another name first: redb cannot open one whose making was cut short.
fn give_birth(builder: &Builder, path: &Path) -> Result<(), DatabaseError> {
    let mut unborn = path.as_os_str().to_owned();
    unborn.push(".new");
    match fs::remove_file(&unborn) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(StorageError::Io(error).into()),
    }
    builder.create(&unborn)?.close()?;
    let settle = || -> io::Result<()> {
        File::open(&unborn)?.sync_all()?;
        fs::rename(&unborn, path)?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    };
    Ok(settle().map_err(StorageError::Io)?)
}

impl Disk {
    pub(crate) fn open(opener: Opener) -> Result<(Disk, Loaded), StoreError> {
        Disk::open_as(opener, schema::FORM, schema::MIGRATIONS)
    }

    pub(crate) fn open_as(opener: Opener, form: u64, steps: &[Migration]) -> Result<(Disk, Loaded), StoreError> {
        let mut disk = Disk { opener, db: None };
        let db = disk.connect()?;
        prepare(db, form, steps)?;
        let loaded = load(db)?;
        Ok((disk, loaded))
    }

    fn connect(&mut self) -> Result<&Database, DiskError> {
        if self.db.is_none() {
            let mut builder = Builder::new();
            builder.set_cache_size(limits::STORE_CACHE_BYTES);
            self.db = Some((self.opener)(&builder)?);
        }
        Ok(self.db.as_ref().expect("it was opened in the line above"))
    }

    /// Makes a group durable. After an error it is not known whether it is: ask [`Disk::reopen`].
    pub(crate) fn write(&mut self, staged: &Staged) -> Result<(), DiskError> {
        let db = self.connect()?;
        let txn = db.begin_write()?;
        {
            let mut entries = txn.open_table(ENTRIES)?;
            let mut buffer = Vec::new();
            for (key, entry) in staged.latest() {
                match entry {
                    Some(entry) => {
                        encode(entry, &mut buffer);
                        entries.insert(key, buffer.as_slice())?;
                    }
                    None => drop(entries.remove(key)?),
                }
            }
            txn.open_table(META)?.insert("revision", staged.revision().0)?;
        }
        Ok(txn.commit()?)
    }

    /// Starts over after an error and says at which revision the file stands.
    pub(crate) fn reopen(&mut self) -> Result<Revision, DiskError> {
        // Closing fails for the reason that brought us here; the file is recovered by opening it.
        drop(self.db.take());
        let revision = self.connect().and_then(revision);
        if revision.is_err() {
            drop(self.db.take());
        }
        revision
    }
}

fn revision(db: &Database) -> Result<Revision, DiskError> {
    let meta = db.begin_read()?.open_table(META)?;
    Ok(Revision(meta.get("revision")?.map_or(0, |n| n.value())))
}

/// Makes a new file ours, or brings an older one to the present form.
fn prepare(db: &Database, form: u64, steps: &[Migration]) -> Result<(), StoreError> {
    let txn = db.begin_write().map_err(DiskError::from)?;
    let found = {
        let meta = txn.open_table(META).map_err(DiskError::from)?;
        let number = |key: &str| -> Result<Option<u64>, DiskError> { Ok(meta.get(key)?.map(|n| n.value())) };
        (number("layout")?, number("form")?)
    };
    let from = match found {
        (Some(layout), _) if layout > schema::LAYOUT => {
            return Err(StoreError::Newer { what: "layout", found: layout, known: schema::LAYOUT });
        }
        (Some(_), Some(old)) if old > form => return Err(StoreError::Newer { what: "form", found: old, known: form }),
        (Some(schema::LAYOUT), Some(old)) if old == form => return Ok(txn.abort().map_err(DiskError::from)?),
        (Some(schema::LAYOUT), Some(old)) if old > 0 => old,
        (None, None) => form,
        (layout, old) => return Err(StoreError::Damaged { detail: format!("versions {layout:?} and {old:?}") }),
    };
    for step in steps.iter().skip(usize::try_from(from - 1).unwrap_or(usize::MAX)) {
        migrate(&txn, *step)?;
    }
    let marked = || -> Result<(), DiskError> {
        txn.open_table(ENTRIES)?;
        let mut meta = txn.open_table(META)?;
        meta.insert("layout", schema::LAYOUT)?;
        meta.insert("form", form)?;
        Ok(())
    };
    marked()?;
    Ok(txn.commit().map_err(DiskError::from)?)
}

fn migrate(txn: &redb::WriteTransaction, step: Migration) -> Result<(), StoreError> {
    let mut entries = txn.open_table(ENTRIES).map_err(DiskError::from)?;
    let mut moves: Vec<(String, Rewrite, [u8; HEAD])> = Vec::new();
    for row in entries.iter().map_err(DiskError::from)? {
        let (key, stored) = row.map_err(DiskError::from)?;
        let (head, value) = split(key.value(), stored.value())?;
        match step(key.value(), value) {
            Rewrite::Keep => {}
            rewrite => moves.push((key.value().to_owned(), rewrite, *head)),
        }
    }
    // All removals come first: one entry may move to where another one was.
    for (old, rewrite, _) in &moves {
        if matches!(rewrite, Rewrite::Move { .. } | Rewrite::Drop) {
            entries.remove(old.as_str()).map_err(DiskError::from)?;
        }
    }
    for (old, rewrite, head) in moves {
        let (key, value) = match rewrite {
            Rewrite::Keep | Rewrite::Drop => continue,
            Rewrite::Value(value) => (old, value),
            Rewrite::Move { key, value } => (key, value),
        };
        let stored = [head.as_slice(), &value].concat();
        entries.insert(key.as_str(), stored.as_slice()).map_err(DiskError::from)?;
    }
    Ok(())
}

fn load(db: &Database) -> Result<Loaded, StoreError> {
    let revision = revision(db)?;
    let read = || -> Result<_, DiskError> { Ok(db.begin_read()?.open_table(ENTRIES)?) };
    let table = read()?;
    let mut entries = Vec::new();
    for row in table.iter().map_err(DiskError::from)? {
        let (key, stored) = row.map_err(DiskError::from)?;
        let entry = decode(key.value(), stored.value())?;
        if entry.mod_revision > revision {
            return Err(StoreError::Damaged { detail: format!("{:?} is newer than the store", entry.key) });
        }
        entries.push(entry);
    }
    Ok(Loaded { entries, revision })
}

/// Bytes before the value: three u64.
const HEAD: usize = 24;

fn encode(entry: &Entry, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&entry.mod_revision.0.to_le_bytes());
    out.extend_from_slice(&entry.create_revision.0.to_le_bytes());
    out.extend_from_slice(&entry.version.to_le_bytes());
    out.extend_from_slice(&entry.value);
}

fn split<'a>(key: &str, stored: &'a [u8]) -> Result<(&'a [u8; HEAD], &'a [u8]), StoreError> {
    stored
        .split_first_chunk()
        .ok_or_else(|| StoreError::Damaged { detail: format!("the entry of {key:?} is too short") })
}

fn decode(key: &str, stored: &[u8]) -> Result<Entry, StoreError> {
    let (head, value) = split(key, stored)?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    Ok(Entry {
        key: Arc::from(key),
        value: Arc::from(value),
        mod_revision: Revision(number(0)),
        create_revision: Revision(number(8)),
        version: number(16),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use std::sync::Mutex;

    use redb::backends::InMemoryBackend;

    use super::*;

    /// A file that outlives its database.
    #[derive(Clone, Debug)]
    struct Kept(Arc<InMemoryBackend>);

    impl redb::StorageBackend for Kept {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }

    fn opener(kept: &Kept) -> Opener {
        let kept = kept.clone();
        Box::new(move |builder| builder.create_with_backend(kept.clone()))
    }

    fn a_file_of_form_1(entries: &[(&str, &str)]) -> Kept {
        let kept = Kept(Arc::new(InMemoryBackend::new()));
        let (mut disk, loaded) = Disk::open_as(opener(&kept), 1, &[]).unwrap();
        let state = crate::memory::State::new(loaded.entries, loaded.revision, 0);
        let mut staged = Staged::on(&state);
        let txn = entries.iter().fold(crate::Txn::new(), |txn, (key, value)| txn.put(*key, *value));
        let _ = staged.add(&state, txn);
        disk.write(&staged).unwrap();
        kept
    }

    #[test]
    fn an_older_form_is_brought_up_to_date_once_and_keeps_its_revisions() {
        static RUNS: Mutex<u32> = Mutex::new(0);
        fn step(key: &str, value: &[u8]) -> Rewrite {
            *RUNS.lock().unwrap() += 1;
            match key {
                "a" => Rewrite::Move { key: "b".to_owned(), value: value.to_vec() },
                "b" => Rewrite::Move { key: "c".to_owned(), value: b"moved".to_vec() },
                "d" => Rewrite::Drop,
                "e" => Rewrite::Value(b"new".to_vec()),
                _ => Rewrite::Keep,
            }
        }
        let kept = a_file_of_form_1(&[("a", "1"), ("b", "2"), ("d", "3"), ("e", "4"), ("f", "5")]);
        for _ in 0..2 {
            let (_, loaded) = Disk::open_as(opener(&kept), 2, &[step]).unwrap();
            let seen: Vec<_> =
                loaded.entries.iter().map(|e| (&*e.key, String::from_utf8_lossy(&e.value).into_owned())).collect();
            let want = [("b", "1"), ("c", "moved"), ("e", "new"), ("f", "5")].map(|(k, v)| (k, v.to_owned()));
            assert_eq!(seen, want);
            assert!(loaded.entries.iter().all(|e| e.mod_revision == Revision(1) && e.version == 1));
            assert_eq!(loaded.revision, Revision(1));
        }
        assert_eq!(*RUNS.lock().unwrap(), 5);
    }

    #[test]
    fn a_newer_form_is_refused_and_left_alone() {
        fn step(_: &str, _: &[u8]) -> Rewrite {
            Rewrite::Keep
        }
        let kept = a_file_of_form_1(&[("a", "1")]);
        drop(Disk::open_as(opener(&kept), 2, &[step]).unwrap());
        assert!(matches!(
            Disk::open_as(opener(&kept), 1, &[]),
            Err(StoreError::Newer { what: "form", found: 2, known: 1 })
        ));
        assert_eq!(Disk::open_as(opener(&kept), 2, &[step]).unwrap().1.entries.len(), 1);
    }
}
