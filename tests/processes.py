"""Several processes on this machine that are to be one program of JAX."""

import os
import socket
import subprocess


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(commands, **variables):
    """All of them at once, with these variables of the environment."""
    return [
        subprocess.Popen(
            command,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]


def finish(running, timeout=300):
    """What each process printed; all must have ended well."""
    try:
        ended = [process.communicate(timeout=timeout) for process in running]
    finally:
        kill(running)
    for process, (_, errors) in zip(running, ended, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [printed for printed, _ in ended]


def kill(running):
    for process in running:
        process.kill()
    for process in running:
        process.wait()
        process.stdout.close()
        process.stderr.close()
