//! Images that come with the binary: one static program under several names.
//!
//! `/hello` serves the Cloud Run hello page, `/job` is a job that succeeds, `/init` is a VM's pid 1.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use aws_lc_rs::digest::{Context, SHA256, digest};

use crate::{image::ImageConfig, rootfs::layer_name};

/// The program. Compiled by build.rs from `images/hello.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));
/// Names in the layer.
const NAMES: [&str; 3] = ["hello", "job", "init"];
/// Reference (without tag) of the image with a server, and of the one with a job.
pub const HELLO: &str = "us-docker.pkg.dev/cloudrun/container/hello";
pub const JOB: &str = "us-docker.pkg.dev/cloudrun/container/job";
/// Where the server was before, and where much that is written about Cloud Run still finds it.
const HELLO_BEFORE: &str = "gcr.io/cloudrun/hello";

/// The built-in images by reference. Their layer is there once [`install`] has been called.
pub fn images() -> Vec<(String, ImageConfig)> {
    let layer = layer_digest();
    [(HELLO, "/hello"), (HELLO_BEFORE, "/hello"), (JOB, "/job")]
        .map(|(image, program)| (image.to_owned(), config(program, layer)))
        .into()
}

/// Unpacks the built-in layer when it is not there yet, and returns [`images`].
pub fn install(state_dir: &Path) -> io::Result<Vec<(String, ImageConfig)>> {
    let layer = layer_digest();
    let layers = state_dir.join("layers");
    let name = layer_name(layer).expect("made by layer_digest");
    let place = layers.join(name);
    if !place.exists() {
        fs::create_dir_all(&layers)?;
        fs::set_permissions(&layers, fs::Permissions::from_mode(0o700))?;
        // Made beside its place and renamed: a layer that exists is whole. Two starts at once may both win.
        let temporary = layers.join(format!(".{name}.{}", std::process::id()));
        write_layer(&temporary)?;
        if let Err(e) = fs::rename(&temporary, &place) {
            fs::remove_dir_all(&temporary)?;
            if !place.exists() {
                return Err(e);
            }
        }
    }
    Ok(images())
}

/// Where [`install`] has put the program of a VM's pid 1.
pub(crate) fn init(state_dir: &Path) -> PathBuf {
    let layer = layer_digest();
    state_dir.join("layers").join(layer_name(layer).expect("made by layer_digest")).join("init")
}

/// Computed once: it takes a millisecond, and each sandbox asks.
fn layer_digest() -> &'static str {
    static LAYER: LazyLock<String> = LazyLock::new(|| {
        let mut context = Context::new(&SHA256);
        context.update(b"tombolo built-in layer 1\n");
        context.update(PROGRAM);
        hex(context.finish().as_ref())
    });
    &LAYER
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// A digest as images write it.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn write_layer(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    let first = dir.join(NAMES[0]);
    fs::write(&first, PROGRAM)?;
    fs::set_permissions(&first, fs::Permissions::from_mode(0o755))?;
    NAMES[1..].iter().try_for_each(|name| fs::hard_link(&first, dir.join(name)))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

fn config(program: &str, layer: &str) -> ImageConfig {
    ImageConfig {
        // The digest of what a registry would call the manifest: program and layer are all there is to it.
        digest: sha256(format!("{program} {layer}").as_bytes()),
        entrypoint: vec![program.to_owned()],
        cmd: Vec::new(),
        env: vec![("PATH".into(), "/".into())],
        workdir: "/".into(),
        user: "0:0".into(),
        layers: vec![layer.to_owned()],
    }
}
