"""A plugin of pytest with which sb3_contrib's own tests of its TRPO test this one: ``make test-contrib``."""

import sb3_contrib

import sb3_trpo

sb3_contrib.TRPO = sb3_trpo.TRPO  # type: ignore[misc,assignment]
