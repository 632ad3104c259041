/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Python's limited API: one extension for every CPython from 3.10 on. The buffer protocol joined it in 3.11 only, and
 * is not needed: arrays tell where they are through __array_struct__ and DLPack.
 *
 * Owns:     -
 * Thread:   with the GIL, if nothing else is said.
 * Lifetime: -
 * Errors:   NULL or -1 with a Python exception set.
 */
#ifndef MLACAT_PYTHON_PYTHON_H
#define MLACAT_PYTHON_PYTHON_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#endif
