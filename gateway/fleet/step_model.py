"""How fast one replica is, learned from the answers that pass.

An engine works in steps; what a step costs follows from what is in it (backends/simulated/engine.py has the
form and its measurement). Seen from the gateway, over streams alone, that is two lines:

    time to first token - wait = b*tokens + q*tokens^2            (tokens: uncached prompt tokens)
    time between two tokens    = a + c*in_flight + d*kv_tokens

Both are fitted as answers pass, by recursive least squares on the *relative* error, so that a stall of one
second weighs no more than a wrong guess. The coefficients are kept as multiples of the defaults below, and
begin at 1: a replica of which nothing is known is taken for the reference engine. A fleet of unlike machines
needs no configuration, their speeds are in their coefficients.
"""

from gateway.config.snapshot import Pace

__all__ = ["REFERENCE", "StepModel"]

TOKEN_S = 22.3e-6
ATTENTION_S = 0.78e-9
STEP_S = 5.2e-3
SEQUENCE_S = 6.0e-6
KV_S = 0.0315e-6
"""b, q, a, c, d: an 8-billion-parameter Llama in bf16 on one NVIDIA H200 (own measurement)."""

LEAST, MOST = 0.02, 50.0
"""Multiples of the defaults beyond which a coefficient is not believed."""


class _Fit:
    """Least squares on the relative error, one sample at a time.

    Finds multiples m of given terms, m.terms = seconds. They may drift: each sample adds some variance to
    every multiple, up to what there was before anything was known (a Kalman filter of a random walk).
    """

    DRIFT = 5e-5
    """Variance per sample by which a multiple of 1 may have moved."""
    NOISE = 0.05
    """Variance of one sample's relative error."""
    UNSURE = 1.0
    """Variance of a multiple before anything is known."""

    __slots__ = ("_covariance", "multiples", "samples")

    def __init__(self, size: int) -> None:
        self.multiples = [1.0] * size
        self.samples = 0
        self._covariance = [[self.UNSURE * (i == j) for j in range(size)] for i in range(size)]

    def observe(self, terms: list[float], seconds: float) -> None:
        """One sample: each term of the default model, and what was measured; all in seconds."""
        seconds = max(seconds, sum(terms) / MOST)
        row = [term / seconds for term in terms]
        size = range(len(row))
        gain = [sum(line[j] * row[j] for j in size) for line in self._covariance]
        noise = self.NOISE + sum(row[i] * gain[i] for i in size)
        error = max(-1.0, 1.0 - sum(row[i] * self.multiples[i] for i in size))
        for i in size:
            self.multiples[i] = min(max(self.multiples[i] + gain[i] / noise * error, LEAST), MOST)
        for i in size:
            for j in size:
                self._covariance[i][j] -= gain[i] * gain[j] / noise
        for i in size:
            drift = self.DRIFT * self.multiples[i] ** 2
            self._covariance[i][i] = min(self._covariance[i][i] + drift, self.UNSURE)
        self.samples += 1


class StepModel:
    """The coefficients of one replica. Times are seconds."""

    __slots__ = ("_measured", "_prefill", "_step", "attention_s", "kv_s", "sequence_s", "step_s", "token_s")

    def __init__(self, pace: Pace | None = None) -> None:
        """`pace`: what a calibration found, to begin with; None: the reference engine's."""
        self._measured = pace is not None
        self._prefill = _Fit(2)
        self._step = _Fit(3)
        self.token_s = TOKEN_S
        self.attention_s = ATTENTION_S
        self.step_s = STEP_S
        self.sequence_s = SEQUENCE_S
        self.kv_s = KV_S
        if pace is not None:
            self._set_prefill([pace.token_s / TOKEN_S, pace.attention_s / ATTENTION_S])
            self._set_step([pace.step_s / STEP_S, pace.sequence_s / SEQUENCE_S, pace.kv_s / KV_S])

    def _set_prefill(self, multiples: list[float]) -> None:
        b, q = self._prefill.multiples = [min(max(m, LEAST), MOST) for m in multiples]
        self.token_s, self.attention_s = TOKEN_S * b, ATTENTION_S * q

    def _set_step(self, multiples: list[float]) -> None:
        a, c, d = self._step.multiples = [min(max(m, LEAST), MOST) for m in multiples]
        self.step_s, self.sequence_s, self.kv_s = STEP_S * a, SEQUENCE_S * c, KV_S * d

    def prefill(self, tokens: float) -> float:
        """Seconds to compute a prompt of that many uncached tokens on an idle replica."""
        return tokens * (self.token_s + self.attention_s * tokens)

    def step(self, in_flight: float, kv_tokens: float) -> float:
        """Seconds between two tokens, without prompts in between."""
        return self.step_s + self.sequence_s * in_flight + self.kv_s * kv_tokens

    def work(self, prompt: float, uncached: float, output: float) -> float:
        """Seconds of the replica that a request takes up, among 64 others that share each step with it."""
        each = self.step_s / 64 + self.sequence_s + self.kv_s * (prompt + output / 2)
        return self.prefill(uncached) + output * each

    @property
    def slowness(self) -> float:
        """Prefill time of 2,048 tokens, as a multiple of the reference engine's."""
        return self.prefill(2048) / REFERENCE.prefill(2048)

    @property
    def samples(self) -> tuple[int, int]:
        """How many first tokens, and how many stretches of output, were learned from."""
        return self._prefill.samples, self._step.samples

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """`tokens` uncached tokens took `seconds` from the engine's first look at them to the first token."""
        if seconds <= 0:
            return
        fit = self._prefill
        fit.observe([TOKEN_S * tokens, ATTENTION_S * tokens * tokens], seconds)
        self.token_s, self.attention_s = TOKEN_S * fit.multiples[0], ATTENTION_S * fit.multiples[1]
        if not self._step.samples and not self._measured:
            # A slow engine is slow in everything, until its steps have been seen.
            slowness = self.slowness
            self.step_s, self.sequence_s, self.kv_s = (x * slowness for x in (STEP_S, SEQUENCE_S, KV_S))
            self._step.multiples = [slowness] * 3

    def observe_step(self, in_flight: float, kv_tokens: float, seconds: float) -> None:
        """A token came `seconds` after the one before, with no prompt computed in between."""
        if seconds <= 0:
            return
        fit = self._step
        fit.observe([STEP_S, SEQUENCE_S * in_flight, KV_S * kv_tokens], seconds)
        a, c, d = fit.multiples
        self.step_s, self.sequence_s, self.kv_s = STEP_S * a, SEQUENCE_S * c, KV_S * d


REFERENCE = StepModel()
"""The engine that the defaults describe. Never fed."""
