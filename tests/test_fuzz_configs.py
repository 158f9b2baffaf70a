"""Configs, command lines, config files and config.json files that are wrong in every way: one clear line, or a run.

Nothing but `BadInput` may be raised; `run.main` exits with status 2 and changes no file. A config that passes the
checks must build: its training step is traced. The counts are in docs/reliability.md.
"""

import copy
import json
import math
from collections import Counter
from functools import reduce

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict
from test_configs import NAMES, config_of
from test_train import ROOT, command, files

import run
from configs import default
from configs import digits_contrastive as digits
from ebm_jax import capacity, checks, cli, evaluators, program, schema, tasks
from ebm_jax.distributed import parallel
from ebm_jax.kinds import FLAG, SHAPE
from ebm_jax.schema import KEYS, as_config, flat, value_of
from ebm_jax.storage.workdir import read_config
from ebm_jax.types import BadInput

LONGEST = 5000  # characters of a message
DIGITS = f"--config={ROOT / 'configs' / 'digits_contrastive.py'}"


def profile(examples):
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


def check_line(error):
    text = " ".join(str(error).split())  # as run.py prints it
    assert 0 < len(text) < LONGEST
    assert len(text.splitlines()) == 1


def tiny(name, **changes):
    """A shipped config so small that its step is traced in a second, as nested dictionaries."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    small = {"train.dry_run": False, "model.width": 4}
    return schema.with_values(schema.dry_run(config_of(name)), small | changes).to_dict()


BASES = {
    "digits": tiny("digits_contrastive"),
    "conditional": tiny("digits_contrastive", model__num_classes=10, loss__label_weight=1.0),
    "density": tiny("density2d"),
    "soft": tiny("digits_contrastive", data__source="noise", data__condition="soft", model__num_classes=3),
    "position": tiny("shapes_position"),
    "two models": tiny("digits_contrastive", train__num_models=2),
    "mala": tiny("digits_contrastive", chain__kernel="mala", chain__langevin__tied=True),
    "hmc": tiny("digits_contrastive", chain__kernel="hmc", chain__langevin__tied=True, chain__quiet_steps=1),
}


def changed(base, changes):
    values = copy.deepcopy(BASES[base])
    for key, value in changes.items():
        group, last = place(values, key)
        group[last] = value
    return values


def place(values, key):
    """A dotted key's group in nested dictionaries, and its name there."""
    *groups, last = key.split(".")
    return reduce(dict.__getitem__, groups, values), last


def checked(values):
    """The config as a run would have it, after every check that needs no device."""
    config = as_config(ConfigDict(values), "mine.py")
    checks.check(config, 8)
    tasks.check(config, 8)
    capacity.check_samples_fit(config)
    if config.data.source != "density":
        evaluators.check(config, 8)
        capacity.check_evaluation_fits(config)
    return config


def accepted(values):
    """The config, or None where it is refused in one line."""
    try:
        return checked(values)
    except BadInput as error:
        check_line(error)
        return None


def traces(config):
    """Whether the memory is enough. If it is, trace a step without running it."""
    mesh = parallel.device_mesh()
    try:
        capacity.check_memory(config, mesh)
    except BadInput as error:
        check_line(error)
        return False
    state, batch = program.abstract_state(config, mesh), program.abstract_batch(config, mesh)
    with jax.debug_key_reuse(False):  # a vmapped scan moves its keys' axis, which JAX's checker calls a use
        jax.eval_shape(program.make_step(config, mesh), state, batch)
    return True


def test_every_key_has_its_limit_and_every_shipped_config_keeps_to_it():
    assert set(KEYS) == set(flat(default.get_config()))
    for name in NAMES:
        config = config_of(name)
        schema.check_values(config)
        assert flat(as_config(config, name)) == flat(config)


