"""Nothing that strangers wrote does harm: each malicious sample is refused or made harmless."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import tomli_w
import torch
from helpers.study_runs import use_inline_executor
from safetensors.torch import load_file, save_file

from bakeoff import api
from bakeoff.core import names, safe_read
from bakeoff.core.errors import BakeoffError, PreflightError, UsageError
from bakeoff.core.names import sanitize_name
from bakeoff.core.safe_read import UnreadableFile, exceeds_depth, read_bytes, read_json, read_text
from bakeoff.core.trial import Segment, Trial
from bakeoff.engine import safe_loading
from bakeoff.methods import forbidden_arguments, hook, registry, user_defined
from bakeoff.methods.arguments import check_config
from bakeoff.methods.hook import SaveContext
from bakeoff.study.config import parse_spec, read_spec
from bakeoff.study.setup import base_model
from bakeoff.study.setup.open_study import load_methods
from bakeoff.study.setup.provenance import git_state
from bakeoff.study.storage import study_dir
from bakeoff.testing.tiny import write_jsonl
from bakeoff.testing.trials import build_tiny_setup, make_trial
from bakeoff.training import reload
from bakeoff.training.preflight.capabilities.on_model import count_on_model

SOURCE = Path(api.__file__).parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refusal(values: dict[str, Any], tmp_path: Path) -> BakeoffError:
    with pytest.raises(BakeoffError) as error:
        api.run(parse_spec(values), tmp_path, tmp_path / "out")
    assert not list((tmp_path / "out" / "trials").glob("*"))
    return error.value


def copied(base: Path, to: Path, **changes: Any) -> Path:
    """Copy a base, with changes to its config."""
    to.mkdir()
    for file in base.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    return to


class Evil:
    """What a pickle of strangers may hold: a call, made when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


# -- nothing is unpickled, nothing of strangers is run --


FORBIDDEN_CALLS = {
    "eval", "exec", "torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load",
    "yaml.load", "os.system", "os.popen", "marshal.loads", "shelve.open", "dill.load", "np.load",
    "numpy.load", "__import__", "pandas.read_pickle", "pd.read_pickle", "torch.jit.load",
    "torch.package.PackageImporter", "tempfile.mktemp",
}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "yaml"}
ALLOWED = {("metrics/load.py", "exec")}
"""The user's own metric, by name in the study file, from the study file's own folder."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def forbidden(tree: ast.AST) -> set[str]:
    """Return what in a module runs text or unpickles, or asks for code of strangers."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} & FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            found |= {dotted(node.func)} & FORBIDDEN_CALLS
            for word in node.keywords:
                on = isinstance(word.value, ast.Constant) and word.value.value is True
                if word.arg in ("shell", "trust_remote_code", "allow_pickle") and on:
                    found.add(f"{word.arg}=True")
                if word.arg == "weights_only":
                    found.add("weights_only")
    return found


