//! Pictures as a vision model reads them: resized, rescaled and normalized as the folder's
//! `preprocessor_config.json` says. Reference: transformers 5.24 `image_processing_backends.py`,
//! `PilBackend`.

mod resize;
mod source;

use std::path::Path;

use serde_json::{Map, Value};

pub use source::PictureSource;
pub(crate) use source::data_url;

use crate::error::{DataError, Result, describe};

/// OpenAI's CLIP statistics, by colour: what BLIP's processors assume.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// How pictures are prepared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageProcessor {
    /// Height and width to which they are brought.
    size: Option<[usize; 2]>,
    filter: resize::Filter,
    /// Factor of their bytes.
    rescale: Option<f64>,
    /// Mean and deviation of each colour.
    normalize: Option<[[f64; 3]; 2]>,
    /// Fewest and most pixels with which a picture comes to all this.
    pixels: [Option<usize>; 2],
}

/// A prepared picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// `[3, height, width]`, row by row.
    pub pixels: Vec<f32>,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json` of a folder, or the part of `processor_config.json` that
    /// newer folders have instead.
    ///
    /// # Errors
    /// When there is neither, a field is wrong, or it asks for something that isn't implemented.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        if path.is_file() {
            return Self::of(&path, &object(&path)?);
        }
        let path = folder.join("processor_config.json");
        if path.is_file() {
            let all = object(&path)?;
            if let Some(Value::Object(own)) = all.get("image_processor") {
                return Self::of(&path, own);
            }
        }
        let path = folder.join("preprocessor_config.json");
        let message = "there is no such file; pictures can't be prepared without it";
        Err(DataError::file(&path, message))
    }

    fn of(path: &Path, fields: &Map<String, Value>) -> Result<Self> {
        let wrong = |key: &str, must_be: &str| {
            let found = fields.get(key).map_or("missing".to_owned(), describe);
            DataError::file(path, format!("`{key}` is {found}; it must be {must_be}"))
        };
        let given = |key: &str| fields.get(key).filter(|value| !value.is_null());
        let switch = |key: &str, default: bool| match given(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| wrong(key, "true or false")),
        };
        for key in ["do_center_crop", "do_pad"] {
            if switch(key, false)? {
                return Err(wrong(key, "false: anything else isn't implemented"));
            }
        }
        let colours = |key: &str, default: [f64; 3]| -> Result<[f64; 3]> {
            let Some(value) = given(key) else { return Ok(default) };
            let numbers = value.as_array().map(|list| list.iter().filter_map(Value::as_f64));
            let numbers: Vec<f64> = numbers.into_iter().flatten().collect();
            <[f64; 3]>::try_from(numbers).map_err(|_| wrong(key, "a list of three numbers"))
        };
        let (mean, std) = (colours("image_mean", MEAN)?, colours("image_std", STD)?);
        if std.contains(&0.0) {
            return Err(wrong("image_std", "three numbers other than 0"));
        }
        let filter = match given("resample").map(Value::as_u64) {
            None | Some(Some(3)) => resize::Filter::Bicubic,
            Some(Some(2)) => resize::Filter::Bilinear,
            Some(_) => return Err(wrong("resample", "2 (bilinear) or 3 (bicubic)")),
        };
        let factor = match given("rescale_factor") {
            None => 1.0 / 255.0,
            Some(v) => v.as_f64().ok_or_else(|| wrong("rescale_factor", "a number"))?,
        };
        let size = switch("do_resize", true)?.then(|| size(given("size")));
        let must_be = "a number, or an object with `height` and `width`";
        let size = size.map(|size| size.ok_or_else(|| wrong("size", must_be))).transpose()?;
        Ok(Self {
            size,
            filter,
            rescale: switch("do_rescale", true)?.then_some(factor),
            normalize: switch("do_normalize", true)?.then_some([mean, std]),
            pixels: [None; 2],
        })
    }

    /// Brings pictures to at least and at most so many pixels before anything else, as
    /// LLaMA-Factory does (0.9.5 `data/mm_plugin.py`, `_preprocess_image`).
    #[must_use]
    pub fn with_pixels(self, fewest: Option<usize>, most: Option<usize>) -> Self {
        Self { pixels: [fewest, most], ..self }
    }

    /// Reads a picture (JPEG, PNG or WebP) and prepares it; what is transparent lies on white.
    ///
    /// # Errors
    /// When the file can't be read or isn't such a picture.
    pub fn read(&self, path: &Path) -> Result<Picture> {
        let bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
        self.decode(&bytes).map_err(|e| DataError::file(path, e))
    }

    /// Prepares the picture that a file's bytes are.
    pub(crate) fn decode(&self, bytes: &[u8]) -> image::ImageResult<Picture> {
        let picture = image::load_from_memory(bytes)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let rgb = match picture.color().has_alpha() {
            true => {
                picture.to_rgba8().as_chunks::<4>().0.iter().copied().flat_map(on_white).collect()
            }
            false => picture.to_rgb8().into_raw(),
        };
        let [fewest, most] = self.pixels;
        let shrunk = most.and_then(|most| scaled([height, width], most, usize::gt));
        let size = shrunk.unwrap_or([height, width]);
        let grown = fewest.and_then(|fewest| scaled(size, fewest, usize::lt));
        let (mut rgb, mut from) = (rgb, [height, width]);
        for to in [shrunk, grown].into_iter().flatten() {
            rgb = resize::resize(&rgb, from, to, resize::Filter::Bicubic);
            from = to;
        }
        Ok(self.prepare(&rgb, from))
    }

    /// Prepares pixels `[height, width, 3]`.
    fn prepare(&self, rgb: &[u8], [height, width]: [usize; 2]) -> Picture {
        let [new_height, new_width] = self.size.unwrap_or([height, width]);
        let resized = resize::resize(rgb, [height, width], [new_height, new_width], self.filter);
        let mut pixels = Vec::with_capacity(resized.len());
        for colour in 0..3 {
            let own = resized.iter().skip(colour).step_by(3);
            pixels.extend(own.map(|&byte| self.value(byte, colour)));
        }
        Picture { pixels, height: new_height, width: new_width }
    }

    fn value(&self, byte: u8, colour: usize) -> f32 {
        // Rounded to f32 between the steps, as arrays are in transformers.
        let value = self.rescale.map_or(f32::from(byte), |f| (f64::from(byte) * f) as f32);
        let Some([mean, std]) = self.normalize else { return value };
        (value - mean[colour] as f32) / std[colour] as f32
    }
}

/// The size at which a picture has `bound` pixels, if it has more or fewer (`beyond`).
fn scaled(
    [height, width]: [usize; 2],
    bound: usize,
    beyond: fn(&usize, &usize) -> bool,
) -> Option<[usize; 2]> {
    let pixels = height * width;
    let factor = (bound as f64 / pixels as f64).sqrt();
    let side = |side: usize| ((side as f64 * factor) as usize).max(1);
    beyond(&pixels, &bound).then(|| [side(height), side(width)])
}

/// What of a pixel is to be seen before white, in Pillow's arithmetic (`AlphaComposite.c`).
fn on_white([red, green, blue, alpha]: [u8; 4]) -> [u8; 3] {
    [red, green, blue].map(|colour| {
        let (alpha, colour) = (u32::from(alpha), u32::from(colour));
        let sum = (colour * alpha + 255 * (255 - alpha) + 128) << 7;
        // A division by 255.
        (((sum >> 8) + sum) >> 15) as u8
    })
}

/// Height and width; without the field BLIP's 384 by 384.
fn size(given: Option<&Value>) -> Option<[usize; 2]> {
    const LARGEST: u64 = 1 << 14;
    let number =
        |value: &Value| value.as_u64().filter(|n| (1..=LARGEST).contains(n)).map(|n| n as usize);
    match given {
        None => Some([384, 384]),
        Some(Value::Object(sides)) => {
            Some([number(sides.get("height")?)?, number(sides.get("width")?)?])
        }
        Some(side) => number(side).map(|side| [side, side]),
    }
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| DataError::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| DataError::Syntax {
        path: path.to_owned(),
        line: e.line(),
        message: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    include!("images/reference.rs");

    fn processor(json: &str) -> Result<ImageProcessor> {
        let fields: Map<String, Value> = serde_json::from_str(json).expect("JSON");
        ImageProcessor::of(Path::new("preprocessor_config.json"), &fields)
    }

    #[test] // numbers of transformers 5.24, `BlipImageProcessorPil`, with Pillow 13.0
    fn pictures_are_prepared_as_transformers_prepares_them() -> Result<()> {
        for (json, [height, width], expected) in REFERENCE {
            let rgb: Vec<u8> =
                (0..height * width * 3).map(|i| ((i * i * 7 + i * 13) % 251) as u8).collect();
            let picture = processor(json)?.prepare(&rgb, [height, width]);
            assert_eq!(picture.pixels.len(), expected.len(), "{json}");
            for (found, expected) in picture.pixels.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{json}: {found}, expected {expected}");
            }
        }
        Ok(())
    }

    #[test] // numbers of Pillow 13.0, `Image.alpha_composite` over white
    fn transparent_pictures_lie_on_white() {
        assert_eq!(on_white([10, 200, 90, 0]), [255, 255, 255]);
        assert_eq!(on_white([10, 200, 90, 1]), [254, 255, 254]);
        assert_eq!(on_white([13, 77, 254, 77]), [182, 201, 255]);
        assert_eq!(on_white([10, 201, 0, 128]), [132, 228, 127]);
        assert_eq!(on_white([3, 99, 171, 254]), [4, 100, 171]);
        assert_eq!(on_white([10, 200, 90, 255]), [10, 200, 90]);
    }

    #[test] // numbers by LLaMA-Factory's rule
    fn pictures_are_brought_to_fewer_or_more_pixels() {
        assert_eq!(scaled([16, 20], 100, usize::gt), Some([8, 11]));
        assert_eq!(scaled([7, 5], 100, usize::lt), Some([11, 8]));
        assert_eq!(scaled([1, 400], 10, usize::gt), Some([1, 63]));
        assert_eq!(scaled([10, 10], 100, usize::gt).or(scaled([10, 10], 100, usize::lt)), None);
    }

    #[test]
    fn what_isnt_implemented_is_named() {
        for (json, key) in [
            (r#"{"do_center_crop": true}"#, "do_center_crop"),
            (r#"{"resample": 1}"#, "resample"),
            (r#"{"size": {"shortest_edge": 224}}"#, "size"),
            (r#"{"image_std": [0, 1, 1]}"#, "image_std"),
            (r#"{"do_resize": 1}"#, "do_resize"),
        ] {
            let message = processor(json).expect_err(key).to_string();
            assert!(message.contains(&format!("`{key}`")), "{message}");
        }
    }
}