HUGE = [10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 10**30, 10**400, 10**5000]
ODD_NUMBERS = [0, -0.0, 1, 2, 3, -1, -(2**63), 0.5, 1.5, 1e-320, 1e-45, 1e-38, 0.99999999, 1.0000001, 3e38, 1e39, 1e308]
ODD_NUMBERS += [math.inf, -math.inf, math.nan, *HUGE, *(-huge for huge in HUGE)]
ODD_TEXTS = [
    "",
    " ",
    "\n",
    "\0",
    "x",
    "tfds",
    "folder:",
    "npz:/",
    "ü",
    "日本",
    "\udcff",
    "a" * 10_000,
    "1",
    "nan",
    "{}",
]
ODD_TEXTS += ["+", ",", "1+", "3,", "1 1", "-1", "1e999", "../..", "~nobody/x", "$(x)", "%s", "{0}", "\x1b[2J"]
ODD_TYPES = [None, True, False, b"x", [], (), {}, {1}, [8, 8, 1], (8, 8, 1), (8.0, 8, 1), ("8", "8", "1"), (8,), [[8]]]
ODD_TYPES += [(10**30, 8, 1), (-8, 8, 1), (True, 8, 1), (None,), (4096, 4096, 3), (math.nan, 8, 1), (9, 8, 3), (2,)]
ODD_TYPES += [object(), len, int, np.float32(1), np.int64(3), np.zeros(3), 1j, range(3), config_dict.placeholder(int)]
ODD = ODD_NUMBERS + ODD_TEXTS + ODD_TYPES


def names_of(key):
    """The valid words of a key, if it has any, so that checks across keys run too."""
    sources = {"data.source": ["density", "noise", "shapes", "npz:x"], "sample.task": [*tasks.TASKS]}
    return [*checks.NAMES.get(key, {}), *KEYS[key].limit.options, *sources.get(key, [])]


def try_odd_values(stride):
    """Each key with every `stride`-th odd value, from its own offset, and with all valid words."""
    counts = Counter()
    for index, (key, entry) in enumerate(KEYS.items()):
        for value in ODD[index % stride :: stride] + names_of(key):
            config = accepted(changed("digits", {key: value}))
            counts["refused" if config is None else "taken"] += 1
            if config is None:
                continue
            found = value_of(config, key)
            assert entry.limit.is_kind(found), (key, value)
            if isinstance(found, float):
                assert found >= 0, f"no number of a config may be negative or NaN: {key} {found}"
    return counts


@pytest.mark.faults
def test_each_key_with_odd_values_is_refused_in_one_line_or_of_its_kind():
    counts = try_odd_values(stride=5)
    assert counts.total() > 1_500
    assert counts["taken"] > 100


PLAUSIBLE = [0, 1, 2, 3, 8, 16, 64, 0.0, 1e-30, 0.5, 1.0, 1.5, 1e30, math.inf, (9, 8, 1), (33, 40, 3), True, "x", ""]
plausible = st.sampled_from(PLAUSIBLE)
values = plausible | st.sampled_from(ODD) | st.integers() | st.floats() | st.text() | st.lists(st.integers(-1, 40))


@st.composite
def several_changes(draw):
    """Some keys with values that are mostly of their kind, so that many pass the checks one by one."""
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=4, unique=True))
    by_kind = {FLAG: st.booleans(), SHAPE: st.sampled_from([(8, 8, 1), (9, 12, 3), (32, 32, 3), (2,), (64, 8, 1)])}
    return {
        key: draw(st.sampled_from(names_of(key)) if names_of(key) else by_kind.get(KEYS[key].limit, plausible))
        for key in keys
    }


def fuzz_configs(examples):
    """One key with any value."""
    counts = Counter()

    @profile(examples)
    @given(st.sampled_from(sorted(BASES)), st.sampled_from(sorted(KEYS)), values)
    def example(base, key, value):
        counts["refused" if accepted(changed(base, {key: value})) is None else "taken"] += 1

    example()
    return counts


def fuzz_steps(examples):
    """Several keys with plausible values. Each config that passes has its step traced."""
    counts = Counter()

    @profile(examples)
    @given(st.sampled_from(sorted(BASES)), several_changes())
    def example(base, changes):
        config = accepted(changed(base, changes))
        counts["refused" if config is None else ("too large", "traced")[traces(config)]] += 1

    example()
    return counts


def test_any_value_of_any_key_is_refused_in_one_line_or_taken():
    counts = fuzz_configs(50)
    assert counts.total() >= 50
    assert min(counts["refused"], counts["taken"]) > 2, counts


def test_what_the_checks_let_through_has_a_training_step():
    counts = fuzz_steps(15)
    assert counts["traced"] >= 1, counts


