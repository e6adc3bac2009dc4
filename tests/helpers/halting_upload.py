"""``jobs.train`` that stops for ever in the middle of an upload, to be killed there.

``python tests/helpers/halting_upload.py STEP [options of jobs.train]``: when half of the state of
that step, or of a later one, is in the store. It then prints HALTED and the name.
"""

import sys
import time
from pathlib import Path

from jobs import train
from vamf.store import Store

STEP, *ARGUMENTS = sys.argv[1:]
UPLOAD = Store.upload


def upload(store: Store, path: Path, name: str) -> None:
    if name != "state.pt" or int(store.name.removeprefix("step_")) < int(STEP):
        UPLOAD(store, path, name)
        return
    with store._writing(name) as stream:
        stream.write(path.read_bytes()[: path.stat().st_size // 2])
        stream.flush()
        print(f"HALTED {store.name}", flush=True)
        time.sleep(600)


if __name__ == "__main__":
    Store.upload = upload  # type: ignore[method-assign]
    train.main(ARGUMENTS)
