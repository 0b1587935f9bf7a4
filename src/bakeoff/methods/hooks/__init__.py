"""Methods that need code beyond a PEFT config: one module each, named by ``hook`` in their TOML.

Each module defines ``HOOK``, a subclass of ``methods.hook.Hook``. Hooks do not import each other.
"""
