"""Fine-tuning methods: one TOML file each in ``catalog/``, and code in ``hooks/`` if needed."""
