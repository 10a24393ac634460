"""Branches of training runs by name."""

from open_lth.foundations.lazy import LazyRegistry

registered_branches = LazyRegistry(oneshot='open_lth.training.branch.oneshot:Branch')
