"""Files that unpack to more than a limit, or never end, are refused before they are unpacked."""

import gzip
import hashlib
import io
import json
import os
import struct
import tarfile
import types
import zipfile

import jax
import numpy as np
import pytest
from jax import export
from test_torch_file import archive as torch_archive
from test_torch_file import saved_tensor

from ebm_jax.data import builders
from ebm_jax.storage import archive, exported, sizes, torch_file, weights, workdir
from ebm_jax.types import BadInput

LIMIT = 100_000  # bytes, in these tests


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv(sizes.VARIABLE, str(LIMIT / 2**30))


def bomb(path, size=10 * LIMIT):
    """A small .npz of one array of zeros."""
    np.savez_compressed(path, mean=np.zeros(size, np.uint8))
    assert path.stat().st_size < LIMIT
    return path


READERS = {"statistics": archive.read, "weights": lambda path: weights.read(path, "")}


@pytest.mark.parametrize("kind", READERS)
def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused_and_the_variable_raises_it(
    kind, tmp_path, monkeypatch
):
    path, unpacked = bomb(tmp_path / "a.npz"), []
    load = np.load
    monkeypatch.setattr(np, "load", lambda *args, **options: unpacked.append(args) or load(*args, **options))
    with pytest.raises(BadInput, match=r"a\.npz unpacks to 1,000,128 bytes.*at most 99,999|100,000.*EBM_JAX_MAX_FILE"):
        READERS[kind](path)
    assert not unpacked
    monkeypatch.setenv(sizes.VARIABLE, "1")
    if kind == "weights":
        assert READERS[kind](path).arrays["mean"].size == 10 * LIMIT


@pytest.mark.parametrize("kind", [*READERS, "torch"])
def test_a_huge_file_and_a_pipe_are_refused_before_they_are_read(kind, tmp_path):
    read = READERS.get(kind, torch_file.read_tensors)
    with (tmp_path / "huge.npz").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(BadInput, match=r"huge\.npz has 4,398,046,511,104 bytes"):
        read(tmp_path / "huge.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(BadInput, match=r"pipe\.npz cannot be read \(it is no file\)"):
        read(tmp_path / "pipe.npz")


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "nan", "inf", "1e300"])
def test_a_limit_that_is_no_number_is_refused_in_one_line(text, tmp_path, monkeypatch):
    monkeypatch.setenv(sizes.VARIABLE, text)
    with pytest.raises(BadInput, match="is no positive number of GiB; use 8, or unset it"):
        archive.read(bomb(tmp_path / "a.npz"))


def test_many_views_of_one_storage_may_not_take_more_than_the_limit(tmp_path):
    """A view cannot repeat elements, so a bomb names the same storage many times."""
    one = saved_tensor(2_500, (2_500,), (1,))[3:-2].removeprefix(b"X\x01\0\0\0w")
    program = b"\x80\x02}" + b"".join(b"X\2\0\0\0" + f"{n:02}".encode() + one + b"s" for n in range(20)) + b"."
    path = torch_archive(tmp_path / "views.pth", program, **{"0": bytes(10_000)})
    with pytest.raises(BadInput, match=r"its tensors take 200,000 bytes.*EBM_JAX_MAX_FILE_GIB raises"):
        torch_file.read_tensors(path)


def test_a_refused_value_of_a_pickle_is_shown_in_bounded_time(tmp_path):
    """Forty lists, each of two times the one before: 2^40 brackets as text."""
    nested = b"]q\0" + b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(40))
    path = torch_archive(tmp_path / "laughs.pth", b"\x80\x02" + nested + b")R.")
    with pytest.raises(BadInput, match="which tensors do not need"):
        torch_file.read_tensors(path)


def test_a_config_of_more_letters_than_any_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "LARGEST_CONFIG", 1000)
    (tmp_path / "config.json").write_text("{" + " " * 1000 + "}")
    with pytest.raises(BadInput, match=r"config\.json is damaged \(more than 1,000 letters, which no config has\)"):
        workdir.read(tmp_path)


