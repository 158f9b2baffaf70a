"""Files of torch.save against what was put into them; anything else is refused, and nothing in a file is run.

torch_state.pth and torch_state_legacy.pth were written by PyTorch 2.14.1: the state dict of Sequential(Linear(3, 2),
BatchNorm1d(2)), with more tensors of other types and layouts. torch_checkpoint.pth and torch_checkpoint_legacy.pth, by
PyTorch 2.13.0: a dict of a state dict of Linear(3, 2), a buffer of images and a step.
"""

import collections
import io
import os
import pickle
import pickletools
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ebm_jax.storage import torch_file
from ebm_jax.storage.torch_file import read_tensors
from ebm_jax.types import BadInput

FILES = {name: Path(__file__).with_name(f"{name}.pth") for name in ("torch_state", "torch_state_legacy")}


def archive(path, program, **entries):
    """A zip as torch.save lays it out, around a program."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("state/data.pkl", program)
        for name, content in entries.items():
            file.writestr(f"state/data/{name}", content)
    return path


class Saver(pickle.Pickler):
    """Pickles arrays as torch.save does tensors: each as a call of PyTorch's on a storage that lies elsewhere."""

    def __init__(self, file, content):
        super().__init__(file, 2)
        self.content = content
        self.torch = {module: types.ModuleType(module) for module in ("torch", "torch._utils")}
        for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage")):
            kind = type(name, (), {"__module__": module})
            setattr(self.torch[module], name, kind)

    def reducer_override(self, obj):
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        key = str(len(self.content))
        self.content[key] = np.ascontiguousarray(obj, np.float32).tobytes()
        storage = ("storage", self.torch["torch"].FloatStorage, key, "cpu", obj.size)
        strides = tuple(stride // 4 for stride in np.ascontiguousarray(obj, np.float32).strides)
        rebuild = self.torch["torch._utils"]._rebuild_tensor_v2
        return rebuild, (Stored(storage), 0, obj.shape, strides, False, collections.OrderedDict())

    def persistent_id(self, obj):
        return obj.words if isinstance(obj, Stored) else None


class Stored:
    """What `Saver` writes as a persistent id."""

    def __init__(self, words):
        self.words = words


def saved(path, state):
    """A file as torch.save writes it, of nested dicts and lists of numbers and of arrays, which become float32."""
    file, content = io.BytesIO(), {}
    saver = Saver(file, content)
    with pytest.MonkeyPatch.context() as patch:
        for module, made in saver.torch.items():
            patch.setitem(sys.modules, module, made)
        saver.dump(state)
    return archive(path, file.getvalue(), **content)


def refusal(path):
    """The line that says why the file is not read, or None where it gives arrays."""
    try:
        found = read_tensors(path)
    except BadInput as error:
        return str(error)
    assert all(isinstance(array, np.ndarray) for array in found.values())
    return None


def refused(path):
    line = refusal(path)
    assert line is not None
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.parametrize("name", ["torch_checkpoint", "torch_checkpoint_legacy"])
def test_a_part_of_a_checkpoint_is_read_by_its_name(name):
    path = Path(__file__).with_name(f"{name}.pth")
    found = read_tensors(path, "model_state_dict")
    assert found.keys() == {"weight", "bias"}
    np.testing.assert_array_equal(found["weight"], np.arange(6, dtype=np.float32).reshape(2, 3) / 4, strict=True)
    np.testing.assert_array_equal(found["bias"], np.array([7, 8], np.float32) / 4, strict=True)
    for part, words in (
        ("", "is not the name of a tensor"),
        ("ema", "has no part ema"),
        ("step", "no dict of tensors"),
    ):
        with pytest.raises(BadInput, match=words):
            read_tensors(path, part)


def training(weight):
    """What PyTorch keeps of Adam and of a schedule beside the network."""
    moments = {0: {"step": np.ones(1), "exp_avg": weight, "exp_avg_sq": np.square(weight)}}
    group = {"lr": 1.2e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "foreach": None}
    schedule = {"base_lrs": [1.2e-3], "last_epoch": 147_000, "_last_lr": [1.2e-3], "lr_lambdas": [None]}
    return {"optim": {"state": moments, "param_groups": [group | {"params": [0]}]}, "sched": schedule, "step": 147_000}


def test_what_a_training_keeps_beside_its_network_is_stepped_over(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    path = saved(tmp_path / "checkpoint.pt", {"net_model": {"weight": -weight}, "ema_model": {"weight": weight}})
    np.testing.assert_array_equal(read_tensors(path, "ema_model")["weight"], weight, strict=True)
    path = saved(tmp_path / "whole.pt", {"ema_model": {"weight": weight}} | training(weight))
    np.testing.assert_array_equal(read_tensors(path, "ema_model")["weight"], weight, strict=True)
    for part in ("optim", "sched"):
        with pytest.raises(BadInput, match="is not the name of a tensor"):
            read_tensors(path, part)


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_tensors_are_those_that_pytorch_saved(path):
    found = read_tensors(path)
    quarters = {"0.weight": 0, "0.bias": 10, "1.weight": 20, "1.bias": 30, "1.running_mean": 40, "1.running_var": 50}
    for name, start in quarters.items():
        shape = (2, 3) if name == "0.weight" else (2,)
        expected = (np.arange(np.prod(shape), dtype=np.float32) + start) / 4
        np.testing.assert_array_equal(found.pop(name), expected.reshape(shape), strict=True)
    twelve = np.arange(2.0, 14.0).reshape(3, 4)  # a part of a storage of 24
    others = {
        "1.num_batches_tracked": np.array(60),
        "double": twelve,
        "transposed": twelve.T,
        "half": np.array([0.5, -2.0], np.float16),
        "flag": np.array([True, False]),
        "empty": np.empty((0, 3), np.float32),
        "parameter": np.array([7.0], np.float32),
    }
    assert set(found) == set(others)
    for name, expected in others.items():
        np.testing.assert_array_equal(found[name], expected, strict=True)


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_a_file_cut_short_anywhere_is_refused_in_one_line(path, tmp_path):
    content, cut = path.read_bytes(), tmp_path / "cut.pth"
    for size in range(0, len(content), 37):
        cut.write_bytes(content[:size])
        refused(cut)


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_a_file_with_any_byte_changed_gives_arrays_or_one_line(path, tmp_path):
    content, changed, refusals = path.read_bytes(), tmp_path / "changed.pth", 0
    for place in range(0, len(content), 31):
        changed.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        line = refusal(changed)
        refusals += line is not None
        assert line is None or len(line.splitlines()) == 1
    assert refusals > len(content) / 124, "a quarter of the changes"


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(protocol, tmp_path):
    victim = tmp_path / "made"
    program = pickle.dumps({"weight": Evil(victim)}, protocol)
    path = archive(tmp_path / "evil.pth", program)
    legacy = tmp_path / "legacy.pth"
    head = b"".join(
        pickle.dumps(value, 2)
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001})
    )
    legacy.write_bytes(head + program)
    bare = tmp_path / "bare.pth"
    bare.write_bytes(program)
    for file in (path, legacy, bare):
        refused(file)
    assert not victim.exists()
    pickle.loads(program)
    assert victim.exists(), "the pickle does what it is feared for"


