"""The embedded Triton server's own venv: nvidia-pytriton's wheel wants numpy<2, the project numpy 2, so they never share one."""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import orjson
from filelock import FileLock

from hap import durable
from hap.errors import HapError, ServingError
from hap.project import project_file

MACHINES = ("x86_64", "aarch64")
GLIBC = (2, 35)
PYTHONS = ((3, 11), (3, 13))  # the first and last python that hap and the wheel's stubs share
_STAMP = "hap-runtime.json"

Progress = Callable[[str], None]


def runtime_prefix() -> Path:
    """Where the runtime's venv lies: $HAP_TRITON_VENV, else `triton` inside the project's venv."""
    named = os.environ.get("HAP_TRITON_VENV")
    return Path(named).absolute() if named else Path(sys.prefix) / "triton"


def check_platform() -> None:
    """Whether the embedded server can run on this machine at all.

    Raises:
        HapError: the operating system, processor, Python, glibc or libpython does not fit; the message says which.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise HapError(
            f"the embedded Triton server runs on Linux {' or '.join(MACHINES)}, not on {platform.system()} {platform.machine()}; "
            "run this in such a container or virtual machine"
        )
    version = sys.version_info[:2]
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        found = f"{version[0]}.{version[1]}"
        raise HapError(f"the embedded Triton server has stubs for Python 3.11 to 3.13, not {found}; make the venv with one of those")
    name, found = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in found.split(".")[:2]) < GLIBC:
        raise HapError(f"the embedded Triton server needs glibc 2.35 or later (Debian 12, Ubuntu 22.04), found {found or 'none'}")
    libpython_folder()


def libpython_folder() -> Path | None:
    """The folder to add to the library path for the stubs; None where the loader finds libpython by itself.

    Raises:
        HapError: this Python was built without a shared libpython.
    """
    soname = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    folder = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    if (folder / soname).exists():
        return folder
    try:
        ctypes.CDLL(soname)
    except OSError:
        raise HapError(
            f"{soname} is missing: the Triton stubs need a Python with a shared library (Debian: apt-get install "
            f"libpython{sys.version_info[0]}.{sys.version_info[1]}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
        ) from None
    return None


def is_installed() -> bool:
    """Whether the runtime stands complete, from the requirements of this very version of the project."""
    try:
        return bool(orjson.loads((runtime_prefix() / _STAMP).read_bytes()) == _stamp())
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return False


def require_runtime() -> Path:
    """The prefix of a complete runtime.

    Raises:
        ServingError: it is not installed, or from older requirements.
    """
    if not is_installed():
        raise ServingError(f"Triton is not installed in {runtime_prefix()}; install it with `hapctl serve --install`")
    prefix = runtime_prefix()
    if not re.fullmatch(r"[A-Za-z0-9/._+@~-]+", str(prefix)):
        raise ServingError(f"Triton cannot run from {prefix!s}: blanks or foreign letters in the path; set HAP_TRITON_VENV to a plain one")
    return prefix


def server_folder(prefix: Path) -> Path:
    """pytriton's copy of the server: bin/, caches/, backends/, python_backend_stubs/."""
    return site_packages(prefix) / "pytriton" / "tritonserver"


def site_packages(prefix: Path) -> Path:
    """The site-packages of the runtime's venv."""
    return prefix / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def backend_folder(prefix: Path) -> Path:
    """What the server gets as --backend-directory."""
    return prefix / "backends"


def install_runtime(progress: Progress) -> Path:
    """Make the runtime's venv, or leave a complete one as it is; returns its prefix.

    An incomplete one (killed half way, older requirements) is made anew. Two at once: the second waits.

    Raises:
        HapError: the platform does not fit, or venv or pip failed; the message repeats its last line.
    """
    check_platform()
    prefix = runtime_prefix()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{prefix}.lock"):
        if is_installed():
            progress(f"Triton runtime is ready in {prefix}")
            return prefix
        if prefix.exists():
            if any(prefix.iterdir()) and not (prefix / "pyvenv.cfg").exists():
                raise HapError(f"{prefix} holds other things; give an empty folder as HAP_TRITON_VENV")
            shutil.rmtree(prefix)
        progress(f"making the Triton runtime's venv in {prefix}")
        _run([sys.executable, "-P", "-m", "venv", str(prefix)])
        progress("installing tritonserver and ONNX Runtime (about 320 MB)")
        requirements = str(project_file("triton_repo") / "requirements.txt")
        _run([str(prefix / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-input", "-r", requirements])
        _link_backend(prefix)
        durable.write_json(prefix / _STAMP, _stamp())
        progress(f"Triton runtime is ready in {prefix}")
        return prefix


def _stamp() -> dict[str, str]:
    requirements = (project_file("triton_repo") / "requirements.txt").read_bytes()
    return {"requirements": hashlib.sha256(requirements).hexdigest(), "python": platform.python_version()}


def _link_backend(prefix: Path) -> None:
    """Lay the python backend out as the server looks for it: the stub must stand beside the library."""
    server, backend = server_folder(prefix), backend_folder(prefix) / "python"
    stub = server / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
    backend.mkdir(parents=True)
    for source in (server / "backends/python/libtriton_python.so", server / "backends/python/triton_python_backend_utils.py", stub):
        if not source.exists():
            raise HapError(f"{source} is missing from the wheel; delete {prefix} and run `hapctl serve --install` again")
        (backend / source.name).symlink_to(source)
    stub.chmod(0o755)
    (server / "bin" / "tritonserver").chmod(0o755)


def _run(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_CONSTRAINT")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise HapError(f"the Triton runtime could not be installed: {last}")
