import os
import stat

import pytest

from s2wrap import S2WrapError
from s2wrap.files import disk_errors, whole_file


def test_a_file_appears_whole_with_ordinary_permissions(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with whole_file(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.txt"]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(failure), whole_file(path) as draft:
        draft.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_full_disk_is_one_clear_error(tmp_path):
    with (
        pytest.raises(S2WrapError, match=r"cannot write .*out.txt: No space left on device"),
        whole_file(tmp_path / "out.txt") as draft,
    ):
        with disk_errors(tmp_path / "out.txt"), open("/dev/full", "wb") as full:
            full.write(b"x")
        draft.touch()
    assert os.listdir(tmp_path) == []


def test_folders_that_cannot_be_written_are_found_before_the_work(tmp_path):
    with pytest.raises(S2WrapError, match="No such file or directory"), whole_file(tmp_path / "none" / "out.txt"):
        pytest.fail("the work began")
    with pytest.raises(S2WrapError, match="it is a folder"), whole_file(tmp_path):
        pytest.fail("the work began")


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with whole_file(tmp_path / "link.txt") as draft:
        draft.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_other_errors_are_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "out.txt"):
        (tmp_path / "none.txt").read_text()
    assert os.listdir(tmp_path) == []
