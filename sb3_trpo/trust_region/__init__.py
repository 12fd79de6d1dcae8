"""
The trust-region step as plain numerics: torch and the standard library, nothing of reinforcement learning.

Direction (``conjugate_gradient`` with Fisher products) and distance (``backtrack``) do not know each other;
``trust_region_step`` joins them.
"""

from sb3_trpo.trust_region.conjugate_gradient import ConjugateGradientResult, conjugate_gradient
from sb3_trpo.trust_region.fallbacks import CentralDifferences, first_that_works
from sb3_trpo.trust_region.fisher import fisher_vector_product, flat_gradient, flatten, reached_by, unflatten
from sb3_trpo.trust_region.line_search import Candidate, LineSearchResult, backtrack
from sb3_trpo.trust_region.step import TrustRegionProblem, TrustRegionStep, are_finite, trust_region_step

__all__ = [
    "Candidate",
    "CentralDifferences",
    "ConjugateGradientResult",
    "LineSearchResult",
    "TrustRegionProblem",
    "TrustRegionStep",
    "are_finite",
    "backtrack",
    "conjugate_gradient",
    "first_that_works",
    "fisher_vector_product",
    "flat_gradient",
    "flatten",
    "reached_by",
    "trust_region_step",
    "unflatten",
]
