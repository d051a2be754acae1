"""Landlock for the tier without namespaces: read the interpreter and its libraries, no TCP, no signals out.

Constants and structures: the kernel's `include/uapi/linux/landlock.h`. What it does not cover: the metadata (stat,
existence) of files stays visible, Unix sockets of the host are closed by the system-call filter instead, and there is
no private /tmp.
"""

from __future__ import annotations

import ctypes
import os
import struct

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR = 2, 4, 8
_ACCESS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_ACCESS = (1 << 16) - 1
STOPS_TRUNCATION = 3
"""The version from which on Landlock stops truncating a file (Linux 6.2); before it the system-call filter does."""
_NET = 3
_SCOPES = 3
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 24, 47, 4
_LAST_CAPABILITY = 40
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def confine(readable: list[str], listable: list[str]) -> int:
    """Allow reading below `readable`, listing below `listable`, and a few devices. Returns the ABI in force.

    Needs no-new-privileges. Raises OSError where the kernel has no Landlock or refuses.
    """
    version = abi()
    if version < 1:
        raise OSError("this kernel has no Landlock")
    access = _ACCESS_BY_ABI.get(version, _ALL_ACCESS)
    attributes = struct.pack("Q", access)
    if version >= 4:
        attributes += struct.pack("Q", _NET)
    if version >= 6:
        attributes += struct.pack("Q", _SCOPES)
    rules = _call(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    for path in readable:
        _allow(rules, path, _READ_FILE | _READ_DIR)
    for path in listable:
        _allow(rules, path, _READ_DIR)
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _allow(rules, path, _READ_FILE | _WRITE_FILE)
    _call(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0))
    os.close(rules)
    return version


def _allow(rules: int, path: str, access: int) -> None:
    if not os.path.exists(path):
        return
    if not os.path.isdir(path):
        access &= ~_READ_DIR
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        attributes = struct.pack("=Qi", access, handle)
        _call(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), attributes, ctypes.c_uint(0))
    finally:
        os.close(handle)


def drop_capabilities() -> None:
    """Give up every capability, as root too, so that only the owner's rights of its uid remain."""
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, data = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    if _libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())} (Landlock call {number})")
    return result
