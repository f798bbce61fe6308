//! Images of one's own, and an unpacker that dies over one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use acceptance::{Cloud, REGION, Said, journey::client, signal, tombolo};
use serde_json::{Value, json};
use tombolo::journey::{PRODUCER, create_project, enable};

const IMAGE: &str = "example.com/team/app:v1";
/// Enough that unpacking takes a while.
const FILLER_BYTES: usize = 48 << 20;

fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".into(), |text, byte| format!("{text}{byte:02x}"))
}

/// A file of a tar, in the form of POSIX.1-1988.
fn member(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\u{0}00");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\u{0}").as_bytes());
    header.extend(content);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}

/// An OCI layout with the cloud's own hello program in it.
fn layout(cloud: &Cloud, dir: &Path) -> PathBuf {
    let layers = fs::read_dir(cloud.state_dir().join("layers")).expect("layers").flatten();
    let program = layers.map(|l| l.path().join("hello")).find(|p| p.is_file()).expect("the built-in program");
    let program = fs::read(program).expect("root reads it");
    let layer =
        [member("app", 0o755, &program), member("filler", 0o644, &vec![0; FILLER_BYTES]), vec![0; 1024]].concat();
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a new directory");
    let blob = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(&digest[7..]), bytes).expect("a new file");
        json!({"mediaType": "application/octet-stream", "digest": digest, "size": bytes.len()})
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "os": "linux", "architecture": architecture, "config": {"Entrypoint": ["/app"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let manifest = json!({"schemaVersion": 2, "config": blob(config.to_string().as_bytes()), "layers": [blob(&layer)]});
    let index = json!({"schemaVersion": 2, "manifests": [blob(manifest.to_string().as_bytes())]});
    fs::write(dir.join("index.json"), index.to_string()).expect("a new file");
    dir.to_owned()
}

fn load(cloud: &Cloud, image: &Path) -> Child {
    let mut command = Command::new(tombolo());
    command.args(["load", "--cloud", &cloud.name]).arg(image).arg(IMAGE);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("tombolo starts")
}

fn end(load: Child) -> Said {
    Said::of(&load.wait_with_output().expect("it ends"))
}

/// Kills the unpacker of this load as soon as it is there. False when it was never seen.
fn kill_unpacker(load: &mut Child) -> bool {
    let children = format!("/proc/{0}/task/{0}/children", load.id());
    while load.try_wait().is_ok_and(|ended| ended.is_none()) {
        let found = fs::read_to_string(&children).unwrap_or_default();
        if let Some(pid) = found.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            signal("-9", pid);
            return true;
        }
    }
    false
}

/// Deploys the image as a service; what its operation ended with.
fn deploy(cloud: &Cloud, name: &str) -> Value {
    let host = "run.googleapis.com";
    let path = format!("/v2/projects/{PRODUCER}/locations/{REGION}/services?serviceId={name}");
    let service = json!({"template": {"containers": [{"image": IMAGE}]}});
    let mut operation = cloud.call("POST", host, &path, Some(service)).body;
    while operation["done"] != true {
        let name = operation["name"].as_str().unwrap_or_else(|| panic!("no operation: {operation}")).to_owned();
        operation = cloud.call("POST", host, &format!("/v2/{name}:wait"), Some(json!({"timeout": "10s"}))).body;
    }
    operation
}

#[test]
fn a_killed_unpacker_fails_the_load_and_a_deploy_clearly_and_the_next_ones_succeed() {
    let cloud = Cloud::up();
    let client = client(&cloud);
    create_project(&client, PRODUCER).unwrap();
    enable(&client, PRODUCER, &["run.googleapis.com"]).unwrap();
    let dir = std::env::temp_dir().join(format!("tombolo-image-{}", cloud.name));
    let image = layout(&cloud, &dir);

    let mut first = load(&cloud, &image);
    assert!(kill_unpacker(&mut first), "the unpacker was seen");
    let early = deploy(&cloud, "early");
    let said = end(first);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("the unpacker died"), "{said:?}");
    let why = early["error"]["message"].as_str().unwrap_or_default();
    assert!(why.contains(&format!("Image '{IMAGE}' not found")), "{early}");

    end(load(&cloud, &image)).ok();
    let late = deploy(&cloud, "late");
    assert!(late["error"].is_null(), "{late}");
    fs::remove_dir_all(&dir).unwrap();
}
