# SPDX-License-Identifier: Apache-2.0
"""Packs the wheel: build_wheel.py EXTENSION FOLDER writes it there and prints its path.

It is also the build backend of pyproject.toml (PEP 517): `pip install client/python` configures and builds the
extension with CMake, for which the tools and libraries of deploy/install-deps.sh build and Python's headers
(python3-dev) have to be there. Only the standard library is used, so a build needs no network.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
METADATA = """\
Metadata-Version: 2.1
Name: mlacat
Version: {version}
Summary: Client of mlacatd: concat-MLA kernels as a service
License: Apache-2.0
Requires-Python: >=3.10
Provides-Extra: torch
Requires-Dist: torch; extra == "torch"
Provides-Extra: numpy
Requires-Dist: numpy; extra == "numpy"
"""


def version() -> str:
    return (ROOT / "VERSION").read_text().split()[0]


def platform_tag(extension: bytes) -> str:
    """manylinux with the newest glibc that the extension asks for; what it needs else is inside it."""
    found = {tuple(map(int, match.split(b"."))) for match in re.findall(rb"GLIBC_(2\.\d+)\0", extension)}
    major, minor = max(found | {(2, 17)})
    return f"manylinux_{major}_{minor}_{platform.machine()}"


def contents(extension: bytes) -> dict[str, bytes]:
    files = {
        f"mlacat/{path.name}": path.read_bytes()
        for path in sorted((HERE / "mlacat").iterdir())
        if path.suffix in (".py", ".pyi") or path.name == "py.typed"
    }
    files["mlacat/_mlacat.abi3.so"] = extension
    return files


def row(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"


def pack(extension: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    code = extension.read_bytes()
    tag = f"cp310-abi3-{platform_tag(code)}"
    info = f"mlacat-{version()}.dist-info"
    files = contents(code)
    files[f"{info}/METADATA"] = METADATA.format(version=version()).encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: mlacat\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    files[f"{info}/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    record = "".join(row(name, data) for name, data in files.items()) + f"{info}/RECORD,,\n"
    files[f"{info}/RECORD"] = record.encode()
    wheel = folder / f"mlacat-{version()}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the same bytes for the same sources
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = (0o755 if name.endswith(".so") else 0o644) << 16
            archive.writestr(member, data)
    return wheel


def build_extension(folder: pathlib.Path) -> pathlib.Path:
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DMLACAT_TESTS=OFF", "-DMLACAT_WERROR=OFF",
               f"-DPython3_EXECUTABLE={sys.executable}"]
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(folder), *options], check=True)
    subprocess.run(["cmake", "--build", str(folder), "--target", "python_extension", "-j", str(os.cpu_count() or 1)],
                   check=True)
    return folder / "client" / "python" / "_mlacat.abi3.so"


def build_wheel(wheel_directory: str, config_settings: object = None, metadata_directory: object = None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return pack(build_extension(pathlib.Path(folder)), pathlib.Path(wheel_directory)).name


if __name__ == "__main__":
    print(pack(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))