@pytest.mark.faults
def test_thousands_of_configs_are_refused_in_one_line_or_have_a_training_step():
    odd, one, several = try_odd_values(stride=1), fuzz_configs(3_000), fuzz_steps(150)
    for what, counts in {"each key, each odd value": odd, "one key": one, "several keys": several}.items():
        print(f"{what}: {counts.total()} examples, {dict(counts)}")
    assert several["traced"] > 10


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("digits", {"chain.anneal_from": 1.0, "chain.temperature": 0.0}, "use chain.anneal_from=0"),
        ("digits", {"sample.anneal_from": 1.0, "chain.temperature": 0.0}, "use sample.anneal_from=0"),
        ("digits", {"model.name": "resnet128", "data.source": "noise"}, "at least 32 pixels a side for"),
        ("digits", {"model.name": "dsprites", "model.width": 1}, "use at least 2"),
        ("digits", {"model.name": "resnet32", "model.resnet.attention": True, "model.width": 1}, "use at least 2"),
        ("digits", {"data.condition": "soft", "model.num_classes": 10}, "soft is not in data.source sklearn"),
        ("density", {"data.condition": "soft"}, "data.condition soft is not in data.source density"),
        ("digits", {"chain.num_steps": 10**9}, "at least 1 and at most 1,000,000"),
        ("digits", {"model.width": 10**9}, "at least 1 and at most 16,384"),
        ("digits", {"optim.ema_decay": 0.99999999}, "below 1, as float32"),
        ("digits", {"chain.step_size": 1e-50}, "greater than 0 and finite, as float32"),
        ("digits", {"train.num_steps": 1.5}, "train.num_steps 1.5 is of the type float; it must be a whole number"),
        ("digits", {"train.num_steps": True}, "train.num_steps True is of the type bool"),
        ("digits", {"model.dtype": "a" * 10_000}, f"model.dtype '{'a' * 79}... is unknown; use one of float32"),
        ("digits", {"chain.step_size": "ten"}, "chain.step_size 'ten' is of the type str; it must be a number"),
        ("digits", {"chain.step_size": None}, "chain.step_size None is of the type NoneType"),
        ("digits", {"data.shape": ("8", "8", "1")}, "it must be whole numbers such as"),
        ("digits", {"sample.num_images": 10**7, "data.shape": (512, 512, 3), "data.source": "noise"}, "GiB of"),
    ],
)  # fmt: skip
def test_a_config_that_once_failed_later_is_refused_with_the_cure(base, changes, message):
    with pytest.raises(BadInput) as raised:
        checked(changed(base, changes))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "lower"),
    [
        ({"buffer.capacity": 2**31 - 8}, "lower buffer.capacity"),
        ({"model.width": 16_384, "model.name": "resnet32"}, "lower model.width"),
        ({"train.batch_size": 10**6, "buffer.capacity": 10**6, "data.shape": (4096, 4096, 1)}, "train.batch_size"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_fit_in_memory_is_refused_before_it_is_built(changes, lower):
    config = as_config(ConfigDict(changed("digits", changes)), "mine.py")
    with pytest.raises(BadInput, match=f"GiB on each device.*{lower}"):
        capacity.check_memory(config, parallel.device_mesh())


def test_the_memory_that_a_run_needs_at_least_is_that_of_its_arrays(monkeypatch):
    config, mesh = as_config(ConfigDict(BASES["digits"]), "mine.py"), parallel.device_mesh(jax.devices())
    state = program.make_state(config, mesh)
    shards = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state))]
    shards += [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(state.memory)]
    batch = 2 * 4 * math.prod(config.data.shape) * config.train.batch_size // 8
    needed = 8 * (sum(shard.nbytes for shard in shards) + batch)
    monkeypatch.setattr(parallel, "host_memory", lambda: needed)
    capacity.check_memory(config, mesh)
    monkeypatch.setattr(parallel, "host_memory", lambda: needed - 8)
    with pytest.raises(BadInput, match="GiB on each device"):
        capacity.check_memory(config, mesh)


