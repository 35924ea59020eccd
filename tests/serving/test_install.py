import ctypes
import platform
import sys
import sysconfig
from pathlib import Path

import pytest

from hap.errors import HapError, ServingError
from hap.params import load_params
from hap.project import project_file
from hap.serving import install, runtime
from hap.workspace import Workspace


def test_a_missing_runtime_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAP_TRITON_VENV", str(tmp_path / "empty"))
    assert not install.is_installed()
    with pytest.raises(ServingError, match="hapctl serve --install"):
        runtime.start(Workspace(tmp_path), load_params(project_file("params.yaml")), detach=True)
    assert runtime.server_state(Workspace(tmp_path)) is None


def test_a_folder_with_other_things_is_never_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAP_TRITON_VENV", str(tmp_path))
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(HapError, match="holds other things"):
        install.install_runtime(lambda line: None)
    assert (tmp_path / "letter.txt").exists()


def test_a_runtime_of_older_requirements_is_not_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAP_TRITON_VENV", str(tmp_path))
    (tmp_path / "hap-runtime.json").write_text('{"requirements": "older", "python": "3.11.0"}')
    assert not install.is_installed()


def test_this_machine_fits() -> None:
    install.check_platform()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda patch: patch.setattr(sys, "platform", "darwin"), "Linux"),
        (lambda patch: patch.setattr(platform, "machine", lambda: "riscv64"), "riscv64"),
        (lambda patch: patch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31")), "2.31"),
        (lambda patch: patch.setattr(platform, "libc_ver", lambda: ("", "")), "glibc"),
        (lambda patch: patch.setattr(sys, "version_info", (3, 14, 0)), "3.14"),
    ],
)
def test_a_machine_that_does_not_fit_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, change: object, named: str) -> None:
    assert callable(change)
    change(monkeypatch)
    with pytest.raises(HapError, match=named):
        install.check_platform()


def test_a_python_without_a_shared_library_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(tmp_path))
    monkeypatch.setattr(ctypes, "CDLL", nothing)
    with pytest.raises(HapError, match="libpython"):
        install.libpython_folder()
