//! `dataset_info.json`: data sets by name, as LLaMA-Factory describes them, with formats of our
//! own for tasks it doesn't have. Reference: LLaMA-Factory 0.9.5
//! `data/parser.py`.
//!
//! As there, once an entry has `columns` (or `tags`), those it doesn't name are absent rather than
//! at their defaults. Only the formats `alpaca`, `sharegpt` and `openai` have that trap.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::error::{DataError, Result, describe, nearest};
use crate::formats::Formatting;
use crate::options::DataOptions;

const SOURCES: [&str; 5] =
    ["hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"];
const KEYS: [&str; 11] = [
    "file_name",
    "file_sha1",
    "formatting",
    "ranking",
    "subset",
    "folder",
    "split",
    "num_samples",
    "columns",
    "tags",
    "labels",
];

/// Columns by role, with the defaults of LLaMA-Factory and of our own formats.
const COLUMNS: [(&str, Option<&str>); 24] = [
    ("prompt", Some("instruction")),
    ("query", Some("input")),
    ("response", Some("output")),
    ("history", None),
    ("messages", Some("conversations")),
    ("system", None),
    ("tools", None),
    ("images", None),
    ("videos", None),
    ("audios", None),
    ("chosen", None),
    ("rejected", None),
    ("kto_tag", None),
    ("text", None),
    ("text_pair", None),
    ("label", None),
    ("tokens", None),
    ("tags", None),
    ("question", None),
    ("context", None),
    ("answers", None),
    ("completion", None),
    ("id", None),
    ("boxes", None),
];
const TAGS: [(&str, Option<&str>); 7] = [
    ("role_tag", Some("from")),
    ("content_tag", Some("value")),
    ("user_tag", Some("human")),
    ("assistant_tag", Some("gpt")),
    ("observation_tag", Some("observation")),
    ("function_tag", Some("function_call")),
    ("system_tag", Some("system")),
];

/// Names by role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    by_role: IndexMap<&'static str, String>,
    stated: Vec<&'static str>,
}

impl Names {
    /// The name that plays `role`, if any.
    #[must_use]
    pub fn get(&self, role: &str) -> Option<&str> {
        self.by_role.get(role).map(String::as_str)
    }

    fn defaults(known: &[(&'static str, Option<&'static str>)]) -> Self {
        let by_role = known.iter().filter_map(|(k, v)| Some((*k, (*v)?.to_owned()))).collect();
        Self { by_role, stated: Vec::new() }
    }

    /// The roles that the entry itself names.
    pub(crate) fn stated(&self) -> &[&'static str] {
        &self.stated
    }

