"""What benchmarks/gpu.py measures with: a row of its table, errors, and times of calls and of kernels."""
import dataclasses
import statistics
import time
from unittest.mock import patch

import numpy as np

from jiidm.system.runtime import jt

REPEATS = 7
COLUMNS = ("what", "dtype", "error", "tolerance", "GPU ms", "call ms", "plain ms", "of ceiling", "")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table. Errors are shares of the largest expected value; times are milliseconds."""

    what: str
    dtype: str = ""
    error: float | None = None
    tolerance: float | None = None
    gpu: float | None = None        # on the GPU, launches back to back
    call: float | None = None       # as called from Python, calls back to back
    plain: float | None = None      # the same in Jittor's own operators, as called from Python
    ceiling: float | None = None    # share of what the card's bandwidth or matrix rate would allow
    note: str = ""

    @property
    def fault(self):
        """Whether the error is NaN or beyond the tolerance."""
        return self.error is not None and not self.error <= self.tolerance

    def line(self):
        """The row in Markdown."""
        numbers = [("{:.1e}", self.error), ("{:.0e}", self.tolerance), ("{:.4f}", self.gpu), ("{:.3f}", self.call),
                   ("{:.3f}", self.plain), ("{:.0%}", self.ceiling)]
        texts = ["" if value is None else form.format(value) for form, value in numbers]
        verdict = "" if self.error is None else "FAIL" if self.fault else "pass"
        return f"| {' | '.join([self.what, self.dtype, *texts, f'{verdict} {self.note}'.strip()])} |"


def numbers(result):
    """One or several Jittor results as a list of float32 arrays."""
    return [r.float32().numpy() for r in (result if isinstance(result, list | tuple) else [result])]


def largest_error(actual, expected):
    """The largest difference of two lists of arrays, as a share of the largest expected value; NaN where that is 0,
    since zeros would hide an operation that does nothing."""
    pairs = [[np.asarray(v, np.float64) for v in pair] for pair in zip(actual, expected, strict=True)]
    errors = [float(np.abs(a - b).max() / (np.abs(b).max() or np.nan)) for a, b in pairs]
    return float(np.max(errors))  # max() of Python would lose a NaN


def called(function):
    """Milliseconds of a call: the median of several series of calls without a pause between them."""
    def series(calls):
        start = time.perf_counter()
        for _ in range(calls):
            jt.sync([function()])
        jt.sync_all(True)
        return time.perf_counter() - start

    jt.sync_all(True)
    series(1)  # compiles
    calls = max(1, min(20, int(0.1 / series(1))))
    return statistics.median(series(calls) for _ in range(REPEATS)) / calls * 1e3


class Stopwatch:
    """Stands in for `jt` in a kernel's module: the kernel is launched many times between two events."""

    LAUNCHES = 20

    def __getattr__(self, name):
        return getattr(jt, name)

    def code(self, shapes, dtypes, inputs, cuda_header="", cuda_src="", **options):
        """`jt.code`; leaves a Var with the milliseconds of each series in `launch`."""
        single = isinstance(shapes[0], int)
        shapes, dtypes = ([shapes], [dtypes]) if single else (shapes, dtypes)
        *results, self.launch = jt.code(
            [*shapes, (REPEATS,)], [*dtypes, "float32"], inputs,
            cuda_header="#include <cuda_runtime.h>\n" + cuda_header, cuda_src=f"""
            @alias(took, out{len(shapes)})
            float taken[{REPEATS}];
            cudaEvent_t start, stop;
            cudaEventCreate(&start); cudaEventCreate(&stop);
            for (int series = -1; series < {REPEATS}; series++) {{
                cudaEventRecord(start);
                for (int launch = 0; launch < {self.LAUNCHES}; launch++) {{ {cuda_src} }}
                cudaEventRecord(stop);
                cudaEventSynchronize(stop);
                if (series >= 0) cudaEventElapsedTime(taken + series, start, stop);
            }}
            cudaEventDestroy(start); cudaEventDestroy(stop);
            cudaMemcpy(took_p, taken, sizeof(taken), cudaMemcpyHostToDevice);
            """, **options)
        return results[0] if single else results


def launched(module, function):
    """The kernel that `function` calls in `module`, to be timed: a Var for `milliseconds`, not computed yet."""
    stopwatch = Stopwatch()
    with patch.object(module, "jt", stopwatch):
        function()
    return stopwatch.launch


def milliseconds(launch):
    """Median milliseconds of a launch of what `launched` gave."""
    return float(np.median(launch.numpy())) / Stopwatch.LAUNCHES


def computed(*results):
    """Computes Vars and lists of Vars together, so that Jittor compiles their kernels side by side."""
    jt.sync([v for result in results for v in (result if isinstance(result, list | tuple) else [result])])
