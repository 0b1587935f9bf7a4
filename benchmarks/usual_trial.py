"""One trial the usual way: transformers, plain PEFT and PyTorch's AdamW on padded batches.

    python benchmarks/usual_trial.py JOB.json RESULT.json

``time_to_verdict.py`` writes the job and starts this file as a process of its own; nothing of
bakeoff is imported here. The job has the rows as token ids, so that tokenising costs nothing. With
``"trainer": "trl"`` the steps are those of TRL's ``SFTTrainer``, packed; nothing is evaluated then.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

IGNORED = -100
NOT_COUNTED = "choice of threads"
"""A part whose seconds are not the usual way's."""


class Stopwatch:
    """Adds up the seconds of each part of a trial; the device is drained at its end."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part."""
        started = time.perf_counter()
        yield
        if self._device != "cpu":
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def autocast(job: dict[str, Any]) -> AbstractContextManager[Any]:
    """Return the context of forward passes: ``Trainer``'s with ``bf16=True``."""
    if job["precision"] != "bf16":
        return nullcontext()
    return torch.autocast(job["device"].partition(":")[0], torch.bfloat16)


def load(job: dict[str, Any]) -> Any:
    """Return the base on its device."""
    torch.manual_seed(job["seed"])
    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    auto = getattr(transformers, job["auto_model"])
    model = auto.from_pretrained(job["base"], dtype=dtype, **job["load"])
    model.config.pad_token_id = job["pad"]
    return model.to(job["device"])


