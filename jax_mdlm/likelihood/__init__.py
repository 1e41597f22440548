"""Likelihoods of responses: LLaDA's Monte-Carlo estimator, and the alignment-marginal."""

from jax_mdlm.likelihood.estimator import Estimate, add_up, log_likelihood
from jax_mdlm.likelihood.marginal import marginal_log_likelihood

__all__ = [
    "Estimate",
    "add_up",
    "log_likelihood",
    "marginal_log_likelihood",
]
