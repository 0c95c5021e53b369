"""`pools`, what their engine kind makes of them: its options, what it can relay, be told and serve."""

from backends.contract import EngineAdapter, Lora, OptionError
from gateway.config import schema
from gateway.config.checking.checks import Checks
from gateway.config.problems import nearest
from gateway.config.reading import Read


class EngineChecks(Checks):
    def check(self, read: Read[schema.Pool]) -> EngineAdapter | None:
        """The pool's adapter, or None where it cannot be made."""
        if (adapter := self._adapter(read)) is not None:
            self._relay(read, adapter)
            self._told(read, adapter)
            self._doors(read, adapter)
        return adapter

    def _adapter(self, read: Read[schema.Pool]) -> EngineAdapter | None:
        pool, path = read.item, read.path
        if not self._sound(path, "engine"):
            return None
        kinds = self._registry.kinds()
        if pool.engine not in kinds:
            self._report.unknown((*path, "engine"), "an engine kind", kinds)
            return None
        if not self._sound(path, "options"):
            return None
        options = dict(pool.options)
        while True:
            try:
                return self._registry.adapter(pool.engine, options)
            except OptionError as error:
                self._option(read, error)
                if options.pop(error.option, None) is None:
                    return None

    def _option(self, read: Read[schema.Pool], error: OptionError) -> None:
        options, path = read.item.options, (*read.path, "options")
        if error.option not in options:
            # Something needed is absent; the options themselves may be.
            self._report.error(path, str(error), nearest(error.option, error.choices))
            return
        hint = nearest(error.option, error.choices)
        if not hint.startswith("did"):
            hint = nearest(str(options[error.option]), error.choices)
        # The adapter's words may quote the value, and a variable's value is not for showing.
        from_environment = self._report.written_with_variables((*path, error.option))
        message = "not a valid option" if from_environment else str(error)
        self._report.error((*path, error.option), message, hint)

    def _relay(self, read: Read[schema.Pool], adapter: EngineAdapter) -> None:
        pool, path = read.item, (*read.path, "relay")
        if pool.relay == "auto":
            return
        if adapter.relay == "translated":
            self._report.value_error(
                path, f"is not possible: {pool.engine} answers are translated", "use auto"
            )
        elif pool.relay == "raw" and not adapter.canonical:
            self._report.value_error(
                path, f"is not possible: {pool.engine}'s answers need patching", "use auto"
            )
        elif pool.relay == "raw" and (
            renamed := sorted(name for name, own in pool.serves.items() if name != _told_name(own))
        ):
            message = f"would show the engine's own name for {', '.join(renamed)}"
            self._report.value_error(path, message, "use auto, or equal names in serves")

    def _told(self, read: Read[schema.Pool], adapter: EngineAdapter) -> None:
        """What is said to engines beside OpenAI's fields: LoRA adapters, priorities."""
        pool, path = read.item, read.path
        if pool.engine_priority and not adapter.takes_priority and self._sound(path, "engine_priority"):
            message = f"is not possible: {pool.engine} takes no priorities"
            self._report.value_error((*path, "engine_priority"), message)
        if not self._sound(path, "serves"):
            return
        for name, own in pool.serves.items():
            if isinstance(own, schema.Adapted) and (fault := adapter.lora_fault(lora_of(own))) is not None:
                at = (*path, "serves", name, "adapter")
                self._report.error(at, f"adapter {own.adapter.name} {fault}", f"engine: {pool.engine}")

    def _doors(self, read: Read[schema.Pool], adapter: EngineAdapter) -> None:
        for index, door in enumerate(read.item.doors or ()):
            if door not in adapter.doors.possible:
                possible = ", ".join(sorted(adapter.doors.possible))
                self._report.value_error(
                    (*read.path, "doors", index), f"is not possible: {read.item.engine} serves {possible}"
                )


def served_name(own: str | schema.Adapted) -> str:
    """The model that an engine is asked for."""
    return own if isinstance(own, str) else own.model


def lora_of(own: schema.Adapted) -> Lora:
    adapter = own.adapter
    return Lora(name=adapter.name, id=adapter.id, path=adapter.path, scale=adapter.scale)


def _told_name(own: str | schema.Adapted) -> str:
    """The name by which an engine of OpenAI's dialect answers."""
    return own if isinstance(own, str) else own.adapter.name
