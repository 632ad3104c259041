# SPDX-License-Identifier: Apache-2.0
"""What the installed package needs beside Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

import mlacat

C_LIBRARY = re.compile(r"(libc|libm|libpthread|libdl|librt|libc\.musl-\w+|ld-linux[\w-]*|ld64)\.so\.\d+")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
def test_needs_the_c_library_only():
    command = ["readelf", "--dynamic", "--wide", mlacat._mlacat.__file__]
    env = {**os.environ, "LC_ALL": "C"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", shown)
    assert needed, shown
    others = [name for name in needed if not C_LIBRARY.fullmatch(name)]
    assert not others, f"the extension needs {others}; the build has said which archive it did not find"
