"""Every PEFT type of peft 0.21.2 on the tests' tiny Llama: configuration, and whether lanes work.

One ``Case`` a type (and a few of LoRA's variants), written as a method entry and attached as a
user's method is. ``test_batched_peft_types`` verifies each verdict.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bakeoff.core.trial import MethodEntry

QV = {"target_modules": ["q_proj", "v_proj"]}
VIRTUAL = {"num_virtual_tokens": 4}


class Outcome(NamedTuple):
    """What is expected of a type, and what proves it.

    ``reason`` and ``raises`` are given for a type that does not ride: why, and the text of the
    error. ``unpacked`` is the text of ``NotPackable`` for one that rides in padded batches alone.
    ``random`` says that it draws noise in training, which is not PEFT's; ``mean`` that its layers
    average over tokens, in PEFT over padding, too: the two agree on rows of one length;
    ``tasks`` says that PEFT wants the task of every row, where a study has one;
    ``needs`` names a package that PEFT wants and bakeoff does not depend on.
    """

    reason: str | None = None
    raises: str | None = None
    unpacked: str | None = None
    random: bool = False
    mean: bool = False
    needs: str | None = None
    tasks: bool = False


class Case(NamedTuple):
    """One configuration of a PEFT type and what is expected of it."""

    name: str
    peft_type: str
    entry: MethodEntry
    outcome: Outcome

    @property
    def supports_lanes(self) -> bool:
        """Say whether it is expected to ride."""
        return self.outcome.reason is None


def _case(
    name: str,
    config_class: str,
    outcome: Outcome | None = None,
    of: str | None = None,
    hook: str | None = None,
    **config: Any,
) -> Case:
    entry = MethodEntry(
        name=name,
        title=name,
        family="",
        mechanism="",
        paper=None,
        peft=config_class,
        hook=hook,
        config=config,
        learning_rate=1e-2,
        learning_rate_why="",
    )
    return Case(name, of or name.upper(), entry, outcome or Outcome())


PREFIX = Outcome(unpacked="keys and values from outside the batch")

CASES = (
    _case("lora", "LoraConfig", r=4, **QV),
    _case("adalora", "AdaLoraConfig", init_r=4, target_r=2, total_step=100, tinit=10, tfinal=20,
          **QV),
    _case("adamss", "AdamssConfig", Outcome(needs="sklearn"),
          r=8, num_subspaces=2, subspace_rank=2, **QV),
    _case("adaption_prompt", "AdaptionPromptConfig", adapter_len=4, adapter_layers=2),
    _case("beft", "BeftConfig", target_modules=["v_proj"]),
    _case("boft", "BOFTConfig", boft_block_size=4, **QV),
    _case("c3a", "C3AConfig", block_size=8, **QV),
    _case("cartridge", "CartridgeConfig", PREFIX, **VIRTUAL),
    _case("cpt", "CPTConfig", cpt_token_ids=[3, 4, 5, 6], cpt_mask=[1, 1, 1, 1],
          cpt_tokens_type_mask=[1, 2, 3, 4]),
    _case("deft", "DeftConfig", r=4, **QV),
    _case("delora", "DeloraConfig", r=4, **QV),
    _case("fourierft", "FourierFTConfig", n_frequency=16, **QV),
    _case("frod", "FrodConfig", progressbar=False, sparse_rate=0.1, **QV),
    _case("glora", "GloraConfig", r=4, **QV),
    _case("gralora", "GraloraConfig", r=4, gralora_k=2, **QV),
    _case("hira", "HiraConfig", r=4, **QV),
    _case("hra", "HRAConfig", r=4, **QV),
    _case("ia3", "IA3Config", feedforward_modules=["down_proj"],
          target_modules=["k_proj", "v_proj", "down_proj"]),
    _case("lily", "LilyConfig", Outcome(mean=True), r=4, stride_A=2, num_B=2, **QV),
    _case("ln_tuning", "LNTuningConfig", target_modules="all-norms"),
    _case("loha", "LoHaConfig", r=4, **QV),
    _case("lokr", "LoKrConfig", r=4, **QV),
    _case("miss", "MissConfig", r=4, **QV),
    _case("multitask_prompt_tuning", "MultitaskPromptTuningConfig",
          Outcome(tasks=True), num_tasks=1, num_ranks=1, **VIRTUAL),
    _case("oft", "OFTConfig", oft_block_size=4, r=0, **QV),
    _case("osf", "OSFConfig", effective_rank=8, **QV),
    _case("peanut", "PeanutConfig", r=4, depth=2, **QV),
    _case("poly", "PolyConfig", Outcome(random=True), r=4, n_tasks=1, n_splits=2, **QV),
    _case("prefix_tuning", "PrefixTuningConfig", PREFIX, **VIRTUAL),
    _case("prompt_tuning", "PromptTuningConfig", **VIRTUAL),
    _case("psoft", "PsoftConfig", r=4, **QV),
    _case("pvera", "PveraConfig", Outcome(random=True), r=8, **QV),
    _case("p_tuning", "PromptEncoderConfig", encoder_hidden_size=16, **VIRTUAL),
    _case("randlora", "RandLoraConfig", r=4, **QV),
    _case("road", "RoadConfig", group_size=8, **QV),
    _case(
        "shadow", "ShadowConfig", Outcome(unpacked="does not receive one state"),
        r=4, shadow_dropout=0.0,
    ),
    _case("shira", "ShiraConfig", r=4, **QV),
    _case("supertuning", "SupertuningConfig", sparsity=0.9, **QV),
    _case("tinylora", "TinyLoraConfig", r=2, u=8, **QV),
    _case("trainable_tokens", "TrainableTokensConfig", token_indices=[3, 4, 5, 6],
          target_modules=["embed_tokens"]),
    _case("unilora", "UniLoraConfig", r=4, theta_d_length=32, **QV),
    _case("vblora", "VBLoRAConfig", r=4, num_vectors=16, vector_length=8, **QV),
    _case("vera", "VeraConfig", r=8, **QV),
    _case("waveft", "WaveFTConfig", n_frequency=16, **QV),
    _case("xlora", "XLoraConfig",
          Outcome("it mixes LoRA adapters that were trained before", raises="names adapters"),
          hidden_size=32, adapters={"trained": "no such LoRA"}),
    _case("dora", "LoraConfig", of="LORA", r=4, use_dora=True, **QV),
    _case("rslora", "LoraConfig", of="LORA", r=4, use_rslora=True, **QV),
    _case("velora", "LoraConfig", Outcome(mean=True), of="LORA", r=4,
          velora_config={"num_groups": 6}, **QV),
    _case("monteclora", "LoraConfig", Outcome(random=True), of="LORA", hook="monteclora", r=4,
          monteclora_config={"num_samples": 3, "sample_scaler": 0.1}, **QV),
    _case("pissa", "LoraConfig", of="LORA", r=4, init_lora_weights="pissa", **QV),
)  # fmt: skip
