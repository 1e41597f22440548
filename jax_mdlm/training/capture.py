"""A profile of a few steps, for xprof: `--config.profile=10:12`."""

import contextlib
import tempfile
from pathlib import Path

import jax
from etils import epath


class Capture:
    """Traces the steps of a range on every process.

    The traces of all processes land in one session, which xprof shows side by side:
    `<workdir>/profile/plugins/profile/steps_<first>_<last>/<host>_<process>.xplane.pb`. To see it:
    `xprof <workdir>/profile`, or TensorBoard's profile plugin.
    """

    def __init__(self, steps: range, workdir: epath.Path) -> None:
        self._steps, self._workdir = steps, workdir
        self._begun = self._last = 0  # steps of the trace that is running
        self._aside: tempfile.TemporaryDirectory[str] | None = None

    def step(self, number: int) -> contextlib.AbstractContextManager[object]:
        """To enter around the update `number` (from 1); begins the trace where it is the first."""
        if number not in self._steps:
            return contextlib.nullcontext()
        if self._aside is None:
            # Traced aside: the profiler cannot write into a bucket, and names files by host only.
            self._aside, self._begun = tempfile.TemporaryDirectory(), number
            jax.profiler.start_trace(self._aside.name)
        self._last = number
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def done(self, number: int, result: object) -> None:
        """Ends the trace behind its last update, when `result` of it has been computed."""
        if self._aside is not None and number == self._steps[-1]:
            jax.block_until_ready(result)
            self._write()

    def close(self) -> None:
        """Writes what there is of a range that the run did not reach the end of."""
        if self._aside is not None:
            self._write()

    def _write(self) -> None:
        assert self._aside is not None
        with self._aside as aside:
            jax.profiler.stop_trace()
            session = f"steps_{self._begun}_{self._last}"
            place = self._workdir / "profile" / "plugins" / "profile" / session
            place.mkdir(parents=True, exist_ok=True)
            for found in Path(aside).rglob("*.xplane.pb"):
                host = found.name.removesuffix(".xplane.pb")
                name = f"{host}_{jax.process_index()}.xplane.pb"
                (place / name).write_bytes(found.read_bytes())
        self._aside = None
