"""Every catalog method keeps the contract that ships in ``bakeoff.testing``; files are checked."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.core_methods import CORE

from bakeoff.core.errors import UsageError
from bakeoff.methods import registry
from bakeoff.methods.hook import Incompatible
from bakeoff.testing.methods import BASES, CHECKS, SPREAD, WIDTH, Subject, train_briefly
from bakeoff.testing.tiny import save_llama
from bakeoff.testing.trials import build_tiny_setup, make_trial
from bakeoff.training.preflight import cost_probe

# what PEFT says of the tiny bases, not of its methods
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}:UserWarning")
    for message in (
        "Detected that the base layer has no bias",
        "Model has `tie_word_embeddings",
        "Specified to not load",
    )
]
RATE = "learning_rate = {prior = 1, why = 'x'}\n"
EVERY = registry.names()
WIDE = {"waveft"}
"""Their defaults want wider layers than the tiny models have."""
NOT_ON = {
    "sft": {"head", "bitfit"} | WIDE,
    "classify": {"adaption_prompt", "cpt", "shadow", "trainable_tokens"},
}
"""Which methods cannot run on a task's tiny model; that they say so is tested too."""
UNTRAINED = {"alora", "arrow", "loftq", "xlora"}
"""Methods that cannot be trained alone."""
RESIDUAL = {"corda", "kasa", "lora_ga", "olora", "pissa"}
"""PEFT's switch gives back what they left of the base, not the base."""
THAWING = {"lora_fa"}
"""PEFT's switch makes their frozen tensors trainable (PEFT issue 3447)."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wide")
    return {task: save(folder / task, WIDTH, SPREAD) for task, save in BASES.items()}


def subject(method: str, task: str, wide: dict[str, Path], folder: Path) -> Subject:
    return Subject(registry.load(method, Path()), task, wide[task], folder)


def task_of(method: str) -> str:
    return "classify" if method in NOT_ON["sft"] else "sft"


QUICK = [(m, task_of(m)) for m in EVERY if m not in UNTRAINED]
WHOLE = [
    (m, task)
    for m in (EVERY if os.environ.get("BAKEOFF_TEST") == "full" else CORE)  # minutes
    for task in BASES
    if m not in UNTRAINED | NOT_ON[task]
]


@pytest.mark.parametrize(("method", "task"), QUICK)
def test_trains_and_reloads(method: str, task: str, wide: dict[str, Path], tmp_path: Path) -> None:
    """A method trains, leaves the base unchanged and reloads."""
    needs(method)
    of = subject(method, task, wide, tmp_path)
    at = CHECKS["trains_and_leaves_the_base_alone"](of)
    CHECKS["reloads"](of, at)


@pytest.mark.parametrize("check", ["learns", "repeats", "goes_on", "merges", "disables"])
@pytest.mark.parametrize(("method", "task"), WHOLE)
def test_method_contract(
    method: str, task: str, check: str, wide: dict[str, Path], tmp_path: Path
) -> None:
    """Every method of the catalog fulfils the contract."""
    needs(method)
    of = subject(method, task, wide, tmp_path)
    if check == "disables" and method in RESIDUAL | THAWING:
        said = "off the base's" if method in RESIDUAL else "trainable"
        with pytest.raises(AssertionError, match=said):
            CHECKS[check](of)
    else:
        CHECKS[check](of)


def needs(method: str) -> None:
    """Skip what wants a package that bakeoff does not depend on."""
    packages = {"adamss": "sklearn", "adamss_asa": "sklearn", "corda": "attr"}
    if method in packages:
        pytest.importorskip(packages[method])


@pytest.mark.parametrize(
    ("task", "method"), [(t, m) for t, ms in NOT_ON.items() for m in sorted(ms)]
)
def test_unsupported_method_gives_reason(
    method: str, task: str, wide: dict[str, Path], tmp_path: Path
) -> None:
    """A method that cannot run gives the reason."""
    with pytest.raises(Incompatible, match="."):
        train_briefly(subject(method, task, wide, tmp_path))


@pytest.mark.parametrize("method", sorted(UNTRAINED))
def test_unsupported_method_names_reason(
    method: str, wide: dict[str, Path], tmp_path: Path
) -> None:
    """A method that cannot be trained by itself says what it needs."""
    entry = registry.load(method, Path())
    assert entry.needs
    with pytest.raises(Incompatible, match="."):
        train_briefly(subject(method, "sft", wide, tmp_path))


def test_head_only_incompatible_without_head(tiny_llama: Path, tmp_path: Path) -> None:
    """Head-only training is incompatible with a task that has no head."""
    with pytest.raises(Incompatible, match="no output layer of its own"):
        build_tiny_setup(make_trial("head", "sft"), tiny_llama, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tittle = 'x'", "unknown key 'tittle' (did you mean 'title'?)"),
        ("title = 'x'", "lacks the table [learning_rate]"),
        ("[learning_rate]\nprior = 1\nwhy = 'x'", "must give `peft`"),
        (f"{RATE}peft = 'A'\nfamily = 'x'", "has the family 'x'"),
        (f"{RATE}peft = 'A'\ntuning.r = [1]", "`values` and `why` in [tuning.r]"),
        (f"{RATE}peft = 'A'\nsize.argument = 'r'", "sizes by 'r'"),
        (f"{RATE}peft = 'A'\nsize.arguments = 'r'", "did you mean 'argument'?"),
        ("peft = 'A'\n[learning_rate]\nprior = 1\nwhy = 'x'", "lacks the key 'title'"),
        ("x =", "is not TOML"),
    ],
)
def test_wrong_method_files_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        registry.parse("mine", text)
    assert says in error.value.cause


def test_catalog_is_complete() -> None:
    """The catalog is complete."""
    entries = [registry.load(name, Path()) for name in EVERY]
    assert len(entries) >= 55
    for entry in entries:
        assert entry.learning_rate > 0
        assert len(entry.learning_rate_why) > 20
        assert entry.mechanism
        assert entry.family in registry.FAMILIES
        for argument, space in entry.tuning.items():
            default = entry.config.get(argument)
            assert default is None or isinstance(default, str) or default in space["values"]


def test_method_file_found_by_name(tmp_path: Path) -> None:
    """A method file next to the study is found by its name."""
    (tmp_path / "mine.toml").write_text(
        registry.read_source("lora", Path()).replace("LoRA", "Mine", 1)
    )
    assert registry.load("mine", tmp_path).title == "Mine"
    assert registry.load("mine.toml", tmp_path) == registry.load("mine", tmp_path)
    with pytest.raises(UsageError, match="lora"):
        registry.load("loar", tmp_path)


def test_entry_point_adds_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package adds methods."""
    package = tmp_path / "their_methods"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "theirs.toml").write_text(registry.read_source("lora", Path()))
    described = tmp_path / "their_methods-1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[bakeoff.methods]\nany = their_methods\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._files.cache_clear()
    try:
        assert "theirs" in registry.names()
        assert registry.load("theirs", Path()).peft == "LoraConfig"
    finally:
        registry._files.cache_clear()