    /// The columns that a format of ours takes unless told otherwise.
    #[must_use]
    pub(crate) fn of(pairs: &[(&'static str, &str)]) -> Self {
        let by_role = pairs.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        Self { by_role, stated: Vec::new() }
    }

    /// The same with another name for one role.
    #[must_use]
    pub(crate) fn with(mut self, role: &'static str, name: &str) -> Self {
        self.by_role.insert(role, name.to_owned());
        self
    }
}

/// One data set: where it lies and how its rows are read.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetEntry {
    /// Its name in `dataset_info.json`, or the path it was given as.
    pub name: String,
    /// A file, or a folder of files of one kind.
    pub path: PathBuf,
    /// What the rows look like; none for a bare file, whose first row tells.
    pub formatting: Option<Formatting>,
    /// Rows are pairs of a chosen and a rejected answer.
    pub ranking: bool,
    /// Take this many rows at random, repeating some if there are fewer.
    pub num_samples: Option<usize>,
    /// Column names by role.
    pub columns: Names,
    /// Role and content keys of a message, and the role values.
    pub tags: Names,
    /// The label names of a classification set, in the order of their ids.
    pub labels: Option<Vec<String>>,
    /// Where the paths of pictures begin: the first folder that has the file.
    pub media_dirs: Vec<PathBuf>,
}

impl DatasetEntry {
    /// A data set that is just a file; its first row decides the format.
    #[must_use]
    pub fn from_path(path: &Path) -> Self {
        Self {
            name: path.display().to_string(),
            path: path.to_owned(),
            formatting: None,
            ranking: false,
            num_samples: None,
            columns: Names::default(),
            tags: Names::defaults(&TAGS),
            labels: None,
            media_dirs: folder_of(path),
        }
    }
}

/// The folder of a file, or the folder itself.
fn folder_of(path: &Path) -> Vec<PathBuf> {
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    folder.map(Path::to_owned).into_iter().collect()
}

/// The entry `name` of `dataset_dir/dataset_info.json` or of the recipe's own `dataset_info`; or
/// a file with that path.
/// # Errors
/// A missing or malformed `dataset_info.json`, an unknown name or key, a source that would need
/// the network.
pub fn find(options: &DataOptions, name: &str) -> Result<DatasetEntry> {
    let mut entry = described(options, name)?;
    let media_dir = options.media_dir.as_ref().unwrap_or(&options.dataset_dir);
    entry.media_dirs = [vec![media_dir.clone()], folder_of(&entry.path)].concat();
    entry.media_dirs.dedup();
    Ok(entry)
}

fn described(options: &DataOptions, name: &str) -> Result<DatasetEntry> {
    let folder = options.dataset_dir.as_path();
    let remote = folder.to_str().is_some_and(|f| f == "ONLINE" || f.starts_with("REMOTE:"));
    if remote {
        let message = "`ONLINE` and `REMOTE:` need the network, which lowrank never uses; \
                       download the data and name its folder"
            .to_owned();
        return Err(DataError::Option { option: "dataset_dir", message });
    }
    let path = folder.join("dataset_info.json");
    let read;
    let info = match &options.dataset_info {
        Some(info) => info,
        None if !path.is_file() => {
            return as_path(folder, name).ok_or(DataError::NoDatasetInfo { path });
        }
        None => {
            read = read_info(&path)?;
            &read
        }
    };
    match info.get(name) {
        Some(entry) => Reader { path: &path, name }.entry(folder, entry),
        None => as_path(folder, name).ok_or_else(|| DataError::UnknownDataset {
            path,
            name: name.to_owned(),
            nearest: nearest(name, info.keys().map(String::as_str)),
        }),
    }
}

fn read_info(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| DataError::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| DataError::Syntax {
        path: path.to_owned(),
        line: e.line(),
        message: e.to_string(),
    })
}

/// `name` as a path, from the working folder or from `dataset_dir`.
fn as_path(dataset_dir: &Path, name: &str) -> Option<DatasetEntry> {
    let plain = PathBuf::from(name);
    let found = [plain.clone(), dataset_dir.join(&plain)].into_iter().find(|p| p.exists());
    let has_name = !name.is_empty() && plain.extension().is_some();
    found.filter(|p| has_name || p.is_dir()).map(|p| DatasetEntry::from_path(&p))
}

struct Reader<'a> {
    path: &'a Path,
    name: &'a str,
}

