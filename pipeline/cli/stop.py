"""`sparring stop`: end a run as Ctrl-C there would."""

from __future__ import annotations

from sparring.pipeline.cli.options import RUNS, Run, Runs
from sparring.pipeline.cli.status import headline
from sparring.pipeline.runs import driver, run_history
from sparring.pipeline.runs.progress import LEASE, Stream, events_file, progress_of
from sparring.pipeline.store.lease import holder_of
from sparring.stages.errors import DataError, SparringError
from sparring.stages.plain import printable


def stop(run: Run = "default", runs: Runs = RUNS) -> None:
    """End a run as Ctrl-C there would.

    Finished shards are kept, and a training saves its state first. All arms of a multirun end together. On the machine
    of its driver, a second `stop` ends a run at once.

    Example: sparring stop myrun
    """
    arms = run_history.recorded(runs, run)
    held = [(arm.folder, one) for arm in arms if (one := holder_of(arm.folder / LEASE)) and one.is_alive]
    if not held:
        now = headline(progress_of(arms, Stream(events_file(arms[0].folder))))
        raise DataError(f"{now.rstrip('.')}. Nothing is to be stopped.")
    folder, holder = held[0]
    driver.ask(folder, holder)
    print(printable(f"run {run} ({holder}): asked to stop; waiting for at most {driver.LONGEST_S:.0f} s"), flush=True)

    def waiting(seconds: float) -> None:
        print(f"it still saves what it has, {seconds:.0f} s so far", flush=True)

    if not driver.wait_for_end(folder, holder, waiting):
        raise SparringError(f"run {run}: its driver ({holder}) still runs; stop it again, or end that process.")
    print(printable(f"run {run} has stopped; the command that began it resumes it"))