OWN_HOOK = """
from bakeoff.methods.hook import Hook

class Mine(Hook):
    def penalty(self, model):
        return sum(p.square().sum() for n, p in model.named_parameters() if "lora_" in n)
"""


def test_user_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own hook is used."""
    (tmp_path / "their_hook.py").write_text(OWN_HOOK)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = registry.read_source("lora", Path()).replace(
        'peft = "', 'hook = "their_hook:Mine"\npeft = "'
    )
    entry = registry.parse("mine", text)
    CHECKS["trains_and_leaves_the_base_alone"](
        Subject(entry, "sft", save_llama(tmp_path / "base"), tmp_path)
    )


@pytest.mark.parametrize(
    ("method", "config", "says"),
    [
        ("lora", {"r": 0}, "`r` should be a positive integer"),
        ("pissa", {"r": "8"}, "names r, which is not a number"),
        ("boft", {"boft_block_size": 5}, "must be divisible by boft_block_size"),
        ("fourierft", {"n_frequency": 10**6}, "should be less than or equal to the product"),
        ("miss_bat", {"r": 5}, "must be fully divisible"),
        ("vera", {"r": 0}, "division by zero"),
        ("prompt_tuning", {"num_virtual_tokens": 0}, "no parameter would be trained"),
    ],
)
def test_arguments_unsuited_to_base(
    method: str, config: dict[str, Any], says: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """Arguments that do not fit the base are reported in the method's row.

    Fault 36: a rank, a block, a length that this base cannot take: a row with PEFT's reason.
    """
    entry = registry.load(method, Path())
    entry = dataclasses.replace(entry, config={**entry.config, **config})
    with pytest.raises(Incompatible) as error:
        build_tiny_setup(make_trial(entry, "sft"), tiny_llama, tmp_path)
    assert says in str(error.value)


def test_virtual_tokens_want_positions_too(tiny_llama: Path, tmp_path: Path) -> None:
    """Fault 36: 128 positions, some of them the rows'."""
    entry = registry.load("prompt_tuning", Path())
    for count, fits in ((90, True), (120, False)):
        own = dataclasses.replace(entry, config={**entry.config, "num_virtual_tokens": count})
        at = build_tiny_setup(make_trial(own, "sft"), tiny_llama, tmp_path)
        longest = max(len(e.tokens) for e in at.examples("train"))
        assert (count + longest <= 128) == fits
        with contextlib.nullcontext() if fits else pytest.raises(Incompatible, match="positions"):
            cost_probe._check_positions(at, at.examples("train"))
