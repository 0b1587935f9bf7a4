"""PiSSA and OLoRA: PEFT starts them inside the base's weights by itself."""

from bakeoff.methods.residual_lora import ResidualLora

HOOK = ResidualLora
