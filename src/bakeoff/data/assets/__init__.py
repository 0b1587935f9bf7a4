"""Packaged models and data by name: what the demo and the examples need, without a hub account.

First on the way of the data: ``api`` asks here for a base or data set that a study names, and gets
a folder. Nothing here imports torch or transformers until a model has to be converted.

    list_assets()             what there is
    locate(name)              the folder, if it is prepared and intact
    prepare(name, progress)   the folder, made if need be (models go to the cache, data is shipped)
"""

from __future__ import annotations

from bakeoff.data.assets.cache import MARKER, cache_folder
from bakeoff.data.assets.prepare import locate, prepare
from bakeoff.data.assets.registry import Asset, find_asset, list_assets

ASSET = "asset:"

__all__ = ["MARKER", "Asset", "cache_folder", "find_asset", "list_assets", "locate", "prepare"]
