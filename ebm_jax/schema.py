"""Every key of a run, once: its default, limits, meaning, unit and source.

Nothing else in the project has defaults. A key needs this one line and its use. Keys that concern only one network,
method, kernel, metric or task stand in a group of that name. The groups `own` are open: their keys are keywords for a
network, method, kernel or data source of the user's own, and a task or metric of the user's own reads them
(docs/extending.md).

Sources: "release" is openai/ebm_code_release at 051850e; "paper" is Du & Mordatch 2019, arXiv 1903.08689.

A run outlives the code that made it, so its config is read through this table. A key that the run lacks takes `absent`,
the value that acts as runs did before the key existed. `FORMER_NAMES` and `REMOVED` list renamed and removed keys.
"""

import copy
import difflib
import json
import math
import re
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ebm_jax.given import BadInput, Config
from ebm_jax.kinds import (
    ABOVE_ZERO,
    AMOUNT,
    BELOW_ONE,
    CHAIN_STEPS,
    COUNTS,
    FACTOR,
    FLAG,
    HASH,
    NOT_BELOW_ZERO,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SEED,
    SHAPE,
    SHARE,
    SHOWN,
    TEXT,
    WORD,
    Limit,
    one_of,
    shown,
    whole,
)

SAME: Any = object()
ALWAYS: Any = object()
WORDS_COUNT = 0.3  # in a likeness, whose letters count up to 1
RUN, FREE, HOST = "run", "free", "host"


class Key(NamedTuple):
    """One key of the config."""

    default: Any
    limit: Limit
    meaning: str
    """In words, with the unit."""
    source: str = ""
    """Where the default comes from, where it has a source."""
    absent: Any = ALWAYS
    """What a run did before the key existed; `ALWAYS`: every run has the key."""
    dry: Any = SAME
    """The value in a dry run; `SAME`: the config's own."""
    scope: str = ""
    """`RUN`: another value makes another run. `FREE`: a run may go on under any value. `HOST`: the same, and the hosts of
    a run may have different values. Empty: the group decides (`FREE_GROUPS`)."""


FREE_GROUPS = ("guard", "sample", "eval", "log", "checkpoint")
OPEN_GROUPS = tuple(f"{group}.own" for group in ("data", "model", "method", "chain", "sample", "eval"))
SOURCES_IN_DRY_RUNS = ("sklearn", "density", "shapes")
"""Data sources that a dry run keeps, because they need no download; it replaces any other by noise."""

