"""Counts its runs in the store that the host granted as `default`."""

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports.larder_storage_types import Error_Conflict
from wit_world.imports.store import Store
from wit_world.imports.tx import Mode, Tx


def visit(store: Store) -> int:
    """Adds one to the count, again if another transaction committed first."""
    while True:
        tx = store.begin(Mode.UPDATE)
        try:
            visits = int(tx.get("counts", "visits") or b"0") + 1
            tx.put("counts", "visits", str(visits).encode())
            Tx.commit(tx)
            return visits
        except Err as error:
            if not isinstance(error.value, Error_Conflict):
                raise


class Run(exports.Run):
    def run(self) -> None:
        print("visit number", visit(Store.open("default")))
