# SPDX-License-Identifier: Apache-2.0
"""Locks in a forked child, which begins without the threads that may have held them."""

from __future__ import annotations

import os
import threading
from typing import Any


def keep_lock(owner: Any, name: str) -> None:
    """Makes a lock of that name in a module or an object that lives as long as the process, and in each forked child
    another one."""

    def renew() -> None:
        setattr(owner, name, threading.Lock())

    renew()
    os.register_at_fork(after_in_child=renew)
