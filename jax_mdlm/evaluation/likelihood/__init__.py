"""Likelihoods of responses: LLaDA's Monte-Carlo estimator, choices, the alignment-marginal."""

from jax_mdlm.evaluation.likelihood.choices import Question, choose, parse_question
from jax_mdlm.evaluation.likelihood.estimate import Estimate, add_up
from jax_mdlm.evaluation.likelihood.estimator import log_likelihood
from jax_mdlm.evaluation.likelihood.marginal import marginal_log_likelihood

__all__ = [
    "Estimate",
    "Question",
    "add_up",
    "choose",
    "log_likelihood",
    "marginal_log_likelihood",
    "parse_question",
]
