//! A workload's standard output and error in a file of bounded size: the newest bytes are kept.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Bytes of output that an `Exited` event carries. Enough for a stack trace, small enough for a frame.
const TAIL_BYTES_MAX: u64 = 8 << 10;

/// The file. Once it is full its older half is cut off, so a byte is copied at most once per half.
pub(crate) struct Output {
    file: File,
    len: u64,
    max: u64,
}

impl Output {
    pub(crate) fn create(path: &Path, max: u64) -> io::Result<Output> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Output { file, len: 0, max })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let half = self.max / 2;
        for chunk in bytes.chunks(usize::try_from(half.max(1)).unwrap_or(usize::MAX)) {
            let size = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if self.len + size > self.max {
                self.keep(self.max - size.max(half))?;
            }
            self.file.seek(SeekFrom::Start(self.len))?;
            self.file.write_all(chunk)?;
            self.len += size;
        }
        Ok(())
    }

    /// The last bytes, with whatever is not UTF-8 replaced.
    pub(crate) fn tail(&mut self) -> io::Result<String> {
        let bytes = self.last(TAIL_BYTES_MAX)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn keep(&mut self, newest: u64) -> io::Result<()> {
        let kept = self.last(newest)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&kept)?;
        self.len = u64::try_from(kept.len()).unwrap_or(u64::MAX);
        self.file.set_len(self.len)
    }

    fn last(&mut self, max: u64) -> io::Result<Vec<u8>> {
        let from = self.len.saturating_sub(max);
        self.file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        (&self.file).take(self.len - from).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(max: u64) -> (Output, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("tombolo-output-{}-{max}", std::process::id()));
        let output = Output::create(&path, max).unwrap();
        std::fs::remove_file(&path).unwrap();
        (output, path)
    }

    #[test]
    fn a_full_file_forgets_its_oldest_bytes_and_never_grows_over_its_limit() {
        let (mut output, _) = output(64);
        for n in 0..100 {
            output.write(format!("line {n:03}\n").as_bytes()).unwrap();
            assert!(output.file.metadata().unwrap().len() <= 64);
        }
        assert!(output.tail().unwrap().ends_with("line 098\nline 099\n"));
    }

    #[test]
    fn one_write_larger_than_the_file_leaves_its_end() {
        let (mut output, _) = output(10);
        output.write(b"abcdefghijklmnopqrstuvwxyz").unwrap();
        assert!(output.tail().unwrap().ends_with("uvwxyz"));
        assert!(output.file.metadata().unwrap().len() <= 10);
    }
}
