"""The methods that compete: one TOML file each in ``catalog/``, code only in ``hooks/``."""
