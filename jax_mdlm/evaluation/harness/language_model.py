"""The plug between lm-evaluation-harness and a `Responder`."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jax_mdlm.evaluation.harness.responder import Asked, Responder, Scored
from jax_mdlm.evaluation.harness.tasks import require

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def language_model(responder: Responder, *, name: str, settings: Mapping[str, Any]) -> "LM":
    """A model for `lm_eval.simple_evaluate`.

    Every process of a pod runs all requests, in the same order: the rows are shared out by JAX.
    For lm-eval there is one process.

    Args:
      responder: Answers.
      name: Of the run; tells caches of requests apart.
      settings: Go into the results, under `config`.

    Raises:
      ConfigError: lm-eval is not installed.
    """
    require()
    from lm_eval.api.model import LM

    class MaskedDiffusion(LM):
        """Requests (`lm_eval.api.instance.Instance`), answered."""

        def __init__(self) -> None:
            super().__init__()
            self._errors: list[float] = []  # standard errors of the likelihoods, in nats

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            asked = [Asked(one.args[0], one.args[1], _origin(one)) for one in requests]
            return responder.answer(asked)

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            scored = [Scored(one.args[0], one.args[1], _origin(one)) for one in requests]
            estimates = responder.score(scored)
            self._errors += [one.standard_error for one in estimates]
            return [(one.value, bool(one.greedy)) for one in estimates]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            texts = [one.args[0] for one in requests]
            return responder.score_texts(texts, [_origin(one) for one in requests])

        def apply_chat_template(
            self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
        ) -> str:
            return responder.render(chat_history, open_answer=add_generation_prompt)

        @property
        def tokenizer_name(self) -> str:
            # of what requests hold: one that is kept must not be read in another way
            rendered = responder.render([{"role": "user", "content": "content"}])
            digest = hashlib.sha256(rendered.encode()).hexdigest()[:12]
            return f"{name}-{digest}"

        def chat_template(self, chat_template: bool | str = False) -> str:
            return responder.template_text() if chat_template else ""

        def get_model_info(self) -> dict[str, Any]:
            """What lm-eval adds to `config` of its results, after the run."""
            known = [error for error in self._errors if math.isfinite(error)]  # not of one draw
            mean = sum(known) / len(known) if known else None
            return {**settings, "mean_standard_error_of_log_likelihood": mean}

    return MaskedDiffusion()


def _origin(request: Any) -> str:
    return f"task {request.task_name}, document {request.doc_id}"
