"""Exported folders, loaded by Hugging Face's own ``from_pretrained``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign import run
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

import pccheck
import pccheck.torch as pcc
from pccheck.huggingface import CheckpointCallback


def made(kind: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    config: PretrainedConfig = GPT2Config(
        vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2)  # fmt: skip
    if kind != "gpt2":
        config = LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, tie_word_embeddings=kind == "tied")  # fmt: skip
    # Not `to`, which would also round the frequencies, which are not saved.
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("kind", ["gpt2", "tied", "untied"])
@pytest.mark.parametrize("shard_size", [None, "4 KiB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_pretrained_gives_the_same_outputs(
    path: Path, tmp_path: Path, kind: str, shard_size: str | None, dtype: torch.dtype
) -> None:
    model = made(kind, dtype)
    with pcc.Checkpointer(path) as ckpt:
        ckpt.save(3, model=model)
    model.config.save_pretrained(tmp_path / "config")
    options = ["--shard-size", shard_size] if shard_size else []
    out = tmp_path / "folder"
    run("convert", path, "-o", out, "--to", "hf", "--config", tmp_path / "config", *options)
    assert len(list(out.glob("*.safetensors"))) == 1 or shard_size
    loaded, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    words = torch.arange(16).reshape(2, 8)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(words).logits, model(words).logits)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_a_checkpoint_that_a_trainer_kept(path: Path, tmp_path: Path) -> None:
    network = made("tied", torch.float32)
    words = torch.arange(8)
    callback = CheckpointCallback(path, policy=1, keep=pccheck.Keep(every=3))
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=4, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    dataset = [{"input_ids": words, "labels": words}] * 16
    Trainer(network, arguments, train_dataset=dataset, callbacks=[callback]).train()
    (kept,) = (tmp_path / "run-kept").glob("*.pcc")
    assert kept.name == "step-000000003.pcc"
    network.config.save_pretrained(tmp_path / "config")
    out = tmp_path / "folder"
    run("convert", kept, "-o", out, "--to", "hf", "--config", tmp_path / "config")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    saved = pcc.load(kept)["model"]
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, saved[name]), name
