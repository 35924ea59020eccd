"""Whether a running server answers as it should: a golden request of the champion, asked as anyone would ask it.

Triton never restarts a python stub that died and still calls itself ready, so only a real inference shows health.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hap.errors import DataError, ServingError
from hap.serving import repository
from hap.serving.bundle import Golden, read_golden
from hap.serving.client import HapClient, NoChampion
from hap.serving.server import EXIT_TIMEOUT_S
from hap.serving.wire import StubDied

MAX_DIFFERENCE = 1e-3  # of a score from the golden one


@dataclass(frozen=True)
class Fault:
    """What a canary found wrong; `restart` says whether a restart mends it: at once, only if it stays so, or not at all."""

    said: str
    restart: Literal["at once", "if it stays", "no"] = "if it stays"


class Canary:
    """A golden request of the champion, sent to both ensembles of the running server: each has members that the other does not ask."""

    def __init__(self, repo: Path, grpc_url: str, deadline_s: float) -> None:
        self.repo = repo
        # The watch counts misses itself, and loads nothing: it unloads at the end, for which a hung server has no minute.
        self.client = HapClient(grpc_url, deadline_s, load_deadline_s=EXIT_TIMEOUT_S, retries=0)
        self._golden: dict[tuple[int, int], Golden] = {}  # by version and time of its file
        self._seen = False

    def begin(self, champion: int | None) -> None:
        """A server was started; with a champion loaded, its absence is a fault."""
        self._seen = champion is not None

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def fault(self) -> Fault | None:
        """What is wrong with the server, or None."""
        try:
            version = repository.pinned(self.repo)
            if version is None:
                return None if self.client.live() else Fault("the server does not answer")
            golden = self._of(version)
            answers = {name: self.client.score(golden.tensors, golden.k, model=name) for name in repository.ENSEMBLES}
        except DataError as error:  # files are damaged: what is loaded serves on, and a restart could load them no more
            return Fault(str(error), "no")
        except NoChampion as error:  # else it is pinned, and about to be loaded by a promotion
            return Fault(str(error)) if self._seen else None
        except StubDied as error:
            return Fault(str(error), "at once")
        except ServingError as error:
            return Fault(str(error))
        self._seen = True
        for name, scored in answers.items():
            if scored.served_by != version:  # between two pins
                continue
            known = golden.routed | (name == "hap")  # of the others hap_all says what the golden answer does not
            difference = float(np.abs(scored.score - golden.score)[known].max(initial=0.0))
            if not difference <= MAX_DIFFERENCE:
                return Fault(f"v{version} answers a golden request on {name} {difference:.2g} away from its score")
        return None

    def _of(self, version: int) -> Golden:
        path = repository.canary_file(self.repo, version)
        try:
            key = (version, path.stat().st_mtime_ns)
            if key not in self._golden:
                self._golden = {key: read_golden(path)[0]}
            return self._golden[key]
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} holds no golden request ({error}), so nobody sees whether v{version} answers; "
                f"copy {path.name} from registry/bundles/v{version}"
            ) from None
