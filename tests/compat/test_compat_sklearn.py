"""scikit-learn's file of digits is where it is expected, and holds what its public loader gives."""

import numpy as np
from sklearn.datasets import load_digits

from vamf.compat.sklearn import digits_csv


def test_digits_csv_holds_the_public_data_set():
    table, public = np.loadtxt(digits_csv(), delimiter=","), load_digits()
    assert table.shape == (1797, 65)
    assert np.array_equal(table[:, :-1], public.data)
    assert np.array_equal(table[:, -1], public.target)
