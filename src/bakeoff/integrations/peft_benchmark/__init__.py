"""Exchange with PEFT's ``method_comparison`` benchmark, without torch.

``results`` reads and checks its result files, ``importing`` makes a study from them, ``exporting``
writes a study's final trials as such files, and ``experiment`` reads an experiment folder
(``adapter_config.json`` and ``training_params.json``) as a contender.
"""
