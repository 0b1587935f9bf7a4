"""Packaged models and data by name, for the demo and the examples; no hub account is needed.

torch and transformers are imported only when a model has to be converted.

    list_assets()             all assets
    locate(name)              the folder, if it is prepared and intact
    prepare(name, progress)   the folder; a model is put into the cache first, data is shipped
"""

from __future__ import annotations

from bakeoff.data.assets.cache import MARKER, cache_folder
from bakeoff.data.assets.preparation import locate, prepare
from bakeoff.data.assets.registry import Asset, find_asset, list_assets

ASSET = "asset:"
"""Prefix of an asset's name in a study file."""

__all__ = ["MARKER", "Asset", "cache_folder", "find_asset", "list_assets", "locate", "prepare"]
