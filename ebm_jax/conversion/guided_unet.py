"""Energy matching's state dict (m1balcerak/EnergyMatching at 18176e4) as parameters of `models.guided_unet`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ebm_jax.conversion.layers import biased, gain, linear

HEAD_CHANNELS = 64  # of the U-Net's attention; the arrays do not tell it


def energy_matching_params(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of `models.guided_unet` with a transformer, and the keys of the config that they fit.

    Raises:
      KeyError: an array is missing.
      ValueError: there is an array that this network has not, or one of a shape that no such network has.
    """
    rest = dict(arrays)
    params = {f"time{index + 1}": linear(rest, f"time_embed.{2 * index}") for index in range(2)}
    width = len(params["time1"]["kernel"])
    params["stem"] = biased(rest, "input_blocks.0.0")
    widths, blocks, attended, place = [], 0, [], 1
    while f"input_blocks.{place}.0.in_layers.0.weight" in rest:
        level, blocks = len(widths), 0
        while f"input_blocks.{place}.0.in_layers.0.weight" in rest:
            params[f"down{level}_{blocks}"] = _residual(rest, f"input_blocks.{place}.0")
            if f"input_blocks.{place}.1.qkv.weight" in rest:
                params[f"down{level}_{blocks}_attention"] = _attention(rest, f"input_blocks.{place}.1")
                attended.append(level)
            blocks, place = blocks + 1, place + 1
        widths.append(len(params[f"down{level}_0"]["conv2"]["bias"]))
        if f"input_blocks.{place}.0.op.weight" in rest:
            params[f"halve{level + 1}"] = biased(rest, f"input_blocks.{place}.0.op")
            place += 1
    for index, name in ((0, "middle0"), (2, "middle1")):
        params[name] = _residual(rest, f"middle_block.{index}")
    params["middle_attention"] = _attention(rest, "middle_block.1")
    for place in range((blocks + 1) * len(widths)):
        level, index = len(widths) - 1 - place // (blocks + 1), place % (blocks + 1)
        params[f"up{level}_{index}"] = _residual(rest, f"output_blocks.{place}.0")
        if level in attended:
            params[f"up{level}_{index}_attention"] = _attention(rest, f"output_blocks.{place}.1")
        if level and index == blocks:
            params[f"enlarge{level}"] = biased(rest, f"output_blocks.{place}.{1 + (level in attended)}.conv")
    params["norm"], params["out"] = gain(rest, "out.0"), biased(rest, "out.2")
    params["scalar"], head = _transformer(rest)
    if rest:
        raise ValueError(f"it has {min(rest)}")
    multipliers = tuple(channels // width for channels in widths)
    if [width * multiplier for multiplier in multipliers] != widths or len(set(attended)) != 1:
        raise ValueError(f"its maps have {widths} channels, and attention at the resolutions {attended}")
    side = head.pop("side")
    keys = {"model.width": width, "model.unet.multipliers": multipliers, "model.unet.blocks": blocks}
    keys |= {"model.unet.attention": side >> attended[0], "model.unet.head_channels": HEAD_CHANNELS}
    keys |= {f"model.unet.transformer.{name}": value for name, value in head.items()}
    return params, keys | {"data.shape": (side, side, params["out"]["kernel"].shape[3])}


def _residual(rest: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """A residual block of torchcfm's."""
    block = {"norm1": gain(rest, f"{name}.in_layers.0"), "conv1": biased(rest, f"{name}.in_layers.2")}
    block |= {"shift": linear(rest, f"{name}.emb_layers.1"), "norm2": gain(rest, f"{name}.out_layers.0")}
    block["conv2"] = biased(rest, f"{name}.out_layers.3")
    if f"{name}.skip_connection.weight" in rest:
        skip = biased(rest, f"{name}.skip_connection")
        block["skip"] = skip | {"kernel": skip["kernel"][0, 0]}
    return block


def _attention(rest: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """Attention over pixels of torchcfm's: a head's queries, keys and values stand side by side in one matrix."""
    norm, given, out = gain(rest, f"{name}.norm"), linear(rest, f"{name}.qkv"), linear(rest, f"{name}.proj_out")
    channels = len(out["bias"])
    if channels % HEAD_CHANNELS:
        raise ValueError(f"{name} has {channels} channels, which do not divide into heads of {HEAD_CHANNELS}")
    kernel = given["kernel"].reshape(channels, -1, 3, HEAD_CHANNELS)
    bias = given["bias"].reshape(-1, 3, HEAD_CHANNELS)
    heads: dict[str, Any] = {"out": out}
    for index, part in enumerate(("query", "key", "value")):
        heads[part] = {"kernel": kernel[:, :, index].reshape(channels, channels), "bias": bias[:, index].ravel()}
    return {"norm": norm, "heads": heads}


def _transformer(rest: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
    """The head, and its patch, width and layers, and the side of the images."""
    token = biased(rest, "patch_embed.patch_embed")
    patch, _, channels, width = token["kernel"].shape
    head: dict[str, Any] = {"token": token | {"kernel": token["kernel"].reshape(patch * patch * channels, width)}}
    head["places"], layers = rest.pop("patch_embed.pos_embed"), 0
    while (name := f"transformer_encoder.layers.{layers}") and f"{name}.linear1.weight" in rest:
        kernel, bias = rest.pop(f"{name}.self_attn.in_proj_weight").T, rest.pop(f"{name}.self_attn.in_proj_bias")
        attention: dict[str, Any] = {"out": linear(rest, f"{name}.self_attn.out_proj")}
        for index, part in enumerate(("query", "key", "value")):
            of_part = slice(index * width, (index + 1) * width)
            attention[part] = {"kernel": kernel[:, of_part], "bias": bias[of_part]}
        layer: dict[str, Any] = {"attention": attention}
        layer |= {"hidden": linear(rest, f"{name}.linear1"), "back": linear(rest, f"{name}.linear2")}
        for norm in ("norm1", "norm2"):
            layer[norm] = {"scale": rest.pop(f"{name}.{norm}.weight"), "bias": rest.pop(f"{name}.{norm}.bias")}
        head[f"layer{layers}"], layers = layer, layers + 1
    head["head"] = linear(rest, "final_linear")
    side = patch * math.isqrt(head["places"].shape[1])
    return head, {"patch": patch, "width": width, "layers": layers, "side": side}
