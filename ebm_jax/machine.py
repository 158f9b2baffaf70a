"""The kind of machine that this is, told without JAX, for configs that choose their sizes by it."""

import os
from importlib.util import find_spec

CPU, ACCELERATOR = "cpu", "accelerator"
PLUGINS = (  # JAX's own, and what a machine has on which they work
    (("jax_cuda12_plugin", "jax_cuda13_plugin"), ("/dev/nvidiactl", "/dev/dxg")),
    (("jax_rocm60_plugin", "jax_rocm7_plugin"), ("/dev/kfd",)),
    (("libtpu",), ("/dev/accel0", "/dev/vfio/0")),
)


def kind() -> str:
    """`ACCELERATOR` where JAX will find a GPU or a TPU, else `CPU`; the variable JAX_PLATFORMS decides if it is set."""
    if asked := os.environ.get("JAX_PLATFORMS", "").partition(",")[0].strip():
        return CPU if asked == "cpu" else ACCELERATOR
    found = any(any(map(find_spec, names)) and any(map(os.path.exists, places)) for names, places in PLUGINS)
    return ACCELERATOR if found else CPU