# fmt: off
KEYS: dict[str, Key] = {
    "data.source": Key("tfds", WORD, "where images come from: tfds, sklearn (bundled digits), folder:PATH, npz:PATH, shapes, density (2-D), noise; or package.module:Name"),
    "data.name": Key("cifar10", WORD, "a TFDS set; digits for sklearn; a 2-D density; else any word"),
    "data.condition": Key("class", WORD, "what the model is conditional on: class; a factor: shape, size, position, rotation; a CelebA attribute; soft"),
    "data.shape": Key((32, 32, 3), SHAPE, "height, width, channels of an image; (2,) for a density"),
    "data.split": Key("train", WORD, "the part of the data to train on"),
    "data.holdout": Key(0.0, BELOW_ONE, "share of the images kept back as the split test where the data have none, chosen by their names; 0: none", "ours", absent=0.0),
    "data.class_order": Key("numeric", one_of("numeric", "text"), "order of class folders: numeric: whole numbers in names by value, 2 before 10; text: as strings", "ours", absent="text"),
    "data.crop": Key(False, FLAG, "True: shrink images, aspect kept, and crop their centre; False: refuse other sizes"),
    "data.extensions": Key("", TEXT, "endings of a folder's image files to take, apart by commas, such as .png,.jpg; empty: all that can be read", absent=".png,.jpg,.jpeg,.webp,.bmp,.gif,.tif,.tiff"),
    "data.max_value": Key(0.0, NOT_BELOW_ZERO, "the stored value of white in 16-bit images and in arrays that are not uint8; 0: the type's own (65535, 1), refused where it makes the set dark; inf: the type's own", absent=math.inf),
    "data.dir": Key("", TEXT, "where TFDS keeps its data; empty: TFDS's default, ~/tensorflow_datasets", scope=HOST),
    "data.manual_dir": Key("", TEXT, "take source files from here instead of downloading; empty: download", scope=HOST),
    "data.verify_checksums": Key(True, FLAG, "False: take what lies in manual_dir, and keep it apart", scope=FREE),
    "data.max_unreadable": Key(100, whole(0), "unreadable or wrongly sized images to step over before giving up", scope=FREE),
    "data.memory_gib": Key(1.0, AMOUNT, "GiB; sets whose pixels fit live in memory, larger ones stream, in equal order", scope=HOST),
    "data.workers": Key(0, whole(0, 1024), "threads that read and decode; 0: one a core", scope=HOST),
    "model.name": Key("resnet32", WORD, "the network: resnet32, resnet32_large, resnet32_wider, resnet128, mnist, dsprites, small, multiscale, unet, guided_unet, wide_resnet, mlp; or package.module:Name"),
    "model.width": Key(128, whole(1, 16_384), "channels of the first stage", "release", dry=8),
    "model.num_classes": Key(1, whole(1, 1_000_000), "1: unconditional; else the data's number of classes, or a soft label's length"),
    "model.logits": Key(False, FLAG, "True: a logit for each class, U(x, y) = -f_y and U(x) = -log Σ exp f_y, in place of layers that depend on the class; not unet, guided_unet", "Grathwohl et al. 2020", absent=False),
    "model.activation": Key("leaky_relu", WORD, "activation of the network: leaky_relu (slope 0.2), swish", "release"),
    "model.spectral_norm": Key(True, FLAG, "True: divide each kernel by its largest singular value", "release"),
    "model.dtype": Key("float32", one_of("float32", "bfloat16"), "float32, bfloat16: of the computation; parameters and energies stay float32"),
    "model.resnet.attention": Key(False, FLAG, "True: self-attention in place of a block, residual nets only", "release models.py:247"),
    "model.resnet.dropout": Key(0.0, BELOW_ONE, "rate of dropout in the blocks while training, residual nets only", "release: 0.5 in ResNet32Large"),
    "model.resnet.dropout_in_chains": Key(True, FLAG, "True: where there is dropout, training's chains have it too", "release train.py:548"),
    "model.multiscale.attention": Key(True, FLAG, "True: self-attention of the network at full resolution, after its second halving", "Du et al. 2021", absent=True),
    "model.multiscale.antialias": Key(False, FLAG, "True: halve maps by the filter (1, 2, 1) / 4; False: by the mean of 3x3 pixels", "Du et al. 2021", absent=False),
    "model.wide_resnet.depth": Key(28, whole(10, 1000), "number of layers, 6 n + 4 with n blocks a stage", "Grathwohl et al. 2020", absent=28, dry=10),
    "model.unet.multipliers": Key((1, 2), COUNTS, "channels of each resolution of unet and guided_unet, the finest first, in units of model.width", absent=(1, 2)),
    "model.unet.blocks": Key(1, whole(1, 100), "residual blocks of each resolution, each way; guided_unet has one more back", absent=1, dry=1),
    "model.unet.patch": Key(2, whole(1, 64), "pixels a side of a square that the first layer sees as one pixel", absent=2),
    "model.unet.attention": Key(0, whole(0, 4096), "pixels a side of the maps that have self-attention; 0: none", absent=0),
    "model.unet.head_channels": Key(0, whole(0, 16_384), "channels of a head of self-attention, at least; 0: one head, in unet without a norm before it, as the residual nets have", absent=0),
    "model.unet.energy": Key("dot", one_of("dot", "half_square", "half_distance", "transformer"), "the scalar of the net's image f(x): <x, f>, ½|f|², ½|x - f|², or a transformer of f's squares", "Wang & Du 2025", absent="dot"),
    "model.unet.transformer.patch": Key(4, whole(1, 4096), "pixels a side of a square of f that is a token", "Balcerak et al. 2025", absent=4),
    "model.unet.transformer.width": Key(384, whole(1, 16_384), "features of a token; a quarter of the perceptron's", "Balcerak et al. 2025", absent=384, dry=16),
    "model.unet.transformer.layers": Key(8, whole(1, 1_000), "number of layers, of attention and a perceptron each", "Balcerak et al. 2025", absent=8, dry=1),
    "model.unet.transformer.heads": Key(4, whole(1, 1_000), "number of heads of its attention; it divides the width", "Balcerak et al. 2025", absent=4, dry=4),
    "model.unet.transformer.scale": Key(1_000.0, POSITIVE, "factor of the energy", "Balcerak et al. 2025", absent=1_000.0),
    "model.unet.transformer.clamp": Key(math.inf, ABOVE_ZERO, "the energy is clamp · tanh(energy / clamp); inf: as it is", "Balcerak et al. 2025: 10,000 for ImageNet", absent=math.inf),
    "model.unet.dropout": Key(0.0, BELOW_ONE, "rate of dropout in the blocks and the transformer while training", absent=0.0),
    "method.name": Key("contrastive", WORD, "what training minimises: contrastive: by chains from a replay buffer; denoising: score matching at one noise level or several; equilibrium: matching whose descent generates; energy_matching: a flow by optimal transport; fresh_contrast: contrastive by chains that start anew; improved: contrastive that follows the samples too; joint: contrastive and a classifier of one network with model.logits; noise_contrastive: telling data from noise, in few dimensions; or package.module:Name", "ours", absent="contrastive"),
    "method.denoising.sigma": Key(0.1, POSITIVE, "σ of the noise that is taken off again, pixels being in [0, 1]", "ours", absent=0.1),
    "method.denoising.least": Key(0.0, NOT_NEGATIVE, "smallest σ of the noise of several levels, geometric over the batch; 0: σ", "Li et al. 2019", absent=0.0),
    "method.denoising.most": Key(0.0, NOT_NEGATIVE, "largest σ of the noise of several levels; 0: σ", "Li et al. 2019", absent=0.0),
    "method.equilibrium.flat_until": Key(0.8, BELOW_ONE, "a: share of data in an image up to which the gradient keeps its full length", "Wang & Du 2025", absent=0.8),
    "method.equilibrium.start": Key(1.0, POSITIVE, "length of the gradient at pure noise, in units of that at a", "Wang & Du 2025", absent=1.0),
    "method.equilibrium.strength": Key(4.0, POSITIVE, "length of the gradient at a, in units of the way from noise to data", "Wang & Du 2025", absent=4.0),
    "method.equilibrium.class_dropout": Key(0.1, BELOW_ONE, "share of images trained on as ones of no class, where the model has classes: for sample.guidance", "Wang & Du 2025", absent=0.1),
    "method.improved.kl_weight": Key(1.0, NOT_NEGATIVE, "weight of the energy of chains' last step, into which the parameters' gradient flows", "Du et al. 2021", absent=1.0),
    "method.improved.entropy_weight": Key(0.3, NOT_NEGATIVE, "weight of the log of the distance of chains to the nearest stored one", "Du et al. 2021", absent=0.3),
    "method.improved.neighbours": Key(100, whole(1, 1_000_000), "stored chains, of a device's share, that the nearest one is sought in", "Du et al. 2021", absent=100),
    "method.joint.class_weight": Key(1.0, POSITIVE, "weight of the cross-entropy of the classes beside contrastive divergence", "Grathwohl et al. 2020", absent=1.0),
    "method.energy_matching.pairing": Key("exact", one_of("exact", "sinkhorn", "independent"), "which noise goes with which image of a device's batch: by optimal transport, by its entropic plan, or any", "Balcerak et al. 2025", absent="exact"),
    "method.energy_matching.blur": Key(0.05, POSITIVE, "temperature of the entropic plan, in units of the mean squared distance", "ours", absent=0.05),
    "method.energy_matching.cutoff": Key(1.0, SHARE, "share of data up to which the loss has weight 1; then it falls to 0 at the data", "Balcerak et al. 2025, images", absent=1.0),
    "method.energy_matching.class_dropout": Key(0.1, BELOW_ONE, "share of images trained on as ones of no class, where the model has classes: for sample.guidance", "ours", absent=0.1),
    "method.fresh_contrast.data_share": Key(0.5, PROBABILITY, "share of the chains that start at the data; the others start at noise", "Balcerak et al. 2025", absent=0.5),
    "method.fresh_contrast.trim": Key(0.1, BELOW_ONE, "share of the chains, those of the highest energies, that the loss leaves out", "Balcerak et al. 2025", absent=0.1),
    "method.fresh_contrast.most": Key(20.0, ABOVE_ZERO, "energy by which samples may come to lie above the data; there the loss is flat; inf: any", "Balcerak et al. 2025: 0.02 / λ", absent=20.0),
    "method.noise_contrastive.ratio": Key(4, whole(1, 1_000), "ν, points of noise for each of data", "ours", absent=4),
    "method.then.name": Key("contrastive", WORD, "the method that joins after method.then.after steps: contrastive, fresh_contrast, or package.module:Name", "ours", absent="contrastive"),
    "method.then.after": Key(0, whole(0), "steps after which method.then.name, with chains, joins the method; 0: never", "ours", absent=0),
    "method.then.weight": Key(0.2, POSITIVE, "weight of its loss beside the method's", "ours", absent=0.2),
    "chain.kernel": Key("langevin", WORD, "how a chain takes a step: langevin; heun: the same of second order; descent: noise-free, with a look-ahead; mala, hmc: with a Metropolis test, exact at any step size; or package.module:Name"),
    "chain.num_steps": Key(60, CHAIN_STEPS, "K, steps of a chain in one training step", "release, CIFAR-10", dry=2),
    "chain.step_size": Key(10.0, POSITIVE, "s, factor of the gradient", "release, CIFAR-10"),
    "chain.generator": Key("threefry", one_of("threefry", "hash"), "what makes the chains' noise: threefry, jax.random's; or a hash of a counter, quicker where an energy costs little", "ours", absent="threefry"),
    "chain.grad_clip": Key(0.01, ABOVE_ZERO, "c, largest size of an element of the gradient in a step; inf: any", "release, CIFAR-10"),
    "chain.temperature": Key(1.0, NOT_NEGATIVE, "T, multiplies the variance of the noise"),
    "chain.anneal_from": Key(0.0, NOT_NEGATIVE, "T of a training chain's first step, falling geometrically; 0: constant"),
    "chain.quiet_steps": Key(0, whole(0), "number of the last steps of a training chain, which have no noise"),
    "chain.base": Key("uniform", one_of("uniform", "normal", "centred_normal"), "law that chains start from: uniform on the box that holds them; normal: N(0, 1), and no box; centred_normal: N(½, ¼), no box until they end", "ours", absent="uniform"),
    "chain.langevin.noise_scale": Key(0.005, NOT_NEGATIVE, "σ, noise of one step, pixels being in [0, 1]", "release train.py:736"),
    "chain.langevin.tied": Key(False, FLAG, "True: the exact Langevin equation, noise sqrt(2 s T) in place of noise_scale"),
    "chain.hmc.num_leaps": Key(5, whole(1, 10_000), "leapfrog steps of one step of hmc"),
    "chain.descent.look_ahead": Key(0.3, BELOW_ONE, "μ, share of the last step by which the gradient is taken ahead", "Wang & Du 2025", absent=0.3),
    "chain.descent.stop": Key(0.0, NOT_NEGATIVE, "a chain rests once the root mean square of ∇U is below this, per pixel value; 0: never", absent=0.0),
    "chain.descent.temperature": Key(0.0, NOT_NEGATIVE, "T of descent's noise sqrt(2 s T); 0: none", absent=0.0),
    "buffer.capacity": Key(10_000, whole(1), "stored chains over all devices", "release", dry=32),
    "buffer.restart_prob": Key(0.05, PROBABILITY, "share of chains restarted from U[0, 1] in a step", "release train.py:241"),
    "buffer.relabel_prob": Key(0.0, PROBABILITY, "share of other chains that change to a label of the data batch in a step"),
    "buffer.dtype": Key("float32", one_of("float32", "bfloat16", "uint8"), "type of stored chains: float32, bfloat16 or uint8; the last two round stochastically"),
    "buffer.ring": Key(False, FLAG, "True: results overwrite the oldest chains (release); False: their own slots"),
    "buffer.augment": Key(0.0, PROBABILITY, "share of the drawn chains, but new ones, that are cropped, mirrored and coloured anew; 0: none", "Du et al. 2021: 1", absent=0.0),
    "buffer.least_area": Key(0.08, SHARE, "smallest area of such a crop, as a share of the image; the largest is the whole", "Du et al. 2021, CIFAR-10", absent=0.08),
    "buffer.descent_steps": Key(0, whole(0, 100_000), "steps of descent from noise that new chains make first; 0: chains start as noise", "ours", absent=0, dry=0),
    "loss.objective": Key("cd", WORD, "how the energies of data, U(x+), and samples, U(x-), are contrasted: cd: their difference; softplus: its softplus; logsumexp: samples of low energy weigh more", "release"),
    "loss.energy_l2": Key(1.0, NOT_NEGATIVE, "λ, weight of the squared energies in the loss, which keep U near 0; 0: none", "release train.py:65"),
    "loss.energy_l2_form": Key("sum", WORD, "which squares: sum: λ(U(x+)² + U(x-)²), the paper's; difference: λ(U(x+)² - U(x-)²)"),
    "loss.label_weight": Key(0.0, NOT_NEGATIVE, "γ, weight of a contrast of U(x+, y) with U(x+, wrong y), so that energies classify", "ours"),
    "loss.wrong_labels": Key("any", WORD, "wrong labels of that contrast: any: of any other class; batch: those of other images of the batch"),
    "loss.label_margin": Key(0.05, POSITIVE, "energy by which a wrong label shall lie above the right one"),
    "loss.data_noise": Key(0.0, NOT_NEGATIVE, "standard deviation of noise on the data that chains are compared with, pixels being in [0, 1]", "JEM: 0.015", absent=0.0),
    "optim.learning_rate": Key(1e-4, POSITIVE, "learning rate of Adam, before warm-up, decay and rescues change it", "paper; the release's default is 3e-4"),
    "optim.b1": Key(0.0, BELOW_ONE, "β₁ of Adam, decay of the running mean of gradients", "release train.py:675"),
    "optim.b2": Key(0.999, BELOW_ONE, "β₂ of Adam, decay of the running mean of their squares, v̂", "release train.py:675"),
    "optim.clip_scale": Key(3.0, NOT_NEGATIVE, "factor of v̂ in the largest size of an element of the gradient, |g| <= clip_scale sqrt(v̂) + clip_offset", "release custom_adam.py:155"),
    "optim.clip_offset": Key(0.1, NOT_BELOW_ZERO, "the other term of that size; inf: no clipping", "release custom_adam.py:155"),
    "optim.clip_norm": Key(math.inf, ABOVE_ZERO, "largest norm of the whole gradient; inf: no clipping", absent=math.inf),
    "optim.warmup_steps": Key(0, whole(0), "steps in which the learning rate rises linearly from 0", absent=0),
    "optim.decay_steps": Key(0, whole(0), "steps in which the learning rate, warm-up included, falls along a cosine; 0: it is constant", absent=0),
    "optim.final_share": Key(0.02, SHARE, "share of the learning rate that is kept after optim.decay_steps", absent=0.02),
    "optim.sharpness": Key(0.0, NOT_NEGATIVE, "ρ, the way up the loss, in units of the weights, at whose end the gradient is taken: flat minima; 0: none", "Foret et al. 2021; SADA-JEM: 2", absent=0.0),
    "optim.ema_ramp": Key(False, FLAG, "True: after step t the running mean's decay is at most (1 + t)/(10 + t)", absent=False),
    "optim.ema_decay": Key(0.999, BELOW_ONE, "decay of the running mean of the weights in a step; the mean samples", "ours, the release has none"),
    "train.batch_size": Key(128, whole(1, 1_000_000), "images over all devices", "release", dry=16),
    "train.num_steps": Key(100_000, whole(1), "number of training steps", "release: 70k to 120k for CIFAR-10", dry=3, scope=FREE),
    "train.seed": Key(0, SEED, "seed of parameters, data order and chains"),
    "train.num_models": Key(1, whole(1, 100), "M > 1: M models of the seeds seed, seed + 1 ... in one program: an ensemble"),
    "train.steps_per_call": Key(1, whole(1, 1_000), "steps in one program; more where a step is so short that the host holds it up", dry=1),
    "train.dry_run": Key(False, FLAG, "True: three tiny steps on noise for data, to see in seconds that a config runs"),
    "train.machine": Key("", one_of("", "cpu", "accelerator"), "kind of machine that a config chose its sizes for, kept when the run goes on elsewhere; empty: it chooses nothing", "ours", absent=""),
    "train.cpu_devices": Key(0, whole(0, 256), "without TPU or GPU: JAX devices to split the CPU into; 0: one a core", scope=HOST),
    "guard.enabled": Key(True, FLAG, "False: only a value that is not finite ends a run, and nothing rescues it"),
    "guard.max_energy": Key(20.0, ABOVE_ZERO, "largest |mean U| of data or samples, in units of 1/(2λ); inf: none"),
    "guard.max_of_untrained": Key(4.0, NOT_NEGATIVE, "largest |mean U| again, in units of the untrained network's; the larger limit counts; 0: the other one", absent=0.0),
    "guard.max_separation": Key(2.0, ABOVE_ZERO, "largest mean U(x-) - U(x+), its fall below 0 followed for 10 steps, in units of 1/λ; inf: none"),
    "guard.max_chain_grad": Key(2.0, ABOVE_ZERO, "largest mean |∇U|, in units of sqrt(pixels) / step_size: a box a step; inf: none"),
    "guard.min_chain_grad": Key(1e-6, NOT_NEGATIVE, "smallest mean |∇U|, in the same units: below it the network is dead; 0: none"),
    "guard.max_matching_error": Key(5.0, ABOVE_ZERO, "largest loss of matching, in units of a constant energy's; inf: none", absent=5.0),
    "guard.least_energy_l2": Key(0.01, POSITIVE, "a smaller λ counts as this in these units"),
    "guard.patience": Key(3, whole(1), "steps beyond a limit, of the last guard.window, until a run is ill; at once if a value is not finite"),
    "guard.window": Key(10, whole(0), "steps that guard.patience counts in; fewer than guard.patience: steps in a row", absent=0),
    "guard.at_once": Key(10.0, ABOVE_ZERO, "ill at once beyond this many times a limit; inf: never", absent=float("inf")),
    "guard.max_rescues": Key(5, whole(0, 1000), "rescues of a whole run; then it stops with exit status 3"),
    "guard.rescue_learning_rate": Key(0.5, SHARE, "factor of the learning rate for each rescue; 1: keep it"),
    "guard.rescue_chain": Key(1.0, FACTOR, "factor of chain.num_steps for each rescue, 1 or more"),
    "sample.num_images": Key(64, whole(1, 10_000_000), "number of images to sample", dry=16),
    "sample.batch_size": Key(64, whole(1, 1_000_000), "images sampled at once by --mode=sample", dry=16),
    "sample.num_steps": Key(300, CHAIN_STEPS, "chain steps from uniform noise", dry=4),
    "sample.descent_steps": Key(0, whole(0, 1_000_000), "steps of descent before the chain steps", absent=0, dry=0),
    "sample.last_share": Key(0.997, BELOW_ONE, "by matching: share of data in an image where descent from noise ends whatever its number of steps: they choose its step size; 0: chain.step_size", "ours", absent=0.0),
    "sample.guidance": Key(0.0, NOT_NEGATIVE, "w of the energy U(x, y) + w (U(x, y) - U(x)), for models trained with class dropout; 0: U(x, y)", "Ho & Salimans 2022", absent=0.0),
    "sample.guidance_from": Key(0.0, BELOW_ONE, "by matching: share of data in an image from which sample.guidance holds, on its way from noise", "Kynkäänniemi et al. 2024", absent=0.0),
    "sample.guidance_until": Key(1.0, SHARE, "by matching: share of data up to which it holds; 1: to the end", "Kynkäänniemi et al. 2024", absent=1.0),
    "sample.keep": Key(1.0, SHARE, "share of the chains from noise in each class that generate, neighbours and evaluate keep, those whose class the model tells best; 1: all; training's pictures and eval.during take all", "ours", absent=1.0),
    "sample.class_draws": Key(4, whole(1, 100_000), "by matching: number of draws of noise at either share of data at which classes are compared, to classify", "Li et al. 2023", dry=1, absent=4),
    "sample.quiet_steps": Key(100, whole(0), "number of the last chain steps, which have no noise", dry=2),
    "sample.anneal_from": Key(0.0, NOT_NEGATIVE, "T of the first step, falling geometrically to chain.temperature; 0: constant"),
    "sample.weights": Key("ema", one_of("ema", "raw"), "which weights sample: ema: their running mean; raw: those of the last step"),
    "sample.checkpoint": Key("newest", one_of("newest", "best"), "which checkpoint samples: newest; best: the one of the smallest distance by eval.during", "ours", absent="newest"),
    "sample.seed": Key(0, SEED, "seed of the chains"),
    "sample.task": Key("generate", WORD, "what --mode=sample does, as docs/reference/tasks.md tells; also package.module:Name"),
    "sample.labels": Key("", TEXT, "what to sample: classes in turn: '3' or '3,5'; vectors: '0.5 0.5'; compose: '1+3'; empty: all"),
    "sample.split": Key("test", WORD, "split of the data whose images a task starts from"),
    "sample.strength": Key(0.2, PROBABILITY, "share of the misfit to the measurement that one chain step removes, 0 to 1"),
    "sample.correction": Key(0.4, BELOW_ONE, "by matching: inpaint, restore, super_resolve, colourise, compose: size of the Langevin step after each step of descent, at the image's own noise; 0: none", "Du et al. 2023", absent=0.4),
    "sample.mean_of": Key(1, whole(1, 10_000), "number of chains for each image of inpaint, restore, super_resolve, colourise; with several their mean is shown beside one", "ours", absent=1),
    "sample.start_share": Key(0.85, BELOW_ONE, "by matching: share of the measurement in the start of restore, super_resolve, colourise; the rest is noise", absent=0.85),
    "sample.with_runs": Key("", TEXT, "folders of other runs, apart by commas: members of the ensemble, or parts to compose"),
    "sample.snapshots": Key(1, whole(1), "newest checkpoints of each run that are members of the ensemble", "release: 10"),
    "sample.ensemble": Key("mean", one_of("mean", "turns"), "which energy samples: mean of the members' energies; turns: one member a round, needs a buffer", "release"),
    "sample.buffer_capacity": Key(0, whole(0), "chains of a sampling buffer that is kept in the run's folder; 0: fresh chains"),
    "sample.rounds": Key(20, whole(1), "number of times that chains are drawn from the sampling buffer, moved and put back"),
    "sample.restart_prob": Key(0.01, PROBABILITY, "share of these chains that are restarted from noise", "release test_inception.py"),
    "sample.relabel_prob": Key(0.1, PROBABILITY, "share of the others that take another label", "release test_inception.py"),
    "sample.inpaint.mask": Key("lower", WORD, "part that is hidden from inpaint: lower, upper, left, right, centre, random, or a .npy file"),
    "sample.restore.corruption": Key("salt_and_pepper", one_of("salt_and_pepper", "noise", "blur"), "what restore undoes: salt_and_pepper, noise, blur"),
    "sample.restore.amount": Key(0.2, NOT_NEGATIVE, "amount of that damage: share of pixels, noise's standard deviation, or blur's in pixels"),
    "sample.super_resolve.factor": Key(2, whole(1), "pixels a side of one low-resolution pixel, for super_resolve"),
    "sample.transition.share": Key(0.4, BELOW_ONE, "by matching: share of the image in the start of a transition; the rest is noise", absent=0.4),
    "sample.compose.with_labels": Key("", TEXT, "compose: labels of each of these runs, apart by '+'; empty: all in turn"),
    "sample.film.every": Key(10, whole(1), "steps between two frames of a film"),
    "sample.neighbours.number": Key(5, whole(1), "nearest training images of each sample"),
    "eval.metrics": Key("ood,chains,memorisation", WORD, "names of the metrics, apart by commas; docs/evaluation.md says what each is and needs; also package.module:Name"),
    "eval.num_samples": Key(1_000, whole(1, 10_000_000), "images of the model to judge; published FIDs take 50,000", dry=16),
    "eval.samples": Key("fresh", one_of("fresh", "buffer"), "which samples are judged: fresh: chains from noise; buffer: of the training buffer, and labelled so"),
    "eval.split": Key("test", WORD, "split of images that the model never saw"),
    "eval.reference_split": Key("train", WORD, "split of images that samples are compared with, as published FIDs do"),
    "eval.batch_size": Key(250, whole(1, 1_000_000), "images or chains at once, over all devices", dry=16),
    "eval.seed": Key(0, SEED, "seed of all that an evaluation draws"),
    "eval.splits": Key(10, whole(2, 1000), "groups of samples that standard errors are taken over", "Inception Score's paper"),
    "eval.ood.sets": Key("train,uniform,constant,interpolation,rotation", TEXT, "sets that energies shall tell from eval.split, apart by commas: those of the default, or SOURCE:NAME, SOURCE:PATH, also @SPLIT"),
    "eval.ood.images": Key(2_000, whole(4, 10_000_000), "random images of each set at most", dry=16),
    "eval.inception.weights": Key("", TEXT, "file of the FID's Inception weights, PyTorch's .pth or .npz of the same names"),
    "eval.inception.sha256": Key("6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2", HASH, "SHA-256 of that file, or its beginning; empty: any"),
    "eval.inception.batch_size": Key(64, whole(1, 1_000_000), "images at once, over all devices; each takes about 40 MB at 299x299"),
    "eval.inception.reference": Key("", TEXT, "file of the reference's Inception statistics, made where there is none; empty: no file"),
    "eval.inception.kept_features": Key(10_000, whole(2, 10_000_000), "features of either set that are kept for kid, precision_recall, density_coverage; 8 kB each"),
    "eval.kid.subsets": Key(100, whole(2, 1_000_000), "random subsets of either set", "Bińkowski 2018"),
    "eval.kid.subset_size": Key(1_000, whole(2, 1_000_000), "images of a subset", "Bińkowski 2018"),
    "eval.precision_recall.neighbours": Key(3, whole(1, 1_000_000), "k, neighbours of precision and recall", "Kynkäänniemi 2019"),
    "eval.density_coverage.neighbours": Key(5, whole(1, 1_000_000), "k, neighbours of density and coverage", "Naeem 2020"),
    "eval.classifier_distance.dir": Key("", TEXT, "where trained classifiers are kept; empty: the run's folder"),
    "eval.classifier_distance.network": Key("by_channels", one_of("by_channels", "plain", "residual"), "the classifier; by_channels: plain for gray images, residual for colour; the other one is a second judge", "ours", absent="by_channels"),
    "eval.classifier_distance.steps": Key(2_000, whole(1, 10_000_000), "training steps of the plain classifier, of 128 images each", "ours", dry=4),
    "eval.classifier_distance.colour_steps": Key(10_000, whole(1, 10_000_000), "training steps of the residual classifier, of 128 images each", "ours", absent=10_000, dry=4),
    "eval.classifier_distance.seed": Key(0, SEED, "seed of the classifier; another one is another distance"),
    "eval.during": Key(0, whole(0), "training steps between two looks at the classifier distance of fresh samples, also at the end; 0: never", "ours", absent=0, dry=0),
    "eval.during_samples": Key(500, whole(1, 10_000_000), "fresh samples of such a look, which no final number uses", "ours", absent=500),
    "eval.drift.steps": Key("100,400,1200,5000", WORD, "chain steps, apart by commas, after which drift looks at chains from samples", "ours", absent="100,400,1200,5000", dry="2,4"),
    "eval.ais.chains": Key(256, whole(2, 1_000_000), "chains of annealed importance sampling, either way, over all classes", dry=16),
    "eval.ais.steps": Key(1_000, CHAIN_STEPS, "temperatures between uniform noise and the model", dry=4),
    "eval.ais.kernel": Key("hmc", one_of("hmc", "mala"), "how annealed chains move: hmc (bounces at the walls of the box), mala: one move at each temperature"),
    "eval.ais.leaps": Key(3, whole(1, 10_000), "gradients of one move of hmc"),
    "eval.ais.temperature": Key(1.0, POSITIVE, "T of the law exp(-U/T)/Z whose likelihood is bounded; 1: the model's own"),
    "eval.ais.burn_in": Key(1_000, whole(16, 1_000_000), "moves at T that turn samples into starts of the reverse chains", dry=16),
    "eval.ais.tolerance": Key(0.5, POSITIVE, "nats between the bounds of log Z, errors included, that count as closed"),
    "eval.chains.number": Key(64, whole(2, 1_000_000), "chains whose mixing is diagnosed", dry=16),
    "eval.chains.steps": Key(1_000, whole(16, 1_000_000), "steps of each of these chains, the first half thrown away", dry=16),
    "eval.robustness.images": Key(200, whole(1, 10_000_000), "random images of eval.split under attack", dry=16),
    "eval.robustness.linf": Key("0,2,4,8,16,30", WORD, "radii of attacks in L∞, in 1/255", "paper: 0 to 30"),
    "eval.robustness.l2": Key("0,0.1,0.2,0.4,0.8,1.6", WORD, "radii in L2, pixels being in [0, 1]", "release: 0 to 95/255"),
    "eval.robustness.steps": Key(20, whole(1, 100_000), "gradient steps of one attack", dry=2),
    "eval.robustness.restarts": Key(2, whole(1, 10_000), "random starts of an attack, in its ball"),
    "eval.robustness.step_size": Key(2.0, NOT_NEGATIVE, "step of an attack in L∞, in 1/255, or longer where the steps would not cross the ball", "release"),
    "eval.robustness.refine_steps": Key(0, whole(0, 10_000), "chain steps of an image under each class before it is classified", "paper: 10"),
    "eval.robustness.refine_radius": Key(8.0, NOT_NEGATIVE, "most that these steps change a pixel by, in 1/255", "release"),
    "eval.robustness.refine_temperature": Key(1.0, NOT_NEGATIVE, "temperature of these chains; 0: without noise"),
    "eval.robustness.chains": Key(4, whole(1, 10_000), "noisy chains whose mean logits classify and are attacked"),
    "log.every": Key(100, whole(1), "steps between two lines of metrics", dry=1),
    "log.trackers": Key("tensorboard", WORD, "who else gets the numbers: tensorboard, wandb, trackio, separated by commas, beside metrics.jsonl; none: no other", absent="tensorboard"),
    "log.images_every": Key(1_000, whole(0), "steps between two pairs of image grids; 0: only at the end", dry=0),
    "log.report": Key(True, FLAG, "keep the run's page report.html up to date, in at most 1 % of the run's time", "ours", absent=True),
    "checkpoint.every": Key(1_000, whole(1), "steps between two checkpoints", dry=3),
    "checkpoint.keep": Key(3, whole(1), "number of newest checkpoints that are kept"),
}
# fmt: on

