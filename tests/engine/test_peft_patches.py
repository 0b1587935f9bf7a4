"""Each patch computes what PEFT computes: values and gradients, on plain models without lanes."""

from __future__ import annotations

import copy
import gc
import pkgutil
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import pytest
import torch
from helpers.peft_types import CASES
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bakeoff.engine import peft_patches
from bakeoff.engine.device import move_to_device
from bakeoff.engine.lanes import dropout
from bakeoff.engine.packing.tokens import PaddingMask
from bakeoff.methods.boft_extension import disable_boft_extension

EXACT = 0.0
ROUNDING = 1e-6
"""Relative: where a product's terms are summed in another order."""


class Plain(NamedTuple):
    """A layer's output and the gradients of its input and of what it trains."""

    output: Tensor
    gradients: dict[str, Tensor]


class Two(nn.Module):
    """Two linear layers: the one reads what the other's adapter wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 16)
        self.second = nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(torch.tanh(self.first(x))))


def attached(name: str, **changes: Any) -> nn.Module:
    """Put a type on the two layers, every trained tensor at random."""
    torch.manual_seed(0)
    entry = next(c.entry for c in CASES if c.name == name)
    values = {**entry.config, "target_modules": ["first", "second"], **changes}
    with warnings.catch_warnings(), disable_boft_extension():
        warnings.simplefilter("ignore", UserWarning)
        model: nn.Module = peft.get_peft_model(Two(), getattr(peft, str(entry.peft))(**values))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model.train()


def once(model: nn.Module, given: Tensor) -> Plain:
    """Run forward and backward."""
    x = given.clone().requires_grad_()
    with warnings.catch_warnings():
        # PEFT's own sparse tensors
        warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
        output = model(x)
        found = {"x": x, **{n: p for n, p in model.named_parameters() if p.requires_grad}}
        grads = torch.autograd.grad(output.square().sum(), list(found.values()))
    return Plain(output.detach(), dict(zip(found, grads, strict=True)))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


# name in peft_types, other arguments, how far forward and backward may be apart
LAYERS = [
    ("boft", {}, ROUNDING, ROUNDING),
    ("c3a", {}, EXACT, ROUNDING),
    ("dora", {}, EXACT, EXACT),
    ("fourierft", {}, EXACT, EXACT),
    ("frod", {}, ROUNDING, ROUNDING),
    ("lily", {}, EXACT, ROUNDING),
    ("loha", {}, EXACT, ROUNDING),
    ("lokr", {}, EXACT, EXACT),
    ("oft", {}, EXACT, EXACT),
    ("oft", {"num_cayley_neumann_terms": 2}, EXACT, EXACT),
    ("oft", {"num_cayley_neumann_terms": 3}, EXACT, EXACT),
    ("oft", {"use_cayley_neumann": False}, EXACT, EXACT),
    ("oft", {"coft": True, "eps": 1e-2}, EXACT, EXACT),
    ("oft", {"block_share": True}, EXACT, EXACT),
    ("randlora", {}, EXACT, ROUNDING),
    ("shira", {}, EXACT, EXACT),
    ("vblora", {}, EXACT, EXACT),
    ("tinylora", {}, EXACT, EXACT),
    ("tinylora", {"weight_tying": 1.0}, EXACT, EXACT),
    ("velora", {}, EXACT, ROUNDING),
    ("velora", {"velora_config": {"num_groups": 4, "init_type": "random"}}, EXACT, ROUNDING),
    ("velora", {"velora_config": {"num_groups": 4, "scale": 0.5}}, EXACT, ROUNDING),
    ("waveft", {}, EXACT, EXACT),
    ("waveft", {"use_idwt": False}, EXACT, EXACT),
    ("waveft", {"wavelet_family": "db3"}, EXACT, EXACT),
    ("waveft", {"wavelet_family": "sym2"}, EXACT, EXACT),
]


@pytest.mark.parametrize(
    ("name", "changes", "forward", "backward"),
    LAYERS,
    ids=[f"{n}-{'-'.join(map(str, c.values()))}".rstrip("-") for n, c, *_ in LAYERS],
)
def test_equals_peft(name: str, changes: dict[str, Any], forward: float, backward: float) -> None:
    x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(1))
    model = attached(name, **changes)
    own = once(copy.deepcopy(model), x)
    on = {m.original_class.__module__ for m in peft_patches.install_patches(model)}
    assert any(m.startswith("peft.tuners") for m in on)
    found = once(model, x)
    assert apart(found.output, own.output) <= forward
    # TinyLoRA's vectors have other names, in the same order
    pairs = zip(found.gradients.items(), own.gradients.values(), strict=True)
    for (n, gradient), expected in pairs:
        assert apart(gradient, expected) <= backward, n


@pytest.mark.parametrize("name", sorted({name for name, *_ in LAYERS} - {"lily"}))
def test_merges_as_peft_does(name: str) -> None:
    model = attached(name).eval()
    other = copy.deepcopy(model)
    peft_patches.install_patches(model)
    x = torch.randn(3, 32)
    for each in (model, other):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
            each.merge_adapter()
    assert apart(model(x), other(x)) <= ROUNDING


def test_every_file_is_tested_here() -> None:
    special = {"cartridge", "cpt", "lora_variants", "multitask", "padding_mask", "prompt", "pvera"}
    special |= {"shadow", "trainable_tokens"}
    # what loha and lokr share has a file of its own, and lokr needs no other
    shared = {"lycoris"}
    files = {m.name for m in pkgutil.iter_modules(peft_patches.__path__)}
    assert files == special | shared | {name for name, *_ in LAYERS} - {"lokr", "velora"}


def test_installing_twice_is_installing_once() -> None:
    model = attached("oft")
    before = [type(m) for m in model.modules()]
    on = peft_patches.install_patches(model)
    once_on = [type(m) for m in model.modules()]
    assert once_on != before
    assert peft_patches.install_patches(model) == on, "twice is once"
    assert [type(m) for m in model.modules()] == once_on


def test_subclass_is_not_patched() -> None:
    """A subclass with a method of its own is not patched."""
    model = attached("lokr")
    layer = model.base_model.model.first
    own = type("Own", (type(layer),), {"forward": lambda self, x: x})
    layer.__class__ = own
    peft_patches.install_patches(model)
    assert type(layer) is own


def test_loha_lokr_draws_match_peft() -> None:
    """LoHa and LoKr draw the same initial values as PEFT."""
    for name in ("loha", "lokr"):
        model = attached(name, module_dropout=0.5)
        other = copy.deepcopy(model)
        peft_patches.install_patches(model)
        x = torch.randn(2, 32)
        for seed in range(4):
            torch.manual_seed(seed)
            found = model(x)
            torch.manual_seed(seed)
            assert torch.equal(found, other(x))


def tiny_causal_lm(config: peft.PeftConfig) -> nn.Module:
    """Put a prompt method on a Llama of one layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, pad_token_id=0,
        )
    )  # fmt: skip
    model: nn.Module = peft.get_peft_model(base, config)
    return model.train()


