"""The system-call filters: one for the supervisor and all it forks, a second, per program, that ends its family.

A forbidden call kills the process with SIGSYS, which the grader reports as `violation`; a call that honest libraries
try and survive answers an errno. Layout of the filter: Linux `struct sock_filter`, classic BPF over `struct
seccomp_data`.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from errno import ENOSYS, EPERM

from . import syscalls

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGS = 0, 4, 16
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020080
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET = 1, 1, 5
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE, _F_NOTIFY = 8, 10, 15, 1024, 1026
_FIOSETOWN, _SIOCSPGRP, _TIOCSTI = 0x8901, 0x8902, 0x5412
# Flags and attributes of a file, which its descriptor for reading is enough for.
_FS_IOC_SETFLAGS, _FS_IOC32_SETFLAGS, _FS_IOC_FSSETXATTR, _FS_IOC_SETVERSION = (
    0x40086602, 0x40046602, 0x401C5820, 0x40087602,
)  # fmt: skip
_O_TRUNC = 0x200
_PR_SET_PDEATHSIG = 1
_ANY_PID = 0x7ABCDEF1  # larger than any process id

Instruction = tuple[int, int, int, int]

_KILLED = (
    "execve execveat pidfd_send_signal pidfd_getfd ptrace process_vm_readv process_vm_writev process_madvise "
    "process_mrelease kcmp mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick "
    "mount_setattr unshare setns bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register "
    "io_setup io_submit add_key request_key keyctl shmget shmat shmctl semget semop semtimedop semctl msgget msgsnd "
    "msgrcv msgctl mq_open mq_unlink name_to_handle_at open_by_handle_at fanotify_init swapon swapoff reboot "
    "init_module finit_module delete_module kexec_load kexec_file_load acct quotactl quotactl_fd settimeofday "
    "clock_settime clock_adjtime adjtimex sethostname setdomainname iopl ioperm modify_ldt vhangup syslog"
)
_REFUSED = (
    "connect bind listen personality memfd_secret setsid setpgid sched_setaffinity sched_setscheduler sched_setparam "
    "sched_setattr setpriority ioprio_set migrate_pages move_pages chmod fchmod fchmodat fchmodat2 chown fchown lchown "
    "fchownat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr utime utimes futimesat utimensat "
    "flock inotify_init inotify_init1 inotify_add_watch"
)
KILLED, REFUSED = _KILLED.split(), _REFUSED.split()


class Unsupported(RuntimeError):
    """This kernel or machine has no such filter."""


def _answer(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _errno(number: int) -> int:
    return _ERRNO | number


def _rule(number: int, action: int) -> list[Instruction]:
    return [(_EQUAL, 0, 1, number), _answer(action)]


def _argument(index: int, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, _ARGS + 8 * index + (4 if high else 0))


def _by_argument(number: int, body: list[Instruction]) -> list[Instruction]:
    """`body` runs for the call `number` alone and ends in an answer on every path."""
    return [(_EQUAL, 0, len(body), number), *body]


def _only_equal(number: int, index: int, allowed: list[int], action: int) -> list[Instruction]:
    """Allow the call where the low word of an argument is one of `allowed`, otherwise `action`."""
    body = [_argument(index)]
    for value in allowed:
        body += [(_EQUAL, 0, 1, value & 0xFFFFFFFF), _answer(_ALLOW)]
    return _by_argument(number, [*body, _answer(action)])


def _never_equal(number: int, index: int, forbidden: list[int], action: int) -> list[Instruction]:
    body = [_argument(index)]
    for value in forbidden:
        body += [(_EQUAL, 0, 1, value & 0xFFFFFFFF), _answer(action)]
    return _by_argument(number, [*body, _answer(_ALLOW)])


def _sockets(call: dict[str, int]) -> list[Instruction]:
    """AF_UNIX streams only: asyncio needs a socketpair; a datagram socket could name another process's address."""
    rules: list[Instruction] = []
    for name in ("socket", "socketpair"):
        body = [_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _answer(_KILL), _argument(1), (_AND, 0, 0, 0xF)]
        body += [(_EQUAL, 2, 0, _SOCK_STREAM), (_EQUAL, 1, 0, _SOCK_SEQPACKET), _answer(_errno(EPERM)), _answer(_ALLOW)]
        rules += _by_argument(call[name], body)
    named = [_argument(4), (_EQUAL, 1, 0, 0), _answer(_errno(EPERM)), _argument(4, high=True)]
    named += [(_EQUAL, 1, 0, 0), _answer(_errno(EPERM)), _answer(_ALLOW)]
    return rules + _by_argument(call["sendto"], named)


def _start(audit: int) -> list[Instruction]:
    rules = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, audit), _answer(_KILL), (_LOAD, 0, 0, _NUMBER)]
    return [*rules, (_AT_LEAST, 0, 1, syscalls.X32_BIT), _answer(_KILL)]