def test_every_instruction_that_could_name_or_call_something_else_is_refused(tmp_path):
    path = tmp_path / "odd.pth"
    for program, part in {
        b"\x80\x02cbuiltins\nexec\n.": "builtins.exec",
        b"\x80\x02ctorch\nload\n.": "torch.load",
        b"\x80\x02ctorch.nn\nLinear\n.": "torch.nn.Linear",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.": "TypeError",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.": "STACK_GLOBAL",
        b"(ios\nsystem\n.": "INST",
        b"(cos\nsystem\no.": "os.system",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.": "NEWOBJ",
        b"\x80\x02\x82\x01.": "EXT1",
        b"P0\n.": "PERSID",
        b"\x80\x02}U\x01a}s.": "name of a tensor",
        b"\x80\x02ccollections\nOrderedDict\n]\x85R.": "no dict of tensors",
        b"\x80\x02]]b.": "list for dict",
    }.items():
        assert part in refused(archive(path, program))
    allowed = {*torch_file.PUSHED, *torch_file.CHANGES}
    assert allowed < {opcode.name for opcode in pickletools.opcodes}
    calling = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID"}
    assert allowed.isdisjoint(calling)


def saved_tensor(size=4, shape=(2, 2), strides=(2, 1), offset=0, kind=b"FloatStorage"):
    """The program of {"w": a tensor}, as torch.save writes it."""

    def number(value):
        return b"J" + int(value).to_bytes(4, "little", signed=True)

    def many(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\x07\0\0\0storagectorch\n" + kind + b"\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(size) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + many(shape) + many(strides)
    return b"\x80\x02}X\x01\0\0\0w" + tensor + b"\x89" + hooks + b"tRs."


NUMBERS = {"0": np.arange(4, dtype="<f4").tobytes()}


def test_a_tensor_of_the_program_is_read(tmp_path):
    path = archive(tmp_path / "state.pth", saved_tensor(), **NUMBERS)
    np.testing.assert_array_equal(read_tensors(path)["w"], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    "change",
    [
        {"size": 5},
        {"size": -1},
        {"shape": (2, 3)},
        {"shape": (5,), "strides": (0,)},
        {"shape": (2**31 - 1, 2**31 - 1), "strides": (0, 0)},
        {"strides": (3, 1)},
        {"strides": (1,)},
        {"shape": (-2, -2)},
        {"strides": (-2, -1)},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**31 - 1, "shape": (1, 1)},
        {"kind": b"UntypedStorage"},
        {"kind": b"LongStorage"},
    ],
    ids=str,
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(change, tmp_path):
    refused(archive(tmp_path / "state.pth", saved_tensor(**change), **NUMBERS))


def test_a_compressed_archive_a_missing_file_and_a_folder_are_refused_in_one_line(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:  # a small one may unpack to terabytes
        file.writestr("state/data.pkl", saved_tensor())
    (tmp_path / "small.pth").write_bytes(buffer.getvalue())
    assert "compressed" in refused(tmp_path / "small.pth")
    assert "cannot be read" in refused(tmp_path / "absent.pth")
    assert "cannot be read" in refused(tmp_path)