def trained(model: nn.Module, steps: int) -> list[Tensor]:
    """Take AdamW steps and return each step's logits."""
    ids = torch.randint(0, 20, (3, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    seen = []
    for _ in range(steps):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        optimizer.zero_grad()
        logits.square().sum().backward()
        optimizer.step()
        seen.append(logits.detach())
    return seen


BEFORE_LAYERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "cartridge": lambda: peft.CartridgeConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "cpt": lambda: peft.CPTConfig(
        cpt_token_ids=[1, 2, 3, 4, 5],
        cpt_mask=[1] * 5,
        cpt_tokens_type_mask=[0, 1, 2, 3, 4],
        task_type="CAUSAL_LM",
    ),
    "prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "trainable_tokens": lambda: peft.TrainableTokensConfig(
        token_indices=[1, 3, 7], task_type="CAUSAL_LM"
    ),
}


@pytest.mark.parametrize("name", BEFORE_LAYERS)
def test_prompt_methods_match_peft(name: str) -> None:
    """Methods that prepend virtual tokens train as in PEFT."""
    runs = []
    for patched in (False, True):
        model = tiny_causal_lm(BEFORE_LAYERS[name]())
        assert not patched or peft_patches.install_patches(model)
        runs.append(trained(model, 8))
    assert not torch.equal(runs[0][0], runs[0][-1])
    for own, found in zip(*runs, strict=True):
        assert apart(found, own) <= ROUNDING


@pytest.mark.parametrize("name", BEFORE_LAYERS)
def test_prompt_methods_avoid_host_copies(name: str) -> None:
    """Methods that prepend virtual tokens copy nothing from the host."""
    model = move_to_device(tiny_causal_lm(BEFORE_LAYERS[name]()), "meta")
    model.base_model.set_attn_implementation("eager")  # SDPA's mask looks at its values
    peft_patches.install_patches(model)
    ids = torch.zeros(3, 5, dtype=torch.long, device="meta")
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    model(**given)  # what is kept from then on may be copied once
    with Copies() as copies:
        model(**given)
    assert copies.found == []


