//! What an image's documents say: which configuration and which layers make it up. Every document that is reached by a
//! digest is checked against it; layers are checked while they are unpacked.

use serde::{Deserialize, de::DeserializeOwned};

use super::{ImageConfig, source::Source};
use crate::{builtin::sha256, rootfs::layer_name};

/// An index may point to indexes; deeper than this it does not.
const INDEX_DEPTH_MAX: u32 = 4;

/// An image's configuration, and where its layers' archives are: file name and digest of the uncompressed archive.
pub(super) struct Parsed {
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// One row of `docker save`'s manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    os: String,
    architecture: String,
    #[serde(default)]
    config: Option<Run>,
    rootfs: Rootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Deserialize)]
struct Rootfs {
    diff_ids: Vec<String>,
}

/// Reads the one image for this machine.
pub(super) fn read(source: &Source) -> Result<Parsed, String> {
    if source.has("index.json") {
        let index = source.document("index.json").map_err(|e| format!("index.json: {e}"))?;
        return from_index(source, parse("index.json", &index)?, INDEX_DEPTH_MAX);
    }
    if source.has("manifest.json") {
        let bytes = source.document("manifest.json").map_err(|e| format!("manifest.json: {e}"))?;
        return from_saved(source, &bytes);
    }
    Err("neither index.json nor manifest.json is there: no OCI layout and no docker archive".into())
}

fn from_index(source: &Source, index: Index, depth: u32) -> Result<Parsed, String> {
    let fits = |d: &&Descriptor| d.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == machine());
    let mut fitting = index.manifests.iter().filter(fits);
    let Some(chosen) = fitting.next() else { return Err(format!("no image for linux/{}", machine())) };
    if depth == INDEX_DEPTH_MAX && fitting.next().is_some() {
        return Err("several images in one layout: it must hold one".into());
    }
    let bytes = blob(source, &chosen.digest)?;
    let nested = chosen.media_type.contains("image.index") || chosen.media_type.contains("manifest.list");
    match (nested, depth) {
        (true, 0) => Err("an index in an index, too deep".into()),
        (true, _) => from_index(source, parse("index", &bytes)?, depth - 1),
        (false, _) => from_manifest(source, &chosen.digest, &parse("manifest", &bytes)?),
    }
}

fn from_manifest(source: &Source, digest: &str, manifest: &Manifest) -> Result<Parsed, String> {
    let config = blob(source, &manifest.config.digest)?;
    let files = manifest.layers.iter().map(|l| blob_name(&l.digest)).collect::<Result<Vec<_>, _>>()?;
    finish(digest.to_owned(), &config, files)
}

fn from_saved(source: &Source, bytes: &[u8]) -> Result<Parsed, String> {
    let rows: Vec<Saved> = parse("manifest.json", bytes)?;
    let [saved] = <[Saved; 1]>::try_from(rows).map_err(|rows| format!("{} images in one archive", rows.len()))?;
    let config = source.document(&saved.config).map_err(|e| format!("{}: {e}", saved.config))?;
    let digest = sha256(&config);
    // Its name is its digest; some tools say it with a directory or an ending.
    let name = saved.config.trim_end_matches(".json").rsplit('/').next().unwrap_or_default();
    if format!("sha256:{name}") != digest {
        return Err(format!("the configuration {} has the digest {digest}", saved.config));
    }
    finish(digest, &config, saved.layers)
}

fn finish(digest: String, config: &[u8], files: Vec<String>) -> Result<Parsed, String> {
    let config: Config = parse("configuration", config)?;
    if config.os != "linux" || config.architecture != machine() {
        return Err(format!("an image for {}/{}, not linux/{}", config.os, config.architecture, machine()));
    }
    let diff_ids = config.rootfs.diff_ids;
    if files.len() != diff_ids.len() || files.is_empty() {
        return Err(format!("{} layers, but {} digests of layers", files.len(), diff_ids.len()));
    }
    let run = config.config.unwrap_or_default();
    let env = run.env.unwrap_or_default();
    let pair = |v: &String| v.split_once('=').map_or((v.clone(), String::new()), |(k, v)| (k.into(), v.into()));
    let workdir = run.working_dir.filter(|dir| dir.starts_with('/')).unwrap_or_else(|| "/".into());
    let config = ImageConfig {
        digest,
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: env.iter().map(pair).collect(),
        workdir,
        user: run.user.unwrap_or_default(),
        layers: diff_ids.clone(),
    };
    Ok(Parsed { config, layers: files.into_iter().zip(diff_ids).collect() })
}

/// The architecture as images name it.
fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn blob_name(digest: &str) -> Result<String, String> {
    let hex = layer_name(digest).ok_or_else(|| format!("{digest:?} is no sha256 digest"))?;
    Ok(format!("blobs/sha256/{hex}"))
}

fn blob(source: &Source, digest: &str) -> Result<Vec<u8>, String> {
    let name = blob_name(digest)?;
    let bytes = source.document(&name).map_err(|e| format!("{name}: {e}"))?;
    match sha256(&bytes) == digest {
        true => Ok(bytes),
        false => Err(format!("{name} has another digest than its name")),
    }
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("the {what} does not parse: {e}"))
}
