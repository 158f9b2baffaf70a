"""Ways to learn an energy."""

from ebm_jax.methods import contrastive, denoising, label

METHODS = {
    "contrastive": contrastive.contrastive,
    "label": label.label_contrast,
    "denoising": denoising.denoising,
}
"""Factories; each factory's signature names what it needs (`assemble.make_method`)."""
