"""Fast generation gives plain ``generate``'s tokens; what it cannot serve it refuses."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import bakeoff
from bakeoff.data import assets
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.generation import decoding, generate
from bakeoff.engine.generation.generate import (
    DecodeSettings,
    GenerationRequest,
    generate_in_slots,
    generate_plain,
)
from bakeoff.engine.generation.kv_slots import FastGenerationUnsupported, KVSlots, new_prompt_cache
from bakeoff.engine.generation.token_ties import ROUNDING, first_differences
from bakeoff.testing.tiny import save_llama, write_splits
from bakeoff.testing.trials import make_trial
from bakeoff.training import generation
from bakeoff.training.preflight.parity import probe_accelerators

SMOLLM2 = assets.locate("smollm2-135m-instruct")
GPU_LIKE = DecodeSettings(
    steps_per_check=4,
    length_multiple=16,
    few_shapes=True,
    lane_rows=0,
    max_rows=0,
    shares_rows=True,
)
"""How a GPU is paced, small enough that all its shapes come up."""
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8, "initializer_range": 0.5,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random Llama whose answers differ from prompt to prompt: its weights are large."""
    folder = save_llama(tmp_path_factory.mktemp("spread"), spread=0.5)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def prompts(count: int, longest: int = 30) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(3, 40) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def make_request(
    count: int = 57, ends: tuple[int, ...] = (5, 7, 9, 11), most: int = 20
) -> GenerationRequest:
    return GenerationRequest(prompts(count), ends, most, 0)


@pytest.mark.parametrize("pace", [None, GPU_LIKE, GPU_LIKE._replace(few_shapes=False)])
@pytest.mark.parametrize("rows", [3, 16, 64])
def test_tokens_are_those_of_plain_generate(
    llama: Any, rows: int, pace: DecodeSettings | None
) -> None:
    for ends in ((2,), (5, 7, 9, 11), tuple(range(3, 20))):  # hardly any, some, most end early
        question = make_request(ends=ends)
        theirs = generate_plain(llama, question)
        assert generate_in_slots(llama, question, rows, settings=pace) == theirs
    assert len({len(answer) for answer in theirs}) > 3


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_other_decoders(kind: str, implementation: str) -> None:
    torch.manual_seed(0)
    if kind == "qwen3":
        config: Any = Qwen3Config(**SMALL)
        model: Any = Qwen3ForCausalLM(config)
    else:
        config = GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.5,
            eos_token_id=None, bos_token_id=None,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    model.eval().set_attn_implementation(implementation)
    question = make_request(20)
    assert generate_in_slots(model, question, 6, settings=GPU_LIKE) == generate_plain(
        model, question
    )


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "head"])
def test_adapters(llama: Any, method: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(
        llama.config._name_or_path, tie_word_embeddings=method != "head"
    ).eval()
    configs: dict[str, Any] = {
        "lora": peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        "dora": peft.LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], use_dora=True, init_lora_weights=False
        ),
        "ia3": peft.IA3Config(
            target_modules=["k_proj", "v_proj"], feedforward_modules=[], init_ia3_weights=False
        ),
        # the output layer itself is wrapped
        "head": peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False),
    }
    model: Any = peft.get_peft_model(base, configs[method]).eval()
    question = make_request()
    theirs = generate_plain(model, question)
    assert theirs != generate_plain(llama, question)
    assert generate_in_slots(model, question, 8) == theirs


