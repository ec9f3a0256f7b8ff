"""Coverage-guided fuzzing: ``python -m tests.fuzz [--seconds N] [TARGET ...]``.

Each target runs in a process of its own, for atheris instruments and ends the process. Inputs
that broke something are left in ``scratch/fuzz/<target>/`` and can be given back by
``--reproduce FILE TARGET``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS

SCRATCH = Path("scratch/fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--reproduce", metavar="FILE", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=[])
    options = parser.parse_args()
    targets = options.targets or sorted(TARGETS)
    if options.reproduce:
        for name in targets:
            TARGETS[name](options.reproduce.read_bytes())
        return 0
    if options.inside:
        fuzz(targets[0], options.seconds)
        return 0
    return max(run_apart(name, options.seconds) for name in targets)


def run_apart(name: str, seconds: int) -> int:
    sys.stdout.write(f"fuzzing {name} for {seconds} s\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", "tests.fuzz", "--inside", "--seconds", str(seconds), name]
    return subprocess.run(command, check=False).returncode


def fuzz(name: str, seconds: int) -> None:
    import atheris

    found = SCRATCH / name
    corpus = found / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["alknet", "aioquic"]):
        # Imported before, uninstrumented: read it anew.
        for module in [m for m in sys.modules if m.split(".")[0] in {"alknet", "aioquic"}]:
            del sys.modules[module]
        del sys.modules["tests.fuzz.targets"]
        from tests.fuzz.targets import TARGETS as INSTRUMENTED
    arguments = [sys.argv[0], f"-max_total_time={seconds}", f"-artifact_prefix={found}/"]
    atheris.Setup([*arguments, str(corpus)], INSTRUMENTED[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
