import numpy as np
import pytest

from worker.numerics.spool import Spool


def test_rows_come_back_as_they_went_in(tmp_path):
    rows = np.random.default_rng(0).integers(0, 2**16, (7, 5, 3), dtype=np.uint16)
    with Spool(tmp_path, row_shape=(5, 3), dtype=np.uint16) as spool:
        spool.append(rows[:2])
        spool.append(rows[2:2])
        spool.append(rows[2:])
        assert len(spool) == 7
        np.testing.assert_array_equal(spool.read(0, 7), rows)
        np.testing.assert_array_equal(spool.read(3, 5), rows[3:5])
        assert spool.read(4, 4).shape == (0, 5, 3)


def test_rows_that_are_not_contiguous_are_written_in_order(tmp_path):
    rows = np.arange(24.0).reshape(4, 6)[:, ::2]
    with Spool(tmp_path, row_shape=(3,), dtype=np.float64) as spool:
        spool.append(rows)
        np.testing.assert_array_equal(spool.read(0, 4), rows)


@pytest.mark.parametrize("rows", [np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float64)])
def test_other_rows_are_refused(tmp_path, rows):
    with Spool(tmp_path, row_shape=(3,), dtype=np.float32) as spool:
        with pytest.raises(ValueError, match="expected rows"):
            spool.append(rows)
        assert len(spool) == 0


def test_rows_never_written_cannot_be_read(tmp_path):
    with Spool(tmp_path, row_shape=(3,), dtype=np.float32) as spool:
        spool.append(np.zeros((2, 3), np.float32))
        with pytest.raises(IndexError, match="rows 1 to 3 of 2"):
            spool.read(1, 3)


def test_closing_removes_the_file_and_leaves_the_folder(tmp_path):
    spool = Spool(tmp_path, row_shape=(3,), dtype=np.float32)
    assert list(tmp_path.iterdir())
    spool.close()
    spool.close()
    assert not list(tmp_path.iterdir())


def test_two_spools_of_one_name_do_not_share_a_file(tmp_path):
    with Spool(tmp_path, row_shape=(1,), dtype=np.uint8), pytest.raises(FileExistsError):
        Spool(tmp_path, row_shape=(1,), dtype=np.uint8)