def test_no_unpickling_or_eval() -> None:
    """No module of bakeoff unpickles data or executes text."""
    found = {
        (str(path.relative_to(SOURCE)), what)
        for path in SOURCE.rglob("*.py")
        for what in forbidden(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from yaml import load", "torch.load(x)", "eval('1')", "np.load(x)",
        "subprocess.run(x, shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_unsafe_call_search_finds_calls(text: str) -> None:
    """The search for unsafe calls finds them."""
    assert forbidden(ast.parse(text))


def test_models_loaded_as_safetensors() -> None:
    """Every model is loaded from safetensors.

    Each AutoModel…from_pretrained in the package names `use_safetensors=True`.
    """
    calls = [
        (path.name, node)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")
        and ("AutoModel" in ast.unparse(node.func) or "auto_model" in ast.unparse(node.func))
    ]  # fmt: skip
    assert len(calls) >= 2
    for name, call in calls:
        words = {k.arg for k in call.keywords}
        assert "use_safetensors" in words or "gguf_file" in words, name


def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(pickle, "load", fail)
    monkeypatch.setattr(pickle, "loads", fail)
    monkeypatch.setattr(pickle, "Unpickler", fail)


def test_complete_study_unpickles_nothing(
    study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete study unpickles nothing.

    Search, final trials, states and reports, and the adapters that PEFT loads again.
    """
    no_unpickling(monkeypatch)
    study_values["methods"]["contenders"] = ["ia3", "lora_ga", "full"]
    study_values["budget"] |= {"settings": 1, "seeds": 1, "steps": 4}
    # the cost probe has a process of its own; in this one it is watched, too
    use_inline_executor(monkeypatch)
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    assert {m["status"] for m in report["methods"]} == {"done"}
    endings = {p.suffix for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert endings.isdisjoint({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
    again = api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    assert again["methods"] == report["methods"]


# -- the base --


@pytest.mark.parametrize("ending", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_pickled_weights_refused(study_values: dict[str, Any], tmp_path: Path, ending: str) -> None:
    """Pickled weights are refused and not read."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    torch.save(Evil(tmp_path / "ran"), model / f"pytorch_model.{ending}")
    study_values["base"]["model"] = str(model)
    assert refusal(study_values, tmp_path).code == "pickled-weights"
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_behind_safetensors(
    study_values: dict[str, Any], tmp_path: Path, tiny_bert: Path
) -> None:
    """An index that calls itself safetensors names a shard that is a pickle."""
    model = copied(tiny_bert, tmp_path / "model")
    weights = model / "model.safetensors"
    (model / "unused.safetensors").write_bytes(weights.read_bytes())
    weights.unlink()
    torch.save(Evil(tmp_path / "ran"), model / "evil.bin")
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "evil.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    study_values["base"]["model"] = str(model)
    assert refusal(study_values, tmp_path).code == "pickled-weights"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}}, "base-wants-code"),
        ({"_attn_implementation_internal": "evil/kernel"}, "base-wants-kernel"),
        ({"_attn_implementation_internal": "eager"}, "base-wants-kernel"),
        ({"attn_implementation": "kernels-community/flash-attn"}, "base-wants-kernel"),
        ({"_attn_implementation": {"": "evil/kernel:fn"}}, "base-wants-kernel"),
        ({"text_config": {"_experts_implementation": "evil/kernel"}}, "base-wants-kernel"),
        ({"use_kernels": True}, "base-wants-kernel"),
        ({"transformers_weights": "weights.bin"}, "pickled-weights"),
    ],
)
def test_base_config_with_code_refused(
    study_values: dict[str, Any],
    tmp_path: Path,
    tiny_bert: Path,
    changes: dict[str, Any],
    code: str,
) -> None:
    """A base whose config refers to code is refused."""
    model = copied(tiny_bert, tmp_path / "model", **changes)
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    study_values["base"]["model"] = str(model)
    error = refusal(study_values, tmp_path)
    assert (error.code, error.exit_code) == (code, 3)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "sdpa", "attn_implementation": None},
        {"auto_map": {"AutoModel": "evil.Evil"}},  # transformers' own class of that type is taken
    ],
)
def test_base_config_resembling_code(
    tmp_path: Path, tiny_bert: Path, changes: dict[str, Any]
) -> None:
    """A base whose config only looks like code is accepted."""
    model = copied(tiny_bert, tmp_path / "model", **changes)
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    safe_loading.check_base_files(str(model), None)
    lora = {"entry": vars(registry.load("lora", Path())), "path": str(model)}
    assert count_on_model(lora)["parameters"] > 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("method", "change", "told"),
    [
        ("lora", {"megatron_config": {}, "megatron_core": "evil_of_a_study"}, "`megatron_co"),
        ("lora", {"auto_mapping": {"parent_library": "evil_of_a_study"}}, "`auto_mapping`"),
        ("lora", {"corda_config": {"cache_file": "ran.bin"}}, "`corda_config.cache_file`"),
        ("lora", None, "no adapter_model.safetensors"),  # a pickle in the place of its weights
        ("full", {"_attn_implementation": "evil/kernel"}, "kernel"),
        ("full", None, "safetensors"),
    ],
)
def test_untrusted_saved_weights_rejected(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    change: Any,
    told: str,
) -> None:
    """The saved weights of an untrusted study load nothing from elsewhere.

    A study folder is passed around, and its adapters are loaded again by `run` and `export`.
    """
    trial = make_trial(method, "sft")
    place = tmp_path / "trials" / trial.id / ("adapter" if method == "lora" else "model")
    at = build_tiny_setup(trial, tiny_llama, tmp_path)
    at.lanes.run_single(0)
    at.hook.save(at.model, place, SaveContext("base", 0, None))
    value = Segment((trial,), 0, 1, str(tmp_path), str(tiny_llama)).to_json()
    assert reload.run(value)["error"] is None
    (tmp_path / "evil_of_a_study.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if change is None:
        (weights,) = place.glob("*.safetensors")
        names = {"lora": "adapter_model.bin", "full": "pytorch_model.bin"}
        torch.save(Evil(tmp_path / "ran"), weights.with_name(names[method]))
        weights.unlink()
    else:
        config = place / ("adapter_config.json" if method == "lora" else "config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    found = reload.run(value)
    assert found["loss"] is None
    assert told in found["error"]
    assert not (tmp_path / "ran").exists()
    assert "evil_of_a_study" not in sys.modules


def test_adapter_refused_as_base(
    study_values: dict[str, Any], tmp_path: Path, tiny_bert: Path
) -> None:
    """An adapter is refused as a base.

    Transformers would load a base of the adapter's choice, and unpickle the adapter on top.
    """
    model = copied(tiny_bert, tmp_path / "model")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base"}))
    torch.save(Evil(tmp_path / "ran"), model / "adapter_model.bin")
    study_values["base"]["model"] = str(model)
    assert refusal(study_values, tmp_path).code == "base-is-adapter"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 2000, b"\xff", b"[]", b"{", b'{"a": ' + b"9" * 5000 + b"}"],
)
def test_broken_base_config_refused(tmp_path: Path, tiny_bert: Path, content: bytes) -> None:
    """A broken base config is refused."""
    model = copied(tiny_bert, tmp_path / "model")
    (model / "config.json").write_bytes(content)
    with pytest.raises(PreflightError) as error:
        safe_loading.check_base_files(str(model), None)
    assert error.value.code == "base-config-broken"


