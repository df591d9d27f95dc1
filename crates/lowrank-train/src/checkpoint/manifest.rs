//! `manifest.json`: what a checkpoint must contain, to the bit.
//!
//! The manifest is written last and in one canonical form. Reading it back checks that its bytes
//! are that form, so that no bit of the checkpoint, the manifest's own included, can change
//! unnoticed.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::step_of;
use crate::durable::{DurableError, DurableFs};

/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";

/// The version of the layout that is written; newer ones are refused.
pub const FORMAT_VERSION: u32 = 1;

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum Damage {
    #[error(transparent)]
    Io(DurableError),
    #[error("it has no `{MANIFEST}`, so it was never finished or comes from another program")]
    NoManifest,
    #[error("`{MANIFEST}` is damaged: {reason}")]
    Manifest { reason: String },
    #[error("it has format version {found}, and this program reads 1 to {FORMAT_VERSION}")]
    Version { found: u32 },
    #[error("its manifest is that of step {found}, which its name denies")]
    Step { found: u64 },
    #[error("`{file}` is missing")]
    Missing { file: String },
    #[error("`{file}` is not in its manifest; if you put it there, move it away")]
    Extra { file: String },
    #[error("`{file}` has {found} bytes instead of {expected}")]
    Size { file: String, expected: u64, found: u64 },
    #[error("the contents of `{file}` have changed: the hash is not the manifest's")]
    Hash { file: String },
}

/// The list of what a checkpoint holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format_version: u32,
    step: u64,
    files: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    size: u64,
    blake3: String,
}

/// Read before the rest, so that a newer version is recognised whatever else is in it.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

impl Manifest {
    /// The manifest of a checkpoint that holds `files`.
    pub(super) fn of(step: u64, files: &[(&str, &[u8])]) -> Self {
        let entry = |(name, bytes): &(&str, &[u8])| Entry {
            name: (*name).to_owned(),
            size: bytes.len() as u64,
            blake3: hash(bytes),
        };
        Self { format_version: FORMAT_VERSION, step, files: files.iter().map(entry).collect() }
    }

    /// The one form in which this manifest is written.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let files = self.files.iter().map(|Entry { name, size, blake3 }| {
            // `Value` displays as JSON, which is what quotes and escapes the name.
            let name = serde_json::Value::from(name.as_str());
            format!("\n    {{\"name\": {name}, \"size\": {size}, \"blake3\": \"{blake3}\"}}")
        });
        format!(
            "{{\n  \"format_version\": {},\n  \"step\": {},\n  \"files\": [{}\n  ]\n}}\n",
            self.format_version,
            self.step,
            files.collect::<Vec<_>>().join(","),
        )
        .into_bytes()
    }

    fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let reason = |error: serde_json::Error| Damage::Manifest { reason: error.to_string() };
        let Version { format_version } = serde_json::from_slice(bytes).map_err(reason)?;
        if !(1..=FORMAT_VERSION).contains(&format_version) {
            return Err(Damage::Version { found: format_version });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(reason)?;
        if manifest.to_bytes() != bytes {
            let reason = "it is not in the form in which it was written".to_owned();
            return Err(Damage::Manifest { reason });
        }
        manifest.check_names()?;
        Ok(manifest)
    }

    fn check_names(&self) -> Result<(), Damage> {
        let mut seen = BTreeSet::from([MANIFEST]);
        match self.files.iter().find(|file| !is_plain_name(&file.name) || !seen.insert(&file.name))
        {
            Some(Entry { name, .. }) => {
                let reason = format!("`{name}` is not a plain file name or occurs twice");
                Err(Damage::Manifest { reason })
            }
            None => Ok(()),
        }
    }
}

/// Reads the whole checkpoint in `folder`, hands each file to `keep` and returns the step.
pub(super) fn verify(
    fs: &dyn DurableFs,
    folder: &Path,
    mut keep: impl FnMut(&str, Vec<u8>),
) -> Result<u64, Damage> {
    let names = fs.list(folder).map_err(Damage::Io)?;
    let manifest = match fs.read(&folder.join(MANIFEST)) {
        Ok(bytes) => Manifest::parse(&bytes)?,
        Err(error) if error.is_not_found() => return Err(Damage::NoManifest),
        Err(error) => return Err(Damage::Io(error)),
    };
    let named = folder.file_name().and_then(|name| step_of(name.to_str()?));
    if named.is_some_and(|step| step != manifest.step) {
        return Err(Damage::Step { found: manifest.step });
    }
    let listed = |name: &str| name == MANIFEST || manifest.files.iter().any(|f| f.name == name);
    if let Some(extra) = names.iter().find(|name| !name.to_str().is_some_and(listed)) {
        return Err(Damage::Extra { file: extra.to_string_lossy().into_owned() });
    }
    for entry in &manifest.files {
        keep(&entry.name, entry.read(fs, folder)?);
    }
    Ok(manifest.step)
}

impl Entry {
    fn read(&self, fs: &dyn DurableFs, folder: &Path) -> Result<Vec<u8>, Damage> {
        let file = self.name.clone();
        let bytes = match fs.read(&folder.join(&self.name)) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Err(Damage::Missing { file }),
            Err(error) => return Err(Damage::Io(error)),
        };
        let found = bytes.len() as u64;
        if found != self.size {
            return Err(Damage::Size { file, expected: self.size, found });
        }
        if hash(&bytes) != self.blake3 {
            return Err(Damage::Hash { file });
        }
        Ok(bytes)
    }
}

/// Whether `name` is a file name alone, without a folder, on every system.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let only = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    only && !name.contains(['/', '\\', ':', '\0'])
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
