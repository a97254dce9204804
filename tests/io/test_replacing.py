import pytest

from napari_unet.domain.errors import ExportError
from napari_unet.io.writing.replacing import MaskFile, put_in_place


def test_what_reads_back_otherwise_is_thrown_away(tmp_path):
    def fail(path):
        raise EOFError

    (tmp_path / "a.txt").write_text("old")
    for is_sound in (lambda path: False, fail):
        with pytest.raises(ExportError, match="not the one written"):
            put_in_place(tmp_path / "a.txt", ".txt", MaskFile(lambda path: path.write_text("new"), is_sound))
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    def make(path):
        path.mkdir()
        (path / "new").touch()

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    rename = type(tmp_path).rename

    def refuse_new(path, target):
        if (path / "new").exists():
            raise PermissionError(13, "no")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "rename", refuse_new)
        with pytest.raises(ExportError, match="could not be written"):
            put_in_place(tmp_path / "a", "", MaskFile(make, lambda path: True))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]
    put_in_place(tmp_path / "a", "", MaskFile(make, lambda path: True))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert len(list(tmp_path.iterdir())) == 1