def test_weights_that_are_no_numbers(
    study_values: dict[str, Any], tmp_path: Path, tiny_bert: Path
) -> None:
    model = copied(tiny_bert, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    name = next(n for n in tensors if n.endswith("query.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    study_values["base"]["model"] = str(model)
    error = refusal(study_values, tmp_path)
    assert error.code == "base-not-finite"
    assert "query.weight" in error.cause


def test_remote_code_off_without_prompt(tiny_bert: Path) -> None:
    """Remote code is off, and no prompt asks for it."""
    assert safe_loading.from_pretrained_kwargs(str(tiny_bert), None) == {
        "local_files_only": True, "trust_remote_code": False,
    }  # fmt: skip


OWN_CODE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_trust_bound_to_base_version(
    study_values: dict[str, Any], tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trust holds for one version of one base."""
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    model = copied(tiny_bert, tmp_path / "model", model_type="own", auto_map=names)
    (model / "own.py").write_text(OWN_CODE)
    study_values["base"]["model"] = str(model)
    study_values["budget"] |= {"settings": 1, "seeds": 1, "steps": 2}
    error = refusal(study_values, tmp_path)
    assert error.code == "base-wants-code"
    assert "trust_remote_code" in error.try_
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    study_values["base"]["trust_remote_code"] = True
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "trusting")
    assert any("own code is run with your rights" in w for w in report["warnings"])
    before = base_model.fingerprint(model)
    (model / "own.py").write_text(OWN_CODE + "\n# another version\n")
    assert base_model.fingerprint(model) != before
    with pytest.raises(PreflightError, match="study-differs"):
        api.run(parse_spec(study_values), tmp_path, tmp_path / "trusting")


def test_hub_trust_needs_commit(study_values: dict[str, Any]) -> None:
    """Trust in a hub model requires its commit."""
    hub = base_model.ResolvedBase("org/model", "org/model", None, None)
    for revision, good in ((None, False), ("main", False), (COMMIT[:7], False), (COMMIT, True)):
        base = {"model": "org/model", "trust_remote_code": True}
        study_values["base"] = base if revision is None else {**base, "revision": revision}
        spec = parse_spec(study_values).base
        if good:
            assert COMMIT in base_model.check_trust(hub, spec)[0]
        else:
            with pytest.raises(UsageError) as error:
                base_model.check_trust(hub, spec)
            assert error.value.code == "trust-unpinned"


def test_trust_does_not_reach_another_repository(tmp_path: Path, tiny_bert: Path) -> None:
    there = {"AutoModel": "other/repository--modeling.Model"}
    model = copied(tiny_bert, tmp_path / "model", auto_map=there)
    with pytest.raises(PreflightError, match="another repository"):
        safe_loading.check_base_files(str(model), None, trusted=True)


def test_trial_ids_unchanged_by_trust(tmp_path: Path) -> None:
    """Trials from before the trust setting keep their ids."""
    from bakeoff.testing.trials import CONDITIONS

    trial = Trial(registry.load("lora", Path()), {"learning_rate": 0.1}, 0, "final", CONDITIONS)
    value = trial.to_json()
    del value["conditions"]["trusted"]
    assert Trial.from_json(value).id == trial.id
    value["conditions"]["trusted"] = True
    assert Trial.from_json(value).id != trial.id


# -- adapters and methods --


LEADING: list[tuple[str, Any]] = [
    ("auto_mapping", {"parent_library": "os", "base_model_class": "system"}),
    ("megatron_core", "os"),
    ("megatron_config", {"x": 1}),
    ("tokenizer_kwargs", {"trust_remote_code": True}),
    ("tokenizer_name_or_path", "evil/tokenizer"),
    ("corda_config", {"cache_file": "evil.pt"}),
    ("corda_config", {"covariance_file": "evil.pt"}),
    ("lora_ga_config", {"cache_file": "evil.pt"}),
    ("prompt_tuning_init_state_dict_path", "evil.pt"),
    ("shadow_model", "evil/model"),
    ("adapters", {"a": "evil/adapter"}),
    ("base_model_name_or_path", "evil/base"),
    ("revision", "main"),
]
BOOKKEEPING = ("auto_mapping", "base_model_name_or_path", "revision")


@pytest.mark.parametrize(("key", "value"), LEADING, ids=str)
def test_path_arguments_refused_everywhere(
    study_values: dict[str, Any], tmp_path: Path, key: str, value: Any
) -> None:
    """Arguments that point elsewhere are refused at every entry point."""

    def refuse(values: dict[str, Any]) -> None:
        with pytest.raises(UsageError) as error:
            load_methods(parse_spec(values), tmp_path)
        assert error.value.code == "unsafe-config-key"
        assert key in error.value.cause

    # in the study file, over a method of the catalog or with a class
    study_values["method"] = {"lora": {"config": {key: value}}}
    refuse(study_values)
    study_values["methods"]["contenders"] = ["mine"]
    study_values["method"] = {
        "mine": {"kind": "peft", "peft": "LoraConfig", "config": {key: value}}
    }
    refuse(study_values)
    # in a method file, also as a value that is tuned
    method = tomllib.loads(registry.read_source("lora", Path()))
    method["tuning"][key] = {"values": [value], "why": "it is evil"}
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(method))
    del study_values["method"]
    refuse(study_values)
    # where a config is made, whatever way it took
    with pytest.raises(UsageError, match="unsafe-config-key"):
        check_config(registry.load("lora", Path()), {key: value})


@pytest.mark.parametrize(("key", "value"), LEADING, ids=str)
def test_malicious_adapter_config_refused(
    study_values: dict[str, Any], tmp_path: Path, key: str, value: Any
) -> None:
    """A malicious adapter config is refused.

    PEFT's own bookkeeping is left out: no file names a base; the rest is refused.
    """
    peft.LoraConfig(r=4).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    study_values["methods"]["contenders"] = ["mine"]
    study_values["method"] = {"mine": {"kind": "peft", "path": path.name}}
    if key in BOOKKEEPING:
        _, mine = load_methods(parse_spec(study_values), tmp_path)
        assert key not in mine.config
    else:
        with pytest.raises(UsageError, match="unsafe-config-key"):
            load_methods(parse_spec(study_values), tmp_path)


def test_weights_beside_config_not_read(
    study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapter weights next to a config are not read."""
    peft.LoraConfig(r=2, target_modules=["query"]).save_pretrained(tmp_path / "mine")
    torch.save(Evil(tmp_path / "ran"), tmp_path / "mine" / "adapter_model.bin")
    study_values["methods"]["contenders"] = ["mine"]
    study_values["method"] = {"mine": {"kind": "peft", "path": "mine/adapter_config.json"}}
    study_values["budget"] |= {"settings": 1, "seeds": 1, "steps": 2}
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    assert [m["status"] for m in report["methods"]] == ["done", "done"]
    assert not (tmp_path / "ran").exists()


def test_peft_path_arguments_known() -> None:
    """Every PEFT argument that names a file or a module is known.

    A new PEFT with a new one must fail here, and be looked at.
    """
    import dataclasses

    words = (
        "file",
        "path",
        "auto_map",
        "megatron",
        "tokenizer_",
        "model_name",
        "adapters",
        "_dir",
        "shadow_model",
    )
    names = {
        field.name
        for name in dir(peft)
        if name.endswith("Config") and dataclasses.is_dataclass(getattr(peft, name))
        for field in dataclasses.fields(getattr(peft, name))
    } | {"cache_file", "covariance_file"}  # of configs inside configs
    leading = {n for n in names if any(w in n for w in words)} - {"use_trainable_adapters"}
    assert leading <= set(forbidden_arguments._UNSAFE), leading - set(forbidden_arguments._UNSAFE)


def test_peft_default_config_accepted(tmp_path: Path) -> None:
    """What PEFT writes by default is accepted."""
    taken = 0
    for entry in user_defined._default_entries().values():
        config = getattr(peft, str(entry.peft))
        with contextlib.suppress(TypeError, ValueError, UserWarning):  # it has no default
            config(base_model_name_or_path="some/base").save_pretrained(tmp_path)
            found = user_defined.from_file("mine", tmp_path / "adapter_config.json")
            forbidden_arguments.check_arguments("mine", found.config)
            taken += 1
    assert taken >= 30


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000, b'{"peft_type":' * 2000, b"\xff\xfe", b"null", b"[]",
        b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}", b'{"peft_type": "LORA", "r": NaN}',
        b'{"peft_type": "LORA", "r": "\\ud800"}', b" " * (safe_read.CONFIG_BYTES + 1),
    ],
    ids=range(9),
)  # fmt: skip
def test_broken_adapter_config_refused(tmp_path: Path, content: bytes) -> None:
    """A broken adapter config is refused."""
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(UsageError) as error:
        user_defined.from_file("mine", tmp_path / "adapter_config.json")
    assert error.value.code == "adapter-config-invalid"


@pytest.mark.parametrize(
    "named", ["os:system", "subprocess:Popen", "json:loads", "no.such:Thing", "torch:load", "peft:"]
)
def test_hook_must_be_hook(named: str) -> None:
    """A hook must be a hook class."""
    text = registry.read_source("lora", Path()).replace('peft = "', f'hook = "{named}"\npeft = "')
    with pytest.raises(UsageError) as error:
        hook.build_hook(registry.parse("mine", text), {})
    assert error.value.code == "unknown-hook"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("prior = ", 'prior = "x" #'), ("title = ", "title = 1 #"), ("[config]", "[[config]]"),
        ("family = ", "family = [] #"), ("[config]", "[rates]\nx = -1\n[config]"),
        ("prior = ", "prior = nan #"), ("[config]", "[config]\nd = 2026-01-01"),
    ],
)  # fmt: skip
def test_method_file_wrong_types(old: str, new: str) -> None:
    """A method file with values of the wrong type is refused."""
    text = registry.read_source("lora", Path()).replace(old, new, 1)
    with pytest.raises(UsageError) as error:
        registry.parse("mine", text)
    assert error.value.code == "method-invalid"


