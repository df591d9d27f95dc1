"""The models: shapes that occur, with random weights, written once as Hugging Face folders that both
sides load, and the rows of tokens that both train on."""

import json
import random
from collections import namedtuple

from .processes import run

Shape = namedtuple("Shape", "model_type hidden intermediate layers heads kv_heads vocabulary tied")

SHAPES = {
    "135m": Shape("llama", 576, 1536, 30, 9, 3, 49152, True),
    "0.5b": Shape("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "1.1b": Shape("llama", 2048, 5632, 22, 32, 4, 32000, False),
}
DTYPES = {"f32": "float32", "bf16": "bfloat16"}

#: Words of the tokenizer, one token each; rows and prompts use no other ids.
WORDS = 4096
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
#: Rows of a data file; a longer run begins again.
ROWS = 64


def matrices(shape):
    """Elements of all matrices that a token is multiplied with, the output layer among them."""
    s = SHAPES[shape]
    key_value = s.hidden // s.heads * s.kv_heads
    layer = s.hidden * (2 * s.hidden + 2 * key_value + 3 * s.intermediate)
    return s.layers * layer + s.vocabulary * s.hidden


def elements(shape):
    """All elements of the model's large tensors; an embedding that isn't tied counts too."""
    s = SHAPES[shape]
    return matrices(shape) + (0 if s.tied else s.vocabulary * s.hidden)


def model_folder(settings, shape, dtype):
    """The folder of a model, written if it isn't there yet."""
    folder = settings.cache / "models" / f"{shape}-{dtype}"
    if not (folder / "tokenizer.json").is_file():
        print(f"writing {folder}", flush=True)
        # Always from the same f32 numbers: the bf16 model is the rounded f32 model.
        script = settings.workers / "write_model.py"
        arguments = json.dumps({**SHAPES[shape]._asdict(), "dtype": DTYPES[dtype]})
        run([settings.python, script, folder, arguments])
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder):
    """A tokenizer with a token for each word, so that rows have as many tokens as words."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    vocabulary.update({f"w{i}": i for i in range(len(SPECIAL), WORDS)})
    special = [
        {"id": i, "content": token, "special": True, "normalized": False}
        | {key: False for key in ("single_word", "lstrip", "rstrip")}
        for i, token in enumerate(SPECIAL)
    ]
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {f"{name}_token": t for name, t in zip(("pad", "bos", "eos", "unk"), SPECIAL)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    # Last, and in one piece: its presence says that the folder is complete.
    partial = folder / "tokenizer.json.partial"
    partial.write_text(json.dumps(tokenizer))
    partial.rename(folder / "tokenizer.json")


def data_folder(settings, tokens):
    """A folder with `rows.jsonl`, each row of exactly so many words, and its `dataset_info.json`."""
    folder = settings.cache / "data" / str(tokens)
    rows = folder / "rows.jsonl"
    if not rows.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        info = {"rows": {"file_name": "rows.jsonl", "formatting": "text"}}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        draw = random.Random(42)
        partial = folder / "rows.partial"
        with partial.open("w") as file:
            for _ in range(ROWS):
                ids = (draw.randrange(len(SPECIAL), WORDS) for _ in range(tokens))
                file.write(json.dumps({"text": " ".join(f"w{i}" for i in ids)}) + "\n")
        partial.rename(rows)
    return folder
