//! Images from files: what is loaded, how it runs, and what is refused. Needs root.

#![allow(clippy::unwrap_used)]

mod scene;

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use model::planned::host::Rootfs;
use rustix::fs::{FileType, Mode};
use sandbox::image::{ImageConfig, ImageError, Loader, load};
use scene::Scene;
use serde_json::json;
use tar::{EntryType, Header};

fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".into(), |text, byte| format!("{text}{byte:02x}"))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer in the making. Names are written as they are, also those that no honest tool would write.
#[derive(Default)]
struct Layer(Vec<u8>);

impl Layer {
    fn add(mut self, kind: EntryType, name: &str, mode: u32, id: u64, link: &str, content: &[u8]) -> Layer {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(id);
        header.set_gid(id);
        header.set_size(content.len().try_into().unwrap());
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Layer {
        self.add(EntryType::Regular, name, 0o644, 0, "", content.as_bytes())
    }

    /// An empty file with a name that does not fit into a header.
    fn long(self, name: &str) -> Layer {
        self.add(EntryType::GNULongName, "././@LongLink", 0o644, 0, "", name.as_bytes()).file("x", "")
    }

    fn dir(self, name: &str) -> Layer {
        self.add(EntryType::Directory, name, 0o755, 0, "", b"")
    }

    fn symlink(self, name: &str, to: &str) -> Layer {
        self.add(EntryType::Symlink, name, 0o777, 0, to, b"")
    }

    fn done(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|l| digest(l)).collect();
    let run =
        json!({"Entrypoint": ["/bin/app"], "Cmd": ["x"], "Env": ["A=1", "B=2=3"], "WorkingDir": "/srv", "User": "7:8"});
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"os": "linux", "architecture": architecture, "config": run, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    serde_json::to_vec(&config).unwrap()
}

/// Writes an OCI layout.
fn layout(dir: &Path, layers: &[Vec<u8>], pack: impl Fn(&[u8]) -> Vec<u8>) -> PathBuf {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        json!({"mediaType": "application/octet-stream", "digest": digest, "size": bytes.len()})
    };
    let packed: Vec<_> = layers.iter().map(|l| blob(&pack(l))).collect();
    let manifest = json!({"schemaVersion": 2, "config": blob(&config(layers)), "layers": packed});
    let index = json!({"schemaVersion": 2, "manifests": [blob(&serde_json::to_vec(&manifest).unwrap())]});
    fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    dir.to_owned()
}

fn loader(scene: &Scene) -> Loader {
    Loader {
        state_dir: scene.config.state_dir.clone(),
        image_argv: vec![env!("CARGO_BIN_EXE_sandbox").into(), "image".into()],
        uid_base: scene.uids(7),
    }
}

fn place(scene: &Scene, image: &ImageConfig, n: usize) -> PathBuf {
    scene.config.state_dir.join("layers").join(&image.layers[n][7..])
}