def test_finished_row_frees_slot(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished row leaves the batch and its slot is reused."""
    widths: list[int] = []
    step = decoding.Decoder.step

    def counted(self: Any, shape: decoding.DecodeShape) -> None:
        widths.append(shape.rows)
        step(self, shape)

    monkeypatch.setattr(decoding.Decoder, "step", counted)
    question = make_request()
    answers = generate_in_slots(llama, question, 8)
    # the first token of each answer comes of its prompt's own pass: no step is taken for it, and
    # none for a row that has ended
    assert sum(widths) == sum(len(a) - 1 for a in answers)
    assert max(widths) == 8
    assert widths[-1] < 8


def test_longest_prompts_first_bounded_passes(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest prompts come first and the size of a pass is bounded."""
    monkeypatch.setitem(generate.PROMPT_TOKENS, "cpu", 40)
    passes: list[torch.Size] = []
    llama_forward = llama.forward

    def seen(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] > 1:
            passes.append(kwargs["input_ids"].shape)
        return llama_forward(*args, **kwargs)

    monkeypatch.setattr(llama, "forward", seen)
    question = make_request()
    generate_in_slots(llama, question, 57)
    assert [shape[1] for shape in passes] == sorted((s[1] for s in passes), reverse=True)
    assert all(rows * longest <= 40 or rows == 1 for rows, longest in passes)


def test_slot_reuse_clears_cache(llama: Any) -> None:
    """A slot keeps nothing of its previous prompt.

    A value that is not finite would get through the mask: zero times it is not a number.
    """
    cache = new_prompt_cache(llama.config)
    llama(torch.tensor([[3, 4, 5], [6, 7, 8]]), past_key_values=cache, use_cache=True)
    slots = KVSlots(cache, rows=4, places=10)
    held = [t for layer in slots.layers for t in (layer.keys, layer.values)]
    for tensor in held:
        tensor.fill_(float("nan"))
    slots.fill(cache, torch.tensor([3, 1]))
    given = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    for tensor, new in zip(held, given, strict=True):
        assert torch.equal(tensor[3, :, :3], new[0])
        assert torch.equal(tensor[1, :, :3], new[1])
        assert not tensor[[1, 3], :, 3:].any()
        assert tensor[[0, 2]].isnan().all()


def test_unsupported_model_refused() -> None:
    """A model that fast generation does not support is refused."""
    torch.manual_seed(0)
    window = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)).eval()
    mixed = Gemma3ForCausalLM(
        Gemma3TextConfig(**SMALL, sliding_window=8, query_pre_attn_scalar=8)
    ).eval()
    for model in (window, mixed):
        with pytest.raises(
            FastGenerationUnsupported, match="unsupported layers: DynamicSlidingWindowLayer"
        ):
            generate_in_slots(model, make_request(3), 2)
    base = Qwen3ForCausalLM(Qwen3Config(**SMALL)).eval()
    with pytest.raises(FastGenerationUnsupported, match="a prompt without tokens"):
        generate_in_slots(base, GenerationRequest([[3], []], (2,), 4, 0), 2)
    prompted = peft.get_peft_model(
        base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(FastGenerationUnsupported, match="virtual tokens"):
        generate_in_slots(prompted, make_request(3), 2)


def test_generation_is_greedy(llama: Any) -> None:
    """Decoding is greedy whatever the model's generation config says.

    transformers fills what a generation config leaves open from the model's own.
    """
    question = make_request(20, ends=(2,))
    wanted = generate_plain(llama, question)
    published = llama.generation_config
    llama.generation_config = type(published)(
        do_sample=True, temperature=2.0, repetition_penalty=3.0, no_repeat_ngram_size=2, top_k=3
    )
    try:
        assert generate_plain(llama, question) == wanted
        assert generate_in_slots(llama, question, 8) == wanted
    finally:
        llama.generation_config = published


def test_difference_judged_by_logits(llama: Any) -> None:
    """A difference between two answers is judged by the logits."""
    question = make_request(4, ends=(), most=3)
    theirs = generate_plain(llama, question)
    logits = llama(torch.tensor([question.prompts[1]])).logits[0, -1].detach()
    second = int(logits.topk(2).indices[1])
    ours = [list(a) for a in theirs]
    ours[1][0] = second
    ours[2] = ours[2][:2]
    (one, two) = first_differences(llama, question, ours, theirs)
    gap = (logits.max() - logits[second]) / logits.abs().max()
    assert (one.row, one.place, two.row) == (1, 0, 2)
    assert one.gap == pytest.approx(float(gap), rel=1e-4)
    assert two.gap == float("inf")  # one answer goes on where the other has ended


def wrong_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row one place too far: what a wrong position does."""
    real = decoding.Decoder._step

    def off(self: Any, shape: decoding.DecodeShape) -> None:
        self.positions[: shape.span.width * shape.rows] += 1
        real(self, shape)

    monkeypatch.setattr(decoding.Decoder, "_step", off)


def conditions(precision: str = "fp32") -> Any:
    trial = make_trial("lora", "sft")
    return dataclasses.replace(trial.conditions, precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_probe_accepts_right_stops_wrong(
    llama: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe passes correct generation and stops an incorrect one."""
    question = make_request(ends=(2,))
    assert generation.generation_mismatch(llama, question, conditions(precision), False) is None
    wrong_positions(monkeypatch)
    why = generation.generation_mismatch(llama, question, conditions(precision), False)
    assert why is not None
    assert "answers differ from plain generate" in why


def test_probe_uses_trained_weights(
    llama: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method is probed with weights away from their initial values."""
    data = write_splits(tmp_path)
    wished = dataclasses.replace(Switches.all_off(), generation=True)
    good = probe_accelerators(make_trial("lora", "sft"), str(tiny_llama), data, wished)
    assert good.switches.generation
    assert "generation" not in good.reasons
    prompt = probe_accelerators(make_trial("prompt_tuning", "sft"), str(tiny_llama), data, wished)
    assert not prompt.switches.generation
    assert "virtual tokens" in prompt.reasons["generation"]
    with monkeypatch.context() as patch:
        wrong_positions(patch)
        base = str(llama.config._name_or_path)
        wrong = probe_accelerators(make_trial("lora", "sft"), base, data, wished)
    assert not wrong.switches.generation
    assert "answers differ from plain generate" in wrong.reasons["generation"]
    asked_of: list[bool] = []

    def told(lanes: Any, *_: Any) -> generation.GenerationMismatch:
        lanes.run_lanes(0, 1, 1)
        named = lanes.model.named_parameters()
        asked_of.append(any(p.any() for n, p in named if "lora_B" in n))
        return generation.GenerationMismatch(None, None)

    monkeypatch.setattr("bakeoff.training.preflight.parity.probe_generation", told)
    probe_accelerators(make_trial("lora", "sft"), str(tiny_llama), data, wished)
    assert asked_of == [True], "at LoRA's start its B is zero and an adapter tells nothing"


def study(study_values: dict[str, Any], model: Path, generation: str) -> bakeoff.StudySpec:
    study_values["base"] = {"model": str(model)}
    study_values["task"] = {"kind": "sft", "max_length": 64, "max_new_tokens": 20}
    study_values["budget"] |= {"steps": 2, "settings": 1, "seeds": 1, "validations": 1}
    study_values["data"]["columns"] = {"prompt": "{text}\n", "completion": "{json}"}
    study_values["methods"]["contenders"] = ["prompt_tuning"]
    study_values["method"] = {}
    study_values["engine"]["generation"] = generation
    return bakeoff.parse_spec(study_values)


def test_study_scores_same_names_plain(
    study_values: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """A study gives the same scores and names the methods that used plain generation."""
    found = {
        key: bakeoff.run(study(study_values, tiny_llama, key), tmp_path, tmp_path / key)
        for key in ("auto", "off")
    }
    engines = {m["method"]: m["engine"] for m in found["auto"]["methods"]}
    assert {"generation", "lane_generation"} <= set(engines["lora"]["on"])
    assert "virtual tokens" in engines["prompt_tuning"]["off"]["generation"]
    assert all(m["engine"]["off"]["generation"] is None for m in found["off"]["methods"])
    for auto, off in zip(found["auto"]["methods"], found["off"]["methods"], strict=True):
        assert auto["score"] == off["score"]
        assert [s["trial_id"] for s in auto["seeds"]] == [s["trial_id"] for s in off["seeds"]]
    assert found["auto"]["base"] == found["off"]["base"]
    assert not any("plain generate" in w for w in found["auto"]["warnings"])


def test_base_exceeding_memory_reported(
    study_values: dict[str, Any], llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that does not fit is reported."""
    wrong_positions(monkeypatch)
    spec = study(study_values, Path(llama.config._name_or_path), "auto")
    found = bakeoff.run(spec, tmp_path, tmp_path / "out")
    # the methods' probes run in processes of their own, where nothing is patched
    (said,) = (w for w in found["warnings"] if "base model answered with plain `generate`" in w)
    assert "answers differ from plain generate" in said


def test_benchmark_omits_ratio_for_mismatch(
    script: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The benchmark runs and gives no ratio when the tokens differ."""
    few = ["--shape", "tiny", "--prompts", "6", "--batch", "5", "--most", "12"]
    module = script("generation")
    assert module.main([*few, "--lanes", "3", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["answers"]["count"] == 18
    together, each = list(measured["sides"].values())[2:]
    for side in (together, each):
        assert side["rows_that_differ"] == 0
        assert side["ratio_one_lane"] > 0
    assert module.main(few) == 0
    assert "   0 rows differ" in capsys.readouterr().out
    wrong_positions(monkeypatch)
    assert module.main(few) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "rows differ beyond rounding: no ratio" in said.err


@pytest.mark.skipif(
    SMOLLM2 is None, reason="the model is not in the cache: `bakeoff assets smollm2-135m-instruct`"
)
def test_real_model_with_adapter(
    script: Callable[[str], ModuleType],
) -> None:
    """A real model with an adapter answers two hundred prompts."""
    base: Any = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(SMOLLM2)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model: Any = peft.get_peft_model(base, config).eval()
    texts = [text[: 6 + i % 24] for i, text in enumerate(script("generation").questions(200))]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    question = GenerationRequest(
        prompts, (tokenizer.eos_token_id, tokenizer(" the")["input_ids"][0]), 4, 0
    )
    theirs = [
        answer
        for start in range(0, 200, 50)
        for answer in generate_plain(model, question._replace(prompts=prompts[start : start + 50]))
    ]
    off = list(first_differences(model, question, generate_in_slots(model, question, 64), theirs))
    assert all(d.gap <= ROUNDING["fp32"] for d in off)
    assert len(off) <= 2, "in fp32 a tie is rare"
