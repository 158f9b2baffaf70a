"""Processes that meet, decide together and end together: real ones, on this machine, that touch no device."""

import socket
import sys

import pytest
from conftest import FOR_EVER, finished, free_port, start

from ebm_jax.distributed import processes
from ebm_jax.types import BadInput

pytestmark = pytest.mark.whole

PROGRAM = """
import sys, time, types
sys.modules["ebm_jax"] = types.ModuleType("ebm_jax")  # of the package this module alone: the rest imports for seconds
sys.modules["ebm_jax"].__path__ = ["ebm_jax"]
from ebm_jax.distributed import processes
from ebm_jax.types import BadInput

def main():
    me = int(sys.argv[2])
    with processes.joined(processes.Launch(sys.argv[1], {number}, {own}, {timeout}), alike=(ZeroDivisionError,)):
{body}

try:
    main()
except BadInput as error:
    print(f"refused: {{error}}", flush=True)
    sys.exit(2)
"""


def together(body, count=2, *, number="2", own="me", timeout=FOR_EVER, started=None):
    """(exit status, output) of `count` processes that run the lines of `body`."""
    lines = "\n".join(f"        {line}" for line in ["pass", *body.splitlines()])
    program = PROGRAM.format(body=lines, number=number, own=own, timeout=timeout)
    coordinator = f"127.0.0.1:{free_port()}"
    return finished([start([sys.executable, "-c", program, coordinator, str(me)]) for me in started or range(count)])


def test_a_meeting_gives_each_process_the_texts_of_all_in_their_order():
    results = together(
        'print(processes.meet(f"ä{me}"), processes.from_first(str(me)), processes.is_first())', 3, number="3"
    )
    assert [status for status, _ in results] == [0, 0, 0]
    assert [out.strip() for _, out in results] == [f"['ä0', 'ä1', 'ä2'] 0 {first}" for first in (True, False, False)]


@pytest.mark.parametrize("culprit", [0, 1])
def test_what_one_process_refuses_all_refuse_with_its_line_wherever_they_meet(culprit):
    body = f"""
with processes.agreed():
    if me == {culprit}:
        raise BadInput("no such folder")
    processes.require_same("value", "1")
"""
    results = together(body)
    assert [status for status, _ in results] == [2, 2]
    assert results[culprit][1] == "refused: no such folder\n"
    assert results[1 - culprit][1] == f"refused: process {culprit}: no such folder\n"


def test_different_values_are_refused_by_all():
    for status, out in together('processes.require_same("the number of images", str(7 + me))'):
        assert status == 2
        assert (
            out == "refused: the number of images is 7 on process 0 and 8 on process 1; start the same command on all\n"
        )


@pytest.mark.parametrize(
    ("culprit", "failure", "status"), [(0, 'OSError("torn file")', 1), (1, 'BadInput("torn file")', 2)]
)
def test_one_that_fails_alone_ends_the_others_where_they_wait_with_its_line_and_status(culprit, failure, status):
    body = f"""
if me == {culprit}:
    raise {failure}
time.sleep(100_000)
"""
    results = together(body)
    assert [code for code, _ in results] == [status, status]
    assert f"run.py: process {culprit} failed: " in results[1 - culprit][1]
    assert "torn file" in results[1 - culprit][1]
    assert "Traceback" not in results[1 - culprit][1]


@pytest.mark.slow
def test_an_error_that_all_raise_at_the_same_point_is_nobodys_failure():
    body = """
processes.LEAVE_SECONDS = 0.5
if me == 1:
    time.sleep(3)
1 / 0
"""
    for status, out in together(body):
        assert status == 1
        assert "ZeroDivisionError" in out
        assert "failed" not in out


def test_processes_that_do_not_meet_say_so_in_one_line_in_time():
    for started in ([0], [1]):
        ((status, out),) = together("", started=started, timeout=2)
        assert status == 2
        assert f"process {started[0]} of 2 did not meet the others at 127.0.0.1:" in out
        assert out.count("\n") == 1


def test_different_numbers_of_processes_are_refused_by_all():
    for status, out in together("", number="2 + me"):
        assert status == 2
        assert out == "refused: --num_processes is 2 on process 0 and 3 on process 1; start the same command on all\n"


def test_two_processes_of_one_id_say_so_in_time():
    results = together("", number="3", own="max(me, 1)", started=[1, 1], timeout=2)
    assert {status for status, _ in results} == {2}


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        (("here", 2, 0, 9.0), "--coordinator here is not HOST:PORT"),
        (("h:1", 2, 2, 9.0), "--process_id 2 is out of range; it must be 0 to 1, of 2 processes"),
        (("h:1", 0, 0, 9.0), "--num_processes 0 is out of range"),
        (("h:1", 2, -1, 9.0), "--process_id -1 is out of range"),
        (("h:1", 2, 1, 0.0), "--join_timeout 0.0 is out of range"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_waits(launch, expected):
    with pytest.raises(BadInput, match=expected), processes.joined(processes.Launch(*launch)):
        pass


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"127.0.0.1:{port}: process 0 cannot open the port"):
            processes._check(processes.Launch(f"127.0.0.1:{port}", 2, 0, 9.0))


def test_without_a_cluster_and_without_flags_one_line_names_the_flags():
    ((status, out),) = finished(
        [start([sys.executable, "run.py", "--config=configs/digits_contrastive.py", "--multihost"])]
    )
    assert status == 2
    assert "give --coordinator=HOST:PORT --num_processes=N --process_id=I" in out
    assert out.count("\n") == 1
