"""Run pytest once for each vector width that this processor has, with one thread and with two: `make test-cpus`.

`ATEN_CPU_CAPABILITY` sets the kernels of torch; the two variables beside it do the same for the libraries that torch
calls for convolutions and matrix products. Arguments go to pytest. The exit code is 1 if any run failed.
"""

from __future__ import annotations

import os
import subprocess
import sys

WIDTHS = {
    "default": {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {},
}
PROBE = "import torch; print(torch.backends.cpu.get_cpu_capability())"


def environment(width: str, threads: int) -> dict[str, str]:
    """The environment of a run."""
    return {**os.environ, "ATEN_CPU_CAPABILITY": width, "OMP_NUM_THREADS": str(threads), **WIDTHS[width]}


def main() -> int:
    """Run them all; print one line for each at the end."""
    lines, failed = [], False
    for width in WIDTHS:
        found = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment(width, 1), capture_output=True, text=True, check=True
        )
        if found.stdout.strip().lower() != width:
            lines.append(f"{width}: skipped, this processor does not have it")
            continue
        for threads in (1, 2):
            print(f"== {width}, threads: {threads}", flush=True)
            code = subprocess.run(
                [sys.executable, "-m", "pytest", *sys.argv[1:]], env=environment(width, threads)
            ).returncode
            failed = failed or code != 0
            lines.append(f"{width}, threads {threads}: {'passed' if code == 0 else f'failed ({code})'}")
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
