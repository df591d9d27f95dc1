//! Where a row's picture is: in a file, or in the row itself.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Where a row's picture is.
#[derive(Clone, PartialEq, Eq)]
pub enum PictureSource {
    /// In a file.
    File(PathBuf),
    /// In the row: what such a file would hold.
    Bytes(Arc<[u8]>),
}

impl PictureSource {
    /// What the file holds, or would.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        match self {
            Self::File(path) => std::fs::read(path).map(Cow::Owned),
            Self::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
        }
    }

    /// The bytes of a `data:` URL in base64; `None` if it isn't one.
    pub(crate) fn from_data_url(url: &str) -> Option<Self> {
        let (_, base64) = url.strip_prefix("data:")?.split_once(";base64,")?;
        STANDARD.decode(base64).ok().map(|bytes| Self::Bytes(bytes.into()))
    }
}

/// Bytes as a `data:` URL, for rows, whose values are JSON's.
pub(crate) fn data_url(bytes: &[u8]) -> String {
    format!("data:;base64,{}", STANDARD.encode(bytes))
}

impl fmt::Display for PictureSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Bytes(bytes) => write!(f, "{} bytes in the row", bytes.len()),
        }
    }
}

impl fmt::Debug for PictureSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
