//! Which device a model lies on and its operations run on.

use std::{fmt, str::FromStr};

use candle_core::Device;

use crate::{Error, Result, compose_on_cpu};

/// A device by the name that users give it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// `cpu`: our kernels.
    #[default]
    Cpu,
    /// `cpu:composed`: the operations of a GPU on the processor, for tests of them.
    Composed,
    /// `cuda`, `cuda:1`: the NVIDIA GPU of this number.
    Cuda(usize),
}

/// What [`Placement`] is read from.
pub const PLACEMENTS: &str = "`cpu`, `cuda` or `cuda:N`";

impl FromStr for Placement {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let number = |digits: &str| digits.parse().ok().map(Self::Cuda);
        let found = match name {
            "cpu" => Some(Self::Cpu),
            "cpu:composed" => Some(Self::Composed),
            "cuda" => Some(Self::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(number),
        };
        found.ok_or_else(|| format!("must be {PLACEMENTS}"))
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Composed => f.write_str("cpu:composed"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl Placement {
    /// The device. This thread's operations are composed from here on if that was asked for.
    ///
    /// # Errors
    /// [`Error::Device`] says what a GPU needs that isn't there.
    pub fn open(self) -> Result<Device> {
        compose_on_cpu(self == Self::Composed);
        match self {
            Self::Cpu | Self::Composed => Ok(Device::Cpu),
            Self::Cuda(number) => {
                cuda(number).map_err(|what| Error::Device { name: self.to_string(), what })
            }
        }
    }
}

/// The most bytes that tensors took on the GPU so far, and the most that were kept for them, which is
/// more where tensors of other sizes take turns; `None` if there is no GPU in use.
pub fn gpu_memory() -> Option<[u64; 2]> {
    #[cfg(feature = "cuda")]
    return crate::cuda::memory();
    #[cfg(not(feature = "cuda"))]
    None
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> std::result::Result<Device, String> {
    let how = "`cargo build --release --features cuda`, as docs/cuda.md explains";
    Err(format!("this program was built without the feature `cuda`; build it with {how}"))
}

/// The driver answers with an error where there is no such GPU. Where there is no driver, the
/// libraries are missed before anything of theirs is called.
#[cfg(feature = "cuda")]
fn cuda(number: usize) -> std::result::Result<Device, String> {
    #[cfg(target_os = "linux")]
    libraries::load()?;
    crate::cuda::open(number).map_err(|error| {
        let text = error.to_string(); // with a backtrace below, if the environment asks for one
        format!("the driver refuses it: {}", text.lines().next().unwrap_or_default())
    })
}

/// The libraries of CUDA, which this program calls but need not be tied to: docs/build-cuda.sh makes
/// one that starts without them.
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod libraries {
    #![expect(unsafe_code, reason = "libraries are loaded by C functions")]

    use std::ffi::{CStr, c_int};

    /// A function of each library, and the names that its file may have. Those of a new version of
    /// CUDA come first; which one is called was decided when the program was built.
    const LIBRARIES: [(&CStr, [&CStr; 2]); 5] = [
        (c"cuInit", [c"libcuda.so.1", c"libcuda.so"]),
        (c"nvrtcVersion", [c"libnvrtc.so.13", c"libnvrtc.so.12"]),
        (c"cublasLtCreate", [c"libcublasLt.so.13", c"libcublasLt.so.12"]),
        (c"cublasCreate_v2", [c"libcublas.so.13", c"libcublas.so.12"]),
        (c"curandCreateGenerator", [c"libcurand.so.10", c"libcurand.so"]),
    ];

    /// Makes the libraries' functions known, so that the first call of each finds it.
    pub(super) fn load() -> Result<(), String> {
        for (function, names) in LIBRARIES {
            if !is_known(function) && !names.iter().any(|name| open(name)) {
                let name = names[0].to_string_lossy();
                let whose = match name.starts_with("libcuda.") {
                    true => "comes with NVIDIA's driver",
                    false => "comes with CUDA; LD_LIBRARY_PATH must name its folder",
                };
                return Err(format!("`{name}` can't be loaded; it {whose}"));
            }
        }
        Ok(())
    }

    fn is_known(function: &CStr) -> bool {
        // SAFETY: the name ends in a zero byte; nothing is called.
        !unsafe { libc::dlsym(libc::RTLD_DEFAULT, function.as_ptr()) }.is_null()
    }

    fn open(name: &CStr) -> bool {
        const HOW: c_int = libc::RTLD_LAZY | libc::RTLD_GLOBAL;
        // SAFETY: the name ends in a zero byte; libraries of NVIDIA run no code but their own
        // initialization when they are loaded, and stay loaded.
        !unsafe { libc::dlopen(name.as_ptr(), HOW) }.is_null()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (name, place) in [
            ("cpu", Placement::Cpu),
            ("cpu:composed", Placement::Composed),
            ("cuda", Placement::Cuda(0)),
            ("cuda:3", Placement::Cuda(3)),
        ] {
            assert_eq!(name.parse(), Ok(place));
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            assert!(name.parse::<Placement>().is_err());
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_gpu_without_the_feature_is_an_error_that_says_how_to_build() {
        let error = Placement::Cuda(1).open().map(drop).expect_err("no GPU");
        let text = error.to_string();
        assert!(text.contains("cuda:1") && text.contains("--features cuda"), "{text}");
    }
}
