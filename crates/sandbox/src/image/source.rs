//! The files of an image, whether they lie in a directory or in one tar. Knows names, not meanings.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

/// Entries of an outer archive: three files per layer and some.
const ENTRIES_MAX: usize = 10_000;
/// Largest manifest, index or configuration, in bytes. Source: registries take 4 MiB.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// A set of named files.
pub(super) struct Source {
    files: Vec<File>,
    places: HashMap<String, Place>,
}

/// Where the bytes of a file are.
#[derive(Clone, Copy)]
struct Place {
    file: usize,
    offset: u64,
    len: u64,
}

impl Source {
    pub(super) fn open(files: Vec<(String, File)>) -> io::Result<Source> {
        let archive = matches!(&files[..], [(name, _)] if name.is_empty());
        let (names, files): (Vec<String>, Vec<File>) = files.into_iter().unzip();
        if archive {
            let places = index(&files[0])?;
            return Ok(Source { files, places });
        }
        let mut places = HashMap::new();
        for (file, name) in names.into_iter().enumerate() {
            places.insert(name, Place { file, offset: 0, len: files[file].metadata()?.len() });
        }
        Ok(Source { files, places })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    pub(super) fn open_file(&self, name: &str) -> io::Result<impl Read> {
        let place = *self.places.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Part { file: &self.files[place.file], at: place.offset, end: place.offset.saturating_add(place.len) })
    }

    /// A small file as a whole.
    pub(super) fn document(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(name)?.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len > DOCUMENT_BYTES_MAX) {
            return Err(io::Error::other(format!("a document over the limit of {DOCUMENT_BYTES_MAX} bytes")));
        }
        Ok(bytes)
    }
}

fn index(archive: &File) -> io::Result<HashMap<String, Place>> {
    let mut places = HashMap::new();
    (&mut &*archive).seek(SeekFrom::Start(0))?;
    let mut tar = tar::Archive::new(archive);
    for (count, entry) in tar.entries_with_seek()?.enumerate() {
        let entry = entry?;
        if count >= ENTRIES_MAX {
            return Err(io::Error::other(format!("an archive of more than {ENTRIES_MAX} entries")));
        }
        // Only plain files: a link could name another file's bytes, and no tool needs one.
        if entry.header().entry_type().is_file() {
            let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            places.insert(name, Place { file: 0, offset: entry.raw_file_position(), len: entry.size() });
        }
    }
    Ok(places)
}

/// A range of a file, read without moving the file's own position.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let want = left.min(buffer.len());
        let got = self.file.read_at(&mut buffer[..want], self.at)?;
        if got == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += u64::try_from(got).unwrap_or(0);
        Ok(got)
    }
}
