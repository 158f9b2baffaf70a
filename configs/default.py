"""Every key of a run, with unit and source; nothing else in the project has defaults.

The other files of this folder are differences from this one. Any key can be set on the command line:
`python run.py --config=configs/digits.py --config.chain.num_steps=60`. It is locked: an unknown key is an error.
Sources: "release" is openai/ebm_code_release at 051850e; "paper" is Du & Mordatch 2019, arXiv 1903.08689.
"""

from typing import Any

from ml_collections import ConfigDict


def get_config() -> Any:
    config = ConfigDict()

    config.data = ConfigDict()
    config.data.source = "tfds"  # tfds, sklearn (bundled digits), folder:PATH, npz:PATH, shapes, density (2-D), noise
    config.data.name = "cifar10"  # a TFDS set; digits for sklearn; a 2-D density; else any word
    config.data.condition = "class"  # class; a factor: shape, size, position, rotation; a CelebA attribute; soft
    config.data.shape = (32, 32, 3)  # height, width, channels of an image; (2,) for a density
    config.data.split = "train"
    config.data.crop = False  # True: shrink images, aspect kept, and crop their centre; False: refuse other sizes
    config.data.dir = ""  # where TFDS keeps its data; empty: TFDS's default, ~/tensorflow_datasets
    config.data.manual_dir = ""  # take source files from here instead of downloading; empty: download
    config.data.verify_checksums = True  # False: take what lies in manual_dir, and keep it apart
    config.data.max_unreadable = 100  # unreadable or wrongly sized images to step over before giving up
    config.data.memory_gib = 1.0  # GiB; sets whose pixels fit live in memory, larger ones stream, in equal order
    config.data.workers = 0  # threads that read and decode; 0: one a core

    config.model = ConfigDict()
    config.model.name = "resnet32"  # resnet32, resnet32_large, resnet32_wider, resnet128, mnist, dsprites, small, mlp
    config.model.width = 128  # channels of the first stage; release
    config.model.num_classes = 1  # 1: unconditional; else the data's number of classes, or a soft label's length
    config.model.activation = "leaky_relu"  # leaky_relu (slope 0.2; release), swish
    config.model.spectral_norm = True  # release
    config.model.resnet.attention = (
        False  # self-attention in place of a block, residual nets only; release models.py:247
    )
    config.model.resnet.dropout = (
        0.0  # rate in the blocks while training, residual nets only; release: 0.5 in ResNet32Large
    )
    config.model.resnet.dropout_in_chains = (
        True  # where there is dropout, training's chains have it too; release train.py:548
    )
    config.model.dtype = "float32"  # float32, bfloat16: of the computation; parameters and energies stay float32

    config.chain = ConfigDict()
    config.chain.kernel = "langevin"  # langevin; mala, hmc: with a Metropolis test, exact at any step size
    config.chain.num_steps = 60  # K, steps of a chain in one training step; release, CIFAR-10
    config.chain.step_size = 10.0  # s, factor of the gradient; release, CIFAR-10
    config.chain.langevin.noise_scale = 0.005  # σ, noise of one step, pixels being in [0, 1]; release train.py:736
    config.chain.langevin.tied = False  # True: the exact Langevin equation, noise sqrt(2 s T) in place of noise_scale
    config.chain.grad_clip = 0.01  # c, per element of the gradient; inf: none; release, CIFAR-10
    config.chain.temperature = 1.0  # T, multiplies the variance of the noise
    config.chain.anneal_from = 0.0  # T of a training chain's first step, falling geometrically; 0: constant
    config.chain.quiet_steps = 0  # of a training chain's steps, the last ones without noise
    config.chain.hmc.num_leaps = 5  # leapfrog steps of one step of hmc

    config.buffer = ConfigDict()
    config.buffer.capacity = 10_000  # chains over all devices; release
    config.buffer.restart_prob = 0.05  # share of chains restarted from U[0, 1] in a step; release train.py:241
    config.buffer.relabel_prob = 0.0  # share of other chains that change to a label of the data batch in a step
    config.buffer.dtype = "float32"  # float32, bfloat16 or uint8; the last two round stochastically
    config.buffer.ring = False  # True: results overwrite the oldest chains (release); False: their own slots

    config.loss = ConfigDict()
    config.loss.objective = "cd"  # cd, softplus, logsumexp; release
    config.loss.energy_l2 = 1.0  # λ; release train.py:65
    config.loss.energy_l2_form = "sum"  # sum: λ(U(x+)² + U(x-)²), the paper's; difference: λ(U(x+)² - U(x-)²)
    config.loss.label_weight = 0.0  # γ of a contrast of U(x+, y) with U(x+, wrong y), so that energies classify; ours
    config.loss.wrong_labels = "any"  # of that contrast: any other class, or batch: those of other images of the batch
    config.loss.label_margin = 0.05  # energy by which a wrong label shall lie above the right one

    config.optim = ConfigDict()
    config.optim.learning_rate = 1e-4  # paper; the release's default is 3e-4
    config.optim.b1 = 0.0  # release train.py:675
    config.optim.b2 = 0.999  # release train.py:675
    config.optim.clip_scale = 3.0  # |g| <= clip_scale sqrt(v̂) + clip_offset; release custom_adam.py:155
    config.optim.clip_offset = 0.1  # inf: no clipping; release custom_adam.py:155
    config.optim.ema_decay = 0.999  # per step, of the weights that sample; ours, the release has none

    config.train = ConfigDict()
    config.train.batch_size = 128  # images over all devices; release
    config.train.num_steps = 100_000  # release: 70k to 120k for CIFAR-10
    config.train.seed = 0
    config.train.num_models = 1  # M > 1: M models of the seeds seed, seed + 1 ... in one program: an ensemble
    config.train.steps_per_call = 1  # steps in one program; more where a step is so short that the host holds it up
    config.train.dry_run = False  # True: three tiny steps on noise for data, to see in seconds that a config runs
    config.train.cpu_devices = 0  # without TPU or GPU: JAX devices to split the CPU into; 0: one a core

    config.guard = ConfigDict()  # healthy runs of six densities, digits and Fashion-MNIST: docs/reliability.md
    config.guard.enabled = True  # False: only a value that is not finite ends a run, and nothing rescues it
    config.guard.max_energy = 20.0  # of |mean U| of data or samples, in units of 1/(2λ); inf: none
    config.guard.max_separation = 0.5  # of mean U(x-) - U(x+) in units of 1/λ, where λ alone holds it at 1; inf: none
    config.guard.max_chain_grad = 2.0  # of mean |∇U|, in units of sqrt(pixels) / step_size: a box a step; inf: none
    config.guard.min_chain_grad = 1e-6  # of the same, in the same units: below it the network is dead; 0: none
    config.guard.least_energy_l2 = 0.01  # a smaller λ counts as this in these units
    config.guard.patience = 5  # steps in a row beyond a limit until a run is ill; at once if a value is not finite
    config.guard.max_rescues = 5  # of a whole run; then it stops with exit status 3
    config.guard.rescue_learning_rate = 0.5  # factor of the learning rate for each rescue; 1: keep it
    config.guard.rescue_chain = 1.0  # factor of chain.num_steps for each rescue, 1 or more

    config.sample = ConfigDict()
    config.sample.num_images = 64
    config.sample.batch_size = 64  # images sampled at once by --mode=sample
    config.sample.num_steps = 300  # chain steps from uniform noise
    config.sample.quiet_steps = 100  # of these, the last ones without noise
    config.sample.anneal_from = 0.0  # T of the first step, falling geometrically to chain.temperature; 0: constant
    config.sample.weights = "ema"  # ema, or raw: the last step's
    config.sample.seed = 0
    config.sample.task = "generate"  # or film, transition, compose, inpaint, restore, super_resolve, colourise, ...
    config.sample.labels = ""  # classes in turn: "3" or "3,5"; vectors: "0.5 0.5"; compose: "1+3"; empty: all
    config.sample.split = "test"  # images that a task starts from
    config.sample.inpaint.mask = (
        "lower"  # hidden from inpaint: lower, upper, left, right, centre, random, or a .npy file
    )
    config.sample.restore.corruption = "salt_and_pepper"  # what restore undoes: salt_and_pepper, noise, blur
    config.sample.restore.amount = 0.2  # of it: share of pixels, noise's standard deviation, or blur's in pixels
    config.sample.super_resolve.factor = 2  # pixels a side of one low-resolution pixel, for super_resolve
    config.sample.strength = 0.2  # share of the misfit to the measurement that one chain step removes, 0 to 1
    config.sample.with_runs = ""  # folders of other runs, apart by commas: members of the ensemble, or parts to compose
    config.sample.compose.with_labels = ""  # compose: labels of each of these runs, apart by "+"; empty: all in turn
    config.sample.snapshots = 1  # newest checkpoints of each run that are members of the ensemble; release: 10
    config.sample.ensemble = "mean"  # mean of the members' energies; turns: one member a round, needs a buffer; release
    config.sample.buffer_capacity = 0  # chains of a sampling buffer that is kept in the run's folder; 0: fresh chains
    config.sample.rounds = 20  # of chains drawn from the sampling buffer, moved and put back
    config.sample.restart_prob = 0.01  # share of them restarted from noise; release test_inception.py
    config.sample.relabel_prob = 0.1  # share of the others that take another label; release test_inception.py
    config.sample.film.every = 10  # steps between two frames of a film
    config.sample.neighbours.number = 5  # nearest training images of each sample

    config.eval = ConfigDict()  # of --mode=evaluate; chains are those of the group sample; docs/evaluation.md
    config.eval.metrics = "ood,chains,memorisation"  # apart by commas; docs/evaluation.md says what each is and needs
    config.eval.num_samples = 1_000  # images of the model to judge; published FIDs take 50,000
    config.eval.samples = "fresh"  # fresh: chains from noise; buffer: of the training buffer, and labelled so
    config.eval.split = "test"  # images that the model never saw
    config.eval.reference_split = "train"  # images that it is compared with, as published FIDs do
    config.eval.batch_size = 250  # images or chains at once, over all devices
    config.eval.seed = 0
    config.eval.ood.sets = "train,uniform,constant,interpolation,rotation"  # or SOURCE:NAME, SOURCE:PATH, also @SPLIT
    config.eval.ood.images = 2_000  # random images of each set at most
    config.eval.splits = 10  # groups of samples that standard errors are taken over; Inception Score's paper
    config.eval.inception.weights = ""  # file of the FID's Inception weights, PyTorch's .pth or .npz of the same names
    config.eval.inception.sha256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # empty: any
    config.eval.inception.batch_size = 64  # images at once, over all devices; each takes about 40 MB at 299x299
    config.eval.inception.reference = (
        ""  # file of the reference's Inception statistics, made where there is none; empty: no file
    )
    config.eval.inception.kept_features = (
        10_000  # of either set, for kid, precision_recall, density_coverage; 8 kB each
    )
    config.eval.kid.subsets = 100  # random subsets of either set; Bińkowski 2018
    config.eval.kid.subset_size = 1_000  # images of a subset; Bińkowski 2018
    config.eval.precision_recall.neighbours = 3  # k of precision and recall; Kynkäänniemi 2019
    config.eval.density_coverage.neighbours = 5  # k of density and coverage; Naeem 2020
    config.eval.classifier_distance.dir = ""  # where trained classifiers are kept; empty: the run's folder
    config.eval.classifier_distance.steps = 2_000  # training steps of the classifier, of 128 images; ours
    config.eval.classifier_distance.seed = 0  # another one is another distance
    config.eval.ais.chains = 256  # of annealed importance sampling, either way, over all classes
    config.eval.ais.steps = 1_000  # temperatures between uniform noise and the model
    config.eval.ais.kernel = "hmc"  # hmc (bounces at the walls of the box), mala: one move at each temperature
    config.eval.ais.leaps = 3  # gradients of one move of hmc
    config.eval.ais.temperature = 1.0  # T of the law exp(-U/T)/Z whose likelihood is bounded; 1: the model's own
    config.eval.ais.burn_in = 1_000  # moves at T that turn samples into starts of the reverse chains
    config.eval.ais.tolerance = 0.5  # nats between the bounds of log Z, errors included, that count as closed
    config.eval.chains.number = 64  # chains whose mixing is diagnosed
    config.eval.chains.steps = 1_000  # of each, the first half thrown away
    config.eval.robustness.images = 200  # random images of eval.split under attack
    config.eval.robustness.linf = "0,2,4,8,16,30"  # radii of attacks in L∞, in 1/255; paper: 0 to 30
    config.eval.robustness.l2 = "0,0.1,0.2,0.4,0.8,1.6"  # radii in L2, pixels being in [0, 1]; release: 0 to 95/255
    config.eval.robustness.steps = 20  # gradient steps of one attack
    config.eval.robustness.restarts = 2  # random starts of an attack, in its ball
    config.eval.robustness.step_size = (
        2.0  # in L∞, in 1/255, or longer where the steps would not cross the ball; release
    )
    config.eval.robustness.refine_steps = (
        0  # chain steps of an image under each class before it is classified; paper 10
    )
    config.eval.robustness.refine_radius = 8.0  # 1/255 that they can change a pixel by; release
    config.eval.robustness.refine_temperature = 1.0  # of these chains; 0: without noise
    config.eval.robustness.chains = 4  # noisy chains whose mean logits classify and are attacked

    config.log = ConfigDict()
    config.log.every = 100  # steps between two lines of metrics
    config.log.images_every = 1_000  # steps between two pairs of image grids; 0: only at the end

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1_000  # steps
    config.checkpoint.keep = 3  # newest checkpoints kept

    return config.lock()
