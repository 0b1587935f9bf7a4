"""Hugging Face's ``method_comparison``: its results in, its experiments in, ours out in its format.

Stands beside ``study``: ``results`` reads and checks its result files, ``importing`` makes a study
of them, ``exporting`` writes a study's final trials as such files, ``experiment`` reads a folder of
``adapter_config.json`` and ``training_params.json``. ``api`` and the CLI call it. Never imports
torch.
"""
