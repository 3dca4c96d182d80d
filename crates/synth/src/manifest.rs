//! The state of an output folder: empty, unfinished, finished, or somebody else's.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::SynthError;
use crate::generate::GenerateOptions;
use crate::rows::Source;

const MANIFEST: &str = "generation.json";
/// Stands in the folder from the first write to the last, so that an interrupted generation is known as ours.
const MARKER: &str = ".generation-unfinished";
/// Where files are written before they are moved to their places.
const STAGING: &str = ".generation-staging";
pub(crate) const TRUTH: &str = "truth";

/// Raised whenever the same options give other bytes than before.
const VERSION: u32 = 4;

/// What a finished generation says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: u32,
    options: ManifestOptions,
    pub(crate) churned_customers: u64,
    pub(crate) files: Vec<ManifestFile>,
}

/// The options that decide over the bytes; the number of threads does not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ManifestOptions {
    customers: u64,
    days: u32,
    seed: u64,
    end: String,
    dirty_share: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestFile {
    pub(crate) path: String,
    pub(crate) rows: u64,
    pub(crate) dirty_rows: u64,
    pub(crate) bytes: u64,
}

impl Manifest {
    pub(crate) fn new(options: &GenerateOptions, churned_customers: u64, files: Vec<ManifestFile>) -> Self {
        Self { version: VERSION, options: ManifestOptions::of(options), churned_customers, files }
    }
}

impl ManifestOptions {
    fn of(options: &GenerateOptions) -> Self {
        Self {
            customers: options.customers,
            days: options.days,
            seed: options.seed,
            end: options.end.to_rfc3339(),
            dirty_share: options.dirty_share,
        }
    }

    fn describe(&self, version: u32) -> String {
        let Self { customers, days, seed, end, dirty_share } = self;
        format!("{customers} customers, {days} days to {end}, seed {seed}, dirty share {dirty_share}, format {version}")
    }
}

/// An output folder made ready.
#[derive(Debug)]
pub(crate) enum Opened {
    Finished(Manifest),
    Ready(Folder),
}

#[derive(Debug)]
pub(crate) struct Folder {
    out: PathBuf,
}

/// Looks at the folder and clears what an interrupted generation left in it.
pub(crate) fn open(options: &GenerateOptions) -> Result<Opened, SynthError> {
    let out = &options.out;
    fs::create_dir_all(out).map_err(SynthError::io("create the folder", out))?;
    let folder = Folder { out: out.clone() };
    if let Some(manifest) = read(out)? {
        let wanted = ManifestOptions::of(options);
        if manifest.options != wanted || manifest.version != VERSION {
            return Err(SynthError::OtherOptions {
                folder: out.clone(),
                found: manifest.options.describe(manifest.version),
                wanted: wanted.describe(VERSION),
            });
        }
        check_files(out, &manifest)?;
        folder.remove_marker()?;
        return Ok(Opened::Finished(manifest));
    }
    if out.join(MARKER).exists() {
        folder.clear()?;
    } else {
        let mut entries = fs::read_dir(out).map_err(SynthError::io("read the folder", out))?;
        if entries.next().is_some() {
            return Err(SynthError::NotAGeneration(out.clone()));
        }
        let marker = out.join(MARKER);
        fs::write(&marker, b"").map_err(SynthError::io("create", marker))?;
    }
    for name in folder_names() {
        let path = folder.staging().join(name);
        fs::create_dir_all(&path).map_err(SynthError::io("create the folder", path))?;
    }
    Ok(Opened::Ready(folder))
}

impl Folder {
    pub(crate) fn staging(&self) -> PathBuf {
        self.out.join(STAGING)
    }

    /// Moves everything to its place and declares the generation finished.
    pub(crate) fn publish(&self, manifest: &Manifest) -> Result<(), SynthError> {
        for name in folder_names() {
            let (from, to) = (self.staging().join(name), self.out.join(name));
            fs::rename(&from, &to).map_err(SynthError::io("move into place", to))?;
        }
        fs::remove_dir(self.staging()).map_err(SynthError::io("remove", self.staging()))?;
        let path = self.out.join(MANIFEST);
        let draft = self.out.join(".generation.json.draft");
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|source| SynthError::Manifest { path: path.clone(), source })?;
        fs::File::create(&draft)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .map_err(SynthError::io("write", &draft))?;
        fs::rename(&draft, &path).map_err(SynthError::io("move into place", path))?;
        self.remove_marker()
    }

    fn remove_marker(&self) -> Result<(), SynthError> {
        let marker = self.out.join(MARKER);
        match fs::remove_file(&marker) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SynthError::io("remove", marker)(error)),
            _ => Ok(()),
        }
    }

    /// The folder was empty when the marker was set, so folders of these names are ours.
    fn clear(&self) -> Result<(), SynthError> {
        for name in folder_names().chain([STAGING]) {
            let path = self.out.join(name);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(SynthError::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn folder_names() -> impl Iterator<Item = &'static str> {
    Source::ALL.iter().map(|source| source.name()).chain([TRUTH])
}

fn read(out: &Path) -> Result<Option<Manifest>, SynthError> {
    let path = out.join(MANIFEST);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|source| SynthError::Manifest { path, source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SynthError::io("read", path)(error)),
    }
}

fn check_files(out: &Path, manifest: &Manifest) -> Result<(), SynthError> {
    for file in &manifest.files {
        let path = out.join(&file.path);
        if fs::metadata(&path).map(|found| found.len()).ok() != Some(file.bytes) {
            return Err(SynthError::Altered(path));
        }
    }
    Ok(())
}
