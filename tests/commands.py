"""The command `gnc` in the process of the tests."""

import torch

from gnclib.cli import main as cli


def gnc(capsys, *words) -> tuple[int, str, str]:
    """Its status, what it prints to stdout and to stderr; torch has its threads back afterwards."""
    threads = torch.get_num_threads()
    try:
        status = cli.main([str(word) for word in words])
    finally:
        torch.set_num_threads(threads)
    return status, *capsys.readouterr()
