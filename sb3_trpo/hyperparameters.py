"""What each hyperparameter of TRPO may be, beside those of every on-policy algorithm."""

import math
from numbers import Integral, Real

from sb3_trpo.guards.arguments import COUNT, FLAG, RULES, UNIT_INTERVAL, Rule, Rules

# Every TRPO has these, sb3-contrib's too, and no other algorithm of SB3 or sb3-contrib
OF_EVERY_TRPO = {"cg_max_steps", "cg_damping", "line_search_shrinking_factor", "line_search_max_iter"}

TRPO_RULES: Rules = {
    **RULES,
    "batch_size": COUNT,
    "cg_max_steps": COUNT,
    "cg_damping": Rule(Real, lambda value: 0 <= value < math.inf, "a finite number >= 0 or a schedule", schedule=True),
    "line_search_shrinking_factor": Rule(Real, lambda value: 0 < value < 1, "a number in (0, 1)"),
    "line_search_max_iter": COUNT,
    "n_critic_updates": Rule(Integral, lambda value: 0 <= value < 2**31, "an integer in [0, 2**31)"),
    "target_kl": Rule(Real, lambda value: 0 < value < math.inf, "a finite number > 0 or a schedule", schedule=True),
    "sub_sampling_factor": COUNT,
    "fast": FLAG,
    "std_damping": Rule(Real, lambda value: 0 <= value < math.inf, "a finite number >= 0 or None", optional=True),
    "critic_gae_lambda": Rule(Real, UNIT_INTERVAL.holds, "a number in [0, 1] or None", optional=True),
}

# These may be a function of the progress remaining, from 1 to 0
SCHEDULES = [name for name, rule in TRPO_RULES.items() if rule.schedule]
