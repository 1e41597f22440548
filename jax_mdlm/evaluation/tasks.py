"""Scores of decoded text: phoneme and word error rate of pronunciations.

Enters: held-out words with their pronunciations. Leaves: error rates. The words are decoded by
`sampling` as a user's prompts are.
"""

import dataclasses
from collections.abc import Sequence

import jax

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.data.chat import Template, render_prompt
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.sampling import Answer, SampleOptions, generate, response_end
from jax_mdlm.sharding import Layout

Word = tuple[str, Sequence[str]]  # a word and its pronunciations, symbols between spaces


@dataclasses.dataclass(frozen=True)
class ErrorRates:
    """Counts over words; the rates are shares, 1 = 100%.

    Attributes:
      phoneme_errors: Insertions, deletions and substitutions, summed over words.
      phonemes: Length of the nearest pronunciations, summed over words.
      word_errors: Words that match none of their pronunciations.
      words: All words.
    """

    phoneme_errors: int
    phonemes: int
    word_errors: int
    words: int

    @property
    def phoneme(self) -> float:
        """Errors per phoneme of the reference; may exceed 1."""
        return self.phoneme_errors / self.phonemes

    @property
    def word(self) -> float:
        """Share of words with an error."""
        return self.word_errors / self.words


@dataclasses.dataclass(frozen=True)
class PronunciationScores:
    """What decoding a list of words showed.

    Attributes:
      rates: Phoneme and word errors.
      slack_share: Slack per slot before the terminator, over all answers.
      calls_per_word: Model calls that a word takes when it is decoded alone, mean.
      hypotheses: The decoded symbols, one list per word, in order.
    """

    rates: ErrorRates
    slack_share: float
    calls_per_word: float
    hypotheses: list[list[str]]


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions between two sequences (Levenshtein).

    `d[i, j] = min(d[i-1, j] + 1, d[i, j-1] + 1, d[i-1, j-1] + (first[i] != second[j]))`, row by
    row.
    """
    above = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        row = [i]
        for j, right in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (left != right)))
        above = row
    return above[-1]


def error_rates(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> ErrorRates:
    """Scores each hypothesis against its nearest reference.

    Args:
      hypotheses: Symbols, one sequence per word.
      references: All accepted symbol sequences of each word, none of them empty. Of equally near
        ones the shortest counts, which gives the higher rate.

    Returns:
      Sums over the words.

    Raises:
      ValueError: no words, lengths that differ, a word without a reference, an empty reference.
    """
    if len(hypotheses) != len(references):
        raise ValueError(
            f"every hypothesis needs its references, got {len(hypotheses)} hypotheses and "
            f"{len(references)} sets of references"
        )
    if not hypotheses:
        raise ValueError("error rates need at least one word, got none")
    errors = phonemes = wrong = 0
    for number, (hypothesis, accepted) in enumerate(zip(hypotheses, references, strict=True)):
        if not accepted or not all(accepted):
            raise ValueError(
                f"word {number} must have at least one reference and no empty one, got {accepted!r}"
            )
        nearest = min((edit_distance(hypothesis, one), len(one)) for one in accepted)
        errors += nearest[0]
        phonemes += nearest[1]
        wrong += nearest[0] > 0
    return ErrorRates(errors, phonemes, wrong, len(hypotheses))


def evaluate_pronunciations(
    params: Params,
    config: ModelConfig,
    words: Sequence[Word],
    tokenizer: Tokenizer,
    template: Template,
    options: SampleOptions,
    key: jax.Array,
    *,
    batch_size: int,
    layout: Layout | None = None,
) -> PronunciationScores:
    """Decodes words and scores them.

    Args:
      params: Parameters.
      config: The network.
      words: Held-out words with their pronunciations.
      tokenizer: Of the run.
      template: Of the run; renders a word as a prompt.
      options: How to decode.
      key: Typed PRNG key [] of the decoding.
      batch_size: Words per compiled call; some hundreds for a small model.
      layout: Mesh and rules; None = one device.

    Returns:
      Rates, slack share, calls and the decoded symbols.

    Raises:
      ConfigError: as `generate`.
      ValueError: as `error_rates`.
    """
    prompts = [render_prompt(tokenizer, word, template) for word, _ in words]
    answers = list(
        generate(params, config, prompts, options, key, batch_size=batch_size, layout=layout)
    )
    hypotheses = [tokenizer.decode(answer.tokens).split() for answer in answers]
    references = [[text.split() for text in pronunciations] for _, pronunciations in words]
    return PronunciationScores(
        rates=error_rates(hypotheses, references),
        slack_share=slack_share(answers, options),
        calls_per_word=sum(answer.own_calls for answer in answers) / len(answers),
        hypotheses=hypotheses,
    )


def slack_share(answers: Sequence[Answer], options: SampleOptions) -> float:
    """Slack per response slot before the terminator, over all answers; 0 where there is no slot."""
    slack = slots = 0
    for answer in answers:
        text = answer.response[: response_end(answer.response, options.ids)]
        slack += int((text == options.ids.slack).sum())
        slots += len(text)
    return slack / max(slots, 1)
