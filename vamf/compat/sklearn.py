"""The file of handwritten digits in scikit-learn's installation."""

import importlib.util
from pathlib import Path


def digits_csv() -> Path:
    """The gzipped table of 1,797 rows: 64 grey levels from 0 to 16, then the label.

    Its path inside the package is private; if it moves, the data set ``Digits`` cannot be loaded.
    ``sklearn.datasets.load_digits`` is public, but importing it takes four CPU-seconds in every
    process; reading the file takes none.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None  # a dependency of vamf
    return Path(package.origin).parent / "datasets/data/digits.csv.gz"