impl Reader<'_> {
    fn entry(&self, dataset_dir: &Path, value: &Value) -> Result<DatasetEntry> {
        let Value::Object(entry) = value else {
            return Err(self.bad("the entry", value, "an object"));
        };
        let known: Vec<_> = KEYS.into_iter().chain(SOURCES).collect();
        self.check_keys("", entry, &known)?;
        // A hub's copy and a local one may both be named; the local one can be read.
        let remote = SOURCES.into_iter().find(|k| entry.contains_key(*k));
        if let Some(key) = remote.filter(|_| !entry.contains_key("file_name")) {
            return Err(DataError::RemoteSource {
                path: self.path.to_owned(),
                dataset: self.name.to_owned(),
                key: key.to_owned(),
            });
        }
        if let Some(split) = self.text(entry, "split")?.filter(|s| s != "train") {
            return Err(self.bad("split", &Value::from(split), "`train`, all that a file has"));
        }
        let file = self.text(entry, "file_name")?;
        let file = file.ok_or_else(|| self.bad("file_name", &Value::Null, "a file or folder"))?;
        let formatting = self.formatting(entry)?;
        let own = formatting.own_columns();
        Ok(DatasetEntry {
            name: self.name.to_owned(),
            path: dataset_dir.join(file),
            formatting: Some(formatting),
            ranking: self.flag(entry, "ranking")?,
            num_samples: self.count(entry, "num_samples")?,
            columns: self.names(entry, "columns", &COLUMNS, own)?,
            tags: self.names(entry, "tags", &TAGS, formatting.default_tags(entry))?,
            labels: self.labels(entry)?,
            media_dirs: Vec::new(),
        })
    }

    fn formatting(&self, entry: &Map<String, Value>) -> Result<Formatting> {
        let Some(name) = self.text(entry, "formatting")? else { return Ok(Formatting::Alpaca) };
        Formatting::from_name(&name)
            .ok_or_else(|| self.bad("formatting", &Value::from(name), Formatting::NAMES))
    }

    /// `columns` or `tags`. A format of ours keeps the defaults `own` for what isn't named.
    fn names(
        &self,
        entry: &Map<String, Value>,
        key: &str,
        known: &[(&'static str, Option<&'static str>)],
        own: Option<Names>,
    ) -> Result<Names> {
        let given = match entry.get(key) {
            None | Some(Value::Null) => {
                return Ok(own.unwrap_or_else(|| Names::defaults(known)));
            }
            Some(Value::Object(given)) => given,
            Some(other) => return Err(self.bad(key, other, "an object")),
        };
        let roles: Vec<_> = known.iter().map(|(role, _)| *role).collect();
        self.check_keys(&format!("{key}."), given, &roles)?;
        let mut names = own.unwrap_or_default();
        for role in roles {
            match given.get(role) {
                None | Some(Value::Null) => {}
                Some(Value::String(name)) => {
                    names.by_role.insert(role, name.clone());
                    names.stated.push(role);
                }
                Some(other) => {
                    return Err(self.bad(&format!("{key}.{role}"), other, "a name"));
                }
            }
        }
        Ok(names)
    }

    fn labels(&self, entry: &Map<String, Value>) -> Result<Option<Vec<String>>> {
        let Some(value) = entry.get("labels").filter(|v| !v.is_null()) else { return Ok(None) };
        let wrong = || self.bad("labels", value, "a list of names");
        let list = value.as_array().ok_or_else(wrong)?;
        let name = |v: &Value| v.as_str().map(str::to_owned).ok_or_else(wrong);
        list.iter().map(name).collect::<Result<_>>().map(Some)
    }

    fn check_keys(&self, prefix: &str, map: &Map<String, Value>, known: &[&str]) -> Result<()> {
        let Some(key) = map.keys().find(|k| !known.contains(&k.as_str())) else { return Ok(()) };
        Err(DataError::UnknownKey {
            path: self.path.to_owned(),
            dataset: self.name.to_owned(),
            key: format!("{prefix}{key}"),
            nearest: nearest(key, known.iter().copied()),
        })
    }

    fn text(&self, entry: &Map<String, Value>, key: &str) -> Result<Option<String>> {
        match entry.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.bad(key, other, "a text")),
        }
    }

    fn flag(&self, entry: &Map<String, Value>, key: &str) -> Result<bool> {
        match entry.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.bad(key, other, "true or false")),
        }
    }

    fn count(&self, entry: &Map<String, Value>, key: &str) -> Result<Option<usize>> {
        let Some(value) = entry.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        count.map(Some).ok_or_else(|| self.bad(key, value, "a count of rows"))
    }

    fn bad(&self, key: &str, found: &Value, must_be: &'static str) -> DataError {
        DataError::BadEntry {
            path: self.path.to_owned(),
            dataset: self.name.to_owned(),
            key: key.to_owned(),
            found: describe(found),
            must_be,
        }
    }
}