def supervisor_filter(*, may_truncate: bool = True) -> bytes:
    """The filter the supervisor puts on itself: everything that neither it nor an honest program needs.

    Without `may_truncate` no path can be cut to nothing, which Landlock alone does not stop before version 3.
    """
    call, audit = _table()
    rules = _start(audit)
    rules += [(_AT_LEAST, 0, 1, syscalls.LAST_KNOWN + 1), _answer(_errno(ENOSYS))]
    for name in KILLED:
        if name in call:
            rules += _rule(call[name], _KILL)
    for name in REFUSED:
        if name in call:
            rules += _rule(call[name], _errno(EPERM))
    rules += _sockets(call)
    fcntl = [_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE, _F_NOTIFY]
    rules += _never_equal(call["fcntl"], 1, fcntl, _errno(EPERM))
    flags = [_FS_IOC_SETFLAGS, _FS_IOC32_SETFLAGS, _FS_IOC_FSSETXATTR, _FS_IOC_SETVERSION]
    rules += _never_equal(call["ioctl"], 1, [_FIOSETOWN, _SIOCSPGRP, _TIOCSTI, *flags], _errno(EPERM))
    if not may_truncate:
        rules += _no_truncation(call)
    return _pack([*rules, _answer(_ALLOW)])


def _no_truncation(call: dict[str, int]) -> list[Instruction]:
    rules: list[Instruction] = []
    for name in ("truncate", "creat"):
        rules += _rule(call[name], _errno(EPERM)) if name in call else []
    rules += _rule(call["openat2"], _errno(ENOSYS))  # its flags lie in memory, where no filter can look
    for name, index in (("open", 1), ("openat", 2)):
        if name in call:
            body = [_argument(index), (_AND, 0, 0, _O_TRUNC), (_EQUAL, 1, 0, 0), _answer(_errno(EPERM))]
            rules += _by_argument(call[name], [*body, _answer(_ALLOW)])
    return rules


def program_filter() -> bytes:
    """The filter of one program: threads but no processes, signals to itself alone, no limits of others.

    It names no process in particular yet: `Filter.install` puts in the process that installs it.
    """
    pid = _ANY_PID
    call, audit = _table()
    rules = _start(audit)
    for name in ("fork", "vfork", "pidfd_open"):
        if name in call:
            rules += _rule(call[name], _KILL)
    rules += _rule(call["clone3"], _errno(ENOSYS))
    rules += _rule(call["memfd_create"], _errno(EPERM))
    threads = [_argument(0), (_AND, 0, 0, _CLONE_THREAD | _CLONE_NEW)]
    rules += _by_argument(call["clone"], [*threads, (_EQUAL, 1, 0, _CLONE_THREAD), _answer(_KILL), _answer(_ALLOW)])
    for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        rules += _only_equal(call[name], 0, [pid], _KILL)
    rules += _rule(call["tkill"], _KILL)
    rules += _only_equal(call["prlimit64"], 0, [0, pid], _KILL)
    rules += _never_equal(call["prctl"], 0, [_PR_SET_PDEATHSIG], _errno(EPERM))
    return _pack([*rules, _answer(_ALLOW)])


def _table() -> tuple[dict[str, int], int]:
    table = syscalls.numbers(os.uname().machine)
    if table is None or struct.calcsize("P") != 8:
        raise Unsupported(f"no system-call table for {os.uname().machine}")
    return table


def _pack(rules: list[Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)


def set_no_new_privileges() -> None:
    """No set-uid program can raise this process or its children any more. Raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0)


class Filter:
    """A filter laid out in memory before any fork, so that a child installs it with hardly a page copied."""

    def __init__(self, program: bytes) -> None:
        self._rules = ctypes.create_string_buffer(program, len(program))
        head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(self._rules))
        self._head = ctypes.create_string_buffer(head, len(head))
        self._start = ctypes.addressof(self._rules)
        self._address = ctypes.addressof(self._head)
        mark = _ANY_PID.to_bytes(4, sys.byteorder)
        self._places = [at for at in range(4, len(program), 8) if program[at : at + 4] == mark]

    def install(self) -> None:
        """Put the filter on the calling thread, for good, with its process id put in. Raises OSError."""
        pid = os.getpid().to_bytes(4, sys.byteorder)
        for at in self._places:
            ctypes.memmove(self._start + at, pid, 4)
        _prctl(_PR_SET_SECCOMP, _MODE_FILTER, self._address)


_libc = ctypes.CDLL(None, use_errno=True)
_python = ctypes.PyDLL(None)
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


def _prctl(option: int, first: int, second: int) -> None:
    if _libc.prctl(option, first, second, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def undumpable() -> None:
    """No process of the same user may read this one's memory."""
    _prctl(4, 0, 0)


def die_with_parent() -> None:
    """SIGKILL this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, 9, 0)


def fork() -> int:
    """fork(2) without the interpreter's hooks, which cost more than the fork: only for a process with one thread."""
    return int(_python.fork())
