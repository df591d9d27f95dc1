"""banking77 with transformers + peft, batches padded to their longest row:
`minilm.py MODEL FOLDER EPOCHS`. The last line printed is the result."""

import csv
import json
import math
import sys
import time

import peft
import torch
import transformers

begun = time.perf_counter()
transformers.logging.set_verbosity_error()
torch.manual_seed(42)
BATCH, EVALUATION_BATCH = 32, 64
model_folder, folder, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
train, test = (list(csv.DictReader(open(f"{folder}/{part}.csv"))) for part in ("train", "test"))
labels = sorted({row["label"] for row in train + test})
number = {label: i for i, label in enumerate(labels)}
tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
model = transformers.AutoModelForSequenceClassification.from_pretrained(
    model_folder, num_labels=len(labels), dtype=torch.float32
)
config = peft.LoraConfig(
    task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["query", "value"]
)
model = peft.get_peft_model(model, config)


def encoded(rows):
    """Rows as token ids, not padded yet."""
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=128)
    return [
        {name: values[i] for name, values in ids.items()} | {"labels": number[row["label"]]}
        for i, row in enumerate(rows)
    ]


collate = transformers.DataCollatorWithPadding(tokenizer)
train, test = encoded(train), encoded(test)
trained = [p for p in model.parameters() if p.requires_grad]
steps = epochs * math.ceil(len(train) / BATCH)
optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
schedule = transformers.get_linear_schedule_with_warmup(optimizer, math.ceil(0.05 * steps), steps)
loaded = time.perf_counter()
model.train()
for _ in range(epochs):
    order = torch.randperm(len(train)).tolist()
    for start in range(0, len(order), BATCH):
        batch = collate([train[i] for i in order[start : start + BATCH]])
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
done = time.perf_counter()
model.eval()
right = 0
with torch.no_grad():
    for start in range(0, len(test), EVALUATION_BATCH):
        batch = collate(test[start : start + EVALUATION_BATCH])
        right += (model(**batch).logits.argmax(-1) == batch["labels"]).sum().item()
print(
    json.dumps(
        {
            "accuracy": right / len(test),
            "without_start_seconds": time.perf_counter() - loaded,
            "training_seconds": done - loaded,
            "steps": steps,
        }
    )
)
