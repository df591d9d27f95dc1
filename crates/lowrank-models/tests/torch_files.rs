//! `pytorch_model.bin` and `adapter_model.bin` in both of torch's formats hold what the same
//! safetensors file does, and nothing in one is executed. The files are written by
//! fixtures/make_torch_files.py.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors::Load};
use lowrank_models::{Model, OpenOptions, PeftModel, Weights};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch_files").join(name)
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes)?;
    }
    Ok(folder)
}

fn single(bytes: &[u8]) -> Result<TempDir> {
    folder(&[("pytorch_model.bin", bytes)])
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// The message of opening a folder that can't be opened.
fn said(folder: &TempDir) -> Result<String> {
    let error = Weights::open(folder.path()).err().ok_or("it was opened")?.to_string();
    Ok(error.replace(&folder.path().display().to_string(), "DIR"))
}

#[test]
fn both_formats_hold_the_numbers_of_the_safetensors_file() -> Result {
    let expected = std::fs::read(fixture("expected.safetensors"))?;
    let expected = SafeTensors::deserialize(&expected)?;
    for file in ["zip.bin", "older.bin"] {
        let folder = single(&std::fs::read(fixture(file))?)?;
        let weights = Weights::open(folder.path())?;
        let mut names: Vec<&str> = expected.names();
        names.sort_unstable();
        assert_eq!(weights.names().collect::<Vec<_>>(), names, "{file}");
        for (name, tensor) in expected.tensors() {
            let read = weights.get(&name, tensor.shape());
            if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let error = read.err().ok_or("a tensor of whole numbers was read")?.to_string();
                assert!(error.contains("f32, bf16 and f16 are read"), "{error}");
                continue;
            }
            let read = read?.to_tensor()?;
            let whole = tensor.load(&Device::Cpu)?;
            assert_eq!(read.dtype(), whole.dtype(), "{file} {name}");
            assert_eq!(numbers(&read)?, numbers(&whole)?, "{file} {name}");
        }
    }
    Ok(())
}

#[test]
fn a_name_that_tensors_do_not_need_is_an_error_and_nothing_is_executed() -> Result {
    for file in ["evil.bin", "evil_older.bin", "evil_bare.bin"] {
        let folder = single(&std::fs::read(fixture(file))?)?;
        let said = said(&folder)?;
        let expected = "asks for the Python name `posix.system`, which is none that tensors are \
                        made of; nothing was executed and nothing is loaded";
        assert!(said.contains(expected), "{file}: {said}");
        assert!(!Path::new("executed").exists());
    }
    Ok(())
}

#[test]
fn errors_say_what_is_wrong() -> Result {
    let zip = std::fs::read(fixture("zip.bin"))?;
    let older = std::fs::read(fixture("older.bin"))?;
    let cases: [(Vec<u8>, &str); 7] = [
        (std::fs::read(fixture("nested.bin"))?, "isn't a dictionary of tensors: `epoch`"),
        (std::fs::read(fixture("deflated.bin"))?, "compressed or encrypted"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "a pointer of Git LFS"),
        (b"PK\x03\x04 and so on".to_vec(), "DIR/pytorch_model.bin"),
        (b"text".to_vec(), "is neither of the two formats that torch writes"),
        (zip[..zip.len() / 2].to_vec(), "DIR/pytorch_model.bin"),
        (older[..older.len() - 8].to_vec(), "storage"),
    ];
    for (bytes, expected) in cases {
        let said = said(&single(&bytes)?)?;
        assert!(said.contains(expected), "{said}\nexpected: {expected}");
    }
    let empty = folder(&[])?;
    assert!(said(&empty)?.contains("has no `model.safetensors`; nor has it shards"));
    Ok(())
}