GROUPS = {name.rpartition(".")[0] for name in KEYS}
FORMER_NAMES = {
    "model.attention": "model.resnet.attention",
    "model.dropout": "model.resnet.dropout",
    "model.dropout_in_chains": "model.resnet.dropout_in_chains",
    "chain.noise_scale": "chain.langevin.noise_scale",
    "chain.tied": "chain.langevin.tied",
    "chain.num_leaps": "chain.hmc.num_leaps",
    "sample.film_every": "sample.film.every",
    "sample.mask": "sample.inpaint.mask",
    "sample.corruption": "sample.restore.corruption",
    "sample.amount": "sample.restore.amount",
    "sample.factor": "sample.super_resolve.factor",
    "sample.with_labels": "sample.compose.with_labels",
    "sample.neighbours": "sample.neighbours.number",
    "eval.ood_sets": "eval.ood.sets",
    "eval.ood_images": "eval.ood.images",
    "eval.inception_weights": "eval.inception.weights",
    "eval.inception_sha256": "eval.inception.sha256",
    "eval.inception_batch_size": "eval.inception.batch_size",
    "eval.reference": "eval.inception.reference",
    "eval.kept_features": "eval.inception.kept_features",
    "eval.kid_subsets": "eval.kid.subsets",
    "eval.kid_subset_size": "eval.kid.subset_size",
    "eval.precision_neighbours": "eval.precision_recall.neighbours",
    "eval.coverage_neighbours": "eval.density_coverage.neighbours",
    "eval.classifier_dir": "eval.classifier_distance.dir",
    "eval.classifier_steps": "eval.classifier_distance.steps",
    "eval.classifier_seed": "eval.classifier_distance.seed",
    "eval.ais_chains": "eval.ais.chains",
    "eval.ais_steps": "eval.ais.steps",
    "eval.ais_kernel": "eval.ais.kernel",
    "eval.ais_leaps": "eval.ais.leaps",
    "eval.ais_temperature": "eval.ais.temperature",
    "eval.ais_burn_in": "eval.ais.burn_in",
    "eval.ais_tolerance": "eval.ais.tolerance",
    "eval.chains_number": "eval.chains.number",
    "eval.chains_steps": "eval.chains.steps",
    "eval.attack_images": "eval.robustness.images",
    "eval.attack_linf": "eval.robustness.linf",
    "eval.attack_l2": "eval.robustness.l2",
    "eval.attack_steps": "eval.robustness.steps",
    "eval.attack_restarts": "eval.robustness.restarts",
    "eval.attack_step_size": "eval.robustness.step_size",
    "eval.attack_refine_steps": "eval.robustness.refine_steps",
    "eval.attack_refine_radius": "eval.robustness.refine_radius",
    "eval.attack_refine_temperature": "eval.robustness.refine_temperature",
    "eval.attack_keys": "eval.robustness.chains",
}
"""From the name that a key had in an earlier version to its present name. Configs, command lines and files may use
either."""
REMOVED: dict[str, Callable[[Any], bool]] = {}
"""Removed keys: from a key's value to whether a run with that value can go on without the key."""