class Copies(TorchDispatchMode):
    """Notes the operations that take a tensor of the host to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)]
        wide = [t for t in held if t.device.type == "cpu" and t.ndim > 0]
        if wide and isinstance(out, Tensor) and out.device.type != "cpu":
            self.found.append(f"{func} {tuple(wide[0].shape)}")
        return out


def test_cpt_memory_and_radius() -> None:
    """CPT keeps its memory and its radius."""
    model = tiny_causal_lm(BEFORE_LAYERS["cpt"]())
    peft_patches.install_patches(model)
    encoder = model.prompt_encoder["default"]
    weight = encoder.delta_embedding.weight
    at = weight.data_ptr()
    trained(model, 3)
    assert weight.data_ptr() == at
    with torch.no_grad():
        weight.mul_(100)
    model(input_ids=torch.ones(1, 2, dtype=torch.long))
    norms = weight.detach().norm(dim=1)
    assert torch.allclose(norms[[1, 2, 3]], encoder.get_epsilon()[[1, 2, 3]])


def test_pvera_draws_by_key() -> None:
    model = attached("pvera")
    own = copy.deepcopy(model)
    peft_patches.install_patches(model)
    layer = model.base_model.model.first
    mu, logvar = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.manual_seed(0)
    unkeyed = layer._reparametrize(mu, logvar, "default")
    torch.manual_seed(0)
    assert torch.equal(unkeyed, own.base_model.model.first._reparametrize(mu, logvar, "default"))
    draws = dropout.LaneRandom([0], torch.device("cpu"))
    layer.keyed = dropout.KeyedDropout(layer, draws)
    draws.begin_step(0)
    one = layer._reparametrize(mu, logvar, "default")
    draws.begin_step(0)
    assert torch.equal(one, layer._reparametrize(mu, logvar, "default"))
    draws.begin_step(1)
    assert not torch.equal(one, layer._reparametrize(mu, logvar, "default"))
    assert torch.equal(layer.eval()._reparametrize(mu, logvar, "default"), mu)


def test_keyed_noise_is_standard_normal() -> None:
    draws = dropout.LaneRandom([0, 1], torch.device("cpu"))
    draws.begin_step(0)
    noise = draws.noise(200_000)
    first, second = (dropout.standard_normal(noise * key[0] + key[1]) for key in draws.next_key())
    for found in (first, second):
        assert torch.isfinite(found).all()
        assert abs(float(found.mean())) < 0.01
        assert abs(float(found.std()) - 1) < 0.01
        assert abs(float((found.abs() < 1).float().mean()) - 0.6827) < 0.005
    assert abs(float((first * second).mean())) < 0.01
    edges = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)
    assert torch.isfinite(dropout.standard_normal(edges)).all()


def test_shadow_states_are_open_to_trees() -> None:
    from peft.tuners.shadow.layers import ShadowCarrier

    config = peft.ShadowConfig(r=2, shadow_dropout=0.0, task_type="CAUSAL_LM")
    assert peft_patches.install_patches(tiny_causal_lm(config))
    leaves, tree = pytree.tree_flatten(ShadowCarrier(torch.ones(1), torch.zeros(1)))
    assert [float(x) for x in leaves] == [1.0, 0.0]
    assert float(pytree.tree_unflatten(leaves, tree).hidden) == 1.0


@torch.no_grad()
def test_lily_averages_over_real_tokens() -> None:
    """Padding changes nothing; another row of the batch does, as in PEFT."""
    model = attached("lily", stride_A=1).eval()
    peft_patches.install_patches(model)
    x, other = torch.randn(1, 4, 32), torch.randn(1, 4, 32)
    alone = model(x)[0]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    try:
        PaddingMask.mask = mask
        padded = model(torch.cat([x, other[:, :2]], 1))[0, :4]
        PaddingMask.mask = torch.ones(2, 4)
        beside = model(torch.cat([x, other]))[0]
    finally:
        PaddingMask.mask = None
    assert apart(padded, alone) < ROUNDING
    assert not torch.allclose(alone, beside, atol=1e-4)


def test_monteclora_is_pefts_given_its_draws() -> None:
    """Output, penalty and gradients are those of PEFT with the same normals."""
    model = attached("monteclora", init_lora_weights=False)
    own = copy.deepcopy(model)
    peft_patches.install_patches(model)
    draws = dropout.LaneRandom([0], torch.device("cpu"))
    draws.begin_step(0)
    x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(1))
    samplers = [m for m in model.modules() if hasattr(m, "std_prior")]
    for sampler, other in zip(
        samplers, [m for m in own.modules() if hasattr(m, "std_prior")], strict=True
    ):
        sampler.keyed = dropout.KeyedDropout(sampler, draws)
        count, size, rank = sampler.num_samples, sampler.in_features, sampler.out_features
        few = count + rank * rank
        normals = sampler.keyed.normals((few + count * size * rank,))
        squares = normals[count:few].view(rank, rank).square().sum(1)
        sample = {
            "z_dirichlet": normals[:count],
            "z_wishart": torch.diag(squares),
            "z_mvn": normals[few:].view(count, size, rank),
        }
        other.sampler.get = lambda sample=sample: sample
    draws.begin_step(0)

    def run(model: Any) -> Plain:
        trained = [p for p in model.parameters() if p.requires_grad]
        output = model(x)
        penalty = model.base_model._get_monteclora_loss()
        slopes = torch.autograd.grad(output.square().sum() + penalty, trained)
        return Plain(torch.cat([output.flatten(), penalty[None]]).detach(), {"": flat(slopes)})

    def flat(tensors: Any) -> Tensor:
        return torch.cat([t.flatten() for t in tensors])

    found, expected = run(model), run(own)
    assert apart(found.output, expected.output) < ROUNDING
    assert apart(found.output[-1], expected.output[-1]) < ROUNDING
    assert apart(found.gradients[""], expected.gradients[""]) < ROUNDING


def test_graphs_keep_the_noise_that_they_read() -> None:
    """A captured graph reads the noise at its address: it outlives a larger one."""
    draws = dropout.LaneRandom([0], torch.device("cpu"))
    draws.captured = True
    first = draws.noise(8)
    held = weakref.ref(first.untyped_storage())
    values = first.clone()
    del first
    longer = draws.noise(1000)
    gc.collect()
    assert held() is not None
    assert torch.equal(longer[:8], values)


def test_missing_task_ids_are_zero() -> None:
    """Rows that name no task are of task 0."""
    config = peft.MultitaskPromptTuningConfig(
        num_virtual_tokens=4, num_tasks=2, task_type="CAUSAL_LM"
    )
    model = tiny_causal_lm(config).eval()
    for parameter in model.prompt_encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    named = model(input_ids=ids, task_ids=torch.zeros(2, dtype=torch.long)).logits
    other = model(input_ids=ids, task_ids=torch.ones(2, dtype=torch.long)).logits
    assert peft_patches.install_patches(model)
    assert torch.equal(model(input_ids=ids).logits, named)
    assert torch.equal(model(input_ids=ids, task_ids=torch.ones(2, dtype=torch.long)).logits, other)


def test_poly_routes_missing_as_zero() -> None:
    """Poly routes rows that name no task as task 0."""
    model = attached("poly", n_tasks=2, n_splits=1).eval()
    x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(1))
    tasks = torch.zeros(4, dtype=torch.long)
    own = model.base_model(x, task_ids=tasks)
    assert peft_patches.install_patches(model)
    assert torch.equal(model(x), own)
    assert torch.equal(model.base_model(x, task_ids=tasks), own)
    assert torch.allclose(model(x[:, 0]), own[:, 0], atol=1e-6), "one vector a row"


def test_polys_noise_is_a_relaxed_bernoullis() -> None:
    model = attached("poly", n_splits=4, n_skills=8).train()
    peft_patches.install_patches(model)
    router = next(m for m in model.modules() if hasattr(m, "module_logits"))
    nn.init.zeros_(router.module_logits)
    draws = dropout.LaneRandom([3], torch.device("cpu"))
    router.keyed = dropout.KeyedDropout(router, draws)
    draws.begin_step(0)
    weights = router(None, torch.zeros(500, 2, 32))
    # logits of 0 at temperature 1: uniform on (0, 1) before they are made to sum to 1
    shares = weights / weights.max(-1, keepdim=True).values
    assert 0 < shares.min() < 0.01
    draws.begin_step(0)
    assert torch.equal(router(None, torch.zeros(500, 2, 32)), weights)
    draws.begin_step(1)
    assert not torch.equal(router(None, torch.zeros(500, 2, 32)), weights)