fn refused(scene: &Scene, path: &Path) -> String {
    let before = fs::read_dir(scene.config.state_dir.join("layers")).unwrap().count();
    let why = match load(&loader(scene), path) {
        Err(ImageError::Refused { why }) => why,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(fs::read_dir(scene.config.state_dir.join("layers")).unwrap().count(), before, "nothing is kept");
    why
}

/// A layer in a layout of its own, refused.
fn refused_layer(layer: Layer) -> String {
    let scene = Scene::new();
    let path = layout(&scene.dir.join("image"), &[layer.done()], <[u8]>::to_vec);
    refused(&scene, &path)
}

#[test]
fn a_layout_is_unpacked_with_its_owners_modes_and_settings() {
    let scene = Scene::new();
    let layer = Layer::default()
        .dir("bin")
        .add(EntryType::Regular, "bin/app", 0o4755, 0, "", b"app")
        .add(EntryType::Regular, "home/user/mine", 0o600, 1000, "", b"mine")
        .add(EntryType::Link, "bin/again", 0o4755, 0, "bin/app", b"")
        .symlink("bin/elsewhere", "/etc/shadow");
    let path = layout(&scene.dir.join("image"), &[layer.done()], gzip);
    let image = load(&loader(&scene), &path).unwrap();
    assert_eq!(
        (image.entrypoint.as_slice(), image.cmd.as_slice()),
        (&["/bin/app".to_owned()][..], &["x".to_owned()][..])
    );
    assert_eq!(image.env, [("A".into(), "1".into()), ("B".into(), "2=3".into())]);
    assert_eq!((image.workdir.as_str(), image.user.as_str()), ("/srv", "7:8"));
    let root = place(&scene, &image, 0);
    let app = fs::metadata(root.join("bin/app")).unwrap();
    assert_eq!((app.uid(), app.mode() & 0o7777, app.nlink()), (0, 0o4755, 2));
    let mine = fs::metadata(root.join("home/user/mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid(), mine.mode() & 0o7777), (1000, 1000, 0o600));
    assert_eq!(fs::read_link(root.join("bin/elsewhere")).unwrap(), Path::new("/etc/shadow"));
    assert_eq!(load(&loader(&scene), &path).unwrap(), image, "loading again changes nothing");
}

#[test]
fn an_upper_layer_hides_what_it_takes_away_and_the_sandbox_may_write() {
    let scene = Scene::new();
    let shell = Layer::default()
        .dir("data")
        .file("data/kept", "kept")
        .file("data/gone", "gone")
        .dir("old")
        .file("old/secret", "secret");
    let upper =
        Layer::default().file("data/.wh.gone", "").dir("old").file("old/.wh..wh..opq", "").file("old/new", "new");
    let path = layout(&scene.dir.join("image"), &[shell.done(), upper.done()], gzip);
    let image = load(&loader(&scene), &path).unwrap();
    // The built-in program gives something to execute; what is looked at is the tree, through /proc.
    let mut plan = scene.container(0, &["/hello"], &[("PORT", "8080")]);
    plan.rootfs = Rootfs::Layers([vec![scene.hello.clone()], image.layers.clone()].concat());
    let container = scene.start("layers", &plan);
    let root = PathBuf::from(format!("/proc/{}/root", container.pid()));
    assert_eq!(fs::read_to_string(root.join("data/kept")).unwrap(), "kept");
    assert!(!root.join("data/gone").exists() && !root.join("old/secret").exists());
    assert_eq!(fs::read_to_string(root.join("old/new")).unwrap(), "new");
    // Root of the sandbox owns the files, and its changes stay its own.
    assert_eq!(fs::metadata(root.join("data/kept")).unwrap().uid(), scene.uids(0));
    fs::remove_file(root.join("data/kept")).unwrap();
    assert_eq!(fs::read_to_string(place(&scene, &image, 0).join("data/kept")).unwrap(), "kept");
}

#[test]
fn an_archive_of_docker_save_runs() {
    let scene = Scene::new();
    let program = fs::read(scene.config.state_dir.join("layers").join(&scene.hello[7..]).join("job")).unwrap();
    let layer = Layer::default().dir("bin").add(EntryType::Regular, "bin/job", 0o755, 0, "", &program).done();
    let config = config(std::slice::from_ref(&layer));
    let name = format!("{}.json", &digest(&config)[7..]);
    let manifest = json!([{"Config": name, "RepoTags": ["job:latest"], "Layers": ["one/layer.tar"]}]).to_string();
    let archive = Layer::default()
        .add(EntryType::Regular, &name, 0o644, 0, "", &config)
        .add(EntryType::Regular, "one/layer.tar", 0o644, 0, "", &layer)
        .file("manifest.json", &manifest);
    let path = scene.dir.join("saved.tar");
    fs::write(&path, archive.done()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let image = load(&loader(&scene), &path).unwrap();
    let mut plan = scene.container(0, &["/bin/job"], &[]);
    plan.rootfs = Rootfs::Layers(image.layers);
    scene.start("job", &plan);
    assert_eq!(scene.exit().0, Some(0));
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["/etc/passwd", "../escape", "a/../../escape", "./../escape"] {
        let why = refused_layer(Layer::default().file(name, "x"));
        assert!(why.contains("leads out"), "{name}: {why}");
    }
}

#[test]
fn links_are_not_followed_while_unpacking() {
    let why = refused_layer(Layer::default().symlink("door", "/").file("door/etc-x", "x"));
    assert!(why.contains("through a link"), "{why}");
    let why = refused_layer(Layer::default().symlink("door", "..").file("door/escape", "x"));
    assert!(why.contains("through a link"), "{why}");
    let why = refused_layer(Layer::default().add(EntryType::Link, "passwd", 0o644, 0, "../../../../etc/passwd", b""));
    assert!(why.contains("leads out"), "{why}");
    let why = refused_layer(Layer::default().add(EntryType::Link, "passwd", 0o644, 0, "etc/passwd", b""));
    assert!(why.contains("cannot write"), "{why}");
}

#[test]
fn a_link_in_the_place_of_a_file_is_replaced_and_not_written_through() {
    let scene = Scene::new();
    let target = scene.dir.join("target");
    fs::write(&target, "untouched").unwrap();
    let layer = Layer::default().symlink("file", target.to_str().unwrap()).file("file", "new");
    let path = layout(&scene.dir.join("image"), &[layer.done()], <[u8]>::to_vec);
    let image = load(&loader(&scene), &path).unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(place(&scene, &image, 0).join("file")).unwrap(), "new");
}

#[test]
fn content_that_is_not_what_its_digest_says_is_refused() {
    let scene = Scene::new();
    let path = layout(&scene.dir.join("image"), &[Layer::default().file("a", "honest").done()], |tar| {
        // The name of the blob is right for its bytes; the bytes are not the layer's.
        let mut forged = tar.to_vec();
        forged[512] = b'H';
        forged
    });
    assert!(refused(&scene, &path).contains("its content has the digest"));
    let path = layout(&scene.dir.join("other"), &[Layer::default().file("a", "b").done()], gzip);
    let index = fs::read_to_string(path.join("index.json")).unwrap();
    let at = index.find("sha256:").unwrap() + 7;
    let manifest = path.join("blobs/sha256").join(&index[at..at + 64]);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"schemaVersion\":2", "\"schemaVersion\":3")).unwrap();
    assert!(refused(&scene, &path).contains("another digest"));
}

#[test]
fn a_torn_archive_is_refused() {
    let scene = Scene::new();
    let layer = Layer::default().file("a", &"x".repeat(100_000)).done();
    let path = layout(&scene.dir.join("image"), std::slice::from_ref(&layer), |tar| gzip(tar)[..200].to_vec());
    assert!(refused(&scene, &path).contains("layer sha256:"));
    let path = layout(&scene.dir.join("other"), &[layer], |tar| tar[..50_000].to_vec());
    assert!(refused(&scene, &path).contains("layer sha256:"));
}

#[test]
fn sizes_and_owners_beyond_the_limits_are_refused() {
    let mut header = Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(model::limits::IMAGE_BYTES_MAX + 1);
    header.set_cksum();
    assert!(refused_layer(Layer(header.as_bytes().to_vec())).contains("larger than"));
    let why = refused_layer(Layer::default().add(EntryType::Regular, "a", 0o644, 70_000, "", b"x"));
    assert!(why.contains("70000"), "{why}");
}

#[test]
fn a_tree_too_deep_to_be_removed_again_is_refused() {
    for deep in [200, 40_000] {
        let layer = Layer::default().long(&format!("{}f", "d/".repeat(deep)));
        let why = refused_layer(layer);
        assert!(why.contains("more than 128 directories"), "{deep}: {why}");
    }
    let scene = Scene::new();
    let layer = Layer::default().long(&format!("{}f", "d/".repeat(100)));
    let path = layout(&scene.dir.join("image"), &[layer.done()], gzip);
    load(&loader(&scene), &path).unwrap();
}

#[test]
fn what_is_no_image_or_not_supported_says_so() {
    let scene = Scene::new();
    let path = scene.dir.join("text");
    fs::write(&path, "no image at all").unwrap();
    refused(&scene, &path);
    let path = layout(&scene.dir.join("image"), &[Layer::default().file("a", "b").done()], |_| {
        vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0]
    });
    assert!(refused(&scene, &path).contains("zstd"));
}

