"""`pools`, what wakes them: whether it can, and whether anybody would wait so long."""

from backends.contract import EngineAdapter, OptionError
from gateway.config import schema
from gateway.config.checking.checks import Checks
from gateway.config.checking.pools import OWN_HEADERS
from gateway.config.reading import Read


class ActivationChecks(Checks):
    def check(self, read: Read[schema.Pool], adapter: EngineAdapter | None) -> None:
        pool, path = read.item, read.path
        wake = pool.wake
        if not self._sound(path, "wake", "state"):
            return
        if wake is None:
            for key in ("wake_timeout_s", "idle_after_s", "while_waking"):
                if key in pool.model_fields_set:
                    self._report.warn((*path, key), "has no effect: nothing wakes this pool (`wake`)")
            if pool.state == "warm":
                self._report.warn((*path, "state"), "is as hot: nothing wakes this pool (`wake`)")
            return
        if isinstance(wake, schema.EngineWake):
            if adapter is not None and adapter.sleep is None:
                able = [kind for kind in self._registry.kinds() if self._sleeps(kind)]
                hint = f"those that do: {', '.join(able)}; else use http, command or kubernetes"
                self._report.error((*path, "wake"), f"{pool.engine} knows no sleep", hint)
        elif not getattr(wake, "cool", True) and pool.idle_after_s is not None:
            self._report.error((*path, "idle_after_s"), "nothing puts this pool to sleep (`wake.cool`)")
        if isinstance(wake, schema.HttpWake):
            for action, steps in (("wake", wake.wake), ("cool", wake.cool)):
                for index, step in enumerate(steps):
                    for header in step.headers:
                        if header.lower() in OWN_HEADERS - {"content-type"}:
                            at = (*path, "wake", action, index, "headers", header)
                            self._report.error(at, "a header that the gateway sets itself", key=True)
        held = pool.queue.max_wait_s
        if pool.while_waking == "hold" and pool.wake_timeout_s and pool.wake_timeout_s > held:
            message = f"requests are held for {held:g} s at most (`queue.max_wait_s`)"
            self._report.warn((*path, "wake_timeout_s"), message)

    def _sleeps(self, kind: str) -> bool:
        try:
            return self._registry.adapter(kind, {}).sleep is not None
        except OptionError:
            return False