#[test]
fn shards_are_found_by_their_index_and_safetensors_come_first() -> Result {
    let zip = std::fs::read(fixture("zip.bin"))?;
    let index = |file: &str| {
        format!(r#"{{"weight_map": {{"embed.weight": "{file}", "scalar": "{file}"}}}}"#)
    };
    let name = "pytorch_model-00001-of-00001.bin";
    let index_name = "pytorch_model.bin.index.json";
    let sharded = folder(&[(name, &zip), (index_name, index(name).as_bytes())])?;
    assert!(Weights::open(sharded.path())?.has("head.weight"));
    let outside = folder(&[(name, &zip), (index_name, index("../x.bin").as_bytes())])?;
    assert!(said(&outside)?.ends_with("shard name `../x.bin` isn't a plain `*.bin` file name"));
    let other = folder(&[(name, &zip), (index_name, index("x.safetensors").as_bytes())])?;
    assert!(said(&other)?.contains("isn't a plain `*.bin` file name"));
    let expected = std::fs::read(fixture("expected.safetensors"))?;
    let evil = std::fs::read(fixture("evil.bin"))?;
    let both = folder(&[("pytorch_model.bin", &evil), ("model.safetensors", &expected)])?;
    assert!(Weights::open(both.path())?.has("embed.weight"));
    Ok(())
}

/// An adapter that an older version of PEFT wrote, some of its tensors transposed in their storage.
#[test]
fn an_adapter_in_a_pickle_is_the_one_in_safetensors() -> Result {
    let own = fixture("../llama");
    let load = |folder: &Path| -> Result<PeftModel> {
        let model = Model::open(&own, &OpenOptions::default())?;
        Ok(PeftModel::from_pretrained(model, folder)?)
    };
    let config = std::fs::read(own.join("adapter_config.json"))?;
    let older = |bytes: &[u8]| {
        folder(&[("adapter_config.json", config.as_slice()), ("adapter_model.bin", bytes)])
    };
    let folder = older(&std::fs::read(fixture("llama_adapter.bin"))?)?;
    let (read, expected) = (load(folder.path())?, load(&own)?);
    assert_eq!(read.adapter_files("default")?, expected.adapter_files("default")?);
    for (name, said) in [
        ("evil.bin", "the Python name `posix.system`"),
        ("nested.bin", "isn't a dictionary of tensors"),
        ("gpt2_own.bin", "doesn't start with `base_model.model.`"),
    ] {
        let folder = older(&std::fs::read(fixture(name))?)?;
        let error = load(folder.path()).err().ok_or("it was loaded")?.to_string();
        assert!(error.contains(said) && error.contains("adapter_model.bin"), "{error}");
    }
    std::fs::remove_file(folder.path().join("adapter_model.bin"))?;
    let error = load(folder.path()).err().ok_or("it was loaded")?.to_string();
    assert!(
        error.ends_with("it has no `adapter_model.safetensors`; nor has it an `adapter_model.bin`")
    );
    Ok(())
}

/// A folder as models with code of their own have it: `auto_map` names the code, `model_type` is
/// what counts.
#[test]
fn a_folder_with_remote_code_opens_by_its_model_type() -> Result {
    let own = fixture("../gpt2_own");
    let config = std::fs::read_to_string(own.join("config.json"))?;
    let mut config: serde_json::Value = serde_json::from_str(&config)?;
    config["auto_map"] = serde_json::json!({"AutoModelForCausalLM": "modeling_own.Own"});
    let bin = std::fs::read(fixture("gpt2_own.bin"))?;
    let files = [("config.json", config.to_string().into_bytes()), ("pytorch_model.bin", bin)];
    let files = files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice()));
    let folder = folder(&files)?;
    let (read, expected) = (
        Model::open(folder.path(), &OpenOptions::default())?,
        Model::open(&own, &OpenOptions::default())?,
    );
    assert_eq!(read.modules.tensors().count(), expected.modules.tensors().count());
    for (a, b) in read.modules.tensors().zip(expected.modules.tensors()) {
        assert_eq!(a.name(), b.name());
        assert_eq!(a.tied_to(), b.tied_to());
        assert_eq!(numbers(&a.weight().to_tensor()?)?, numbers(&b.weight().to_tensor()?)?);
    }
    config["model_type"] = "gpt-2".into();
    std::fs::write(folder.path().join("config.json"), config.to_string())?;
    let error = Model::open(folder.path(), &OpenOptions::default());
    let said = error.err().ok_or("an unknown model was opened")?.to_string();
    let expected = "unknown `model_type` `gpt-2`; did you mean `gpt2`?; known: bart, bert,";
    assert!(said.contains(expected), "{said}");
    Ok(())
}

/// Pickles that would have a reader copy, recurse or reserve without end.
#[test]
fn hostile_pickles_end_quickly() -> Result {
    const OLDER: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let doubling: Vec<u8> =
        [b"\x80\x02)q\x00".as_slice(), &b"h\x00h\x00\x86q\x00".repeat(64), b"h\x00."].concat();
    let nested: Vec<u8> = [b"\x80\x02)".as_slice(), &[0x85; 1 << 20], b"."].concat();
    let marks: Vec<u8> = [b"\x80\x02".as_slice(), &[b'('; 1 << 20], b"t."].concat();
    let long_text = b"\x80\x02X\xff\xff\xff\xff.".to_vec();
    let long_number = [b"\x80\x02\x8a\xff".as_slice(), &[1; 255], b"."].concat();
    let recursive = b"\x80\x02]q\x00h\x00a.".to_vec();
    for pickle in [doubling, nested, marks, long_text, long_number, recursive] {
        let bare = single(&pickle)?;
        assert!(said(&bare)?.contains("DIR/pytorch_model.bin"));
        let older = single(&[OLDER, b"K\x01.", b"}.", &pickle].concat())?;
        assert!(said(&older)?.contains("DIR/pytorch_model.bin"));
    }
    Ok(())
}

fn read_damaged(file: &str, at: usize, bytes: &[u8], cut: bool) -> Result {
    let mut whole = std::fs::read(fixture(file))?;
    let at = at % whole.len();
    if cut {
        whole.truncate(at);
    }
    for (slot, byte) in whole.iter_mut().skip(at).zip(bytes) {
        *slot = *byte;
    }
    let folder = single(&whole)?;
    if let Ok(weights) = Weights::open(folder.path()) {
        for name in weights.names() {
            for shape in [&[5, 4][..], &[6], &[7, 3], &[4, 2, 3], &[]] {
                let _ = weights.get(name, shape);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_do_not_panic(
        file in prop::sample::select(vec!["zip.bin", "older.bin"]),
        at in any::<usize>(),
        bytes in prop::collection::vec(any::<u8>(), 1..6),
        cut in any::<bool>(),
    ) {
        read_damaged(file, at, &bytes, cut).map_err(|e| TestCaseError::fail(e.to_string()))?;
    }
}