def test_lists_and_whole_numbers_serve_as_tuples_and_numbers(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import digits_contrastive as digits\nfrom ml_collections import ConfigDict\ndef get_config():\n"
        "    values = digits.get_config().to_dict()\n    values['data']['shape'] = [8, 8, 1]\n"
        "    values['chain']['step_size'] = 10\n    return ConfigDict(values)\n"
    )
    config = cli.parse(["run.py", f"--config={path}", "--config.chain.step_size=2.5"]).config
    assert config.data.shape == (8, 8, 1)
    assert config.chain.step_size == 2.5
    assert cli.parse(["run.py", f"--config={path}", "--config.data.shape=(16, 16, 1)"]).config.data.shape == (16, 16, 1)


BODY = (
    "from configs import digits_contrastive as digits\n"
    "def get_config():\n    c = digits.get_config()\n    c.unlock(); c.chain.unlock()\n    "
)
FILES = {
    "no get_config": "x = 1",
    "nothing": "",
    "no Python": "def (",
    "a null byte": "x = '\0'",
    "an exit": "import sys; sys.exit(3)",
    "an exit inside": "def get_config():\n    raise SystemExit",
    "an error without words": "raise ValueError",
    "a failed assertion": "def get_config():\n    assert False",
    "an error of several lines": "raise ValueError('a\\nb\\nc')",
    "an import that fails": "import no_such_module",
    "endless recursion": "def get_config():\n    return get_config()",
    "no function": "get_config = 3",
    "an argument": "def get_config(name):\n    return name",
    "None": "def get_config():\n    pass",
    "a dict": "def get_config():\n    return {}",
    "a class": "def get_config():\n    return dict",
    "no keys": "from ml_collections import ConfigDict as get_config",
    "no group": BODY + "del c.chain; return c",
    "a group less a key": BODY + "del c.chain.step_size; return c",
    "a group too many": BODY + "c.foo = dict(bar=3); return c",
    "a key beside the groups": BODY + "c.foo = 3; return c",
    "a key too many": BODY + "c.chain.stepsize = 3; return c",
    "a number for a group": BODY + "del c.chain; c.chain = 3; return c",
    "None for a group": BODY + "del c.chain; c.chain = None; return c",
    "a number for a name": BODY + "c[3] = 4; return c",
    "a group in a key": BODY + "del c.chain.langevin.tied; c.chain.langevin.tied = type(c)(); return c",
    "itself": BODY + "c.me = c; return c",
    "text for a number": BODY + "c.chain.step_size = 'ten'; return c",
    "text for a number, types unlocked": BODY + "del c.chain.step_size; c.chain.step_size = 'ten'; return c",
    "None for a number": BODY + "c.chain.step_size = None; return c",
    "a function for a number": BODY + "del c.chain.step_size; c.chain.step_size = len; return c",
    "an array": BODY + "import numpy; del c.chain.step_size; c.chain.step_size = numpy.ones(3); return c",
    "a set": BODY + "del c.chain.step_size; c.chain.step_size = {1}; return c",
    "a fraction": BODY + "c.train.num_steps = 1.5; return c",
    "an empty reference": BODY
    + "from ml_collections import config_dict; del c.chain.step_size\n"
    + "    c.chain.step_size = config_dict.required_placeholder(float); return c",
    "a value whose repr fails": BODY
    + "class A:\n        __repr__ = None\n    del c.chain.step_size; c.chain.step_size = A(); return c",
}