#[test]
fn what_is_no_plain_file_is_refused_and_not_waited_for() {
    type Make = fn(&Path);
    let make: [(&str, Make); 3] = [
        ("pipe", |at| rustix::fs::mknodat(rustix::fs::CWD, at, FileType::Fifo, Mode::RUSR, 0).unwrap()),
        ("device", |at| std::os::unix::fs::symlink("/dev/zero", at).unwrap()),
        ("socket", |at| drop(std::os::unix::net::UnixListener::bind(at).unwrap())),
    ];
    for (name, make) in make {
        let scene = Scene::new();
        let path = layout(&scene.dir.join("image"), &[Layer::default().file("a", "b").done()], gzip);
        let (blob, alone) = (path.join("blobs/sha256").join(name), scene.dir.join(name));
        make(&blob);
        assert!(refused(&scene, &path).contains("is not a plain file"), "a {name} in a layout");
        make(&alone);
        assert!(refused(&scene, &alone).contains("is not a plain file"), "a {name} in the place of an archive");
    }
}

#[test]
fn what_a_crash_left_is_removed_by_the_next_load() {
    let scene = Scene::new();
    let staging = scene.config.state_dir.join("layers/.staging");
    fs::create_dir_all(staging.join("half/a/layer")).unwrap();
    let path = layout(&scene.dir.join("image"), &[Layer::default().file("a", "b").done()], gzip);
    load(&loader(&scene), &path).unwrap();
    assert!(!staging.exists());
}