def defaults() -> Config:
    """The config of all defaults, locked but for the open groups."""
    return _config({name: key.default for name, key in KEYS.items()})


def default_config() -> Config:
    """`defaults` for config files, which may use former names: each is the same field as its present name.

    A group may have a key's former name now, such as `sample.neighbours`. A file may put a value in its place, and
    `as_config` takes it for the key.
    """
    config = defaults().unlock()
    taken = {former.partition(".")[0] for former in FORMER_NAMES if former in GROUPS}
    for place in taken:
        config[place] = ConfigDict(config[place].to_dict(), type_safe=False)  # as_config checks the types later
    for former, name in FORMER_NAMES.items():
        group, _, last = name.rpartition(".")
        place, _, alias = former.rpartition(".")
        if former not in GROUPS:
            _group(config, place)[alias] = _group(config, group).get_ref(last)
    return _locked(config)


def canonical(config: Config) -> Config:
    """The config under present names alone, locked."""
    own = {group: _group(config, group).to_dict() for group in OPEN_GROUPS}
    return _config({name: value_of(config, name) for name in KEYS}, own)


def _config(values: dict[str, Any], own: dict[str, dict[str, Any]] | None = None) -> Config:
    """The locked config with these values of all keys and, in `own`, of the open groups."""
    groups: dict[str, Any] = {}
    for name in (*KEYS, *OPEN_GROUPS):
        parts = name.split(".")
        inside = reduce(lambda group, part: group.setdefault(part, {}), parts[:-1], groups)
        inside[parts[-1]] = copy.deepcopy((own or {}).get(name, {})) if name in OPEN_GROUPS else values[name]
    return _locked(ConfigDict(groups))