def attach(job: dict[str, Any], model: Any) -> Any:
    """Return the model with its adapter, or with the trained ones of its own tensors; in fp32."""
    if job["adapter"] is not None:
        config = peft.PeftConfig.from_pretrained(job["adapter"])
        config.inference_mode = False
        model = peft.get_peft_model(model, config)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in job["trained"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def rate_groups(job: dict[str, Any], model: nn.Module) -> list[dict[str, Any]]:
    """Return AdamW's groups: the method's rate and factors, and the output layer's own rate."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    heads = {n for n in trained if set(n.split(".")) & set(job["heads"])}
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        factor = next((f for part, f in job["factors"].items() if part in name), 1.0)
        rate = factor * job["learning_rate"]
        if name in heads and len(heads) < len(trained):
            rate = job["head_learning_rate"]
        by_rate.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """Return rows as one tensor, padded to the longest."""
    out = torch.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        out[i, slice(-len(row), None) if left else slice(len(row))] = torch.tensor(row)
    return out


def loss_of(job: dict[str, Any], model: Any, rows: Sequence[Sequence[Any]]) -> Tensor:
    """Return the mean loss of rows of tokens and labels, as one padded batch."""
    tokens, labels = zip(*rows, strict=True)
    batch = {
        "input_ids": pad(tokens, job["pad"]),
        "attention_mask": pad([[1] * len(t) for t in tokens], 0),
        "labels": pad(labels, IGNORED) if job["generates"] else torch.tensor(labels).squeeze(1),
    }
    batch = {name: tensor.to(job["device"]) for name, tensor in batch.items()}
    extra = {"use_cache": False} if job["generates"] else {}
    with autocast(job):
        loss: Tensor = model(**batch, **extra).loss
    return loss


def parts_of(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield the rows in batches."""
    yield from (rows[i : i + size] for i in range(0, len(rows), size))


def choose_threads(job: dict[str, Any], model: Any) -> int:
    """Return the number of threads, of those that the job allows, whose steps are faster here."""
    rows = [job["train"][i] for i in job["order"][0]]

    def seconds(count: int) -> float:
        torch.set_num_threads(count)
        loss_of(job, model, rows).backward()
        started = time.perf_counter()
        for _ in range(2):
            loss_of(job, model, rows).backward()
        return time.perf_counter() - started

    best = min(job["threads"], key=seconds) if len(job["threads"]) > 1 else job["threads"][0]
    torch.set_num_threads(best)
    model.zero_grad()
    return int(best)


def train(job: dict[str, Any], model: Any, watch: Stopwatch) -> list[float]:
    """Take the job's steps; return the validation loss at each of its validations."""

    def factor(step: int) -> float:  # warm-up, plateau, decay, as the study has it
        rising, falling = job["warmup"] * steps, job["decay"] * steps
        up = (step + 1) / rising if rising else 1.0
        return max(0.0, min(1.0, up, (steps - step) / falling if falling else 1.0))

    steps, read = len(job["order"]), []
    optimizer = torch.optim.AdamW(
        rate_groups(job, model), weight_decay=job["weight_decay"], fused=job["device"] != "cpu"
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    for start, stop in zip([0, *job["validations"]], job["validations"], strict=False):
        with watch.part("train"):
            for picked in job["order"][start:stop]:
                loss_of(job, model, [job["train"][i] for i in picked]).backward()
                nn.utils.clip_grad_norm_(trained, job["clip"])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        with watch.part("validation"):
            read.append(validate(job, model))
    return read


@torch.no_grad()
def validate(job: dict[str, Any], model: Any) -> float:
    """Return the mean validation loss over rows."""
    model.eval()
    total = torch.zeros((), device=job["device"])
    for rows in parts_of(job["validation"], job["rows"]):
        total += len(rows) * loss_of(job, model, rows)
    model.train()
    return float(total) / len(job["validation"])


@torch.no_grad()
def answer(job: dict[str, Any], model: Any) -> list[Any]:
    """Return the new tokens of each test row by ``generate``, or its most likely class."""
    model.eval()
    found: list[Any] = []
    for rows in parts_of(job["test"], job["rows"]):
        tokens = pad(rows, job["pad"], left=job["generates"]).to(job["device"])
        ones = pad([[1] * len(row) for row in rows], 0, left=job["generates"]).to(job["device"])
        with autocast(job):
            if not job["generates"]:
                logits = model(input_ids=tokens, attention_mask=ones).logits
                found += logits.argmax(-1).tolist()
                continue
            out = model.generate(
                input_ids=tokens, attention_mask=ones, do_sample=False, num_beams=1,
                max_new_tokens=job["max_new_tokens"], pad_token_id=job["pad"],
                eos_token_id=job["end_tokens"],
            )  # fmt: skip
        found += out[:, tokens.shape[1] :].tolist()
    return found


def save(job: dict[str, Any], model: Any) -> None:
    """Write the adapter, or the trained tensors."""
    folder = Path(job["out"])
    folder.mkdir(parents=True, exist_ok=True)
    if job["adapter"] is not None:
        model.save_pretrained(folder, save_embedding_layers=False)
        return
    trained = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
    save_file(trained, folder / "model.safetensors")


def train_with_trl(job: dict[str, Any], model: Any, watch: Stopwatch) -> None:
    """Take as many steps with TRL's ``SFTTrainer``: one packed row with a step's tokens in each."""
    import datasets
    import trl

    tokens, labels = zip(*job["train"], strict=True)
    mean = sum(map(len, tokens)) / len(tokens)
    length = max(*map(len, tokens), round(mean * len(job["order"][0])))
    with watch.part("train"):
        arguments = trl.SFTConfig(
            output_dir=job["out"], max_steps=len(job["order"]), per_device_train_batch_size=1,
            packing=True, max_length=length, learning_rate=job["learning_rate"],
            lr_scheduler_type="constant", max_grad_norm=job["clip"],
            weight_decay=job["weight_decay"], bf16=job["precision"] == "bf16",
            use_cpu=job["device"] == "cpu", gradient_checkpointing=False, seed=job["seed"],
            save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_dict({"input_ids": tokens, "labels": labels}),
            processing_class=transformers.AutoTokenizer.from_pretrained(job["base"]),
        )
        trainer.train()


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run the trial; return the seconds of its parts, its validation losses and its answers."""
    torch.set_num_threads(job["threads"][0])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    watch = Stopwatch(job["device"])
    with watch.part("load"):
        model = load(job)
    with watch.part("attach"):
        model = attach(job, model)
    with watch.part(NOT_COUNTED):
        threads = choose_threads(job, model)
    if job["trainer"] == "trl":
        train_with_trl(job, model, watch)
        return {"seconds": watch.seconds, "threads": threads, "losses": [], "answers": []}
    losses = train(job, model, watch)
    with watch.part("answer"):
        answers = answer(job, model)
    with watch.part("save"):
        save(job, model)
    return {"seconds": watch.seconds, "threads": threads, "losses": losses, "answers": answers}


if __name__ == "__main__":
    result = run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