def test_source_files_of_data_sets_unpack_to_a_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "LARGEST_MEMBER", LIMIT)
    zeros = bytes(10 * LIMIT)
    (tmp_path / "a.gz").write_bytes(gzip.compress(zeros))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/1.jpg", zeros)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        entry = tarfile.TarInfo("x")
        entry.size = len(zeros)
        file.addfile(entry, io.BytesIO(zeros))
    with pytest.raises(BadInput, match=r"a\.gz .*unpacks to 100,001 bytes or more"):
        builders._read_idx(str(tmp_path / "a.gz"), 16, (28, 28))
    with pytest.raises(BadInput, match=r"a\.zip .*unpacks to 1,000,000 bytes"):
        builders._ZipImages(str(tmp_path / "a.zip"))["1.jpg"]
    with (
        pytest.raises(BadInput, match=r"a\.tar\.gz .*unpacks to 1,000,000 bytes"),
        builders._tar(str(tmp_path / "a.tar.gz")) as content,
    ):
        content("x")


def an_export(folder):
    """The files of an export of a sum."""
    made = export.export(jax.jit(lambda params, x: params["w"] + x))({"w": np.float32(1)}, np.float32(2))
    content = {exported.SAMPLER: bytes(made.serialize()), exported.ENERGY: bytes(made.serialize())}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, w=np.float32(1), zeros=np.zeros(10 * LIMIT, np.uint8))
    content[exported.PARAMS] = buffer.getvalue()
    manifest = {
        "format": exported.FORMAT,
        "jax": jax.__version__,
        "calling_convention": made.calling_convention_version,
        "files": {name: hashlib.sha256(found).hexdigest() for name, found in content.items()},
    }
    for name, found in (content | {exported.MANIFEST: json.dumps(manifest).encode()}).items():
        (folder / name).write_bytes(found)


def test_an_export_s_parameters_unpack_to_a_bounded_size_and_its_files_are_files(tmp_path):
    an_export(tmp_path)
    assert exported.load(tmp_path).params["w"] == 1
    with pytest.raises(
        ValueError, match=r"params\.npz cannot be read \(unpacks to .* of which at most 100,000 are read"
    ):
        exported.load(tmp_path, max_bytes=LIMIT)
    (tmp_path / exported.SAMPLER).write_bytes(bytes(LIMIT + 1))
    with pytest.raises(ValueError, match=r"sampler\.bin has 100,001 bytes, of which at most 100,000"):
        exported.load(tmp_path, max_bytes=LIMIT)
    (tmp_path / exported.SAMPLER).unlink()
    os.mkfifo(tmp_path / exported.SAMPLER)
    with pytest.raises(ValueError, match=r"sampler\.bin is no file"):
        exported.load(tmp_path)


def test_only_the_files_of_an_export_are_read_whatever_its_manifest_names(tmp_path):
    an_export(tmp_path)
    manifest = json.loads((tmp_path / exported.MANIFEST).read_text())
    manifest["files"]["/dev/zero"] = "0"
    (tmp_path / exported.MANIFEST).write_text(json.dumps(manifest))
    assert exported.load(tmp_path).params["w"] == 1
    del manifest["files"][exported.ENERGY]
    (tmp_path / exported.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is not the manifest of an export"):
        exported.load(tmp_path)


CALLS = [
    '%1 = stablehlo.custom_call @xla_ffi_python_cpu_callback(%0) {backend_config = ""}',
    '%1 = "stablehlo.custom_call"(%0) <{api_version = 2 : i32, call_target_name = "xla_python_gpu_callback"}>',
]


@pytest.mark.parametrize("call", CALLS)
def test_an_exported_program_that_calls_back_into_python_is_refused(tmp_path, monkeypatch, call):
    """JAX exports none, but a file can be made to have the call, with any address."""
    an_export(tmp_path)
    forged = types.SimpleNamespace(mlir_module=lambda: f"func.func @main(%0) {{ {call} }}", call=print)
    monkeypatch.setattr(export, "deserialize", lambda content: forged)
    with pytest.raises(ValueError, match=r"sampler\.bin calls back into Python \(xla.*callback\)"):
        exported.load(tmp_path)


def test_no_array_header_makes_more_memory_than_its_file_has(tmp_path):
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000,), }\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("mean.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text)
    with pytest.raises(BadInput, match=r"no \.npz file of plain numbers"):
        weights.read(tmp_path / "a.npz", "")
