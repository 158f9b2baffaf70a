"""Ways to learn an energy."""

from ebm_jax.methods import (
    contrastive,
    denoising,
    energy_matching,
    improved,
    joint,
    label,
    matching,
    noise_contrastive,
)

METHODS = {
    "contrastive": contrastive.contrastive,
    "label": label.label_contrast,
    "denoising": denoising.denoising,
    "energy_matching": energy_matching.energy_matching,
    "fresh_contrast": energy_matching.fresh_contrast,
    "improved": improved.improved,
    "joint": joint.joint,
    "equilibrium": matching.equilibrium,
    "noise_contrastive": noise_contrastive.noise_contrastive,
}
"""Factories; each factory's signature names what it needs (`assemble.make_method`)."""
COMPARING = ("joint", "label")
"""Methods whose loss has one image under several classes."""
ORDERINGS = ("equilibrium", "energy_matching")
"""Methods of matching, of which the energy only orders images by how noisy they are: exp(-U) is the law of nothing."""
