"""Another interpreter with the peers in its environment. It answers one request after another."""

import json
import subprocess
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("peer_torch.py")


class Peer:
    """A process of `peer_torch.py`; callers ask for its methods by name."""

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, name: str, **arguments: Any) -> Any:
        """The answer of a method of `Peers`.

        Raises:
          RuntimeError: the process ended; run it by hand to see its error.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peers' process ended at {name} {arguments}; run {SCRIPT} by hand to see why")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
