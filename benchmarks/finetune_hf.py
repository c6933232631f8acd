"""One fine-tuning by Hugging Face's Trainer for benchmarks/finetune_peers.py, in an environment of its own (transformers).

    python finetune_hf.py SYSTEM FOLDER      the folder holds task.json, train.jsonl (tokens and labels), model/

`hf`: as a user sets it, bf16, batches padded to their longest. `hf_grouped`: with texts of like length together.
`hf_grouped_compile`: that with torch_compile. Writes FOLDER/SYSTEM/metrics-0.jsonl, a line for each step, and in the end the
weights to FOLDER/SYSTEM/model.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers as hf


def main(system: str, folder: Path) -> None:
    task: dict[str, Any] = json.loads((folder / "task.json").read_text())
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    hf.set_seed(task["seed"])
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "model" / "tokenizer.json"), pad_token=task["pad_token"], padding_side="right"
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    pairs = task["kind"] == "seq2seq"
    kind = hf.AutoModelForSeq2SeqLM if pairs else hf.AutoModelForSequenceClassification
    model = kind.from_pretrained(folder / "model", dtype=torch.float32)
    arguments = hf.TrainingArguments(
        output_dir=str(folder / system / "out"), seed=task["seed"], use_cpu=True, bf16=True, num_train_epochs=task["epochs"],
        per_device_train_batch_size=task["batch"], optim="adamw_torch_fused", learning_rate=task["lr"],
        adam_beta1=task["betas"][0], adam_beta2=task["betas"][1], adam_epsilon=task["epsilon"],
        weight_decay=task["weight_decay"], warmup_steps=task["warmup"], max_grad_norm=task["clip"], save_strategy="no",
        report_to="none", disable_tqdm=True, logging_steps=100_000, torch_compile=system.endswith("compile"),
        train_sampling_strategy="group_by_length" if "grouped" in system else "random",
    )  # fmt: skip
    collator = hf.DataCollatorForSeq2Seq(tokenizer, model) if pairs else hf.DataCollatorWithPadding(tokenizer)
    log = (folder / system / "metrics-0.jsonl").open("w")

    class Write(hf.TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, *others: Any, **more: Any) -> None:
            # Its loss is not asked for: what it has learned is judged in the end.
            record = {"step": state.global_step, "loss": None, "elapsed_seconds": time.perf_counter()}
            log.write(json.dumps(record) + "\n")
            log.flush()

    trainer = hf.Trainer(
        model, arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer, callbacks=[Write()]
    )
    trainer.train()
    model.save_pretrained(folder / system / "model")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