def _locked(config: Config) -> Config:
    config.lock()
    for name in OPEN_GROUPS:
        _group(config, name).unlock()
    return config


def _group(config: Config, name: str) -> Config:
    return reduce(getattr, name.split("."), config)


def value_of(config: Config, key: str) -> Any:
    """The value at a dotted key such as "chain.step_size"."""
    return reduce(getattr, key.split("."), config)


def group_of(config: Config, group: str, name: str) -> dict[str, Any]:
    """The values in the group of one name, by key: for "method" and "denoising" the group method.denoising."""
    prefix = f"{group}.{name}."
    return {key.removeprefix(prefix): value_of(config, key) for key in KEYS if key.startswith(prefix)}


def with_values(config: Config, changes: dict[str, Any]) -> Config:
    """A locked copy of the config with other values at these dotted keys."""
    changed = canonical(config).unlock()
    for name, value in changes.items():
        group, _, last = name.rpartition(".")
        _group(changed, group)[last] = value
    return _locked(changed)


def flat(config: Config) -> dict[str, Any]:
    """The config as {dotted key: value}, with values as JSON gives them back, without former names."""
    values = _flat(json.loads(json.dumps(config.to_dict())))
    return {name: value for name, value in values.items() if name not in FORMER_NAMES}


def _flat(groups: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The config as {"group.name": value}; `prefix` stands before each name."""
    found: dict[str, Any] = {}
    for name, value in groups.items():
        inner = isinstance(value, dict) and f"{prefix}{name}" not in KEYS
        found |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def is_open(key: str) -> bool:
    """Whether a dotted key lies in a group of the user's own."""
    return key.startswith(tuple(f"{group}." for group in OPEN_GROUPS))


def scope_of(key: str) -> str:
    """RUN, FREE or HOST."""
    by_group = FREE if key.partition(".")[0] in FREE_GROUPS else RUN
    return (KEYS[key].scope if key in KEYS else "") or by_group


def nearest(key: str) -> str:
    """The key of a config that looks most like this one; the same words count more than the same letters."""
    return max(KEYS, key=lambda name: _likeness(key[:SHOWN], name))


def _likeness(asked: str, name: str) -> tuple[float, int]:
    """How much an unknown key looks like a key: the larger the more; first by letters and words, then by the longest piece."""
    matcher = difflib.SequenceMatcher(None, asked, name)
    group, _, last = asked.rpartition(".")
    group_of_name, *words = re.split("[._]", name)
    shared = 0.0
    if last and group in ("", group_of_name):
        spellings = [last.split("_"), [word.removesuffix("s") for word in last.split("_")]]
        begin = [all(any(word.startswith(one) for word in words) for one in spelling) for spelling in spellings]
        initials = "".join(word[0] for word in name.rpartition(".")[2].split("_"))
        shared = 1.0 if last == initials else sum(begin) / 2
    return matcher.ratio() + WORDS_COUNT * shared, matcher.find_longest_match().size


def member_seeds(config: Config) -> range:
    """The seed of each model that the run trains."""
    return range(config.train.seed, config.train.seed + config.train.num_models)


def check_values(config: Config) -> None:
    """Refuse a value of the wrong kind for its key, or out of its range.

    Raises:
      BadInput: with the key, its value and the limit.
    """
    for name, key in KEYS.items():
        key.limit.check(name, value_of(config, name))


def dry_run(config: Config) -> Config:
    """The config made so small that it runs in seconds; noise replaces data that would have to be fetched."""
    changes = {name: key.dry for name, key in KEYS.items() if key.dry is not SAME}
    if config.data.source not in SOURCES_IN_DRY_RUNS:
        changes["data.source"] = "noise"
    return with_values(config, changes)


def as_config(found: Any, origin: str) -> Config:
    """The locked config that a person's file gave: all keys, no others, each of its kind.

    Lists become tuples, and whole numbers become floats if the key takes any number. `check_values` checks ranges
    later, because an override may still change a value.

    Args:
      origin: where `found` comes from, for messages.

    Raises:
      BadInput: `found` is no config, a key is missing or unknown, or a value is of the wrong kind.
    """
    if not isinstance(found, ConfigDict):
        raise BadInput(f"{origin} gives {type(found).__name__}, not a ConfigDict; change that of configs/default.py")
    try:
        values = _flat(found.to_dict())
    except Exception as error:  # ml_collections raises its own, such as for an empty required placeholder
        raise BadInput(f"{origin} cannot be read: {type(error).__name__} {error}") from error
    values, _ = _renamed(values)
    if missing := [name for name in KEYS if name not in values]:
        others = f" and {len(missing) - 1} more keys" if missing[1:] else ""
        raise BadInput(f"{origin} has no {missing[0]}{others}; begin with the config of configs/default.py")
    return _checked(values, origin)


def of_run(found: dict[str, Any], origin: str) -> tuple[Config, str]:
    """The locked config of a run's folder, also of an earlier version, and one line on what was filled in or renamed.

    Args:
      found: the groups of the config, as JSON has them.
      origin: where `found` comes from, for messages.

    Returns:
      The config, and the line; empty if the config has all keys under present names.

    Raises:
      BadInput: a key is unknown, of another kind, or lost; or it was removed and has a value that no run can have now.
    """
    values, renamed = _renamed(_flat(found))
    for name, goes_on in REMOVED.items():
        if name in values and not goes_on(values.pop(name)):
            raise BadInput(f"{origin} has {name}, which this version no longer has; use the version that made the run")
    filled = {name: key.absent for name, key in KEYS.items() if name not in values}
    if lost := [name for name, absent in filled.items() if absent is ALWAYS]:
        others = f" and {len(lost) - 1} more keys" if lost[1:] else ""
        raise BadInput(f"{origin} has no {lost[0]}{others}, which every run has; restore it from a copy")
    words = [f"{renamed} keys have new names"] if renamed else []
    if filled:
        some = ", ".join(f"{name}={shown(value)}" for name, value in list(filled.items())[:3])
        words.append(
            f"{len(filled)} that it lacks are filled in ({some}{', ...' if filled.keys() - list(filled)[:3] else ''})"
        )
    note = f"{origin} is of an earlier version: {' and '.join(words)}" if words else ""
    return _checked(values | filled, origin), note


def _renamed(values: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The values under present names, and how many keys stood under a former name alone."""
    present = {name: value for name, value in values.items() if name not in FORMER_NAMES}
    former = {FORMER_NAMES[name]: value for name, value in values.items() if name in FORMER_NAMES}
    changed = {name: value for name, value in present.items() if name not in former or value != KEYS[name].default}
    return former | changed, len(former.keys() - present.keys())


def _checked(values: dict[str, Any], origin: str) -> Config:
    own: dict[str, dict[str, Any]] = {group: {} for group in OPEN_GROUPS}
    for name, value in values.items():
        group, _, last = name.rpartition(".")
        if group in own:
            own[group][last] = value
        elif name not in KEYS and name not in own:
            raise BadInput(f"{origin} has {shown(name)}, which is no key; did you mean {nearest(name)}?")
    for name, key in KEYS.items():
        key.limit.check_kind(f"{origin}: {name}", values[name])
    return _config({name: key.limit.stored(values[name]) for name, key in KEYS.items()}, own)
