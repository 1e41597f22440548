"""The settings under which LLaDA's published numbers were measured, task by task.

Sources, all in the repository ML-GSAI/LLaDA (arXiv 2502.09992, appendix B):

- `base`: `eval_llada_lm_eval.sh`, the commands that LLaDA-8B-Base was reproduced with in lm-eval
  0.4.8. Tasks that generate keep lm-eval's own number of examples, as there. `EVAL.md` says that
  256 and 512 slots give nearly the same: `--config.sample.length=256`, block and steps follow.
- `instruct`: the table of `EVAL.md` for LLaDA-8B-Instruct, pure diffusion: one block. Numbers of
  examples from the OpenCompass files that `eval_llada_opencompass.sh` runs; IFEval from there too.
- `instruct-blocks`: the second table, blocks one after the other.
- `llada-1.5`: the table of `EVAL.md` for LLaDA 1.5 (arXiv 2505.19223).

The last three were measured in OpenCompass, whose prompts and ways to read an answer differ from
those of lm-eval's tasks: decoding is the published one, scores are not comparable to the point.
HellaSwag with Instruct (3 slots) is left out: lm-eval has no task that generates it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """How a task is run.

    Attributes:
      num_fewshot: Worked examples in the prompt; None = as the task says.
      chat: Whether the prompt is rendered with the chat template.
      length: Slots of an answer, and calls: all published runs commit one slot a call. 0 = the
        task asks for likelihoods only.
      block_length: Slots of a block; 0 = `length`, one block.
      suppress_eos: LLaDA's `logits_eos_inf`.
      defer_eos: LLaDA's `confidence_eos_eot_inf`.
      guidance: Classifier-free guidance, of likelihoods and of generation.
      samples: Draws of the likelihood's estimate; 1 is exact where an answer is one token.
    """

    num_fewshot: int | None
    chat: bool = False
    length: int = 0
    block_length: int = 0
    suppress_eos: bool = False
    defer_eos: bool = False
    guidance: float = 0.0
    samples: int = 128

    def sample_fields(self, own: Mapping[str, str]) -> dict[str, Any]:
        """Fields of the `sample` section that the preset sets, but for `own`.

        Args:
          own: Fields that were set by hand, with their values as written. Where `length` is among
            them, calls and a single block follow it.
        """
        fields: dict[str, Any] = {**_PLAIN, "guidance": self.guidance}
        if self.length:
            length = own.get("length", self.length)
            fields |= {
                "length": length,
                "block_length": self.block_length or length,
                "steps": length,
                "suppress_eos": self.suppress_eos,
                "defer_eos": self.defer_eos,
            }
        return {name: value for name, value in fields.items() if name not in own}


# LLaDA's `generate`, whatever the work directory is used to.
_PLAIN = {
    "strategy": "confidence",
    "threshold": 0.0,
    "factor": 0.0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "limit": 0,
    "remask": False,
    "cache": "none",
    "refresh": 0,
}

_BASE = {
    "gpqa_main_n_shot": Preset(5, guidance=0.5),
    "truthfulqa_mc2": Preset(0, guidance=2.0),
    "arc_challenge": Preset(0, guidance=0.5),
    "hellaswag": Preset(0, guidance=0.5),
    "winogrande": Preset(5),
    "piqa": Preset(0, guidance=0.5),
    "mmlu": Preset(5, samples=1),
    "cmmlu": Preset(5, samples=1),
    "ceval-valid": Preset(5, samples=1),
    "bbh": Preset(None, length=1024),
    "gsm8k": Preset(None, length=1024),
    "minerva_math": Preset(None, length=1024),
    "humaneval": Preset(None, length=1024),
    "mbpp": Preset(None, length=1024),
}

_INSTRUCT = {
    "mmlu_generative": Preset(5, chat=True, length=3),
    "mmlu_pro": Preset(0, chat=True, length=256),
    "arc_challenge_chat": Preset(0, chat=True, length=512),
    "gsm8k": Preset(4, chat=True, length=512, defer_eos=True),
    "minerva_math": Preset(0, chat=True, length=512, defer_eos=True),
    "gpqa_diamond_generative_n_shot": Preset(5, chat=True, length=64, defer_eos=True),
    "humaneval_instruct": Preset(0, chat=True, length=512, suppress_eos=True),
    "mbpp_instruct": Preset(3, chat=True, length=256, defer_eos=True),
    "ifeval": Preset(0, chat=True, length=512, defer_eos=True),
}

_INSTRUCT_BLOCKS = {
    "gsm8k": Preset(4, chat=True, length=256, block_length=8),
    "minerva_math": Preset(0, chat=True, length=512, block_length=64),
}

_LLADA_1_5 = {
    "gsm8k": Preset(4, chat=True, length=256, block_length=16, defer_eos=True),
    "minerva_math": Preset(0, chat=True, length=1024, block_length=128, defer_eos=True),
    "gpqa_diamond_generative_n_shot": Preset(5, chat=True, length=256, block_length=16),
    "humaneval_instruct": Preset(0, chat=True, length=512, block_length=32, defer_eos=True),
    "mbpp_instruct": Preset(3, chat=True, length=512, block_length=32, defer_eos=True),
    "ifeval": Preset(0, chat=True, length=256, block_length=16, defer_eos=True),
}

# preset -> task or group of lm-eval -> settings; those of a group hold for all of its tasks
PRESETS: dict[str, dict[str, Preset]] = {
    "base": _BASE,
    "instruct": _INSTRUCT,
    "instruct-blocks": _INSTRUCT_BLOCKS,
    "llada-1.5": _LLADA_1_5,
}
