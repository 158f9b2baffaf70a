"""The numbers of a training run as trackers show them: each in a group, with a description."""

import re

GROUPS = {
    "energy": {
        "energy_data": "mean energy U of the batch of data",
        "energy_samples": "mean energy U of the chains' ends",
        "energy_gap": "energy of data minus energy of samples; it stays near 0 in a healthy run",
        "energy_gap_trend": "change of the energy gap in a step, the running mean that the guard follows",
        "energy_wrong_label": "mean energy U of the data under wrong labels",
        "kl_energy": "mean energy where the last chain step ends, under the frozen network; the method lowers it",
        "log_normaliser": "learnt log Z of the model, nats",
    },
    "chain": {
        "chain_grad_norm": "mean norm of the energy's gradient along the chains",
        "chain_movement": "mean change of a pixel from a chain's start to its end",
        "chain_visits": "training steps that a chain of the batch has gone through since it began in noise, the mean",
        "log_distance": "mean log distance of the chains' ends to the nearest stored chain; its rise is entropy",
        "saturated": "share of the chains' pixels at 0 or 1",
    },
    "health": {
        "non_finite": "values of gradient and metrics that are not finite; above 0 the guard goes back to a checkpoint",
        "spectral_norm": "largest spectral norm of a kernel, before normalisation",
    },
    "optim": {
        "loss": "what the optimiser lowers",
        "grad_norm": "norm of the loss's gradient, before clipping",
        "class_loss": "cross-entropy of the classes, nats",
        "class_probability": "mean probability of the right class",
        "matching_error": "squared error of the gradient against the way from data to noise; 1: a constant energy's",
        "matching_error_near_data": "the same, where images are nearly data",
        "denoising_error": "mean squared error of denoising",
        "scaled_score": "root mean square of the score, times the noise level",
        "noise_accuracy": "share of data and noise that are told apart rightly; 1/2 is chance",
        "stage": "0 before method.then.after, 1 after it",
    },
    "time": {
        "steps_per_second": "steps a second, of steps alone: without compilation, pictures, saving and evaluations",
        "seconds": "seconds since the command began to train",
    },
}
OTHER = "method"  # the group of an own method's metrics
PLACES = {name: (group, words) for group, members in GROUPS.items() for name, words in members.items()}


def tag(name: str) -> str:
    """A column of metrics.jsonl as GROUP/NAME; one of member M, NAME_M, goes to the group of NAME."""
    return f"{_place(name)[0]}/{name}"


def description(name: str) -> str:
    """What a column of metrics.jsonl is, in words; empty for a metric of a method of the user's own."""
    return _place(name)[1]


def _place(name: str) -> tuple[str, str]:
    of_all = re.sub(r"_\d+$", "", name)
    member = f", of model {name[len(of_all) + 1 :]}" if of_all != name else ""
    if of_all not in PLACES:
        return OTHER, ""
    group, words = PLACES[of_all]
    return group, words + member
