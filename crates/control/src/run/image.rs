//! Image names, and the images on this machine that they mean.

use crate::world::{ImageRecord, World};

/// The image of this name on the machine: `repository`, `repository:tag` or `repository@sha256:…`.
pub fn resolve<'w>(world: &'w World, name: &str) -> Option<&'w ImageRecord> {
    if let Some((repository, digest)) = name.split_once('@') {
        let repository = untagged(repository);
        return world.images.values().find(|i| i.digest == digest && untagged(&i.name) == repository);
    }
    let repository = untagged(name);
    let tag = name.get(repository.len() + 1..).unwrap_or("latest");
    let candidates = [format!("{repository}:{tag}"), repository.to_owned()];
    // A name stored without a tag is the latest.
    let usable = if tag == "latest" { 2 } else { 1 };
    candidates.iter().take(usable).find_map(|candidate| world.images.get(candidate))
}

/// An image name without its tag. A colon before the last slash belongs to the registry's port.
pub fn untagged(name: &str) -> &str {
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    match name[slash..].find(':') {
        Some(colon) => &name[..slash + colon],
        None => name,
    }
}
