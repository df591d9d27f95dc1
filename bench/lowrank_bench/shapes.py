"""The models: shapes that occur, with random weights, written once as Hugging Face folders that both
sides load, and the rows of tokens that both train on."""

import json
import random
from collections import namedtuple

from .processes import run

#: `attention` is how wide the queries of all layers together are, those that see all keys and those
#: that see what came before; `fields` are those of transformers' config.
Shape = namedtuple("Shape", "model_type task attention fields")
Attention = namedtuple("Attention", "full causal")

#: The special tokens, and no dropout: with it two first losses couldn't be compared.
COMMON = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def decoder(model_type, hidden, intermediate, layers, heads, kv_heads, vocabulary, tied, **more):
    """A decoder whose config has the names that most of them share."""
    fields = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
    }
    attention = Attention(0, layers * heads * more.get("head_dim", hidden // heads))
    return Shape(model_type, "CAUSAL_LM", attention, COMMON | fields | more)


SHAPES = {
    "135m": decoder("llama", 576, 1536, 30, 9, 3, 49152, True),
    "0.5b": decoder("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "1.1b": decoder("llama", 2048, 5632, 22, 32, 4, 32000, False),
}

#: What the other architectures are held against.
YARDSTICK = "135m"

#: Architectures beside the yardstick, like it in what a token is multiplied with.
ARCHITECTURES = {
    "gpt2": Shape(
        "gpt2",
        "CAUSAL_LM",
        Attention(0, 12 * 768),
        COMMON
        | {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
        | {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    ),
    "gpt_neox": Shape(
        "gpt_neox",
        "CAUSAL_LM",
        Attention(0, 12 * 768),
        COMMON
        | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"num_attention_heads": 12, "max_position_embeddings": 2048, "vocab_size": 50304},
    ),
    "gemma2": decoder(
        "gemma2", 640, 2560, 16, 4, 2, 49152, True, head_dim=256, query_pre_attn_scalar=256
    ),
    "bert": Shape(
        "bert",
        "SEQ_CLS",
        Attention(12 * 768, 0),
        COMMON
        | {"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 30522}
        | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    # Widths of v1.1's base, half its layers. The factor is such that logits are of the order of 1.
    "t5": Shape(
        "t5",
        "SEQ_2_SEQ_LM",
        Attention(2 * 6 * 768, 6 * 768),
        COMMON
        | {"d_model": 768, "d_ff": 2048, "d_kv": 64, "num_heads": 12, "num_layers": 6}
        | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "vocab_size": 32128}
        | {"decoder_start_token_id": 0, "dropout_rate": 0.0, "initializer_factor": 0.05},
    ),
    "qwen3_moe": decoder(
        "qwen3_moe", 512, 1536, 12, 8, 4, 49152, True, head_dim=64, moe_intermediate_size=384,
        num_experts=16, num_experts_per_tok=4, norm_topk_prob=True,
    ),
}
MODELS = SHAPES | ARCHITECTURES
DTYPES = {"f32": "float32", "bf16": "bfloat16"}

#: A task's class in transformers, its format in lowrank, and the columns that are read and learned.
Task = namedtuple("Task", "auto_class formatting input labels")
TASKS = {
    "CAUSAL_LM": Task("AutoModelForCausalLM", "text", "text", "text"),
    "SEQ_CLS": Task("AutoModelForSequenceClassification", "classification", "text", "label"),
    "SEQ_2_SEQ_LM": Task("AutoModelForSeq2SeqLM", "trl", "prompt", "completion"),
}

#: Words of the tokenizer, one token each; rows and prompts use no other ids.
WORDS = 4096
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
#: Rows of a data file; a longer run begins again.
ROWS = 64


def task_of(shape):
    """What a model is trained for."""
    return TASKS[MODELS[shape].task]


def model_folder(settings, shape, dtype):
    """The folder of a model, written if it isn't there yet."""
    folder = settings.cache / "models" / f"{shape}-{dtype}"
    if not all((folder / name).is_file() for name in ("sizes.json", "tokenizer.json")):
        print(f"writing {folder}", flush=True)
        # Always from the same f32 numbers: the bf16 model is the rounded f32 model.
        script = settings.workers / "write_model.py"
        question = MODELS[shape]._asdict() | task_of(shape)._asdict() | {"dtype": DTYPES[dtype]}
        run([settings.python, script, folder, json.dumps(question)])
        write_tokenizer(folder)
    return folder


def sizes(settings, shape, dtype):
    """Elements of the model, and of all matrices that a token is multiplied with; and the widths of
    what goes into them and comes out."""
    return json.loads((model_folder(settings, shape, dtype) / "sizes.json").read_text())


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


def data_folder(settings, tokens, shape):
    """A folder with `rows.jsonl`, rows of exactly so many words, and its `dataset_info.json`."""
    task = task_of(shape)
    folder = settings.cache / "data" / f"{tokens}-{task.formatting}"
    rows = folder / "rows.jsonl"
    if not rows.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        info = {"rows": {"file_name": "rows.jsonl", "formatting": task.formatting}}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        draw = random.Random(42)

        def words(count):
            ids = (draw.randrange(len(SPECIAL), WORDS) for _ in range(count))
            return " ".join(f"w{i}" for i in ids)

        partial = folder / "rows.partial"
        with partial.open("w") as file:
            for number in range(ROWS):
                row = {task.input: words(tokens)}
                if task.labels == "label":
                    row["label"] = f"w{number % 2}"
                elif task.labels != task.input:
                    row[task.labels] = words(tokens)
                file.write(json.dumps(row) + "\n")
        partial.rename(rows)
    return folder
