"""Integrations: PEFT's benchmark, tracking tools, weight export, notebooks."""
