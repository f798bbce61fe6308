//! The mirror of the memory in one file (redb). Knows no transaction of ours: it is given the last word about keys.
//!
//! A group of transactions is one redb commit with immediate durability: one sync of the disk however many wait. redb
//! refuses everything after an I/O error until it is opened anew, so an error here ends in [`Disk::reopen`], which also
//! answers the question an error leaves open: did the group reach the disk or not?

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use model::limits;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

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
    Box::new(move |builder| builder.create(&path))
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
