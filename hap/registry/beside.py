"""A version's members loaded beside what serves, for `hapctl parity` and `hapctl shadow`; what serves goes on, and so do its pins."""

from collections.abc import Sequence

from hap.errors import Busy
from hap.params import Params
from hap.registry import ledger as journal
from hap.registry.ledger import Ledger, Row
from hap.registry.switch import Server, restore, standing
from hap.serving import repository
from hap.serving.bundle import GRAPHS, Bundle
from hap.workspace import Workspace


def settled_rows(ws: Workspace, ledger: Ledger) -> list[Row]:
    """The ledger's rows, where nothing is left to settle; call with the promotion lock held.

    Raises:
        Busy: a promotion was interrupted, or a pin waits for the server's next start.
    """
    rows = ledger.rows()
    if journal.open_move(rows) or repository.pinned(ws.triton) != journal.served(rows):
        raise Busy("a promotion was interrupted, or a pin waits for the next start: `hapctl promote` or `hapctl rollback` settles it")
    return rows


def load_beside(ws: Workspace, params: Params, bundle: Bundle, version: int, server: Server, rows: Sequence[Row]) -> None:
    """Render a version, check it, and load its members beside those that are loaded; call with the promotion lock held.

    Raises:
        DataError, ServingError: as a promotion's. `drop_beside` is then the caller's next step.
    """
    repo, champion = ws.triton, journal.served(rows)
    repository.render(bundle, version, repo, params.serving.backend, params.serving.tensorrt)
    repository.check(repo, version)
    repository.pin(repo, champion, standing(repo, *repository.loaded(repo), champion, version))
    repository.check_members(repo)
    for member in GRAPHS:
        server.load(member)


def drop_beside(ws: Workspace, server: Server | None, rows: Sequence[Row]) -> None:
    """Load what the ledger asks for and no more; call with the promotion lock held.

    Raises:
        ServingError: the server does not follow; the pins are right already.
    """
    restore(server, ws.triton, journal.served(rows), [journal.previous_served(rows)])
