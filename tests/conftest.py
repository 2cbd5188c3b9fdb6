"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is no defect: how long an example takes says nothing about whether it holds.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
