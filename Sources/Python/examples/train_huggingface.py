"""A Hugging Face Trainer that resumes where it was, however it ended.

    python train_huggingface.py run.pcc --steps 100
"""

import argparse
import tempfile
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from pccheck.huggingface import CheckpointCallback


class Printing(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Prints the losses."""

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **_: Any
    ) -> None:
        """Called after every step."""
        if "loss" in logs:
            print(f"step {state.global_step - 1}: loss {float(logs['loss']):.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    set_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2,
        )
    )  # fmt: skip
    words = [torch.arange(start, start + 12) % 32 for start in range(64)]
    data = [{"input_ids": row, "labels": row} for row in words]
    # The checkpointer saves; the Trainer makes no folders.
    checkpoints = CheckpointCallback(options.file, policy=5)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=options.steps, save_strategy="no", logging_steps=1, report_to=[],
            learning_rate=1e-2, lr_scheduler_type="constant", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[checkpoints, Printing()])
        path = checkpoints.resume_folder()
        print("starts a new run" if path is None else "continues")
        trainer.train(resume_from_checkpoint=path)


if __name__ == "__main__":
    main()