# -- the user's own metric: code, and so only from where the study lies --


@pytest.mark.parametrize("where", ["../score.py", "/abs/score.py", "link.py", subprocess.__file__])
def test_external_metric_not_run(study_values: dict[str, Any], tmp_path: Path, where: str) -> None:
    """A metric from elsewhere is not run.

    The standard library's `subprocess.py:getoutput` would run the data's answers in a shell.
    """
    home = tmp_path / "study"
    home.mkdir()
    code = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\ndef score(a, b): return 1.0\n"
    (tmp_path / "score.py").write_text(code)
    (home / "link.py").symlink_to(tmp_path / "score.py")
    name = where.replace("/abs", str(tmp_path))
    study_values["task"]["metric"] = f"{name}:getoutput"
    with pytest.raises(UsageError) as error:
        api.run(parse_spec(study_values), home, tmp_path / "out")
    assert error.value.code == "metric-outside"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "attack",
    [
        "{{ cycler.__init__.__globals__.os.mkdir(PROOF) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}{% include '/etc/passwd' %}",
        "{{ self._TemplateReference__context }}{% import 'os' as os %}",
    ],
)
def test_chat_template_sandboxed(tmp_path: Path, attack: str) -> None:
    """A chat template runs in a sandbox."""
    from bakeoff.data.chat.template import Chat, UnusableConversation
    from bakeoff.testing.tiny import tokenizer

    proof = tmp_path / "ran"
    template = attack.replace("PROOF", repr(str(proof)))
    whole = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}" + template
    chat = Chat(tokenizer(), whole)
    with pytest.raises(UnusableConversation):
        chat.tokens([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert not proof.exists()


# -- names and paths --


BAD_NAMES = (
    "", ".", "..", "...", "-rf", "a/b", "../x", "a b", "x" * 65, "nul", "CON", "com1.txt", "Lpt9",
    "a\x00b", "a\n", "é", "[red]", "a:b", "a\\b", "$(id)", "~",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_are_no_names(study_values: dict[str, Any], name: str) -> None:
    for changes in (
        {"name": name},
        {"methods": {"control": "lora", "contenders": [name]}, "method": {}},
        {"methods": {"control": "lora", "contenders": [f"x/{name}.toml"]}, "method": {}},
        {"method": {name: {}}},
    ):
        if name in ("", "a/b", "../x") and ".toml" in str(changes):
            continue  # as a path of a method file it has another name at its end
        with pytest.raises(UsageError) as error:
            parse_spec({**study_values, **changes})
        assert error.value.code == "study-invalid"
    assert names.invalid_name_reason(sanitize_name(name)) is None


@pytest.mark.parametrize("name", ["a", "A.b_c-9", ".hidden", "_", "x" * 64, "console", "com10"])
def test_names_that_are(study_values: dict[str, Any], name: str) -> None:
    assert parse_spec({**study_values, "name": name}).name == name
    assert sanitize_name(name) == name


@pytest.mark.parametrize(
    "path", ["", " ", "a\x00b", "a\nb", "\x1b[2J", "~root/x", "x" * 300, "x/" * 600]
)
@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("data", "train"), ("data", "test"), ("base", "model"), ("task", "metric"),
        ("task", "chat_template"), ("forgetting", "text"),
    ],
)  # fmt: skip
def test_paths_that_are_no_paths(
    study_values: dict[str, Any], table: str, key: str, path: str
) -> None:
    study_values[table] = {**study_values.get(table, {}), key: path}
    with pytest.raises(UsageError) as error:
        parse_spec(study_values)
    assert error.value.code == "study-invalid"
    assert f"{table}.{key}" in error.value.cause


# -- the study folder --


@pytest.mark.parametrize(
    "place",
    ["report.html", "trials", "data/train.jsonl", "study.db", "log.jsonl", "trials/a/state"],
)
def test_link_in_study_folder_refused(
    study_values: dict[str, Any], tmp_path: Path, place: str
) -> None:
    """A link inside a study folder is refused."""
    target = tmp_path / "precious"
    target.mkdir()
    (target / "1.safetensors").write_text("keep")
    link = tmp_path / "out" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with pytest.raises(PreflightError) as error:
        api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    assert error.value.code == "folder-link"
    assert str(link) in error.value.cause
    assert (target / "1.safetensors").read_text() == "keep"


def test_study_folder_may_be_link(tmp_path: Path) -> None:
    """The study folder itself may be a link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    study_dir.create(tmp_path / "out")


def test_checkpoint_not_removed_through_link(tmp_path: Path) -> None:
    """No checkpoint is removed through a link.

    A link that appears after the study was opened.
    """
    target, out = tmp_path / "precious", tmp_path / "out"
    target.mkdir()
    (target / "1.safetensors").write_text("keep")
    (out / "trials" / "abc").mkdir(parents=True)
    (out / "trials" / "abc" / "state").symlink_to(target)
    study_dir.delete_checkpoints(out, "abc", None)
    assert (target / "1.safetensors").read_text() == "keep"


def test_command_line_files_not_world_writable(tmp_path: Path, study_file: Path) -> None:
    """The command line writes no file that everybody may change."""
    mask = "import os, sys; os.umask(0); from bakeoff.cli import main; main()"
    made = subprocess.run(
        [sys.executable, "-c", mask, "init", "study.toml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "study.toml").stat().st_mode & 0o002 == 0


@pytest.mark.parametrize("key", ["core.fsmonitor", "filter.evil.clean"])
def test_surrounding_repository_runs_nothing(tmp_path: Path, key: str) -> None:
    """A Git repository around a study runs no program.

    `git status` runs what a repository's own configuration says; a study may bring one along.
    """

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@y.example"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    git("init", "-q")
    (tmp_path / "study.toml").write_text("a = 1")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert (git_state(tmp_path) or {})["dirty"] is False
    (tmp_path / ".gitattributes").write_text("* filter=evil\n")
    (tmp_path / "study.toml").write_text("a = 2")
    git("config", key, f"touch {tmp_path / 'ran'}; cat")
    found = git_state(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert found is not None
    assert found["dirty"] is None


# -- bounds --


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000, "a." * 5000 + "b = 1", "a = " + "{a = " * 5000, "a = " + "9" * 5000,
        'name = "x"\n' + "# comment\n" * 200_000, "\x00", "a = 1\na = 2", "a = 2026-01-01",
    ],
    ids=range(8),
)  # fmt: skip
def test_study_files_that_break_parsers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_spec(path)
    assert error.value.code in ("study-unreadable", "study-invalid")
    assert len(error.value.cause) < 1000


def test_study_file_must_be_file(tmp_path: Path) -> None:
    """A study file must be a regular file.

    A folder, or a pipe that nobody writes to, is not waited for.
    """
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match="not a regular file"):
            read_spec(path)


def test_unfreezable_values_refused(study_values: dict[str, Any]) -> None:
    """Values that cannot be frozen in a study are refused."""
    import datetime

    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    for odd in (
        float("nan"),
        float("inf"),
        2**64,
        datetime.date(2026, 1, 1),
        "a\x00",
        "\ud800",
        deep,
    ):
        study_values["method"]["ia3"]["config"]["target_modules"] = odd
        with pytest.raises(UsageError) as error:
            parse_spec(study_values)
        assert error.value.code == "study-invalid"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"text": "x" * 60, "label": "a"}, "row-too-large"),
        ({"text": "x", "label": json.loads("[" * 100 + "]" * 100)}, "row-too-deep"),
    ],
)
def test_rows_beyond_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: dict[str, Any], code: str
) -> None:
    from bakeoff.data import rows

    monkeypatch.setattr(rows, "ROW_CHARACTERS", 50)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "short", "label": "a"}, value])
    with pytest.raises(PreflightError) as error:
        rows.read_rows(path)
    assert error.value.code == code
    assert "line 2" in error.value.cause


def test_small_parquet_with_large_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small Parquet file that expands to much text is refused."""
    import pyarrow
    from pyarrow import parquet

    from bakeoff.data.sources import parquet as sources_parquet

    table = pyarrow.table({"text": ["x" * 10_000] * 5000})
    parquet.write_table(table, tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    monkeypatch.setattr(sources_parquet, "DATA_BYTES", 20_000_000)
    with pytest.raises(PreflightError) as error:
        sources_parquet.read_parquet(tmp_path / "bomb.parquet")
    assert error.value.code == "data-too-large"


def test_repeated_values_unpacked_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with repeated values are unpacked a few at a time.

    Fault 54: a value that a thousand rows share lies in the file once.
    """
    import pyarrow
    from pyarrow import parquet

    from bakeoff.data.sources import parquet as sources_parquet

    path = tmp_path / "shared.parquet"
    parquet.write_table(pyarrow.table({"text": ["x" * 100_000] * 1000}), path)
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(sources_parquet, "DATA_BYTES", 10_000_000)
    with parquet.ParquetFile(path) as file:
        assert sources_parquet._safe_batch_size(file.metadata) <= 100
    parquet.write_table(pyarrow.table({"text": ["x"] * 5}), tmp_path / "plain.parquet")
    with parquet.ParquetFile(tmp_path / "plain.parquet") as file:
        assert sources_parquet._safe_batch_size(file.metadata) == sources_parquet.MAX_BATCH_ROWS
    with pytest.raises(PreflightError, match="data-too-large"):
        sources_parquet.read_parquet(path)


def test_compressed_rows_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed rows are bounded.

    Fault 54: what is unpacked is held against the bound before it is read as rows.
    """
    import gzip

    from bakeoff.data import sources
    from bakeoff.data.sources import files, hub

    monkeypatch.setattr(files, "DATA_BYTES", 999_999)
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": "x" * 1000}) + "\n" for _ in range(1000))
    assert (tmp_path / "train.jsonl.gz").stat().st_size < 20_000
    with pytest.raises(PreflightError, match="data-too-large"):
        sources.load_splits({"train": "train.jsonl.gz"}, tmp_path)
    builder: Any = SimpleNamespace(
        info=SimpleNamespace(splits={"train": SimpleNamespace(num_bytes=1_000_000)})
    )
    for split in ("train", "train[:10]", "other"):
        hub._check_size(builder, hub.Dataset("./folder", split))
    monkeypatch.setattr(hub, "DATA_BYTES", 999_999)
    with pytest.raises(PreflightError) as error:
        hub._check_size(builder, hub.Dataset("./folder", "train[:10]"))
    assert error.value.code == "data-too-large"
    assert "1,000,000 bytes" in error.value.cause


def test_bounded_reading(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(UnreadableFile, match="larger than 4 bytes"):
        read_bytes(path, 4)
    path.write_bytes(b"\xff")
    with pytest.raises(UnreadableFile, match="not UTF-8"):
        read_text(path, 5)
    with pytest.raises(UnreadableFile, match="no such file") as error:
        read_json(tmp_path / "y", 5)
    assert error.value.missing
    with pytest.raises(UnreadableFile):
        read_bytes(tmp_path / "a\x00b", 5)
    assert not exceeds_depth([[1]], 2)
    assert exceeds_depth([[1]], 1)


def test_unpickling_dataset_reader_refused(tmp_path: Path) -> None:
    """A data set whose reader unpickles is refused."""
    import io
    import tarfile

    from bakeoff.data.sources import hub

    raw = io.BytesIO()
    torch.save({"x": 1}, raw)
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        info = tarfile.TarInfo("0.pth")
        info.size = len(raw.getvalue())
        raw.seek(0)
        archive.addfile(info, raw)
    with pytest.raises(PreflightError) as error:
        hub.load(hub.Dataset(str(tmp_path), "train"), None, None)
    assert error.value.code == "data-format"
    assert "webdataset" in error.value.cause


def test_safetensors_are_what_a_study_writes(tmp_path: Path) -> None:
    """The format holds tensors and text: a header of strangers is bounded by its reader."""
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    broken = (2**62).to_bytes(8, "little") + b"{}"
    (tmp_path / "y.safetensors").write_bytes(broken)
    from safetensors import SafetensorError, safe_open

    with pytest.raises(SafetensorError):
        safe_open(tmp_path / "y.safetensors", framework="pt")


def test_rows_with_a_traversing_name(study_values: dict[str, Any], tmp_path: Path) -> None:
    study_values["data"]["train"] = "asset:all-minilm-l6-v2/../../x.jsonl"
    with pytest.raises(BakeoffError) as error:
        api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    assert error.value.exit_code != 1
