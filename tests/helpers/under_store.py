"""A store that only an implementation of fsspec speaks to: ``under://bucket/...`` of a folder.

The folder is named by the variable UNDER. Importing this registers it, also in other processes.
"""

import os
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Under(LocalFileSystem):
    protocol = "under"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return LocalFileSystem._strip_protocol(path.replace("under://", f"{os.environ['UNDER']}/"))


fsspec.register_implementation("under", Under, clobber=True)
