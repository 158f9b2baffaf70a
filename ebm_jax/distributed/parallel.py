"""All devices as one mesh with one axis, and programs of one device mapped over it."""

import collections
import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ebm_jax.distributed import processes
from ebm_jax.types import BadInput, PRNGKey

AXIS = "data"
HINT = "(set JAX_PLATFORMS='' to automatically choose an available backend)"  # of JAX, in words for another caller
OF_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, v2 and v1
REPLICATED: Any = PartitionSpec()
SHARDED: Any = PartitionSpec(AXIS)
MEMBERS_SHARDED: Any = PartitionSpec(None, AXIS)


def split_cpu(wanted: int, *sizes: int) -> None:
    """Split the CPU into JAX devices before anything runs on it: small networks run faster with one device a core.

    Args:
      wanted: the number of devices; 0: as many as this process has cores, or fewer, so that the devices of all
        processes divide all `sizes`.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    divisor = math.gcd(*sizes)
    number = wanted or max((n for n in range(1, cores() + 1) if divisor % (n * processes.count()) == 0), default=1)
    with contextlib.suppress(RuntimeError):  # JAX already runs, as in a notebook: its devices stay
        jax.config.update("jax_num_cpu_devices", number)


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """The bytes of memory that this process may use: the machine's, or less by a limit of its cgroup or of `ulimit`.

    It is `sys.maxsize` where the system tells nothing, as on Windows.
    """
    found = [sys.maxsize]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ImportError):  # no resource on Windows
        import resource

        limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
        found += [limit for limit in limits if limit != resource.RLIM_INFINITY]
    for file in OF_CGROUP:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            found.append(int(Path(file).read_text()))
    return min(found)


def present(devices_of: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """What `jax.devices` or `jax.local_devices` gives.

    Raises:
      BadInput: the platform that JAX_PLATFORMS names is not there.
    """
    try:
        return devices_of()
    except (RuntimeError, AssertionError) as error:  # the latter for cuda without its plugin
        if not (asked := jax.config.values["jax_platforms"]):
            raise
        reason = " ".join(str(error).split()).removesuffix(HINT)[:200] or "JAX has no plugin for it here"
        raise BadInput(
            f"JAX_PLATFORMS={asked}: that platform is not here ({reason}); unset the variable, or set JAX_PLATFORMS=cpu"
        ) from error


def first_device_mesh() -> Mesh:
    """The mesh of this process's first device alone.

    Raises:
      BadInput: as `present`.
    """
    return device_mesh(present(jax.local_devices)[:1])


def device_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices of all processes (or of `devices`) with the single axis `AXIS`.

    The devices of a process lie side by side, and so do the rows that it reads; `jax.make_mesh` would follow the
    wires of a TPU.

    Raises:
      BadInput: the processes have different numbers of devices; or several hosts have devices, without `--multihost`;
        or as `present`.
    """
    found = present(jax.devices) if devices is None else devices
    ordered = sorted(found, key=lambda device: (device.process_index, device.id))
    each = collections.Counter(device.process_index for device in ordered)
    if devices is None and len(each) != processes.count():
        raise BadInput(
            f"the devices here belong to {len(each)} hosts; start the command with --multihost on all of them"
        )
    if len(set(each.values())) > 1:
        numbers = ", ".join(f"process {process} has {number}" for process, number in each.items())
        raise BadInput(f"the processes differ in their number of devices: {numbers}; give each the same number")
    return Mesh(np.asarray(ordered), (AXIS,), axis_types=(AxisType.Auto,))


def shardings(mesh: Mesh, specs: Any) -> Any:
    """The tree of partition specs `specs` as shardings on `mesh`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def abstract(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """The tree as shapes and types, laid out over the mesh as the prefix `specs` says."""

    def with_sharding(sharding, part):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

    return jax.tree.map(with_sharding, shardings(mesh, specs), tree)


def over_devices(
    fn: Callable, mesh: Mesh, in_specs: Any, out_specs: Any, donate_argnums: tuple[int, ...] = ()
) -> Callable:
    """Compile `fn`, a program for one device, for all devices of `mesh` (the successor of `jax.pmap`).

    It states the outputs' shardings, because on a single device jit would call them replicated and trace again for a
    state fed back. It keeps arguments that nothing reads, such as the left vectors of the power iteration, because jit
    would not donate their memory otherwise.
    """
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    out_shardings, keep = shardings(mesh, out_specs), bool(donate_argnums)
    return jax.jit(mapped, out_shardings=out_shardings, donate_argnums=donate_argnums, keep_unused=keep)


def device_key(key: PRNGKey) -> PRNGKey:
    """A key of this device's own. Random streams therefore depend on the number of devices."""
    return jax.random.fold_in(key, lax.axis_index(AXIS))


def varying(tree: Any) -> Any:
    """Mark replicated values as this device's own, so that their gradient stays local.

    Otherwise `shard_map` sums the gradient of a replicated value over the devices, and a `pmean` afterwards is too
    large by the number of devices.
    """
    return jax.tree.map(lambda leaf: lax.pcast(leaf, AXIS, to="varying"), tree)


def over_members(fn: Callable, members: Any, *args: Any) -> Any:
    """`fn(member, *args)` for each member along the leading axis of the tree `members`; the results are stacked too.

    It is one vmapped program, but on a CPU the members take turns in a loop: there vmapped convolutions become grouped
    ones, 2.7 times slower than three single ones (benchmarks/members.py).
    """

    def one_by_one(members, *args):
        return lax.map(lambda member: fn(member, *args), members)

    def at_once(members, *args):
        return jax.vmap(lambda member: fn(member, *args))(members)

    return lax.platform_dependent(members, *args, cpu=one_by_one, default=at_once)


def gather(values: Array) -> Array:
    """The rows of all devices, on every device."""
    return lax.all_gather(values, AXIS, tiled=True)


def num_devices() -> int:
    """The number of devices; only for programs mapped over them."""
    return lax.axis_size(AXIS)


def mean_over_devices(tree: Any) -> Any:
    """The mean of each leaf over all devices: the step's one all-reduce."""
    return lax.pmean(tree, AXIS)


def place_batch(mesh: Mesh, batch: Any, spec: Any = SHARDED) -> Any:
    """The rows that this process read, as arrays over all devices of all processes."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def on_host(tree: Any) -> Any:
    """Arrays over all devices as NumPy arrays, whole on every process; a collective that every process must call."""

    def whole(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(whole, tree)
