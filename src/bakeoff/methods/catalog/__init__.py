"""The catalog: each TOML file in this folder is a method (see ``methods.registry``)."""
