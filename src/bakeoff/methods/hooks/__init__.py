"""Methods that need code beyond a PEFT config: one file each, named by ``hook`` in their TOML.

Each module gives ``HOOK``, a subclass of ``methods.hook.Hook``; a hook never imports its sibling.
"""
