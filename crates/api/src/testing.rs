//! What the tests of this crate share: a directory that goes away, and an API that tells what it was asked.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::json;

use crate::{
    call::{Answer, Api, BoxFuture, Call},
    error,
    reply::Reply,
};

/// A directory of its own for one test, removed with the value.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tombolo-api-{}-{n}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Answers with what it was asked; a path that ends in `missing` is a 404.
pub(crate) struct Echo;

impl Api for Echo {
    fn serve(&self, call: Call) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            if call.path.last().is_some_and(|last| last == "missing") {
                return Err(error::unknown_method());
            }
            Ok(Reply::json(json!({
                "service": call.host.service.host(),
                "region": call.host.region.as_ref().map(ToString::to_string),
                "method": call.method.as_str(),
                "path": call.path.join("|"),
                "verb": call.verb(),
                "bearer": call.bearer(),
                "body": String::from_utf8_lossy(&call.body),
            })))
        })
    }
}
