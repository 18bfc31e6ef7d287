//! What takes long to make, kept for the next run: `$NODENET_LAB_CACHE`, or `nodenet-lab` in
//! `$XDG_CACHE_HOME` or `~/.cache`.
//!
//! An entry is a folder that is made elsewhere and renamed when complete; one lock keeps two runs from
//! making the same entry.

use super::error::{During, LabError};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The cache's folder.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Finds or makes the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open() -> Result<Self, LabError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = variable("NODENET_LAB_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("nodenet-lab")))
            .or_else(|| variable("HOME").map(|folder| folder.join(".cache/nodenet-lab")))
            .unwrap_or_else(|| "/root/.cache/nodenet-lab".into());
        fs::create_dir_all(&folder).during("make", folder.display())?;
        Ok(Self { folder })
    }

    /// The newest entry whose name starts so, made by `make` when there is none. `make` gets an empty
    /// folder to work in and returns the entry's full name and the sub-folder that becomes the entry.
    ///
    /// # Errors
    /// Those of `make`; nothing is kept then.
    pub fn entry(
        &self,
        start: &str,
        make: impl FnOnce(&Path) -> Result<(String, PathBuf), LabError>,
    ) -> Result<PathBuf, LabError> {
        if let Some(found) = self.newest(start)? {
            return Ok(found);
        }
        let path = self.folder.join("lock");
        let file = File::create(&path).during("open", path.display())?;
        let _lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .during("lock", "the cache")?;
        // Another run may have made it while this one waited.
        if let Some(found) = self.newest(start)? {
            return Ok(found);
        }
        let work = self.folder.join("work");
        if work.exists() {
            fs::remove_dir_all(&work).during("remove", work.display())?;
        }
        fs::create_dir(&work).during("make", work.display())?;
        let made = make(&work).and_then(|(name, entry)| {
            let kept = self.folder.join(name);
            fs::rename(&entry, &kept).during("keep", kept.display())?;
            Ok(kept)
        });
        fs::remove_dir_all(&work).during("remove", work.display())?;
        made
    }

    fn newest(&self, start: &str) -> Result<Option<PathBuf>, LabError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).during("read", self.folder.display())? {
            let entry = entry.during("read", self.folder.display())?;
            if entry.file_name().to_string_lossy().starts_with(start) {
                let made = entry.metadata().and_then(|data| data.modified()).during("inspect", start)?;
                found.push((made, entry.path()));
            }
        }
        Ok(found.into_iter().max().map(|(_, path)| path))
    }
}
