"""PiSSA and OLoRA: PEFT itself initialises them from the base's weights."""

from bakeoff.methods.residual_lora import ResidualLora

HOOK = ResidualLora
