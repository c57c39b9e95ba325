"""A program in namespaces of its own: `python -I -S confine.py SETTINGS`, with the standard library
alone, as research.evaluation.sandbox.run starts it.

It is the program's world: no network, no process but its own, the system's programs and libraries
to read, and a temporary folder in memory to write, which goes with it. As bubblewrap makes one, of
the kernel's own calls (user_namespaces(7), mount_setattr(2): Linux 5.12), so that nothing has to be
installed and the limits of setrlimit(2) are part of it. Started by root, the program runs under
a user that is not root, for whom alone the kernel counts processes.

Three processes lead to the program: one that is known outside and writes which users there are, one
in the new namespaces, and the first of the new process namespace, with which all others there end.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import sys

NEW_ROOT = "/tmp"  # any folder: a mount covers it, in the namespace alone
# what a Python and its libraries need of the system, where it is there
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# linux/sched.h: mount, uts, ipc, user, pid and net
NEW_NAMESPACES = 0x20000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
# sys/mount.h and linux/mount.h
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 0x4000, 0x40000, 2
READ_ONLY, NO_SUID, NO_DEVICES = 1, 2, 4
AT_CURRENT, AT_EMPTY_PATH, AT_RECURSIVE, TREE_CLONE, MOVE_FROM_FD = -100, 0x1000, 0x8000, 1, 4
# of every architecture: they are newer than its numbers
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38

LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | None) -> int:
    """A function of libc; OSError where it fails."""
    values = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    result = getattr(LIBC, name)(*values)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments[:1]}: {os.strerror(number)}")
    return int(result)


def make_read_only(folder: int, path: bytes, flags: int, attributes: int) -> None:
    """Nothing below may be written; of attributes that a mount has, none is taken away."""
    settings = (ctypes.c_uint64 * 4)(READ_ONLY | attributes, 0, 0, 0)
    content = ctypes.string_at(settings, 32)
    call("syscall", MOUNT_SETATTR, folder, path, flags, content, 32)


def bind(source: str, attributes: int) -> int:
    """A copy of what is mounted at a path, to be put elsewhere: read-only, with all below it."""
    flags = TREE_CLONE | os.O_CLOEXEC | AT_RECURSIVE
    tree = call("syscall", OPEN_TREE, AT_CURRENT, os.fsencode(source), flags)
    make_read_only(tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, attributes)
    return tree


def make_root(python_prefix: str, writable_bytes: int) -> None:
    """A root with the system and Python to read, and `/work` to write."""
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    paths = [*SYSTEM, *([] if python_prefix.startswith("/usr/") else [python_prefix])]
    links = {path: os.readlink(path) for path in paths if os.path.islink(path)}
    trees = {
        p: bind(p, NO_SUID | NO_DEVICES) for p in paths if os.path.exists(p) and p not in links
    }
    trees |= {path: bind(path, NO_SUID) for path in DEVICES}
    tmpfs = MS_NOSUID | MS_NODEV
    call("mount", b"tmpfs", NEW_ROOT.encode(), b"tmpfs", tmpfs, b"size=1m,mode=755")
    for path, target in links.items():
        os.symlink(target, NEW_ROOT + path)
    for path, tree in trees.items():
        if os.path.isdir(path):
            os.makedirs(NEW_ROOT + path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(NEW_ROOT + path), exist_ok=True)
            open(NEW_ROOT + path, "x").close()
        place = os.fsencode(NEW_ROOT + path)
        call("syscall", MOVE_MOUNT, tree, b"", AT_CURRENT, place, MOVE_FROM_FD)
        os.close(tree)
    os.mkdir(f"{NEW_ROOT}/work")
    options = f"size={writable_bytes},nr_inodes=1024,mode=700,uid=1,gid=1".encode()
    call("mount", b"tmpfs", f"{NEW_ROOT}/work".encode(), b"tmpfs", tmpfs, options)
    make_read_only(AT_CURRENT, NEW_ROOT.encode(), 0, NO_SUID | NO_DEVICES)
    # a program that made a user namespace could mount in it
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    os.chdir(NEW_ROOT)
    call("syscall", PIVOT_ROOT[os.uname().machine], b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/work")


def become_program(settings: dict, is_root: bool) -> None:
    """The program in place of this process, without rights and with limits."""
    for name, value in settings["limits"].items():
        # where nobody else is the user, the two processes before this one count too
        extra = 2 if name == "NPROC" and not is_root else 0
        # a second after SIGXCPU comes SIGKILL
        hard = value + extra + (name == "CPU")
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value + extra, hard))
    if is_root:
        os.setgroups([])
    os.setresgid(1, 1, 1)
    os.setresuid(1, 1, 1)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.dup2(os.open("/dev/null", os.O_RDWR), 2)
    os.execve(settings["command"][0], settings["command"], {})  # no rights are left after it


def run_first(settings: dict, is_root: bool) -> int:
    """The first process of the namespaces: starts the program, and says how it ended."""
    make_root(settings["prefix"], settings["writable_bytes"])
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # the program cannot look into this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    program = os.fork()
    if program == 0:
        become_program(settings, is_root)
    while True:
        pid, status = os.wait()
        if pid == program:
            return status


def in_child(function, *arguments) -> int:
    """A process that runs a function, ends with its status, and dies with this one."""
    pid = os.fork()
    if pid:
        return pid
    try:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        status = function(*arguments)
        os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
    finally:
        os._exit(1)


def enter(settings: dict, is_root: bool, is_inside: int, has_users: int) -> int:
    """New namespaces, and the first process in them."""
    call("unshare", NEW_NAMESPACES)
    os.write(is_inside, b"1")
    if not os.read(has_users, 1):
        raise OSError(errno.EPERM, "no users")
    return os.waitpid(in_child(run_first, settings, is_root), 0)[1]


def write_users(pid: int, is_root: bool) -> None:
    """Which users are in a namespace: the one that starts it; of root, one more who is nobody."""
    user, group = os.geteuid(), os.getegid()
    # of those that systemd lends to services
    nobody = 61184 + pid % 4000
    maps = {"setgroups": "deny", "uid_map": f"1 {user} 1", "gid_map": f"1 {group} 1"}
    if is_root:
        maps = dict.fromkeys(("uid_map", "gid_map"), f"0 0 1\n1 {nobody} 1")
    for name, content in maps.items():
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(content)


def main() -> None:
    settings, is_root = json.loads(sys.argv[1]), os.geteuid() == 0
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    inside_end, is_inside = os.pipe()
    has_users, users_end = os.pipe()
    child = in_child(enter, settings, is_root, is_inside, has_users)
    os.close(is_inside)
    if os.read(inside_end, 1):
        write_users(child, is_root)
        os.write(users_end, b"1")
    status = os.waitpid(child, 0)[1]
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


if __name__ == "__main__":
    main()
