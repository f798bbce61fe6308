//! A client that writes packets by hand, over a directory of its own.

use super::*;

struct Client {
    server: Server,
    dir: PathBuf,
}

impl Client {
    fn new(name: &str) -> Client {
        let dir = std::env::temp_dir().join(format!("sshd-sftp-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Client { server: Server::default(), dir: dir.canonicalize().unwrap() }
    }

    fn path(&self, name: &str) -> Vec<u8> {
        string(self.dir.join(name).as_os_str().as_bytes())
    }

    /// The kind of the answer and what follows its id.
    fn ask(&mut self, kind: u8, fields: &[&[u8]]) -> (u8, Vec<u8>) {
        let packet = [&[kind][..], &7_u32.to_be_bytes(), &fields.concat()].concat();
        let answer = self.server.answer(&packet);
        assert_eq!(answer.len() - 4, u32::from_be_bytes(answer[..4].try_into().unwrap()) as usize);
        assert_eq!(answer[5..9], 7_u32.to_be_bytes());
        (answer[4], answer[9..].to_vec())
    }

    fn status(&mut self, kind: u8, fields: &[&[u8]]) -> u32 {
        let (kind, body) = self.ask(kind, fields);
        assert_eq!(kind, 101, "a status");
        u32::from_be_bytes(body[..4].try_into().unwrap())
    }

    fn handle(&mut self, kind: u8, fields: &[&[u8]]) -> Vec<u8> {
        let (kind, body) = self.ask(kind, fields);
        assert_eq!(kind, 102, "a handle");
        body
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

const NO_ATTRIBUTES: &[u8] = &[0, 0, 0, 0];
const WRITE_CREATE_TRUNCATE: &[u8] = &[0, 0, 0, 2 | 8 | 16];
const ONLY_READ: &[u8] = &[0, 0, 0, 1];

#[test]
fn a_file_is_written_and_read_back_at_any_offset() {
    let mut client = Client::new("file");
    let path = client.path("f");
    let mode = [&[0, 0, 0, 4][..], &0o640_u32.to_be_bytes()].concat();
    let handle = client.handle(packet::OPEN, &[&path, WRITE_CREATE_TRUNCATE, &mode]);
    for (at, text) in [(5_u64, "world"), (0, "hello")] {
        assert_eq!(client.status(packet::WRITE, &[&handle, &at.to_be_bytes(), &string(text.as_bytes())]), OK);
    }
    assert_eq!(client.status(packet::CLOSE, &[&handle]), OK);
    assert_eq!(client.status(packet::CLOSE, &[&handle]), FAILURE, "once");
    let handle = client.handle(packet::OPEN, &[&path, ONLY_READ, NO_ATTRIBUTES]);
    let read = client.ask(packet::READ, &[&handle, &3_u64.to_be_bytes(), &100_u32.to_be_bytes()]);
    assert_eq!(read, (103, string(b"loworld")));
    assert_eq!(client.status(packet::READ, &[&handle, &10_u64.to_be_bytes(), &1_u32.to_be_bytes()]), EOF);
    let (kind, about) = client.ask(packet::STAT, &[&path]);
    let word = |at: usize| u32::from_be_bytes(about[at..at + 4].try_into().unwrap());
    assert_eq!((kind, word(8), word(20) & 0o777), (105, 10, 0o640 & !0o022));
}

#[test]
fn directories_are_made_listed_renamed_and_removed() {
    let mut client = Client::new("dirs");
    let (d, e, f) = (client.path("d"), client.path("e"), client.path("e/f"));
    assert_eq!(client.status(packet::MKDIR, &[&d, NO_ATTRIBUTES]), OK);
    assert_eq!(client.status(packet::RENAME, &[&d, &e]), OK);
    client.handle(packet::OPEN, &[&f, WRITE_CREATE_TRUNCATE, NO_ATTRIBUTES]);
    let handle = client.handle(packet::OPENDIR, &[&e]);
    let (kind, names) = client.ask(packet::READDIR, &[&handle]);
    assert_eq!((kind, &names[..9]), (104, &[0, 0, 0, 1, 0, 0, 0, 1, b'f'][..]));
    assert_eq!(client.status(packet::READDIR, &[&handle]), EOF);
    assert_eq!(client.status(packet::RMDIR, &[&e]), FAILURE, "it is not empty");
    assert_eq!(client.status(packet::REMOVE, &[&f]), OK);
    assert_eq!(client.status(packet::RMDIR, &[&e]), OK);
    assert_eq!(client.status(packet::OPENDIR, &[&e]), NO_SUCH_FILE);
}

#[test]
fn plain_renaming_replaces_nothing_and_the_posix_way_does() {
    let mut client = Client::new("rename");
    fs::write(client.dir.join("a"), "a").unwrap();
    fs::write(client.dir.join("b"), "b").unwrap();
    let (a, b) = (client.path("a"), client.path("b"));
    assert_eq!(client.status(packet::RENAME, &[&a, &b]), FAILURE);
    assert_eq!(client.status(packet::EXTENDED, &[&string(b"posix-rename@openssh.com"), &a, &b]), OK);
    assert_eq!(fs::read_to_string(client.dir.join("b")).unwrap(), "a");
    assert_eq!(client.status(packet::EXTENDED, &[&string(b"statvfs@openssh.com"), &b]), UNSUPPORTED);
}

#[test]
fn links_lead_where_the_client_said_and_paths_become_absolute() {
    let mut client = Client::new("links");
    fs::write(client.dir.join("a"), "a").unwrap();
    let (a, link, odd) = (client.path("a"), client.path("l"), client.path("./x/../nothing"));
    assert_eq!(client.status(packet::SYMLINK, &[&a, &link]), OK);
    assert_eq!(fs::read_link(client.dir.join("l")).unwrap(), client.dir.join("a"));
    let real = |answer: (u8, Vec<u8>)| answer.1[8..].to_vec();
    assert!(real(client.ask(packet::REALPATH, &[&link])).starts_with(&a[4..]));
    fs::create_dir(client.dir.join("x")).unwrap();
    let nothing = client.dir.join("nothing");
    assert!(real(client.ask(packet::REALPATH, &[&odd])).starts_with(nothing.as_os_str().as_bytes()));
}

#[test]
fn attributes_are_set_as_asked_and_no_others() {
    let mut client = Client::new("attributes");
    fs::write(client.dir.join("a"), "0123456789").unwrap();
    let a = client.path("a");
    let size_mode_times = [
        &(1_u32 | 4 | 8).to_be_bytes()[..],
        &4_u64.to_be_bytes(),
        &0o600_u32.to_be_bytes(),
        &1_000_u32.to_be_bytes(),
        &2_000_u32.to_be_bytes(),
    ]
    .concat();
    assert_eq!(client.status(packet::SETSTAT, &[&a, &size_mode_times]), OK);
    let about = fs::metadata(client.dir.join("a")).unwrap();
    assert_eq!((about.len(), about.mode() & 0o777, about.atime(), about.mtime()), (4, 0o600, 1_000, 2_000));
}

#[test]
fn a_client_may_say_anything_and_gets_an_answer() {
    let mut client = Client::new("garbage");
    assert_eq!(client.server.answer(&[])[4], 101);
    assert_eq!(client.server.answer(&[packet::INIT, 0, 0, 0, 3])[4..9], [2, 0, 0, 0, 3]);
    for kind in 0..=255 {
        for len in [0, 1, 3, 4, 5, 9, 40] {
            let fields = vec![0xff; len];
            client.server.answer(&[&[kind][..], &[0, 0, 0, 7], &fields].concat());
        }
    }
    let a = client.path("many");
    for _ in 0..SFTP_HANDLES_MAX {
        client.handle(packet::OPEN, &[&a, WRITE_CREATE_TRUNCATE, NO_ATTRIBUTES]);
    }
    assert_eq!(client.status(packet::OPEN, &[&a, WRITE_CREATE_TRUNCATE, NO_ATTRIBUTES]), FAILURE, "too many");
}