@pytest.mark.parametrize("name", FILES)
def test_a_config_file_with_such_content_is_refused_in_one_line(name, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(FILES[name])
    assert run.main(["run.py", f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"run.py: --config {path}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert [file.name for file in tmp_path.iterdir() if file.name != "__pycache__"] == ["mine.py"]


WORDS = {
    "no value of the config": ([DIGITS, "--config"], "--config has no value"),
    "a flag as the value of the config": (["--config", "--mode=train"], "--config has no value"),
    "an empty config": (["--config="], "is not a file"),
    "a folder": ([f"--config={ROOT}"], "is not a file"),
    "no value at the end": ([DIGITS, "--config.chain.num_steps"], "--config.chain.num_steps has no value"),
    "a flag as a value": ([DIGITS, "--config.data.name", "--mode=train"], "--config.data.name has no value"),
    "no folder": ([DIGITS, "--workdir", "--config.chain.langevin.tied"], "--workdir has no value"),
    "the last of two flags": (
        [DIGITS, "--config.chain.num_steps=3", "--config.chain.num_steps=x"],
        "--config.chain.num_steps=x",
    ),
    "no key": ([DIGITS, "--config.=3"], "--config. is not a key"),
    "a key of a key": ([DIGITS, "--config.chain.num_steps.x=3"], "did you mean --config.chain.num_steps?"),
    "brackets": ([DIGITS, "--config[chain]=3"], "Unknown command line flag"),
    "three dashes": ([DIGITS, "---config.chain.num_steps=3"], "Unknown command line flag"),
    "two dashes": ([DIGITS, "--", "x"], "'x' is not a flag"),
    "a null byte": ([DIGITS, "\0"], "is not a flag"),
    "maybe": ([DIGITS, "--config.chain.langevin.tied=maybe"], "maybe"),
    "a list of texts": ([DIGITS, "--config.data.shape=('8','8','1')"], "whole numbers such as"),
    "half a tuple": ([DIGITS, "--config.data.shape=(8,8"], "data.shape"),
    "a flag file that is missing": ([DIGITS, "--flagfile=/no/such"], "/no/such"),
    "a flag file that is no text": ([DIGITS, "--flagfile=/bin/sh"], "decode"),
    "a folder with an endless name": (["--mode=sample", f"--workdir={'a' * 5000}"], "File name too long"),
    "a config with an endless name": ([f"--config={'a' * 5000}"], "is not a file"),
    "cpu devices": ([DIGITS, "--config.train.cpu_devices=-1"], "train.cpu_devices -1 is out of range"),
    "many cpu devices": ([DIGITS, "--config.train.cpu_devices=1000000"], "at most 256"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_command_line_with_such_words_is_refused_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, expected = WORDS[name]
    assert run.main(["run.py", *words]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def fuzz_words(examples):
    counts = Counter()
    texts = st.sampled_from([*ODD_TEXTS, *map(repr, ODD_NUMBERS[:23]), *map(repr, ODD_TYPES[:22])]) | st.text(
        max_size=9
    )

    @profile(examples)
    @given(st.sampled_from(sorted(KEYS)), texts, st.sampled_from(["--config.{}={}", "-config.{}={}", "--config.{} {}"]))
    def example(key, text, form):
        flag, _, value = form.partition(" ")
        words = [flag.format(key, text), *([text] if value else [])]
        try:
            config = cli.parse(["run.py", DIGITS, *words]).config
        except BadInput as error:
            check_line(error)
            counts["refused"] += 1
        else:
            schema.check_values(config)
            counts["taken"] += 1

    example()
    return counts


def test_any_text_for_any_key_on_the_command_line_is_refused_in_one_line_or_taken():
    counts = fuzz_words(50)
    assert min(counts["refused"], counts["taken"]) > 2, counts


@pytest.mark.faults
def test_thousands_of_texts_on_the_command_line():
    counts = fuzz_words(2_000)
    print(f"{counts.total()} examples, {dict(counts)}")


def without(values, key):
    fewer = copy.deepcopy(values)
    group, last = place(fewer, key)
    del group[last]
    return fewer


def damaged_json(text):
    """Texts that stand for a config.json, by what is wrong with them."""
    values = json.loads(text)
    return {
        "nothing": "",
        "half": text[: len(text) // 2],
        "all but the end": text[:-3],
        "no JSON": "no JSON",
        "null": "null",
        "a number": "3",
        "a list": "[1, 2]",
        "text": '"x"',
        "nested without end": "[" * 100_000,
        "a number without end": "9" * 10_000,
        "no groups": "{}",
        "a group as a number": json.dumps(values | {"chain": 3}),
        "a group as a list": json.dumps(values | {"chain": [1]}),
        "no group": json.dumps({group: fields for group, fields in values.items() if group != "buffer"}),
        "a key less that every run has": json.dumps(without(values, "chain.langevin.tied")),
        "a key more, as of a newer version": json.dumps(values | {"chain": values["chain"] | {"newer": 1}}),
        "a group more": json.dumps(values | {"newer": {"key": 1}}),
        "dots in a name": json.dumps(values | {"chain.num_steps": 1}),
        "the name of a method": json.dumps(values | {"lock": 1}),
        "a wrong type": json.dumps(values | {"chain": values["chain"] | {"num_steps": "two"}}),
        "null for a number": json.dumps(values | {"chain": values["chain"] | {"num_steps": None}}),
        "a value out of range": json.dumps(values | {"chain": values["chain"] | {"num_steps": -1}}),
        "an unknown choice": json.dumps(values | {"model": values["model"] | {"name": "resnet"}}),
    }


DAMAGES = list(damaged_json(json.dumps(BASES["digits"])))


@pytest.mark.whole
@pytest.mark.parametrize("mode", ["sample", "train"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_config_is_damaged_is_refused_in_one_line_and_left_as_it_is(
    one_run, tmp_path, capsys, damage, mode
):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    text = damaged_json((one_run / "config.json").read_text())[damage]
    (folder / "config.json").write_text(text)
    words = command(folder, mode, **{"model.num_classes": 10, "train.num_steps": 3} if mode == "train" else {})
    assert run.main(words) == 2
    captured = capsys.readouterr()
    assert str(folder) in captured.err or "out of range" in captured.err or "model.name 'resnet'" in captured.err
    assert captured.err.count("\n") == 1
    assert len(captured.err) < LONGEST
    assert files(folder) == {folder / "config.json": text.encode()}


def test_a_config_json_that_is_no_file_or_no_utf8_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(BadInput, match="Is a directory"):
        read_config(tmp_path)
    (tmp_path / "config.json").rmdir()
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BadInput, match="is damaged"):
        read_config(tmp_path)


SAMPLE = {
    "an unknown task": ({"task": "dream"}, "sample.task 'dream' is unknown"),
    "labels that are words": ({"labels": "cat"}, "is no class"),
    "a label too many": ({"labels": "10"}, "label 10 is out of range; use 0 to 9"),
    "a negative label": ({"labels": "-1"}, "out of range"),
    "a fraction of a label": ({"labels": "0.5"}, "out of range"),
    "a label that is no number": ({"labels": "nan"}, "out of range"),
    "an endless label": ({"labels": "9" * 400}, "out of range"),
    "no label between commas": ({"labels": "1,,2"}, "a label of 0 numbers"),
    "a vector": ({"labels": "0.5 0.5"}, "a label of 2 numbers"),
    "a sum to generate": ({"labels": "1+3"}, "sample.task=compose"),
    "half a sum": ({"labels": "1+", "task": "compose"}, "a label of 0 numbers"),
    "one energy": ({"task": "compose"}, "one energy only"),
    "an unknown mask": ({"task": "inpaint", "mask": "middle"}, "sample.inpaint.mask 'middle' is unknown"),
    "no such mask": ({"task": "inpaint", "mask": "none.npy"}, "cannot be read"),
    "an empty mask": ({"task": "inpaint", "mask": "empty.npy"}, "cannot be read"),
    "a pickled mask": ({"task": "inpaint", "mask": "pickled.npy"}, "cannot be read"),
    "an archive as a mask": ({"task": "inpaint", "mask": "archive.npy"}, "no single array"),
    "a mask of numbers": ({"task": "inpaint", "mask": "numbers.npy"}, "it must be bool"),
    "a mask of another size": ({"task": "inpaint", "mask": "small.npy"}, "it must be bool"),
    "a mask that knows all": ({"task": "inpaint", "mask": "all.npy"}, "leaves nothing"),
    "a folder as a mask": ({"task": "inpaint", "mask": "folder.npy"}, "cannot be read"),
    "an unknown corruption": ({"task": "restore", "corruption": "fog"}, "sample.restore.corruption 'fog' is unknown"),
    "a blur of nothing": ({"task": "restore", "corruption": "blur", "amount": 0.0}, "sample.restore.amount 0.0"),
    "a blur of miles": ({"task": "restore", "corruption": "blur", "amount": 1e30}, "sample.restore.amount 1e+30"),
    "salt and pepper beyond all pixels": ({"task": "restore", "amount": 1.5}, "sample.restore.amount 1.5"),
    "a factor that does not divide": ({"task": "super_resolve", "factor": 3}, "sample.super_resolve.factor 3"),
    "a factor beyond the image": ({"task": "super_resolve", "factor": 64}, "sample.super_resolve.factor 64"),
    "color of gray": ({"task": "colourise"}, "needs images of 3 channels"),
    "an unknown split": ({"task": "classify", "split": "tset"}, "use one of train, test"),
    "neighbours beyond the set": ({"task": "neighbours", "neighbours": 10**6, "num_images": 8}, "ask for 1 to 1438"),
    "snapshots that are not there": ({"snapshots": 100}, "valid checkpoints, not 100"),
    "a run that is not there": ({"with_runs": "/no/such"}, "is not the folder of a run"),
    "a run with an endless name": ({"with_runs": "a" * 4000}, "File name too long"),
    "commas for runs": ({"with_runs": ",,", "task": "compose"}, "one energy only"),
    "labels of no runs": ({"with_labels": "1", "labels": "1+2", "task": "compose"}, "1 parts for 0 runs"),
    "turns without a buffer": ({"ensemble": "turns"}, "needs a sampling buffer"),
    "a buffer for a film": ({"task": "film", "buffer_capacity": 64}, "is for sample.task generate"),
    "a buffer too small": ({"buffer_capacity": 8}, "must hold sample.num_images"),
    "images beyond the memory": ({"num_images": 10**8}, "at most 10,000,000"),
    "a film beyond the memory": ({"task": "film", "num_images": 10**7, "num_steps": 10**6}, "of memory"),
    "quiet steps beyond the steps": ({"num_steps": 2, "quiet_steps": 3}, "at most sample.num_steps, 2"),
    "a film without steps between": ({"task": "film", "film.every": 0}, "sample.film.every 0 is out of range"),
    "a seed beyond 32 bits": ({"seed": 2**32}, "sample.seed 4294967296 is out of range"),
    "NaN": ({"strength": "nan"}, "sample.strength nan is out of range"),
}


@pytest.mark.whole
@pytest.mark.parametrize("name", SAMPLE)
def test_samples_that_cannot_be_had_are_refused_in_one_line_and_the_run_is_left_as_it_is(
    one_run, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "folder.npy").mkdir()
    np.save("pickled.npy", np.array([None]), allow_pickle=True)
    with open("archive.npy", "wb") as file:
        np.savez(file, mask=np.ones((8, 8), bool))
    np.save("numbers.npy", np.ones((8, 8)))
    np.save("small.npy", np.ones((4, 4), bool))
    np.save("all.npy", np.ones((8, 8), bool))
    changes, expected = SAMPLE[name]
    before = files(one_run)
    assert run.main(command(one_run, "sample", **{f"sample.{key}": value for key, value in changes.items()})) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.splitlines()[-1].startswith("run.py: ")
    assert "Traceback" not in captured.err
    assert files(one_run) == before


@pytest.mark.parametrize("mode", ["export", "sample", "evaluate"])
def test_no_checkpoint_or_another_run_is_refused_in_one_line(one_run, tmp_path, capsys, mode):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((one_run / "config.json").read_bytes())
    assert run.main(command(folder, mode)) == 2
    assert "has no checkpoint" in capsys.readouterr().err
    assert run.main(command(folder, mode, chain__num_steps=9)) == 2
    assert "only --config.sample" in capsys.readouterr().err


PREPARE = {
    "an unknown split": (["--config.data.split=tset"], "use one of train, test"),
    "no such folder": (["--config.data.source=folder:/no/such"], "/no/such is not a folder"),
    "a user that is not there": (["--config.data.source=folder:~nobody_of_this_name/x"], "no such home directory here"),
    "a null byte": (["--config.data.source=npz:a\0b"], "can be read"),
    "integers for vectors": (
        ["--config.data.source=npz:classes.npz", "--config.data.condition=soft", "--config.model.num_classes=3"],
        "its labels are classes, not vectors",
    ),
    "vectors for integers": (
        ["--config.data.source=npz:vectors.npz", "--config.model.num_classes=3"],
        "its labels are vectors, not classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PREPARE)
def test_data_that_cannot_be_had_are_refused_in_one_line(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    images = np.zeros((64, 8, 8), np.uint8)
    np.savez("classes.npz", images=images, labels=np.arange(64) % 3)
    np.savez("vectors.npz", images=images, labels=np.full((64, 3), 1 / 3))
    words, expected = PREPARE[name]
    assert run.main(["run.py", DIGITS, "--mode=prepare", *words]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1


def test_a_working_digits_config_still_passes_all_checks():
    config = digits.get_config()
    checks.check(config, 8)
    tasks.check(config, 8)
    capacity.check_memory(config, parallel.device_mesh())
