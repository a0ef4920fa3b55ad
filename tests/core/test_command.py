from __future__ import annotations

import pytest

from napari_strata.core.command import join_command, split_command


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_quotes_and_spaces_separate_words(
    monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    words = split_command("ssh 'gpu host' python -m \"a b\" #4")
    assert words == ["ssh", "gpu host", "python", "-m", "a b", "#4"]
    with pytest.raises(ValueError, match="quotation"):
        split_command("python '-m")


def test_a_backslash_separates_folders_on_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = r'"C:\Program Files\python.exe" C:\worker.py'
    monkeypatch.setattr("sys.platform", "win32")
    assert split_command(command) == [r"C:\Program Files\python.exe", r"C:\worker.py"]
    monkeypatch.setattr("sys.platform", "linux")
    assert split_command(r"a\ b") == ["a b"]


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_a_joined_command_is_split_into_the_same_words(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    words = ["napari-strata", "train", r"C:\My images\a.tif", "--set", "a=b"]
    line = join_command(words)
    assert split_command(line) == words
    if platform == "win32":
        assert '"C:\\My images\\a.tif"' in line, "cmd.exe knows double quotes only"
